//! Prometheus metrics. Plane: cross-cutting; the check's counters are on the hot path.
//!
//! INVARIANT: every handle is resolved at construction and indexed by closed enums, so that counting a check is one
//! atomic addition, and no client input can become a label. Gauges of state that lives elsewhere (caches, snapshot,
//! lease) are read from it at scrape, so they cannot go stale.

mod control;
mod forwarded;
mod overload;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::{
    Error, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, proto,
};

use super::open_record::Forwarded;
use crate::authz::{Deferred, Door, Reason};
use crate::cache::{CacheCounters, Gate, Reading};

pub use self::control::{ControlMetrics, KeyFetch};
use self::forwarded::ForwardedMetrics;
use self::overload::OverloadMetrics;
pub use self::overload::Shed;

/// Upper bounds of the buckets of a check's duration, in seconds: from a warm hit to Envoy's default timeout.
const CHECK_BUCKETS: &[f64] = &[
    0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.2, 0.5,
];
/// From an idle machine to a partition that ended.
const APPLY_BUCKETS: &[f64] = &[0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// A process's metrics in Prometheus' text format. Cheap to clone; clones share.
#[derive(Clone)]
pub struct Exposition(Registry);

/// The metrics of a sidecar.
#[derive(Debug)]
pub struct SidecarMetrics {
    exposition: Exposition,
    doors: Box<[DoorMetrics]>,
    revocation_apply: Histogram,
    records_dropped: IntCounter,
    verification: [VerificationMetrics; 2],
    overload: OverloadMetrics,
    forwarded: ForwardedMetrics,
}

/// Of one queue.
#[derive(Debug)]
struct VerificationMetrics {
    waiting: IntGauge,
    shed: IntCounter,
}

#[derive(Debug)]
struct DoorMetrics {
    /// By number of the reason, then whether it came from the cache.
    checks: Box<[[IntCounter; 2]]>,
    duration: Histogram,
}

/// Reads the gate's counters and state at scrape.
struct GateCollector {
    gate: Arc<Gate>,
    descs: Vec<Desc>,
}

// === impl Exposition ===

impl Exposition {
    fn new(role: &'static str) -> Result<Self, Error> {
        let exposition = Self(Registry::new());
        let opts = Opts::new("portcullis_build_info", "Version and role of this process; always 1.")
            .const_label("version", env!("CARGO_PKG_VERSION"))
            .const_label("role", role);
        let info = IntGauge::with_opts(opts)?;
        info.set(1);
        exposition.register(info)?;
        Ok(exposition)
    }

    fn register(&self, collector: impl Collector + 'static) -> Result<(), Error> {
        self.0.register(Box::new(collector))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, Error> {
        let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
        self.register(histogram.clone())?;
        Ok(histogram)
    }

    /// The text to answer a scrape with.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.0.gather()).unwrap_or_else(|error| {
            tracing::error!(%error, "metrics cannot be written");
            String::new()
        })
    }
}

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposition").finish_non_exhaustive()
    }
}

// === impl SidecarMetrics ===

impl SidecarMetrics {
    /// Resolves every handle. Fails only when two metrics have one name.
    #[allow(clippy::disallowed_methods, reason = "this is the construction at which handles are resolved")]
    pub fn new() -> Result<Self, Error> {
        let exposition = Exposition::new("sidecar")?;
        let checks = IntCounterVec::new(
            Opts::new("portcullis_checks_total", "Decisions made."),
            &["door", "decision", "reason", "cached"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new("portcullis_check_duration_seconds", "From the request's arrival to the decision.")
                .buckets(CHECK_BUCKETS.to_vec()),
            &["door"],
        )?;
        let doors = Door::ALL
            .iter()
            .map(|door| DoorMetrics {
                checks: Reason::ALL
                    .iter()
                    .map(|reason| {
                        let decision = if reason.is_allow() { "allow" } else { "deny" };
                        ["false", "true"]
                            .map(|cached| checks.with_label_values(&[door.name(), decision, reason.code(), cached]))
                    })
                    .collect(),
                duration: durations.with_label_values(&[door.name()]),
            })
            .collect();
        exposition.register(checks)?;
        exposition.register(durations)?;
        let revocation_apply = exposition.histogram(
            "portcullis_revocation_apply_seconds",
            "From the arrival of a revocation to its being in force here.",
            APPLY_BUCKETS,
        )?;
        let records_dropped = IntCounter::new(
            "portcullis_decision_records_dropped_total",
            "Decision records that were lost because their queue was full or could not be written.",
        )?;
        exposition.register(records_dropped.clone())?;
        let waiting = IntGaugeVec::new(
            Opts::new("portcullis_verification_waiting", "Checks whose token or proof waits to be verified."),
            &["credential"],
        )?;
        let shed = IntCounterVec::new(
            Opts::new(
                "portcullis_verification_shed_total",
                "Checks denied because too many waited to be verified, or they had waited too long.",
            ),
            &["credential"],
        )?;
        let verification = ["token", "proof"].map(|credential| VerificationMetrics {
            waiting: waiting.with_label_values(&[credential]),
            shed: shed.with_label_values(&[credential]),
        });
        exposition.register(waiting)?;
        exposition.register(shed)?;
        let overload = OverloadMetrics::new(&exposition)?;
        let forwarded = ForwardedMetrics::new(&exposition)?;
        Ok(Self { exposition, doors, revocation_apply, records_dropped, verification, overload, forwarded })
    }

    /// Also shows the gate's caches, snapshot and lease. Once per gate.
    pub fn watch(&self, gate: Arc<Gate>) -> Result<(), Error> {
        self.exposition.register(GateCollector::new(gate)?)
    }

    /// Counts a check.
    pub(super) fn check(&self, door: Door, reason: Reason, cached: bool, duration: Duration) {
        let Some(metrics) = self.doors.get(door as usize) else { return };
        if let Some([evaluated, from_cache]) = metrics.checks.get(reason as usize) {
            if cached { from_cache.inc() } else { evaluated.inc() }
        }
        metrics.duration.observe(duration.as_secs_f64());
    }

    /// Counts what became of an allowed request.
    pub(super) fn forwarded(&self, forwarded: &Forwarded) {
        self.forwarded.count(forwarded);
    }

    /// A revocation is in force, so long after its arrival.
    pub fn revocation_applied(&self, after: Duration) {
        self.revocation_apply.observe(after.as_secs_f64());
    }

    /// Checks that wait to be verified.
    pub fn verification_waiting(&self, deferred: Deferred) -> &IntGauge {
        &self.verification(deferred).waiting
    }

    /// Counts checks that were denied for want of room to verify.
    pub fn verification_shed(&self, deferred: Deferred) -> &IntCounter {
        &self.verification(deferred).shed
    }

    fn verification(&self, deferred: Deferred) -> &VerificationMetrics {
        let [token, proof] = &self.verification;
        match deferred {
            Deferred::Token => token,
            Deferred::Proof => proof,
        }
    }

    /// The limits that were set anew.
    pub fn limits_set(&self, limits: Reading) {
        self.overload.set(limits);
    }

    /// How many checks of a kind may wait to be verified.
    pub fn verification_limit(&self) -> &IntGauge {
        self.overload.verification()
    }

    /// Counts checks that were denied because too many were under way.
    pub fn shed(&self, what: Shed) -> &IntCounter {
        self.overload.shed(what)
    }

    /// Counts lost decision records.
    pub fn records_dropped(&self) -> &IntCounter {
        &self.records_dropped
    }

    /// For the admin server.
    pub fn exposition(&self) -> &Exposition {
        &self.exposition
    }
}

// === impl GateCollector ===

impl GateCollector {
    fn new(gate: Arc<Gate>) -> Result<Self, Error> {
        let mut collector = Self { gate, descs: Vec::new() };
        collector.descs = collector.metrics()?.iter().flat_map(|m| m.desc().into_iter().cloned()).collect();
        Ok(collector)
    }

    #[allow(clippy::disallowed_methods, reason = "made anew at each scrape, off the hot path; labels are constants")]
    fn metrics(&self) -> Result<Vec<Box<dyn Collector>>, Error> {
        let mut out: Vec<Box<dyn Collector>> = Vec::new();
        let caches = [
            ("tokens", self.gate.token_cache()),
            ("decisions", self.gate.decision_cache()),
            ("proofs", self.gate.used_proofs()),
        ];
        let mut counter = |name: &str, help: &str, read: fn(&CacheCounters) -> u64| {
            let family = IntCounterVec::new(Opts::new(name, help), &["cache"])?;
            for (cache, values) in &caches {
                family.with_label_values(&[cache]).inc_by(read(values));
            }
            out.push(Box::new(family));
            Ok::<_, Error>(())
        };
        counter("portcullis_cache_hits_total", "Look-ups that found a usable entry.", |c| c.hits)?;
        counter("portcullis_cache_misses_total", "Look-ups that did not.", |c| c.misses)?;
        let evictions = "Entries dropped for room or because they were out of date.";
        counter("portcullis_cache_evictions_total", evictions, |c| c.evictions)?;
        let entries = IntGaugeVec::new(Opts::new("portcullis_cache_entries", "Entries in the cache."), &["cache"])?;
        for (cache, values) in &caches {
            entries.with_label_values(&[cache]).set(i64::try_from(values.entries).unwrap_or(i64::MAX));
        }
        out.push(Box::new(entries));

        let uses = self.gate.state().purse().counts();
        let help = "Uses of grants that the control plane gave to this process, and that it spent.";
        let family = IntCounterVec::new(Opts::new("portcullis_grant_uses_total", help), &["event"])?;
        for (event, count) in [("given", uses.given), ("spent", uses.spent)] {
            family.with_label_values(&[event]).inc_by(count);
        }
        out.push(Box::new(family));

        let now = self.gate.clock().now();
        let world = self.gate.state().load();
        let revision =
            IntGauge::new("portcullis_snapshot_revision", "Revision that checks are answered from; 0 before any.")?;
        let applied = world.snapshot.as_ref().map_or(0, |s| s.position().revision.0);
        revision.set(i64::try_from(applied).unwrap_or(i64::MAX));
        out.push(Box::new(revision));
        // Without a lease there is no age: an absent series, not a reassuring zero.
        if let Some(lease) = world.lease {
            let age = Gauge::new("portcullis_snapshot_age_seconds", "Since the state was last confirmed current.")?;
            age.set(lease.age(now).as_secs_f64());
            out.push(Box::new(age));
        }
        let remaining = Gauge::new(
            "portcullis_lease_remaining_seconds",
            "How long `strict` routes still answer without news from the control plane.",
        )?;
        remaining.set(world.lease.map_or(0.0, |l| l.lease.saturating_sub(l.age(now)).as_secs_f64()));
        out.push(Box::new(remaining));
        Ok(out)
    }
}

impl Collector for GateCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        self.metrics().map(|all| all.iter().flat_map(|m| m.collect()).collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheSizes;
    use crate::clock::{ManualClock, Timestamp};
    use crate::state::State;

    #[test]
    fn every_reason_of_every_door_has_its_own_series() {
        let metrics = SidecarMetrics::new().unwrap();
        for (i, &door) in Door::ALL.iter().enumerate() {
            assert_eq!(door as usize, i, "doors are numbered as they are listed");
        }
        for (i, &reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, i, "reasons are numbered as they are listed");
        }
        metrics.check(Door::ExtAuthz, Reason::EntitlementNoGrant, false, Duration::from_micros(7));
        metrics.check(Door::ExtAuthz, Reason::AllowGrant, true, Duration::from_micros(7));
        metrics.check(Door::Check, Reason::AllowGrant, false, Duration::from_micros(7));
        let text = metrics.exposition().render();
        let line = |door: &str, decision: &str, reason: &str, cached: &str, count: u32| {
            format!(
                "portcullis_checks_total{{cached=\"{cached}\",decision=\"{decision}\",door=\"{door}\",reason=\"{reason}\"}} {count}\n"
            )
        };
        assert!(text.contains(&line("ext_authz", "deny", "entitlement.no_grant", "false", 1)), "{text}");
        assert!(text.contains(&line("ext_authz", "allow", "allow.grant", "true", 1)), "{text}");
        assert!(text.contains(&line("ext_authz", "allow", "allow.grant", "false", 0)), "{text}");
        assert!(text.contains(&line("check", "allow", "allow.grant", "false", 1)), "{text}");
        assert!(
            text.contains("portcullis_check_duration_seconds_bucket{door=\"ext_authz\",le=\"0.000005\"} 0\n"),
            "{text}"
        );
        assert!(
            text.contains("portcullis_check_duration_seconds_bucket{door=\"ext_authz\",le=\"0.00001\"} 2\n"),
            "{text}"
        );
    }

    #[test]
    fn state_is_read_at_scrape() {
        let metrics = SidecarMetrics::new().unwrap();
        let clock = Arc::new(ManualClock::new(Timestamp::from_secs(1_700_000_000)));
        let state = Arc::new(State::new());
        let gate = Arc::new(Gate::new(state.clone(), clock.clone(), CacheSizes { tokens: 10, decisions: 10 }));
        metrics.watch(gate).unwrap();
        let before = metrics.exposition().render();
        assert!(before.contains("portcullis_snapshot_revision 0\n"), "{before}");
        assert!(before.contains("portcullis_cache_hits_total{cache=\"tokens\"} 0\n"), "{before}");
        assert!(before.contains("portcullis_cache_entries{cache=\"decisions\"} 0\n"), "{before}");
        assert!(before.contains("portcullis_grant_uses_total{event=\"spent\"} 0\n"), "{before}");
        assert!(!before.contains("portcullis_snapshot_age_seconds "), "no age without a lease: {before}");

        use crate::clock::Clock;
        let now = clock.now();
        state.renew(crate::authz::Lease {
            server_time: now.wall,
            received: now.mono,
            lease: Duration::from_secs(10),
            max_staleness: Duration::from_secs(300),
        });
        clock.advance(Duration::from_secs(4));
        let after = metrics.exposition().render();
        assert!(after.contains("portcullis_snapshot_age_seconds 4\n"), "{after}");
        assert!(after.contains("portcullis_lease_remaining_seconds 6\n"), "{after}");
    }
}
