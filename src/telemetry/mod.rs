//! What is told about each check: metrics, decision records, traces; and the process's own log.
//!
//! Plane: cross-cutting. INVARIANT: one [`Outcome`] per check writes all three, also when the check is cancelled or
//! panics. Nothing here waits: a record that does not fit is dropped and counted, a span that nobody samples is not
//! made. The record of what the reverse proxy lets through waits for the head of its answer, see [`OpenRecord`]. Labels are closed enums, never a workload; no token and no header value is ever written.

mod logging;
mod metrics;
mod open_record;
mod outcome;
mod records;
mod spans;

use std::sync::Arc;
use std::time::Instant;

#[cfg(test)]
pub(crate) use self::logging::detached;
pub use self::logging::{LevelHandle, LogConfig, LogError, LogFormat, Logging, init};
pub use self::metrics::{ControlMetrics, Exposition, KeyFetch, Shed, SidecarMetrics};
pub use self::open_record::{OpenRecord, Unanswered};
pub use self::outcome::Outcome;
pub use self::records::{Output, Records, RecordsConfig};
pub use self::spans::CheckTracer;

use crate::authz::Door;
use crate::clock::SharedClock;

/// Everything that a door tells its checks to.
#[derive(Debug)]
pub struct Telemetry {
    metrics: Arc<SidecarMetrics>,
    records: Records,
    tracer: Option<CheckTracer>,
    clock: SharedClock,
}

// === impl Telemetry ===

impl Telemetry {
    /// `tracer` comes from [`Logging::check_tracer`]; without one a check costs no span.
    pub fn new(
        metrics: Arc<SidecarMetrics>,
        records: Records,
        tracer: Option<CheckTracer>,
        clock: SharedClock,
    ) -> Arc<Self> {
        Arc::new(Self { metrics, records, tracer, clock })
    }

    /// A check begins.
    pub fn begin(&self, door: Door) -> Outcome<'_> {
        self.begin_at(door, Instant::now())
    }

    /// A check has begun at this time.
    pub const fn begin_at(&self, door: Door, started: Instant) -> Outcome<'_> {
        Outcome::begin(self, door, started)
    }

    /// The decision records, to flush on the way out.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<SidecarMetrics> {
        &self.metrics
    }
}
