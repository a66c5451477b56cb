//! The steps of one decision, for people who want to know why.
//!
//! Pure. Costs nothing when nobody asks: outcomes are only written out when a trace is being taken. Never holds a
//! token or a header value.

use serde::{Deserialize, Serialize};

/// One step of an explanation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which step, in the order of a decision: `normalise`, `authenticate`, `revocation`, `freshness`, `workload`,
    /// `grant`, `policy`, `answer`.
    pub step: std::borrow::Cow<'static, str>,
    /// What it found.
    pub outcome: String,
}

/// Collects steps, or does not.
#[derive(Debug, Default)]
pub(super) struct Trace(Option<Vec<Step>>);

// === impl Trace ===

impl Trace {
    /// Takes nothing down.
    pub(super) const fn off() -> Self {
        Self(None)
    }

    /// Takes every step down.
    pub(super) const fn on() -> Self {
        Self(Some(Vec::new()))
    }

    /// Takes a step down, if anybody asked.
    pub(super) fn step(&mut self, step: &'static str, outcome: impl FnOnce() -> String) {
        if let Some(steps) = &mut self.0 {
            steps.push(Step { step: step.into(), outcome: outcome() });
        }
    }

    /// What was taken down.
    pub(super) fn into_steps(self) -> Vec<Step> {
        self.0.unwrap_or_default()
    }
}
