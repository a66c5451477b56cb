//! A listener that hands over connections, through TLS where it is configured.
//!
//! Plane: cross-cutting. Handshakes run beside each other, bounded in number and time, so that a client that never
//! finishes one keeps nobody else out for long. Their cryptography takes turns, so that a herd of newcomers does not
//! keep the connections that are open from being served. A failed handshake ends that connection only.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// Bounds on handshakes and connections.
#[derive(Debug, Clone, Copy)]
pub struct AcceptLimits {
    /// How long one may take.
    pub handshake: Duration,
    /// How many may be under way.
    pub pending: usize,
    /// How many of them may be computing at a time. A herd at the door then has so many turns beside everybody else's,
    /// whatever its size.
    pub computing: usize,
    /// How many connections may be open, so that strangers cannot use up the process's descriptors; more wait.
    pub connections: usize,
}

/// Where connections come from: the system's TCP, or a simulated network.
pub trait Listen: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection, and from where.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// Where it listens.
    fn address(&self) -> io::Result<SocketAddr>;
}

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted<S = TcpStream> {
    stream: Stream<S>,
    from: SocketAddr,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Stream<S> {
    /// Without TLS.
    Plain(S),
    /// After the handshake.
    Tls(Box<TlsStream<S>>),
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Its address.
    pub address: Option<SocketAddr>,
    /// Its certificate chain, verified, leaf first; empty without one.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

/// Accepts connections until `stop`; they arrive on the returned channel.
pub fn accept<L: Listen>(
    mut listener: L,
    tls: Option<Arc<ServerConfig>>,
    limits: AcceptLimits,
    stop: CancellationToken,
) -> mpsc::Receiver<Accepted<L::Stream>> {
    let (ready, accepted) = mpsc::channel(64);
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(limits.pending));
        let turns = Arc::new(Semaphore::new(limits.computing));
        let places = Arc::new(Semaphore::new(limits.connections));
        loop {
            let place = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                place = Arc::clone(&places).acquire_owned() => match place {
                    Ok(place) => place,
                    Err(_closed) => return,
                },
            };
            let (stream, from) = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                next = listener.accept() => match next {
                    Ok(accepted) => accepted,
                    Err(e) => {
                        // Out of file descriptors, or the client went away. Neither ends the listener.
                        tracing::warn!(error = %e, "accepting a connection failed");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                },
            };
            let Some(config) = tls.clone() else {
                if ready.send(Accepted { stream: Stream::Plain(stream), from, _place: place }).await.is_err() {
                    return;
                }
                continue;
            };
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let (ready, turns) = (ready.clone(), Arc::clone(&turns));
            tokio::spawn(async move {
                let handshake = in_turn(TlsAcceptor::from(config).accept(stream), turns);
                match tokio::time::timeout(limits.handshake, handshake).await {
                    Ok(Ok(stream)) => {
                        drop(permit);
                        let _ =
                            ready.send(Accepted { stream: Stream::Tls(Box::new(stream)), from, _place: place }).await;
                    }
                    Ok(Err(e)) => tracing::debug!(error = %e, "TLS handshake failed"),
                    Err(_) => tracing::debug!("TLS handshake timed out"),
                }
            });
        }
    });
    accepted
}

/// Polls `work` only when it is its turn; in between, others have theirs.
async fn in_turn<F: Future + Unpin>(mut work: F, turns: Arc<Semaphore>) -> F::Output {
    loop {
        // Never closed; if it were, there would be no turns to take.
        let turn = turns.acquire().await;
        let polled = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut work).poll(cx))).await;
        drop(turn);
        if let Poll::Ready(output) = polled {
            return output;
        }
        // The poll above has left our waker with the connection; it is woken by it, and takes its turn again.
        let mut woken = false;
        std::future::poll_fn(|_| if std::mem::replace(&mut woken, true) { Poll::Ready(()) } else { Poll::Pending })
            .await;
    }
}

// === impl TcpListener ===

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, from) = Self::accept(self).await?;
        let _ = stream.set_nodelay(true);
        Ok((stream, from))
    }

    fn address(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }
}

// === impl Accepted ===

impl<S> Accepted<S> {
    /// Who is at the other end.
    pub fn peer(&self) -> PeerInfo {
        let (certificates, tls) = match &self.stream {
            Stream::Plain(_) => (Arc::from([]), false),
            Stream::Tls(s) => (Arc::from(s.get_ref().1.peer_certificates().unwrap_or_default()), true),
        };
        PeerInfo { address: Some(self.from), certificates, tls }
    }
}

impl<S> tonic::transport::server::Connected for Accepted<S> {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Accepted<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Tls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Accepted<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Stream::Tls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(s) => Pin::new(s).poll_flush(cx),
            Stream::Tls(s) => Pin::new(s.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Stream::Tls(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
        }
    }
}
