//! The durable store behind the control plane: a log of units of change, each with one dense revision.
//!
//! Plane: control. One trait over every database, one conformance suite over every implementation.
//! INVARIANT: a unit is in the log whole or not at all, under exactly one revision, and commit order is revision order
//! without gaps. What `commit` has answered survives a crash. A unit whose expectations do not hold is rejected alone.
//! A database that contradicts itself is refused on open: a gap could hide a revocation.

mod sqlite;
mod unit;

#[cfg(test)]
pub(crate) mod conformance;

use std::fmt;
use std::path::Path;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use self::sqlite::{AuditReader, SqliteStore};
pub use self::unit::{Committed, Conflict, Expect, Guard, Unit, Write};
use crate::clock::Timestamp;
use crate::control::audit::{Changed, Event, Hash, Sealed, Tip};
use crate::control::principal::OperatorKind;
use crate::object::Kind;
use crate::wire::{Epoch, Revision};

/// A durable log with the objects that it adds up to, and the operators.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The identity of this log; fixed when the database was created.
    fn epoch(&self) -> Epoch;

    /// Everything at one revision.
    fn load(&self) -> BoxFuture<'_, Result<Loaded, StoreError>>;

    /// The commits after `after`, in order, at most `limit`. `after` is not below the floor.
    fn log_since(&self, after: Revision, limit: usize) -> BoxFuture<'_, Result<Vec<LogCommit>, StoreError>>;

    /// Commits what it can of `units` in one durable transaction, in their order, and answers for each. On an error
    /// it is not known whether they were committed.
    fn commit<'a>(
        &'a self,
        units: &'a [Unit],
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Vec<Result<Committed, Conflict>>, StoreError>>;

    /// Forgets the log up to and including `floor`.
    fn trim(&self, floor: Revision) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Every operator, revoked ones included.
    fn operators(&self) -> BoxFuture<'_, Result<Vec<OperatorRow>, StoreError>>;

    /// Adds an operator; `false` when the name has been used before. `event` goes into the audit trail with it.
    fn add_operator<'a>(&'a self, row: &'a OperatorRow, event: &'a Event) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Revokes an operator; `false` when there is no active one of that name, or it is the last. `event` says who.
    fn revoke_operator<'a>(
        &'a self,
        name: &'a str,
        event: &'a Event,
        at: Timestamp,
    ) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Puts events that no unit is about into the audit trail, in one durable transaction.
    fn audit<'a>(&'a self, events: &'a [(Timestamp, Event)]) -> BoxFuture<'a, Result<(), StoreError>>;

    /// How far the audit trail has come.
    fn audit_tip(&self) -> BoxFuture<'_, Result<Tip, StoreError>>;

    /// The audit records after number `after`, oldest first, at most `limit`.
    fn audit_since(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<AuditRow>, StoreError>>;

    /// The audit records before number `before`, newest first, at most `limit`.
    fn audit_before(&self, before: u64, limit: usize) -> BoxFuture<'_, Result<Vec<AuditRow>, StoreError>>;

    /// Flushes and closes. Nothing works after it.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// What a store holds, at one revision.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// The latest revision.
    pub revision: Revision,
    /// The newest revision that the log no longer holds.
    pub floor: Revision,
    /// When the latest revision was committed.
    pub at: Timestamp,
    /// The live objects.
    pub objects: Vec<RawObject>,
    /// The commits above the floor, in order.
    pub log: Vec<LogCommit>,
}

/// A stored version of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawObject {
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: String,
    /// The revision that wrote it.
    pub revision: Revision,
    /// The document.
    pub body: Bytes,
}

/// One revision of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogCommit {
    /// Its number.
    pub revision: Revision,
    /// When it was committed.
    pub at: Timestamp,
    /// Who asked for it.
    pub author: String,
    /// What it changed.
    pub changes: Vec<LogChange>,
}

/// One change of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChange {
    /// Kind of the object.
    pub kind: Kind,
    /// Key of the object.
    pub key: String,
    /// The new document; `None` when deleted.
    pub body: Option<Bytes>,
    /// The version that was replaced; `None` when created.
    pub previous: Option<(Revision, Bytes)>,
}

/// A record of the audit trail, and the number that it is stored under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// The number.
    pub seq: u64,
    /// The record.
    pub sealed: Sealed,
}

/// An operator as stored: a digest of the token, never the token.
#[derive(Clone, PartialEq, Eq)]
pub struct OperatorRow {
    /// Unique name, never reused.
    pub name: String,
    /// Whether it is a human.
    pub kind: OperatorKind,
    /// SHA-256 of the token.
    pub token_sha256: [u8; 32],
    /// When it was created.
    pub created_at: Timestamp,
    /// Who created it.
    pub created_by: String,
    /// When it was revoked, and by whom.
    pub revoked: Option<(Timestamp, String)>,
}

/// Why a store does not work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("`{place}` is in use by another control plane")]
    InUse {
        /// File or address.
        place: String,
    },
    /// It contradicts itself, or is not a store of ours.
    #[error("`{place}` is damaged: {detail}")]
    Corrupt {
        /// File or address.
        place: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The file system refused.
    #[error("`{place}`: {source}")]
    Io {
        /// The file.
        place: String,
        /// What it said.
        source: std::io::Error,
    },
    /// The database refused.
    #[error("`{place}`: {source}")]
    Database {
        /// File or address.
        place: String,
        /// What it said.
        source: sqlx::Error,
    },
    /// It has been closed.
    #[error("`{place}` has been closed")]
    Closed {
        /// File or address.
        place: String,
    },
    /// Its schema is not one that this version knows.
    #[error("`{place}`: {source}")]
    Schema {
        /// File or address.
        place: String,
        /// What does not fit.
        source: sqlx::migrate::MigrateError,
    },
}

// === impl StoreError ===

impl StoreError {
    pub(crate) fn corrupt(place: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Corrupt { place: place.into(), detail: detail.into() }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { place: path.display().to_string(), source }
    }
}

// === impl OperatorRow ===

impl OperatorRow {
    /// What the audit trail keeps of it: a digest of every column.
    pub fn changed(&self) -> Changed {
        let mut token = String::new();
        for byte in self.token_sha256 {
            let _infallible = fmt::Write::write_fmt(&mut token, format_args!("{byte:02x}"));
        }
        let document = serde_json::json!([
            self.name,
            self.kind.name(),
            token,
            self.created_at,
            self.created_by,
            self.revoked.as_ref().map(|(at, by)| (at, by)),
        ]);
        let sha256 = Hash::of(document.to_string().as_bytes());
        Changed { kind: "operator".into(), key: self.name.clone(), sha256: Some(sha256) }
    }
}

impl fmt::Debug for OperatorRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorRow").field("name", &self.name).field("revoked", &self.revoked).finish_non_exhaustive()
    }
}
