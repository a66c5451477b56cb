//! What became of allowed requests that this process forwards. Plane: hot path.
//!
//! INVARIANT: handles are resolved at construction, and labels are closed: the class of a status, or why there is none.
//! Counts nothing about decisions.

use std::time::Duration;

use prometheus::{Error, Histogram, IntCounter, IntCounterVec, Opts};

use super::Exposition;
use crate::telemetry::open_record::{Forwarded, Unanswered};

/// From a service on the same machine to the longest that is waited by default, and beyond.
const BUCKETS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

#[derive(Debug)]
pub(super) struct ForwardedMetrics {
    /// By the first digit of the status.
    answered: [IntCounter; 5],
    /// By number of the reason.
    unanswered: [IntCounter; Unanswered::ALL.len()],
    took: Histogram,
}

// === impl ForwardedMetrics ===

impl ForwardedMetrics {
    #[allow(clippy::disallowed_methods, reason = "this is the construction at which handles are resolved")]
    pub(super) fn new(exposition: &Exposition) -> Result<Self, Error> {
        let all = IntCounterVec::new(
            Opts::new("portcullis_proxy_forwarded_total", "What became of requests that the reverse proxy allowed."),
            &["result"],
        )?;
        let answered = ["1xx", "2xx", "3xx", "4xx", "5xx"].map(|class| all.with_label_values(&[class]));
        let unanswered = Unanswered::ALL.map(|why| all.with_label_values(&[why.name()]));
        exposition.register(all)?;
        let took = exposition.histogram(
            "portcullis_proxy_upstream_seconds",
            "From the decision to the head of the upstream's answer.",
            BUCKETS,
        )?;
        Ok(Self { answered, unanswered, took })
    }

    pub(super) fn count(&self, forwarded: &Forwarded) {
        match forwarded {
            Forwarded::Answered { status, took, .. } => {
                let class = usize::from(status / 100).saturating_sub(1);
                if let Some(counter) = self.answered.get(class) {
                    counter.inc();
                }
                self.took.observe(Duration::as_secs_f64(took));
            }
            Forwarded::Failed { why, .. } => {
                if let Some(counter) = self.unanswered.get(*why as usize) {
                    counter.inc();
                }
            }
        }
    }
}
