//! Verifying a database against its audit trail, from its files alone.
//!
//! Plane: control. The chain says whether records were changed; the records say whether commits, objects, the log and
//! operators were. Findings are located and never repaired. Memory: a digest for each object that was ever written.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Row, query};

use super::read::{kind, millis, operators, revision};
use super::reader::Revisions;
use super::{audit, seal};
use crate::control::audit::verify::{Verdict, What};
use crate::control::audit::{Changed, Hash, Record, Tip, Verifier};
use crate::wire::{Epoch, Revision};

/// What the records so far say of one object: its digest unless it was deleted, and which record says so.
type Said = HashMap<(String, String), (Option<Hash>, u64)>;

/// What is older than the trail.
#[derive(Debug, Clone, Copy)]
struct Begin {
    /// The last revision of it.
    base: Revision,
    /// Whether the trail itself says so. What was there is in a record then, and what is in none does not belong there.
    sealed: bool,
}

/// Compares a database with its audit trail, and that with checkpoints.
pub(super) async fn compare(
    c: &mut SqliteConnection,
    epoch: Epoch,
    revisions: Revisions,
    expected: Vec<Tip>,
) -> Result<Verdict, sqlx::Error> {
    let mut verifier = Verifier::new(expected).from_beginning(Tip::genesis(epoch));
    let (mut said, begin) = records(c, &mut verifier, revisions).await?;
    log(c, &mut verifier, begin).await?;
    objects(c, &mut verifier, &mut said, begin).await?;
    people(c, &mut verifier, &mut said, begin).await?;
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
    revisions: Revisions,
) -> Result<(Said, Begin), sqlx::Error> {
    let mut begin = Begin { base: revisions.base, sealed: false };
    let (mut said, mut last) = (Said::new(), None);
    let mut rows = query(
        "SELECT a.seq, a.record, a.hash, a.revision, c.author, c.action, c.request_id, c.at,
            (SELECT count(*) FROM log l WHERE l.revision = a.revision)
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
        if let Some(said) = seal::base(&record) {
            begin.sealed(verifier, seq, said);
        }
        if let Some(revision) = record.revision {
            begin.precedes(verifier, seq, revision);
            missing(verifier, last.unwrap_or(begin.base), revision.0.saturating_sub(1));
            last = last.max(Some(revision));
            if !is_of(&row, &record)? {
                let detail =
                    format!("revision {revision} has another author, action, time or request than record {seq} says");
                verifier.find(seq, What::Contradicted, detail);
            }
            let (logged, changes) = (row.try_get::<i64, _>(8)?, record.changes.len());
            if revision > revisions.floor && usize::try_from(logged) != Ok(changes) {
                let detail = format!("the log has {logged} of the {changes} changes of revision {revision}");
                verifier.find(seq, What::Contradicted, detail);
            }
        }
        for Changed { kind, key, sha256 } in record.changes {
            said.insert((kind.into_owned(), key), (sha256, seq));
        }
    }
    drop(rows);
    missing(verifier, last.unwrap_or(begin.base), revisions.latest.0);
    begin.within(verifier, revisions.latest);
    Ok((said, begin))
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
async fn log(c: &mut SqliteConnection, verifier: &mut Verifier, begin: Begin) -> Result<(), sqlx::Error> {
    let mut rows = query(
        "SELECT l.revision, l.seq, l.kind, l.key, l.body, a.record, a.seq
         FROM log l LEFT JOIN audit a ON a.revision = l.revision ORDER BY l.revision, l.seq",
    )
    .fetch(&mut *c);
    while let Some(row) = rows.try_next().await? {
        let (revision, kind, key): (_, _, &str) = (revision(&row, 0)?, kind(&row, 2)?, row.try_get(3)?);
        let Some(text) = row.try_get::<Option<&str>, _>(5)? else {
            // A later revision without a record has been found already.
            if begin.sealed && revision <= begin.base {
                let detail =
                    format!("the log has {kind} `{key}` under revision {revision}, which is older than the trail");
                verifier.find(None, What::Contradicted, detail);
            }
            continue;
        };
        let record: Option<Record> = serde_json::from_str(text).ok();
        let changed = Changed::object(kind, key, row.try_get::<Option<&[u8]>, _>(4)?);
        let place = usize::try_from(row.try_get::<i64, _>(1)?).ok();
        // What cannot be read as a record has been found already.
        if record.is_some_and(|record| place.and_then(|place| record.changes.get(place)) != Some(&changed)) {
            let seq = u64::try_from(row.try_get::<i64, _>(6)?).ok();
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
    begin: Begin,
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
            // The trail does not say what was there before it, and that has been found.
            None if !begin.sealed && revision(&row, 2)? <= begin.base => {}
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
    begin: Begin,
) -> Result<(), sqlx::Error> {
    for row in operators(c).await? {
        let Changed { kind, key, sha256 } = row.changed();
        match said.remove(&(kind.into_owned(), key.clone())) {
            Some((wanted, _)) if wanted == sha256 => {}
            Some((_, seq)) => {
                verifier.find(seq, What::Contradicted, format!("operator `{key}` is not as record {seq} left it"));
            }
            // As for objects; and a database that is older than its trail has had operators before.
            None if !begin.sealed && begin.base > Revision(0) => {}
            None => verifier.find(None, What::Contradicted, format!("no record made operator `{key}`")),
        }
    }
    Ok(())
}

// === impl Begin ===

impl Begin {
    /// Record `seq` says where the trail begins. It is believed, and not the database.
    fn sealed(&mut self, verifier: &mut Verifier, seq: u64, said: Revision) {
        let base = self.base;
        if said != base {
            let detail = format!("record {seq} says that the trail begins after revision {said}, and not after {base}");
            verifier.find(seq, What::Contradicted, detail);
            self.base = said;
        }
        self.sealed = true;
    }

    /// Record `seq` is of `revision`, so that this is not older than the trail.
    fn precedes(&mut self, verifier: &mut Verifier, seq: u64, revision: Revision) {
        if revision <= self.base {
            let base = self.base;
            let detail = format!("revision {revision} has record {seq}, and the trail is said to begin after {base}");
            verifier.find(seq, What::Contradicted, detail);
            self.base = Revision(revision.0.saturating_sub(1));
        }
    }

    /// There are no more records.
    fn within(self, verifier: &mut Verifier, latest: Revision) {
        let base = self.base;
        if base > latest {
            let detail = format!("the trail is said to begin after revision {base}, and the latest is {latest}");
            verifier.find(None, What::Contradicted, detail);
        }
        if !self.sealed && base > Revision(0) {
            let detail = format!(
                "revisions up to {base} have no record, and no record says that they are older than the trail; \
                 the control plane writes one when it starts"
            );
            verifier.find(None, What::Missing, detail);
        }
    }
}
