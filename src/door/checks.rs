//! One check, from a request to its decision: what forward-auth, AuthZEN and the proxy ask.
//!
//! Plane: hot path. INVARIANT: every way out is an allow that the engine made or a denial; each check takes a place among
//! those under way and has one outcome, also when it panics or is dropped before its end. A request that the caches and the
//! policies decide on alone is decided on the caller's thread, without a wait but for the few that measure one.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::desk::Place;
use super::later::Again;
use super::{Asked, Config, Decide, Decided, Desk, Later, Question, Refused};
use crate::authz::{Decision, Door, Reason, Request};
use crate::cache::{Gate, Source, VerificationPool};
use crate::telemetry::{OpenRecord, Outcome, Shed, Telemetry};

/// Decides on requests, for every door. Cheap to clone; clones share.
#[derive(Debug, Clone)]
pub struct Checks {
    desk: Arc<Desk>,
    limits: (usize, usize),
}

/// A request and what was decided on it.
#[derive(Debug)]
pub struct Checked {
    /// The decision; with its permit when it is an allow.
    pub decision: Decision,
    /// The request, handed back.
    pub request: Asked,
    pub(super) grant_request_url: Option<Arc<str>>,
    /// Of an allow at the door that forwards: what became of it is told to this.
    pub(super) record: OpenRecord,
}

// === impl Checks ===

impl Checks {
    /// With verification threads of its own, which are an error when they cannot be started.
    pub fn new(gate: Arc<Gate>, telemetry: Arc<Telemetry>, config: &Config) -> io::Result<Self> {
        let verification = VerificationPool::start(config.verification)?;
        Ok(Self::on(Decide::Gate(gate), verification, telemetry, config))
    }

    pub(crate) fn on(
        decide: Decide,
        verification: VerificationPool,
        telemetry: Arc<Telemetry>,
        config: &Config,
    ) -> Self {
        let limits = (config.max_headers, config.max_header_bytes);
        Self { desk: Arc::new(Desk::new(decide, verification, telemetry, config)), limits }
    }

    /// Decides one request. Never fails: what cannot be decided is a denial. One that is dropped before it has ended is
    /// told of as `system.internal`.
    pub async fn check(&self, request: Asked) -> Checked {
        self.check_since(Instant::now(), request).await
    }

    /// The same for a request that arrived then, and had to be read first.
    pub async fn check_since(&self, arrived: Instant, request: Asked) -> Checked {
        let mut outcome = self.desk.telemetry.begin_at(request.door, arrived);
        let (decision, request) = self.decide(request, Again::No, arrived, &mut outcome).await;
        self.decided(decision, request, &mut outcome)
    }

    /// Decides, and tells nobody yet. What came `arrived` has not waited longer than since then.
    pub(super) async fn decide(
        &self,
        request: Asked,
        again: Again,
        arrived: Instant,
        outcome: &mut Outcome<'_>,
    ) -> (Decision, Asked) {
        let desk = &*self.desk;
        let Some(place) = Place::take(&desk.admission) else {
            desk.telemetry.metrics().shed(Shed::All).inc();
            return (self.refusal(&Refused::overload("too many checks are under way")), request);
        };
        let (headers, bytes) = self.limits;
        if !request.is_within(headers, bytes) {
            let detail = "the request has more headers than the limit allows".into();
            return (self.refusal(&Refused { reason: Reason::InputMalformed, detail }), request);
        }
        if desk.is_sampled() {
            // When this task is here, a thread has it already. How long it waits to have one again is what the limits
            // follow; the time since its arrival would tell them of slow bodies, or of nothing.
            let since = Instant::now();
            tokio::task::yield_now().await;
            desk.observe(since, Some(since.elapsed()), place.at_once);
        }
        match at_once(desk, &request, again, outcome) {
            Ok(Ok(decision)) => (decision, request),
            Ok(Err(later)) => Box::pin(self.decide_later(request, (later, again), arrived)).await,
            Err(refused) => (self.refusal(&refused), request),
        }
    }

    async fn decide_later(&self, request: Asked, later: (Later, Again), arrived: Instant) -> (Decision, Asked) {
        // All whose client is not known are one source: then nothing tells them apart.
        let source = Source::of(request.peer.address, 0);
        let question = Arc::new(request);
        let decided = self.desk.decide_later_as(&question, later, source, arrived).await;
        let request = Arc::unwrap_or_clone(question);
        match decided {
            Ok(Decided { decision, answer: () }) => (decision, request),
            Err(refused) => (self.refusal(&refused), request),
        }
    }

    /// A denial for what a door could not read, or does not take from who sent it. It has an outcome as any other.
    pub fn refuse(&self, request: Asked, reason: Reason, detail: &str) -> Checked {
        let mut outcome = self.desk.telemetry.begin(request.door);
        let decision = self.refusal(&Refused { reason, detail: detail.to_owned().into() });
        self.decided(decision, request, &mut outcome)
    }

    /// What anybody may know of an MCP server, if a request that was denied asks for that: [`answer::document`] makes the
    /// response. Not for a door whose proxy takes a 200 for an allow.
    ///
    /// [`answer::document`]: super::answer::document
    pub fn resource_metadata(&self, method: &str, host: &str, path: &str) -> Option<Bytes> {
        self.gate()?.resource_metadata(method, host, path)
    }

    /// Which of these tools the sender of an allowed `tools/list` may use, all by one state; as long as what was asked about
    /// at most ([`MAX_LISTED_TOOLS`](crate::authz::MAX_LISTED_TOOLS)). A panic is no tool at all.
    pub fn allowed_tools(&self, request: &Asked, tools: &[&str]) -> Vec<bool> {
        let asked =
            catch_unwind(AssertUnwindSafe(|| self.gate().map(|gate| gate.allowed_tools(&request.lend(), tools))));
        asked.ok().flatten().unwrap_or_default()
    }

    /// What counts the checks and records them.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.desk.telemetry
    }

    /// The gate that decides, for a door that reads the state beside its checks; `None` in tests without one.
    pub fn gate(&self) -> Option<&Arc<Gate>> {
        self.desk.decide.gate()
    }

    pub(crate) fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    pub(super) fn refusal(&self, refused: &Refused) -> Decision {
        self.desk.refusal(refused.reason, &refused.detail)
    }

    pub(super) fn decided(&self, decision: Decision, request: Asked, outcome: &mut Outcome<'_>) -> Checked {
        let (method, path) = (&request.method, &request.path);
        let record = match request.door {
            Door::Proxy if decision.reason.is_allow() => {
                outcome.finish_open(&self.desk.telemetry, decision.clone(), method, path)
            }
            _ => {
                outcome.finish(decision.clone(), method, path);
                OpenRecord::default()
            }
        };
        Checked { decision, request, grant_request_url: self.desk.grant_request_url.clone(), record }
    }
}

/// Decides on this thread, unless that takes more than it. A panic is a refusal.
fn at_once(
    desk: &Desk,
    request: &Asked,
    again: Again,
    outcome: &mut Outcome<'_>,
) -> Result<Result<Decision, Later>, Refused> {
    let decided = catch_unwind(AssertUnwindSafe(|| {
        let request = request.lend();
        let decision = match again {
            Again::No => {
                outcome.trace(&request.headers);
                desk.decide.check_unless_costly(&request)
            }
            Again::Yes => desk.decide.check_again(&request),
        };
        let decision = decision.map_err(Later::Costly)?;
        match decision.awaits {
            Some(grant) => Err(Later::Awaits(grant)),
            None => Ok(decision),
        }
    }));
    decided.map_err(|_panic| Refused::panicked())
}

// === impl Checked ===

impl Checked {
    /// The record of an allowed request that the door forwards, which is written with what became of it.
    #[must_use = "what is dropped is written as that of a client that is gone"]
    pub fn open_record(&mut self) -> OpenRecord {
        self.record.take()
    }

    /// For tests of what happens after a check.
    #[cfg(any(test, feature = "testing"))]
    pub fn for_test(decision: Decision, request: Asked) -> Self {
        Self { decision, request, grant_request_url: None, record: OpenRecord::default() }
    }
}

impl Question for Asked {
    type Answer = ();

    fn decide<E>(&self, by: impl FnOnce(&Request<'_>) -> Result<Decision, E>) -> Option<Result<Decided<()>, E>> {
        Some(by(&self.lend()).map(|decision| Decided { decision, answer: () }))
    }
}

#[cfg(test)]
mod tests;
