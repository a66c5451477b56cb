//! A check that is not decided at once: on the verification pool, and after a use of a grant has come.
//!
//! Plane: hot path, off the warm one. The question stays with the one who waits: when that goes away, the job in the pool
//! finds nothing left to do. INVARIANT: one that finds no room to be verified, or waits too long for it, is refused; a
//! panic there is a refusal too.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use prometheus::IntGauge;
use tokio::sync::oneshot;

use super::Desk;
use crate::authz::{Decision, Deferred, Reason, Request};
use crate::cache::{Admission, QueueFull, Source, Turn};
use crate::object::GrantId;
use crate::telemetry::Shed;

/// Why a check is not decided at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Later {
    /// It takes the verification of a signature.
    Costly(Deferred),
    /// It takes a use of this grant, which is on its way.
    Awaits(GrantId),
}

/// A request that any thread can decide on, as often as it takes.
pub(crate) trait Question: Send + Sync + 'static {
    /// What a door makes of a decision while the request is at hand.
    type Answer: Send + 'static;

    /// Has it decided. `None` when it cannot be read, which it could before.
    fn decide<E>(
        &self,
        by: impl FnOnce(&Request<'_>) -> Result<Decision, E>,
    ) -> Option<Result<Decided<Self::Answer>, E>>;
}

/// What was decided, with no part that borrows from the request.
#[derive(Debug)]
pub(crate) struct Decided<A> {
    pub(crate) decision: Decision,
    pub(crate) answer: A,
}

/// A denial that no engine was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    pub(crate) detail: Cow<'static, str>,
}

/// Whether it has been decided on before, and a proof of possession of its has been used up by that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    No,
    Yes,
}

/// Counted among the checks that wait to be verified, until it is dropped.
struct Waiting(IntGauge);

/// Counted among those that wait for their verification, until it is dropped.
struct Verifying<'a>(&'a Admission);

// === impl Desk ===

impl Desk {
    /// Decides, once what it takes is there or is known not to come. `arrived` is when the request did.
    pub(crate) async fn decide_later<Q: Question>(
        &self,
        question: &Arc<Q>,
        later: Later,
        source: Source,
        arrived: Instant,
    ) -> Result<Decided<Q::Answer>, Refused> {
        self.decide_later_as(question, (later, Again::No), source, arrived).await
    }

    /// The same, also for what has been decided on before.
    pub(super) async fn decide_later_as<Q: Question>(
        &self,
        question: &Arc<Q>,
        (later, again): (Later, Again),
        source: Source,
        arrived: Instant,
    ) -> Result<Decided<Q::Answer>, Refused> {
        let grant = match later {
            Later::Awaits(grant) => grant,
            Later::Costly(deferred) => {
                let decided = self.verified(question, (deferred, again), source).await?;
                match decided.decision.awaits {
                    Some(grant) => grant,
                    None => return Ok(decided),
                }
            }
        };
        self.with_use(question, grant, source, arrived).await
    }

    /// Decides on the verification pool.
    pub(super) async fn verified<Q: Question>(
        &self,
        question: &Arc<Q>,
        (deferred, again): (Deferred, Again),
        source: Source,
    ) -> Result<Decided<Q::Answer>, Refused> {
        let metrics = self.telemetry.metrics();
        let Some(_verifying) = Verifying::begin(&self.admission) else {
            metrics.shed(Shed::Cold).inc();
            return Err(Refused::overload("no time to verify while so many checks are under way"));
        };
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting::begin(metrics.verification_waiting(deferred));
        let (decide, weak) = (Arc::clone(&self.decide), Arc::downgrade(question));
        let submitted = self.verification.submit(deferred, source, move |turn| {
            drop(waiting);
            let Some(question) = weak.upgrade() else { return };
            let decided = match turn {
                Turn::Now => question.decide(|request| {
                    Ok::<_, Infallible>(match again {
                        Again::No => decide.check_deferred(request),
                        Again::Yes => decide.check_again_deferred(request),
                    })
                }),
                Turn::TooLate | Turn::MadeRoom => None,
            };
            // Before the answer is there: who waits for it takes the question back then.
            drop(question);
            let _gone = reply.send(decided);
        });
        match submitted {
            Ok(limit) => metrics.verification_limit().set(i64::try_from(limit).unwrap_or(i64::MAX)),
            Err(full @ QueueFull) => {
                metrics.verification_shed(deferred).inc();
                return Err(Refused { reason: Reason::SystemOverload, detail: full.to_string().into() });
            }
        }
        match answer.await {
            Ok(Some(Ok(decided))) => Ok(decided),
            Ok(None) => {
                metrics.verification_shed(deferred).inc();
                Err(Refused::overload("the check waited too long for its verification"))
            }
            Err(_dropped) => Err(Refused::panicked()),
        }
    }
}

// === impl Refused ===

impl Refused {
    pub(super) const fn overload(detail: &'static str) -> Self {
        Self { reason: Reason::SystemOverload, detail: Cow::Borrowed(detail) }
    }

    /// A check that panicked.
    pub(crate) fn panicked() -> Self {
        tracing::error!("a check panicked and is denied");
        Self { reason: Reason::SystemInternal, detail: Cow::Borrowed("the check panicked") }
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
