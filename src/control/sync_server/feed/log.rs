//! What a feed keeps: the latest deltas, some merged ones, and a bookmark.
//!
//! Plane: control. Only a saving: whatever is not here is made again from the index. Bounded by number, by bytes, by time,
//! and by what all feeds keep together, so that many scopes cannot multiply one large change.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Made;
use crate::clock::Now;
use crate::wire::Revision;

/// How many deltas are kept.
pub(super) const KEPT: usize = 64;
/// How many bytes of them, but for the newest.
pub(super) const KEPT_BYTES: usize = 1024 * 1024;
/// How many bytes all feeds keep together. Beyond, each stream has its delta made for itself.
pub(super) const KEPT_BY_ALL: usize = 256 * 1024 * 1024;
/// How long a delta is kept: whoever still reads then is made one.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Log {
    /// Where the deltas lead.
    pub(super) sent: Revision,
    /// How far the index was looked through: what lies between `sent` and here is of no concern to the scope.
    pub(super) scanned: Revision,
    pub(super) deltas: VecDeque<Kept>,
    pub(super) bytes: usize,
    pub(super) merged: VecDeque<Kept>,
    pub(super) bookmark: Option<(Now, Revision, Bytes)>,
}

/// A delta that is kept for others, counted among all that are.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) made: Made,
    since: Instant,
    by_all: Arc<AtomicUsize>,
}

// === impl Log ===

impl Log {
    pub(super) const fn at(revision: Revision) -> Self {
        Self {
            sent: revision,
            scanned: revision,
            deltas: VecDeque::new(),
            bytes: 0,
            merged: VecDeque::new(),
            bookmark: None,
        }
    }

    pub(super) fn push(&mut self, made: &Made, kept_by_all: &Arc<AtomicUsize>) {
        self.sent = made.to;
        self.merged.clear();
        if let Some(kept) = Kept::of(made, kept_by_all) {
            self.bytes += made.message.len();
            self.deltas.push_back(kept);
        }
        while self.deltas.len() > 1 && (self.deltas.len() > KEPT || self.bytes > KEPT_BYTES) {
            self.forget_oldest();
        }
    }

    pub(super) fn forget_old(&mut self) {
        let old = |kept: Option<&Kept>| kept.is_some_and(|kept| kept.since.elapsed() > KEPT_FOR);
        while old(self.deltas.front()) {
            self.forget_oldest();
        }
        while old(self.merged.front()) {
            self.merged.pop_front();
        }
    }

    fn forget_oldest(&mut self) {
        self.bytes -= self.deltas.pop_front().map_or(0, |old| old.made.message.len());
    }
}

// === impl Kept ===

impl Kept {
    /// `None` when there is no room for it.
    pub(super) fn of(made: &Made, by_all: &Arc<AtomicUsize>) -> Option<Self> {
        let size = made.message.len();
        let all = by_all.fetch_add(size, Ordering::Relaxed).saturating_add(size);
        // Counts itself from here on, so that what is refused is taken off again.
        let kept = Self { made: made.clone(), since: Instant::now(), by_all: Arc::clone(by_all) };
        (all <= KEPT_BY_ALL).then_some(kept)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.by_all.fetch_sub(self.made.message.len(), Ordering::Relaxed);
    }
}
