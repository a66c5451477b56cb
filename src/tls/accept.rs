//! A listener that hands over connections, through TLS where it is configured.
//!
//! Plane: cross-cutting. Handshakes run beside each other, bounded in number and time, so that a client that never
//! finishes one keeps nobody else out for long. A failed handshake ends that connection only.

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
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// Bounds on handshakes.
#[derive(Debug, Clone, Copy)]
pub struct AcceptLimits {
    /// How long one may take.
    pub handshake: Duration,
    /// How many may be under way.
    pub pending: usize,
}

/// An accepted connection.
#[derive(Debug)]
pub enum Accepted {
    /// Without TLS.
    Plain(TcpStream),
    /// After the handshake.
    Tls(Box<TlsStream<TcpStream>>),
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
pub fn accept(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    limits: AcceptLimits,
    stop: CancellationToken,
) -> mpsc::Receiver<Accepted> {
    let (ready, accepted) = mpsc::channel(64);
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(limits.pending));
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => return,
                next = listener.accept() => match next {
                    Ok((stream, _)) => stream,
                    Err(e) => {
                        // Out of file descriptors, or the client went away. Neither ends the listener.
                        tracing::warn!(error = %e, "accepting a connection failed");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                },
            };
            let _ = stream.set_nodelay(true);
            let Some(config) = tls.clone() else {
                if ready.send(Accepted::Plain(stream)).await.is_err() {
                    return;
                }
                continue;
            };
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let ready = ready.clone();
            tokio::spawn(async move {
                let handshake = TlsAcceptor::from(config).accept(stream);
                match tokio::time::timeout(limits.handshake, handshake).await {
                    Ok(Ok(stream)) => {
                        drop(permit);
                        let _ = ready.send(Accepted::Tls(Box::new(stream))).await;
                    }
                    Ok(Err(e)) => tracing::debug!(error = %e, "TLS handshake failed"),
                    Err(_) => tracing::debug!("TLS handshake timed out"),
                }
            });
        }
    });
    accepted
}

// === impl Accepted ===

impl Accepted {
    /// Who is at the other end.
    pub fn peer(&self) -> PeerInfo {
        match self {
            Self::Plain(s) => PeerInfo { address: s.peer_addr().ok(), certificates: Arc::from([]), tls: false },
            Self::Tls(s) => {
                let (tcp, session) = s.get_ref();
                let certificates = session.peer_certificates().unwrap_or_default();
                PeerInfo { address: tcp.peer_addr().ok(), certificates: Arc::from(certificates), tls: true }
            }
        }
    }
}

impl tonic::transport::server::Connected for Accepted {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
        }
    }
}
