//! The snapshot: all that one sidecar needs at one revision, compiled, immutable, swapped whole. STUB to be filled.

use bytes::Bytes;

use crate::object::Kind;
use crate::wire::Position;

/// A compiled state.
#[derive(Debug)]
pub struct Snapshot {
    position: Position,
}

/// Builds a snapshot, from nothing or on top of another.
#[derive(Debug)]
pub struct Builder {}

/// One change to an object.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: String,
    /// The new document; `None` deletes it.
    pub body: Option<Bytes>,
}

/// An object that could not be used, and why. It counts as absent, or as denying everything where absence would widen the gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadObject {
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: String,
    /// What is wrong with it.
    pub error: String,
}

impl Builder {
    /// Starts from nothing: for a full snapshot.
    pub fn empty() -> Self {
        Self {}
    }

    /// Starts from `snapshot`, sharing what does not change: for a delta.
    pub fn on(snapshot: &Snapshot) -> Self {
        let _ = snapshot;
        Self {}
    }

    /// Takes in a change. A bad object never blocks the others.
    pub fn apply(&mut self, change: Change) {
        let _ = change;
    }

    /// Compiles.
    pub fn finish(self, position: Position) -> (Snapshot, Vec<BadObject>) {
        (Snapshot { position }, Vec::new())
    }
}

impl Snapshot {
    /// Its position.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Lower-case hex SHA-256 over every object it holds; equal for equal content, however it was reached.
    pub fn digest(&self) -> String {
        String::new()
    }
}
