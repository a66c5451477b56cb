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
const MIN_REVISION_HEADER: &str = "x-portcullis-min-revision";

/// The headers that carry a credential which is checked here, or prove its possession. Not `Txn-Token`, which is made to be
/// handed on, and not what a proxy says of a certificate.
pub const CREDENTIAL_HEADERS: [&str; 4] = ["authorization", "dpop", "workload-identity-token", "workload-proof-token"];

/// Whether a header is one of [`CREDENTIAL_HEADERS`], or could pass for it.
pub fn is_credential_header(name: &[u8]) -> bool {
    CREDENTIAL_HEADERS.iter().any(|canonical| is_header(name, canonical))
}

/// Whether a header is `x-portcullis-min-revision`, or could pass for it.
pub fn is_min_revision(name: &[u8]) -> bool {
    is_header(name, MIN_REVISION_HEADER)
}

/// What the engine works on.
#[derive(Debug)]
pub(super) struct Intake<'a> {
    pub(super) path: CanonicalPath<'a>,
    /// Lower-case, without port; empty when there is none or it is an IPv6 address.
    pub(super) host: Cow<'a, str>,
    pub(super) authorization: Option<Authorization<'a>>,
    pub(super) min_revision: Option<Position>,
    /// Credentials beside it, unread.
    pub(super) beside: Beside<'a>,
}

/// A token and the scheme it came under.
#[derive(Debug, Clone, Copy)]
pub(super) struct Authorization<'a> {
    pub(super) scheme: Scheme,
    pub(super) token: &'a str,
}

/// The schemes that carry a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// RFC 6750.
    Bearer,
    /// RFC 9449.
    Dpop,
    /// draft-ietf-wimse-wpt-02: the proof of the workload identity token beside it.
    Wpt,
}

/// Headers that may carry a credential, or a proof of one, beside `Authorization`. Each is absent or single.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Beside<'a> {
    /// `DPoP` (RFC 9449).
    pub(super) dpop: Option<&'a [u8]>,
    /// `Workload-Identity-Token` (WIMSE).
    pub(super) wit: Option<&'a [u8]>,
    /// `Workload-Proof-Token` (WIMSE).
    pub(super) wpt: Option<&'a [u8]>,
    /// `Txn-Token`.
    pub(super) txn_token: Option<&'a [u8]>,
    /// `Client-Cert` (RFC 9440).
    pub(super) client_cert: Option<&'a [u8]>,
    /// `X-Forwarded-Client-Cert`, which is a list: its last line.
    pub(super) xfcc: Option<&'a [u8]>,
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
    let mut beside = Beside::default();
    for header in &request.headers {
        let slot = match Name::of(header.name) {
            Some(Name::Authorization) => &mut authorization,
            Some(Name::MinRevision) => &mut min_revision,
            Some(Name::Dpop) => &mut beside.dpop,
            Some(Name::Wit) => &mut beside.wit,
            Some(Name::Wpt) => &mut beside.wpt,
            Some(Name::TxnToken) => &mut beside.txn_token,
            Some(Name::ClientCert) => &mut beside.client_cert,
            // Several lines are one list (RFC 9110, section 5.3), of which only the end counts.
            Some(Name::Xfcc) => {
                beside.xfcc = Some(header.value);
                continue;
            }
            None => continue,
        };
        if slot.replace(header.value).is_some() {
            return Err((Reason::InputDuplicateHeader, "a header that must be single occurs more than once".into()));
        }
    }
    // No token and no certificate of these has a comma: it is how a proxy joins two headers.
    let single = [beside.dpop, beside.wit, beside.wpt, beside.txn_token, beside.client_cert];
    if single.into_iter().flatten().any(|value| value.contains(&b',')) {
        return Err((Reason::InputDuplicateHeader, "two headers of which one is allowed, joined by a comma".into()));
    }
    let path = CanonicalPath::parse(request.path).map_err(|e| (Reason::InputAmbiguousPath, e.to_string().into()))?;
    Ok(Intake {
        path,
        // What is no host name could be read as a host by whoever forwards the request.
        host: host_name(request.host).ok_or((Reason::InputMalformed, "the host is not a host name".into()))?,
        authorization: authorization.map(token).transpose()?.flatten(),
        min_revision: min_revision.map(position).transpose()?,
        beside,
    })
}

/// How fresh the state has to be by the headers of a request that was taken in.
pub(crate) fn min_revision(request: &Request<'_>) -> Option<Position> {
    let header = request.headers.iter().find(|header| Name::of(header.name) == Some(Name::MinRevision))?;
    position(header.value).ok()
}

/// The headers that are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Authorization,
    MinRevision,
    Dpop,
    Wit,
    Wpt,
    TxnToken,
    ClientCert,
    Xfcc,
}

/// The token of an `Authorization` header and its scheme (RFC 6750, section 2.1; RFC 9449, section 7.1); `None` for
/// another scheme.
fn token(value: &[u8]) -> Result<Option<Authorization<'_>>, Refusal> {
    if value.contains(&b',') {
        return Err((Reason::InputDuplicateHeader, "two Authorization headers, joined by a comma".into()));
    }
    let value =
        std::str::from_utf8(value).map_err(|_not_utf8| (Reason::InputMalformed, "Authorization is not text".into()))?;
    let Some((scheme, token)) = value.split_once(' ') else { return Ok(None) };
    let scheme = match scheme {
        s if s.eq_ignore_ascii_case("bearer") => Scheme::Bearer,
        s if s.eq_ignore_ascii_case("dpop") => Scheme::Dpop,
        s if s.eq_ignore_ascii_case("wpt") => Scheme::Wpt,
        _ => return Ok(None),
    };
    Ok(Some(Authorization { scheme, token: token.trim_start_matches(' ') }))
}

fn position(value: &[u8]) -> Result<Position, Refusal> {
    let text = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
    text.ok_or((Reason::InputMalformed, "x-portcullis-min-revision is not EPOCH.REVISION".into()))
}

// === impl Name ===

impl Name {
    /// Most headers are none of these, which their length tells.
    #[inline]
    fn of(name: &[u8]) -> Option<Self> {
        let (canonical, this) = match name.len() {
            4 => ("dpop", Self::Dpop),
            9 => ("txn-token", Self::TxnToken),
            // What a proxy writes has its one name; another spelling is a client's, and is not used.
            11 => return name.eq_ignore_ascii_case(b"client-cert").then_some(Self::ClientCert),
            13 => ("authorization", Self::Authorization),
            20 => ("workload-proof-token", Self::Wpt),
            23 if is_header(name, "workload-identity-token") => ("workload-identity-token", Self::Wit),
            23 => return name.eq_ignore_ascii_case(b"x-forwarded-client-cert").then_some(Self::Xfcc),
            25 => (MIN_REVISION_HEADER, Self::MinRevision),
            _ => return None,
        };
        is_header(name, canonical).then_some(this)
    }
}

/// Compares a header name as every server along the way may: case-insensitively, `_` for `-`.
pub(super) fn is_header(name: &[u8], canonical: &str) -> bool {
    name.len() == canonical.len()
        && name.iter().zip(canonical.as_bytes()).all(|(a, b)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-'))
}
