//! Writing the SQLite store: a batch of units in one transaction, trimming, operators.
//!
//! Plane: control. Expectations are checked inside the transaction that writes, before the first write of their unit,
//! so a rejected unit leaves nothing behind and takes no revision.

use std::collections::BTreeMap;

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection, Row, query};

use super::audit;
use super::read::{self, millis, number, revision, timestamp};
use crate::clock::Timestamp;
use crate::control::audit::{Event, Tip as AuditTip};
use crate::control::store::{Committed, Conflict, Expect, Guard, OperatorRow, Unit, Write};
use crate::object::Kind;
use crate::wire::{Epoch, Position, Revision};

/// Where the transaction stands.
struct Tip {
    revision: Revision,
    at: Timestamp,
    /// The latest revision that touched a kind.
    kinds: BTreeMap<Kind, Revision>,
    /// The last record of the audit trail.
    audit: AuditTip,
}

/// The stored version of an object that is about to be replaced.
type Previous = Option<(Revision, Vec<u8>)>;

/// Commits what it can of `units`.
pub(super) async fn commit(
    c: &mut SqliteConnection,
    epoch: Epoch,
    units: &[Unit],
    now: Timestamp,
) -> Result<Vec<Result<Committed, Conflict>>, sqlx::Error> {
    let mut tx = c.begin_with("BEGIN IMMEDIATE").await?;
    let mut tip = tip(&mut tx, epoch).await?;
    let before = tip.revision;
    // Times never run backwards along the log, whatever the clock did across a restart.
    tip.at = tip.at.max(now);
    let mut outcomes = Vec::with_capacity(units.len());
    for unit in units {
        outcomes.push(match prepare(&mut tx, &tip, unit).await? {
            Err(conflict) => Err(conflict),
            Ok(previous) => {
                write(&mut tx, &mut tip, unit, previous).await?;
                Ok(Committed { position: Position { epoch, revision: tip.revision }, at: tip.at })
            }
        });
    }
    if tip.revision == before {
        tx.rollback().await?;
        return Ok(outcomes);
    }
    query("UPDATE counter SET revision = ?, at = ? WHERE id = 1")
        .bind(number(tip.revision))
        .bind(millis(tip.at))
        .execute(&mut *tx)
        .await?;
    for (kind, revision) in tip.kinds.iter().filter(|(_, r)| **r > before) {
        query("INSERT INTO kinds (kind, revision) VALUES (?, ?) ON CONFLICT (kind) DO UPDATE SET revision = excluded.revision")
            .bind(i64::from(*kind as u8))
            .bind(number(*revision))
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(outcomes)
}

async fn tip(c: &mut SqliteConnection, epoch: Epoch) -> Result<Tip, sqlx::Error> {
    let row = query("SELECT revision, at FROM counter WHERE id = 1").fetch_one(&mut *c).await?;
    let (revision, at) = (revision(&row, 0)?, timestamp(&row, 1)?);
    let mut kinds = BTreeMap::new();
    for row in query("SELECT kind, revision FROM kinds").fetch_all(&mut *c).await? {
        if let Some(kind) = Kind::from_number(row.try_get(0)?) {
            kinds.insert(kind, self::revision(&row, 1)?);
        }
    }
    Ok(Tip { revision, at, kinds, audit: audit::tip(c, epoch).await? })
}

/// Checks guards and expectations; answers the versions that the changes replace.
async fn prepare(
    c: &mut SqliteConnection,
    tip: &Tip,
    unit: &Unit,
) -> Result<Result<Vec<Previous>, Conflict>, sqlx::Error> {
    for guard in &unit.guards {
        match guard {
            Guard::KindUnchanged { kind, since } => {
                let found = tip.kinds.get(kind).copied();
                if found.is_some_and(|latest| latest > *since) {
                    return Ok(Err(Conflict { kind: *kind, key: None, found }));
                }
            }
            Guard::Object { kind, key, expect } => {
                let found = find_revision(c, *kind, key).await?;
                if !expect.holds(found) {
                    return Ok(Err(Conflict { kind: *kind, key: Some(key.clone()), found }));
                }
            }
        }
    }
    let mut previous = Vec::with_capacity(unit.changes.len());
    for change in &unit.changes {
        let old = find(c, change).await?;
        let found = old.as_ref().map(|(r, _)| *r);
        let deletes_nothing = change.body.is_none() && found.is_none();
        if deletes_nothing || !change.expect.holds(found) {
            return Ok(Err(Conflict { kind: change.kind, key: Some(change.key.clone()), found }));
        }
        previous.push(old);
    }
    Ok(Ok(previous))
}

async fn write(
    c: &mut SqliteConnection,
    tip: &mut Tip,
    unit: &Unit,
    previous: Vec<Previous>,
) -> Result<(), sqlx::Error> {
    tip.revision = tip.revision.next();
    let revision = number(tip.revision);
    query("INSERT INTO commits (revision, at, author, action, request_id) VALUES (?, ?, ?, ?, ?)")
        .bind(revision)
        .bind(millis(tip.at))
        .bind(&*unit.author.name)
        .bind(&unit.action)
        .bind(&unit.request_id)
        .execute(&mut *c)
        .await?;
    for (seq, (change, old)) in (0_i64..).zip(unit.changes.iter().zip(previous)) {
        let kind = i64::from(change.kind as u8);
        let (old_revision, old_body) = old.map_or((None, None), |(r, body)| (Some(number(r)), Some(body)));
        query(
            "INSERT INTO log (revision, seq, kind, key, body, prev_revision, prev_body) VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(revision)
        .bind(seq)
        .bind(kind)
        .bind(&change.key)
        .bind(change.body.as_deref())
        .bind(old_revision)
        .bind(old_body)
        .execute(&mut *c)
        .await?;
        match change.body.as_deref() {
            Some(body) => {
                query(
                    "INSERT INTO objects (kind, key, revision, body) VALUES (?, ?, ?, ?)
                     ON CONFLICT (kind, key) DO UPDATE SET revision = excluded.revision, body = excluded.body",
                )
                .bind(kind)
                .bind(&change.key)
                .bind(revision)
                .bind(body)
                .execute(&mut *c)
                .await?
            }
            None => {
                query("DELETE FROM objects WHERE kind = ? AND key = ?")
                    .bind(kind)
                    .bind(&change.key)
                    .execute(&mut *c)
                    .await?
            }
        };
        tip.kinds.insert(change.kind, tip.revision);
    }
    audit::append(c, &mut tip.audit, audit::event(unit, tip.revision), tip.at).await
}

async fn find(c: &mut SqliteConnection, change: &Write) -> Result<Previous, sqlx::Error> {
    if change.expect == Expect::Absent {
        let found = find_revision(c, change.kind, &change.key).await?;
        return Ok(found.map(|r| (r, Vec::new())));
    }
    let row = query("SELECT revision, body FROM objects WHERE kind = ? AND key = ?")
        .bind(i64::from(change.kind as u8))
        .bind(&change.key)
        .fetch_optional(&mut *c)
        .await?;
    row.as_ref().map(|row| Ok((revision(row, 0)?, row.try_get(1)?))).transpose()
}

async fn find_revision(c: &mut SqliteConnection, kind: Kind, key: &str) -> Result<Option<Revision>, sqlx::Error> {
    let row: Option<SqliteRow> = query("SELECT revision FROM objects WHERE kind = ? AND key = ?")
        .bind(i64::from(kind as u8))
        .bind(key)
        .fetch_optional(&mut *c)
        .await?;
    row.as_ref().map(|row| revision(row, 0)).transpose()
}

/// Forgets the log up to `floor`.
pub(super) async fn trim(c: &mut SqliteConnection, floor: Revision) -> Result<(), sqlx::Error> {
    let mut tx = c.begin_with("BEGIN IMMEDIATE").await?;
    let floor = number(floor);
    query("DELETE FROM log WHERE revision <= ?").bind(floor).execute(&mut *tx).await?;
    query("UPDATE counter SET floor = ? WHERE id = 1 AND floor < ?").bind(floor).bind(floor).execute(&mut *tx).await?;
    tx.commit().await
}

/// Adds an operator.
pub(super) async fn add_operator(
    c: &mut SqliteConnection,
    epoch: Epoch,
    row: &OperatorRow,
    event: &Event,
) -> Result<bool, sqlx::Error> {
    let mut tx = c.begin_with("BEGIN IMMEDIATE").await?;
    let done = query(
        "INSERT INTO operators (name, kind, token_sha256, created_at, created_by) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (name) DO NOTHING",
    )
    .bind(&row.name)
    .bind(row.kind.name())
    .bind(row.token_sha256.as_slice())
    .bind(millis(row.created_at))
    .bind(&row.created_by)
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() != 1 {
        tx.rollback().await?;
        return Ok(false);
    }
    audit_operator(&mut tx, epoch, &row.name, event, row.created_at).await?;
    tx.commit().await?;
    Ok(true)
}

/// Revokes an operator, unless it is the last.
pub(super) async fn revoke_operator(
    c: &mut SqliteConnection,
    epoch: Epoch,
    name: &str,
    event: &Event,
    at: Timestamp,
) -> Result<bool, sqlx::Error> {
    let mut tx = c.begin_with("BEGIN IMMEDIATE").await?;
    let done = query(
        "UPDATE operators SET revoked_at = ?, revoked_by = ? WHERE name = ? AND revoked_at IS NULL
         AND (SELECT count(*) FROM operators WHERE revoked_at IS NULL) > 1",
    )
    .bind(millis(at))
    .bind(&*event.author.name)
    .bind(name)
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() != 1 {
        tx.rollback().await?;
        return Ok(false);
    }
    audit_operator(&mut tx, epoch, name, event, at).await?;
    tx.commit().await?;
    Ok(true)
}

/// Records a change of an operator, with the digest of what is stored of it now.
async fn audit_operator(
    c: &mut SqliteConnection,
    epoch: Epoch,
    name: &str,
    event: &Event,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    let stored = read::operators(c).await?.into_iter().find(|row| row.name == name);
    let mut event = event.clone();
    event.changes = stored.iter().map(OperatorRow::changed).collect();
    let mut tip = audit::tip(c, epoch).await?;
    audit::append(c, &mut tip, event, at).await
}
