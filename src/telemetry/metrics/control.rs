//! Prometheus metrics of the control plane.
//!
//! Plane: cross-cutting. As everywhere, handles are resolved at construction and labels are closed enums: an issuer's
//! name is never one.

use std::time::Duration;

use prometheus::{Error, Histogram, IntCounter, IntCounterVec, IntGauge, Opts};

use super::{APPLY_BUCKETS, Exposition};
use crate::grant::ledger::Lost;
use crate::object::KeySource;

/// The metrics of the control plane.
#[derive(Debug)]
pub struct ControlMetrics {
    exposition: Exposition,
    streams: IntGauge,
    open_reviews: IntGauge,
    break_glass: IntGauge,
    fanout: Histogram,
    /// By number of the source, then of the result.
    key_fetches: Box<[Box<[IntCounter]>]>,
    /// By reason.
    forfeited: [IntCounter; 2],
}

/// What an attempt to bring an issuer's keys up to date came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyFetch {
    /// The keys have changed.
    Changed,
    /// They are as they were.
    Unchanged,
    /// The configuration does not allow it.
    Refused,
    /// No answer, or none of the right peer.
    Unreachable,
    /// An answer other than a document of bearable size.
    BadAnswer,
    /// A document that is no usable key set of the issuer.
    Invalid,
    /// A bundle older than the one that is held.
    Rollback,
    /// The store did not take it.
    NotStored,
    /// The task that asks has panicked.
    Failed,
}

// === impl KeyFetch ===

impl KeyFetch {
    const ALL: [Self; 9] = [
        Self::Changed,
        Self::Unchanged,
        Self::Refused,
        Self::Unreachable,
        Self::BadAnswer,
        Self::Invalid,
        Self::Rollback,
        Self::NotStored,
        Self::Failed,
    ];

    /// As a label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::BadAnswer => "bad_answer",
            Self::Invalid => "invalid",
            Self::Rollback => "rollback",
            Self::NotStored => "not_stored",
            Self::Failed => "failed",
        }
    }
}

// === impl ControlMetrics ===

impl ControlMetrics {
    /// Resolves every handle. Fails only when two metrics have one name.
    #[allow(clippy::disallowed_methods, reason = "this is the construction at which handles are resolved")]
    pub fn new() -> Result<Self, Error> {
        let exposition = Exposition::new("control")?;
        let streams = IntGauge::new("portcullis_sync_streams", "Sidecars connected.")?;
        exposition.register(streams.clone())?;
        let open_reviews = IntGauge::new("portcullis_reviews_open", "Reviews of break-glass grants not closed yet.")?;
        exposition.register(open_reviews.clone())?;
        let break_glass = IntGauge::new("portcullis_break_glass_grants", "Break-glass grants in force.")?;
        exposition.register(break_glass.clone())?;
        let fanout = exposition.histogram(
            "portcullis_sync_fanout_seconds",
            "From a commit to a sidecar's acknowledgement of it.",
            APPLY_BUCKETS,
        )?;
        let fetches = IntCounterVec::new(
            Opts::new("portcullis_key_fetches_total", "Attempts to bring an issuer's keys up to date."),
            &["source", "result"],
        )?;
        let of_source = |source: &&str| {
            KeyFetch::ALL.iter().map(|result| fetches.with_label_values(&[source, result.name()])).collect()
        };
        let key_fetches = KeySource::NAMES.iter().map(of_source).collect();
        exposition.register(fetches)?;
        let lost = IntCounterVec::new(
            Opts::new(
                "portcullis_grant_uses_forfeited_total",
                "Uses of grants whose holder never said what became of them.",
            ),
            &["reason"],
        )?;
        let forfeited = ["silent", "restart"].map(|reason| lost.with_label_values(&[reason]));
        exposition.register(lost)?;
        Ok(Self { exposition, streams, open_reviews, break_glass, fanout, key_fetches, forfeited })
    }

    /// Sidecars connected.
    pub fn streams(&self) -> &IntGauge {
        &self.streams
    }

    /// Reviews that nobody has closed, and break-glass grants in force.
    pub fn emergencies(&self, open_reviews: usize, in_force: usize) {
        self.open_reviews.set(i64::try_from(open_reviews).unwrap_or(i64::MAX));
        self.break_glass.set(i64::try_from(in_force).unwrap_or(i64::MAX));
    }

    /// So many uses of a grant were lost.
    pub fn uses_forfeited(&self, lost: Lost, uses: u32) {
        let [silent, restart] = &self.forfeited;
        let counter = match lost {
            Lost::Silent => silent,
            Lost::Restart => restart,
        };
        counter.inc_by(u64::from(uses));
    }

    /// An issuer's keys were asked for.
    pub fn keys_fetched(&self, source: &KeySource, result: KeyFetch) {
        let counter = self.key_fetches.get(source.number()).and_then(|of_source| of_source.get(result as usize));
        if let Some(counter) = counter {
            counter.inc();
        }
    }

    /// A sidecar acknowledged a commit, so long after it.
    pub fn fanned_out(&self, after: Duration) {
        self.fanout.observe(after.as_secs_f64());
    }

    /// For the admin server.
    pub fn exposition(&self) -> &Exposition {
        &self.exposition
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_plane_has_its_own() {
        let metrics = ControlMetrics::new().unwrap();
        metrics.streams().inc();
        metrics.emergencies(2, 1);
        metrics.fanned_out(Duration::from_millis(3));
        metrics.keys_fetched(&KeySource::Discovery {}, KeyFetch::Rollback);
        let text = metrics.exposition().render();
        for (i, result) in KeyFetch::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, i, "results are numbered as they are listed");
        }
        let fetched = "portcullis_key_fetches_total{result=\"rollback\",source=\"discovery\"} 1\n";
        assert!(text.contains(fetched), "{text}");
        assert!(text.contains("portcullis_sync_streams 1\n"), "{text}");
        assert!(text.contains("portcullis_reviews_open 2\n"), "{text}");
        assert!(text.contains("portcullis_break_glass_grants 1\n"), "{text}");
        assert!(text.contains("portcullis_sync_fanout_seconds_bucket{le=\"0.005\"} 1\n"), "{text}");
        assert!(text.contains("portcullis_build_info{role=\"control\",version=\""), "{text}");
    }
}
