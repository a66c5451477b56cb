//! Connections to an upstream, plain or through TLS.
//!
//! Plane: hot path, when no connection is at hand. Certificates come from files and follow them, or from a SPIFFE agent.
//! Fails closed: whom the configured CA or the bundle does not vouch for is not spoken to; there are no system roots.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::proxy::certificates::Svids;
use crate::proxy::config::{Protocol, UpstreamConfig, UpstreamTls};
use crate::tls::{ALPN_H2, TlsError};

/// Makes connections.
#[derive(Debug)]
pub(super) struct Connector {
    tls: Option<Tls>,
    timeout: Duration,
    protocol: Protocol,
}

#[derive(Debug)]
struct Tls {
    from: UpstreamTls,
    /// What the certificate has to name. With an SVID, which names no host, the address is what is asked for.
    name: Option<ServerName<'static>>,
    config: ArcSwap<ClientConfig>,
}

/// A connection.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

// === impl Connector ===

impl Connector {
    pub(super) fn new(config: &UpstreamConfig, svids: &mut Svids) -> Result<Self, TlsError> {
        let (protocol, timeout) = (config.protocol, config.timeouts.connect);
        let tls = match &config.tls {
            None => None,
            Some(from) => {
                let name = match from {
                    UpstreamTls::Files(files, name) => {
                        let refused =
                            |e: &dyn ToString| TlsError::Config { path: files.ca_file.clone(), reason: e.to_string() };
                        Some(ServerName::try_from(name.clone()).map_err(|e| refused(&e))?)
                    }
                    UpstreamTls::Svid(..) => None,
                };
                let config = ArcSwap::new(svids.client_config(from, protocol)?);
                Some(Tls { from: from.clone(), name, config })
            }
        };
        Ok(Self { tls, timeout, protocol })
    }

    /// The files that it is made from.
    pub(super) fn paths(&self) -> Vec<std::path::PathBuf> {
        let Some(Tls { from: UpstreamTls::Files(files, _), .. }) = &self.tls else { return Vec::new() };
        let identity = files.identity.iter().flat_map(|(cert, key)| [cert, key]);
        std::iter::once(&files.ca_file).chain(identity).cloned().collect()
    }

    /// Reads the files again, if it is made from any. What cannot be used changes nothing. Blocks on the disk.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        if let Some(tls) = self.tls.as_ref().filter(|tls| matches!(tls.from, UpstreamTls::Files(..))) {
            tls.config.store(Svids::default().client_config(&tls.from, self.protocol)?);
        }
        Ok(())
    }

    pub(super) async fn connect(&self, address: &str) -> io::Result<Stream> {
        let connecting = tokio::time::timeout(self.timeout, self.connect_at_leisure(address));
        connecting
            .await
            .unwrap_or_else(|_late| Err(io::Error::new(io::ErrorKind::TimedOut, "connecting took too long")))
    }

    async fn connect_at_leisure(&self, address: &str) -> io::Result<Stream> {
        let stream = TcpStream::connect(address).await?;
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else { return Ok(Stream::Plain(stream)) };
        let connector = TlsConnector::from(tls.config.load_full());
        let name = tls.name.clone().map_or_else(|| host(address), Ok)?;
        let stream = connector.connect(name, stream).await?;
        if self.protocol == Protocol::Http2 && stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the upstream does not agree to speak HTTP/2"));
        }
        Ok(Stream::Tls(Box::new(stream)))
    }
}

/// The host of `host:port`.
fn host(address: &str) -> io::Result<ServerName<'static>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _port)| host);
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned()).map_err(io::Error::other)
}

// === impl Stream ===

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(s) => s.is_write_vectored(),
            Self::Tls(s) => s.is_write_vectored(),
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
