//! What the reverse proxy is told: where from, where to, how much.
//!
//! Plane: hot path, read at its start. Made by the composition from what was validated; nothing here can be wrong in form.

use std::path::PathBuf;
use std::time::Duration;

use crate::authz::Network;
use crate::credential::SpiffeId;
use crate::svid;
use crate::tls::{ClientFiles, ServerFiles};

/// The proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How it listens.
    pub listener: Listener,
    /// Where it forwards to: one for each service.
    pub upstreams: Vec<UpstreamConfig>,
    /// The proxies in front of it, whose `Forwarded` and `X-Forwarded-*` are kept.
    pub trusted_forwarders: Vec<Network>,
    /// What clients may ask to speak instead of HTTP, in lower case.
    pub upgrades: Vec<String>,
    /// What it puts up with.
    pub limits: Limits,
}

/// How it listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listener {
    /// With TLS; without, in plain text.
    pub tls: Option<ServerTls>,
    /// Who begins its connections with the header of the PROXY protocol, version 2, and must.
    pub proxy_protocol: Vec<Network>,
}

/// The server's side of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// Certificate, key, and who vouches for clients.
    pub certificates: ServerCertificates,
    /// Clients without a certificate get no connection.
    pub require_client_certificate: bool,
}

/// Where the server's certificate comes from, and who vouches for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerCertificates {
    /// From files.
    Files(ServerFiles),
    /// From a SPIFFE agent: its SVID, and its bundles for clients.
    Svid(svid::Settings),
}

/// TLS towards an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamTls {
    /// From files, with the name in the upstream's certificate.
    Files(ClientFiles, String),
    /// From a SPIFFE agent: its SVID is shown, and the upstream has one of these SPIFFE IDs.
    Svid(svid::Settings, Vec<SpiffeId>),
}

/// What it puts up with. No number and no span is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open connections of clients; more wait to be accepted.
    pub max_connections: usize,
    /// Requests at once on one HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// Headers of a request.
    pub max_headers: usize,
    /// Bytes of its head.
    pub max_header_bytes: usize,
    /// Bytes of its body, if that is limited.
    pub max_body_bytes: Option<u64>,
    /// Bytes of a body that is decided on; a larger one is denied.
    pub max_read_bytes: usize,
    /// Bytes of all such bodies whose answers are open, and of lists of tools that are being filtered.
    pub max_kept_bytes: usize,
    /// For a head to arrive once it has begun, for a body that is decided on, for a TLS handshake, and for the header of the PROXY protocol.
    pub head_timeout: Duration,
    /// For a client that sends and receives nothing.
    pub idle_timeout: Duration,
    /// How often open answers are decided on again when nothing has changed.
    pub live_interval: Duration,
}

/// Where the requests of a service go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// The service.
    pub service: String,
    /// `host:port`, at least one.
    pub addresses: Vec<String>,
    /// What is spoken there.
    pub protocol: Protocol,
    /// With TLS; without, in plain text.
    pub tls: Option<UpstreamTls>,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// How often an idempotent request without a body is sent again when no byte of an answer came.
    pub retries: u32,
    /// Requests under way to it; more are answered 503.
    pub max_requests: usize,
    /// How it is seen whether an address works.
    pub health: Option<Health>,
}

/// What is spoken to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, without asking: gRPC needs it.
    Http2,
}

/// How long an upstream may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect, TLS included.
    pub connect: Duration,
    /// From a request to the head of its answer.
    pub response: Duration,
    /// How long a connection that is not used is kept.
    pub idle: Duration,
}

/// How it is seen whether an address works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Asked with GET; any 2xx is good.
    pub path: String,
    /// How often.
    pub interval: Duration,
    /// So many bad answers in a row and the address is passed over.
    pub unhealthy_after: u32,
    /// So many good ones and it is not any more.
    pub healthy_after: u32,
}

// === impl ServerCertificates ===

impl ServerCertificates {
    /// The files that are read.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let Self::Files(files) = self else { return Vec::new() };
        [Some(&files.cert_file), Some(&files.key_file), files.client_ca_file.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_concurrent_streams: 128,
            max_headers: 100,
            max_header_bytes: 64 << 10,
            max_body_bytes: None,
            max_read_bytes: 1 << 20,
            max_kept_bytes: 64 << 20,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            live_interval: Duration::from_secs(1),
        }
    }
}

// === impl Timeouts ===

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            response: Duration::from_secs(30),
            // Shorter than what servers usually keep: who closes first wins.
            idle: Duration::from_secs(30),
        }
    }
}
