//! The reverse proxy: enforcement in line, where there is no Envoy.
//!
//! Plane: hot path. HTTP/1.1 and HTTP/2 on both sides; bodies are streamed, but for those that are decided on. Decides nothing: [`crate::door::Checks`]
//! does. INVARIANT: a request goes upstream only with a [`crate::authz::Permit`] in hand, to the upstream of the service
//! that was decided on, with the path that was decided on, and with the identity headers of the decision in place of
//! whatever the client sent under such names. What two servers could read differently is answered 400 and the connection
//! closed. An answer that is still open is decided on again when the state changes, and cut when it no longer holds.

mod body;
mod certificates;
mod config;
mod connection;
mod forwarded;
mod guard;
mod head;
mod hygiene;
mod listing;
mod live;
mod message;
mod proxy_protocol;
mod reload;
mod respond;
mod serve;
mod service;
mod taken;
mod tunnel;
mod upstream;
mod websocket;

pub use self::config::{
    Config, Health, Limits, Listener, Protocol, ServerCertificates, ServerTls, Timeouts, UpstreamConfig, UpstreamTls,
};
pub use self::serve::{Bound, StartError, serve};
