//! The embedded store: one SQLite file in a directory of its own.
//!
//! Plane: control. One process at a time (a lock file says so), one connection, whose thread does the waiting for the
//! disk. WAL with `synchronous=FULL`: what a commit has answered was flushed. Directory 0700, database 0600. On open
//! the file, the counter and the log are checked against each other; a contradiction is an error that names the file.

mod audit;
mod check;
mod read;
mod reader;
mod seal;
mod verify;
mod write;

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqlSafeStr};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};

pub use self::reader::AuditReader;
use super::{AuditRow, Committed, Conflict, Loaded, LogCommit, OperatorRow, Store, StoreError, Unit};
use crate::clock::Timestamp;
use crate::control::audit::{Event, Tip};
use crate::wire::{Epoch, Revision};

/// Name of the database in its directory.
const DATABASE: &str = "control.db";
/// Name of the lock file in its directory.
const LOCK: &str = "control.lock";

/// The embedded store.
#[derive(Debug)]
pub struct SqliteStore {
    place: String,
    epoch: Epoch,
    /// `None` once closed.
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    connection: SqliteConnection,
    /// Held as long as the connection.
    lock: File,
}

// === impl SqliteStore ===

impl SqliteStore {
    /// Opens the database in `directory`, or creates both.
    pub async fn open(directory: &Path, now: Timestamp) -> Result<Self, StoreError> {
        Self::open_or_create(directory, Epoch::starting(now), now).await
    }

    /// The same; a database that is new gets `epoch`, one that is there keeps its own.
    pub async fn open_or_create(directory: &Path, epoch: Epoch, now: Timestamp) -> Result<Self, StoreError> {
        create_directory(directory)?;
        let lock = lock(&directory.join(LOCK))?;
        let path = directory.join(DATABASE);
        create_private(&path)?;
        let place = path.display().to_string();
        let mut connection = connect(&path).await.map_err(|e| failed(&place, e))?;
        check::file(&mut connection, &place).await?;
        migrations().run(&mut connection).await.map_err(|e| match e {
            sqlx::migrate::MigrateError::Execute(source) => failed(&place, source),
            source => StoreError::Schema { place: place.clone(), source },
        })?;
        let epoch = read::epoch(&mut connection, &place, epoch, now).await?;
        check::contents(&mut connection, &place).await?;
        seal::ensure(&mut connection, &place, epoch, now).await?;
        Ok(Self { place, epoch, open: Mutex::new(Some(Open { connection, lock })) })
    }

    /// The database file.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(&self.place)
    }

    async fn connection(&self) -> Result<MappedMutexGuard<'_, SqliteConnection>, StoreError> {
        MutexGuard::try_map(self.open.lock().await, |slot| slot.as_mut().map(|open| &mut open.connection))
            .map_err(|_closed| StoreError::Closed { place: self.place.clone() })
    }

    fn answer<T>(&self, result: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        result.map_err(|e| failed(&self.place, e))
    }
}

impl Store for SqliteStore {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn load(&self) -> BoxFuture<'_, Result<Loaded, StoreError>> {
        async move { self.answer(read::everything(&mut *self.connection().await?).await) }.boxed()
    }

    fn log_since(&self, after: Revision, limit: usize) -> BoxFuture<'_, Result<Vec<LogCommit>, StoreError>> {
        async move { self.answer(read::log(&mut *self.connection().await?, after, limit).await) }.boxed()
    }

    fn commit<'a>(
        &'a self,
        units: &'a [Unit],
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Vec<Result<Committed, Conflict>>, StoreError>> {
        async move { self.answer(write::commit(&mut *self.connection().await?, self.epoch, units, now).await) }.boxed()
    }

    fn trim(&self, floor: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        async move { self.answer(write::trim(&mut *self.connection().await?, floor).await) }.boxed()
    }

    fn operators(&self) -> BoxFuture<'_, Result<Vec<OperatorRow>, StoreError>> {
        async move { self.answer(read::operators(&mut *self.connection().await?).await) }.boxed()
    }

    fn add_operator<'a>(&'a self, row: &'a OperatorRow, event: &'a Event) -> BoxFuture<'a, Result<bool, StoreError>> {
        async move { self.answer(write::add_operator(&mut *self.connection().await?, self.epoch, row, event).await) }
            .boxed()
    }

    fn revoke_operator<'a>(
        &'a self,
        name: &'a str,
        event: &'a Event,
        at: Timestamp,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        async move {
            self.answer(write::revoke_operator(&mut *self.connection().await?, self.epoch, name, event, at).await)
        }
        .boxed()
    }

    fn audit<'a>(&'a self, events: &'a [(Timestamp, Event)]) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { self.answer(audit::write(&mut *self.connection().await?, self.epoch, events).await) }.boxed()
    }

    fn audit_tip(&self) -> BoxFuture<'_, Result<Tip, StoreError>> {
        async move { self.answer(audit::tip(&mut *self.connection().await?, self.epoch).await) }.boxed()
    }

    fn audit_since(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<AuditRow>, StoreError>> {
        async move { self.answer(audit::since(&mut *self.connection().await?, after, limit).await) }.boxed()
    }

    fn audit_before(&self, before: u64, limit: usize) -> BoxFuture<'_, Result<Vec<AuditRow>, StoreError>> {
        async move { self.answer(audit::before(&mut *self.connection().await?, before, limit).await) }.boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            let Some(Open { connection, lock }) = self.open.lock().await.take() else { return };
            if let Err(error) = connection.close().await {
                tracing::warn!(%error, "closing the database failed; it recovers on the next start");
            }
            drop(lock);
        }
        .boxed()
    }
}

/// The migrations, oldest first. A published one never changes.
fn migrations() -> Migrator {
    let migration = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        migration(1, "init", include_str!("migrations/0001_init.sql")),
        migration(2, "operator kind", include_str!("migrations/0002_operator_kind.sql")),
        migration(6, "audit", include_str!("migrations/0006_audit.sql")),
    ])
}

async fn connect(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .foreign_keys(true)
        // A policy text or a large service spans pages; 16 MiB of them are kept.
        .pragma("cache_size", "-16384")
        .disable_statement_logging()
        .connect()
        .await
}

/// Tells damage from other failures: SQLITE_CORRUPT (11) and SQLITE_NOTADB (26) with their extended codes.
fn failed(place: &str, source: sqlx::Error) -> StoreError {
    let code = source.as_database_error().and_then(|e| e.code()).and_then(|c| c.parse::<i64>().ok());
    match code.map(|c| c & 0xff) {
        Some(11 | 26) => StoreError::corrupt(place, source.to_string()),
        _ => StoreError::Database { place: place.to_owned(), source },
    }
}

fn create_directory(directory: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|e| StoreError::io(directory, e))
}

/// Creates the file if it is missing; nobody else may read it, whoever made it.
fn create_private(path: &Path) -> Result<(), StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| StoreError::io(path, e))?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(|e| StoreError::io(path, e))
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| StoreError::io(path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { place: path.display().to_string() }),
        Err(TryLockError::Error(e)) => Err(StoreError::io(path, e)),
    }
}

#[cfg(test)]
mod tests;
