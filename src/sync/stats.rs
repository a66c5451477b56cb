//! Numbers about the sync stream, for telemetry to read.
//!
//! Plane: sync. Atomics only; writing never waits.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What the client counts.
#[derive(Debug, Default)]
pub struct SyncStats {
    revocations: Watcher,
    connected: AtomicBool,
    revision: AtomicU64,
    applied: AtomicU64,
    apply_ns: AtomicU64,
    last_apply_ns: AtomicU64,
    snapshots: AtomicU64,
    connects: AtomicU64,
    failures: AtomicU64,
    unusable: AtomicU64,
    disk_errors: AtomicU64,
}

/// Who is told how long a revocation took.
#[derive(Default)]
struct Watcher(OnceLock<Box<dyn Fn(Duration) + Send + Sync>>);

/// One reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SyncReading {
    /// Whether a stream is open.
    pub connected: bool,
    /// The revision in force.
    pub revision: u64,
    /// Deltas and snapshots applied.
    pub applied: u64,
    /// The time spent on them, from a frame's arrival to the swap.
    pub apply_time: Duration,
    /// The time spent on the last one.
    pub last_apply: Duration,
    /// Snapshots among them.
    pub snapshots: u64,
    /// Streams opened.
    pub connects: u64,
    /// Streams that failed or could not be opened.
    pub failures: u64,
    /// Objects that could not be used.
    pub unusable: u64,
    /// Failures to write state to disk.
    pub disk_errors: u64,
}

impl SyncStats {
    /// Has `tell` called with the time that each delta with a revocation took, from its arrival until it was in
    /// force. The first caller stays.
    pub fn on_revocation(&self, tell: impl Fn(Duration) + Send + Sync + 'static) {
        let _ = self.revocations.0.set(Box::new(tell));
    }

    pub(super) fn revoked(&self, took: Duration) {
        if let Some(tell) = self.revocations.0.get() {
            tell(took);
        }
    }

    /// Reads everything.
    pub fn read(&self) -> SyncReading {
        SyncReading {
            connected: self.connected.load(Relaxed),
            revision: self.revision.load(Relaxed),
            applied: self.applied.load(Relaxed),
            apply_time: Duration::from_nanos(self.apply_ns.load(Relaxed)),
            last_apply: Duration::from_nanos(self.last_apply_ns.load(Relaxed)),
            snapshots: self.snapshots.load(Relaxed),
            connects: self.connects.load(Relaxed),
            failures: self.failures.load(Relaxed),
            unusable: self.unusable.load(Relaxed),
            disk_errors: self.disk_errors.load(Relaxed),
        }
    }

    pub(super) fn connected(&self, yes: bool) {
        if yes {
            self.connects.fetch_add(1, Relaxed);
        }
        self.connected.store(yes, Relaxed);
    }

    pub(super) fn failed(&self) {
        self.failures.fetch_add(1, Relaxed);
    }

    pub(super) fn restored(&self, revision: u64) {
        self.revision.store(revision, Relaxed);
    }

    pub(super) fn applied(&self, revision: u64, took: Duration, snapshot: bool, unusable: usize) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.revision.store(revision, Relaxed);
        self.applied.fetch_add(1, Relaxed);
        self.apply_ns.fetch_add(ns, Relaxed);
        self.last_apply_ns.store(ns, Relaxed);
        self.snapshots.fetch_add(u64::from(snapshot), Relaxed);
        self.unusable.fetch_add(unusable as u64, Relaxed);
    }

    pub(super) fn disk_errors(&self, total: u64) {
        self.disk_errors.store(total, Relaxed);
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watcher").field(&self.0.get().is_some()).finish()
    }
}
