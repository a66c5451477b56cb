//! One request to decide on, as every door hands it over: borrowed, unparsed, untrusted.
//!
//! Pure. A door only copies fields; what they mean, and what is refused, is decided here and in `engine`, so that
//! doors cannot disagree.

use core::net::IpAddr;

use smallvec::SmallVec;

/// Where a request came in. A closed list: it is a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Door {
    /// Envoy's ext_authz over gRPC.
    ExtAuthz,
    /// The `check` command and the admin endpoint.
    Check,
    /// Forward-auth over HTTP: Envoy's HTTP service, Traefik, Caddy, nginx.
    ForwardAuth,
    /// AuthZEN: applications that ask directly.
    Authzen,
    /// The reverse proxy.
    Proxy,
}

/// A header as it came, name in any case.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    /// Name: UTF-8, which is known and not asked again, because most names are none that anybody looks for.
    pub name: &'a [u8],
    /// Value.
    pub value: &'a [u8],
}

/// An untrusted request.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Where it came in.
    pub door: Door,
    /// Method, as sent.
    pub method: &'a str,
    /// Request target: path and query, as sent.
    pub path: &'a str,
    /// `:authority` or `Host`, as sent.
    pub host: &'a str,
    /// `:scheme` as the proxy saw it, for the target that a proof of possession names.
    pub scheme: &'a str,
    /// Every header, duplicates included, pseudo-headers excluded.
    pub headers: SmallVec<[Header<'a>; 32]>,
    /// The enforcing proxy says that it only sent part of the body.
    pub partial_body: bool,
    /// The body, byte for byte, if the enforcing proxy sent it along.
    pub body: Option<&'a [u8]>,
    /// Who is at the other end of the connection, as the proxy says.
    pub peer: Peer<'a>,
}

/// The other end of the connection on which a request came to the enforcing proxy, unparsed. Absent where the
/// connection has no TLS, or where the proxy does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peer<'a> {
    /// The identity in its certificate: Envoy's `source.principal`.
    pub principal: Option<&'a str>,
    /// Its certificate, as URL-encoded PEM: Envoy's `source.certificate`.
    pub certificate: Option<&'a str>,
    /// Its address: Envoy's `source.address`.
    pub address: Option<IpAddr>,
}

impl Door {
    /// Every door, in the order of its number.
    pub const ALL: [Self; 5] = [Self::ExtAuthz, Self::Check, Self::ForwardAuth, Self::Authzen, Self::Proxy];

    /// The label and record value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ExtAuthz => "ext_authz",
            Self::Check => "check",
            Self::ForwardAuth => "forward_auth",
            Self::Authzen => "authzen",
            Self::Proxy => "proxy",
        }
    }
}
