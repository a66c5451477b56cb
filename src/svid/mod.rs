//! This process's own X.509-SVID and the bundles it may believe, as a SPIFFE agent hands them out over the Workload API.
//!
//! Plane: cross-cutting. [`Source`] follows the agent's stream; TLS configurations made from it use what it holds at each
//! handshake, so that a rotation counts for the next connection. INVARIANT: without an SVID that is in time there is no
//! connection in either direction, and never one without TLS; a trust domain's authorities vouch for its own workloads
//! only; every connection is verified anew, because sessions are not resumed. What cannot be used changes nothing.

mod endpoint;
mod message;
mod source;
mod tls;
mod verify;

pub use self::endpoint::{Endpoint, EndpointError, describe, request};
pub use self::source::{Settings, Source};
pub use self::tls::{client_config, server_config};
pub use self::verify::check_server;

#[cfg(test)]
mod tests;
