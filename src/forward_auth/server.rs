//! Accepts connections and ends them. Plane: hot path at its edge.
//!
//! HTTP/1.1, which all four proxies speak to an authorization server. While draining, connections are kept and new ones
//! accepted, each answer asking its peer to close; at the deadline what is under way gets a moment. INVARIANT: an accept that
//! fails never ends the door, and a peer that is not listed keeps no connection without sending a request.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::pace::{Paced, Phase};
use super::service::Service;
use super::{Config, Mount};
use crate::door::{Checks, accept};
use crate::drain;

/// For what is under way at the deadline.
const LAST_MOMENT: Duration = Duration::from_millis(500);
/// What hyper takes beyond our limits, so that it is us who refuse.
const SLACK_HEADERS: usize = 64;
const SLACK_BYTES: usize = 1 << 14;

/// Serves until drained: see the module's documentation.
pub async fn serve(
    listener: TcpListener,
    checks: Checks,
    mounts: Vec<Mount>,
    config: Config,
    drain: drain::Signal,
) -> io::Result<()> {
    let max_connections = config.max_connections;
    let service = Arc::new(Service::new(checks, mounts, config, drain.clone()));
    let mut connections = JoinSet::new();
    let serve = |(stream, peer): (TcpStream, SocketAddr), connections: &mut JoinSet<()>| {
        connections.spawn(connection(stream, peer.ip(), Arc::clone(&service), drain.clone()));
    };
    accept(&listener, max_connections, &drain, &mut connections, serve).await;
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Serves one connection to its end.
async fn connection(stream: TcpStream, peer: IpAddr, service: Arc<Service>, drain: drain::Signal) {
    // Answers are small: waiting to fill a segment would only delay them.
    let _ = stream.set_nodelay(true);
    let phase = Phase::default();
    let config = &service.config;
    let rests = if service.is_trusted(peer) { config.idle_timeout } else { config.read_timeout };
    let io = TokioIo::new(Paced::new(stream, phase.clone(), config.read_timeout));
    let builder = builder(config, rests);
    let answer = service_fn(|request| {
        let (at_answer, service) = (phase.answer(), &service);
        async move {
            let _at_answer = at_answer;
            Ok::<_, Infallible>(service.answer(request, peer).await.map(Full::new))
        }
    });
    let mut connection = pin!(builder.serve_connection(io, answer));
    let result = tokio::select! {
        biased;
        result = connection.as_mut() => result,
        () = drain.expired() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST_MOMENT, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}

fn builder(config: &Config, rests: Duration) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // From the end of an answer to the end of the next head; that a head which has begun comes soon is `Paced`'s.
        .header_read_timeout(rests)
        .max_headers(config.max_headers.saturating_add(SLACK_HEADERS))
        // hyper's least is 8 KiB.
        .max_buf_size(config.max_head_bytes.saturating_add(SLACK_BYTES));
    builder
}
