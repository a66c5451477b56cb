//! The conformance suite over SQLite, and what is particular to files: modes, locks, damage, crashes.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use sqlx::{AssertSqlSafe, Connection, query};
use tempfile::TempDir;

use super::*;
use crate::control::restore::restore;
use crate::control::store::conformance::{self, NOW, Site, put, unit};
use crate::control::store::{Expect, Write};
use crate::object::Kind;

struct Directory(TempDir);

impl Site for Directory {
    fn open(&self) -> LocalBoxFuture<'_, Arc<dyn Store>> {
        async { Arc::new(SqliteStore::open(self.0.path(), NOW).await.unwrap()) as Arc<dyn Store> }.boxed_local()
    }
}

macro_rules! conforms {
    ($($(#[$meta:meta])* $test:ident => $case:ident;)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            conformance::$case(&Directory(TempDir::new().unwrap())).await;
        })+
    };
}

conforms! {
    invariant_11_commit_order_is_revision_order => commit_order_is_revision_order;
    expectations => expectations;
    guards => guards;
    restart => restart;
    compaction => compaction;
    time_is_monotone => time_is_monotone;
    operators => operators;
    audit => audit;
}

async fn filled(directory: &Path, units: usize) -> SqliteStore {
    let store = SqliteStore::open(directory, NOW).await.unwrap();
    for n in 0..units {
        let changes = vec![put(&format!("k{}", n % 5), Expect::Any), put("twin", Expect::Any)];
        store.commit(&[unit(changes)], NOW).await.unwrap()[0].as_ref().unwrap();
    }
    store
}

#[tokio::test]
async fn what_a_commit_has_answered_was_flushed() {
    let directory = TempDir::new().unwrap();
    let store = filled(directory.path(), 1).await;
    let mut connection = store.connection().await.unwrap();
    let mut pragma = async |name: &str| -> String {
        let sql = format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *connection).await.unwrap()
    };
    // 2 is FULL: the log is flushed at each commit, and not only at checkpoints. Group commit shares that, never skips it.
    assert_eq!((pragma("journal_mode").await, pragma("synchronous").await), ("wal".to_owned(), "2".to_owned()));
}

#[tokio::test]
async fn nobody_else_can_read_the_files() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("deep").join("control");
    let store = filled(&directory, 1).await;
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&directory).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.file_name());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["control.db", "control.db-shm", "control.db-wal", "control.lock"]);
    store.close().await;
}

#[tokio::test]
async fn one_process_at_a_time() {
    let directory = TempDir::new().unwrap();
    let store = filled(directory.path(), 1).await;
    let error = SqliteStore::open(directory.path(), NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(store);
    SqliteStore::open(directory.path(), NOW).await.unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_refused_by_name() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("control.db");
    std::fs::write(&path, b"this was never a database, and it is long enough to have a header").unwrap();
    let error = SqliteStore::open(directory.path(), NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("control.db"), "{error}");

    let directory = TempDir::new().unwrap();
    let path = directory.path().join("control.db");
    filled(directory.path(), 200).await.close().await;
    let mut bytes = std::fs::read(&path).unwrap();
    let length = bytes.len();
    assert!(length > 32 * 1024, "{length}");
    for page in bytes[8192..length].chunks_mut(4096) {
        page[..64].fill(0xa5);
    }
    std::fs::write(&path, &bytes).unwrap();
    let error = SqliteStore::open(directory.path(), NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("control.db"), "{error}");

    std::fs::write(&path, &bytes[..length / 2]).unwrap();
    let error = SqliteStore::open(directory.path(), NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
}

#[tokio::test]
async fn a_database_that_contradicts_itself_is_refused() {
    let cases: &[(&str, &str)] = &[
        ("DELETE FROM log WHERE revision = 4", "the log holds 9 revisions from 1 to 10"),
        ("UPDATE counter SET revision = 9", "the log holds 10 revisions"),
        ("UPDATE counter SET revision = 12", "counter says"),
        (
            "DELETE FROM log WHERE revision = 10; DELETE FROM commits WHERE revision = 10; UPDATE counter SET revision = 9",
            "an object has revision 10",
        ),
        ("DELETE FROM counter", "the revision counter is missing"),
        ("DELETE FROM meta", "its epoch is missing"),
        ("UPDATE meta SET epoch = 'x'", "its epoch"),
    ];
    for (damage, expected) in cases {
        let directory = TempDir::new().unwrap();
        filled(directory.path(), 10).await.close().await;
        tamper(directory.path(), damage).await;
        let error = SqliteStore::open(directory.path(), NOW).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{damage}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("control.db"), "{damage}: {text}");
    }
}

#[tokio::test]
async fn objects_that_are_not_as_the_log_left_them_are_refused() {
    let cases = [
        "UPDATE objects SET body = CAST('{\"name\":\"k1\",\"routes\":[],\"hosts\":[\"h\"]}' AS BLOB) WHERE key = 'k1'",
        "DELETE FROM objects WHERE key = 'k1'",
        "UPDATE objects SET revision = 3 WHERE key = 'k1'",
    ];
    for damage in cases {
        let directory = TempDir::new().unwrap();
        filled(directory.path(), 10).await.close().await;
        tamper(directory.path(), damage).await;
        let store = SqliteStore::open(directory.path(), NOW).await.unwrap();
        let error = restore(store.load().await.unwrap()).unwrap_err();
        assert!(error.contains("service `k1` is not as revision"), "{damage}: {error}");
    }
}

#[tokio::test]
async fn a_later_schema_is_refused() {
    let directory = TempDir::new().unwrap();
    filled(directory.path(), 1).await.close().await;
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (999, 'later', TRUE, x'00', 0)";
    tamper(directory.path(), later).await;
    let error = SqliteStore::open(directory.path(), NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::Schema { .. }), "{error:?}");
    assert!(error.to_string().contains("999"), "{error}");
}

/// A machine that stops at any moment leaves the files as they are then: whatever is in the write-ahead log up to
/// there. Opening finds whole revisions, and every one that had been answered before.
#[tokio::test]
async fn invariant_10_a_crash_leaves_whole_revisions() {
    let site = TempDir::new().unwrap();
    let store = filled(site.path(), 30).await;
    let wal = std::fs::read(site.path().join("control.db-wal")).unwrap();
    let database = std::fs::read(site.path().join("control.db")).unwrap();
    assert!(wal.len() > 100_000, "the commits are in the log: {}", wal.len());
    let mut seen = Vec::new();
    for part in 0..=24 {
        let crashed = TempDir::new().unwrap();
        std::fs::write(crashed.path().join("control.db"), &database).unwrap();
        let cut = wal.len() * part / 24;
        std::fs::write(crashed.path().join("control.db-wal"), &wal[..cut]).unwrap();
        let again = SqliteStore::open(crashed.path(), NOW).await.unwrap();
        let loaded = again.load().await.unwrap();
        let revision = loaded.revision.0;
        if revision > 0 {
            let twin = loaded.objects.iter().find(|o| o.key == "twin").unwrap();
            assert_eq!(twin.revision.0, revision, "both changes of a unit, or neither");
        }
        restore(loaded).unwrap();
        seen.push(revision);
        // It goes on from there.
        let next = again.commit(&[unit(vec![put("next", Expect::Any)])], NOW).await.unwrap();
        assert_eq!(next[0].as_ref().unwrap().position.revision.0, revision + 1);
    }
    assert!(seen.is_sorted(), "{seen:?}");
    assert_eq!(seen.last(), Some(&30), "whatever had been answered is there: {seen:?}");
    store.close().await;
}

#[tokio::test]
async fn a_cancelled_commit_leaves_the_connection_usable() {
    let directory = TempDir::new().unwrap();
    let store = filled(directory.path(), 3).await;
    let units: Vec<Unit> = (0..50).map(|n| unit(vec![put(&format!("c{n}"), Expect::Any)])).collect();
    let cancelled = tokio::time::timeout(Duration::from_micros(200), store.commit(&units, NOW)).await;
    let before = store.load().await.unwrap();
    if cancelled.is_err() {
        assert!(matches!(before.revision.0, 3 | 53), "all or nothing: {}", before.revision);
    }
    restore(before.clone()).unwrap();
    let gone = unit(vec![Write::delete(Kind::Service, "k0", Expect::Any)]);
    let outcome = store.commit(&[gone], NOW).await.unwrap().remove(0).unwrap();
    assert_eq!(outcome.position.revision, before.revision.next());
    store.close().await;
}

async fn tamper(directory: &Path, sql: &'static str) {
    let mut connection = connect(&directory.join(DATABASE)).await.unwrap();
    for statement in sql.split("; ") {
        query(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
}
