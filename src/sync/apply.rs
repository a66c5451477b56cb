//! From genuine frames to the next snapshot: deltas on top of one, chunks of a new one, bookmarks into leases.
//!
//! Plane: sync; no I/O. Network and disk go through the same rules. INVARIANT: a delta applies only on top of the
//! very revision it starts from, a snapshot counts only when it is whole, and a position never falls below the floor.
//! An object that cannot be used fails alone and is reported.

use std::time::Duration;

use bytes::Bytes;

use crate::authz::{Builder, Lease, Prepared, Snapshot};
use crate::clock::{Monotonic, Timestamp};
use crate::object::Kind;
use crate::wire::proto::{Bookmark, Delta, Object, SnapshotBegin, SnapshotChunk, SnapshotEnd};
use crate::wire::{Epoch, Position, Revision};

/// A snapshot that can be put in force, and what of it could not be used.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) snapshot: Snapshot,
    pub(super) unusable: Vec<Unusable>,
}

/// An object that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unusable {
    pub(super) kind: String,
    pub(super) key: String,
    pub(super) error: String,
}

/// A snapshot that is arriving.
#[derive(Debug)]
pub(super) struct Assembly {
    position: Position,
    id: String,
    chunks: u64,
    objects: u64,
    builder: Builder,
    unusable: Vec<Unusable>,
}

/// A chunk whose objects have been read.
#[derive(Debug)]
pub(super) struct PreparedChunk {
    id: String,
    sequence: u64,
    objects: u64,
    changes: Vec<Result<Prepared, Unusable>>,
    /// Read only when it is taken in: reading them takes less time than handing them over would.
    grants: Bytes,
}

/// A delta whose objects have been read.
#[derive(Debug)]
pub(super) struct PreparedDelta {
    from: u64,
    to: u64,
    changes: Vec<Result<Prepared, Unusable>>,
}

/// Why a frame does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApplyError {
    #[error("a delta from `{from}` to `{to}` does not continue local `{local}`")]
    Gap { from: Position, to: Revision, local: Position },
    #[error("a snapshot at `{offered}` is older than `{floor}`, which this sidecar has already had")]
    Older { offered: Position, floor: Position },
    #[error("chunk {got} of snapshot `{id}` came where chunk {expected} of `{expected_id}` was due")]
    Chunk { id: String, got: u64, expected_id: String, expected: u64 },
    #[error("the grants of chunk {0}: {1}")]
    Grants(u64, crate::object::FieldError),
    #[error("the end of a snapshot does not match what came before it: {0}")]
    End(&'static str),
}

/// Deltas on top of a snapshot, compiled once at the end.
#[derive(Debug)]
pub(super) struct Replay {
    position: Position,
    builder: Builder,
    unusable: Vec<Unusable>,
}

/// Applies a delta on top of `current`.
pub(super) fn delta(current: &Snapshot, epoch: Epoch, delta: Delta) -> Result<Built, ApplyError> {
    let mut replay = Replay::on(current);
    replay.delta(epoch, delta.into())?;
    Ok(replay.finish())
}

/// The lease that a bookmark gives. `local_bound` may shorten how long the state may be relied on, never lengthen it.
pub(super) fn lease(bookmark: &Bookmark, received: Monotonic, local_bound: Option<Duration>) -> Lease {
    let max_staleness = Duration::from_millis(bookmark.max_staleness_ms);
    let max_staleness = local_bound.map_or(max_staleness, |bound| bound.min(max_staleness));
    Lease {
        server_time: Timestamp::from_millis(bookmark.server_time_ms),
        received,
        lease: Duration::from_millis(bookmark.lease_ms).min(max_staleness),
        max_staleness,
    }
}

// === impl Replay ===

impl Replay {
    /// Starts on top of `current`.
    pub(super) fn on(current: &Snapshot) -> Self {
        Self { position: current.position(), builder: Builder::on(current), unusable: Vec::new() }
    }

    /// Takes in a delta, which has to continue where the last one ended.
    pub(super) fn delta(&mut self, epoch: Epoch, delta: PreparedDelta) -> Result<(), ApplyError> {
        let from = Position { epoch, revision: Revision(delta.from) };
        let to = Revision(delta.to);
        if from != self.position || to <= from.revision {
            return Err(ApplyError::Gap { from, to, local: self.position });
        }
        self.position = Position { epoch, revision: to };
        delta.changes.into_iter().for_each(|change| match change {
            Ok(change) => self.builder.take_in(change),
            Err(unusable) => self.unusable.push(unusable),
        });
        Ok(())
    }

    /// Compiles.
    pub(super) fn finish(self) -> Built {
        finish(self.builder, self.position, self.unusable)
    }
}

// === impl Assembly ===

impl Assembly {
    /// Starts a snapshot, which may not be older than `floor`, to take the place of `current`.
    pub(super) fn begin(
        epoch: Epoch,
        begin: SnapshotBegin,
        floor: Option<Position>,
        current: Option<&Snapshot>,
    ) -> Result<Self, ApplyError> {
        let position = Position { epoch, revision: Revision(begin.revision) };
        if let Some(floor) = floor
            && position < floor
        {
            return Err(ApplyError::Older { offered: position, floor });
        }
        let builder = current.map_or_else(Builder::empty, Builder::in_place_of);
        Ok(Self { position, id: begin.id, chunks: 0, objects: 0, builder, unusable: Vec::new() })
    }

    /// Takes in the next chunk.
    pub(super) fn chunk(&mut self, epoch: Epoch, chunk: PreparedChunk) -> Result<(), ApplyError> {
        if epoch != self.position.epoch || chunk.id != self.id || chunk.sequence != self.chunks {
            return Err(ApplyError::Chunk {
                id: chunk.id,
                got: chunk.sequence,
                expected_id: self.id.clone(),
                expected: self.chunks,
            });
        }
        self.chunks += 1;
        self.objects += chunk.objects;
        chunk.changes.into_iter().for_each(|change| match change {
            Ok(change) => self.builder.take_in(change),
            Err(unusable) => self.unusable.push(unusable),
        });
        let grants = self.builder.take_in_grants(&chunk.grants);
        self.objects += grants.map_err(|e| ApplyError::Grants(chunk.sequence, e))?;
        Ok(())
    }

    /// Completes the snapshot.
    pub(super) fn end(self, epoch: Epoch, end: &SnapshotEnd) -> Result<Built, ApplyError> {
        if epoch != self.position.epoch || end.id != self.id || end.revision != self.position.revision.0 {
            return Err(ApplyError::End("it names another snapshot"));
        }
        if end.chunks != self.chunks || end.objects != self.objects {
            return Err(ApplyError::End("chunks or objects are missing"));
        }
        Ok(finish(self.builder, self.position, self.unusable))
    }
}

// === impl PreparedChunk ===

impl From<SnapshotChunk> for PreparedChunk {
    fn from(chunk: SnapshotChunk) -> Self {
        let SnapshotChunk { id, sequence, objects, grants } = chunk;
        Self {
            id,
            sequence,
            objects: objects.len() as u64,
            changes: objects.into_iter().map(prepare).collect(),
            grants,
        }
    }
}

// === impl PreparedDelta ===

impl From<Delta> for PreparedDelta {
    fn from(delta: Delta) -> Self {
        let Delta { from, to, objects } = delta;
        Self { from, to, changes: objects.into_iter().map(prepare).collect() }
    }
}

/// Reads an object.
fn prepare(object: Object) -> Result<Prepared, Unusable> {
    let Some(kind) = Kind::from_number(object.kind) else {
        let kind = object.kind.to_string();
        return Err(Unusable { kind, key: object.key, error: "an unknown kind of object".to_owned() });
    };
    let body = (!object.deleted).then_some(object.body);
    Ok(Prepared::sent(kind, object.key, body))
}

fn finish(builder: Builder, position: Position, mut unusable: Vec<Unusable>) -> Built {
    let (snapshot, bad) = builder.finish(position);
    unusable.extend(bad.into_iter().map(|b| Unusable { kind: b.kind.to_string(), key: b.key, error: b.error }));
    Built { snapshot, unusable }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch() -> Epoch {
        Epoch::starting(Timestamp::from_secs(5))
    }

    fn begin(revision: u64) -> SnapshotBegin {
        SnapshotBegin { revision, id: "s".into(), objects: 0 }
    }

    fn chunk(id: &str, sequence: u64) -> PreparedChunk {
        SnapshotChunk { id: id.into(), sequence, ..SnapshotChunk::default() }.into()
    }

    fn end(chunks: u64, objects: u64) -> SnapshotEnd {
        SnapshotEnd { id: "s".into(), revision: 7, chunks, objects }
    }

    #[test]
    fn a_snapshot_counts_only_when_it_is_whole() {
        let e = epoch();
        let start = || Assembly::begin(e, begin(7), None, None).unwrap();
        let mut whole = start();
        whole.chunk(e, chunk("s", 0)).unwrap();
        assert!(whole.chunk(e, chunk("s", 0)).is_err(), "twice the same");
        assert!(whole.chunk(e, chunk("s", 2)).is_err(), "one is missing");
        assert!(whole.chunk(e, chunk("t", 1)).is_err(), "another snapshot's");
        assert!(whole.chunk(Epoch::starting(Timestamp::from_secs(6)), chunk("s", 1)).is_err(), "another epoch's");
        assert_eq!(whole.end(e, &end(1, 0)).unwrap().snapshot.position().revision, Revision(7));
        assert!(start().end(e, &end(1, 0)).is_err(), "a chunk is missing");
        assert!(start().end(e, &end(0, 1)).is_err(), "an object is missing");
        assert!(start().end(e, &SnapshotEnd { revision: 8, ..end(0, 0) }).is_err(), "another revision");
    }

    #[test]
    fn an_older_snapshot_is_refused() {
        let (old, new) = (Epoch::starting(Timestamp::from_secs(1)), Epoch::starting(Timestamp::from_secs(9)));
        let floor = Some(Position { epoch: new, revision: Revision(5) });
        assert!(Assembly::begin(new, begin(4), floor, None).is_err());
        assert!(
            Assembly::begin(old, begin(900), floor, None).is_err(),
            "an earlier epoch is older whatever its revision"
        );
        Assembly::begin(new, begin(5), floor, None).unwrap();
        Assembly::begin(Epoch::starting(Timestamp::from_secs(10)), begin(0), floor, None).unwrap();
    }

    #[test]
    fn a_delta_continues_the_local_revision_or_nothing() {
        let e = epoch();
        let current = Assembly::begin(e, begin(7), None, None).unwrap().end(e, &end(0, 0)).unwrap().snapshot;
        let apply = |epoch, from, to| delta(&current, epoch, Delta { from, to, objects: vec![] });
        assert_eq!(apply(e, 7, 9).unwrap().snapshot.position().revision, Revision(9));
        for (epoch, from, to) in [(e, 6, 9), (e, 8, 9), (e, 7, 7), (e, 7, 6), (Epoch::starting(Timestamp::MAX), 7, 8)] {
            assert!(apply(epoch, from, to).is_err(), "{from} {to}");
        }
    }

    #[test]
    fn local_configuration_only_shortens() {
        let b = Bookmark { lease_ms: 10_000, max_staleness_ms: 60_000, ..Bookmark::default() };
        let with = |bound| lease(&b, Monotonic::default(), bound);
        assert_eq!(with(Some(Duration::from_secs(5))).max_staleness, Duration::from_secs(5));
        assert_eq!(with(Some(Duration::from_secs(5))).lease, Duration::from_secs(5));
        assert_eq!(with(Some(Duration::from_secs(500))).max_staleness, Duration::from_secs(60));
        assert_eq!(with(None).lease, Duration::from_secs(10));
    }
}
