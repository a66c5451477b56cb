//! When to send: a timer of the kernel's that wakes within some tens of microseconds, and costs nothing while it waits.
//!
//! Plane: composition. The runtime's own timer has a resolution of a millisecond, which would be most of what is measured.
//! INVARIANT: the times at which requests are due follow from rate and start alone, never from how long an answer took.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The timer.
#[derive(Debug)]
pub(super) struct Timer(AsyncFd<OwnedFd>);

/// The times at which requests are due.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    start: Instant,
    rate: f64,
}

// === impl Timer ===

impl Timer {
    /// A timer of the runtime in which this is called.
    pub(super) fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[allow(deprecated, reason = "its replacement is unsafe; this descriptor is ours alone and is never replaced")]
        Ok(Self(AsyncFd::with_interest(fd, Interest::READABLE)?))
    }

    /// Waits until `due`.
    pub(super) async fn until(&self, due: Instant) -> io::Result<()> {
        let wait = due.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        let value = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // Setting it also forgets an expiry that nobody has read.
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut guard = self.0.readable().await?;
            let mut count = [0; 8];
            match guard.try_io(|fd| rustix::io::read(fd.get_ref(), &mut count).map_err(io::Error::from)) {
                Ok(read) => return read.map(|_| ()),
                Err(_would_block) => {}
            }
        }
    }
}

// === impl Schedule ===

impl Schedule {
    /// `rate` requests a second, evenly, from `start` on.
    pub(super) const fn new(start: Instant, rate: f64) -> Self {
        Self { start, rate }
    }

    /// When request `n` is due.
    pub(super) fn due(&self, n: u64) -> Instant {
        self.start + Duration::from_secs_f64(n as f64 / self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_do_not_drift() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 3.0);
        for (n, expected) in [(0, 0), (1, 333_333_333), (3, 1_000_000_000), (3_000_000, 1_000_000_000_000_000)] {
            let got = schedule.due(n) - start;
            assert!(got.abs_diff(Duration::from_nanos(expected)) < Duration::from_micros(1), "{n}: {got:?}");
        }
    }

    #[tokio::test]
    async fn the_timer_is_never_early_and_can_be_set_again() {
        let timer = Timer::new().unwrap();
        for micros in [50, 2_000, 10, 300] {
            let due = Instant::now() + Duration::from_micros(micros);
            timer.until(due).await.unwrap();
            assert!(Instant::now() >= due, "{micros}");
        }
        // One that was given up does not wake the next one early.
        let _ = tokio::time::timeout(Duration::ZERO, timer.until(Instant::now() + Duration::from_millis(1))).await;
        let due = Instant::now() + Duration::from_millis(20);
        timer.until(due).await.unwrap();
        assert!(Instant::now() >= due);
    }
}
