//! Signed frames made by hand.

use prost::Message;

use crate::authz::Change;
use crate::clock::Timestamp;
use crate::credential::SpiffeId;
use crate::sync::frame::Opener;
use crate::wire::proto::{self, ServerFrame, payload::Body};
use crate::wire::{Epoch, ScopeId, SigningKey};

/// Seals bodies for one scope and epoch.
#[derive(Debug)]
pub(in crate::sync) struct Frames {
    pub(in crate::sync) key: SigningKey,
    pub(in crate::sync) scope: ScopeId,
    pub(in crate::sync) epoch: Epoch,
}

impl Frames {
    pub(in crate::sync) fn new() -> Self {
        let (key, _) = SigningKey::generate().unwrap();
        Self { key, scope: scope(), epoch: Epoch::starting(Timestamp::from_secs(1_700_000_000)) }
    }

    pub(in crate::sync) fn opener(&self) -> Opener {
        Opener { key: self.key.verify_key(), scope: Some(self.scope.clone()) }
    }

    pub(in crate::sync) fn seal(&self, body: Body) -> ServerFrame {
        let scope = self.scope.as_str().to_owned();
        let payload = proto::Payload { epoch: self.epoch.to_string(), scope, body: Some(body) }.encode_to_vec();
        ServerFrame { signature: self.key.sign(&payload).into(), payload: payload.into() }
    }

    /// A snapshot of these objects, one a chunk.
    pub(in crate::sync) fn snapshot(&self, revision: u64, objects: &[Change]) -> Vec<ServerFrame> {
        let id = format!("snapshot-{revision}");
        let count = objects.len() as u64;
        let mut frames =
            vec![self.seal(Body::Begin(proto::SnapshotBegin { revision, id: id.clone(), objects: count }))];
        for (sequence, change) in objects.iter().enumerate() {
            let objects = vec![object(change, revision)];
            let sequence = sequence as u64;
            frames.push(self.seal(Body::Chunk(proto::SnapshotChunk {
                id: id.clone(),
                sequence,
                objects,
                ..Default::default()
            })));
        }
        frames.push(self.seal(Body::End(proto::SnapshotEnd { id, revision, chunks: count, objects: count })));
        frames
    }

    pub(in crate::sync) fn delta(&self, from: u64, to: u64, changes: &[Change]) -> ServerFrame {
        let objects = changes.iter().map(|c| object(c, to)).collect();
        self.seal(Body::Delta(proto::Delta { from, to, objects }))
    }

    pub(in crate::sync) fn bookmark(&self, revision: u64, at: Timestamp) -> ServerFrame {
        self.seal(Body::Bookmark(proto::Bookmark {
            revision,
            lease_ms: 10_000,
            max_staleness_ms: 300_000,
            server_time_ms: at.as_millis(),
        }))
    }
}

/// The sidecar of the tests.
pub(in crate::sync) fn identity() -> SpiffeId {
    SpiffeId::parse("spiffe://test.example/sidecar").unwrap()
}

/// Its scope.
pub(in crate::sync) fn scope() -> ScopeId {
    ScopeId::new(&identity(), ["catalog", "payments"])
}

fn object(change: &Change, revision: u64) -> proto::Object {
    proto::Object {
        kind: i32::from(change.kind as u8),
        key: change.key.clone(),
        revision,
        body: change.sent().unwrap_or_default(),
        deleted: change.body.is_none(),
    }
}
