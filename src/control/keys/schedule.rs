//! When the keys of an issuer are asked for next.
//!
//! Plane: control; no I/O. Every wait is shortened by up to a tenth, so that issuers and replicas do not march in step.
//! What an unknown key id asks for is granted at most once per cooldown, counted from the last attempt of any cause, so
//! that strangers who make up key ids cannot have an issuer asked more often than that.

use std::time::Duration;

use tokio::time::Instant;

/// The bounds within which a publisher may say how often its bundle is to be fetched.
const HINT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3600));
/// The wait after a first failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The wait after a success: the publisher's hint within bounds, or the configured interval.
pub(super) fn after_success(interval: Duration, hint_seconds: Option<u64>) -> Duration {
    let interval = hint_seconds.map_or(interval, |s| Duration::from_secs(s).clamp(HINT.0, HINT.1));
    jittered(interval)
}

/// The wait after `failures` failures in a row, the first included: doubles up to the interval.
pub(super) fn after_failure(interval: Duration, failures: u32) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(20));
    jittered(doubled.min(interval.max(FIRST_RETRY)))
}

/// When an unknown key id has the keys asked for, if that is sooner than planned.
pub(super) fn on_unknown_key(
    next: Instant,
    last_attempt: Option<Instant>,
    cooldown: Duration,
    now: Instant,
) -> Instant {
    last_attempt.map_or(now, |last| last + cooldown).max(now).min(next)
}

fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(1.0 - 0.1 * rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_hint_counts_within_its_bounds() {
        let within = |wait: Duration, secs: u64| {
            let full = Duration::from_secs(secs);
            wait <= full && wait >= full.mul_f64(0.9)
        };
        for _ in 0..50 {
            assert!(within(after_success(MINUTE, None), 60));
            assert!(within(after_success(MINUTE, Some(300)), 300));
            assert!(within(after_success(MINUTE, Some(0)), 10), "not more often than every ten seconds");
            assert!(within(after_success(MINUTE, Some(u64::MAX)), 3600), "at least once an hour");
        }
    }

    #[test]
    fn failures_wait_longer_up_to_the_interval() {
        let mut last = Duration::ZERO;
        for failures in 1..=6 {
            let wait = after_failure(MINUTE, failures);
            assert!(wait > last && wait <= MINUTE, "{failures}: {wait:?}");
            last = wait;
        }
        assert!(after_failure(MINUTE, u32::MAX) > MINUTE.mul_f64(0.89));
    }

    #[test]
    fn an_unknown_key_waits_for_the_cooldown_and_never_delays() {
        let now = Instant::now() + MINUTE;
        let (cooldown, far) = (Duration::from_secs(30), now + 10 * MINUTE);
        assert_eq!(on_unknown_key(far, None, cooldown, now), now);
        assert_eq!(on_unknown_key(far, Some(now - MINUTE), cooldown, now), now);
        let recent = now - Duration::from_secs(10);
        assert_eq!(on_unknown_key(far, Some(recent), cooldown, now), recent + cooldown);
        let soon = now + Duration::from_secs(1);
        assert_eq!(on_unknown_key(soon, Some(recent), cooldown, now), soon);
    }
}
