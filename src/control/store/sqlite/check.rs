//! Checks on open: the file is sound, and counter, log, commits and objects agree.
//!
//! Plane: control. A store that contradicts itself is refused: a gap in the log could hide a revocation, and a counter
//! that is behind would hand out a revision twice.

use sqlx::sqlite::SqliteConnection;
use sqlx::{Row, query};

use super::{StoreError, failed};

/// SQLite's own check of the file's structure.
pub(super) async fn file(c: &mut SqliteConnection, place: &str) -> Result<(), StoreError> {
    let row = query("PRAGMA quick_check(1)").fetch_one(&mut *c).await.map_err(|e| failed(place, e))?;
    let verdict: String = row.try_get(0).map_err(|e| failed(place, e))?;
    if verdict == "ok" { Ok(()) } else { Err(StoreError::corrupt(place, verdict)) }
}

/// Whether the tables agree with each other.
pub(super) async fn contents(c: &mut SqliteConnection, place: &str) -> Result<(), StoreError> {
    let row = query(
        "SELECT revision, floor,
            (SELECT count(DISTINCT revision) FROM log),
            (SELECT coalesce(min(revision), 0) FROM log),
            (SELECT coalesce(max(revision), 0) FROM log),
            (SELECT count(*) FROM commits),
            (SELECT coalesce(max(revision), 0) FROM commits),
            (SELECT coalesce(max(revision), 0) FROM objects),
            (SELECT coalesce(max(revision), 0) FROM audit_base),
            (SELECT coalesce(max(revision), 0) FROM audit),
            (SELECT coalesce(min(revision), 0) FROM audit WHERE revision IS NOT NULL),
            (SELECT count(*) FROM audit WHERE revision IS NOT NULL)
         FROM counter WHERE id = 1",
    )
    .fetch_optional(&mut *c)
    .await
    .map_err(|e| failed(place, e))?
    .ok_or_else(|| StoreError::corrupt(place, "the revision counter is missing"))?;
    let n = |i: usize| row.try_get::<i64, _>(i).map_err(|e| failed(place, e));
    let (revision, floor) = (n(0)?, n(1)?);
    let (logged, first, last) = (n(2)?, n(3)?, n(4)?);
    let (commits, last_commit, newest_object) = (n(5)?, n(6)?, n(7)?);
    let gap = |detail: String| Err(StoreError::corrupt(place, detail));
    if logged != revision - floor || (logged > 0 && (first != floor + 1 || last != revision)) {
        return gap(format!(
            "the log holds {logged} revisions from {first} to {last}, the counter says {} to {revision}",
            floor + 1
        ));
    }
    if commits != revision || last_commit != revision {
        return gap(format!("there are {commits} commits up to {last_commit}, the counter says {revision}"));
    }
    if newest_object > revision {
        return gap(format!("an object has revision {newest_object}, the counter says {revision}"));
    }
    let (base, audited) = (n(8)?, n(9)?);
    if audited != revision && (base != revision || audited != 0) {
        return gap(format!("the audit trail ends with revision {audited}, the counter says {revision}"));
    }
    let (first_audited, records) = (n(10)?, n(11)?);
    if records != revision.saturating_sub(base) || (records > 0 && first_audited != base.saturating_add(1)) {
        return gap(format!(
            "the audit trail has {records} revisions from {first_audited} on, it should have {} to {revision}",
            base.saturating_add(1)
        ));
    }
    Ok(())
}
