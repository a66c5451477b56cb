//! Opens the channel to the control plane.
//!
//! Plane: sync. Certificates, keys and the token are read anew at every connection, so that rotation needs no
//! restart. Fails closed: without TLS only to a loopback address, and only when configured so; the address is checked
//! on the connected socket, not by name. A token is never logged.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::tls::{self, ClientFiles, TlsError};

/// Where the control plane is and how to prove who we are.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// `https://host:port`; `http://` only for loopback with `insecure_loopback`.
    pub url: http::Uri,
    /// Allows `http://` on loopback.
    pub insecure_loopback: bool,
    /// The CA certificates of the control plane.
    pub ca_file: Option<PathBuf>,
    /// Our X.509-SVID and its key.
    pub identity_files: Option<(PathBuf, PathBuf)>,
    /// A file with our JWT-SVID.
    pub token_file: Option<PathBuf>,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// What makes the connections.
    pub dial: Arc<dyn Dial>,
}

/// Makes connections: the system's, or those of a simulated network.
pub trait Dial: fmt::Debug + Send + Sync {
    /// Connects to `host`, a name or an address.
    fn dial(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Dialled>>;
}

/// A connection, and to where.
pub struct Dialled {
    /// The connection.
    pub io: Box<dyn Io>,
    /// The address at the other end.
    pub peer: IpAddr,
}

/// Connects over TCP.
#[derive(Debug, Clone, Copy)]
pub struct SystemDial;

/// Why a connection cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL is of no use.
    #[error("control plane URL `{url}`: {reason}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No way to prove who we are.
    #[error("neither a token file nor a client certificate is configured")]
    NoCredential,
    /// The token file cannot be used.
    #[error("token file `{}`: {reason}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// TLS files.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection failed.
    #[error("cannot connect to `{url}`: {reason}")]
    Transport {
        /// The URL.
        url: String,
        /// Why.
        reason: String,
    },
}

/// Both directions of a connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl ControlPlane {
    /// Checks what can be checked without connecting.
    pub fn check(&self) -> Result<(), ConnectError> {
        let url = |reason| Err(ConnectError::Url { url: self.url.to_string(), reason });
        if self.url.host().is_none() {
            return url("has no host");
        }
        match self.url.scheme_str() {
            Some("https") if self.ca_file.is_none() => return url("https needs a CA file to check the server against"),
            Some("https") => {}
            Some("http") if !self.insecure_loopback => return url("http is only allowed with `insecure_loopback`"),
            Some("http") => {}
            _ => return url("is neither https nor http"),
        }
        if self.token_file.is_none() && (self.identity_files.is_none() || self.url.scheme_str() == Some("http")) {
            return Err(ConnectError::NoCredential);
        }
        Ok(())
    }

    /// Connects.
    pub(crate) async fn connect(&self) -> Result<Channel, ConnectError> {
        self.check()?;
        let failed = |reason: String| ConnectError::Transport { url: self.url.to_string(), reason };
        let secure = self.url.scheme_str() == Some("https");
        let host = self.url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = self.url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = match &self.ca_file {
            Some(ca_file) if secure => {
                let files = ClientFiles { ca_file: ca_file.clone(), identity: self.identity_files.clone() };
                let name = match host.parse::<IpAddr>() {
                    Ok(ip) => ServerName::IpAddress(ip.into()),
                    Err(_not_an_address) => ServerName::try_from(host.clone())
                        .map_err(|_invalid| failed(format!("`{host}` is not a server name")))?,
                };
                Some((tls::client_config(&files, tls::TLS13, &[tls::ALPN_H2])?, name))
            }
            _ => None,
        };
        let dial = Arc::clone(&self.dial);
        let connector = tower::service_fn(move |_: http::Uri| {
            let (connection, tls) = (dial.dial(&host, port), tls.clone());
            async move { secure_connection(connection.await?, tls).await.map(TokioIo::new) }
        });
        // TLS is the connector's business, so tonic is given a plain scheme and the real one as origin.
        let authority = self.url.authority().map(ToString::to_string).unwrap_or_default();
        Endpoint::from_shared(format!("http://{authority}"))
            .map_err(|e| failed(e.to_string()))?
            .origin(self.url.clone())
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .http2_max_header_list_size(32 * 1024)
            .http2_max_local_error_reset_streams(20)
            .initial_stream_window_size(2 * 1024 * 1024)
            .initial_connection_window_size(4 * 1024 * 1024)
            .connect_with_connector(connector)
            .await
            .map_err(|e| failed(reasons(&e)))
    }

    /// The `authorization` value, from the token file as it is now.
    pub(crate) fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, ConnectError> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let bad = |reason: String| ConnectError::Token { path: path.clone(), reason };
        let text = zeroize::Zeroizing::new(std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?);
        if text.trim().is_empty() {
            return Err(bad("is empty".to_owned()));
        }
        tls::warn_if_exposed(path);
        let header = zeroize::Zeroizing::new(format!("Bearer {}", text.trim()));
        let mut value: MetadataValue<Ascii> =
            header.parse().map_err(|_invalid| bad("holds something that is not a token".to_owned()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

async fn secure_connection(
    Dialled { io, peer }: Dialled,
    tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
) -> io::Result<Box<dyn Io>> {
    match tls {
        Some((config, name)) => Ok(Box::new(TlsConnector::from(config).connect(name, io).await?)),
        None if peer.is_loopback() => Ok(io),
        None => Err(io::Error::other("refusing to go without TLS to an address that is not loopback")),
    }
}

// === impl SystemDial ===

impl Dial for SystemDial {
    fn dial(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Dialled>> {
        let host = host.to_owned();
        Box::pin(async move {
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
            tcp.set_nodelay(true)?;
            let peer = tcp.peer_addr()?.ip();
            Ok(Dialled { io: Box::new(tcp), peer })
        })
    }
}

// === impl Dialled ===

impl fmt::Debug for Dialled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialled").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// An error and everything behind it, in one line.
pub(crate) fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
