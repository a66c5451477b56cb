//! One connection of a client, from its first byte: PROXY protocol, TLS, HTTP/1 or HTTP/2, until it ends or is drained.
//!
//! Plane: hot path at its edge. INVARIANT: everything before the first request is bounded in time and size, and what fails
//! there ends this connection only. While draining, what is under way goes on, and nothing new is taken; at the deadline the
//! connection is closed as it is.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::forwarded::Said;
use super::guard::{Guarded, Pace, Tie, preface};
use super::head::Follower;
use super::proxy_protocol;
use super::service::{Client, Proxy};
use super::taken::{Streams, Taken};
use crate::authz::{Door, Network, Peer, Reason};
use crate::door::{Asked, OwnedPeer};
use crate::drain;
use crate::tls::{ALPN_H2, ALPN_HTTP1};

/// A silent HTTP/2 client is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Resets that a client may cause before its connection is closed.
const MAX_RESETS: usize = 256;
/// What the library needs at the least.
const MIN_BUFFER: usize = 8192;

/// Serves a connection.
pub(super) async fn connection(
    mut stream: TcpStream,
    from: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    proxy: Arc<Proxy>,
) {
    let _ = stream.set_nodelay(true);
    let served = async {
        let deadline = tokio::time::Instant::now() + proxy.config.limits.head_timeout;
        let address = tokio::time::timeout_at(deadline, address(&mut stream, from.ip(), &proxy)).await??;
        let Some(config) = tls else {
            return http(stream, None, (from.ip(), address), None, &proxy).await;
        };
        let stream = tokio::time::timeout_at(deadline, TlsAcceptor::from(config).accept(stream)).await??;
        let session = stream.get_ref().1;
        let certificate = session.peer_certificates().and_then(<[_]>::first).map(|der| pem(der));
        let required = proxy.config.listener.tls.as_ref().is_some_and(|tls| tls.require_client_certificate);
        if required && certificate.is_none() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the client has no certificate"));
        }
        let is_http2 = match session.alpn_protocol() {
            Some(ALPN_H2) => Some(true),
            Some(ALPN_HTTP1) => Some(false),
            _ => None,
        };
        http(stream, Some(certificate), (from.ip(), address), is_http2, &proxy).await
    };
    if let Err(error) = served.await {
        tracing::debug!(%error, %from, "a client's connection broke");
    }
}

/// The client's address: the peer's own, or what a listed load balancer says.
async fn address(stream: &mut TcpStream, from: IpAddr, proxy: &Proxy) -> io::Result<IpAddr> {
    if !contains(&proxy.config.listener.proxy_protocol, from) {
        return Ok(from);
    }
    Ok(proxy_protocol::read(stream).await?.unwrap_or(from))
}

fn contains(networks: &[Network], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

/// Speaks HTTP. `tls` says whether there is TLS, and then the client's certificate; `is_http2` whether that was agreed on.
async fn http<S>(
    mut io: S,
    tls: Option<Option<String>>,
    (from, address): (IpAddr, IpAddr),
    is_http2: Option<bool>,
    proxy: &Arc<Proxy>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = proxy.config.limits;
    let mut begun = Vec::new();
    let is_http2 = match is_http2 {
        Some(agreed) => agreed,
        None => tokio::time::timeout(limits.idle_timeout, preface(&mut io, &mut begun)).await??,
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    // A listed load balancer is the one that connects, whoever its client is.
    let is_listed = contains(&proxy.config.trusted_forwarders, from);
    let tie = Arc::new(Tie::default());
    let peer = OwnedPeer { principal: None, certificate: tls.flatten(), address: Some(address) };
    let said = Said::new(address, scheme, is_listed);
    let asked_about = Peer { principal: None, certificate: peer.certificate.as_deref(), address: peer.address };
    let tells_certificates = proxy.checks.gate().is_some_and(|gate| gate.settings().may_believe(asked_about));
    let client = Arc::new(Client { peer, scheme, said, tells_certificates, tie: Arc::clone(&tie) });
    let pace = Pace { head: limits.head_timeout, idle: limits.idle_timeout };
    if is_http2 {
        return http2(Guarded::http2(io, &begun, tie, pace), client, proxy).await;
    }
    let follower = Follower::new(limits.max_header_bytes.saturating_mul(2), limits.max_headers.saturating_mul(2));
    http1(Guarded::http1(io, &begun, follower, tie, pace), client, proxy).await
}

async fn http1<S>(io: Guarded<S>, client: Arc<Client>, proxy: &Arc<Proxy>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = proxy.config.limits;
    let mut builder = http1::Builder::new();
    // A connection that comes during a drain gets one answer; one on which nothing was asked then is closed at once.
    let is_late = proxy.drain.is_draining();
    builder.keep_alive(!is_late);
    builder.max_header_size(limits.max_header_bytes).max_buf_size(limits.max_header_bytes.max(MIN_BUFFER));
    // The library's own default is the same number without an allocation.
    if limits.max_headers != 100 {
        builder.max_headers(limits.max_headers);
    }
    let service = {
        let (proxy, client) = (Arc::clone(proxy), Arc::clone(&client));
        service_fn(move |request| Arc::clone(&proxy).answer(Arc::clone(&client), request))
    };
    let mut connection = pin!(builder.serve_connection(io, service).with_upgrades());
    let served = tokio::select! {
        biased;
        served = connection.as_mut() => served,
        () = until_it_ends(&proxy.drain, is_late) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                biased;
                served = connection.as_mut() => served,
                () = proxy.drain.expired() => Ok(()),
            }
        }
    };
    if client.tie.is_refused() {
        refused(&client, proxy);
    }
    // What has left HTTP is still a connection of this client: it counts among those that there may be.
    client.tie.has_left().await;
    served.map_err(io::Error::other)
}

async fn http2<S>(io: Guarded<S>, client: Arc<Client>, proxy: &Arc<Proxy>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = proxy.config.limits;
    let mut builder = http2::Builder::new(Streams { patience: limits.idle_timeout });
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_local_error_reset_streams(MAX_RESETS)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let service = {
        let (proxy, client) = (Arc::clone(proxy), Arc::clone(&client));
        service_fn(move |request| {
            let answer = Arc::clone(&proxy).answer(Arc::clone(&client), request);
            async move { answer.await.map(|response| response.map(Taken::new)) }
        })
    };
    let mut connection = pin!(builder.serve_connection(io, service));
    let served = tokio::select! {
        biased;
        served = connection.as_mut() => served,
        () = drained_or_rested(&client.tie, proxy) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                served = connection.as_mut() => served,
                // A client that takes nothing, not even the end, does not keep the connection.
                () = rests(&client.tie, limits.idle_timeout) => Ok(()),
                () = proxy.drain.expired() => Ok(()),
            }
        }
    };
    served.map_err(io::Error::other)
}

/// Until a connection that was there before the drain takes no more requests, and a late one is closed.
async fn until_it_ends(drain: &drain::Signal, is_late: bool) {
    if is_late { drain.expired().await } else { drain.draining().await }
}

async fn drained_or_rested(tie: &Tie, proxy: &Proxy) {
    tokio::select! {
        () = proxy.drain.draining() => {}
        () = rests(tie, proxy.config.limits.idle_timeout) => {}
    }
}

/// Until nothing has been under way for so long.
async fn rests(tie: &Tie, idle: Duration) {
    let mut looks = tokio::time::interval(idle / 4);
    let mut in_a_row = 0;
    while in_a_row < 5 {
        looks.tick().await;
        in_a_row = if tie.is_idle() { in_a_row + 1 } else { 0 };
    }
}

/// Records a client that was answered 400 for how it writes HTTP.
fn refused(client: &Client, proxy: &Proxy) {
    let asked = Asked {
        door: Door::Proxy,
        method: String::new(),
        path: String::new(),
        host: String::new(),
        scheme: client.scheme.into(),
        headers: http::HeaderMap::new(),
        partial_body: false,
        body: None,
        peer: client.peer.clone(),
    };
    let _told = proxy.checks.refuse(asked, Reason::InputMalformed, "the request could be read in two ways");
}

/// As Envoy hands certificates over, but for the escapes, which a reader need not find.
fn pem(der: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
}
