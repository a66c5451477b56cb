//! Where the audit trail begins, said by the trail itself: after which revision, and what was there by then.
//!
//! Plane: control. A new database begins with such a record; one that is older than its trail, or than this record,
//! gets it when it is opened next. From then on nothing is believed to be older than the trail because the database
//! says so: what was there is in a record, and the log of before is forgotten, as compaction would.
//! A database that says otherwise than its trail is refused.
//! INVARIANT: only what the control plane writes for itself is believed. Records once repeated the method of any request
//! as their action, so a trail may hold others of this action; they say nothing.

use std::collections::HashSet;

use futures_util::TryStreamExt;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row, query};

use super::read::{kind, number, operators, revision};
use super::{audit, failed};
use crate::clock::Timestamp;
use crate::control::audit::{Author, Changed, Event, Hash, Outcome, Record};
use crate::control::principal::Via;
use crate::control::store::StoreError;
use crate::wire::{Epoch, Revision};

/// What a record that says where the trail begins is called.
const ACTION: &str = "audit.begin";
/// Who writes it.
const AUTHOR: &str = "system";
/// What a record calls an operator.
const OPERATOR: &str = "operator";
/// How many objects one record speaks for at most.
const CHANGES: usize = 1000;

/// After which revision the trail begins, as `record` says; nothing when it says nothing of the kind.
pub(super) fn base(record: &Record) -> Option<Revision> {
    let is_own = record.action == ACTION
        && (&*record.author, &*record.kind, record.via) == (AUTHOR, AUTHOR, Some(Via::System))
        && (record.outcome, record.revision, record.status) == (Outcome::Done, None, None)
        && record.peer.is_none()
        && record.request_id.is_empty();
    let base = record.object.strip_prefix("revision/")?.parse().ok().map(Revision)?;
    (is_own && record.object == object(base)).then_some(base)
}

fn object(base: Revision) -> String {
    format!("revision/{base}")
}

/// Makes sure that the trail says where it begins, and that the database says the same.
pub(super) async fn ensure(
    c: &mut SqliteConnection,
    place: &str,
    epoch: Epoch,
    now: Timestamp,
) -> Result<(), StoreError> {
    let refused = |e| failed(place, e);
    let (stored, said) = (stored(c).await.map_err(refused)?, said(c).await.map_err(refused)?);
    match said {
        None => write(c, epoch, stored, now).await.map_err(refused),
        Some(said) if said == stored => Ok(()),
        Some(_) => {
            let detail = format!("its audit trail does not begin after revision {stored}, as `audit_base` says");
            Err(StoreError::corrupt(place, detail))
        }
    }
}

async fn stored(c: &mut SqliteConnection) -> Result<Revision, sqlx::Error> {
    let row = query("SELECT coalesce(max(revision), 0) FROM audit_base").fetch_one(&mut *c).await?;
    revision(&row, 0)
}

/// What the trail says, if it says anything. The whole of it is searched only where its first record is another one.
async fn said(c: &mut SqliteConnection) -> Result<Option<Revision>, sqlx::Error> {
    // Quotes inside of a record's values are escaped, so this text occurs only where the action stands.
    let mut rows = query(
        "SELECT record FROM audit WHERE seq = 1 AND instr(record, '\"action\":\"audit.begin\"') > 0
         UNION ALL SELECT record FROM audit WHERE instr(record, '\"action\":\"audit.begin\"') > 0",
    )
    .fetch(&mut *c);
    while let Some(row) = rows.try_next().await? {
        let record: Option<Record> = serde_json::from_str(row.try_get(0)?).ok();
        if let Some(base) = record.as_ref().and_then(base) {
            return Ok(Some(base));
        }
    }
    Ok(None)
}

/// Writes the record; several where more was there than one holds.
async fn write(c: &mut SqliteConnection, epoch: Epoch, base: Revision, now: Timestamp) -> Result<(), sqlx::Error> {
    let mut tx = c.begin_with("BEGIN IMMEDIATE").await?;
    let there = if base > Revision(0) { older(&mut tx, base).await? } else { Vec::new() };
    let mut begin = Event::done(Author::system(AUTHOR), ACTION, &object(base), "");
    let mut tip = audit::tip(&mut tx, epoch).await?;
    let mut rest = there.into_iter().peekable();
    loop {
        begin.changes = rest.by_ref().take(CHANGES).collect();
        audit::append(&mut tx, &mut tip, begin.clone(), now).await?;
        if rest.peek().is_none() {
            break;
        }
    }
    query("DELETE FROM log WHERE revision <= ?").bind(number(base)).execute(&mut *tx).await?;
    query("UPDATE counter SET floor = ? WHERE id = 1 AND floor < ?")
        .bind(number(base))
        .bind(number(base))
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}

/// The objects and operators that no record speaks of.
async fn older(c: &mut SqliteConnection, base: Revision) -> Result<Vec<Changed>, sqlx::Error> {
    let mut older = Vec::new();
    let mut rows = query("SELECT kind, key, body FROM objects WHERE revision <= ? ORDER BY kind, key")
        .bind(number(base))
        .fetch(&mut *c);
    while let Some(row) = rows.try_next().await? {
        let sha256 = Hash::of(row.try_get::<&[u8], _>(2)?);
        older.push(Changed { kind: kind(&row, 0)?.to_string().into(), key: row.try_get(1)?, sha256: Some(sha256) });
    }
    drop(rows);
    let mut recorded = HashSet::new();
    let mut rows = query("SELECT record FROM audit WHERE revision IS NULL").fetch(&mut *c);
    while let Some(row) = rows.try_next().await? {
        let record: Option<Record> = serde_json::from_str(row.try_get(0)?).ok();
        let people = record.into_iter().flat_map(|r| r.changes).filter(|c| c.kind == OPERATOR);
        recorded.extend(people.map(|c| c.key));
    }
    drop(rows);
    let people = operators(c).await?;
    older.extend(people.iter().filter(|row| !recorded.contains(&row.name)).map(|row| row.changed()));
    Ok(older)
}
