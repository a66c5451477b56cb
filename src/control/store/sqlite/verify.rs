//! Verifying a database against its audit trail, from its files alone.
//!
//! Plane: control. The chain says whether records were changed; the records say whether commits, objects, the log and
//! operators were. Findings are located and never repaired. Memory: a digest for each object that was ever written.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Row, query};

use super::audit;
use super::read::{kind, millis, operators, revision};
use crate::control::audit::verify::{Verdict, What};
use crate::control::audit::{Changed, Hash, Record, Tip, Verifier};
use crate::wire::{Epoch, Revision};

/// What the records so far say of one object: its digest unless it was deleted, and which record says so.
type Said = HashMap<(String, String), (Option<Hash>, u64)>;

/// Compares a database with its audit trail, and that with checkpoints.
pub(super) async fn compare(
    c: &mut SqliteConnection,
    epoch: Epoch,
    (latest, base): (Revision, Revision),
    expected: Vec<Tip>,
) -> Result<Verdict, sqlx::Error> {
    let mut verifier = Verifier::new(expected).from_beginning(Tip::genesis(epoch));
    let mut said = records(c, &mut verifier, base, latest).await?;
    log(c, &mut verifier).await?;
    objects(c, &mut verifier, &mut said, base).await?;
    people(c, &mut verifier, &mut said, base).await?;
    let mut gone: Vec<_> = said.into_iter().filter(|(_, (sha256, _))| sha256.is_some()).collect();
    gone.sort();
    for ((kind, key), (_, seq)) in gone {
        verifier.find(seq, What::Contradicted, format!("{kind} `{key}` is gone, and record {seq} wrote it"));
    }
    Ok(verifier.finish())
}

/// The chain, and each record of a revision against that revision's commit.
async fn records(
    c: &mut SqliteConnection,
    verifier: &mut Verifier,
    base: Revision,
    latest: Revision,
) -> Result<Said, sqlx::Error> {
    let (mut said, mut last) = (Said::new(), base);
    let mut rows = query(
        "SELECT a.seq, a.record, a.hash, a.revision, c.author, c.action, c.request_id, c.at
         FROM audit a LEFT JOIN commits c ON c.revision = a.revision ORDER BY a.seq",
    )
    .fetch(&mut *c);
    while let Some(row) = rows.try_next().await? {
        let stored = audit::row(&row)?;
        let Some(record) = verifier.record(Some(stored.seq), &stored.sealed) else { continue };
        let seq = stored.seq;
        let column = row.try_get::<Option<i64>, _>(3)?.map(|_some| revision(&row, 3)).transpose()?;
        if column != record.revision {
            verifier.find(
                seq,
                What::Contradicted,
                format!("record {seq} is filed under another revision than its own"),
            );
        }
        if let Some(revision) = record.revision {
            missing(verifier, last, revision.0.saturating_sub(1));
            last = last.max(revision);
            if !is_of(&row, &record)? {
                let detail =
                    format!("revision {revision} has another author, action, time or request than record {seq} says");
                verifier.find(seq, What::Contradicted, detail);
            }
        }
        for Changed { kind, key, sha256 } in record.changes {
            said.insert((kind.into_owned(), key), (sha256, seq));
        }
    }
    drop(rows);
    missing(verifier, last, latest.0);
    Ok(said)
}

/// Whether the commit that was found beside a record is what the record says.
fn is_of(row: &SqliteRow, record: &Record) -> Result<bool, sqlx::Error> {
    let text = |i| row.try_get::<Option<String>, _>(i);
    Ok(text(4)?.as_deref() == Some(&*record.author)
        && text(5)?.as_deref() == Some(&*record.action)
        && text(6)?.as_deref() == Some(&*record.request_id)
        && row.try_get::<Option<i64>, _>(7)? == Some(millis(record.at)))
}

/// Finds that the revisions after `last`, up to `until`, have no record.
fn missing(verifier: &mut Verifier, last: Revision, until: u64) {
    let first = last.next().0;
    let detail = match until.checked_sub(first) {
        None => return,
        Some(0) => format!("revision {first} has no record"),
        Some(_) => format!("revisions {first} to {until} have no record"),
    };
    verifier.find(None, What::Missing, detail);
}

/// The log that sidecars are sent changes from, against the records of its revisions.
async fn log(c: &mut SqliteConnection, verifier: &mut Verifier) -> Result<(), sqlx::Error> {
    let mut rows = query(
        "SELECT l.revision, l.seq, l.kind, l.key, l.body, a.record, a.seq
         FROM log l JOIN audit a ON a.revision = l.revision ORDER BY l.revision, l.seq",
    )
    .fetch(&mut *c);
    while let Some(row) = rows.try_next().await? {
        let record: Option<Record> = serde_json::from_str(row.try_get(5)?).ok();
        let (kind, key): (_, &str) = (kind(&row, 2)?, row.try_get(3)?);
        let changed = Changed::object(kind, key, row.try_get::<Option<&[u8]>, _>(4)?);
        let place = usize::try_from(row.try_get::<i64, _>(1)?).ok();
        // What cannot be read as a record has been found already.
        if record.is_some_and(|record| place.and_then(|place| record.changes.get(place)) != Some(&changed)) {
            let (revision, seq) = (revision(&row, 0)?, u64::try_from(row.try_get::<i64, _>(6)?).ok());
            let detail = format!("the log has another {kind} `{key}` under revision {revision} than was written");
            verifier.find(seq, What::Contradicted, detail);
        }
    }
    Ok(())
}

/// The live objects against the last record of each.
async fn objects(
    c: &mut SqliteConnection,
    verifier: &mut Verifier,
    said: &mut Said,
    base: Revision,
) -> Result<(), sqlx::Error> {
    let mut rows = query("SELECT kind, key, revision, body FROM objects ORDER BY kind, key").fetch(&mut *c);
    while let Some(row) = rows.try_next().await? {
        let (kind, key): (_, String) = (kind(&row, 0)?, row.try_get(1)?);
        let sha256 = Hash::of(row.try_get::<&[u8], _>(3)?);
        match said.remove(&(kind.to_string(), key.clone())) {
            Some((Some(wanted), _)) if wanted == sha256 => {}
            Some((_, seq)) => {
                verifier.find(seq, What::Contradicted, format!("{kind} `{key}` is not as record {seq} left it"));
            }
            None if revision(&row, 2)? <= base => {}
            None => verifier.find(None, What::Contradicted, format!("no record wrote {kind} `{key}`")),
        }
    }
    Ok(())
}

/// The operators against the last record of each.
async fn people(
    c: &mut SqliteConnection,
    verifier: &mut Verifier,
    said: &mut Said,
    base: Revision,
) -> Result<(), sqlx::Error> {
    for row in operators(c).await? {
        let Changed { kind, key, sha256 } = row.changed();
        match said.remove(&(kind.into_owned(), key.clone())) {
            Some((wanted, _)) if wanted == sha256 => {}
            Some((_, seq)) => {
                verifier.find(seq, What::Contradicted, format!("operator `{key}` is not as record {seq} left it"));
            }
            // A database that is older than its audit trail has had operators before.
            None if base > Revision(0) => {}
            None => verifier.find(None, What::Contradicted, format!("no record made operator `{key}`")),
        }
    }
    Ok(())
}
