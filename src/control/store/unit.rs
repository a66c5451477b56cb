//! Units of change: what is written together, under which expectations, and what became of it.
//!
//! Plane: control; plain data. Expectations work like etcd's compare-then-put: a writer names the revisions that its
//! validation rested on, and the store rejects it when one of them has moved. A guard covers what was read but not
//! written; a guard on a whole kind also covers objects that did not exist yet.

use std::fmt;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::control::audit::Author;
use crate::object::{Kind, Object};
use crate::wire::{Position, Revision};

/// Changes that take effect together, under one revision.
#[derive(Debug, Clone)]
pub struct Unit {
    /// Who asks for it.
    pub author: Author,
    /// What is being done, as in `grant.approve`; kept with the revision.
    pub action: String,
    /// The id of the request that asked for it; kept with the revision.
    pub request_id: String,
    /// What must still hold, beside the expectations of the changes.
    pub guards: Vec<Guard>,
    /// The changes; at least one, each key once.
    pub changes: Vec<Write>,
}

/// One change.
#[derive(Debug, Clone)]
pub struct Write {
    /// Kind of the object.
    pub kind: Kind,
    /// Key of the object.
    pub key: String,
    /// What must hold of the stored version. Deleting an object that does not exist is always a conflict.
    pub expect: Expect,
    /// The new document; `None` deletes.
    pub body: Option<Bytes>,
}

/// What must hold of the stored version of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    Any,
    /// There is none.
    Absent,
    /// This revision wrote it.
    Revision(Revision),
}

/// What must still hold for a unit to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// An object is as expected.
    Object {
        /// Its kind.
        kind: Kind,
        /// Its key.
        key: String,
        /// What must hold of it.
        expect: Expect,
    },
    /// No object of a kind was written after a revision.
    KindUnchanged {
        /// The kind.
        kind: Kind,
        /// The revision.
        since: Revision,
    },
}

/// Where and when a unit was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Its position in the log.
    pub position: Position,
    /// When; never before the commit before it.
    pub at: Timestamp,
}

/// An expectation that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Kind of the object.
    pub kind: Kind,
    /// Key of the object; `None` when the guard was on the kind.
    pub key: Option<String>,
    /// The revision that was found; `None` when there is no such object.
    pub found: Option<Revision>,
}

// === impl Unit ===

impl Unit {
    /// A unit without guards and changes.
    pub fn new(author: impl Into<Author>, action: impl Into<String>, request_id: impl Into<String>) -> Self {
        Self {
            author: author.into(),
            action: action.into(),
            request_id: request_id.into(),
            guards: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// With one more change.
    #[must_use]
    pub fn with(mut self, change: Write) -> Self {
        self.changes.push(change);
        self
    }
}

// === impl Write ===

impl Write {
    /// Stores `object`.
    pub fn put(object: &Object, expect: Expect) -> Self {
        Self { kind: object.kind(), key: object.key(), expect, body: Some(Bytes::from(object.to_json())) }
    }

    /// Deletes an object.
    pub fn delete(kind: Kind, key: impl Into<String>, expect: Expect) -> Self {
        Self { kind, key: key.into(), expect, body: None }
    }
}

// === impl Expect ===

impl Expect {
    /// Whether the stored version, if there is one, is as expected.
    pub fn holds(self, found: Option<Revision>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => found.is_none(),
            Self::Revision(r) => found == Some(r),
        }
    }
}

// === impl Conflict ===

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.key, self.found) {
            (Some(key), Some(revision)) => write!(f, "{} `{key}` has changed: it is at revision {revision}", self.kind),
            (Some(key), None) => write!(f, "{} `{key}` does not exist", self.kind),
            (None, _) => write!(f, "objects of kind {} have changed", self.kind),
        }
    }
}

impl std::error::Error for Conflict {}
