//! Which idempotency keys are held, and since when: so that they can be counted and forgotten without a walk over all.
//!
//! Plane: control. Fed by the committer. A key is held for at least [`KeyBook::HELD`] after its use, and never more than
//! [`KeyBook::MAX`] are: a new one is refused rather than an old one forgotten early, because a request that is tried
//! again must not be done again.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::index::Stored;
use crate::clock::Timestamp;
use crate::object::Object;

#[derive(Debug, Default)]
pub(super) struct KeyBook(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    by_use: BTreeSet<(Timestamp, Arc<str>)>,
    used: HashMap<Arc<str>, Timestamp>,
}

impl KeyBook {
    /// How long a key is held.
    pub(super) const HELD: Duration = Duration::from_secs(25 * 3600);
    /// How many are.
    pub(super) const MAX: usize = 100_000;

    /// Takes note of a change of a key.
    pub(super) fn note(&self, stored: &Stored) {
        let mut inner = self.lock();
        if let Some(at) = inner.used.remove(&stored.key) {
            inner.by_use.remove(&(at, Arc::clone(&stored.key)));
        }
        if let Some(Object::Idempotency(record)) = &stored.object {
            inner.used.insert(Arc::clone(&stored.key), record.at);
            inner.by_use.insert((record.at, Arc::clone(&stored.key)));
        }
    }

    /// Whether no more can be held.
    pub(super) fn is_full(&self) -> bool {
        self.lock().used.len() >= Self::MAX
    }

    /// Up to `limit` that have been held long enough.
    pub(super) fn over(&self, now: Timestamp, limit: usize) -> Vec<Arc<str>> {
        let inner = self.lock();
        let over = inner.by_use.iter().take_while(|(at, _)| at.saturating_add(Self::HELD) <= now);
        over.take(limit).map(|(_, key)| Arc::clone(key)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
