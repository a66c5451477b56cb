//! The chain by itself, and a database that somebody has been at: each change is found, and found where it is.
//! Long because each way to be at it is tried.

use std::path::Path;

use proptest::prelude::*;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, query};
use tempfile::TempDir;

use super::verify::{Verdict, What};
use super::*;
use crate::clock::Timestamp;
use crate::control::store::conformance::{NOW, put, unit};
use crate::control::store::{AuditReader, Expect, SqliteStore, Store};
use crate::wire::Epoch;

fn event(n: usize) -> Event {
    let mut event = Event::done(Author::system("alice"), "grant.approve", &format!("grant/{n}"), "r,\"hash\":\"x");
    event.changes = vec![Changed::object(Kind::Grant, "}\"", Some(b"{}"))];
    event
}

fn chain(length: usize) -> (Tip, Vec<Sealed>) {
    let genesis = Tip::genesis(Epoch::starting(NOW));
    let mut tip = genesis;
    (genesis, (0..length).map(|n| Sealed::after(&mut tip, event(n), NOW).unwrap()).collect())
}

fn verdict<'a>(genesis: Tip, expected: Vec<Tip>, records: impl IntoIterator<Item = &'a Sealed>) -> Verdict {
    let mut verifier = Verifier::new(expected).from_beginning(genesis);
    for sealed in records {
        verifier.record(None, sealed);
    }
    verifier.finish()
}

fn found(verdict: &Verdict) -> Vec<(Option<u64>, What)> {
    verdict.findings.iter().map(|f| (f.seq, f.what)).collect()
}

#[test]
fn a_line_is_its_record_and_the_hash_of_its_text() {
    let (_, records) = chain(1);
    let line = records[0].line();
    assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok_and(|v| v["hash"] == records[0].hash.to_string()));
    assert_eq!(Sealed::of_line(&line).as_ref(), Some(&records[0]));
    for bad in
        ["", "{}", "\"}", ",\"hash\":\"\"}", &line.replace(&records[0].hash.to_string(), "ff"), &format!("{line} ")]
    {
        assert_eq!(Sealed::of_line(bad), None, "{bad}");
    }
    let tip = Tip { seq: 7, hash: records[0].hash };
    assert_eq!(tip.to_string().parse(), Ok(tip));
    for bad in ["", ":7", "7", &format!("{}:x", tip.hash), &format!("{}:7", tip.hash.to_string().to_uppercase())] {
        assert!(bad.parse::<Tip>().is_err(), "{bad}");
    }
}

#[test]
fn a_chain_is_whole_or_says_where_it_is_not() {
    let (genesis, records) = chain(6);
    assert!(verdict(genesis, Vec::new(), &records).is_whole());
    let other = Tip::genesis(Epoch::starting(Timestamp::from_secs(1)));
    assert_eq!(found(&verdict(other, Vec::new(), &records)), [(Some(1), What::Broken)], "another store's");

    let mut edited = records.clone();
    edited[2].text = edited[2].text.replace("alice", "mallo");
    assert_eq!(found(&verdict(genesis, Vec::new(), &edited)), [(Some(3), What::Edited)]);
    edited[2].hash = Hash::of(edited[2].text.as_bytes());
    assert_eq!(found(&verdict(genesis, Vec::new(), &edited)), [(Some(4), What::Broken)], "with a hash that fits");

    let gone = records.iter().take(2).chain(&records[3..]);
    assert_eq!(found(&verdict(genesis, Vec::new(), gone)), [(Some(3), What::Missing)]);
    assert_eq!(found(&verdict(genesis, Vec::new(), &records[2..])), [(Some(1), What::Missing)]);

    let swapped = [0, 2, 1, 3].map(|n| &records[n]);
    let places: Vec<_> = found(&verdict(genesis, Vec::new(), swapped)).into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(places, [Some(2), Some(2), Some(3)]);
}

#[test]
fn an_end_that_was_cut_off_or_made_anew_is_found_by_a_checkpoint() {
    let (genesis, records) = chain(6);
    let tip = |n: usize| Tip { seq: n as u64, hash: records[n - 1].hash };
    assert!(verdict(genesis, vec![genesis, tip(3), tip(6)], &records).is_whole());
    assert!(verdict(genesis, Vec::new(), &records[..4]).is_whole(), "the chain alone does not show it");
    assert_eq!(found(&verdict(genesis, vec![tip(6)], &records[..4])), [(Some(5), What::Truncated)]);

    let mut tip_of_two = tip(2);
    let mut anew = records[..2].to_vec();
    anew.extend((9..13).map(|n| Sealed::after(&mut tip_of_two, event(n), NOW).unwrap()));
    assert!(verdict(genesis, vec![tip(2)], &anew).is_whole(), "the chain alone does not show it");
    assert_eq!(found(&verdict(genesis, vec![tip(5)], &anew)), [(Some(5), What::Rewritten)]);

    let mut part = Verifier::new(vec![tip(2), tip(4)]);
    records[2..].iter().for_each(|sealed| drop(part.record(None, sealed)));
    assert_eq!(found(&part.finish()), [(Some(2), What::Missing)], "what a part does not hold cannot be vouched for");
}

proptest! {
    #[test]
    fn whatever_a_line_is_it_is_read_or_refused(line in "\\PC{0,200}") {
        if let Some(sealed) = Sealed::of_line(&line) {
            prop_assert_eq!(sealed.line(), line);
        }
    }

    /// One byte of one record changed, or one record left out or twice: never whole.
    #[test]
    fn no_change_goes_unseen(at in 0_usize..5, place in any::<prop::sample::Index>(), byte in 1_u8..128, how in 0..3) {
        let (genesis, mut records) = chain(6);
        match how {
            0 => {
                let mut bytes = records[at].text.clone().into_bytes();
                let place = place.index(bytes.len());
                bytes[place] = (bytes[place] + byte) % 128;
                records[at].text = String::from_utf8(bytes).unwrap();
            }
            1 => drop(records.remove(at)),
            _ => records.insert(at, records[at].clone()),
        }
        prop_assert!(!verdict(genesis, Vec::new(), &records).is_whole());
    }
}

fn refusal(n: usize) -> Event {
    Event { changes: Vec::new(), ..event(n).answered(403) }
}

/// The beginning, ten revisions, two operators, one refusal.
async fn database() -> (TempDir, Tip) {
    let directory = TempDir::new().unwrap();
    let store = SqliteStore::open(directory.path(), NOW).await.unwrap();
    for n in 0..10 {
        let changes = vec![put(&format!("k{}", n % 5), Expect::Any), put("twin", Expect::Any)];
        store.commit(&[unit(changes)], NOW).await.unwrap()[0].as_ref().unwrap();
    }
    for (name, byte) in [("alice", 1), ("bob", 2)] {
        let row = crate::control::store::OperatorRow {
            name: name.to_owned(),
            kind: crate::control::principal::OperatorKind::Person,
            token_sha256: [byte; 32],
            created_at: NOW,
            created_by: "system".to_owned(),
            revoked: None,
        };
        assert!(store.add_operator(&row, &event(0)).await.unwrap());
    }
    store.audit(&[(NOW, refusal(1))]).await.unwrap();
    let tip = store.audit_tip().await.unwrap();
    store.close().await;
    (directory, tip)
}

async fn tamper(directory: &Path, sql: &'static str) {
    let options = SqliteConnectOptions::new().filename(directory.join("control.db"));
    let mut connection = options.foreign_keys(false).connect().await.unwrap();
    for trigger in ["audit_is_not_changed", "audit_is_not_deleted"] {
        query(AssertSqlSafe(format!("DROP TRIGGER IF EXISTS {trigger}"))).execute(&mut connection).await.unwrap();
    }
    for statement in sql.split("; ") {
        let done = query(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
        assert!(done.rows_affected() > 0, "{statement}");
    }
    connection.close().await.unwrap();
}

async fn verify(directory: &Path, expected: Vec<Tip>) -> Verdict {
    AuditReader::open(directory).await.unwrap().verify(expected).await.unwrap()
}

#[tokio::test]
async fn a_database_that_nobody_touched_is_whole_also_while_it_is_in_use() {
    let (directory, tip) = database().await;
    let verdict = verify(directory.path(), vec![tip]).await;
    assert!(verdict.is_whole(), "{verdict:?}");
    assert_eq!((verdict.records, verdict.checkpoint), (14, Some(tip.to_string())));
    let store = SqliteStore::open(directory.path(), NOW).await.unwrap();
    store.commit(&[unit(vec![put("k9", Expect::Any)])], NOW).await.unwrap()[0].as_ref().unwrap();
    let verdict = verify(directory.path(), vec![tip]).await;
    assert!(verdict.is_whole() && verdict.records == 15, "{verdict:?}");
    store.close().await;
}

#[tokio::test]
async fn the_trail_cannot_be_changed_by_mistake() {
    let (directory, _) = database().await;
    let options = SqliteConnectOptions::new().filename(directory.path().join("control.db"));
    let mut connection = options.connect().await.unwrap();
    for sql in ["UPDATE audit SET record = '' WHERE seq = 1", "DELETE FROM audit"] {
        let error = query(sql).execute(&mut connection).await.unwrap_err();
        assert!(error.to_string().contains("append-only"), "{error}");
    }
}

type Place = (Option<u64>, What);

#[tokio::test]
async fn tampering_with_the_database_is_found_and_located() {
    use What::{Broken, Contradicted, Edited, Misplaced, Missing, Unreadable};
    let cases: &[(&str, &[Place], &str)] = &[
        (
            "UPDATE audit SET record = replace(record, '\"alice\"', '\"mallo\"') WHERE seq = 14",
            &[(Some(14), Edited)],
            "record 14 was changed",
        ),
        ("UPDATE audit SET record = 'x' WHERE seq = 14", &[(Some(14), Edited), (Some(14), Unreadable)], "record 14"),
        ("UPDATE audit SET hash = zeroblob(32) WHERE seq = 14", &[(Some(14), Edited)], "record 14"),
        ("DELETE FROM audit WHERE seq = 14", &[], "which only a checkpoint shows"),
        ("DELETE FROM audit WHERE seq = 12", &[(Some(12), Missing), (None, Contradicted)], "record 12 is missing"),
        (
            "DELETE FROM audit WHERE seq IN (3, 4)",
            &[(Some(3), Missing), (None, Missing)],
            "revisions 2 to 3 have no record",
        ),
        (
            "UPDATE audit SET seq = 99 WHERE seq = 12; UPDATE audit SET seq = 12 WHERE seq = 13; UPDATE audit SET seq = 13 WHERE seq = 99",
            &[(Some(12), Misplaced), (Some(12), Broken), (Some(13), Misplaced), (Some(13), Broken), (Some(14), Broken)],
            "in the place of record 12 stands record 13",
        ),
        (
            "UPDATE objects SET body = x'7b7d' WHERE key = 'k1'",
            &[(Some(8), Contradicted)],
            "service `k1` is not as record 8 left it",
        ),
        ("DELETE FROM objects WHERE key = 'k2'", &[(Some(9), Contradicted)], "service `k2` is gone"),
        (
            "INSERT INTO objects VALUES (4, 'planted', 10, x'7b7d')",
            &[(None, Contradicted)],
            "no record wrote service `planted`",
        ),
        (
            "UPDATE log SET body = x'7b7d' WHERE revision = 5 AND key = 'twin'",
            &[(Some(6), Contradicted)],
            "the log has another service `twin` under revision 5",
        ),
        ("UPDATE commits SET author = 'mallory' WHERE revision = 6", &[(Some(7), Contradicted)], "another author"),
        (
            "UPDATE operators SET token_sha256 = zeroblob(32) WHERE name = 'bob'",
            &[(Some(13), Contradicted)],
            "operator `bob` is not as record 13",
        ),
        (
            "INSERT INTO operators VALUES ('eve', zeroblob(32), 0, 'system', NULL, NULL, 'person')",
            &[(None, Contradicted)],
            "no record made operator `eve`",
        ),
        ("DELETE FROM operators WHERE name = 'bob'", &[(Some(13), Contradicted)], "operator `bob` is gone"),
        (
            "DELETE FROM log WHERE revision = 5 AND seq = 1",
            &[(Some(6), Contradicted)],
            "the log has 1 of the 2 changes of revision 5",
        ),
        (
            "UPDATE audit_base SET revision = 10; INSERT INTO objects VALUES (4, 'planted', 10, x'7b7d'); INSERT INTO operators VALUES ('eve', zeroblob(32), 0, 'system', NULL, NULL, 'person')",
            &[(Some(1), Contradicted), (None, Contradicted), (None, Contradicted)],
            "record 1 says that the trail begins after revision 0, and not after 10",
        ),
    ];
    for (damage, wanted, detail) in cases {
        let (directory, tip) = database().await;
        tamper(directory.path(), damage).await;
        let verdict = verify(directory.path(), Vec::new()).await;
        assert_eq!(found(&verdict), *wanted, "{damage}: {verdict:?}");
        let said = |v: &Verdict| v.findings.iter().any(|f| f.detail.contains(detail));
        assert!(wanted.is_empty() || said(&verdict), "{damage}: {verdict:?}");
        if wanted.is_empty() {
            let verdict = verify(directory.path(), vec![tip]).await;
            assert_eq!(found(&verdict), [(Some(14), What::Truncated)], "{damage}");
        }
    }
}

/// The same database as one that is older than its audit trail, or than the record of its beginning.
async fn aged() -> TempDir {
    let (directory, _) = database().await;
    let options = SqliteConnectOptions::new().filename(directory.path().join("control.db"));
    let mut connection = options.connect().await.unwrap();
    for undone in ["DROP TABLE audit", "DROP TABLE audit_base", "DELETE FROM _sqlx_migrations WHERE version = 6"] {
        query(undone).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    directory
}

#[tokio::test]
async fn what_is_older_than_the_trail_is_sealed_when_the_database_is_opened() {
    let directory = aged().await;
    let store = SqliteStore::open(directory.path(), NOW).await.unwrap();
    assert_eq!(store.audit_tip().await.unwrap().seq, 1);
    assert_eq!(store.load().await.unwrap().floor, Revision(10), "the log of before is not vouched for");
    store.commit(&[unit(vec![put("k9", Expect::Any)])], NOW).await.unwrap()[0].as_ref().unwrap();
    store.close().await;
    SqliteStore::open(directory.path(), NOW).await.unwrap().close().await;
    let verdict = verify(directory.path(), Vec::new()).await;
    assert!(verdict.is_whole() && verdict.records == 2, "sealed once: {verdict:?}");

    let cases: &[(&str, &[Place], &str)] = &[
        ("INSERT INTO objects VALUES (4, 'planted', 3, x'7b7d')", &[(None, What::Contradicted)], "no record wrote"),
        ("UPDATE objects SET body = x'7b7d' WHERE key = 'k2'", &[(Some(1), What::Contradicted)], "`k2` is not as"),
        ("DELETE FROM operators WHERE name = 'bob'", &[(Some(1), What::Contradicted)], "`bob` is gone"),
        (
            "INSERT INTO log VALUES (4, 0, 4, 'planted', x'7b7d', NULL, NULL)",
            &[(None, What::Contradicted)],
            "which is older than the trail",
        ),
        ("UPDATE audit_base SET revision = 11", &[(Some(1), What::Contradicted)], "begins after revision 10"),
    ];
    let file = |directory: &Path| directory.join("control.db");
    for (damage, wanted, detail) in cases {
        let copy = TempDir::new().unwrap();
        std::fs::copy(file(directory.path()), file(copy.path())).unwrap();
        tamper(copy.path(), damage).await;
        let verdict = verify(copy.path(), Vec::new()).await;
        assert_eq!(found(&verdict), *wanted, "{damage}: {verdict:?}");
        assert!(verdict.findings[0].detail.contains(detail), "{damage}: {verdict:?}");
    }
}

#[tokio::test]
async fn a_database_that_says_it_is_older_than_its_trail_is_found_and_refused() {
    let (directory, _) = database().await;
    tamper(directory.path(), "UPDATE audit_base SET revision = 10").await;
    let error = SqliteStore::open(directory.path(), NOW).await.unwrap_err().to_string();
    assert!(error.contains("control.db") && error.contains("revisions from 1 on, it should have 11"), "{error}");

    // With no record of a revision left, only the record of the beginning says otherwise.
    tamper(directory.path(), "DELETE FROM audit WHERE seq > 1").await;
    let error = SqliteStore::open(directory.path(), NOW).await.unwrap_err().to_string();
    assert!(error.contains("does not begin after revision 10"), "{error}");

    // And with none at all, that there is no such record.
    tamper(directory.path(), "DELETE FROM audit").await;
    let verdict = verify(directory.path(), Vec::new()).await;
    assert_eq!(found(&verdict), [(None, What::Missing)], "{verdict:?}");
    assert!(verdict.findings[0].detail.contains("revisions up to 10 have no record"), "{verdict:?}");
}

/// Everything made anew from a place on, so that it agrees with itself: only a checkpoint shows it.
#[tokio::test]
async fn a_suffix_made_anew_is_found_by_a_checkpoint() {
    let (directory, tip) = database().await;
    let mut reader = AuditReader::open(directory.path()).await.unwrap();
    let rows = reader.since(0, 100).await.unwrap();
    drop(reader);
    let mut last = Tip { seq: 13, hash: rows[12].sealed.hash };
    let anew = Sealed::after(&mut last, refusal(77), NOW).unwrap();
    let options = SqliteConnectOptions::new().filename(directory.path().join("control.db"));
    let mut connection = options.connect().await.unwrap();
    query("DROP TRIGGER audit_is_not_changed").execute(&mut connection).await.unwrap();
    let update = query("UPDATE audit SET record = ?, hash = ? WHERE seq = 14");
    update.bind(anew.text).bind(anew.hash.as_bytes().as_slice()).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    assert!(verify(directory.path(), Vec::new()).await.is_whole());
    let verdict = verify(directory.path(), vec![tip]).await;
    assert_eq!(found(&verdict), [(Some(14), What::Rewritten)], "{verdict:?}");
}

/// What nobody waits for is written soon, what somebody waits for before the answer, what does not fit is counted.
#[tokio::test(start_paused = true)]
async fn the_recorder_is_bounded_and_says_what_it_lost() {
    let directory = TempDir::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory.path(), NOW).await.unwrap());
    let recorder = Recorder::start(Arc::clone(&store), Arc::new(crate::clock::ManualClock::new(NOW)));
    recorder.record(event(0)).await.unwrap();
    assert_eq!(store.audit_tip().await.unwrap().seq, 2, "durable when answered");
    // Without a turn for the task that writes, the queue fills.
    (0..5000).for_each(|n| recorder.note(event(n)));
    recorder.close().await;
    let rows = store.audit_since(0, usize::MAX).await.unwrap();
    let lost: Vec<Record> = rows
        .iter()
        .map(|row| serde_json::from_str::<Record>(&row.sealed.text).unwrap())
        .filter(|record| record.action == "audit.lost")
        .collect();
    assert_eq!(lost.len(), 1);
    let count: usize = lost[0].object.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(count + rows.len() - 3, 5000, "each is a record or counted");
    assert!(recorder.record(event(1)).await.is_err(), "nothing is taken any more");
    store.close().await;
}

/// What was left out becomes a record, also when nothing is noted after it, and at the end.
#[tokio::test(start_paused = true)]
async fn what_was_left_out_is_owned_up_to_without_another_record() {
    let directory = TempDir::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory.path(), NOW).await.unwrap());
    let recorder = Recorder::start(Arc::clone(&store), Arc::new(crate::clock::ManualClock::new(NOW)));
    let lost = async || {
        let rows = store.audit_since(1, usize::MAX).await.unwrap();
        let records = rows.iter().map(|row| serde_json::from_str::<Record>(&row.sealed.text).unwrap());
        records.map(|record| (record.action.into_owned(), record.object)).collect::<Vec<_>>()
    };
    (0..3).for_each(|_| recorder.omit());
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while lost().await.is_empty() {
        assert!(tokio::time::Instant::now() < until, "never owned up to");
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    let said = |n: u64| ("audit.lost".to_owned(), format!("{n} records"));
    assert_eq!(lost().await, [said(3)]);
    recorder.omit();
    recorder.close().await;
    assert_eq!(lost().await, [said(3), said(1)]);
    store.close().await;
}

#[tokio::test]
async fn nobody_but_the_control_plane_says_where_the_trail_begins() {
    let by = |kind: &'static str, via| Author { name: "system".into(), kind: kind.into(), via };
    let said = |author: Author, object: &str| (NOW, Event::done(author, "audit.begin", object, ""));
    let refused = |(at, event): (_, Event)| (at, event.answered(401));
    let forged = [
        refused(said(Author::unknown(), "audit.begin /")),
        refused(said(Author::unknown(), "revision/7")),
        said(Author::unknown(), "revision/7"),
        said(by("person", Some(Via::Token)), "revision/7"),
        said(by("system", None), "revision/7"),
        said(Author::system("sweep"), "revision/7"),
        said(Author::system("system"), "revision/+7"),
        said(Author::system("system"), "revision/x"),
        refused(said(Author::system("system"), "revision/7")),
    ];
    let directory = TempDir::new().unwrap();
    let store = SqliteStore::open(directory.path(), NOW).await.unwrap();
    store.audit(&forged).await.unwrap();
    store.close().await;
    SqliteStore::open(directory.path(), NOW).await.unwrap().close().await;
    let verdict = verify(directory.path(), Vec::new()).await;
    assert!(verdict.is_whole() && verdict.records == 1 + forged.len() as u64, "{verdict:?}");

    // In a trail from before it said where it begins, such records come first.
    let directory = TempDir::new().unwrap();
    let store = SqliteStore::open(directory.path(), NOW).await.unwrap();
    tamper(directory.path(), "DELETE FROM audit").await;
    store.audit(&forged).await.unwrap();
    store.close().await;
    for _ in 0..2 {
        SqliteStore::open(directory.path(), NOW).await.unwrap().close().await;
    }
    let verdict = verify(directory.path(), Vec::new()).await;
    assert!(verdict.is_whole() && verdict.records == 1 + forged.len() as u64, "sealed once: {verdict:?}");
}
