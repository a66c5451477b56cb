//! The audit trail of a database, from its files alone: for programs beside the control plane, or without it.
//!
//! Plane: control. Opens for reading only and takes no lock that a running control plane would notice. Changes nothing,
//! not even the schema: a database that is older than its audit trail is refused.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, Row, query};

use super::{DATABASE, audit, failed, verify};
use crate::control::audit::Tip;
use crate::control::audit::verify::Verdict;
use crate::control::store::{AuditRow, StoreError};
use crate::wire::{Epoch, Revision};

/// A database whose audit trail is read.
#[derive(Debug)]
pub struct AuditReader {
    place: String,
    connection: SqliteConnection,
    pub(super) epoch: Epoch,
    pub(super) revisions: Revisions,
}

/// The revisions of a database when it was opened, as it says itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Revisions {
    /// The latest.
    pub(super) latest: Revision,
    /// The last one that the log no longer holds.
    pub(super) floor: Revision,
    /// The last one that is older than the trail.
    pub(super) base: Revision,
}

// === impl AuditReader ===

impl AuditReader {
    /// Opens the database in a data directory.
    pub async fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join(DATABASE);
        let place = path.display().to_string();
        let options = SqliteConnectOptions::new().filename(&path).read_only(true).create_if_missing(false);
        let failed = |e| failed(&place, e);
        let mut connection = options.disable_statement_logging().connect().await.map_err(failed)?;
        // One moment of it, for as long as this is open.
        query("BEGIN").execute(&mut connection).await.map_err(failed)?;
        let row = query("SELECT m.epoch, c.revision, c.floor, b.revision FROM meta m, counter c, audit_base b")
            .fetch_optional(&mut connection)
            .await
            .map_err(failed)?
            .ok_or_else(|| StoreError::corrupt(&place, "its epoch, its counter or the base of its audit is missing"))?;
        let epoch: String = row.try_get(0).map_err(failed)?;
        let epoch = Epoch::parse(&epoch).map_err(|e| StoreError::corrupt(&place, format!("its epoch: {e}")))?;
        let revision = |i| super::read::revision(&row, i).map_err(failed);
        let revisions = Revisions { latest: revision(1)?, floor: revision(2)?, base: revision(3)? };
        Ok(Self { place, connection, epoch, revisions })
    }

    /// The last record.
    pub async fn tip(&mut self) -> Result<Tip, StoreError> {
        audit::tip(&mut self.connection, self.epoch).await.map_err(|e| failed(&self.place, e))
    }

    /// The records after number `after`, oldest first, at most `limit`.
    pub async fn since(&mut self, after: u64, limit: usize) -> Result<Vec<AuditRow>, StoreError> {
        audit::since(&mut self.connection, after, limit).await.map_err(|e| failed(&self.place, e))
    }

    /// Compares the database with its audit trail, and that with checkpoints.
    pub async fn verify(mut self, expected: Vec<Tip>) -> Result<Verdict, StoreError> {
        let verdict = verify::compare(&mut self.connection, self.epoch, self.revisions, expected).await;
        let verdict = verdict.map_err(|e| failed(&self.place, e))?;
        self.connection.close().await.map_err(|e| failed(&self.place, e))?;
        Ok(verdict)
    }
}
