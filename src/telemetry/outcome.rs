//! The outcome of one check: the only thing that writes its metric, its record and its span.
//!
//! Plane: hot path. INVARIANT: a check that has begun is told exactly once. One that is cancelled or panics before it
//! has a decision is told as `system.internal`, by `Drop`: nobody got an allow from it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::OpenRecord;
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
        if let Some(duration) = self.tell(&decision, method) {
            self.telemetry.records.push(|| Record::new(self.door, decision, method, path, duration));
        }
    }

    /// The same of an allowed request, but for its record: that is written when it is known what became of it.
    pub fn finish_open(
        &mut self,
        telemetry: &Arc<Telemetry>,
        decision: Decision,
        method: &str,
        path: &str,
    ) -> OpenRecord {
        let Some(duration) = self.tell(&decision, method) else { return OpenRecord::default() };
        let record = || Record::new(self.door, decision, method, path, duration);
        OpenRecord::new(telemetry, self.started + duration, record)
    }

    /// All but the record. What it took, unless it has been told.
    fn tell(&mut self, decision: &Decision, method: &str) -> Option<Duration> {
        if self.took.is_some() {
            return None;
        }
        let duration = self.started.elapsed();
        self.took = Some(duration);
        self.telemetry.metrics.check(self.door, decision.reason, decision.cached, duration);
        if let (Some(tracer), Some(parent)) = (&self.telemetry.tracer, self.parent.take()) {
            tracer.record(&parent, self.telemetry.clock.now().wall, self.door, decision, method, duration);
        }
        Some(duration)
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

        // An open record is none until it is known what became of the request; each is written once.
        let mut outcome = telemetry.begin(Door::Check);
        let mut open = outcome.finish_open(&telemetry, Decision::for_test(Reason::AllowPolicy, id), "GET", "/a?b");
        let second = outcome.finish_open(&telemetry, Decision::for_test(Reason::AllowGrant, id), "GET", "/");
        drop((outcome, second));
        assert_eq!(count(&telemetry, "allow.policy"), 1);
        assert!(telemetry.records().flush(Duration::from_secs(10)));
        assert!(!std::fs::read_to_string(&file).unwrap().contains("allow.policy"));
        open.take().answered(&"127.0.0.1:1".into(), 204);
        drop(open);
        let mut outcome = telemetry.begin(Door::Check);
        drop(outcome.finish_open(&telemetry, Decision::for_test(Reason::AllowGrant, id), "GET", "/"));

        assert!(telemetry.records().shutdown(std::time::Duration::from_secs(10)));
        let written = std::fs::read_to_string(file).unwrap();
        let reasons: Vec<String> = written
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["reason"].as_str().unwrap().to_owned())
            .collect();
        let told = ["system.overload", "system.internal", "system.internal", "allow.policy", "allow.grant"];
        assert_eq!(reasons, told);
        let last: Vec<serde_json::Value> = written.lines().skip(3).map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!((&last[0]["upstream"], &last[0]["upstream_status"]), (&"127.0.0.1:1".into(), &204.into()));
        assert!(last[0]["upstream_us"].is_u64() && last[0]["upstream_error"].is_null(), "{last:?}");
        assert_eq!(last[1]["upstream_error"], "client_gone");
        assert!(last[1]["upstream_us"].is_u64() && last[1]["upstream_status"].is_null(), "{last:?}");
        let text = telemetry.metrics().exposition().render();
        for line in ["{result=\"2xx\"} 1", "{result=\"client_gone\"} 1", "{result=\"5xx\"} 0"] {
            assert!(text.contains(&format!("portcullis_proxy_forwarded_total{line}\n")), "{text}");
        }
        assert!(text.contains("portcullis_proxy_upstream_seconds_count 1\n"), "{text}");
    }
}
