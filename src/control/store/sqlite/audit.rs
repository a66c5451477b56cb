//! The audit trail in SQLite: records are put after the last one inside the transaction of what they are about.
//!
//! Plane: control. The last record is read in the transaction that writes the next, so the chain never forks, whoever
//! writes. Nothing here changes or deletes a record, and the table's own triggers would refuse it.

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection, Row, query};

use super::read::{bad, number};
use crate::clock::Timestamp;
use crate::control::audit::{Changed, Event, Hash, Sealed, Tip};
use crate::control::store::{AuditRow, Unit};
use crate::wire::{Epoch, Revision};

/// The last record; before the first one, what it is to follow.
pub(super) async fn tip(c: &mut SqliteConnection, epoch: Epoch) -> Result<Tip, sqlx::Error> {
    let row = query("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetch_optional(&mut *c).await?;
    let Some(row) = row else { return Ok(Tip::genesis(epoch)) };
    Ok(Tip { seq: seq(&row, 0)?, hash: hash(&row, 1)? })
}

/// Puts one event after `tip`, which moves on to it.
pub(super) async fn append(
    c: &mut SqliteConnection,
    tip: &mut Tip,
    event: Event,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    let revision = event.revision.map(number);
    let sealed = Sealed::after(tip, event, at).map_err(|e| sqlx::Error::Encode(e.into()))?;
    query("INSERT INTO audit (seq, revision, record, hash) VALUES (?, ?, ?, ?)")
        .bind(integer(tip.seq))
        .bind(revision)
        .bind(sealed.text)
        .bind(sealed.hash.as_bytes().as_slice())
        .execute(&mut *c)
        .await?;
    Ok(())
}

/// What a unit that was committed is in the trail.
pub(super) fn event(unit: &Unit, revision: Revision) -> Event {
    let object = unit.changes.first().map(|first| format!("{}/{}", first.kind, first.key)).unwrap_or_default();
    let changes = unit.changes.iter().map(|c| Changed::object(c.kind, &c.key, c.body.as_deref()));
    let mut event = Event::done(unit.author.clone(), unit.action.clone(), &object, &unit.request_id);
    event.revision = Some(revision);
    event.changes = changes.collect();
    event
}

/// Puts events that no unit is about into the trail.
pub(super) async fn write(
    c: &mut SqliteConnection,
    epoch: Epoch,
    events: &[(Timestamp, Event)],
) -> Result<(), sqlx::Error> {
    let mut tx = c.begin_with("BEGIN IMMEDIATE").await?;
    let mut tip = tip(&mut tx, epoch).await?;
    for (at, event) in events {
        append(&mut tx, &mut tip, event.clone(), *at).await?;
    }
    tx.commit().await
}

/// The records after `after`, oldest first.
pub(super) async fn since(c: &mut SqliteConnection, after: u64, limit: usize) -> Result<Vec<AuditRow>, sqlx::Error> {
    let rows = query("SELECT seq, record, hash FROM audit WHERE seq > ? ORDER BY seq LIMIT ?")
        .bind(integer(after))
        .bind(integer(limit as u64))
        .fetch_all(&mut *c)
        .await?;
    rows.iter().map(row).collect()
}

/// The records before `before`, newest first.
pub(super) async fn before(c: &mut SqliteConnection, before: u64, limit: usize) -> Result<Vec<AuditRow>, sqlx::Error> {
    let rows = query("SELECT seq, record, hash FROM audit WHERE seq < ? ORDER BY seq DESC LIMIT ?")
        .bind(integer(before))
        .bind(integer(limit as u64))
        .fetch_all(&mut *c)
        .await?;
    rows.iter().map(row).collect()
}

/// A row as it is stored.
pub(super) fn row(row: &SqliteRow) -> Result<AuditRow, sqlx::Error> {
    Ok(AuditRow { seq: seq(row, 0)?, sealed: Sealed { text: row.try_get(1)?, hash: hash(row, 2)? } })
}

fn seq(row: &SqliteRow, i: usize) -> Result<u64, sqlx::Error> {
    u64::try_from(row.try_get::<i64, _>(i)?).map_err(|_negative| bad("the number of an audit record is negative"))
}

fn hash(row: &SqliteRow, i: usize) -> Result<Hash, sqlx::Error> {
    Hash::from_bytes(row.try_get::<&[u8], _>(i)?).ok_or_else(|| bad("the hash of an audit record has not 32 bytes"))
}

fn integer(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
