//! What all doors of a process have in common, once: the gate, the verification threads, the count of checks under way.
//!
//! Plane: hot path. One admission and one pool for all doors, so that a flood at one is a flood at all and no door can take
//! more of the machine than is meant for checks. Holds no request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Config, Decide};
use crate::authz::{Decision, DecisionId, Reason};
use crate::cache::{Admission, AdmissionLimits, VerificationPool, coalesce};
use crate::telemetry::Telemetry;

/// One check in so many measures how long a thread has to be waited for.
const SAMPLED: u64 = 16;

/// Shared by every door.
#[derive(Debug)]
pub(crate) struct Desk {
    /// In an [`Arc`] of its own: a job that waits in the pool must not keep the pool.
    pub(crate) decide: Arc<Decide>,
    pub(super) verification: VerificationPool,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) admission: Admission,
    /// What the times of the admission are counted from.
    since: Instant,
    /// Checks that might have measured the wait.
    unsampled: AtomicU64,
    pub(crate) grant_request_url: Option<Arc<str>>,
}

/// A place among the checks under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    admission: &'a Admission,
    /// How many were under way, this one included.
    pub(super) at_once: usize,
}

// === impl Desk ===

impl Desk {
    pub(crate) fn new(
        decide: Decide,
        verification: VerificationPool,
        telemetry: Arc<Telemetry>,
        config: &Config,
    ) -> Self {
        let limits = AdmissionLimits { max: config.max_concurrent_checks, adaptive: config.adaptive };
        Self {
            decide: Arc::new(decide),
            verification,
            telemetry,
            admission: Admission::new(limits),
            since: Instant::now(),
            unsampled: AtomicU64::new(0),
            grant_request_url: config.grant_request_url.as_deref().map(Arc::from),
        }
    }

    /// Lets the limits follow. No clock is read for that.
    pub(crate) fn observe(&self, arrival: Instant, took: Option<Duration>, at_once: usize) {
        let Some(took) = took else { return };
        let now = arrival.saturating_duration_since(self.since).saturating_add(took);
        if let Some(limits) = self.admission.observe(now, took, at_once) {
            self.telemetry.metrics().limits_set(limits);
        }
    }

    /// Whether this check is to measure the wait for a thread.
    pub(super) fn is_sampled(&self) -> bool {
        self.unsampled.fetch_add(1, Ordering::Relaxed) % SAMPLED == SAMPLED - 1
    }

    /// A denial that no engine was asked for.
    pub(crate) fn refusal(&self, reason: Reason, detail: &str) -> Decision {
        if reason == Reason::SystemOverload {
            coalesce::has_refused();
        }
        Decision::refuse(DecisionId::new(self.decide.now().wall), reason, detail)
    }
}

// === impl Place ===

impl<'a> Place<'a> {
    pub(super) fn take(admission: &'a Admission) -> Option<Self> {
        admission.enter().map(|at_once| Self { admission, at_once })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.admission.leave();
    }
}
