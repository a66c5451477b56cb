//! From what a store holds back to objects and commits in memory.
//!
//! Plane: control; pure. The index is fed the retained log again, from the state at its floor, so that a restart
//! leaves sidecars their deltas and their tombstones. INVARIANT: what does not parse, or does not add up, is refused:
//! a control plane must not serve a state that it half understands.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::index::{Commit, Stored};
use super::store::{Loaded, LogCommit, RawObject};
use crate::object::{Kind, Object};
use crate::wire::Revision;

/// The state at the floor of the log, and the log.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) objects: Vec<Arc<Stored>>,
    pub(super) log: Vec<Arc<Commit>>,
}

/// Undoes the log to get the state at its floor, and parses everything.
pub(super) fn restore(loaded: Loaded) -> Result<Restored, String> {
    let mut live: BTreeMap<(Kind, String), (Revision, Bytes)> =
        loaded.objects.into_iter().map(|o| ((o.kind, o.key), (o.revision, o.body))).collect();
    let mut expected = loaded.revision;
    for commit in loaded.log.iter().rev() {
        if commit.revision != expected {
            return Err(format!("the log has revision {} where {expected} is due", commit.revision));
        }
        for change in commit.changes.iter().rev() {
            let id = (change.kind, change.key.clone());
            let now = live.remove(&id);
            let agrees = match (&change.body, &now) {
                (Some(body), Some((revision, stored))) => *revision == commit.revision && stored == body,
                (None, None) => true,
                _ => false,
            };
            if !agrees {
                return Err(format!("{} `{}` is not as revision {} left it", change.kind, change.key, commit.revision));
            }
            if let Some(previous) = &change.previous {
                live.insert(id, previous.clone());
            }
        }
        expected = Revision(expected.0.saturating_sub(1));
    }
    if expected != loaded.floor {
        return Err(format!("the log ends at revision {expected}, its floor is {}", loaded.floor));
    }
    let objects = live
        .into_iter()
        .map(|((kind, key), (revision, body))| stored(RawObject { kind, key, revision, body }).map(Arc::new));
    let log = loaded.log.into_iter().map(|c| commit(c).map(Arc::new));
    Ok(Restored { objects: objects.collect::<Result<_, _>>()?, log: log.collect::<Result<_, _>>()? })
}

/// A commit of the log, parsed.
pub(super) fn commit(raw: LogCommit) -> Result<Commit, String> {
    let revision = raw.revision;
    let changes = raw.changes.into_iter().map(|change| {
        let (kind, key) = (change.kind, change.key);
        match change.body {
            Some(body) => stored(RawObject { kind, key, revision, body }).map(Arc::new),
            None => Ok(Arc::new(tombstone(kind, &key, revision))),
        }
    });
    Ok(Commit { revision, at: raw.at, author: Arc::from(raw.author), changes: changes.collect::<Result<_, String>>()? })
}

/// A deleted object.
pub(super) fn tombstone(kind: Kind, key: &str, revision: Revision) -> Stored {
    Stored::new(kind, Arc::from(key), revision, Bytes::new(), None)
}

fn stored(raw: RawObject) -> Result<Stored, String> {
    let RawObject { kind, key, revision, body } = raw;
    let object = Object::parse(kind, &body).map_err(|e| format!("{kind} `{key}` at revision {revision}: {e}"))?;
    if object.key() != key {
        return Err(format!("{kind} `{key}` at revision {revision} says that it is `{}`", object.key()));
    }
    Ok(Stored::new(kind, Arc::from(key), revision, body, Some(object)))
}
