//! How old the state may be, and how old it is.
//!
//! Pure. A bookmark of the control plane renews the lease. INVARIANT: age is the larger of what the monotonic clock
//! measured since the bookmark arrived and what the wall clock says since it was made, so neither a delayed bookmark
//! nor a clock that is set back makes a state look younger. A bookmark from too far in the future is refused.

use std::time::Duration;

use crate::clock::{Monotonic, Now, Timestamp};

/// The largest difference between the clocks of control plane and sidecar that is put up with.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(5);

/// The control plane's word that a state was current at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The control plane's wall clock when it said so.
    pub server_time: Timestamp,
    /// When it arrived; the clock's start for one that was read from disk.
    pub received: Monotonic,
    /// How long a `strict` route may rely on it.
    pub lease: Duration,
    /// How long a `bounded` route may rely on it.
    pub max_staleness: Duration,
}

// === impl Lease ===

impl Lease {
    /// How long ago the state was confirmed current.
    pub fn age(&self, now: Now) -> Duration {
        now.mono.since(self.received).max(now.wall.since(self.server_time))
    }

    /// Whether the bookmark was made by a clock that runs too far ahead of ours to measure ages with.
    pub fn is_from_the_future(&self, now: Now) -> bool {
        self.server_time.since(now.wall) > MAX_CLOCK_SKEW
    }

    /// The wall time at which a route of this kind stops answering.
    pub fn good_until(&self, now: Now, strict: bool) -> Timestamp {
        let bound = if strict { self.lease } else { self.max_staleness };
        now.wall.saturating_add(bound.saturating_sub(self.age(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(wall_ms: u64, mono_ms: u64) -> Now {
        Now { wall: Timestamp::from_millis(wall_ms), mono: Monotonic::from_nanos(mono_ms * 1_000_000) }
    }

    #[test]
    fn the_older_reading_counts() {
        let lease = Lease {
            server_time: Timestamp::from_millis(100_000),
            received: Monotonic::from_nanos(50_000_000_000),
            lease: Duration::from_secs(10),
            max_staleness: Duration::from_secs(300),
        };
        // Delivered 40 s late: the wall clock knows.
        assert_eq!(lease.age(now(140_000, 50_000)), Duration::from_secs(40));
        // Wall clock behind: the monotonic clock knows.
        assert_eq!(lease.age(now(100_000, 57_000)), Duration::from_secs(7));
        assert_eq!(lease.good_until(now(104_000, 54_000), true), Timestamp::from_millis(110_000));
        assert!(!lease.is_from_the_future(now(95_000, 50_000)));
        assert!(lease.is_from_the_future(now(94_999, 50_000)));
    }
}
