//! The one source of time. Plane: pure types, plus the system clock behind the [`Clock`] trait.
//!
//! Every rule takes a [`Now`] as an argument; only [`SystemClock`] reads the operating system.
//! INVARIANT: the wall time that a clock reports never falls behind its monotonic time, so a wall clock that is
//! set back cannot lengthen a token, a grant or a lease. One that is set forward ends them early: it fails closed.
//! The monotonic part is `CLOCK_BOOTTIME`, which also counts while the machine is suspended.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where the time comes from. Shared by everything in a process.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Now;

    /// Raises the reported wall time to at least `floor`: a signed time read from disk proves that it has passed.
    fn raise_floor(&self, floor: Timestamp);
}

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// One reading of a [`Clock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Wall time, never set back.
    pub wall: Timestamp,
    /// Time since an arbitrary start, also counting suspension.
    pub mono: Monotonic,
}

/// Milliseconds since the Unix epoch. Written as RFC 3339 in JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

/// Nanoseconds since an arbitrary start, for measuring and for leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Monotonic(u64);

/// The operating system's clock, guarded against being set back.
#[derive(Debug)]
pub struct SystemClock {
    guard: Guard,
}

/// A clock that moves only when told to, for tests and simulation. Its wall clock can be set, as an operator would.
#[derive(Debug)]
pub struct ManualClock {
    wall_ns: AtomicI64,
    mono_ns: AtomicI64,
    guard: Guard,
}

/// Keeps a wall clock from falling behind the monotonic one.
#[derive(Debug)]
struct Guard {
    /// The largest `wall - mono` seen so far, in nanoseconds.
    offset_ns: AtomicI64,
}

// === impl Timestamp ===

impl Timestamp {
    /// The latest representable time; "no bound" where a bound is a minimum of several.
    pub const MAX: Self = Self(253_402_300_799_000);

    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// From seconds since the Unix epoch, saturating.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// This time plus `d`, saturating.
    pub fn saturating_add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }

    /// This time minus `d`, saturating at the epoch.
    pub fn saturating_sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    fn system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.min(Self::MAX.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(self.system_time()).fmt(f)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Timestamp {
    type Err = humantime::TimestampError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let t = humantime::parse_rfc3339(s)?;
        let ms = t.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        Ok(Self(ms))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(|e| de::Error::custom(format!("`{text}` is not an RFC 3339 time in UTC: {e}")))
    }
}

impl schemars::JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "An instant (RFC 3339).",
            "type": "string",
            "format": "date-time",
        })
    }
}

// === impl Monotonic ===

impl Monotonic {
    /// From nanoseconds since the clock's start.
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// So long after it.
    pub fn after(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is before.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

// === impl Guard ===

impl Guard {
    const fn new() -> Self {
        Self { offset_ns: AtomicI64::new(i64::MIN) }
    }

    /// The reading, with the wall clock corrected.
    fn read(&self, wall_ns: i64, mono_ns: i64) -> Now {
        let candidate = wall_ns.saturating_sub(mono_ns);
        let mut offset = self.offset_ns.load(Ordering::Relaxed);
        if candidate > offset {
            offset = self.offset_ns.fetch_max(candidate, Ordering::Relaxed).max(candidate);
        }
        let wall_ns = u64::try_from(mono_ns.saturating_add(offset)).unwrap_or(0);
        Now { wall: Timestamp(wall_ns / 1_000_000), mono: Monotonic(u64::try_from(mono_ns).unwrap_or(0)) }
    }

    fn raise_floor(&self, floor: Timestamp, mono_ns: i64) {
        let floor_ns = i64::try_from(floor.0.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
        self.offset_ns.fetch_max(floor_ns.saturating_sub(mono_ns), Ordering::Relaxed);
    }
}

// === impl SystemClock ===

impl SystemClock {
    /// The clock of this machine.
    pub const fn new() -> Self {
        Self { guard: Guard::new() }
    }

    fn boottime_ns() -> i64 {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        t.tv_sec.saturating_mul(1_000_000_000).saturating_add(t.tv_nsec)
    }

    fn realtime_ns() -> i64 {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        t.tv_sec.saturating_mul(1_000_000_000).saturating_add(t.tv_nsec)
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let mono = Self::boottime_ns();
        self.guard.read(Self::realtime_ns(), mono)
    }

    fn raise_floor(&self, floor: Timestamp) {
        self.guard.raise_floor(floor, Self::boottime_ns());
    }
}

// === impl ManualClock ===

impl ManualClock {
    /// A clock that stands at `wall`.
    pub fn new(wall: Timestamp) -> Self {
        let wall_ns = i64::try_from(wall.0.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
        Self { wall_ns: AtomicI64::new(wall_ns), mono_ns: AtomicI64::new(1), guard: Guard::new() }
    }

    /// Time passes: wall and monotonic move together.
    pub fn advance(&self, d: Duration) {
        let ns = i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
        // In this order: somebody who reads in between sees no wall clock that is ahead, which the guard would keep.
        self.mono_ns.fetch_add(ns, Ordering::SeqCst);
        self.wall_ns.fetch_add(ns, Ordering::SeqCst);
    }

    /// Somebody sets the wall clock, forward or back.
    pub fn set_by(&self, ms: i64) {
        self.wall_ns.fetch_add(ms.saturating_mul(1_000_000), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        let wall = self.wall_ns.load(Ordering::SeqCst);
        self.guard.read(wall, self.mono_ns.load(Ordering::SeqCst))
    }

    fn raise_floor(&self, floor: Timestamp) {
        self.guard.raise_floor(floor, self.mono_ns.load(Ordering::SeqCst));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raised_floor_is_never_undercut() {
        let clock = SystemClock::new();
        let ahead = clock.now().wall.saturating_add(Duration::from_secs(3600));
        clock.raise_floor(ahead);
        assert!(clock.now().wall >= ahead, "a signed time from disk is a lower bound");
        clock.raise_floor(Timestamp::from_secs(1));
        assert!(clock.now().wall >= ahead, "a lower floor changes nothing");
    }

    #[test]
    fn a_wall_clock_that_is_set_back_goes_on_from_where_it_was() {
        let clock = ManualClock::new(Timestamp::from_secs(1000));
        assert_eq!(clock.now().wall, Timestamp::from_secs(1000));
        clock.set_by(-500_000);
        assert_eq!(clock.now().wall, Timestamp::from_secs(1000));
        clock.advance(Duration::from_secs(7));
        assert_eq!(clock.now().wall, Timestamp::from_secs(1007));
        clock.set_by(600_000);
        assert_eq!(clock.now().wall, Timestamp::from_secs(1107), "500 back, 600 forward");
    }

    #[test]
    fn timestamps_round_trip_as_rfc3339() {
        let t = Timestamp::from_millis(1_700_000_000_123);
        let json = serde_json::to_string(&t).unwrap();
        assert_eq!(json, "\"2023-11-14T22:13:20.123Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), t);
        assert!(serde_json::from_str::<Timestamp>("\"yesterday\"").is_err());
    }
}
