//! What every request passes first: its id, who asks, the limits, and a net under panics.
//!
//! Plane: control. Authentication comes before anything is read of the body, and before a place among the concurrent
//! requests is taken. Nothing is answered without it, not even that a path does not exist; but for operations that are
//! public. A request that is for an operation has its [`Route`] in its extensions from here on.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::RequestExt;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use uuid::Uuid;

use super::Api;
use super::extract::{Caller, MAX_WAIT, RequestId};
use super::operation::{Method, Route};
use super::problem::Problem;
use super::watch::Entered;
use crate::control::audit::{Author, Event};
use crate::control::callers::Peer;
use crate::control::operator_policy::Subject;
use crate::object::{Kind, Object};

/// The header that carries the request's id, both ways.
const REQUEST_ID: &str = "x-request-id";

/// Actions whose success is recorded although they change nothing.
const RECORDED_READS: [&str; 1] = ["audit.list"];

/// What a record calls a method that no operation has. A method is any token, `audit.begin` too.
const OTHER_METHOD: &str = "other";

/// What was called and by whom, for the audit trail.
#[derive(Debug)]
struct Call {
    author: Author,
    /// The operation's action; the method where there is no such operation, and never another word of the caller's.
    action: Cow<'static, str>,
    /// Method and path.
    object: String,
    /// The address of a caller that is not known.
    peer: Option<String>,
    /// Who asks what anybody may ask.
    stranger: Option<Peer>,
    is_read: bool,
}

pub(super) async fn front(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let mut call = Call::of(&request);
    let mut response = guarded(&api, request, next, &id, &mut call).await.unwrap_or_else(IntoResponse::into_response);
    let status = response.status().as_u16();
    tracing::debug!(request_id = %id, author = %call.author.name, call = %call.object, status, "answered");
    // Where anybody may ask, a failure counts against the address that it came from.
    let stranger = call.stranger.take().filter(|_| status >= 400);
    let too_often = stranger.as_ref().is_some_and(|peer| api.callers.failed(Some(peer)).is_err());
    call.peer = call.peer.or_else(|| stranger.map(|peer| peer.address.to_string()));
    if status == 429 || too_often {
        // Whoever calls too often would otherwise fill the trail.
        api.core.audit().omit();
    } else if call.is_recorded(status) {
        let event = Event::done(call.author, call.action, &call.object, &id).answered(status);
        api.core.audit().note(Event { peer: call.peer, ..event });
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
    let peer = request.extensions().get::<Peer>().cloned();
    let caller = match route {
        Some(Route { public: true, .. }) => {
            call.stranger.clone_from(&peer);
            None
        }
        _ => {
            let (principal, standing) = match api.callers.authenticate(request.headers(), peer.as_ref()).await {
                Ok(known) => known,
                Err(unknown) => {
                    call.peer = peer.as_ref().map(|peer| peer.address.to_string());
                    tracing::debug!(request_id = %id, why = unknown.detail, "a caller is nobody");
                    api.callers.failed(peer.as_ref()).map_err(Problem::too_many)?;
                    return Err(Problem::unauthenticated(unknown.presented));
                }
            };
            call.author = Author::from(&principal);
            api.callers.admit(&principal).map_err(Problem::too_many)?;
            if let Some(route) = route {
                let subject = subject(api, route, request.extract_parts().await.ok());
                api.policies.check(&principal, route.action, &subject).await?;
                let principal = principal.clone();
                request.extensions_mut().insert(Entered { principal, standing, action: route.action, subject });
            }
            Some(Caller { principal, request_id: Arc::clone(id) })
        }
    };
    let extensions = request.extensions_mut();
    extensions.insert(RequestId(Arc::clone(id)));
    if let Some(route) = route {
        extensions.insert(route);
    }
    if let Some(caller) = caller {
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
        let method = Method::of(request.method()).map_or(OTHER_METHOD, |_known| request.method().as_str());
        Self {
            author: Author::unknown(),
            action: Cow::Owned(method.to_owned()),
            object: format!("{method} {}", request.uri().path()),
            peer: None,
            stranger: None,
            is_read: request.method().is_safe(),
        }
    }

    /// Whether the answer is a record of its own: refusals and failures, except of reads that somebody may make. A
    /// change that was made is recorded with its commit.
    fn is_recorded(&self, status: u16) -> bool {
        match status {
            401 | 403 | 500 => true,
            400.. => !self.is_read,
            _ => RECORDED_READS.contains(&&*self.action),
        }
    }
}

/// What the operation is on, as its path says: nothing of the body has been read.
fn subject(api: &Api, route: Route, params: Option<RawPathParams>) -> Subject {
    let kind = route.action.split_once('.').map_or(route.action, |(family, _)| family).to_owned();
    let name = params.and_then(|params| params.iter().next().map(|(_, value)| value.to_owned())).unwrap_or_default();
    let workload = match kind.as_str() {
        "grant" => match api.core.index().get(Kind::Grant, &name).as_ref().and_then(|s| s.object.as_ref()) {
            Some(Object::Grant(grant)) => Some(grant.workload.clone()),
            _ => None,
        },
        "workload" => name.parse().ok(),
        _ => None,
    };
    Subject { kind, name, workload }
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
