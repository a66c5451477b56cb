//! Connections to an upstream, plain or through TLS.
//!
//! Plane: hot path, when no connection is at hand. Certificates come from files and follow them. Fails closed: whom
//! the configured CA does not vouch for is not spoken to; there are no system roots.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::proxy::config::{Protocol, UpstreamConfig};
use crate::tls::{self, ALPN_H2, ALPN_HTTP1, ClientFiles, TLS12_UP, TlsError};

/// Makes connections.
#[derive(Debug)]
pub(super) struct Connector {
    tls: Option<Tls>,
    timeout: Duration,
    protocol: Protocol,
}

#[derive(Debug)]
struct Tls {
    files: ClientFiles,
    name: ServerName<'static>,
    config: ArcSwap<ClientConfig>,
}

/// A connection.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

// === impl Connector ===

impl Connector {
    pub(super) fn new(config: &UpstreamConfig) -> Result<Self, TlsError> {
        let (protocol, timeout) = (config.protocol, config.timeouts.connect);
        let tls = match &config.tls {
            None => None,
            Some((files, name)) => {
                let refused =
                    |e: &dyn ToString| TlsError::Config { path: files.ca_file.clone(), reason: e.to_string() };
                let name = ServerName::try_from(name.clone()).map_err(|e| refused(&e))?;
                let config = ArcSwap::new(client_config(files, protocol)?);
                Some(Tls { files: files.clone(), name, config })
            }
        };
        Ok(Self { tls, timeout, protocol })
    }

    /// The files that it is made from.
    pub(super) fn paths(&self) -> Vec<std::path::PathBuf> {
        let Some(tls) = &self.tls else { return Vec::new() };
        let identity = tls.files.identity.iter().flat_map(|(cert, key)| [cert, key]);
        std::iter::once(&tls.files.ca_file).chain(identity).cloned().collect()
    }

    /// Reads the files again. What cannot be used changes nothing. Blocks on the disk.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        if let Some(tls) = &self.tls {
            tls.config.store(client_config(&tls.files, self.protocol)?);
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
        let stream = connector.connect(tls.name.clone(), stream).await?;
        if self.protocol == Protocol::Http2 && stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the upstream does not agree to speak HTTP/2"));
        }
        Ok(Stream::Tls(Box::new(stream)))
    }
}

fn client_config(files: &ClientFiles, protocol: Protocol) -> Result<Arc<ClientConfig>, TlsError> {
    let alpn = match protocol {
        Protocol::Http1 => ALPN_HTTP1,
        Protocol::Http2 => ALPN_H2,
    };
    tls::client_config(files, TLS12_UP, &[alpn])
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
