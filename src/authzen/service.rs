//! One request at the API: read, decide, answer.
//!
//! Plane: hot path. Takes a place among the checks under way, as any check does; what takes a signature is decided on the
//! verification pool; a search runs on a thread of its own, one at a time, so that it delays no check. INVARIANT: nobody's
//! body is waited for who has not been authenticated, and every call that is to be decided is told of: by one outcome for each
//! evaluation that was decided, and by one outcome for the call where there is none: refused, shed, panicked or dropped.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Body;
use tokio::sync::Semaphore;

use super::body::Part;
use super::call::{Api, Begun, Call, Entry, Made, Reached};
use super::names::Subject;
use super::{Config, answer};
use crate::authz::{Asker, Deferred, Door, Header, Reason, Search};
use crate::cache::{Admission, Gate, Source};
use crate::door::{Asked, Checks, Later, OwnedPeer, Question, Refused};
use crate::telemetry::{Outcome, Shed};

/// Where the metadata is.
pub(super) const METADATA: &str = "/.well-known/authzen-configuration";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A longer one is refused.
const MAX_REQUEST_ID: usize = 512;
/// Bodies that are read or decided on at once, all of callers on the list, so that they take no more memory than this.
const BODIES: usize = 128;
/// Searches at once.
const SEARCHES: usize = 1;

/// The API. Cheap to clone; clones share.
#[derive(Debug, Clone)]
pub struct Service(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    checks: Checks,
    config: Arc<Config>,
    origins: Arc<[Box<str>]>,
    metadata: Option<Bytes>,
    searches: Arc<Semaphore>,
    bodies: Semaphore,
}

/// A place among the checks under way, until it is dropped.
struct Place<'a>(&'a Admission);

// === impl Service ===

impl Service {
    /// Answers by what `checks` decides from.
    pub fn new(checks: Checks, config: Config) -> Self {
        let origins = config.url.iter().map(|url| Box::from(url.as_str())).collect();
        let metadata = config.url.as_deref().map(answer::metadata);
        let searches = Arc::new(Semaphore::new(SEARCHES));
        Self(Arc::new(Shared {
            checks,
            config: Arc::new(config),
            origins,
            metadata,
            searches,
            bodies: Semaphore::new(BODIES),
        }))
    }

    /// Answers one request of a connection from `peer`.
    pub async fn answer<B>(&self, request: Request<B>, peer: IpAddr) -> Response<Bytes>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let id = match request_id(request.headers()) {
            Ok(id) => id,
            Err(why) => return answer::error(StatusCode::BAD_REQUEST, why),
        };
        let mut response = self.route(request, peer).await;
        if let Some(id) = id {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    }

    async fn route<B>(&self, request: Request<B>, peer: IpAddr) -> Response<Bytes>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let path = request.uri().path();
        if path == METADATA {
            return match *request.method() {
                Method::GET | Method::HEAD => self.metadata(),
                _ => not_allowed("GET, HEAD"),
            };
        }
        let Some(api) = Api::of(path) else {
            return answer::error(StatusCode::NOT_FOUND, "nothing is served here");
        };
        if request.method() != Method::POST {
            return not_allowed("POST");
        }
        self.call(api, request, peer).await
    }

    fn metadata(&self) -> Response<Bytes> {
        let Some(metadata) = self.0.metadata.clone() else {
            return answer::error(StatusCode::NOT_FOUND, "`authzen.url` is not set, so there is no metadata");
        };
        let mut response = Response::new(metadata);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("max-age=300"));
        response
    }

    async fn call<B>(&self, api: Api, request: Request<B>, peer: IpAddr) -> Response<Bytes>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let arrived = Instant::now();
        let desk = self.0.checks.desk();
        let mut outcome = desk.telemetry.begin_at(Door::Authzen, arrived);
        let (head, body) = request.into_parts();
        trace(&mut outcome, &head.headers);
        let Some(_place) = Place::take(&desk.admission) else {
            desk.telemetry.metrics().shed(Shed::All).inc();
            return self.refuse(&mut outcome, Reason::SystemOverload, "too many checks are under way");
        };
        if !is_json(&head.headers) {
            return self.unreadable(&mut outcome, "the content type is not application/json");
        }
        let Some(gate) = self.0.checks.gate() else {
            return self.refuse(&mut outcome, Reason::SystemInternal, "nothing decides here");
        };
        let host = head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let head = Asked {
            door: Door::Authzen,
            method: head.method.as_str().to_owned(),
            path: head.uri.path().to_owned(),
            host: host.to_owned(),
            scheme: "http".into(),
            headers: head.headers,
            partial_body: false,
            body: None,
            // What comes this way is no client's connection that a proxy speaks of.
            peer: OwnedPeer::default(),
        };
        let (config, origins) = (Arc::clone(&self.0.config), Arc::clone(&self.0.origins));
        let entry = Arc::new(Entry { gate: Arc::clone(gate), config, origins, head });
        let asked = (Source::of(Some(peer), 0), arrived);
        match self.decide(&entry, |entry| entry.admit(false), asked).await {
            Ok(None) => {}
            Ok(Some(denied)) => return self.conclude(Reached::Refused(denied), gate, arrived, &mut outcome).await,
            Err(Refused { reason, detail }) => return self.refuse(&mut outcome, reason, &detail),
        }
        let Ok(_room) = self.0.bodies.try_acquire() else {
            return self.refuse(&mut outcome, Reason::SystemOverload, "too many calls are being read");
        };
        let body = match self.read(body).await {
            Ok(body) => body,
            Err(why) => return self.unreadable(&mut outcome, why),
        };
        let call = Arc::new(Call { entry, body, api });
        match self.decide(&call, |call| call.run(false), asked).await {
            Ok(reached) => self.conclude(reached, gate, arrived, &mut outcome).await,
            Err(Refused { reason, detail }) => self.refuse(&mut outcome, reason, &detail),
        }
    }

    /// Decides at once, or else where there is time to verify.
    async fn decide<Q: Question>(
        &self,
        question: &Arc<Q>,
        at_once: impl FnOnce(&Q) -> Result<Q::Answer, Deferred>,
        (source, arrived): (Source, Instant),
    ) -> Result<Q::Answer, Refused> {
        match catch_unwind(AssertUnwindSafe(|| at_once(question))) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(deferred)) => {
                let later = self.0.checks.desk().decide_later(question, Later::Costly(deferred), source, arrived);
                Box::pin(later).await.map(|decided| decided.answer)
            }
            Err(_panic) => Err(Refused::panicked()),
        }
    }

    async fn conclude(
        &self,
        reached: Reached,
        gate: &Arc<Gate>,
        arrived: Instant,
        outcome: &mut Outcome<'_>,
    ) -> Response<Bytes> {
        match reached {
            Reached::Refused(decision) => {
                let response = answer::refusal(&decision);
                outcome.finish(decision, "", "");
                response
            }
            Reached::Unreadable(decision, why) => {
                let response = answer::unreadable(&decision, &why);
                outcome.finish(decision, "", "");
                response
            }
            Reached::Decided(decisions) => {
                let desk = self.0.checks.desk();
                let response = answer::decisions(&decisions, desk.grant_request_url.as_deref());
                for Made { decision, method, path, .. } in decisions.all {
                    if outcome.is_finished() {
                        desk.telemetry.begin_at(Door::Authzen, arrived).finish(decision, &method, &path);
                    } else {
                        outcome.finish(decision, &method, &path);
                    }
                }
                response
            }
            Reached::Search(begun) => self.search(*begun, gate, outcome).await,
        }
    }

    /// Searches, away from the threads that answer checks.
    async fn search(&self, begun: Begun, gate: &Arc<Gate>, outcome: &mut Outcome<'_>) -> Response<Bytes> {
        let config = &self.0.config;
        if begun.part == Part::Resource && !answer::can_list(begun.wanted.resource_type(), config) {
            let why = "resources of this type are the application's own: only it can list them";
            self.refuse(outcome, Reason::InputMalformed, why);
            return answer::error(StatusCode::NOT_IMPLEMENTED, why);
        }
        let Ok(turn) = Arc::clone(&self.0.searches).try_acquire_owned() else {
            return self.refuse(outcome, Reason::SystemOverload, "another search is under way");
        };
        let (gate, config) = (Arc::clone(gate), Arc::clone(config));
        let searched = tokio::task::spawn_blocking(move || {
            let found = find(&begun, &gate, &config);
            drop(turn);
            (begun, found)
        });
        match searched.await {
            Ok((begun, Some(found))) => {
                outcome.forget();
                answer::found(begun.part, &begun.wanted, &found, &begun.page, &self.0.config)
            }
            Ok((_, None)) => self.refuse(outcome, Reason::SystemStale, "the state is not fresh enough to search"),
            Err(_panicked) => self.refuse(outcome, Reason::SystemInternal, "the search panicked"),
        }
    }

    async fn read<B>(&self, body: B) -> Result<Bytes, &'static str>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Config { max_body_bytes, read_timeout, .. } = *self.0.config;
        match tokio::time::timeout(read_timeout, Limited::new(body, max_body_bytes).collect()).await {
            Ok(Ok(whole)) => Ok(whole.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err("the body is larger than the limit allows"),
            Ok(Err(_broken)) => Err("the body was cut short"),
            Err(_elapsed) => Err("the body did not arrive in time"),
        }
    }

    fn refuse(&self, outcome: &mut Outcome<'_>, reason: Reason, detail: &str) -> Response<Bytes> {
        let decision = self.0.checks.desk().refusal(reason, detail);
        let response = answer::refusal(&decision);
        outcome.finish(decision, "", "");
        response
    }

    fn unreadable(&self, outcome: &mut Outcome<'_>, why: &'static str) -> Response<Bytes> {
        let decision = self.0.checks.desk().refusal(Reason::InputMalformed, why);
        let response = answer::unreadable(&decision, why);
        outcome.finish(decision, "", "");
        response
    }
}

/// Finds a page; `None` when the state is too old to tell.
fn find(begun: &Begun, gate: &Gate, config: &Config) -> Option<crate::authz::Found> {
    let Begun { asker, part, wanted, page, least } = begun;
    // It was on the list a moment ago.
    let may_assert = config.caller(asker).map_or(&[][..], |caller| &caller.may_assert);
    let asker = Asker { id: asker, may_assert };
    let evaluation = crate::authz::Evaluation { min_revision: *least, ..wanted.evaluation() };
    let search = Search { evaluation: &evaluation, asker, after: &page.after, limit: page.limit };
    gate.hold().search(*least, |inputs| match part {
        Part::Subject => match Subject::prefix(wanted.subject_type(), config) {
            Some(prefix) => search.subjects(prefix, inputs),
            None => crate::authz::Found::default(),
        },
        Part::Resource if wanted.resource_type() == super::names::ROUTE => search.routes(inputs),
        Part::Resource if wanted.resource_type() == super::names::SERVICE => search.services(inputs),
        Part::Resource => crate::authz::Found::default(),
        Part::Action => search.actions(inputs),
    })
}

/// The id that the caller gave its request.
fn request_id(headers: &HeaderMap) -> Result<Option<HeaderValue>, &'static str> {
    let mut all = headers.get_all(REQUEST_ID).iter();
    match (all.next(), all.next()) {
        (_, Some(_)) => Err("several `X-Request-ID`"),
        (Some(id), None) if id.len() > MAX_REQUEST_ID => Err("`X-Request-ID` is too long"),
        (id, None) => Ok(id.cloned()),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(kind), None) = (types.next().and_then(|kind| kind.to_str().ok()), types.next()) else { return false };
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

fn trace(outcome: &mut Outcome<'_>, headers: &HeaderMap) {
    let all: Vec<_> = headers
        .iter()
        .map(|(name, value)| Header { name: name.as_str().as_bytes(), value: value.as_bytes() })
        .collect();
    outcome.trace(&all);
}

fn not_allowed(allowed: &'static str) -> Response<Bytes> {
    let mut response = answer::error(StatusCode::METHOD_NOT_ALLOWED, "the method is not allowed here");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

// === impl Place ===

impl<'a> Place<'a> {
    fn take(admission: &'a Admission) -> Option<Self> {
        admission.enter().map(|_at_once| Self(admission))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}
