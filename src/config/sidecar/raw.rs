//! `sidecar.yaml` as it is written: every key, its meaning and its default.
//!
//! The JSON Schema is generated from these types. Every key is optional here, because the environment may supply it;
//! what is required is checked when it becomes the runtime form.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::authzen::RawAuthzen;
use super::forward_auth::RawForwardAuth;
use super::proxy::RawProxy;
use crate::config::shared::RawTelemetry;
use crate::config::values::{Address, Cidr, FileMode, HttpUrl, Identity, Span};

/// Configuration of `portcullis sidecar`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Sidecar")]
pub struct RawSidecar {
    /// Where it listens.
    pub listeners: RawSidecarListeners,
    /// The control plane that it follows.
    pub control_plane: RawControlPlane,
    /// Who it is, and which services it protects.
    pub scope: RawScope,
    /// The proxies whose word about the certificates of their own clients counts: those that end the client's TLS
    /// before the proxy that asks this sidecar. On routes that take certificates, that of such a proxy is never its
    /// client's; what counts is the one that it forwards. Default: nobody.
    pub trusted_proxies: Vec<RawTrustedProxy>,
    /// Proxies that ask over HTTP.
    pub forward_auth: RawForwardAuth,
    /// Applications that ask directly (AuthZEN 1.0).
    pub authzen: RawAuthzen,
    /// The reverse proxy.
    pub proxy: RawProxy,
    /// What it keeps on disk.
    pub state: RawState,
    /// Sizes of its caches.
    pub cache: RawCache,
    /// Proofs of possession.
    pub proof: RawProof,
    /// What it puts up with from its clients.
    pub limits: RawLimits,
    /// What is done when more is asked than can be answered.
    pub overload: RawOverload,
    /// Decision records.
    pub records: RawRecords,
    /// Logs and traces.
    pub telemetry: RawTelemetry,
    /// Shutdown.
    pub drain: RawDrain,
}

/// Where the sidecar listens.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "SidecarListeners")]
pub struct RawSidecarListeners {
    /// Envoy's ext_authz over gRPC, and `grpc.health.v1`.
    pub ext_authz: RawExtAuthz,
    /// Forward-auth over HTTP, for Envoy's HTTP service, Traefik, Caddy and nginx, as in `127.0.0.1:9192`; or null.
    pub forward_auth: Option<Address>,
    /// The reverse proxy, for services without an Envoy; or null.
    pub proxy: Option<Address>,
    /// `/livez`, `/readyz`, `/metrics`, `/snapshot`, `/loglevel`, `/v1/check`. No authentication: keep it private.
    pub admin: Address,
    /// `/livez`, `/readyz`, `/metrics` and nothing else, for probes and scrapes from outside. Default: nowhere.
    pub probes: Option<Address>,
}

/// Where the ext_authz server listens; at least one is needed, unless proxies ask over HTTP.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "ExtAuthz")]
pub struct RawExtAuthz {
    /// TCP address, or null.
    pub tcp: Option<Address>,
    /// Path of a Unix socket, or null. Whoever may write to it may ask.
    pub unix: Option<PathBuf>,
    /// Permissions of the socket, in octal.
    pub unix_mode: FileMode,
    /// Threads to which connections are pinned, each to the one that has the fewest; at most 256. 0: all threads share all
    /// connections. Pinned, a check costs less, and waits for its thread while another may be idle.
    pub pinned_threads: u16,
}

/// The control plane that the sidecar follows.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "ControlPlane")]
pub struct RawControlPlane {
    /// Required. Its sync address, as in `https://control.example:9181`.
    pub url: Option<HttpUrl>,
    /// Allows `http://` to a loopback address.
    pub insecure_loopback: bool,
    /// PEM file with the certificates that may vouch for the control plane. Required for `https://`.
    pub ca_file: Option<PathBuf>,
    /// File with this sidecar's own JWT-SVID; read again at each connection. This or the client certificate is needed.
    pub token_file: Option<PathBuf>,
    /// PEM file with this sidecar's X.509-SVID and its chain.
    pub client_cert_file: Option<PathBuf>,
    /// PEM file with the private key of that certificate.
    pub client_key_file: Option<PathBuf>,
    /// Required. File with the control plane's public signing key (`verify-key` in its data directory).
    pub verify_key_file: Option<PathBuf>,
    /// Where a denied workload is told to ask for a grant, as in `https://control.example:9180/v1/grant-requests`.
    pub grant_request_url: Option<HttpUrl>,
}

/// Who the sidecar is, and which services it protects. Must equal what the control plane has for this identity.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Scope")]
pub struct RawScope {
    /// Required. Its own SPIFFE ID.
    pub identity: Option<Identity>,
    /// Required. Names of the services that it protects.
    pub services: Vec<String>,
}

/// One proxy, or several; exactly one of the two.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "TrustedProxy")]
pub struct RawTrustedProxy {
    /// The SPIFFE ID in the certificate of its connection, which is held to the same rules as a client's: an issuer
    /// vouches for its trust domain, and nothing of it is revoked. Prefer this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<Identity>,
    /// The addresses that it connects from, as Envoy's `source.address` has them: whoever connects from there may then
    /// speak for anybody. With `use_remote_address: false` or
    /// `xff_num_trusted_hops` that is what a header says: then a client could name itself a proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Cidr>,
    /// Where it says which certificate its client has. It must remove this header from what its clients send.
    pub header: CertificateHeader,
}

/// Where a proxy says which certificate its client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CertificateHeader {
    /// The last element of `x-forwarded-client-cert`, which must have `Cert`. Envoy writes this.
    #[default]
    XForwardedClientCert,
    /// `Client-Cert` (RFC 9440).
    ClientCert,
}

/// What the sidecar keeps on disk.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "State")]
pub struct RawState {
    /// Directory of the last-known-good state.
    pub directory: PathBuf,
    /// How long it answers without word from the control plane. Can only shorten the control plane's own bound.
    pub max_staleness: Span,
}

/// Sizes of the sidecar's caches, in entries.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Cache")]
pub struct RawCache {
    /// Verified tokens. 0 verifies each time.
    pub tokens: u64,
    /// Decisions. 0 evaluates each time.
    pub decisions: u64,
    /// Used proofs of possession, each remembered for as long as it would hold: a minute for DPoP. No cache: when it is
    /// full, proofs are answered `system.overload`. One key gets half of it at most.
    pub proofs: u64,
}

/// Proofs of possession.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Proof")]
pub struct RawProof {
    /// File with 32 to 1024 random bytes in base64, mode 0600: the key of the nonces for DPoP proofs. The same for all
    /// enforcement points behind one load balancer. Without it: a random key of this process.
    pub nonce_key_file: Option<PathBuf>,
}

/// What the sidecar puts up with from its clients.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Limits")]
pub struct RawLimits {
    /// Largest check request, in bytes; at the reverse proxy, the largest body that is decided on.
    pub max_message_bytes: u32,
    /// Checks under way at once; more are answered `system.overload`.
    pub max_concurrent_checks: u32,
    /// Checks under way at once on one connection.
    pub max_concurrent_streams: u32,
    /// Headers of a checked request.
    pub max_headers: u32,
    /// Bytes of their names and values.
    pub max_header_bytes: u32,
    /// Bytes of the HTTP/2 headers of the gRPC call itself.
    pub max_http2_header_list_bytes: u32,
    /// Open connections; more wait to be accepted.
    pub max_connections: u32,
    /// Threads that verify the signatures of tokens not seen before. Null: half of the processors, at least one.
    pub verification_threads: Option<u32>,
    /// Checks that may wait for one of them with a token not seen before, and as many again that wait with a known
    /// token for their proof of possession; more are answered `system.overload`, as are those that wait 100 ms.
    pub verification_queue: u32,
}

/// What is done when more is asked than can be answered. Whatever is shed is answered `system.overload` at once.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Overload")]
pub struct RawOverload {
    /// Whether the limits follow the delay of checks, below those of `limits`.
    pub mode: OverloadMode,
    /// Checks under way that are always admitted; a sixteenth of it for checks with a token not seen before.
    pub min_concurrent_checks: u32,
    /// Checks are shed when all of them have waited this long for a thread, a tenth of a second over.
    pub delay: Span,
    /// The same for checks with a token not seen before, which are shed first; at most `delay`.
    pub cold_delay: Span,
    /// No more checks may wait for their verification than can be verified in this time, and of a queue that stands none
    /// waits longer.
    pub verification_wait: Span,
}

/// Whether limits follow the delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OverloadMode {
    /// They do.
    #[default]
    Adaptive,
    /// Only those of `limits` count.
    Fixed,
}

/// Decision records: JSON lines, one a decision.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Records")]
pub struct RawRecords {
    /// Where they go.
    pub output: RecordOutput,
    /// The file, for `output: file`.
    pub file: Option<PathBuf>,
    /// A file that grew to this size is rotated.
    pub max_file_bytes: u64,
    /// How many rotated files are kept.
    pub keep_files: u32,
    /// Records that may wait to be written; more are dropped and counted.
    pub queue: u32,
}

/// Where decision records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecordOutput {
    /// Standard output.
    #[default]
    Stdout,
    /// A rotating file.
    File,
    /// Nowhere.
    Off,
}

/// Shutdown.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Drain")]
pub struct RawDrain {
    /// How long checks are still answered after SIGTERM while clients have connections open.
    pub deadline: Span,
}

// === defaults ===

impl Default for RawSidecarListeners {
    fn default() -> Self {
        let ext_authz = RawExtAuthz::default();
        Self { ext_authz, forward_auth: None, proxy: None, admin: Address::loopback(9193), probes: None }
    }
}

impl Default for RawExtAuthz {
    fn default() -> Self {
        Self { tcp: Some(Address::loopback(9191)), unix: None, unix_mode: FileMode(0o660), pinned_threads: 0 }
    }
}

impl Default for RawState {
    fn default() -> Self {
        Self { directory: PathBuf::from("/var/lib/portcullis/sidecar"), max_staleness: Span::secs(300) }
    }
}

impl Default for RawCache {
    fn default() -> Self {
        Self { tokens: 100_000, decisions: 100_000, proofs: 100_000 }
    }
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            max_message_bytes: 1_048_576,
            max_concurrent_checks: 10_000,
            max_concurrent_streams: 1024,
            max_headers: 256,
            max_header_bytes: 65_536,
            max_http2_header_list_bytes: 16_384,
            max_connections: 1024,
            verification_threads: None,
            verification_queue: 256,
        }
    }
}

impl Default for RawOverload {
    fn default() -> Self {
        let span = |ms| Span(std::time::Duration::from_millis(ms));
        Self {
            mode: OverloadMode::Adaptive,
            min_concurrent_checks: 256,
            delay: span(25),
            cold_delay: span(10),
            verification_wait: span(20),
        }
    }
}

impl Default for RawRecords {
    fn default() -> Self {
        Self { output: RecordOutput::Stdout, file: None, max_file_bytes: 104_857_600, keep_files: 5, queue: 65_536 }
    }
}

impl Default for RawDrain {
    fn default() -> Self {
        Self { deadline: Span::secs(30) }
    }
}
