//! Which idempotency keys are held, and since when: so that they can be counted and forgotten without a walk over all.
//!
//! Plane: control. Fed by the committer. A key is held for at least [`KeyBook::HELD`] after its use, and never more than
//! [`KeyBook::MAX`] are: a new one is refused rather than an old one forgotten early, because a request that is tried
//! again must not be done again. One caller has at most [`KeyBook::MAX_OF_ONE`] of them, so that none takes all from others.

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
    used: HashMap<Arc<str>, Use>,
    by_caller: HashMap<Arc<str>, BTreeSet<(Timestamp, Arc<str>)>>,
}

#[derive(Debug)]
struct Use {
    at: Timestamp,
    caller: Option<Arc<str>>,
}

/// Why no more keys can be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// All together are too many.
    All,
    /// This caller's are, until then.
    OfCaller(Timestamp),
}

impl KeyBook {
    /// How long a key is held.
    pub(super) const HELD: Duration = Duration::from_secs(25 * 3600);
    /// How many are.
    pub(super) const MAX: usize = 100_000;

    /// How many of them one caller has at most.
    pub(super) const MAX_OF_ONE: usize = 10_000;

    /// Takes note of a change of a key.
    pub(super) fn note(&self, stored: &Stored) {
        let mut inner = self.lock();
        inner.remove(&stored.key);
        if let Some(Object::Idempotency(record)) = &stored.object {
            let caller: Option<Arc<str>> = record.caller.as_deref().map(Arc::from);
            let entry = (record.at, Arc::clone(&stored.key));
            inner.by_use.insert(entry.clone());
            if let Some(caller) = &caller {
                inner.by_caller.entry(Arc::clone(caller)).or_default().insert(entry);
            }
            inner.used.insert(Arc::clone(&stored.key), Use { at: record.at, caller });
        }
    }

    /// Whether `caller` can use one more.
    pub(super) fn check(&self, caller: &str) -> Result<(), Full> {
        let inner = self.lock();
        if let Some(own) = inner.by_caller.get(caller).filter(|own| own.len() >= Self::MAX_OF_ONE) {
            let first = own.first().map_or(Timestamp::default(), |(at, _)| *at);
            return Err(Full::OfCaller(first.saturating_add(Self::HELD)));
        }
        if inner.used.len() >= Self::MAX { Err(Full::All) } else { Ok(()) }
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

impl Inner {
    fn remove(&mut self, key: &Arc<str>) {
        let Some(Use { at, caller }) = self.used.remove(key) else { return };
        let entry = (at, Arc::clone(key));
        self.by_use.remove(&entry);
        if let Some(caller) = caller
            && let Some(own) = self.by_caller.get_mut(&caller)
        {
            own.remove(&entry);
            if own.is_empty() {
                self.by_caller.remove(&caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Idempotency, Kind};
    use crate::wire::Revision;

    fn used(n: usize, caller: &str, at: u64) -> Stored {
        let (key, at) = (format!("k{n}"), Timestamp::from_secs(at));
        let (body, answer, caller) = (String::new(), String::new(), Some(caller.to_owned()));
        let record = Idempotency { key: key.clone(), body, answer, at, caller };
        let (kind, object) = (Kind::Idempotency, Some(Object::Idempotency(record)));
        Stored::new(kind, Arc::from(key), Revision(1), bytes::Bytes::new(), object)
    }

    #[test]
    fn one_caller_uses_up_its_own_share_and_nobody_elses() {
        let book = KeyBook::default();
        for n in 0..KeyBook::MAX_OF_ONE {
            assert_eq!(book.check("greedy"), Ok(()));
            book.note(&used(n, "greedy", 100 + n as u64));
        }
        let until = Timestamp::from_secs(100).saturating_add(KeyBook::HELD);
        assert_eq!(book.check("greedy"), Err(Full::OfCaller(until)));
        assert_eq!(book.check("other"), Ok(()));
        // The oldest is forgotten.
        let mut gone = used(0, "greedy", 100);
        gone.object = None;
        book.note(&gone);
        assert_eq!(book.check("greedy"), Ok(()));
        for n in KeyBook::MAX_OF_ONE..=KeyBook::MAX {
            book.note(&used(n, &format!("c{}", n % 100), 5));
        }
        assert_eq!(book.check("newcomer"), Err(Full::All));
    }
}
