//! One call: read, decide, answer. Plane: hot path.
//!
//! INVARIANT: every way out of [`Door::check`] is an allow that the engine made or a denial. From the message to the
//! answer the path is synchronous; a panic in it is caught and is a denial. A check counts from its arrival on, before a
//! thread is waited for. One that needs a signature verified is decided on the verification pool, so that it delays no
//! other; one that finds too many under way or no room there, or waits too long, is a denial. Each check has one outcome,
//! which tells of it also when the client goes away.
//! Long because every way that a check can take is read here.

use core::net::IpAddr;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use prometheus::IntGauge;
use tokio::sync::oneshot;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;
use tower::Service;

use super::body::{BadMessage, Budget, Message, Reply, read_message};
use super::request::{self, HeaderLimits};
use super::{Config, response};
use crate::authz::{self, Decision, DecisionId, Deferred, Reason};
use crate::cache::{Admission, AdmissionLimits, Gate, QueueFull, Source, Turn, VerificationPool};
use crate::grant::purse::Purse;
use crate::object::GrantId;
use crate::telemetry::{Outcome, Shed, Telemetry};

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const HEALTH: &str = "/grpc.health.v1.Health/";

/// What every connection of the door shares.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) core: Arc<Core>,
    verification: VerificationPool,
    telemetry: Arc<Telemetry>,
    config: Config,
    admission: Admission,
    /// What the times of the admission are counted from.
    since: Instant,
    connections: AtomicU64,
    buffered: Budget,
    health: HealthServer<HealthService>,
}

/// From a message to its answer, on whatever thread.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) decide: Decide,
    limits: HeaderLimits,
    grant_request_url: Option<String>,
}

/// Why a check is not answered at once.
enum Later {
    /// It takes the verification of a signature.
    Costly(Costly),
    /// It takes a use of this grant, which is on its way.
    Awaits(GrantId),
}

/// What was decided, once no part of it borrows from the message.
pub(super) struct Decided {
    pub(super) answer: Bytes,
    pub(super) decision: Decision,
    pub(super) method: String,
    pub(super) path: String,
}

/// Counted among the checks that wait to be verified, until it is dropped.
struct Waiting(IntGauge);

/// What decides. Behind a function, so that tests can give any answer.
pub(super) enum Decide {
    Gate(Arc<Gate>),
    #[cfg(test)]
    Test(Box<dyn Fn(&authz::Request<'_>) -> Decision + Send + Sync>, crate::clock::SharedClock),
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

/// A check that takes the verification of a signature.
struct Costly {
    deferred: Deferred,
    /// The address that Envoy tells of its client.
    client: Option<IpAddr>,
}

/// Counted among those that wait for their verification, until it is dropped.
struct Verifying<'a>(&'a Admission);

// === impl Door ===

impl Door {
    pub(super) fn new(
        decide: Decide,
        verification: VerificationPool,
        telemetry: Arc<Telemetry>,
        config: Config,
        health: HealthServer<HealthService>,
    ) -> Self {
        let buffered = Budget::new(config.max_buffered_bytes);
        let limits = HeaderLimits { count: config.max_headers, bytes: config.max_header_bytes };
        let core = Arc::new(Core { decide, limits, grant_request_url: config.grant_request_url.clone() });
        let admission =
            Admission::new(AdmissionLimits { max: config.max_concurrent_checks, adaptive: config.adaptive });
        let (since, connections) = (Instant::now(), AtomicU64::new(0));
        Self { core, verification, telemetry, config, admission, since, connections, buffered, health }
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
        let place = self.admission.enter();
        Arrival { door: Arc::clone(self), connection, at: Instant::now(), place }
    }

    /// Reads a check and answers it, length prefix included.
    async fn check<B>(&self, arrival: &Arrival, body: B) -> Bytes
    where
        B: hyper::body::Body<Data = Bytes>,
    {
        let mut outcome = self.telemetry.begin_at(authz::Door::ExtAuthz, arrival.at);
        let Some(at_once) = arrival.place else {
            self.telemetry.metrics().shed(Shed::All).inc();
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
                    self.observe(arrival.at, outcome.took(), at_once);
                    answer
                }
                // Boxed, because it is rare: otherwise every check would be as large as one that waits.
                Err(later) => {
                    self.observe(arrival.at, Some(arrival.at.elapsed()), at_once);
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
        self.answer(message, &mut self.telemetry.begin(authz::Door::ExtAuthz)).ok()
    }

    /// Lets the limits follow. No clock is read for that.
    fn observe(&self, arrival: Instant, took: Option<Duration>, at_once: usize) {
        let Some(took) = took else { return };
        let now = arrival.saturating_duration_since(self.since).saturating_add(took);
        if let Some(limits) = self.admission.observe(now, took, at_once) {
            self.telemetry.metrics().limits_set(limits);
        }
    }

    /// Answers at once, unless that takes the verification of a signature, or a use of a grant that is on its way.
    fn answer(&self, message: &[u8], outcome: &mut Outcome<'_>) -> Result<Bytes, Later> {
        let answered = catch_unwind(AssertUnwindSafe(|| match request::decode(message, self.core.limits) {
            Ok(request) => {
                outcome.trace(&request.headers);
                let decision = self.core.decide.check_unless_costly(&request);
                let decision =
                    decision.map_err(|deferred| Later::Costly(Costly { deferred, client: request.peer.address }))?;
                if let Some(grant) = decision.awaits {
                    return Err(Later::Awaits(grant));
                }
                let answer = self.core.encode(&decision, &request);
                outcome.finish(decision, request.method, request.path);
                Ok(answer)
            }
            Err(unreadable) => Ok(self.refuse(outcome, Reason::InputMalformed, &unreadable.to_string())),
        }));
        answered.unwrap_or_else(|_panic| Ok(self.panicked(outcome)))
    }

    async fn answer_later(
        &self,
        message: &Message<'_>,
        later: Later,
        arrival: &Arrival,
        outcome: &mut Outcome<'_>,
    ) -> Bytes {
        let awaited = match later {
            Later::Awaits(grant) => Err(grant),
            Later::Costly(Costly { deferred, client }) => {
                let source = Source::of(client, arrival.connection);
                self.answer_verified(message, deferred, source, outcome).await
            }
        };
        match awaited {
            Ok(answer) => answer,
            Err(grant) => self.answer_with_use(message, grant, arrival.at, outcome).await,
        }
    }

    /// Answers from the verification pool, unless it takes a use of a grant that is on its way. The message stays with the one who waits: when the client goes away, the
    /// job finds nothing left to do.
    async fn answer_verified(
        &self,
        message: &Message<'_>,
        deferred: Deferred,
        source: Source,
        outcome: &mut Outcome<'_>,
    ) -> Result<Bytes, GrantId> {
        let metrics = self.telemetry.metrics();
        let Some(_verifying) = Verifying::begin(&self.admission) else {
            metrics.shed(Shed::Cold).inc();
            let detail = "no time to verify while so many checks are under way";
            return Ok(self.refuse(outcome, Reason::SystemOverload, detail));
        };
        let message = Arc::new(message.share());
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting::begin(metrics.verification_waiting(deferred));
        let (core, weak) = (Arc::clone(&self.core), Arc::downgrade(&message));
        let submitted = self.verification.submit(deferred, source, move |turn| {
            drop(waiting);
            let Some(message) = weak.upgrade() else { return };
            let decided = match turn {
                Turn::Now => core.decide(&message),
                Turn::TooLate | Turn::MadeRoom => None,
            };
            let _gone = reply.send(decided);
        });
        match submitted {
            Ok(limit) => metrics.verification_limit().set(i64::try_from(limit).unwrap_or(i64::MAX)),
            Err(full @ QueueFull) => {
                metrics.verification_shed(deferred).inc();
                return Ok(self.refuse(outcome, Reason::SystemOverload, &full.to_string()));
            }
        }
        let decided = answer.await;
        drop(message);
        match decided {
            Ok(Some(Decided { decision: Decision { awaits: Some(grant), .. }, .. })) => Err(grant),
            Ok(Some(Decided { answer, decision, method, path })) => {
                outcome.finish(decision, &method, &path);
                Ok(answer)
            }
            Ok(None) => {
                metrics.verification_shed(deferred).inc();
                let detail = "the check waited too long for its verification";
                Ok(self.refuse(outcome, Reason::SystemOverload, detail))
            }
            Err(_dropped) => Ok(self.panicked(outcome)),
        }
    }

    pub(super) fn panicked(&self, outcome: &mut Outcome<'_>) -> Bytes {
        tracing::error!("a check panicked and is denied");
        self.refuse(outcome, Reason::SystemInternal, "the check panicked")
    }

    fn refuse(&self, outcome: &mut Outcome<'_>, reason: Reason, detail: &str) -> Bytes {
        let decision = Decision::refuse(DecisionId::new(self.core.decide.now().wall), reason, detail);
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
            self.door.admission.leave();
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

// === impl Core ===

impl Core {
    /// Decides on a message that has been read before, whatever it costs.
    fn decide(&self, message: &[u8]) -> Option<Decided> {
        self.decide_by(message, |request| self.decide.check_deferred(request))
    }

    /// Decides again on a message that waited for a use of a grant.
    pub(super) fn decide_again(&self, message: &[u8]) -> Option<Decided> {
        self.decide_by(message, |request| self.decide.check_again(request))
    }

    fn decide_by(&self, message: &[u8], decide: impl FnOnce(&authz::Request<'_>) -> Decision) -> Option<Decided> {
        let request = request::decode(message, self.limits).ok()?;
        let decision = decide(&request);
        let answer = self.encode(&decision, &request);
        Some(Decided { answer, decision, method: request.method.to_owned(), path: request.path.to_owned() })
    }

    fn encode(&self, decision: &Decision, request: &authz::Request<'_>) -> Bytes {
        if decision.permit().is_none()
            && let Some(document) = self.decide.resource_metadata(request)
        {
            return response::encode_document(decision, &document);
        }
        response::encode(decision, Some(request), self.grant_request_url.as_deref())
    }
}

// === impl Waiting ===

impl Waiting {
    fn begin(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

// === impl Decide ===

impl Decide {
    fn check_unless_costly(&self, request: &authz::Request<'_>) -> Result<Decision, Deferred> {
        match self {
            Self::Gate(gate) => gate.check_unless_costly(request),
            #[cfg(test)]
            Self::Test(decide, _) => Ok(decide(request)),
        }
    }

    fn check_deferred(&self, request: &authz::Request<'_>) -> Decision {
        match self {
            Self::Gate(gate) => gate.check_deferred(request),
            #[cfg(test)]
            Self::Test(decide, _) => decide(request),
        }
    }

    fn check_again(&self, request: &authz::Request<'_>) -> Decision {
        match self {
            Self::Gate(gate) => gate.check_again(request),
            #[cfg(test)]
            Self::Test(decide, _) => decide(request),
        }
    }

    /// What anybody may know of an MCP server, if a request that was denied asks for that.
    fn resource_metadata(&self, request: &authz::Request<'_>) -> Option<Bytes> {
        match self {
            Self::Gate(gate) => gate.resource_metadata(request),
            #[cfg(test)]
            Self::Test(..) => None,
        }
    }

    /// The uses of grants that it may spend, if it counts any.
    pub(super) fn purse(&self) -> Option<&Purse> {
        match self {
            Self::Gate(gate) => Some(gate.state().purse()),
            #[cfg(test)]
            Self::Test(..) => None,
        }
    }

    pub(super) fn now(&self) -> crate::clock::Now {
        match self {
            Self::Gate(gate) => gate.clock().now(),
            #[cfg(test)]
            Self::Test(_, clock) => clock.now(),
        }
    }
}

impl std::fmt::Debug for Decide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decide").finish_non_exhaustive()
    }
}

// === impl Verifying ===

impl<'a> Verifying<'a> {
    fn begin(admission: &'a Admission) -> Option<Self> {
        admission.enter_verification().then_some(Self(admission))
    }
}

impl Drop for Verifying<'_> {
    fn drop(&mut self) {
        self.0.verified();
    }
}
