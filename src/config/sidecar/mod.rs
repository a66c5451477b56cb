//! `sidecar.yaml`: the enforcement point's configuration, validated.
//!
//! Fails closed: without an identity, a scope, a key to check signatures with and a credential of its own, an
//! enforcement point does not start. `state.max_staleness` can only shorten what the control plane says.
//! Long because every section is validated here, in the order of the file.

mod authzen;
mod forward_auth;
mod proxy;
mod raw;

use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

pub use self::authzen::{Authzen, RawAuthzen, RawCaller, RawResourceType, RawSubjectType};
pub use self::forward_auth::{ForwardAuth, RawDialect, RawForwardAuth};
pub use self::proxy::{RawHealth, RawProtocol, RawProxy, RawProxyTls, RawUpstream, RawUpstreamTls, RawWorkloadApi};
pub use self::raw::{
    CertificateHeader, OverloadMode, RawCache, RawControlPlane, RawDrain, RawExtAuthz, RawLimits, RawOverload,
    RawProof, RawRecords, RawScope, RawSidecar, RawSidecarListeners, RawState, RawTrustedProxy, RecordOutput,
};
use super::load::{self, ConfigError, Environment};
use super::shared::Telemetry;
use super::values::{Address, Cidr, HttpUrl, Identity, Span};
use crate::authz::{ForwardingHeader, ProxyPeer, TrustedProxy};
use crate::cache::AdaptiveLimits;
use crate::credential::{Nonces, SpiffeId};
use crate::object::ResourceName;
use crate::tls;
use crate::wire::VerifyKey;

/// A sidecar's configuration, validated.
#[derive(Debug, Clone)]
pub struct SidecarConfig {
    /// Where it listens.
    pub listeners: SidecarListeners,
    /// The control plane that it follows.
    pub control_plane: ControlPlane,
    /// Who it is, and which services it protects.
    pub scope: Scope,
    /// The proxies that may forward certificates.
    pub trusted_proxies: Vec<TrustedProxy>,
    /// Proxies that ask over HTTP.
    pub forward_auth: ForwardAuth,
    /// Applications that ask directly.
    pub authzen: Authzen,
    /// The reverse proxy.
    pub proxy: crate::proxy::Config,
    /// What it keeps on disk.
    pub state: StateDirectory,
    /// Sizes of its caches.
    pub cache: Cache,
    /// The key of nonces that other enforcement points share, if they do.
    pub nonces: Option<Nonces>,
    /// What it puts up with.
    pub limits: Limits,
    /// How limits follow the delay of checks, if they do.
    pub overload: Option<Overload>,
    /// Decision records.
    pub records: Records,
    /// Logs and traces.
    pub telemetry: Telemetry,
    /// How long a drain may last.
    pub drain_deadline: Duration,
}

/// Where a sidecar listens. At least one listener for checks is set.
#[derive(Debug, Clone)]
pub struct SidecarListeners {
    /// ext_authz over TCP.
    pub ext_authz_tcp: Option<Address>,
    /// ext_authz over a Unix socket.
    pub ext_authz_unix: Option<PathBuf>,
    /// Permissions of that socket.
    pub ext_authz_unix_mode: u32,
    /// Threads to which its connections are pinned; 0 for none.
    pub ext_authz_pinned_threads: u16,
    /// Forward-auth over HTTP.
    pub forward_auth: Option<Address>,
    /// The reverse proxy.
    pub proxy: Option<Address>,
    /// Admin.
    pub admin: Address,
    /// What of it may be seen from outside.
    pub probes: Option<Address>,
}

/// How the control plane is reached and known.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// Its sync address.
    pub url: HttpUrl,
    /// How the connection is protected.
    pub transport: Transport,
    /// How this sidecar proves who it is.
    pub credential: Credential,
    /// The key that every payload is signed with.
    pub verify_key: VerifyKey,
    /// Where a denied workload may ask for a grant.
    pub grant_request_url: Option<String>,
}

/// How the connection to the control plane is protected.
#[derive(Debug, Clone)]
pub enum Transport {
    /// TLS; the server's certificate chains to this PEM file.
    Tls {
        /// PEM certificates.
        ca_file: PathBuf,
    },
    /// Plain text to a loopback address.
    LoopbackPlainText,
}

/// How a sidecar proves who it is.
#[derive(Debug, Clone)]
pub enum Credential {
    /// A JWT-SVID in a file.
    Token {
        /// The file.
        file: PathBuf,
    },
    /// An X.509-SVID.
    Certificate {
        /// PEM chain.
        cert_file: PathBuf,
        /// PEM private key.
        key_file: PathBuf,
    },
}

/// Who a sidecar is, and which services it protects.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Its own SPIFFE ID.
    pub identity: SpiffeId,
    /// Names of services: sorted, distinct, at least one.
    pub services: Vec<String>,
}

/// What a sidecar keeps on disk.
#[derive(Debug, Clone)]
pub struct StateDirectory {
    /// The directory.
    pub directory: PathBuf,
    /// Upper bound on the control plane's own bound.
    pub max_staleness: Duration,
}

/// Sizes of the caches.
#[derive(Debug, Clone, Copy)]
pub struct Cache {
    /// Verified tokens.
    pub tokens: u64,
    /// Decisions.
    pub decisions: u64,
    /// Used proofs of possession; at least 1.
    pub proofs: u64,
}

/// What a sidecar puts up with. Every value is at least 1.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest check request.
    pub max_message_bytes: u32,
    /// Checks under way at once.
    pub max_concurrent_checks: u32,
    /// Checks under way at once on one connection.
    pub max_concurrent_streams: u32,
    /// Headers of a checked request.
    pub max_headers: u32,
    /// Bytes of their names and values.
    pub max_header_bytes: u32,
    /// Bytes of the HTTP/2 headers of the gRPC call itself.
    pub max_http2_header_list_bytes: u32,
    /// Open connections.
    pub max_connections: u32,
    /// Threads that verify signatures; without, half of the processors.
    pub verification_threads: Option<u32>,
    /// Checks that may wait for one of them.
    pub verification_queue: u32,
}

/// How limits follow the delay of checks. No span is zero.
#[derive(Debug, Clone, Copy)]
pub struct Overload {
    /// Of checks under way.
    pub checks: AdaptiveLimits,
    /// No more may wait for their verification than can be verified in this time.
    pub verification_wait: Duration,
}

/// Where decision records go.
#[derive(Debug, Clone)]
pub enum Records {
    /// Standard output.
    Stdout {
        /// Records that may wait.
        queue: u32,
    },
    /// A rotating file.
    File {
        /// The file.
        path: PathBuf,
        /// Size at which it is rotated.
        max_bytes: u64,
        /// Rotated files that are kept.
        keep: u32,
        /// Records that may wait.
        queue: u32,
    },
    /// Nowhere.
    Off,
}

// === impl SidecarConfig ===

impl SidecarConfig {
    /// Reads the file, lays the environment over it, validates.
    pub fn load(path: &std::path::Path, env: &Environment) -> Result<Self, ConfigError> {
        load::load::<RawSidecar>(path, env)?.validate()
    }
}

// === impl RawSidecar ===

impl RawSidecar {
    /// Parses a file's text, read from `path`, with the environment over it.
    pub fn parse(path: &std::path::Path, text: &str, env: &Environment) -> Result<Self, ConfigError> {
        load::parse(path, text, env)
    }

    /// Turns it into the runtime form. Reads the key files that it names.
    pub fn validate(self) -> Result<SidecarConfig, ConfigError> {
        let listeners = self.listeners.validate()?;
        let control_plane = self.control_plane.validate()?;
        let scope = self.scope.validate()?;
        let limits = [self.limits.max_headers, self.limits.max_header_bytes, self.limits.max_message_bytes];
        let proxy = self.proxy.validate(listeners.proxy.is_some(), &scope.services, limits)?;
        Ok(SidecarConfig {
            listeners,
            control_plane,
            scope,
            trusted_proxies: trusted_proxies(self.trusted_proxies)?,
            forward_auth: self.forward_auth.validate()?,
            authzen: self.authzen.validate()?,
            proxy,
            state: self.state.validate()?,
            cache: self.cache.validate()?,
            nonces: self.proof.validate()?,
            limits: self.limits.validate()?,
            overload: self.overload.validate()?,
            records: self.records.validate()?,
            telemetry: self.telemetry.validate(),
            drain_deadline: self.drain.deadline.0,
        })
    }
}

impl RawSidecarListeners {
    fn validate(self) -> Result<SidecarListeners, ConfigError> {
        let other = self.forward_auth.or(self.proxy);
        if self.ext_authz.tcp.is_none() && self.ext_authz.unix.is_none() && other.is_none() {
            let why = "`tcp` or `unix` is needed, or `listeners.forward_auth`, or `listeners.proxy`";
            return Err(ConfigError::value("listeners.ext_authz", why));
        }
        if self.ext_authz.unix.as_ref().is_some_and(|p| p.as_os_str().len() > 107) {
            return Err(ConfigError::value("listeners.ext_authz.unix", "a socket path has at most 107 bytes"));
        }
        if self.ext_authz.pinned_threads > 256 {
            return Err(ConfigError::value("listeners.ext_authz.pinned_threads", "must be at most 256"));
        }
        Ok(SidecarListeners {
            ext_authz_tcp: self.ext_authz.tcp,
            ext_authz_unix: self.ext_authz.unix,
            ext_authz_unix_mode: self.ext_authz.unix_mode.0,
            ext_authz_pinned_threads: self.ext_authz.pinned_threads,
            forward_auth: self.forward_auth,
            proxy: self.proxy,
            admin: self.admin,
            probes: self.probes,
        })
    }
}

impl RawControlPlane {
    fn validate(self) -> Result<ControlPlane, ConfigError> {
        let key = |name: &str| format!("control_plane.{name}");
        let url = self.url.ok_or_else(|| ConfigError::value(key("url"), "is required"))?;
        let transport = if url.is_tls() {
            let Some(ca_file) = self.ca_file else {
                return Err(ConfigError::value(key("ca_file"), "is required for an https:// address"));
            };
            load::read_named(&key("ca_file"), &ca_file)?;
            Transport::Tls { ca_file }
        } else {
            if !url.is_loopback() {
                let why = format!("`{url}` is plain text to another machine; use https://, or 127.0.0.1 or [::1]");
                return Err(ConfigError::value(key("url"), why));
            }
            if !self.insecure_loopback {
                let why = "must be true for a plain-text http:// address, even on loopback";
                return Err(ConfigError::value(key("insecure_loopback"), why));
            }
            Transport::LoopbackPlainText
        };
        let credential = match (self.token_file, self.client_cert_file, self.client_key_file) {
            (Some(file), None, None) => {
                load::read_named(&key("token_file"), &file)?;
                Credential::Token { file }
            }
            (None, Some(cert_file), Some(key_file)) => {
                if !url.is_tls() {
                    return Err(ConfigError::value(key("client_cert_file"), "needs an https:// address"));
                }
                load::read_named(&key("client_cert_file"), &cert_file)?;
                load::read_named(&key("client_key_file"), &key_file)?;
                Credential::Certificate { cert_file, key_file }
            }
            (None, None, None) => {
                let why = "is required, or `client_cert_file` and `client_key_file` are";
                return Err(ConfigError::value(key("token_file"), why));
            }
            (None, Some(_), None) => return Err(ConfigError::value(key("client_key_file"), "is missing")),
            (None, None, Some(_)) => return Err(ConfigError::value(key("client_cert_file"), "is missing")),
            (Some(_), _, _) => {
                let why = "give either a token or a client certificate, not both";
                return Err(ConfigError::value(key("token_file"), why));
            }
        };
        let Some(path) = self.verify_key_file else {
            return Err(ConfigError::value(key("verify_key_file"), "is required"));
        };
        let bytes = load::read_named(&key("verify_key_file"), &path)?;
        let verify_key = std::str::from_utf8(&bytes)
            .ok()
            .and_then(|text| VerifyKey::parse(text).ok())
            .ok_or_else(|| ConfigError::file(key("verify_key_file"), &path, "it is not a base64 Ed25519 public key"))?;
        let grant_request_url = self.grant_request_url.map(|url| url.to_string());
        Ok(ControlPlane { url, transport, credential, verify_key, grant_request_url })
    }
}

impl RawScope {
    fn validate(self) -> Result<Scope, ConfigError> {
        let Identity(identity) = self.identity.ok_or_else(|| ConfigError::value("scope.identity", "is required"))?;
        let services = services("scope.services", self.services)?;
        Ok(Scope { identity, services })
    }
}

/// Checks a list of service names; sorts it.
pub(super) fn services(key: &str, mut names: Vec<String>) -> Result<Vec<String>, ConfigError> {
    if names.is_empty() {
        return Err(ConfigError::value(key, "at least one service is needed"));
    }
    for (i, name) in names.iter().enumerate() {
        if !name.parse::<ResourceName>().is_ok_and(|r| r.route.is_none()) {
            return Err(ConfigError::value(format!("{key}[{i}]"), format!("`{name}` is not the name of a service")));
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn trusted_proxies(all: Vec<RawTrustedProxy>) -> Result<Vec<TrustedProxy>, ConfigError> {
    let each = |(i, proxy): (usize, RawTrustedProxy)| {
        let peer = match (proxy.spiffe_id, proxy.network) {
            (Some(Identity(id)), None) => ProxyPeer::SpiffeId(id),
            (None, Some(Cidr(network))) => ProxyPeer::Network(network),
            _ => {
                let why = "either `spiffe_id` or `network` is needed";
                return Err(ConfigError::value(format!("trusted_proxies[{i}]"), why));
            }
        };
        let header = match proxy.header {
            CertificateHeader::XForwardedClientCert => ForwardingHeader::Xfcc,
            CertificateHeader::ClientCert => ForwardingHeader::ClientCert,
        };
        Ok(TrustedProxy { peer, header })
    };
    all.into_iter().enumerate().map(each).collect()
}

impl RawState {
    fn validate(self) -> Result<StateDirectory, ConfigError> {
        if self.directory.as_os_str().is_empty() {
            return Err(ConfigError::value("state.directory", "must not be empty"));
        }
        positive("state.max_staleness", self.max_staleness)?;
        Ok(StateDirectory { directory: self.directory, max_staleness: self.max_staleness.0 })
    }
}

impl RawCache {
    fn validate(self) -> Result<Cache, ConfigError> {
        if self.proofs == 0 {
            return Err(ConfigError::value("cache.proofs", "must be at least 1"));
        }
        Ok(Cache { tokens: self.tokens, decisions: self.decisions, proofs: self.proofs })
    }
}

impl RawProof {
    fn validate(self) -> Result<Option<Nonces>, ConfigError> {
        let Some(path) = self.nonce_key_file else { return Ok(None) };
        let key = "proof.nonce_key_file";
        let bytes = Zeroizing::new(load::read_named(key, &path)?);
        tls::warn_if_exposed(&path);
        let text = std::str::from_utf8(&bytes).map_err(|_not_utf8| ConfigError::file(key, &path, "it is not text"))?;
        Nonces::with_key(text).map(Some).map_err(|e| ConfigError::file(key, &path, format!("it is {e}")))
    }
}

impl RawLimits {
    fn validate(self) -> Result<Limits, ConfigError> {
        let all = [
            ("max_message_bytes", self.max_message_bytes),
            ("max_concurrent_checks", self.max_concurrent_checks),
            ("max_concurrent_streams", self.max_concurrent_streams),
            ("max_headers", self.max_headers),
            ("max_header_bytes", self.max_header_bytes),
            ("max_http2_header_list_bytes", self.max_http2_header_list_bytes),
            ("max_connections", self.max_connections),
            ("verification_threads", self.verification_threads.unwrap_or(1)),
            ("verification_queue", self.verification_queue),
        ];
        if let Some((name, _)) = all.into_iter().find(|(_, n)| *n == 0) {
            return Err(ConfigError::value(format!("limits.{name}"), "must be at least 1"));
        }
        Ok(Limits {
            max_message_bytes: self.max_message_bytes,
            max_concurrent_checks: self.max_concurrent_checks,
            max_concurrent_streams: self.max_concurrent_streams,
            max_headers: self.max_headers,
            max_header_bytes: self.max_header_bytes,
            max_http2_header_list_bytes: self.max_http2_header_list_bytes,
            max_connections: self.max_connections,
            verification_threads: self.verification_threads,
            verification_queue: self.verification_queue,
        })
    }
}

impl RawOverload {
    fn validate(self) -> Result<Option<Overload>, ConfigError> {
        if self.min_concurrent_checks == 0 {
            return Err(ConfigError::value("overload.min_concurrent_checks", "must be at least 1"));
        }
        positive("overload.delay", self.delay)?;
        positive("overload.cold_delay", self.cold_delay)?;
        positive("overload.verification_wait", self.verification_wait)?;
        if self.cold_delay.0 > self.delay.0 {
            return Err(ConfigError::value("overload.cold_delay", "must not be longer than `overload.delay`"));
        }
        let (min, delay, cold_delay) = (self.min_concurrent_checks as usize, self.delay.0, self.cold_delay.0);
        let checks = AdaptiveLimits { min, delay, cold_delay };
        let overload = Overload { checks, verification_wait: self.verification_wait.0 };
        Ok((self.mode == OverloadMode::Adaptive).then_some(overload))
    }
}

impl RawRecords {
    fn validate(self) -> Result<Records, ConfigError> {
        if self.queue == 0 {
            return Err(ConfigError::value("records.queue", "must be at least 1"));
        }
        if self.max_file_bytes < 4096 {
            return Err(ConfigError::value("records.max_file_bytes", "must be at least 4096"));
        }
        Ok(match self.output {
            RecordOutput::Stdout => Records::Stdout { queue: self.queue },
            RecordOutput::Off => Records::Off,
            RecordOutput::File => {
                let path = self
                    .file
                    .ok_or_else(|| ConfigError::value("records.file", "is required with `records.output: file`"))?;
                Records::File { path, max_bytes: self.max_file_bytes, keep: self.keep_files, queue: self.queue }
            }
        })
    }
}

/// Refuses a duration of zero.
pub(super) fn positive(key: &str, span: Span) -> Result<(), ConfigError> {
    if span.0.is_zero() { Err(ConfigError::value(key, "must be longer than zero")) } else { Ok(()) }
}
