//! When to try again: full jitter, so that a fleet does not come back all at once, and the server's hint.
//!
//! Plane: sync; no I/O.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Bounds of the wait between attempts.
#[derive(Debug, Clone, Copy)]
pub struct BackoffConfig {
    /// The bound of the first wait.
    pub base: Duration,
    /// The bound of every wait, hints excepted.
    pub max: Duration,
    /// Where the jitter starts from; without it every process has its own. For simulations that are to be repeated.
    pub seed: Option<u64>,
}

/// Counts failures in a row.
#[derive(Debug)]
pub(crate) struct Backoff {
    config: BackoffConfig,
    failures: u32,
    jitter: SmallRng,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self { base: Duration::from_millis(200), max: Duration::from_secs(10), seed: None }
    }
}

impl Backoff {
    pub(crate) fn new(config: BackoffConfig) -> Self {
        let jitter = config.seed.map_or_else(|| SmallRng::seed_from_u64(rand::random()), SmallRng::seed_from_u64);
        Self { config, failures: 0, jitter }
    }

    /// It went well for a while.
    pub(crate) const fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after one more failure: anything from nothing up to a bound that doubles. A hint of the
    /// server is the least, and is spread over half as much again.
    pub(crate) fn next(&mut self, hint: Option<Duration>) -> Duration {
        let bound = self.config.base.saturating_mul(1 << self.failures.min(20)).min(self.config.max);
        self.failures = self.failures.saturating_add(1);
        let share: f64 = self.jitter.random();
        match hint {
            Some(hint) => hint + (hint / 2).max(bound / 2).mul_f64(share),
            None => bound.mul_f64(share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_jittered_bounded_and_heed_the_hint() {
        let config = BackoffConfig { base: Duration::from_millis(100), max: Duration::from_secs(2), seed: None };
        let mut b = Backoff::new(config);
        assert!((0..200).map(|_| Backoff::new(config).next(None)).all(|w| w <= config.base));
        let waits: Vec<_> = (0..200).map(|_| b.next(None)).collect();
        assert!(waits.iter().all(|w| *w <= config.max));
        assert!(waits.iter().any(|w| *w > config.max / 2), "it does grow");
        let distinct: std::collections::BTreeSet<_> = waits.iter().collect();
        assert!(distinct.len() > 150, "and does not march in step");
        let hint = Duration::from_secs(30);
        assert!((0..50).map(|_| b.next(Some(hint))).all(|w| w >= hint && w <= hint * 3 / 2));
        b.reset();
        assert!(b.next(None) <= config.base);
    }
}
