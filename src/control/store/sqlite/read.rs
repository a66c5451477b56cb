//! Reading the SQLite store: everything at one revision, the log, the operators.
//!
//! Plane: control. Rows become domain types here or are refused; a kind, an epoch or a digest that is not one means a
//! damaged file or one of a later version.

use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection, Row, query};

use super::{StoreError, failed};
use crate::clock::Timestamp;
use crate::control::store::{Loaded, LogChange, LogCommit, OperatorRow, RawObject};
use crate::object::Kind;
use crate::wire::{Epoch, Revision};

/// The epoch of the log; `new` on the first open.
pub(super) async fn epoch(
    c: &mut SqliteConnection,
    place: &str,
    new: Epoch,
    now: Timestamp,
) -> Result<Epoch, StoreError> {
    let row =
        query("SELECT epoch FROM meta WHERE id = 1").fetch_optional(&mut *c).await.map_err(|e| failed(place, e))?;
    if let Some(row) = row {
        let text: String = row.try_get(0).map_err(|e| failed(place, e))?;
        return Epoch::parse(&text).map_err(|e| StoreError::corrupt(place, format!("its epoch: {e}")));
    }
    let used = query("SELECT 1 FROM commits LIMIT 1").fetch_optional(&mut *c).await.map_err(|e| failed(place, e))?;
    if used.is_some() {
        return Err(StoreError::corrupt(place, "its epoch is missing"));
    }
    query("INSERT INTO meta (id, epoch, created_at) VALUES (1, ?, ?)")
        .bind(new.to_string())
        .bind(millis(now))
        .execute(&mut *c)
        .await
        .map_err(|e| failed(place, e))?;
    Ok(new)
}

/// Objects, log and counter, as of one moment.
pub(super) async fn everything(c: &mut SqliteConnection) -> Result<Loaded, sqlx::Error> {
    let mut tx = c.begin().await?;
    let row = query("SELECT revision, floor, at FROM counter WHERE id = 1").fetch_one(&mut *tx).await?;
    let (revision, floor, at) = (revision(&row, 0)?, revision(&row, 1)?, timestamp(&row, 2)?);
    let mut objects = Vec::new();
    let mut rows = query("SELECT kind, key, revision, body FROM objects ORDER BY kind, key").fetch(&mut *tx);
    while let Some(row) = rows.try_next().await? {
        objects.push(RawObject {
            kind: kind(&row, 0)?,
            key: row.try_get(1)?,
            revision: self::revision(&row, 2)?,
            body: Bytes::from(row.try_get::<Vec<u8>, _>(3)?),
        });
    }
    drop(rows);
    let log = log(&mut tx, floor, usize::MAX).await?;
    tx.commit().await?;
    Ok(Loaded { revision, floor, at, objects, log })
}

/// The commits after `after`.
pub(super) async fn log(
    c: &mut SqliteConnection,
    after: Revision,
    limit: usize,
) -> Result<Vec<LogCommit>, sqlx::Error> {
    let last = after.0.saturating_add(limit as u64);
    let mut rows = query(
        "SELECT l.revision, c.at, c.author, l.kind, l.key, l.body, l.prev_revision, l.prev_body
         FROM log l JOIN commits c ON c.revision = l.revision
         WHERE l.revision > ? AND l.revision <= ? ORDER BY l.revision, l.seq",
    )
    .bind(number(after))
    .bind(number(Revision(last)))
    .fetch(&mut *c);
    let mut commits: Vec<LogCommit> = Vec::new();
    while let Some(row) = rows.try_next().await? {
        let revision = revision(&row, 0)?;
        let previous = match (row.try_get::<Option<i64>, _>(6)?, row.try_get::<Option<Vec<u8>>, _>(7)?) {
            (Some(_), Some(body)) => Some((self::revision(&row, 6)?, Bytes::from(body))),
            _ => None,
        };
        let change = LogChange {
            kind: kind(&row, 3)?,
            key: row.try_get(4)?,
            body: row.try_get::<Option<Vec<u8>>, _>(5)?.map(Bytes::from),
            previous,
        };
        match commits.last_mut() {
            Some(last) if last.revision == revision => last.changes.push(change),
            _ => commits.push(LogCommit {
                revision,
                at: timestamp(&row, 1)?,
                author: row.try_get(2)?,
                changes: vec![change],
            }),
        }
    }
    Ok(commits)
}

/// Every operator.
pub(super) async fn operators(c: &mut SqliteConnection) -> Result<Vec<OperatorRow>, sqlx::Error> {
    let rows = query(
        "SELECT name, token_sha256, created_at, created_by, revoked_at, revoked_by, kind FROM operators ORDER BY name",
    )
    .fetch_all(&mut *c)
    .await?;
    rows.iter()
        .map(|row| {
            let digest: Vec<u8> = row.try_get(1)?;
            let revoked = match (row.try_get::<Option<i64>, _>(4)?, row.try_get::<Option<String>, _>(5)?) {
                (None, _) => None,
                (Some(_), by) => Some((timestamp(row, 4)?, by.unwrap_or_default())),
            };
            Ok(OperatorRow {
                name: row.try_get(0)?,
                kind: row.try_get::<String, _>(6)?.parse().map_err(|e: String| bad(&e))?,
                token_sha256: digest.try_into().map_err(|_wrong_length| bad("a token digest has not 32 bytes"))?,
                created_at: timestamp(row, 2)?,
                created_by: row.try_get(3)?,
                revoked,
            })
        })
        .collect()
}

/// A revision as SQLite stores it.
pub(super) fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// A time as SQLite stores it.
pub(super) fn millis(t: Timestamp) -> i64 {
    i64::try_from(t.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn revision(row: &SqliteRow, i: usize) -> Result<Revision, sqlx::Error> {
    u64::try_from(row.try_get::<i64, _>(i)?).map(Revision).map_err(|_negative| bad("a revision is negative"))
}

pub(super) fn timestamp(row: &SqliteRow, i: usize) -> Result<Timestamp, sqlx::Error> {
    u64::try_from(row.try_get::<i64, _>(i)?).map(Timestamp::from_millis).map_err(|_negative| bad("a time is negative"))
}

pub(super) fn kind(row: &SqliteRow, i: usize) -> Result<Kind, sqlx::Error> {
    let n: i32 = row.try_get(i)?;
    Kind::from_number(n).ok_or_else(|| bad(&format!("`{n}` is not a kind of object")))
}

pub(super) fn bad(detail: &str) -> sqlx::Error {
    sqlx::Error::Decode(detail.into())
}
