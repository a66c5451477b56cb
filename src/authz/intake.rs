//! First look at a request: what is ambiguous or malformed is refused before anybody is authenticated.
//!
//! Pure. Borrows from the request. Refuses, never repairs: two Authorization headers, a comma in one (which is how a
//! proxy joins two), a partial body, a path with two readings.

use std::borrow::Cow;

use super::path::CanonicalPath;
use super::reason::Reason;
use super::request::Request;
use super::route::host_name;
use crate::wire::Position;

/// The header with which a client demands a state at least as fresh as one it has seen.
pub const MIN_REVISION_HEADER: &str = "x-portcullis-min-revision";

/// What the engine works on.
#[derive(Debug)]
pub(super) struct Intake<'a> {
    pub(super) path: CanonicalPath<'a>,
    /// Lower-case, without port; empty when it is no host name.
    pub(super) host: Cow<'a, str>,
    pub(super) token: Option<&'a str>,
    pub(super) min_revision: Option<Position>,
}

/// A refusal, with what was wrong.
pub(super) type Refusal = (Reason, Cow<'static, str>);

/// Takes a request in.
pub(super) fn intake<'a>(request: &Request<'a>) -> Result<Intake<'a>, Refusal> {
    if request.method.is_empty() || request.method.len() > 32 {
        return Err((Reason::InputMalformed, "the method is missing or too long".into()));
    }
    if request.partial_body {
        return Err((Reason::InputBodyTruncated, "the proxy sent only a part of the body to the check".into()));
    }
    let mut authorization = None;
    let mut min_revision = None;
    for header in &request.headers {
        let slot = if is_header(header.name, "authorization") {
            &mut authorization
        } else if is_header(header.name, MIN_REVISION_HEADER) {
            &mut min_revision
        } else {
            continue;
        };
        if slot.replace(header.value).is_some() {
            return Err((Reason::InputDuplicateHeader, "a header that must be single occurs more than once".into()));
        }
    }
    let path = CanonicalPath::parse(request.path).map_err(|e| (Reason::InputAmbiguousPath, e.to_string().into()))?;
    Ok(Intake {
        path,
        host: host_name(request.host).unwrap_or_default(),
        token: authorization.map(bearer).transpose()?.flatten(),
        min_revision: min_revision.map(position).transpose()?,
    })
}

/// Compares a header name as every server along the way may: case-insensitively, `_` for `-`.
fn is_header(name: &str, canonical: &str) -> bool {
    name.len() == canonical.len()
        && name.bytes().zip(canonical.bytes()).all(|(a, b)| a.eq_ignore_ascii_case(&b) || (a == b'_' && b == b'-'))
}

/// The token of an `Authorization: Bearer` header (RFC 6750, section 2.1); `None` for another scheme.
fn bearer(value: &[u8]) -> Result<Option<&str>, Refusal> {
    if value.contains(&b',') {
        return Err((Reason::InputDuplicateHeader, "two Authorization headers, joined by a comma".into()));
    }
    let value =
        std::str::from_utf8(value).map_err(|_not_utf8| (Reason::InputMalformed, "Authorization is not text".into()))?;
    let Some((scheme, token)) = value.split_once(' ') else { return Ok(None) };
    Ok(scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' ')))
}

fn position(value: &[u8]) -> Result<Position, Refusal> {
    let text = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
    text.ok_or((Reason::InputMalformed, "x-portcullis-min-revision is not EPOCH.REVISION".into()))
}
