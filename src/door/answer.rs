//! What HTTP doors answer: the response of a denial, and the headers of an allow.
//!
//! Pure; hot path. INVARIANT: without a permit nothing here says yes: a denial's status is never below 400, and there is no
//! upstream to prepare. No byte of the request is echoed, and an identity header that is not set is named to be removed, as
//! is every spelling of one that was sent.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use smallvec::SmallVec;
use uuid::fmt::Hyphenated;

use super::{Checked, IDENTITY, NOT_FOR_UPSTREAM, identity, is_alias};
use crate::authz::{CREDENTIAL_HEADERS, Decision, GrpcStatus, Permit, is_credential_header, problem};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// What an allow does to the request on its way upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// To set, in place of whatever is there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// To remove. None of them is set.
    pub remove: Vec<HeaderName>,
}

/// The response of a denial: status, headers, `application/problem+json`. Also what a bug that asks for it with a permit in
/// hand gets.
pub fn denial(checked: &Checked) -> Response<Bytes> {
    let decision = &checked.decision;
    let (grpc, http) = statuses(decision);
    let mut response = Response::new(problem(checked));
    *response.status_mut() = StatusCode::from_u16(http).unwrap_or(StatusCode::FORBIDDEN);
    insert(response.headers_mut(), decision);
    if is_grpc(&checked.request.headers) {
        response.headers_mut().insert(GRPC_STATUS, HeaderValue::from_static(grpc_code(grpc)));
    }
    response
}

/// The response of a denial of a gRPC call, to its client: HTTP 200 with the status in what is both headers and trailers.
pub fn grpc_denial(checked: &Checked) -> Response<Bytes> {
    let (grpc, _) = statuses(&checked.decision);
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    insert(headers, &checked.decision);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from_static(grpc_code(grpc)));
    headers.insert(GRPC_MESSAGE, HeaderValue::from_static(problem::disclosed_reason(&checked.decision)));
    response
}

/// The metadata of an MCP server, in place of a denial: nothing is forwarded.
pub fn document(document: Bytes) -> Response<Bytes> {
    let mut response = Response::new(document);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
    response
}

/// The body of a denial.
pub fn problem(checked: &Checked) -> Bytes {
    problem::body(&checked.decision, checked.grant_request_url.as_deref()).into()
}

/// The headers of an allow; `None` without one.
pub fn upstream(checked: &Checked) -> Option<Upstream> {
    checked.decision.permit().map(|permit| of_permit(permit, checked))
}

/// Makes the request's headers those for the upstream. False, and nothing is changed, without an allow.
#[must_use = "what is not allowed must not be forwarded"]
pub fn prepare(checked: &Checked, headers: &mut HeaderMap) -> bool {
    let Some(_permit) = checked.decision.permit() else { return false };
    // What is in these headers counts, should it be another set than the one that was asked about. All that is set below is
    // among what goes, in every spelling.
    let goes = |name: &&HeaderName| {
        let name = name.as_str().as_bytes();
        is_alias(name) || (checked.decision.removes_token && is_credential_header(name))
    };
    let going: SmallVec<[HeaderName; 4]> = headers.keys().filter(goes).cloned().collect();
    for name in going {
        headers.remove(name);
    }
    let mut id = [0; Hyphenated::LENGTH];
    let id: &str = checked.decision.id.0.hyphenated().encode_lower(&mut id);
    identity(&checked.decision, id, |name, value| {
        // What cannot stand in a header is not told, rather than told by the client.
        if let Some(Ok(value)) = value.map(HeaderValue::from_str) {
            headers.insert(HeaderName::from_static(name), value);
        }
    });
    true
}

/// Whether it is a gRPC call, whose denial carries a `grpc-status`.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_TYPE).iter().any(|value| is_grpc_type(value.as_bytes()))
}

/// Whether a content type is that of gRPC.
pub(crate) fn is_grpc_type(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// A status as it stands in `grpc-status`.
pub(crate) const fn grpc_code(status: GrpcStatus) -> &'static str {
    match status {
        GrpcStatus::Ok => "0",
        GrpcStatus::InvalidArgument => "3",
        GrpcStatus::PermissionDenied => "7",
        GrpcStatus::Unavailable => "14",
        GrpcStatus::Unauthenticated => "16",
    }
}

/// The statuses of a denial. A decision without a permit denies, whatever its reason says; a status of 0 would allow.
pub(crate) const fn statuses(decision: &Decision) -> (GrpcStatus, u16) {
    match decision.reason.grpc_status() {
        GrpcStatus::Ok => (GrpcStatus::PermissionDenied, 403),
        status => (status, decision.reason.http_status()),
    }
}

fn insert(headers: &mut HeaderMap, decision: &Decision) {
    for (name, value) in problem::headers(decision) {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

fn of_permit(_permit: Permit, checked: &Checked) -> Upstream {
    let mut id = [0; Hyphenated::LENGTH];
    let id: &str = checked.decision.id.0.hyphenated().encode_lower(&mut id);
    let (mut set, mut remove) = (Vec::with_capacity(IDENTITY.len()), Vec::new());
    identity(&checked.decision, id, |name, value| {
        let name = HeaderName::from_static(name);
        // What cannot stand in a header is not told, rather than told by the client.
        match value.map(HeaderValue::from_str) {
            Some(Ok(value)) => set.push((name, value)),
            Some(Err(_)) | None => remove.push(name),
        }
    });
    remove.extend(NOT_FOR_UPSTREAM.map(HeaderName::from_static));
    let ours = |name: &str| IDENTITY.contains(&name) || NOT_FOR_UPSTREAM.contains(&name);
    let aliases =
        checked.request.headers.keys().filter(|name| is_alias(name.as_str().as_bytes()) && !ours(name.as_str()));
    remove.extend(aliases.cloned());
    if checked.decision.removes_token {
        remove.extend(CREDENTIAL_HEADERS.map(HeaderName::from_static));
        let sent = checked.request.headers.keys().filter(|name| is_credential_header(name.as_str().as_bytes()));
        remove.extend(sent.filter(|name| !CREDENTIAL_HEADERS.contains(&name.as_str())).cloned());
    }
    Upstream { set, remove }
}

#[cfg(test)]
mod tests;
