//! Servers under test: how they are named, and how they are reached.
//!
//! Plane: composition. `grpc://HOST:PORT` and `unix:PATH` are asked as Envoy asks an ext_authz server; `http://HOST:PORT`
//! is a proxy in front of one, over HTTP/1.1. No TLS: it would be measured too. Fails by name: an address that cannot be
//! reached is told apart from a server that answers badly.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};

use super::grpc::{CheckConnection, CheckLane};
use super::http1::HttpLane;
use super::prepare::Prepared;
use super::tally::{Answer, Failure};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// A server under test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What it is called in reports.
    pub name: String,
    /// Where it is.
    pub place: Place,
}

/// Where a server is, and what it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// ext_authz over TCP.
    Grpc(String),
    /// ext_authz over a Unix socket.
    Unix(PathBuf),
    /// HTTP/1.1.
    Http(String),
}

/// What a connection runs over.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One request at a time.
#[derive(Debug)]
pub(super) enum Lane {
    Check(CheckLane),
    Http(HttpLane),
}

// === impl Target ===

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, place) = match text.split_once('=') {
            Some((name, place)) if !name.contains("://") => (name, place),
            _ => return Err("expected NAME=URL, as in `ours=grpc://127.0.0.1:9191`".to_owned()),
        };
        if name.is_empty() || name.len() > 40 || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(format!("`{name}` is not a name of 1 to 40 characters without spaces"));
        }
        Ok(Self { name: name.to_owned(), place: place.parse()? })
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = |rest: &str| {
            let authority = rest.strip_suffix('/').unwrap_or(rest);
            let parsed: Option<http::uri::Authority> = authority.parse().ok();
            let port = parsed.as_ref().and_then(http::uri::Authority::port_u16);
            match port {
                Some(1..) if !authority.contains('@') => Ok(authority.to_owned()),
                _ => Err(format!("`{text}` has no HOST:PORT, or more than that")),
            }
        };
        if let Some(rest) = text.strip_prefix("grpc://") {
            return Ok(Self::Grpc(address(rest)?));
        }
        if let Some(rest) = text.strip_prefix("http://") {
            return Ok(Self::Http(address(rest)?));
        }
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self::Unix(PathBuf::from(path.strip_prefix("//").unwrap_or(path)))),
            _ => Err(format!("`{text}` is none of grpc://HOST:PORT, unix:PATH and http://HOST:PORT")),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grpc(address) => write!(f, "grpc://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(address) => write!(f, "http://{address}"),
        }
    }
}

impl Place {
    /// Connects.
    pub(super) async fn connect(&self) -> Result<Stream, String> {
        let connecting = async {
            match self {
                Self::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
                Self::Grpc(address) | Self::Http(address) => {
                    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
                    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
                    for address in addresses {
                        match TcpStream::connect(address).await {
                            Ok(stream) => {
                                stream.set_nodelay(true)?;
                                return Ok(Stream::Tcp(stream));
                            }
                            Err(e) => last = e,
                        }
                    }
                    Err(last)
                }
            }
        };
        match tokio::time::timeout(CONNECT, connecting).await {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(_elapsed) => Err("no connection within 5 s".to_owned()),
        }
    }

    /// The lanes of `connections` with `streams` each. HTTP/1.1 has one at a time, so there it is a connection each.
    pub(super) fn lanes(&self, connections: usize, streams: usize) -> Vec<Lane> {
        match self {
            Self::Grpc(_) | Self::Unix(_) => {
                let all: Vec<_> = (0..connections).map(|_| Arc::new(CheckConnection::new(self.clone()))).collect();
                // Connections in turn, so that few requests spread over all of them.
                let lanes = (0..streams).flat_map(|_| all.iter());
                lanes.map(|connection| Lane::Check(CheckLane::new(Arc::clone(connection)))).collect()
            }
            Self::Http(_) => (0..connections * streams).map(|_| Lane::Http(HttpLane::new(self.clone()))).collect(),
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Tcp",
            Self::Unix(_) => "Unix",
        })
    }
}

// === impl Lane ===

impl Lane {
    /// Sends a request and waits for its answer. A failure may come with a text about the connection.
    pub(super) async fn ask(&mut self, request: &Prepared) -> Result<Answer, (Failure, Option<String>)> {
        match self {
            Self::Check(lane) => lane.ask(request).await,
            Self::Http(lane) => lane.ask(request).await,
        }
    }

    /// Makes its connection, if that is not there.
    pub(super) async fn connect(&mut self) -> Result<(), String> {
        match self {
            Self::Check(lane) => lane.connect().await,
            Self::Http(lane) => lane.connect().await,
        }
    }

    /// After a request was given up: what is left of it must not be taken for the next one's answer.
    pub(super) fn give_up(&mut self) {
        match self {
            Self::Check(_) => {}
            Self::Http(lane) => lane.close(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_and_say_what_they_speak() {
        let parse = |text: &str| text.parse::<Target>();
        let ours = parse("ours=grpc://127.0.0.1:9191").unwrap();
        assert_eq!((ours.name.as_str(), &ours.place), ("ours", &Place::Grpc("127.0.0.1:9191".to_owned())));
        assert_eq!(parse("o=unix:/run/x.sock").unwrap().place, Place::Unix("/run/x.sock".into()));
        assert_eq!(parse("o=unix:///run/x.sock").unwrap().place.to_string(), "unix:/run/x.sock");
        assert_eq!(parse("o=http://[::1]:80/").unwrap().place, Place::Http("[::1]:80".to_owned()));
        for (bad, part) in [
            ("grpc://127.0.0.1:9191", "NAME=URL"),
            ("a b=grpc://127.0.0.1:9191", "`a b`"),
            ("=grpc://127.0.0.1:9191", "``"),
            ("o=127.0.0.1:9191", "none of grpc://"),
            ("o=https://h:1", "none of grpc://"),
            ("o=grpc://h", "HOST:PORT"),
            ("o=grpc://h:0", "HOST:PORT"),
            ("o=grpc://u@h:1", "HOST:PORT"),
            ("o=http://h:1/path", "HOST:PORT"),
            ("o=unix:", "none of"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }
}
