//! The connections to one address: HTTP/1 ones that are free, or one of HTTP/2 that all share.
//!
//! Plane: hot path. INVARIANT: a connection of HTTP/1 has one request at a time; it is free again only when its answer was
//! read to the end, and is closed otherwise. No lock is held across a wait, but that of those who wait for the same HTTP/2
//! connection to be made.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::connect::Connector;
use crate::proxy::body::Sent;
use crate::proxy::config::Protocol;

/// A silent HTTP/2 connection is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// So many free connections are kept.
const MAX_FREE: usize = 256;
/// What may be on its way, or wait for its client, of one answer over HTTP/2.
const STREAM_WINDOW: u32 = 256 << 10;
/// The largest window that there is (RFC 9113, section 6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;

/// The connections to one address.
#[derive(Debug)]
pub(super) struct Pool {
    protocol: Protocol,
    idle: Duration,
    /// Of a connection that is shared.
    window: u32,
    free: FreeOnes,
    shared: tokio::sync::Mutex<Option<http2::SendRequest<Sent>>>,
}

#[derive(Debug)]
pub(super) struct Free {
    sender: http1::SendRequest<Sent>,
    since: Instant,
}

/// A connection for one request.
#[derive(Debug)]
pub(super) enum Connection {
    Http1(http1::SendRequest<Sent>, FreeOnes),
    Http2(http2::SendRequest<Sent>),
}

/// What a connection needs until its answer has ended.
#[derive(Debug)]
pub(in crate::proxy) struct Lease(Option<(http1::SendRequest<Sent>, FreeOnes)>);

type FreeOnes = Arc<Mutex<Vec<Free>>>;

/// An error, and the request if no byte of it was sent.
type Unsent = (hyper::Error, Option<Box<Request<Sent>>>);

// === impl Pool ===

impl Pool {
    /// For so many requests at once.
    pub(super) fn new(protocol: Protocol, idle: Duration, max_requests: usize) -> Self {
        // INVARIANT: all streams may be full and none of them takes another's room, so that a client that takes nothing of its
        // answer delays nobody else's.
        let streams = u32::try_from(max_requests).unwrap_or(u32::MAX);
        let window = STREAM_WINDOW.saturating_mul(streams.saturating_add(1)).min(MAX_WINDOW);
        Self { protocol, idle, window, free: Arc::default(), shared: tokio::sync::Mutex::new(None) }
    }

    /// A connection: one that is at hand, or a new one.
    pub(super) async fn take(&self, connector: &Connector, address: &str) -> io::Result<Connection> {
        match self.protocol {
            Protocol::Http1 => {
                if let Some(sender) = self.at_hand() {
                    return Ok(Connection::Http1(sender, Arc::clone(&self.free)));
                }
                let io = TokioIo::new(connector.connect(address).await?);
                let (sender, connection) = http1::Builder::new().handshake(io).await.map_err(io::Error::other)?;
                tokio::spawn(async move {
                    if let Err(error) = connection.with_upgrades().await {
                        tracing::debug!(%error, "a connection to an upstream broke");
                    }
                });
                Ok(Connection::Http1(sender, Arc::clone(&self.free)))
            }
            Protocol::Http2 => {
                let mut shared = self.shared.lock().await;
                if let Some(sender) = shared.as_ref().filter(|sender| !sender.is_closed()) {
                    return Ok(Connection::Http2(sender.clone()));
                }
                let io = TokioIo::new(connector.connect(address).await?);
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder.timer(TokioTimer::new()).keep_alive_interval(KEEPALIVE).keep_alive_timeout(KEEPALIVE);
                builder.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(self.window);
                let (sender, connection) = builder.handshake(io).await.map_err(io::Error::other)?;
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a connection to an upstream broke");
                    }
                });
                *shared = Some(sender.clone());
                Ok(Connection::Http2(sender))
            }
        }
    }

    /// The connection that was used last and is ready: the others grow old and are closed.
    fn at_hand(&self) -> Option<http1::SendRequest<Sent>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let at = free.iter().rposition(|free| free.sender.is_ready() && free.since.elapsed() < self.idle)?;
        Some(free.remove(at).sender)
    }

    /// Closes the connections that are closed at the other end, or have not been used for long.
    pub(super) fn tidy(&self) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.retain(|free| !free.sender.is_closed() && free.since.elapsed() < self.idle);
    }
}

// === impl Connection ===

impl Connection {
    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(self, request: Request<Sent>) -> Result<(Response<Incoming>, Lease), Unsent> {
        match self {
            Self::Http1(mut sender, free) => match sender.try_send_request(request).await {
                Ok(response) => Ok((response, Lease(Some((sender, free))))),
                Err(mut error) => {
                    let request = error.take_message().map(Box::new);
                    Err((error.into_error(), request))
                }
            },
            Self::Http2(mut sender) => match sender.try_send_request(request).await {
                Ok(response) => Ok((response, Lease(None))),
                Err(mut error) => {
                    let request = error.take_message().map(Box::new);
                    Err((error.into_error(), request))
                }
            },
        }
    }
}

// === impl Lease ===

impl Lease {
    /// The answer was read to its end: the connection is free for the next request.
    pub(in crate::proxy) fn give_back(&mut self) {
        let Some((sender, free)) = self.0.take() else { return };
        let mut free = free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < MAX_FREE && !sender.is_closed() {
            free.push(Free { sender, since: Instant::now() });
        }
    }
}
