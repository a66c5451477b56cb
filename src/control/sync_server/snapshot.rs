//! A snapshot of one scope that is being sent, to one stream or to many: gathered once, each chunk encoded once.
//!
//! Plane: control; no I/O. Whoever sends it holds it; when the last has sent it, it is gone. INVARIANT: all its objects
//! are the scope's own, at one position. Bounded: references to objects that the index holds anyway, and the bytes of
//! the latest few chunks; a stream that is far behind the others has its chunks made anew.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use uuid::Uuid;

use super::frames::{Sealer, chunk_end, object, size};
use crate::control::index::Stored;
use crate::grant::compact;
use crate::object::Kind;
use crate::wire::Revision;
use crate::wire::proto::{self, payload::Body};

/// How many chunks are kept encoded.
const KEPT: usize = 16;

/// The snapshot.
#[derive(Debug)]
pub(super) struct Snapshot {
    id: String,
    revision: Revision,
    objects: Vec<Arc<Stored>>,
    chunks: Vec<Range<usize>>,
    bytes: usize,
    made: Mutex<VecDeque<(usize, Bytes)>>,
}

impl Snapshot {
    /// Of these objects, which are a scope's at `revision`.
    pub(super) fn new(revision: Revision, mut objects: Vec<Arc<Stored>>) -> Self {
        // Grants come last. In this order a sidecar is done with one part of them after the other.
        let grants = objects.partition_point(|stored| stored.kind != Kind::Grant);
        if let Some(grants) = objects.get_mut(grants..) {
            grants.sort_by_cached_key(|stored| compact::place(stored.compact_grant().unwrap_or_default()));
        }
        let mut chunks = Vec::new();
        let mut from = 0;
        while from < objects.len() {
            let to = chunk_end(&objects, from);
            chunks.push(from..to);
            from = to;
        }
        let bytes = objects.iter().map(|stored| size(stored)).sum();
        Self { id: Uuid::new_v4().to_string(), revision, objects, chunks, bytes, made: Mutex::default() }
    }

    /// Where it was gathered.
    pub(super) const fn revision(&self) -> Revision {
        self.revision
    }

    /// About how many bytes it is.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its first message, as of a revision up to which nothing in it has changed.
    pub(super) fn begin(&self, sealer: &Sealer, revision: Revision) -> Bytes {
        let (id, objects) = (self.id.clone(), self.objects.len() as u64);
        sealer.seal(Body::Begin(proto::SnapshotBegin { revision: revision.0, id, objects }))
    }

    /// Its last message, as of the same revision.
    pub(super) fn end(&self, sealer: &Sealer, revision: Revision) -> Bytes {
        let (id, chunks, objects) = (self.id.clone(), self.chunks.len() as u64, self.objects.len() as u64);
        sealer.seal(Body::End(proto::SnapshotEnd { id, revision: revision.0, chunks, objects }))
    }

    /// One of its chunks; `None` after the last.
    pub(super) fn chunk(&self, sealer: &Sealer, sequence: usize) -> Option<Bytes> {
        let objects = self.objects.get(self.chunks.get(sequence)?.clone())?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, message)) = made.iter().find(|(n, _)| *n == sequence) {
            return Some(message.clone());
        }
        let message = sealer.seal(Body::Chunk(self.encode(sequence, objects)));
        if made.len() >= KEPT {
            made.pop_front();
        }
        made.push_back((sequence, message.clone()));
        Some(message)
    }

    fn encode(&self, sequence: usize, all: &[Arc<Stored>]) -> proto::SnapshotChunk {
        let (mut objects, mut grants) = (Vec::new(), Vec::new());
        for stored in all {
            match stored.compact_grant() {
                Some(form) => compact::join(&mut grants, form),
                None => objects.push(object(stored)),
            }
        }
        proto::SnapshotChunk { id: self.id.clone(), sequence: sequence as u64, objects, grants: grants.into() }
    }
}
