//! Envoy's external authorization over gRPC: `envoy.service.auth.v3.Authorization/Check`, and `grpc.health.v1`.
//!
//! Plane: hot path. Turns the wire form into one [`crate::authz::Request`] and a decision back; decides nothing.
//! INVARIANT: whatever arrives on `Check` is answered with a gRPC OK that holds an allow or a `denied_response`: also
//! what cannot be parsed, is too large, comes too late, finds the door full, or makes the engine panic. A gRPC error
//! would open the gate under `failure_mode_allow`, so this door speaks gRPC's framing itself, directly on HTTP/2: in
//! a generic gRPC server such failures are errors before a handler is asked. (The bound on HTTP/2 header lists and a
//! connection that breaks remain errors; neither is in the hands of Envoy's client.)
//!
//! Over `unix:` the HTTP/2 library refuses the `:authority` that grpc-core clients (Python, C++) send by default, the
//! percent-encoded path of the socket, with RST_STREAM. Envoy sends the cluster's name, which is accepted; grpc-core
//! clients set `grpc.default_authority` to any host name.

#[cfg(any(test, feature = "testing"))]
mod bare;
mod body;
mod connection;
mod health;
mod listener;
mod request;
mod response;
mod server;
mod service;
mod wire;

use std::time::Duration;

use crate::cache::{AdaptiveLimits, VerificationLimits};
use crate::door;

#[cfg(any(test, feature = "testing"))]
pub use self::bare::Bare;
pub use self::listener::UnixSocket;
pub use self::server::{Listeners, serve, serve_checks};

/// The full name of the service, for health checks.
pub const SERVICE: &str = "envoy.service.auth.v3.Authorization";

/// Limits of the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The largest `CheckRequest`.
    pub max_message_bytes: usize,
    /// All messages that arrive in more than one piece, together; more are answered `system.overload`.
    pub max_buffered_bytes: usize,
    /// Headers of a checked request.
    pub max_headers: usize,
    /// Bytes of their names and values.
    pub max_header_bytes: usize,
    /// Checks under way; more are answered `system.overload`.
    pub max_concurrent_checks: usize,
    /// How the limit of checks under way follows their delay; without, only `max_concurrent_checks` counts.
    pub adaptive: Option<AdaptiveLimits>,
    /// Streams on one connection.
    pub max_concurrent_streams: u32,
    /// Connections; more wait to be accepted.
    pub max_connections: usize,
    /// HTTP/2 streams that may be reset for a client's errors before its connection is closed.
    pub max_local_error_reset_streams: usize,
    /// Bytes of the HTTP/2 headers of the gRPC call itself.
    pub max_http2_header_list_bytes: u32,
    /// How long a message may take to arrive in full.
    pub message_timeout: Duration,
    /// How often an idle connection is pinged, and how long it may take to answer.
    pub keepalive: Duration,
    /// How many tokens may be verified at once, and wait for it; more are answered `system.overload`.
    pub verification: VerificationLimits,
    /// Where a denied caller can ask for a grant; part of a denial's `grant_request`.
    pub grant_request_url: Option<String>,
}

/// Reads a check as the door does, for the fuzz targets.
#[cfg(any(test, feature = "testing"))]
pub fn read_check(message: &[u8]) -> Option<crate::authz::Request<'_>> {
    let limits = Config::default();
    let limits = request::HeaderLimits { count: limits.max_headers, bytes: limits.max_header_bytes };
    request::decode(message, limits).ok()
}

// === impl Config ===

impl Config {
    /// What of it is the door's share of what all doors have.
    fn checks(&self) -> door::Config {
        door::Config {
            max_concurrent_checks: self.max_concurrent_checks,
            adaptive: self.adaptive,
            verification: self.verification,
            max_headers: self.max_headers,
            max_header_bytes: self.max_header_bytes,
            grant_request_url: self.grant_request_url.clone(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_message_bytes: 1 << 20,
            max_buffered_bytes: 64 << 20,
            max_headers: 256,
            max_header_bytes: 1 << 16,
            max_concurrent_checks: 10_000,
            adaptive: Some(AdaptiveLimits::default()),
            max_concurrent_streams: 1024,
            max_connections: 1024,
            max_local_error_reset_streams: 1024,
            max_http2_header_list_bytes: 1 << 14,
            message_timeout: Duration::from_secs(5),
            keepalive: Duration::from_secs(20),
            verification: VerificationLimits::default(),
            grant_request_url: None,
        }
    }
}

#[cfg(test)]
mod tests;
