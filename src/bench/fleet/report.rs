//! What a run found, as numbers for programs; the command line makes text of it.
//!
//! Plane: composition. Latencies are exact: every one is kept and sorted. A percentile is the smallest value that so many
//! of them do not exceed. What was not measured is absent, never zero.

use serde::Serialize;

use super::{Counts, Usage};

/// A distribution, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many.
    pub count: usize,
    /// The median.
    pub p50: f64,
    /// Nine in ten.
    pub p90: f64,
    /// Ninety-nine in a hundred.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// How a revocation spread.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    /// Revocations that were committed.
    pub revocations: usize,
    /// From sending the request to the API until a sidecar had taken the revision in, as the fleet's clock saw it.
    pub request_to_applied_ms: Option<Percentiles>,
    /// From the commit until the sidecar's acknowledgement arrived, as the control plane's clock saw it (receipts).
    pub commit_to_acknowledged_ms: Option<Percentiles>,
    /// From sending the request until the receipt, complete, was there (`revoke --wait`).
    pub receipt_ms: Option<Percentiles>,
    /// Receipts that were not complete in time.
    pub incomplete: usize,
    /// Revocations that a sidecar had not taken in by the end, over all of both.
    pub missing: usize,
    /// Bytes to each sidecar for one revocation, TLS included; what else was due meanwhile is among them.
    pub bytes_each: f64,
    /// The control plane's CPU time for one revocation to the whole fleet, in milliseconds.
    pub cpu_ms: Option<f64>,
}

/// How long the fleet took to become current.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Joined {
    /// What happened: `start`, `resume`, `snapshot`, `restart`.
    pub what: String,
    /// Until the last was current, in milliseconds; absent if it was not in time.
    pub all_current_ms: Option<f64>,
    /// Connections tried meanwhile.
    pub attempts: u64,
    /// Refusals with a hint meanwhile.
    pub turned_away: u64,
    /// The control plane's CPU time, in seconds.
    pub cpu_seconds: Option<f64>,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// How many sidecars.
    pub sidecars: usize,
    /// One in so many verified signatures.
    pub verify_every: usize,
    /// Start, reconnections.
    pub joined: Vec<Joined>,
    /// One revocation at a time.
    pub single: Option<Spread>,
    /// Several at once.
    pub burst: Option<Spread>,
    /// Single revocations while as many sidecars again keep coming.
    pub under_herd: Option<Spread>,
    /// What the control plane uses with all of them connected and nothing to do.
    pub idle: Option<Usage>,
    /// Its CPU when idle, in cores.
    pub idle_cores: Option<f64>,
    /// What it used at the end.
    pub control: Option<Usage>,
    /// The fleet's own process at the end.
    pub fleet: Option<Usage>,
    /// What went over and went wrong.
    pub counts: Counts,
    /// Why a stream ended last, if one did unasked.
    pub last_failure: Option<String>,
}

impl Percentiles {
    /// Of these values; `None` of none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        // In thousandths; the place is rounded up, so that a percentile is never flattered.
        let at = |thousandths: usize| {
            let place = (values.len() * thousandths).div_ceil(1000).saturating_sub(1);
            values.get(place.min(last)).copied().unwrap_or_default()
        };
        Some(Self { count: values.len(), p50: at(500), p90: at(900), p99: at(990), max: at(1000) })
    }
}

impl Report {
    /// One of a fleet that has done nothing yet.
    pub(super) const fn new(sidecars: usize, verify_every: usize, counts: Counts) -> Self {
        let joined = Vec::new();
        let (single, burst, under_herd) = (None, None, None);
        let (idle, idle_cores, control, fleet) = (None, None, None, None);
        Self {
            sidecars,
            verify_every,
            joined,
            single,
            burst,
            under_herd,
            idle,
            idle_cores,
            control,
            fleet,
            counts,
            last_failure: None,
        }
    }

    /// Whether every sidecar was current when it had to be, every receipt complete, and no frame out of place.
    pub fn is_good(&self) -> bool {
        let spreads = [&self.single, &self.burst, &self.under_herd];
        self.counts.violations == 0
            && self.joined.iter().all(|j| j.all_current_ms.is_some())
            && spreads.into_iter().flatten().all(|s| s.missing == 0)
            // Under a herd they are not waited for.
            && [&self.single, &self.burst].into_iter().flatten().all(|s| s.incomplete == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_values_and_never_flatter() {
        assert_eq!(Percentiles::of(vec![]), None);
        let of_hundred = Percentiles::of((1..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!((of_hundred.p50, of_hundred.p90, of_hundred.p99, of_hundred.max), (50.0, 90.0, 99.0, 100.0));
        let of_two = Percentiles::of(vec![1.0, 9.0]).unwrap();
        assert_eq!((of_two.p50, of_two.p99), (1.0, 9.0));
    }
}
