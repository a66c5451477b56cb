//! Where the Workload API is, and how it is spoken to (SPIFFE Workload Endpoint, sections 3 to 5).
//!
//! Plane: cross-cutting. A private key comes back over this connection and nothing proves who answers, so it never leaves
//! the machine: a Unix socket, or TCP to a loopback address. Whoever may replace the socket's file may be the agent.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Request, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent agent is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Where the agent listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// At the socket with this absolute path.
    Unix(PathBuf),
    /// On this machine's loopback.
    Loopback(SocketAddr),
}

/// Why a text is not where a Workload API may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Neither scheme.
    #[error("the Workload API is at `unix:/path/to/socket` or at `tcp://127.0.0.1:port`")]
    Scheme,
    /// No absolute path, or more than that.
    #[error("`unix:` takes the absolute path of a socket, as in `unix:/run/spire/agent.sock`")]
    Path,
    /// Not an address with a port and nothing else.
    #[error("`tcp://` takes an IP address and a port, as in `tcp://127.0.0.1:8081`")]
    Address,
    /// Of another machine.
    #[error("over `tcp://` the Workload API has to be on a loopback address: a private key comes back in plain text")]
    NotLoopback,
}

// === impl Endpoint ===

impl Endpoint {
    /// A connection to it.
    pub async fn connect(&self) -> Result<Channel, String> {
        // The authority is what gRPC over a Unix socket calls the other side; it is looked at by nobody.
        let endpoint = tonic::transport::Endpoint::from_static("http://localhost")
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_while_idle(true);
        let connected = match self {
            Self::Unix(path) => {
                let path = path.clone();
                let connector = tower::service_fn(move |_: http::Uri| {
                    let path = path.clone();
                    async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
                });
                endpoint.connect_with_connector(connector).await
            }
            Self::Loopback(address) => {
                let address = *address;
                let connector = tower::service_fn(move |_: http::Uri| async move {
                    tokio::net::TcpStream::connect(address).await.map(hyper_util::rt::TokioIo::new)
                });
                endpoint.connect_with_connector(connector).await
            }
        };
        connected.map_err(|e| {
            let cause = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            format!("no connection: {cause}")
        })
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if let Some(rest) = text.strip_prefix("unix:") {
            // `unix:///path` has an authority, which is empty.
            let path = rest.strip_prefix("//").unwrap_or(rest);
            let is_path = path.starts_with('/') && path.len() > 1 && !path.starts_with("//");
            if !is_path || path.contains(['?', '#', '\0']) {
                return Err(EndpointError::Path);
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let address = text.strip_prefix("tcp://").ok_or(EndpointError::Scheme)?;
        let address: SocketAddr =
            address.parse().map_err(|_unread: std::net::AddrParseError| EndpointError::Address)?;
        if !address.ip().to_canonical().is_loopback() {
            return Err(EndpointError::NotLoopback);
        }
        Ok(Self::Loopback(address))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Loopback(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// With the header that keeps other software on the same machine from being tricked into asking (section 4.2).
pub fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
    request
}

/// Why the agent ended a call, for people.
pub fn describe(status: &Status) -> String {
    let text: String = status.message().chars().filter(|c| !c.is_control()).take(200).collect();
    match status.code() {
        Code::PermissionDenied => format!("it knows no identity of this process ({text})"),
        code => format!("{code:?}: {text}"),
    }
}
