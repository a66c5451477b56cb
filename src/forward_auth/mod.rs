//! Forward-auth over HTTP: for proxies that ask with a request of their own whether one of their client's may pass.
//!
//! Plane: hot path. Four dialects, each under a path of its own: Envoy's HTTP service (`/envoy` and the original path),
//! Traefik's `forwardAuth` (`/traefik`), Caddy's `forward_auth` (`/caddy`), nginx's `auth_request` (`/nginx`). Turns each into
//! one [`crate::door::Asked`] and a decision back; decides nothing. INVARIANT: only listed peers are asked by: what
//! `X-Forwarded-*` or `X-Original-*` say counts from nobody else. What is duplicated, spelled otherwise, or contradicts
//! itself is refused. A denial is never an answer that its proxy takes for a failure, because a failure may open the gate.

mod answer;
mod dialect;
mod forwarded;
mod pace;
mod read;
mod server;
mod service;

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;

pub use self::dialect::Dialect;
pub use self::server::serve;
use crate::authz::Network;

/// What the door puts up with, and from whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// From where proxies ask. Whoever connects from there is believed about its clients.
    pub trusted_peers: Vec<Network>,
    /// Which dialects are spoken.
    pub dialects: Vec<Dialect>,
    /// The largest body that a proxy may send along.
    pub max_body_bytes: usize,
    /// All bodies that are being read or asked about, together; more are answered `system.overload`.
    pub max_buffered_bytes: usize,
    /// Headers of a request; a checked request may have a few less, for the proxy adds its own.
    pub max_headers: usize,
    /// Bytes of the request line and the headers.
    pub max_head_bytes: usize,
    /// Connections; more wait to be accepted.
    pub max_connections: usize,
    /// How long the head of a request may take to arrive, once it has begun, and how long its body.
    pub read_timeout: Duration,
    /// How long a listed peer may keep a connection without asking. Longer than its own pool does: what it sends on a
    /// connection that is being closed is a failure to it.
    pub idle_timeout: Duration,
}

/// A future response.
pub type Answering = Pin<Box<dyn Future<Output = Response<Bytes>> + Send>>;

/// Another service on the same listener, which knows its own callers.
#[derive(Clone)]
pub struct Mount {
    /// Whether a request's path is its own.
    pub is_for: fn(&str) -> bool,
    /// Answers one, from this address.
    pub serve: Arc<dyn Fn(Request<Incoming>, IpAddr) -> Answering + Send + Sync>,
}

/// Reads a question as the door does, for tests that hold doors against each other and for the fuzz targets.
#[cfg(any(test, feature = "testing"))]
pub fn read_question(
    dialect: Dialect,
    own: &str,
    head: http::request::Parts,
    body: Option<Bytes>,
) -> Result<crate::door::Asked, crate::authz::Reason> {
    read::asked(dialect, own, head, body).map_err(|(reason, _)| reason)
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            trusted_peers: Vec::new(),
            dialects: Dialect::ALL.to_vec(),
            max_body_bytes: 1 << 20,
            max_buffered_bytes: 64 << 20,
            max_headers: 256,
            max_head_bytes: (1 << 16) + (1 << 14),
            max_connections: 1024,
            read_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(2 * 3600),
        }
    }
}

// === impl Mount ===

impl fmt::Debug for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mount").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
