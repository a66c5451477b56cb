//! What is sent: signed frames, merged deltas, snapshot chunks.
//!
//! Plane: control; no I/O. INVARIANT: nothing here is given a change without asking its audience first, and a
//! revision is never split over two deltas. Merging keeps the last version of an object, and a deletion of anything
//! that the sidecar may hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::control::index::{Logged, Stored};
use crate::object::Kind;
use crate::wire::proto::{self, ServerFrame, payload::Body};
use crate::wire::{Epoch, Revision, ScopeId, SigningKey};

/// How many bytes of documents a delta or a chunk is filled up to. One revision, or one object, may exceed it.
pub(super) const TARGET_BYTES: usize = 512 * 1024;

/// Signs payloads for one stream.
#[derive(Debug)]
pub(super) struct Sealer {
    key: Arc<SigningKey>,
    epoch: String,
    scope: String,
}

/// The changes of some whole revisions that concern one sidecar, merged.
#[derive(Debug, PartialEq)]
pub(super) struct Batch {
    /// The last of the revisions.
    pub(super) to: Revision,
    /// What to send; empty when nothing concerns the sidecar.
    pub(super) objects: Vec<proto::Object>,
}

// === impl Sealer ===

impl Sealer {
    pub(super) fn new(key: Arc<SigningKey>, epoch: Epoch, scope: &ScopeId) -> Self {
        Self { key, epoch: epoch.to_string(), scope: scope.as_str().to_owned() }
    }

    /// A signed frame around `body`.
    pub(super) fn seal(&self, body: Body) -> ServerFrame {
        let payload = proto::Payload { epoch: self.epoch.clone(), scope: self.scope.clone(), body: Some(body) };
        let payload = Bytes::from(payload.encode_to_vec());
        let signature = Bytes::from(self.key.sign(&payload));
        ServerFrame { payload, signature }
    }
}

/// What of `log` a sidecar of `services` is told, in as few batches as the size target allows.
pub(super) fn batches(log: &[Arc<Logged>], services: &[Box<str>]) -> Vec<Batch> {
    let mut done = Vec::new();
    let mut open: BTreeMap<(Kind, &str), proto::Object> = BTreeMap::new();
    let mut bytes = 0;
    let mut to = None;
    for logged in log {
        for change in &logged.changes {
            let stored = &change.stored;
            let key = (stored.kind, &*stored.key);
            if change.audience.includes(services) {
                bytes += stored.body.len() + stored.key.len() + 16;
                open.insert(key, object(stored));
            } else if change.before.includes(services) {
                // Gone, or no business of this sidecar's any more: all it may learn is that what it holds ended.
                bytes += stored.key.len() + 16;
                open.insert(key, tombstone(stored));
            }
        }
        to = Some(logged.commit.revision);
        if bytes >= TARGET_BYTES {
            let objects = std::mem::take(&mut open).into_values().collect();
            done.push(Batch { to: logged.commit.revision, objects });
            (bytes, to) = (0, None);
        }
    }
    if let Some(to) = to {
        done.push(Batch { to, objects: open.into_values().collect() });
    }
    done
}

/// Takes the next chunk's objects off `rest`; empty when there are none left.
pub(super) fn next_chunk(rest: &mut std::vec::IntoIter<Arc<Stored>>) -> Vec<proto::Object> {
    let mut objects = Vec::new();
    let mut bytes = 0;
    while bytes < TARGET_BYTES
        && let Some(stored) = rest.next()
    {
        bytes += stored.body.len() + stored.key.len() + 16;
        objects.push(object(&stored));
    }
    objects
}

fn object(stored: &Stored) -> proto::Object {
    proto::Object {
        kind: i32::from(stored.kind as u8),
        key: stored.key.to_string(),
        revision: stored.revision.0,
        body: stored.body.clone(),
        deleted: false,
    }
}

fn tombstone(stored: &Stored) -> proto::Object {
    proto::Object { body: Bytes::new(), deleted: true, ..object(stored) }
}
