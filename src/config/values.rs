//! The scalar values of the configuration files: durations, addresses, URLs.
//!
//! Each is parsed while the file is read, so that a bad one is reported with its line and column.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::authz::Network;
use crate::control::keys::HostPattern;
use crate::credential::SpiffeId;
use crate::svid::Endpoint;

/// A duration, written as `10s`, `5m`, `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// An address to listen on: `127.0.0.1:9191`, `[::1]:9191`. Port 0 picks a free one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address(pub SocketAddr);

/// An absolute `http://` or `https://` URL without user information or fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpUrl(http::Uri);

/// File permissions, in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(pub u32);

/// A workload's SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity(pub SpiffeId);

/// A host that may be asked for keys: `idp.example`, `*.example.org`, an IP address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(pub HostPattern);

/// A range of IP addresses, as in `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr(pub Network);

/// Where the SPIFFE Workload API is: `unix:/path` or `tcp://127.0.0.1:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadApi(pub Endpoint);

macro_rules! as_text {
    ($name:ident, $schema:literal, $json:tt) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                // In a visitor, so that the reader of the file adds the place of this very value to an error.
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("text")
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                d.deserialize_str(Text)
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $schema.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!($json)
            }
        }
    };
}

as_text!(Span, "Duration", {
    "type": "string",
    "description": "A duration, as in `10s`, `5m`, `1h 30m`.",
    "pattern": "^([0-9]+ ?[a-zA-Z]+ ?)+$"
});
as_text!(Address, "Address", {
    "type": "string",
    "description": "An IP address and a port, as in `127.0.0.1:9191` or `[::1]:9191`.",
    "pattern": "^(\\[[0-9a-fA-F:.]+\\]|[0-9.]+):[0-9]{1,5}$"
});
as_text!(HttpUrl, "HttpUrl", { "type": "string", "format": "uri", "pattern": "^https?://" });

as_text!(FileMode, "FileMode", {
    "type": "string",
    "description": "File permissions in octal, in quotes, as in `\"0660\"`.",
    "pattern": "^0?[0-7]{3}$"
});
as_text!(Identity, "SpiffeId", {
    "type": "string",
    "pattern": "^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+$"
});

as_text!(Host, "Host", {
    "type": "string",
    "description": "A host name, an IP address, or `*.` and a domain, as in `*.example.org`.",
    "pattern": "^(\\*\\.)?[A-Za-z0-9:._-]+$"
});
as_text!(WorkloadApi, "WorkloadApiEndpoint", {
    "type": "string",
    "description": "As in SPIFFE_ENDPOINT_SOCKET: `unix:/path/to/socket` or `tcp://127.0.0.1:port`.",
    "pattern": "^(unix:(//)?/.+|tcp://.+:[0-9]{1,5})$"
});
as_text!(Cidr, "Network", {
    "type": "string",
    "description": "An IP address, or a range of them, as in `10.0.0.0/8`.",
    "pattern": "^[0-9a-fA-F:.]+(/[0-9]{1,3})?$"
});

// === impl Span ===

impl Span {
    /// A whole number of seconds.
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(s)
            .map(Self)
            .map_err(|e| format!("`{s}` is not a duration such as `10s`, `5m` or `1h 30m`: {e}"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

// === impl Address ===

impl Address {
    /// An address on `127.0.0.1`.
    pub const fn loopback(port: u16) -> Self {
        Self(SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port))
    }

    /// Whether only this machine can reach it.
    pub fn is_loopback(self) -> bool {
        self.0.ip().to_canonical().is_loopback()
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse().map(Self).map_err(|_not_an_address: std::net::AddrParseError| {
            format!("`{s}` is not an IP address and a port such as `127.0.0.1:9191` or `[::1]:9191`")
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl HttpUrl ===

impl HttpUrl {
    /// Whether it is `https`.
    pub fn is_tls(&self) -> bool {
        self.0.scheme() == Some(&http::uri::Scheme::HTTPS)
    }

    /// The parsed URL.
    pub const fn as_uri(&self) -> &http::Uri {
        &self.0
    }

    /// Whether its host is a loopback address; a name never is, because who answers for a name can change.
    pub fn is_loopback(&self) -> bool {
        let host = self.0.host().unwrap_or("").trim_start_matches('[').trim_end_matches(']');
        host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
    }
}

impl FromStr for HttpUrl {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = |why: &str| format!("`{s}` is not an http:// or https:// URL: {why}");
        let uri: http::Uri = s.parse().map_err(|e: http::uri::InvalidUri| bad(&e.to_string()))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(bad("it starts with neither"));
        }
        let Some(authority) = uri.authority() else { return Err(bad("it names no host")) };
        if authority.as_str().contains('@') {
            return Err("a URL must not hold a user name or a password".to_owned());
        }
        if s.contains('#') {
            return Err(bad("it has a fragment"));
        }
        Ok(Self(uri))
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl FileMode ===

impl FromStr for FileMode {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || format!("`{s}` is not a file mode such as \"0660\"");
        let digits = s.strip_prefix('0').unwrap_or(s);
        if digits.len() != 3 || !digits.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
            return Err(bad());
        }
        u32::from_str_radix(digits, 8).map(Self).map_err(|_not_octal| bad())
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

// === impl Cidr ===

impl FromStr for Cidr {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse().map(Self).map_err(|e| format!("`{s}` is not a network: {e}"))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Identity ===

impl FromStr for Identity {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        SpiffeId::parse(s).map(Self).map_err(|e| format!("`{s}` is not a workload's SPIFFE ID: {e}"))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl WorkloadApi ===

impl FromStr for WorkloadApi {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse().map(Self).map_err(|e| format!("`{s}`: {e}"))
    }
}

impl fmt::Display for WorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Host ===

impl FromStr for Host {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse().map(Self)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
