//! The outcome of one check: the only thing that writes its metric, its record and its span.
//!
//! Plane: hot path. INVARIANT: a check that has begun is told exactly once. One that is cancelled or panics before it
//! has a decision is told as `system.internal`, by `Drop`: nobody got an allow from it.

use std::time::{Duration, Instant};

use super::Telemetry;
use super::records::Record;
use super::spans::Parent;
use crate::authz::{Decision, DecisionId, Door, Header, Reason};

/// A check under way.
#[derive(Debug)]
#[must_use = "a check that is dropped counts as `system.internal`"]
pub struct Outcome<'a> {
    telemetry: &'a Telemetry,
    door: Door,
    started: Instant,
    parent: Option<Parent>,
    /// Once it has been told.
    took: Option<Duration>,
}

// === impl Outcome ===

impl<'a> Outcome<'a> {
    pub(super) const fn begin(telemetry: &'a Telemetry, door: Door, started: Instant) -> Self {
        Self { telemetry, door, started, parent: None, took: None }
    }

    /// Takes the trace context out of the check's headers, if anything is traced.
    pub fn trace(&mut self, headers: &[Header<'_>]) {
        if let Some(tracer) = &self.telemetry.tracer {
            self.parent = tracer.parent(headers);
        }
    }

    /// Tells of the decision. `path` may carry a query, which is left out. A second call does nothing.
    pub fn finish(&mut self, decision: Decision, method: &str, path: &str) {
        if self.took.is_some() {
            return;
        }
        let duration = self.started.elapsed();
        self.took = Some(duration);
        self.telemetry.metrics.check(self.door, decision.reason, decision.cached, duration);
        if let (Some(tracer), Some(parent)) = (&self.telemetry.tracer, self.parent.take()) {
            tracer.record(&parent, self.telemetry.clock.now().wall, self.door, &decision, method, duration);
        }
        self.telemetry.records.push(|| Record::new(self.door, decision, method, path, duration));
    }

    /// Tells nothing: it turned out to be no check.
    pub fn forget(&mut self) {
        self.took.get_or_insert_with(|| self.started.elapsed());
    }

    /// Whether the outcome has been told.
    pub fn is_finished(&self) -> bool {
        self.took.is_some()
    }

    /// From its arrival to its decision, once that has been told.
    pub const fn took(&self) -> Option<Duration> {
        self.took
    }
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        if self.took.is_none() {
            let id = DecisionId::new(self.telemetry.clock.now().wall);
            self.finish(Decision::refuse(id, Reason::SystemInternal, "the check ended before it was answered"), "", "");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::SystemClock;
    use crate::telemetry::{Output, Records, RecordsConfig, SidecarMetrics};

    fn count(telemetry: &Telemetry, reason: &str) -> u64 {
        let text = telemetry.metrics().exposition().render();
        let line = text
            .lines()
            .find(|l| l.contains("cached=\"false\"") && l.contains("door=\"check\"") && l.contains(reason))
            .unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    fn telemetry(output: Output) -> Arc<Telemetry> {
        let metrics = Arc::new(SidecarMetrics::new().unwrap());
        let records = Records::start(RecordsConfig { output, queue: 100 }, metrics.records_dropped().clone()).unwrap();
        Telemetry::new(metrics, records, None, Arc::new(SystemClock::new()))
    }

    #[test]
    fn told_once_and_when_dropped_as_internal() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("records.jsonl");
        let telemetry = telemetry(Output::File { path: file.clone(), max_bytes: 1 << 20, keep: 2 });
        let id = DecisionId::new(telemetry.clock.now().wall);
        let mut outcome = telemetry.begin(Door::Check);
        outcome.finish(Decision::refuse(id, Reason::SystemOverload, "full"), "GET", "/a?b");
        outcome.finish(Decision::refuse(id, Reason::SystemStale, "old"), "GET", "/a?b");
        drop(outcome);
        assert_eq!((count(&telemetry, "system.overload"), count(&telemetry, "system.stale")), (1, 0));
        assert_eq!(count(&telemetry, "system.internal"), 0);

        drop(telemetry.begin(Door::Check));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _outcome = telemetry.begin(Door::Check);
            panic!("as an engine's bug would");
        }));
        assert!(panicked.is_err());
        assert_eq!(count(&telemetry, "system.internal"), 2);

        assert!(telemetry.records().shutdown(std::time::Duration::from_secs(10)));
        let written = std::fs::read_to_string(file).unwrap();
        let reasons: Vec<String> = written
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["reason"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(reasons, ["system.overload", "system.internal", "system.internal"]);
    }
}
