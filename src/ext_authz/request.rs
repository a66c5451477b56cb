//! `CheckRequest` → [`authz::Request`], borrowed from the message, in one pass.
//!
//! Pure; hot path. Reads the fields of `attributes.request.http` and `attributes.source` that a decision can depend on and
//! skips the rest. INVARIANT: what cannot be read with certainty (not protobuf, a field that occurs twice, more headers than the
//! limits allow) is an error, and the caller denies. What the fields mean is left to the engine. With
//! `encode_raw_headers` Envoy sends `header_map`, where duplicates are visible: it is then used exclusively. In the
//! `headers` map Envoy joins duplicates with a comma, so the engine treats a comma in a bearer token as a duplicate.

use core::net::IpAddr;

use smallvec::SmallVec;

use super::wire::{NotProtobuf, Reader, Value};
use crate::authz::{Door, Header, Peer, Request};

/// Set by Envoy when it sends the body to the check.
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// Bounds on what one check may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeaderLimits {
    /// How many headers.
    pub(super) count: usize,
    /// Bytes of all names and values.
    pub(super) bytes: usize,
}

/// Why a message is not a check that can be decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    /// Not protobuf, or not of the right types.
    #[error(transparent)]
    NotProtobuf(#[from] NotProtobuf),
    /// A field that is single occurs twice.
    #[error("the check has a field twice")]
    Twice,
    /// Not an HTTP check, such as one of the network filter's.
    #[error("the check has no HTTP attributes")]
    NoHttp,
    /// Over a limit.
    #[error("the request has more headers than the limit allows")]
    Headers,
}

/// Reads a `CheckRequest`.
pub(super) fn decode(message: &[u8], limits: HeaderLimits) -> Result<Request<'_>, Unreadable> {
    let attributes = only(message, 1)?.ok_or(Unreadable::NoHttp)?;
    let request = only(attributes, 4)?.ok_or(Unreadable::NoHttp)?;
    let http = only(request, 2)?.ok_or(Unreadable::NoHttp)?;
    let peer = only(attributes, 1)?.map(decode_peer).transpose()?.unwrap_or_default();
    decode_http(http, peer, limits)
}

/// The single message field `number` of `message`.
fn only(message: &[u8], number: u32) -> Result<Option<&[u8]>, Unreadable> {
    let mut found = None;
    let mut reader = Reader::new(message);
    while let Some((field, value)) = reader.field()? {
        if field == number && found.replace(value.bytes()?).is_some() {
            return Err(Unreadable::Twice);
        }
    }
    Ok(found)
}

/// An `AttributeContext.Peer`. Empty text means that Envoy has nothing to say.
fn decode_peer(message: &[u8]) -> Result<Peer<'_>, Unreadable> {
    let (mut address, mut principal, mut certificate) = (None, None, None);
    let mut reader = Reader::new(message);
    while let Some((field, value)) = reader.field()? {
        let twice = match field {
            1 => address.replace(value.bytes()?).is_some(),
            4 => principal.replace(value.text()?).is_some(),
            5 => certificate.replace(value.text()?).is_some(),
            _ => false,
        };
        if twice {
            return Err(Unreadable::Twice);
        }
    }
    Ok(Peer {
        principal: principal.filter(|text| !text.is_empty()),
        certificate: certificate.filter(|text| !text.is_empty()),
        address: address.map(ip_address).transpose()?.flatten(),
    })
}

/// The IP of an `envoy.config.core.v3.Address`; `None` for a pipe or an internal listener.
fn ip_address(message: &[u8]) -> Result<Option<IpAddr>, Unreadable> {
    let Some(socket_address) = only(message, 1)? else { return Ok(None) };
    let Some(text) = only(socket_address, 2)? else { return Ok(None) };
    Ok(std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()))
}

fn decode_http<'a>(http: &'a [u8], peer: Peer<'a>, limits: HeaderLimits) -> Result<Request<'a>, Unreadable> {
    let (mut method, mut path, mut host, mut scheme, mut header_map) = (None, None, None, None, None);
    let mut body = None;
    let mut headers = Headers { found: SmallVec::new(), count: 0, bytes: 0, partial_body: false, limits };
    let mut reader = Reader::new(http);
    while let Some((field, value)) = reader.field()? {
        let twice = match field {
            2 => method.replace(value.text()?).is_some(),
            3 => {
                let (name, value) = map_entry(value.bytes()?)?;
                headers.add(name, value)?;
                false
            }
            4 => path.replace(value.text()?).is_some(),
            5 => host.replace(value.text()?).is_some(),
            6 => scheme.replace(value.text()?).is_some(),
            // Not 11, which is text: what is none in it has been replaced, so other bytes may read the same.
            12 => body.replace(value.bytes()?).is_some(),
            13 => header_map.replace(value.bytes()?).is_some(),
            _ => false,
        };
        if twice {
            return Err(Unreadable::Twice);
        }
    }
    if let Some(raw) = header_map {
        headers = Headers { found: SmallVec::new(), count: 0, bytes: 0, partial_body: false, limits };
        let mut reader = Reader::new(raw);
        while let Some((field, value)) = reader.field()? {
            if field == 1 {
                let (name, value) = header_value(value.bytes()?)?;
                headers.add(name, value)?;
            }
        }
    }
    Ok(Request {
        door: Door::ExtAuthz,
        method: method.unwrap_or_default(),
        path: path.unwrap_or_default(),
        host: host.unwrap_or_default(),
        scheme: scheme.unwrap_or_default(),
        headers: headers.found,
        partial_body: headers.partial_body,
        body,
        peer,
    })
}

/// An entry of `map<string, string>`.
#[inline]
fn map_entry(entry: &[u8]) -> Result<(&[u8], &[u8]), Unreadable> {
    match usual_map_entry(entry) {
        Some((key, value)) => Ok((Value::Bytes(key).text_bytes()?, value)),
        None => any_map_entry(entry),
    }
}

/// As nearly every entry is written: the key, then the value, each with a length of one byte, and nothing else.
#[inline]
fn usual_map_entry(entry: &[u8]) -> Option<(&[u8], &[u8])> {
    let [0x0a, key_len @ ..0x80, rest @ ..] = entry else { return None };
    let (key, rest) = rest.split_at_checked(usize::from(*key_len))?;
    match rest {
        [0x12, value_len @ ..0x80, value @ ..] if usize::from(*value_len) == value.len() => Some((key, value)),
        _ => None,
    }
}

fn any_map_entry(entry: &[u8]) -> Result<(&[u8], &[u8]), Unreadable> {
    let (mut key, mut value) = (None, None);
    let mut reader = Reader::new(entry);
    while let Some((field, content)) = reader.field()? {
        let twice = match field {
            1 => key.replace(content.text_bytes()?).is_some(),
            2 => value.replace(content.bytes()?).is_some(),
            _ => false,
        };
        if twice {
            return Err(Unreadable::Twice);
        }
    }
    Ok((key.unwrap_or_default(), value.unwrap_or_default()))
}

/// A `HeaderValue`: `value` is text, `raw_value` is bytes, and only one of them is set.
fn header_value(message: &[u8]) -> Result<(&[u8], &[u8]), Unreadable> {
    let (mut key, mut value) = (None, None);
    let mut reader = Reader::new(message);
    while let Some((field, content)) = reader.field()? {
        let twice = match field {
            1 => key.replace(content.text_bytes()?).is_some(),
            2 | 3 => {
                let content = content.bytes()?;
                !content.is_empty() && value.replace(content).is_some()
            }
            _ => false,
        };
        if twice {
            return Err(Unreadable::Twice);
        }
    }
    Ok((key.unwrap_or_default(), value.unwrap_or_default()))
}

struct Headers<'a> {
    found: SmallVec<[Header<'a>; 32]>,
    count: usize,
    bytes: usize,
    partial_body: bool,
    limits: HeaderLimits,
}

// === impl Headers ===

impl<'a> Headers<'a> {
    #[inline]
    fn add(&mut self, name: &'a [u8], value: &'a [u8]) -> Result<(), Unreadable> {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(name.len()).saturating_add(value.len());
        if self.count > self.limits.count || self.bytes > self.limits.bytes {
            return Err(Unreadable::Headers);
        }
        // Pseudo-headers repeat what `method`, `path` and `host` say.
        if name.first() == Some(&b':') {
            return Ok(());
        }
        if name.len() == PARTIAL_BODY.len() && name.eq_ignore_ascii_case(PARTIAL_BODY.as_bytes()) {
            self.partial_body |= value.eq_ignore_ascii_case(b"true");
        }
        self.found.push(Header { name, value });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
