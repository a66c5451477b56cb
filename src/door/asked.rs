//! A request that a door has read, with nothing borrowed: it can wait, and another thread can decide on it.
//!
//! Plane: hot path. Untrusted and unparsed, as [`Request`] is, which it lends. INVARIANT: what is lent is what was read,
//! every header with all its values; nothing is left out, joined or repaired. Printing it shows no header value.

use core::net::IpAddr;
use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use smallvec::SmallVec;

use super::is_alias;
use crate::authz::{Door, Header, Peer, Request, is_min_revision};

/// A request to decide on.
#[derive(Clone)]
pub struct Asked {
    /// Where it came in.
    pub door: Door,
    /// Method, as sent.
    pub method: String,
    /// Request target: path and query, as sent.
    pub path: String,
    /// `:authority` or `Host`, as sent.
    pub host: String,
    /// `http` or `https`; empty where that is not known.
    pub scheme: Cow<'static, str>,
    /// Every header, duplicates included, pseudo-headers excluded.
    pub headers: HeaderMap,
    /// The body is only a part of what was sent.
    pub partial_body: bool,
    /// The body, byte for byte, if it was read.
    pub body: Option<Bytes>,
    /// Who is at the other end of the client's connection.
    pub peer: OwnedPeer,
}

/// The other end of the client's connection: [`Peer`], not borrowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnedPeer {
    /// The identity in its certificate, where that is told apart.
    pub principal: Option<String>,
    /// Its certificate, as URL-encoded PEM.
    pub certificate: Option<String>,
    /// Its address.
    pub address: Option<IpAddr>,
}

// === impl Asked ===

impl Asked {
    /// The request, borrowed.
    pub fn lend(&self) -> Request<'_> {
        let header = |(name, value)| {
            let (name, value): (&http::HeaderName, &http::HeaderValue) = (name, value);
            Header { name: name.as_str().as_bytes(), value: value.as_bytes() }
        };
        Request {
            door: self.door,
            method: &self.method,
            path: &self.path,
            host: &self.host,
            scheme: &self.scheme,
            headers: self.headers.iter().map(header).collect(),
            partial_body: self.partial_body,
            body: self.body.as_deref(),
            peer: Peer {
                principal: self.peer.principal.as_deref(),
                certificate: self.peer.certificate.as_deref(),
                address: self.peer.address,
            },
        }
    }

    /// Takes out what a client may not say of itself, because it is told in its place: the identity headers, in every
    /// spelling. What it may ask of the decision stays.
    pub(crate) fn take_out_identity(headers: &mut HeaderMap) {
        let goes = |name: &&HeaderName| {
            let name = name.as_str().as_bytes();
            is_alias(name) && !is_min_revision(name)
        };
        let names: SmallVec<[HeaderName; 4]> = headers.keys().filter(goes).cloned().collect();
        names.iter().for_each(|name| drop(headers.remove(name)));
    }

    /// Whether it has no more headers, and no longer ones, than that.
    pub(super) fn is_within(&self, headers: usize, bytes: usize) -> bool {
        self.headers.len() <= headers
            && self.headers.iter().map(|(n, v)| n.as_str().len().saturating_add(v.len())).sum::<usize>() <= bytes
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked")
            .field("door", &self.door)
            .field("method", &self.method)
            .field("headers", &self.headers.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn what_is_lent_is_what_was_read_and_printing_shows_no_value() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-a", &b"1"[..]), ("x-a", b"2"), ("authorization", b"Bearer secret"), ("x_a", b"\xff")]
        {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
        }
        let asked = Asked {
            door: Door::Proxy,
            method: "PUT".to_owned(),
            path: "/a?secret".to_owned(),
            host: "h".to_owned(),
            scheme: "https".into(),
            headers,
            partial_body: true,
            body: Some(Bytes::from_static(b"{}")),
            peer: OwnedPeer { principal: Some("p".to_owned()), certificate: None, address: "::1".parse().ok() },
        };
        let lent = asked.lend();
        let mut sent: Vec<_> = lent.headers.iter().map(|h| (h.name, h.value)).collect();
        sent.sort_unstable();
        let expected: [(&[u8], &[u8]); 4] =
            [(b"authorization", b"Bearer secret"), (b"x-a", b"1"), (b"x-a", b"2"), (b"x_a", b"\xff")];
        assert_eq!(sent, expected);
        assert_eq!((lent.method, lent.path, lent.host, lent.scheme), ("PUT", "/a?secret", "h", "https"));
        assert_eq!((lent.partial_body, lent.body, lent.peer.principal), (true, Some(&b"{}"[..]), Some("p")));
        assert_eq!(lent.peer.address, "::1".parse().ok());
        assert!(asked.is_within(4, 4 * 3 + 13 + 13 + 3) && !asked.is_within(3, 1000) && !asked.is_within(4, 30));
        assert!(!format!("{asked:?}").contains("secret"), "{asked:?}");
    }
}
