//! One call: read, decide, answer. Plane: hot path.
//!
//! INVARIANT: every way out of [`Door::check`] is an allow that the engine made or a denial. From the message to the
//! answer the path is synchronous; a panic in it is caught and is a denial. A check counts from its arrival on, before a
//! thread is waited for. One that needs a signature verified is decided on the verification pool, so that it delays no
//! other; one that finds too many under way or no room there, or waits too long, is a denial. Each check has one outcome,
//! which tells of it also when the client goes away.

use core::net::IpAddr;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;
use tower::Service;

use super::body::{BadMessage, Budget, Message, Reply, read_message};
use super::request::{self, HeaderLimits};
use super::{Config, response};
use crate::authz::{self, Decision, Reason};
use crate::cache::Source;
use crate::door::{Decide, Decided, Desk, Later, Question, Refused};
use crate::telemetry::{Outcome, Shed};

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const HEALTH: &str = "/grpc.health.v1.Health/";

/// What every connection of the door shares.
#[derive(Debug)]
pub(super) struct Door {
    desk: Arc<Desk>,
    reads: Arc<Reads>,
    config: Config,
    connections: AtomicU64,
    buffered: Budget,
    health: HealthServer<HealthService>,
}

/// How a message becomes a request, on whatever thread, and a decision an answer.
#[derive(Debug)]
struct Reads {
    decide: Arc<Decide>,
    limits: HeaderLimits,
    grant_request_url: Option<Arc<str>>,
}

/// Why a message is not answered at once, and the address that Envoy tells of its client.
struct Postponed {
    later: Later,
    client: Option<IpAddr>,
}

/// A message that any thread can decide on.
struct Held {
    reads: Arc<Reads>,
    message: Bytes,
}

/// What is left of a message once it is decided on.
struct Answered {
    answer: Bytes,
    method: String,
    path: String,
}

/// A request that has arrived: from then on it has a place among the checks under way, if there was one.
pub(super) struct Arrival {
    door: Arc<Door>,
    /// The number of its connection.
    connection: u64,
    at: Instant,
    /// How many were under way, itself included.
    place: Option<usize>,
}

// === impl Door ===

impl Door {
    pub(super) fn new(desk: Arc<Desk>, config: Config, health: HealthServer<HealthService>) -> Self {
        let buffered = Budget::new(config.max_buffered_bytes);
        let limits = HeaderLimits { count: config.max_headers, bytes: config.max_header_bytes };
        let reads = Arc::new(Reads {
            decide: Arc::clone(&desk.decide),
            limits,
            grant_request_url: desk.grant_request_url.clone(),
        });
        Self { desk, reads, config, connections: AtomicU64::new(0), buffered, health }
    }

    pub(super) const fn config(&self) -> &Config {
        &self.config
    }

    /// The number of a new connection.
    pub(super) fn connect(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// A request arrives. Before a thread takes it up, so that the wait for that is seen.
    pub(super) fn arrive(self: &Arc<Self>, connection: u64) -> Arrival {
        let place = self.desk.admission.enter();
        Arrival { door: Arc::clone(self), connection, at: Instant::now(), place }
    }

    /// Reads a check and answers it, length prefix included.
    async fn check<B>(&self, arrival: &Arrival, body: B) -> Bytes
    where
        B: hyper::body::Body<Data = Bytes>,
    {
        let mut outcome = self.desk.telemetry.begin_at(authz::Door::ExtAuthz, arrival.at);
        let Some(at_once) = arrival.place else {
            self.desk.telemetry.metrics().shed(Shed::All).inc();
            // An answer before the end of a request resets its stream, and a connection with too many of those is closed:
            // to Envoy that is an error, no denial.
            let Config { max_message_bytes, message_timeout, .. } = self.config;
            let _unread = read_message(body, max_message_bytes, message_timeout, &self.buffered).await;
            return self.refuse(&mut outcome, Reason::SystemOverload, "too many checks are under way");
        };
        let Config { max_message_bytes, message_timeout, .. } = self.config;
        match read_message(body, max_message_bytes, message_timeout, &self.buffered).await {
            Ok(message) => match self.answer(&message, &mut outcome) {
                Ok(answer) => {
                    self.desk.observe(arrival.at, outcome.took(), at_once);
                    answer
                }
                // Boxed, because it is rare: otherwise every check would be as large as one that waits.
                Err(later) => {
                    self.desk.observe(arrival.at, Some(arrival.at.elapsed()), at_once);
                    Box::pin(self.answer_later(&message, later, arrival, &mut outcome)).await
                }
            },
            Err(bad) => {
                let detail = bad.to_string();
                let reason = match bad {
                    BadMessage::TooSlow | BadMessage::NoRoom => Reason::SystemOverload,
                    _ => Reason::InputMalformed,
                };
                self.refuse(&mut outcome, reason, &detail)
            }
        }
    }

    /// What [`Self::check`] does between a message and its answer.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn answer_now(&self, message: &[u8]) -> Option<Bytes> {
        self.answer(message, &mut self.desk.telemetry.begin(authz::Door::ExtAuthz)).ok()
    }

    /// Answers at once, unless that takes the verification of a signature, or a use of a grant that is on its way.
    fn answer(&self, message: &[u8], outcome: &mut Outcome<'_>) -> Result<Bytes, Postponed> {
        let answered = catch_unwind(AssertUnwindSafe(|| match request::decode(message, self.reads.limits) {
            Ok(request) => {
                outcome.trace(&request.headers);
                let postponed = |later| Postponed { later, client: request.peer.address };
                let decision = self.desk.decide.check_unless_costly(&request);
                let decision = decision.map_err(|deferred| postponed(Later::Costly(deferred)))?;
                if let Some(grant) = decision.awaits {
                    return Err(postponed(Later::Awaits(grant)));
                }
                let answer = self.reads.encode(&decision, &request);
                outcome.finish(decision, request.method, request.path);
                Ok(answer)
            }
            Err(unreadable) => Ok(self.refuse(outcome, Reason::InputMalformed, &unreadable.to_string())),
        }));
        answered.unwrap_or_else(|_panic| {
            let Refused { reason, detail } = Refused::panicked();
            Ok(self.refuse(outcome, reason, &detail))
        })
    }

    /// The message stays with this, which waits: when the client goes away, a job in the pool finds nothing left to do.
    async fn answer_later(
        &self,
        message: &Message<'_>,
        Postponed { later, client }: Postponed,
        arrival: &Arrival,
        outcome: &mut Outcome<'_>,
    ) -> Bytes {
        let source = Source::of(client, arrival.connection);
        let held = Arc::new(Held { reads: Arc::clone(&self.reads), message: message.share() });
        match self.desk.decide_later(&held, later, source, arrival.at).await {
            Ok(Decided { decision, answer: Answered { answer, method, path } }) => {
                outcome.finish(decision, &method, &path);
                answer
            }
            Err(Refused { reason, detail }) => self.refuse(outcome, reason, &detail),
        }
    }

    fn refuse(&self, outcome: &mut Outcome<'_>, reason: Reason, detail: &str) -> Bytes {
        let decision = self.desk.refusal(reason, detail);
        let answer = response::encode(&decision, None, None);
        outcome.finish(decision, "", "");
        answer
    }
}

// === impl Arrival ===

impl Arrival {
    /// Answers it.
    pub(super) async fn answer(mut self, request: Request<Incoming>) -> Result<Response<Reply>, Infallible> {
        let path = request.uri().path();
        if path == CHECK {
            let message = self.door.check(&self, request.into_body()).await;
            return Ok(grpc(Reply::Message(message)));
        }
        // What is no check takes no place of one, however long it lasts.
        self.leave();
        if path.starts_with(HEALTH) {
            let mut health = self.door.health.clone();
            return health.call(request).await.map(|response| response.map(Reply::Health));
        }
        let mut unimplemented = grpc(Reply::Done);
        unimplemented.headers_mut().insert("grpc-status", HeaderValue::from_static("12"));
        Ok(unimplemented)
    }

    fn leave(&mut self) {
        if self.place.take().is_some() {
            self.door.desk.admission.leave();
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.leave();
    }
}

fn grpc(body: Reply) -> Response<Reply> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

// === impl Reads ===

impl Reads {
    fn encode(&self, decision: &Decision, request: &authz::Request<'_>) -> Bytes {
        if decision.permit().is_none()
            && let Some(document) = self.decide.resource_metadata(request)
        {
            return response::encode_document(decision, &document);
        }
        response::encode(decision, Some(request), self.grant_request_url.as_deref())
    }
}

// === impl Held ===

impl Question for Held {
    type Answer = Answered;

    fn decide<E>(
        &self,
        by: impl FnOnce(&authz::Request<'_>) -> Result<Decision, E>,
    ) -> Option<Result<Decided<Answered>, E>> {
        let request = request::decode(&self.message, self.reads.limits).ok()?;
        Some(by(&request).map(|decision| {
            let answer = self.reads.encode(&decision, &request);
            let answer = Answered { answer, method: request.method.to_owned(), path: request.path.to_owned() };
            Decided { decision, answer }
        }))
    }
}
