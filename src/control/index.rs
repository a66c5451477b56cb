//! The control plane's view of its own log: every live object, and the latest commits for deltas.
//!
//! Plane: control. Fed in commit order by the committer; sidecars and the API read it and never touch the store.
//! INVARIANT: revisions arrive dense and in order; a gap is refused, because a reader could miss a revocation.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use tokio::sync::watch;

use crate::clock::Timestamp;
use crate::object::{Kind, Object};
use crate::wire::{Epoch, Position, Revision};

/// One version of one object.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: Arc<str>,
    /// The revision that wrote it.
    pub revision: Revision,
    /// The document; empty when deleted.
    pub body: Bytes,
    /// The parsed document; `None` when deleted.
    pub object: Option<Object>,
}

/// What one revision changed.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Its number.
    pub revision: Revision,
    /// When it was committed.
    pub at: Timestamp,
    /// Who asked for it.
    pub author: Arc<str>,
    /// The changed objects.
    pub changes: Vec<Arc<Stored>>,
}

/// The view.
#[derive(Debug)]
pub struct Index {
    epoch: Epoch,
    ring_capacity: usize,
    inner: RwLock<Inner>,
    tip: watch::Sender<Revision>,
}

#[derive(Debug)]
struct Inner {
    revision: Revision,
    live: BTreeMap<(Kind, Arc<str>), Arc<Stored>>,
    ring: VecDeque<Arc<Commit>>,
}

/// A commit that does not follow the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("commit {got} does not follow revision {have}")]
pub struct OutOfOrder {
    /// The revision of the view.
    pub have: Revision,
    /// The revision that was offered.
    pub got: Revision,
}

// === impl Stored ===

impl Stored {
    /// Whether a sidecar that protects `services` has any business with it. Grants and services go only to the
    /// sidecars of their services; everything else concerns every sidecar. A deleted object concerns those that its
    /// last version concerned, so the caller passes that version in `before`.
    pub fn concerns(&self, before: Option<&Self>, services: &[Box<str>]) -> bool {
        let ours = |name: &str| services.iter().any(|s| **s == *name);
        match self.object.as_ref().or_else(|| before.and_then(|b| b.object.as_ref())) {
            Some(Object::Grant(g)) => g.resources.iter().any(|r| ours(&r.service)),
            Some(Object::Service(s)) => ours(&s.name),
            Some(_) => true,
            // A tombstone whose last version is unknown carries nothing but a key; grant ids are random.
            None => !matches!(self.kind, Kind::Service) || ours(&self.key),
        }
    }
}

// === impl Index ===

impl Index {
    /// A view of the log of `epoch`: the live objects at `revision`. Keeps the last `ring_capacity` commits.
    pub fn new(
        epoch: Epoch,
        revision: Revision,
        live: impl IntoIterator<Item = Arc<Stored>>,
        ring_capacity: usize,
    ) -> Self {
        let live = live.into_iter().map(|s| ((s.kind, Arc::clone(&s.key)), s)).collect();
        let (tip, _) = watch::channel(revision);
        let inner = RwLock::new(Inner { revision, live, ring: VecDeque::new() });
        Self { epoch, ring_capacity, inner, tip }
    }

    /// Takes in the next commit and wakes who waits for it.
    pub fn apply(&self, commit: Arc<Commit>) -> Result<(), OutOfOrder> {
        let revision = commit.revision;
        {
            let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
            if revision != inner.revision.next() {
                return Err(OutOfOrder { have: inner.revision, got: revision });
            }
            for stored in &commit.changes {
                let key = (stored.kind, Arc::clone(&stored.key));
                if stored.object.is_some() {
                    inner.live.insert(key, Arc::clone(stored));
                } else {
                    inner.live.remove(&key);
                }
            }
            inner.revision = revision;
            inner.ring.push_back(commit);
            while inner.ring.len() > self.ring_capacity {
                inner.ring.pop_front();
            }
        }
        self.tip.send_replace(revision);
        Ok(())
    }

    /// Where the view stands.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, revision: self.read().revision }
    }

    /// Changes whenever a commit has been taken in.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.tip.subscribe()
    }

    /// The commits after `after`, in order; `None` when they are not all held any more (or `after` is in the future).
    pub fn since(&self, after: Revision) -> Option<Vec<Arc<Commit>>> {
        let inner = self.read();
        if after > inner.revision {
            return None;
        }
        let missing = usize::try_from(inner.revision.0 - after.0).unwrap_or(usize::MAX);
        let skip = inner.ring.len().checked_sub(missing)?;
        Some(inner.ring.iter().skip(skip).cloned().collect())
    }

    /// Every live object at one position, in snapshot order (by kind, then key).
    pub fn all(&self) -> (Position, Vec<Arc<Stored>>) {
        let inner = self.read();
        (Position { epoch: self.epoch, revision: inner.revision }, inner.live.values().cloned().collect())
    }

    /// One live object.
    pub fn get(&self, kind: Kind, key: &str) -> Option<Arc<Stored>> {
        self.read().live.get(&(kind, Arc::from(key))).cloned()
    }

    /// Up to `limit` live objects of one kind, by key, whose keys come after `after`.
    pub fn page(&self, kind: Kind, after: &str, limit: usize) -> Vec<Arc<Stored>> {
        let from = (Bound::Excluded((kind, Arc::from(after))), Bound::Unbounded);
        let inner = self.read();
        let page = inner.live.range(from).take_while(|((k, _), _)| *k == kind);
        page.take(limit).map(|(_, s)| Arc::clone(s)).collect()
    }

    /// The live objects of one kind, by key.
    pub fn list(&self, kind: Kind) -> Vec<Arc<Stored>> {
        let inner = self.read();
        let from = (kind, Arc::from(""));
        inner.live.range(from..).take_while(|((k, _), _)| *k == kind).map(|(_, s)| Arc::clone(s)).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(revision: u64, key: &str, body: &'static [u8]) -> Arc<Commit> {
        let object = (!body.is_empty()).then(|| Object::parse(Kind::Service, body).unwrap());
        let stored = Stored {
            kind: Kind::Service,
            key: Arc::from(key),
            revision: Revision(revision),
            body: Bytes::from_static(body),
            object,
        };
        Arc::new(Commit {
            revision: Revision(revision),
            at: Timestamp::from_secs(1),
            author: Arc::from("test"),
            changes: vec![Arc::new(stored)],
        })
    }

    #[test]
    fn deltas_reach_back_to_the_floor_and_no_further() {
        let epoch = Epoch::starting(Timestamp::from_secs(1));
        let index = Index::new(epoch, Revision(0), [], 2);
        index.apply(commit(1, "a", br#"{"name":"a","routes":[]}"#)).unwrap();
        index.apply(commit(2, "b", br#"{"name":"b","routes":[]}"#)).unwrap();
        index.apply(commit(3, "a", b"")).unwrap();
        assert_eq!(index.apply(commit(5, "a", b"")).unwrap_err().have, Revision(3), "a gap is refused");
        assert!(index.since(Revision(0)).is_none(), "below the floor");
        assert_eq!(index.since(Revision(1)).unwrap().len(), 2);
        assert!(index.since(Revision(3)).unwrap().is_empty());
        assert!(index.since(Revision(4)).is_none(), "in the future");
        let live: Vec<_> = index.list(Kind::Service).iter().map(|s| s.key.to_string()).collect();
        assert_eq!(live, ["b"]);
    }
}
