//! What is sent: signed frames, merged deltas, snapshot chunks.
//!
//! Plane: control; no I/O. Of a grant only its compact form is sent. INVARIANT: nothing here is given a change without asking its audience first, and a
//! revision is never split over two deltas. Merging keeps the last version of an object, and a deletion of anything
//! that the sidecar may hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::control::index::{Logged, Stored};
use crate::object::Kind;
use crate::wire::proto::{self, payload::Body};
use crate::wire::{Epoch, Revision, ScopeId, SigningKey, seal};

/// How many bytes of documents a delta or a chunk is filled up to. One revision, or one object, may exceed it.
pub(super) const TARGET_BYTES: usize = 512 * 1024;

/// What an object takes beside its key and its document.
const OVERHEAD: usize = 16;
/// What gRPC puts before a message.
pub(super) const PREFIX: usize = 5;

/// Encodes and signs payloads for one scope.
#[derive(Debug)]
pub(super) struct Sealer {
    key: Arc<SigningKey>,
    epoch: Epoch,
    scope: ScopeId,
}

/// The changes of some whole revisions that concern one sidecar, merged.
#[derive(Debug, PartialEq)]
pub(super) struct Batch {
    /// The last of the revisions.
    pub(super) to: Revision,
    /// How many they are.
    pub(super) commits: usize,
    /// What to send; empty when nothing concerns the sidecar.
    pub(super) objects: Vec<proto::Object>,
}

// === impl Sealer ===

impl Sealer {
    pub(super) fn new(key: Arc<SigningKey>, epoch: Epoch, scope: &ScopeId) -> Self {
        Self { key, epoch, scope: scope.clone() }
    }

    /// A signed frame around `body`, as the gRPC message that goes out: not compressed, its length, then the frame.
    pub(super) fn seal(&self, body: Body) -> Bytes {
        let frame = seal(&self.key, self.epoch, &self.scope, body);
        let length = frame.encoded_len();
        let mut message = BytesMut::with_capacity(length + PREFIX);
        message.put_u8(0);
        // One that does not fit 32 bits is far beyond what is sent.
        message.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        frame.encode_raw(&mut message);
        message.freeze()
    }
}

/// What the first commits of `log` tell a sidecar of `services`, merged up to the size target; `None` of no commits.
pub(super) fn first_batch(log: &[Arc<Logged>], services: &[Box<str>]) -> Option<Batch> {
    let mut open: BTreeMap<(Kind, &str), proto::Object> = BTreeMap::new();
    let mut bytes = 0;
    let (mut to, mut commits) = (log.first()?.commit.revision, 0);
    for logged in log {
        for change in &logged.changes {
            let stored = &change.stored;
            let key = (stored.kind, &*stored.key);
            if change.audience.includes(services) {
                bytes += size(stored);
                open.insert(key, object(stored));
            } else if change.before.includes(services) {
                // Gone, or no business of this sidecar's any more: all it may learn is that what it holds ended.
                bytes += stored.key.len() + OVERHEAD;
                open.insert(key, tombstone(stored));
            }
        }
        to = logged.commit.revision;
        commits += 1;
        if bytes >= TARGET_BYTES {
            break;
        }
    }
    Some(Batch { to, commits, objects: open.into_values().collect() })
}

/// Where a chunk that begins at `from` ends.
pub(super) fn chunk_end(objects: &[Arc<Stored>], from: usize) -> usize {
    let mut bytes = 0;
    let fits = objects.iter().skip(from).take_while(|stored| {
        let before = bytes;
        bytes += size(stored);
        before < TARGET_BYTES
    });
    from + fits.count()
}

/// About what an object takes.
pub(super) fn size(stored: &Stored) -> usize {
    stored.compact_grant().unwrap_or(&stored.body).len() + stored.key.len() + OVERHEAD
}

pub(super) fn object(stored: &Stored) -> proto::Object {
    proto::Object {
        kind: i32::from(stored.kind as u8),
        key: stored.key.to_string(),
        revision: stored.revision.0,
        body: stored.compact_grant().map_or_else(|| stored.body.clone(), Bytes::copy_from_slice),
        deleted: false,
    }
}

fn tombstone(stored: &Stored) -> proto::Object {
    proto::Object {
        kind: i32::from(stored.kind as u8),
        key: stored.key.to_string(),
        revision: stored.revision.0,
        body: Bytes::new(),
        deleted: true,
    }
}
