//! How often a workload is given a token.
//!
//! Plane: control; the time is an argument. One instant for each workload that asked lately (the generic cell rate
//! algorithm): no timers, and nothing to refill. Bounded: when there is no room for another workload, it waits.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Monotonic;
use crate::credential::SpiffeId;

/// How many workloads are remembered at a time. Those that have not asked for a minute are forgotten first.
const MAX_WORKLOADS: usize = 100_000;
const MINUTE: Duration = Duration::from_secs(60);

/// So many tokens a minute, all at once if need be.
#[derive(Debug)]
pub(super) struct Rate {
    /// Nanoseconds that one token takes.
    each: u64,
    /// When each workload's tokens are paid for.
    paid_at: Mutex<HashMap<SpiffeId, u64>>,
}

impl Rate {
    pub(super) fn new(per_minute: u32) -> Self {
        let minute = u64::try_from(MINUTE.as_nanos()).unwrap_or(u64::MAX);
        Self { each: minute / u64::from(per_minute.max(1)), paid_at: Mutex::default() }
    }

    /// Takes one for `workload`, or says how long to wait.
    pub(super) fn take(&self, workload: &SpiffeId, now: Monotonic) -> Result<(), Duration> {
        let now = now.as_nanos();
        let minute = u64::try_from(MINUTE.as_nanos()).unwrap_or(u64::MAX);
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        if paid_at.len() >= MAX_WORKLOADS && !paid_at.contains_key(workload) {
            paid_at.retain(|_, at| *at > now);
            if paid_at.len() >= MAX_WORKLOADS {
                return Err(MINUTE);
            }
        }
        let paid = paid_at.get(workload).copied().unwrap_or(now).max(now).saturating_add(self.each);
        let ahead = paid.saturating_sub(now);
        if ahead > minute {
            return Err(Duration::from_nanos(ahead - minute));
        }
        paid_at.insert(workload.clone(), paid);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_then_one_at_a_time_and_each_for_itself() {
        let rate = Rate::new(60);
        let (a, b): (SpiffeId, SpiffeId) =
            ("spiffe://x.example/a".parse().unwrap(), "spiffe://x.example/b".parse().unwrap());
        let at = |secs: u64| Monotonic::from_nanos(secs * 1_000_000_000);
        for _ in 0..60 {
            rate.take(&a, at(10)).unwrap();
        }
        assert_eq!(rate.take(&a, at(10)), Err(Duration::from_secs(1)));
        rate.take(&b, at(10)).unwrap();
        rate.take(&a, at(11)).unwrap();
        rate.take(&a, at(11)).unwrap_err();
        for _ in 0..60 {
            rate.take(&a, at(100)).unwrap();
        }
        rate.take(&a, at(100)).unwrap_err();
    }
}
