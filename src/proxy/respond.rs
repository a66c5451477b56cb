//! The answers of the proxy itself: denials, and what becomes of a request that no upstream answered.
//!
//! Pure; hot path. INVARIANT: nothing of the client's request and nothing about the upstream's address is in them; every
//! denial is the shared one of all HTTP doors, and a gRPC call gets a gRPC status.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use super::body::{Broken, Reply};
use super::upstream::SendError;
use crate::authz::problem;
use crate::door::{Checked, answer};
use crate::telemetry::Unanswered;

/// A denial. `closes` the connection of an HTTP/1 client, of whom it is not clear what it will say next.
pub(super) fn denied(checked: &Checked, closes: bool) -> Response<Reply> {
    let response = match answer::is_grpc(&checked.request.headers) {
        true => answer::grpc_denial(checked),
        false => answer::denial(checked),
    };
    let mut response = response.map(Reply::from);
    if closes {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A request that was allowed and not answered.
pub(super) fn failed(error: &SendError, is_grpc: bool) -> Response<Reply> {
    let (status, title, grpc) = match error {
        SendError::Full => (StatusCode::SERVICE_UNAVAILABLE, "the service has as many requests as it may have", "14"),
        SendError::Connect(_) => (StatusCode::SERVICE_UNAVAILABLE, "the service cannot be reached", "14"),
        SendError::TimedOut => (StatusCode::GATEWAY_TIMEOUT, "the service did not answer in time", "4"),
        SendError::Broken(error) if whose(error) == Some(Fault::TooLarge) => {
            (StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than the limit", "8")
        }
        SendError::Broken(error) if whose(error) == Some(Fault::Client) => {
            (StatusCode::BAD_REQUEST, "the body did not arrive whole", "3")
        }
        SendError::Broken(_) | SendError::Unsendable(_) => {
            (StatusCode::BAD_GATEWAY, "the service did not answer", "14")
        }
    };
    own(status, title, is_grpc.then_some(grpc))
}

/// The same for its record.
pub(super) fn unanswered(error: &SendError) -> Unanswered {
    match error {
        SendError::Full => Unanswered::Full,
        SendError::Connect(_) => Unanswered::Connect,
        SendError::TimedOut => Unanswered::Timeout,
        SendError::Broken(error) if whose(error).is_some() => Unanswered::Body,
        SendError::Broken(_) | SendError::Unsendable(_) => Unanswered::Broken,
    }
}

/// A body that says that it is too large.
pub(super) fn too_large(is_grpc: bool) -> Response<Reply> {
    own(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than the limit", is_grpc.then_some("8"))
}

/// A service that is decided on here and forwarded to nowhere.
pub(super) fn nowhere(is_grpc: bool) -> Response<Reply> {
    own(StatusCode::SERVICE_UNAVAILABLE, "the service is not forwarded to from here", is_grpc.then_some("14"))
}

/// An upstream that goes over to something that nobody asked it for.
pub(super) fn unasked() -> Response<Reply> {
    own(StatusCode::BAD_GATEWAY, "the service did not answer", None)
}

/// A list of tools that cannot be filtered.
pub(super) fn unreadable() -> Response<Reply> {
    own(StatusCode::BAD_GATEWAY, "the answer of the service cannot be read", None)
}

fn own(status: StatusCode, title: &str, grpc: Option<&'static str>) -> Response<Reply> {
    let mut response = Response::new(Reply::from(Bytes::new()));
    if let Some(grpc) = grpc {
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(grpc));
        return response;
    }
    let body = serde_json::json!({ "type": "about:blank", "title": title, "status": status.as_u16() });
    *response.body_mut() = Reply::from(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(problem::CONTENT_TYPE));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// What was the matter with the client's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    TooLarge,
    Client,
}

/// Whether it was the client's body that was the matter.
fn whose(error: &hyper::Error) -> Option<Fault> {
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        match error.downcast_ref::<Broken>() {
            Some(Broken::TooLarge) => return Some(Fault::TooLarge),
            Some(Broken::Http(_)) => return Some(Fault::Client),
            Some(Broken::Cut | Broken::Unlisted(_) | Broken::Full(_)) | None => next = error.source(),
        }
    }
    None
}
