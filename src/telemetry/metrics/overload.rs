//! Metrics of overload: the limits in force, the delay that they follow, and what was shed.
//!
//! Plane: cross-cutting. Labels are closed enums. Gauges are written when a limit is set, ten times a second at most; what
//! is shed is counted where it is refused. Nothing here decides.

use prometheus::{Error, Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::Exposition;
use crate::cache::Reading;

/// What a check was refused for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// Too many were under way.
    All,
    /// It took a verification, and there was no time for that.
    Cold,
}

/// The limits of one door.
#[derive(Debug)]
pub(super) struct OverloadMetrics {
    all: IntGauge,
    cold: IntGauge,
    verification: IntGauge,
    delay: Gauge,
    shed_all: IntCounter,
    shed_cold: IntCounter,
}

// === impl OverloadMetrics ===

impl OverloadMetrics {
    #[allow(clippy::disallowed_methods, reason = "this is the construction at which handles are resolved")]
    pub(super) fn new(exposition: &Exposition) -> Result<Self, Error> {
        let limits = IntGaugeVec::new(
            Opts::new(
                "portcullis_overload_limit",
                "Checks that may be under way (all), still take a verification (cold), wait for it (verification).",
            ),
            &["class"],
        )?;
        let shed = IntCounterVec::new(
            Opts::new("portcullis_overload_shed_total", "Checks denied because too many others were under way."),
            &["class"],
        )?;
        let delay = Gauge::new(
            "portcullis_overload_delay_seconds",
            "The least that a check waited for a thread in the last tenth of a second with checks.",
        )?;
        let [all, cold, verification] = ["all", "cold", "verification"].map(|class| limits.with_label_values(&[class]));
        let [shed_all, shed_cold] = ["all", "cold"].map(|class| shed.with_label_values(&[class]));
        exposition.register(limits)?;
        exposition.register(shed)?;
        exposition.register(delay.clone())?;
        Ok(Self { all, cold, verification, delay, shed_all, shed_cold })
    }

    pub(super) fn set(&self, Reading { all, cold, delay }: Reading) {
        self.all.set(i64::try_from(all).unwrap_or(i64::MAX));
        self.cold.set(i64::try_from(cold).unwrap_or(i64::MAX));
        self.delay.set(delay.as_secs_f64());
    }

    pub(super) const fn shed(&self, what: Shed) -> &IntCounter {
        match what {
            Shed::All => &self.shed_all,
            Shed::Cold => &self.shed_cold,
        }
    }

    pub(super) const fn verification(&self) -> &IntGauge {
        &self.verification
    }
}
