//! Serving a router on a listener, with limits on everything a peer could hold on to.
//!
//! Plane: control. Connections, TLS handshakes, request headers and idle HTTP/2 peers are all bounded. On shutdown
//! nothing new is accepted, and requests that have begun get their answers.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::util::MapRequest;

use super::watch::Shutdown;
use crate::control::callers::{Peer, PeerCertificate};

/// Limits of a served listener.
#[derive(Debug, Clone, Copy)]
pub struct ServeLimits {
    /// Connections at once; more wait in the kernel's queue.
    pub max_connections: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a request's head may take.
    pub header_timeout: Duration,
}

/// Accepts until `shutdown`, then waits for the requests that have begun. Drop the future to cut those off.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: ServeLimits,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let tasks = TaskTracker::new();
    let stop = shutdown.clone();
    let accepting = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, or a peer that went: not a reason to stop.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (tls, router, shutdown) = (tls.clone(), router.clone(), shutdown.clone());
            tasks.spawn(async move {
                let _ = stream.set_nodelay(true);
                let mut peer = Peer { address: from.ip(), certificate: None };
                match tls {
                    None => connection(stream, router, limits, shutdown, peer).await,
                    Some(tls) => match tokio::time::timeout(limits.handshake_timeout, tls.accept(stream)).await {
                        Ok(Ok(stream)) => {
                            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                            let read = shown.map(|der| PeerCertificate::parse(der).map(Arc::new));
                            match read {
                                // What cannot be read must not count as nothing.
                                Some(None) => tracing::debug!("a client certificate could not be read"),
                                read => {
                                    peer.certificate = read.flatten();
                                    connection(stream, router, limits, shutdown, peer).await;
                                }
                            }
                        }
                        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                        Err(_elapsed) => tracing::debug!("a TLS handshake took too long"),
                    },
                }
                drop(place);
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stop.cancelled() => {}
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn connection<S>(stream: S, router: Router, limits: ServeLimits, shutdown: CancellationToken, peer: Peer)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_headers(100);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(64)
        .max_header_list_size(64 << 10)
        .max_local_error_reset_streams(Some(1024))
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let begun = Arc::new(AtomicBool::new(false));
    let note = {
        let begun = Arc::clone(&begun);
        let stop = Shutdown(shutdown.clone());
        move |mut request: hyper::Request<Incoming>| {
            begun.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(stop.clone());
            request.extensions_mut().insert(peer.clone());
            request.map(Body::new)
        }
    };
    let service = TowerToHyperService::new(MapRequest::new(router, note));
    let served = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    // hyper's own timeout begins once it knows the protocol; who sends nothing at all must not keep a place either.
    let silent = async {
        tokio::time::sleep(limits.header_timeout).await;
        if begun.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = silent => return,
        () = shutdown.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
        }
    }
}

/// The router answers every request.
const _: fn() = || {
    const fn infallible<S: tower::Service<hyper::Request<Body>, Error = Infallible>>() {}
    infallible::<Router>();
};
