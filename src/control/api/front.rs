//! What every request passes first: its id, who asks, the limits, and a net under panics.
//!
//! Plane: control. Authentication comes before anything is read of the body, and before a place among the concurrent
//! requests is taken. Nothing is answered without it, not even that a path does not exist; but for operations that are
//! public. A request that is for an operation has its [`Route`] in its extensions from here on.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use uuid::Uuid;

use super::Api;
use super::extract::{Caller, MAX_WAIT, RequestId};
use super::operation::Route;
use super::problem::Problem;
use crate::control::audit::{Author, Event};
use crate::control::principal::Principal;

/// The header that carries the request's id, both ways.
const REQUEST_ID: &str = "x-request-id";

/// Actions whose success is recorded although they change nothing.
const RECORDED_READS: [&str; 1] = ["audit.list"];

/// What was called and by whom, for the audit trail.
#[derive(Debug)]
struct Call {
    author: Author,
    /// The operation's action; the method where there is no such operation.
    action: Cow<'static, str>,
    /// Method and path.
    object: String,
    is_read: bool,
}

pub(super) async fn front(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let mut call = Call::of(&request);
    let mut response = guarded(&api, request, next, &id, &mut call).await.unwrap_or_else(IntoResponse::into_response);
    let status = response.status().as_u16();
    tracing::debug!(request_id = %id, author = %call.author.name, call = %call.object, status, "answered");
    if call.is_recorded(status) {
        api.core.audit().note(Event::done(call.author, call.action, &call.object, &id).answered(status));
    }
    let headers = response.headers_mut();
    super::respond::insert(headers, header::HeaderName::from_static(REQUEST_ID), &id);
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

async fn guarded(
    api: &Api,
    mut request: Request,
    next: Next,
    id: &Arc<str>,
    call: &mut Call,
) -> Result<Response, Problem> {
    let route = request.extensions().get::<MatchedPath>().and_then(|m| api.route(request.method(), m.as_str()));
    if let Some(route) = route {
        call.action = Cow::Borrowed(route.action);
    }
    let caller = match route {
        Some(Route { public: true, .. }) => None,
        _ => Some(Caller { principal: authenticate(api, request.headers())?, request_id: Arc::clone(id) }),
    };
    let extensions = request.extensions_mut();
    extensions.insert(RequestId(Arc::clone(id)));
    if let Some(route) = route {
        extensions.insert(route);
    }
    if let Some(caller) = caller {
        call.author = Author::from(&caller.principal);
        extensions.insert(caller);
    }
    let Ok(_place) = api.places.try_acquire() else {
        return Err(Problem::unavailable("too many requests at once"));
    };
    let waits = request.uri().query().is_some_and(|q| q.contains("wait="));
    let limit = api.config.request_timeout + if waits { MAX_WAIT } else { std::time::Duration::ZERO };
    let handled = AssertUnwindSafe(next.run(request)).catch_unwind();
    match tokio::time::timeout(limit, handled).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(_panic)) => {
            tracing::error!(request_id = %id, "a handler panicked");
            Err(Problem::internal())
        }
        Err(_elapsed) => Err(Problem::unavailable(
            "the request took too long; whether a change was made is not known, so look before trying again",
        )),
    }
}

// === impl Call ===

impl Call {
    fn of(request: &Request) -> Self {
        Self {
            author: Author::unknown(),
            action: Cow::Owned(request.method().to_string()),
            object: format!("{} {}", request.method(), request.uri().path()),
            is_read: request.method().is_safe(),
        }
    }

    /// Whether the answer is a record of its own: refusals and failures, except of reads that somebody may make. A
    /// change that was made is recorded with its commit.
    fn is_recorded(&self, status: u16) -> bool {
        match status {
            401 | 403 | 429 | 500 => true,
            400.. => !self.is_read,
            _ => RECORDED_READS.contains(&&*self.action),
        }
    }
}

/// The operator of the one bearer token that the request carries.
fn authenticate(api: &Api, headers: &HeaderMap) -> Result<Principal, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Err(Problem::unauthenticated(false)) };
    if values.next().is_some() {
        return Err(Problem::unauthenticated(true));
    }
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    token.and_then(|t| api.operators.authenticate(t)).ok_or_else(|| Problem::unauthenticated(true))
}

/// The caller's id for the request if it is a tame one, else a new one.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    let tame = |id: &&str| {
        (1..=128).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    let given = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok()).filter(tame);
    given.map_or_else(|| Arc::from(Uuid::new_v4().as_hyphenated().to_string()), Arc::from)
}
