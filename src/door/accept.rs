//! Accepts connections until the drain has ended the last. Plane: hot path at its edge.
//!
//! While draining, connections are kept and new ones accepted: requests are answered until the last connection is gone or
//! the deadline passes, for a proxy that is turned away takes that for a failure. INVARIANT: an accept that fails never ends
//! a door. How a connection ends is its own.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::drain;

/// After an accept that failed, as for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from.
pub(crate) trait Accept {
    /// One of them.
    type Connection;

    /// The next. One that is not waited for to the end is not lost.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

impl Accept for TcpListener {
    type Connection = (TcpStream, SocketAddr);

    fn accept(&self) -> impl Future<Output = io::Result<Self::Connection>> + Send {
        Self::accept(self)
    }
}

/// Has `serve` put what `listener` gives among `connections`, `max` at once, until the drain has begun and none is left, or
/// its deadline has passed: then some may be left.
pub(crate) async fn accept<L: Accept>(
    listener: &L,
    max: usize,
    drain: &drain::Signal,
    connections: &mut JoinSet<()>,
    mut serve: impl FnMut(L::Connection, &mut JoinSet<()>),
) {
    let (mut draining, mut expired) = (pin!(drain.draining()), pin!(drain.expired()));
    let mut is_draining = false;
    while !(is_draining && connections.is_empty()) {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < max.max(1) => match accepted {
                Ok(accepted) => serve(accepted, connections),
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            _ended = connections.join_next(), if !connections.is_empty() => {}
            () = &mut draining, if !is_draining => is_draining = true,
            () = &mut expired => break,
        }
    }
}
