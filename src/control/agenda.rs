//! When which grant is due for its next step: to lapse, to start, to end, to be forgotten.
//!
//! Plane: control. Fed by the committer with every grant that changes, so that the sweeper never scans them all.
//! Losing an entry never lengthens a grant: enforcement points look at `not_after` themselves.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::index::Stored;
use super::key_book::KeyBook;
use crate::clock::Timestamp;
use crate::object::{Grant, GrantState, Kind, Object};

/// How long grants are kept where their own times do not say it.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// How long a request waits for its approval.
    pub pending: Duration,
    /// How long a grant or request is kept after its end, so that a denial can tell of it.
    pub ended: Duration,
}

#[derive(Debug)]
pub(super) struct Agenda {
    retention: Retention,
    inner: Mutex<Inner>,
    keys: KeyBook,
}

#[derive(Debug, Default)]
struct Inner {
    due: BTreeSet<(Timestamp, Arc<str>)>,
    by_key: HashMap<Arc<str>, Timestamp>,
}

// === impl Retention ===

impl Retention {
    /// When the grant is due for its next step.
    pub(super) fn due(&self, grant: &Grant) -> Timestamp {
        match grant.state {
            GrantState::Pending => grant.requested_at.saturating_add(self.pending),
            GrantState::Scheduled => grant.not_before.unwrap_or_default(),
            GrantState::Active => grant.not_after.unwrap_or_default(),
            _ => grant.ended.as_ref().map_or(grant.requested_at, |e| e.at).saturating_add(self.ended),
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self { pending: Duration::from_secs(86_400), ended: Duration::from_secs(86_400) }
    }
}

// === impl Agenda ===

impl Agenda {
    pub(super) fn new(retention: Retention) -> Self {
        Self { retention, inner: Mutex::default(), keys: KeyBook::default() }
    }

    pub(super) const fn retention(&self) -> Retention {
        self.retention
    }

    /// Takes note of a change.
    pub(super) fn note(&self, stored: &Stored) {
        match stored.kind {
            Kind::Grant => {}
            Kind::Idempotency => return self.keys.note(stored),
            _ => return,
        }
        let mut inner = self.lock();
        inner.remove(&stored.key);
        if let Some(Object::Grant(grant)) = &stored.object {
            inner.insert(self.retention.due(grant), Arc::clone(&stored.key));
        }
    }

    /// The idempotency keys that are held.
    pub(super) const fn keys(&self) -> &KeyBook {
        &self.keys
    }

    /// Takes out up to `limit` grants that are due.
    pub(super) fn take(&self, now: Timestamp, limit: usize) -> Vec<Arc<str>> {
        let mut inner = self.lock();
        let due: Vec<_> = inner.due.iter().take(limit).take_while(|(at, _)| *at <= now).cloned().collect();
        due.into_iter()
            .map(|(_, key)| {
                inner.remove(&key);
                key
            })
            .collect()
    }

    /// Puts back what could not be dealt with, unless it is on again already.
    pub(super) fn put_back(&self, keys: Vec<Arc<str>>, at: Timestamp) {
        let mut inner = self.lock();
        for key in keys {
            if !inner.by_key.contains_key(&key) {
                inner.insert(at, key);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl Inner {
    fn insert(&mut self, at: Timestamp, key: Arc<str>) {
        self.due.insert((at, Arc::clone(&key)));
        self.by_key.insert(key, at);
    }

    fn remove(&mut self, key: &Arc<str>) {
        if let Some(at) = self.by_key.remove(key) {
            self.due.remove(&(at, Arc::clone(key)));
        }
    }
}
