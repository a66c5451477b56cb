//! One request on the listener: a proxy's question, or one for what else is served here.
//!
//! Plane: hot path. INVARIANT: every question of a dialect is one check with one outcome, also one that comes from a peer
//! that is not listed or cannot be read; a panic is a denial. What is no question is told that nothing is here.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{CONNECTION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};

use super::dialect::Dialect;
use super::{Config, Mount, answer, read};
use crate::authz::Reason;
use crate::door::answer::document;
use crate::door::{Checked, Checks};
use crate::drain;

/// What every connection shares.
#[derive(Debug)]
pub(super) struct Service {
    checks: Checks,
    mounts: Vec<Mount>,
    pub(super) config: Config,
    /// Bytes of the bodies that are being read or asked about.
    buffered: AtomicUsize,
    drain: drain::Signal,
}

/// A share of the room for bodies, given back when it is dropped.
struct Room<'a> {
    buffered: &'a AtomicUsize,
    taken: usize,
}

/// Why there is no body.
type BadBody = (Reason, &'static str);

// === impl Service ===

impl Service {
    pub(super) const fn new(checks: Checks, mounts: Vec<Mount>, config: Config, drain: drain::Signal) -> Self {
        Self { checks, mounts, config, buffered: AtomicUsize::new(0), drain }
    }

    /// Whether proxies ask from there.
    pub(super) fn is_trusted(&self, peer: IpAddr) -> bool {
        self.config.trusted_peers.iter().any(|network| network.contains(peer))
    }

    /// Answers one request of a connection from `peer`.
    pub(super) async fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Bytes> {
        let answered = AssertUnwindSafe(self.route(request, peer)).catch_unwind().await;
        let mut response = answered.unwrap_or_else(|_panic| {
            tracing::error!("a request at the forward-auth listener panicked and is denied");
            answer::bare_denial()
        });
        // Where connections last, their peers are told to go elsewhere, one answer at a time.
        if self.drain.is_draining() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn route(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Bytes> {
        let path = request.uri().path();
        if let Some(mount) = self.mounts.iter().find(|mount| (mount.is_for)(path)) {
            return (mount.serve)(request, peer).await;
        }
        let target = request.uri().path_and_query().map_or("", |target| target.as_str());
        match Dialect::of(target).filter(|(dialect, _)| self.config.dialects.contains(dialect)) {
            Some((dialect, own)) => {
                let own = own.to_owned();
                let mut response = answer::answer(dialect, &self.check(dialect, &own, request, peer).await);
                // Connections are counted for all, and those of the proxies are to be had.
                if !self.is_trusted(peer) {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
            None => self.metadata(&request).unwrap_or_else(nothing_here),
        }
    }

    /// The metadata of an MCP server, for a proxy that sends its clients' requests for that here. It is public, and no
    /// answer to a question of a dialect: to most proxies, a 200 would be an allow.
    fn metadata(&self, request: &Request<Incoming>) -> Option<Response<Bytes>> {
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| request.uri().authority().map(|authority| authority.as_str()))?;
        self.checks.resource_metadata(request.method().as_str(), host, request.uri().path()).map(document)
    }

    async fn check(&self, dialect: Dialect, own: &str, request: Request<Incoming>, peer: IpAddr) -> Checked {
        let arrived = Instant::now();
        let refuse = |(reason, detail)| self.checks.refuse(read::unread(), reason, detail);
        if !self.is_trusted(peer) {
            return refuse((Reason::InputMalformed, "the peer is not one of `forward_auth.trusted_peers`"));
        }
        // With an authority in its target, a request has two hosts.
        if request.uri().authority().is_some() {
            return refuse((Reason::InputMalformed, "the question's target is no path"));
        }
        let (head, body) = request.into_parts();
        // Until the answer is there.
        let Some(_room) = self.room_for(&body) else {
            return refuse((Reason::SystemOverload, "too many large bodies are under way"));
        };
        let body = match self.read(body).await {
            Ok(body) => body,
            Err(bad) => return refuse(bad),
        };
        match read::asked(dialect, own, head, body) {
            Ok(asked) => self.checks.check_since(arrived, asked).await,
            Err(refusal) => refuse(refusal),
        }
    }

    /// Room for as much as the body may have, if there is so much.
    fn room_for(&self, body: &Incoming) -> Option<Room<'_>> {
        let most = self.config.max_body_bytes;
        let taken = body.size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(most).min(most);
        let room = Room { buffered: &self.buffered, taken };
        let before = self.buffered.fetch_add(taken, Ordering::Relaxed);
        (taken == 0 || before.saturating_add(taken) <= self.config.max_buffered_bytes).then_some(room)
    }

    /// The body that came along, if one did.
    async fn read(&self, body: Incoming) -> Result<Option<Bytes>, BadBody> {
        if body.is_end_stream() {
            return Ok(None);
        }
        let whole = Limited::new(body, self.config.max_body_bytes).collect();
        match tokio::time::timeout(self.config.read_timeout, whole).await {
            Ok(Ok(whole)) => Ok(Some(whole.to_bytes()).filter(|body| !body.is_empty())),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                Err((Reason::InputMalformed, "the body is larger than the limit allows"))
            }
            Ok(Err(_broken)) => Err((Reason::InputMalformed, "the body was cut short")),
            Err(_elapsed) => Err((Reason::SystemOverload, "the body did not arrive in time")),
        }
    }
}

// === impl Room ===

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.buffered.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

/// Not a success in any dialect, and no 5xx.
fn nothing_here() -> Response<Bytes> {
    let body = r#"{"type":"https://portcullis.dev/problems/not_found","title":"nothing is served here","status":404}"#;
    let mut response = Response::new(Bytes::from_static(body.as_bytes()));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(crate::authz::problem::CONTENT_TYPE));
    response
}
