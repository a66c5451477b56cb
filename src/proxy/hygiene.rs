//! What of a client's request is for the next server, and what was only for this one (RFC 9110, section 7.6.1).
//!
//! Pure; hot path. Runs before the decision, so that what is decided on is what is forwarded. INVARIANT: what is left has
//! one method, one host and one path, and no header that speaks of this connection. Refuses, never repairs: a host that is
//! said twice and differently, a `Connection` that names a header meant for everybody.

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use smallvec::SmallVec;

/// Whether a header is about one connection, beside those that `Connection` names. `Trailer` is no such header.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "http2-settings"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Headers that `Connection` must not name: the next server is to see them, or to see that there are none.
const FOR_EVERYBODY: [&str; 14] = [
    "authorization",
    "cache-control",
    "client-cert",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "dpop",
    "forwarded",
    "host",
    "transfer-encoding",
    "txn-token",
    "workload-identity-token",
    "workload-proof-token",
];

/// What a request is for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Path and query, as sent.
    pub(super) path: String,
    /// As sent; empty when an HTTP/1.0 client said none.
    pub(super) host: String,
    /// What the client wants to speak instead of HTTP.
    pub(super) upgrade: Option<HeaderValue>,
}

/// Why a request is not even decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the method is one that only this proxy could answer")]
    Method,
    #[error("the request target and `Host` name different hosts")]
    TwoHosts,
    #[error("the request names no host, or one with user information")]
    Host,
    #[error("`Connection` is not a list of names, or names a header that is meant for every server on the way")]
    Connection,
    #[error("`Expect` asks for something else than `100-continue`")]
    Expect,
    #[error("`Transfer-Encoding` or `Content-Length` is not what it may be in this version of HTTP")]
    Length,
    #[error("a header name could be taken for one that frames the message")]
    Alias,
    #[error("there are several `Upgrade` headers")]
    Upgrade,
}

/// Takes out of a request what is not for the next server.
pub(super) fn take_in(parts: &mut Parts) -> Result<Target, Refusal> {
    if matches!(parts.method, Method::CONNECT | Method::TRACE) {
        return Err(Refusal::Method);
    }
    let host = host(parts)?;
    let path = parts.uri.path_and_query().map_or("", |p| p.as_str()).to_owned();
    let headers = &mut parts.headers;
    let mut upgrade = None;
    if parts.version == Version::HTTP_2 {
        // The library refuses most of these already (RFC 9113, section 8.2.2).
        let is_number = |v: &HeaderValue| !v.is_empty() && v.as_bytes().iter().all(u8::is_ascii_digit);
        let lengths = headers.get_all(CONTENT_LENGTH);
        if headers.contains_key(TRANSFER_ENCODING) || lengths.iter().count() > 1 || !lengths.iter().all(is_number) {
            return Err(Refusal::Length);
        }
    } else if headers.contains_key(UPGRADE) {
        upgrade = wanted(headers)?;
    }
    if headers.keys().any(|name| is_alias(name.as_str())) {
        return Err(Refusal::Alias);
    }
    match headers.remove(EXPECT) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => return Err(Refusal::Expect),
        _ => {}
    }
    let trailers = headers.get_all(TE).iter().any(says_trailers);
    strip(headers).ok_or(Refusal::Connection)?;
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    Ok(Target { path, host, upgrade })
}

/// Takes out of a response what is not for the client. A `Connection` that cannot be read takes nothing with it.
pub(super) fn take_back(headers: &mut HeaderMap) {
    if strip(headers).is_none() {
        strip_hop_by_hop(headers);
    }
}

/// Takes out what only this connection is told. `None` when that is not clear.
fn strip(headers: &mut HeaderMap) -> Option<()> {
    if headers.contains_key(CONNECTION) {
        let mut named = Vec::new();
        for value in headers.get_all(CONNECTION) {
            for option in value.as_bytes().split(|b| *b == b',') {
                match option.trim_ascii() {
                    b"" => {}
                    option => named.push(HeaderName::from_bytes(option).ok()?),
                }
            }
        }
        let is_for_everybody = |name: &HeaderName| {
            let name = name.as_str();
            FOR_EVERYBODY.contains(&name) || name.starts_with("x-forwarded-") || name.starts_with("x-portcullis-")
        };
        if named.iter().any(is_for_everybody) {
            return None;
        }
        named.iter().for_each(|name| drop(headers.remove(name)));
    }
    strip_hop_by_hop(headers);
    Some(())
}

/// Most messages have one of these or none: looking at each name costs less than asking for each of these.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let names: SmallVec<[HeaderName; 4]> = headers.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
    names.iter().for_each(|name| drop(headers.remove(name)));
}

/// The host, which is said once or twice the same.
fn host(parts: &Parts) -> Result<String, Refusal> {
    let mut said = parts.headers.get_all(HOST).iter();
    let (header, second) = (said.next(), said.next());
    if second.is_some() {
        return Err(Refusal::Host);
    }
    let header = match header {
        Some(value) => Some(value.to_str().map_err(|_not_ascii| Refusal::Host)?),
        None => None,
    };
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let host = match (authority, header) {
        (Some(authority), Some(header)) if !authority.eq_ignore_ascii_case(header) => return Err(Refusal::TwoHosts),
        (Some(host), _) | (None, Some(host)) => host,
        (None, None) if parts.version == Version::HTTP_10 => "",
        (None, None) => return Err(Refusal::Host),
    };
    if host.contains('@') { Err(Refusal::Host) } else { Ok(host.to_owned()) }
}

/// What the client wants to speak instead, if `Connection` says so too. HTTP/2 is not gone over to in this way.
fn wanted(headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
    let mut values = headers.get_all(UPGRADE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(Refusal::Upgrade) };
    Ok(asks_to_leave(headers).then(|| value.clone()))
}

/// Whether a head of HTTP/1 asks to leave HTTP: exactly when [`Follower`](super::head::Follower) stops behind it.
pub(super) fn asks_to_leave(headers: &HeaderMap) -> bool {
    if !headers.contains_key(UPGRADE) {
        return false;
    }
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes().iter().any(|b| *b != b'0'));
    let says = |value: &HeaderValue| {
        value.as_bytes().split(|b| *b == b',').any(|o| o.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    };
    headers.get_all(CONNECTION).iter().any(says) && !has_body
}

fn says_trailers(value: &HeaderValue) -> bool {
    value.as_bytes().split(|b| *b == b',').any(|o| o.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// Whether a server that takes `_` for `-` could take this for a header that frames the message.
fn is_alias(name: &str) -> bool {
    name.contains('_')
        && ["content-length", "transfer-encoding", "host", "connection"].iter().any(|framing| {
            framing.len() == name.len()
                && framing.bytes().zip(name.bytes()).all(|(a, b)| a == b || (b == b'_' && a == b'-'))
        })
}

#[cfg(test)]
mod tests;
