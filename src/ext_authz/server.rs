//! Accepts connections and ends them. Plane: hot path at its edge.
//!
//! While draining, connections are kept and new ones accepted: checks are answered until the last connection is gone
//! or the deadline passes; no GOAWAY before that, for Envoy would only connect again. At the deadline every connection
//! gets a GOAWAY and a moment to finish what is under way. INVARIANT: an accept that fails never ends the door.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;

use super::Config;
use super::health::Health;
use super::listener::UnixSocket;
use super::service::{Decide, Door};
use crate::cache::{Gate, VerificationPool};
use crate::drain;
use crate::readiness::Readiness;
use crate::telemetry::Telemetry;

/// For what is under way at the deadline. A check takes less than a millisecond.
const LAST_MOMENT: Duration = Duration::from_millis(500);
/// After an accept that failed, as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the door listens: bound already, so that a port that is taken is an error at start.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For Envoy on TCP.
    pub tcp: Option<TcpListener>,
    /// For Envoy on a Unix socket.
    pub unix: Option<UnixSocket>,
}

enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Serves until drained: see the module's documentation. Connections run on the runtime this is called on.
pub async fn serve(
    listeners: Listeners,
    gate: Arc<Gate>,
    telemetry: Arc<Telemetry>,
    readiness: Readiness,
    config: Config,
    drain: drain::Signal,
) -> io::Result<()> {
    let verification = VerificationPool::start(config.verification)?;
    serve_with(listeners, Decide::Gate(gate), verification, telemetry, readiness, config, drain).await
}

pub(super) async fn serve_with(
    listeners: Listeners,
    decide: Decide,
    verification: VerificationPool,
    telemetry: Arc<Telemetry>,
    readiness: Readiness,
    config: Config,
    drain: drain::Signal,
) -> io::Result<()> {
    if listeners.tcp.is_none() && listeners.unix.is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the ext_authz door has nowhere to listen"));
    }
    let health = Health::new().await;
    let mut background = JoinSet::new();
    background.spawn(health.clone().follow(readiness, drain.clone()));
    let http2 = http2_builder(&config);
    let max_connections = config.max_connections.max(1);
    let door = Arc::new(Door::new(decide, verification, telemetry, config, health.service()));

    let mut connections = JoinSet::new();
    let (mut draining, mut expired) = (pin!(drain.draining()), pin!(drain.expired()));
    let mut is_draining = false;
    while !(is_draining && connections.is_empty()) {
        tokio::select! {
            accepted = listeners.accept(), if connections.len() < max_connections => match accepted {
                Ok(Accepted::Tcp(stream)) => {
                    // Answers are small: waiting to fill a segment would only delay them.
                    let _ = stream.set_nodelay(true);
                    connections.spawn(connection(stream, http2.clone(), door.clone(), drain.clone()));
                }
                Ok(Accepted::Unix(stream)) => {
                    connections.spawn(connection(stream, http2.clone(), door.clone(), drain.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            _ended = connections.join_next(), if !connections.is_empty() => {}
            () = &mut draining, if !is_draining => is_draining = true,
            () = &mut expired => break,
        }
    }
    drop(listeners);
    while connections.join_next().await.is_some() {}
    Ok(())
}

fn http2_builder(config: &Config) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(config.max_concurrent_streams)
        .max_local_error_reset_streams(config.max_local_error_reset_streams)
        .max_header_list_size(config.max_http2_header_list_bytes)
        .keep_alive_interval(config.keepalive)
        .keep_alive_timeout(config.keepalive);
    builder
}

async fn connection<IO>(io: IO, http2: http2::Builder<TokioExecutor>, door: Arc<Door>, drain: drain::Signal)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let number = door.connect();
    let service = service_fn(move |request| door.arrive(number).answer(request));
    let mut serving = pin!(http2.serve_connection(TokioIo::new(io), service));
    let result = tokio::select! {
        biased;
        result = &mut serving => result,
        () = drain.expired() => {
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST_MOMENT, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}

// === impl Listeners ===

impl Listeners {
    async fn accept(&self) -> io::Result<Accepted> {
        let tcp = async {
            match &self.tcp {
                Some(listener) => listener.accept().await.map(|(stream, _)| Accepted::Tcp(stream)),
                None => std::future::pending().await,
            }
        };
        let unix = async {
            match &self.unix {
                Some(socket) => socket.listener().accept().await.map(|(stream, _)| Accepted::Unix(stream)),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = tcp => accepted,
            accepted = unix => accepted,
        }
    }
}
