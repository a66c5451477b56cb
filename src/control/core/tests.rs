//! The core over real SQLite: restarts, group commit, stores that fail, plans that lose, the sweeper.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::clock::{Clock, ManualClock, Timestamp};
use crate::control::audit::{Event, Tip};
use crate::control::desk::{Desk, Limits};
use crate::control::operators::Operators;
use crate::control::store::AuditRow;
use crate::control::store::conformance::{put, unit};
use crate::control::store::{Conflict, Expect, Loaded, LogCommit, OperatorRow, SqliteStore};
use crate::control::sweep;
use crate::grant::{self, NewGrantRequest};
use crate::object::{Grant, GrantState, Kind, Object, Revocation, Target, VoteKind};
use crate::wire::{Epoch, Revision};

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(NOW))
}

async fn core(directory: &TempDir, clock: &Arc<ManualClock>, log_capacity: usize) -> Arc<Core> {
    let store = Arc::new(SqliteStore::open(directory.path(), NOW).await.unwrap());
    let config = CoreConfig { log_capacity, ..CoreConfig::default() };
    Core::open(store, Arc::clone(clock) as SharedClock, config).await.unwrap()
}

fn delete(name: &str) -> Write {
    Write::delete(Kind::Service, name, Expect::Any)
}

fn system() -> Intent {
    Intent { author: "alice".into(), action: "test", request_id: Arc::from("r") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_11_readers_see_commits_in_revision_order_without_gaps() {
    let directory = TempDir::new().unwrap();
    let core = core(&directory, &clock(), 4096).await;
    let reader = {
        let index = Arc::clone(core.index());
        let mut tip = index.subscribe();
        tokio::spawn(async move {
            let mut seen = Vec::new();
            while seen.len() < 400 {
                let after = Revision(seen.len() as u64);
                let log = index.since(after, 64).expect("the ring holds them all");
                if log.is_empty() {
                    tip.wait_for(|r| *r > after).await.unwrap();
                }
                seen.extend(log.iter().map(|l| l.commit.revision.0));
            }
            seen
        })
    };
    let writers: Vec<_> = (0..8)
        .map(|w| {
            let core = Arc::clone(&core);
            tokio::spawn(async move {
                for n in 0..50 {
                    let key = format!("w{w}-{n}");
                    let committed = core.commit(unit(vec![put(&key, Expect::Absent)])).await.unwrap();
                    let stored = core.index().get(Kind::Service, &key).expect("who was answered reads its own write");
                    assert_eq!(stored.revision, committed.position.revision);
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(reader.await.unwrap(), (1..=400).collect::<Vec<u64>>());
    core.close().await;
}

#[tokio::test]
async fn invariant_07_deltas_and_tombstones_survive_a_restart() {
    let directory = TempDir::new().unwrap();
    let clock = clock();
    let first = core(&directory, &clock, 64).await;
    for name in ["a", "b", "c"] {
        first.commit(unit(vec![put(name, Expect::Absent)])).await.unwrap();
    }
    first.commit(unit(vec![delete("a")])).await.unwrap();
    let position = first.index().position();
    let describe = |core: &Core, after| {
        let log = core.index().since(Revision(after), 100)?;
        Some(log.iter().map(|l| format!("{} {:?}", l.commit.revision, l.changes)).collect::<Vec<_>>())
    };
    let before: Vec<_> = (0..=4).map(|after| describe(&first, after)).collect();
    first.close().await;
    assert!(matches!(first.commit(unit(vec![delete("b")])).await, Err(CommitError::Closed)));
    drop(first);

    let second = core(&directory, &clock, 64).await;
    assert_eq!(second.index().position(), position);
    let after: Vec<_> = (0..=4).map(|after| describe(&second, after)).collect();
    assert_eq!(after, before, "a sidecar that comes back to another process gets the same deltas");
    assert!(second.index().get(Kind::Service, "a").is_none());
    second.close().await;
}

#[tokio::test]
async fn the_log_is_trimmed_and_memory_and_disk_agree() {
    let directory = TempDir::new().unwrap();
    let clock = clock();
    let first = core(&directory, &clock, 16).await;
    for n in 0..100 {
        first.commit(unit(vec![put(&format!("k{}", n % 7), Expect::Any)])).await.unwrap();
    }
    assert_eq!(first.index().floor(), Revision(84));
    let (_, live) = first.index().all();
    first.close().await;
    drop(first);
    let second = core(&directory, &clock, 16).await;
    let floor = second.index().floor();
    assert!((Revision(82)..=Revision(84)).contains(&floor), "{floor}");
    let (_, again) = second.index().all();
    let state = |all: &[Arc<crate::control::index::Stored>]| -> BTreeMap<String, u64> {
        all.iter().map(|s| (s.key.to_string(), s.revision.0)).collect()
    };
    assert_eq!(state(&live), state(&again));
    second.close().await;
}

#[tokio::test]
async fn what_does_not_parse_never_reaches_the_log() {
    let directory = TempDir::new().unwrap();
    let core = core(&directory, &clock(), 16).await;
    let mut wrong_key = put("a", Expect::Any);
    wrong_key.key = "b".to_owned();
    let mut no_document = put("a", Expect::Any);
    no_document.body = Some(bytes::Bytes::from_static(br#"{"name":"a","routes":[],"extra":1}"#));
    for bad in [wrong_key, no_document] {
        assert!(matches!(core.commit(unit(vec![bad])).await, Err(CommitError::Invalid { .. })));
    }
    let twice = unit(vec![put("a", Expect::Any), put("a", Expect::Any)]);
    assert!(matches!(core.commit(twice).await, Err(CommitError::Malformed)));
    assert!(matches!(core.commit(unit(vec![])).await, Err(CommitError::Malformed)));
    assert_eq!(core.index().position().revision, Revision(0));
    core.close().await;
}

/// Delegates to the real store; on demand it fails after having committed, or before.
#[derive(Debug)]
struct Faulty {
    inner: SqliteStore,
    fail_after: AtomicBool,
    fail_before: AtomicBool,
    fail_reads: AtomicUsize,
}

impl Faulty {
    fn broken(&self) -> StoreError {
        StoreError::Closed { place: self.inner.path().display().to_string() }
    }
}

impl Store for Faulty {
    fn epoch(&self) -> Epoch {
        self.inner.epoch()
    }
    fn load(&self) -> BoxFuture<'_, Result<Loaded, StoreError>> {
        self.inner.load()
    }
    fn log_since(&self, after: Revision, limit: usize) -> BoxFuture<'_, Result<Vec<LogCommit>, StoreError>> {
        async move {
            let fails = self.fail_reads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
            if fails { Err(self.broken()) } else { self.inner.log_since(after, limit).await }
        }
        .boxed()
    }
    fn commit<'a>(
        &'a self,
        units: &'a [Unit],
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Vec<Result<Committed, Conflict>>, StoreError>> {
        async move {
            if self.fail_before.swap(false, Ordering::SeqCst) {
                return Err(self.broken());
            }
            let outcomes = self.inner.commit(units, now).await;
            if self.fail_after.swap(false, Ordering::SeqCst) { Err(self.broken()) } else { outcomes }
        }
        .boxed()
    }
    fn trim(&self, floor: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.trim(floor)
    }
    fn operators(&self) -> BoxFuture<'_, Result<Vec<OperatorRow>, StoreError>> {
        self.inner.operators()
    }
    fn add_operator<'a>(&'a self, row: &'a OperatorRow, event: &'a Event) -> BoxFuture<'a, Result<bool, StoreError>> {
        self.inner.add_operator(row, event)
    }

    fn revoke_operator<'a>(
        &'a self,
        name: &'a str,
        event: &'a Event,
        at: Timestamp,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        self.inner.revoke_operator(name, event, at)
    }

    fn audit<'a>(&'a self, events: &'a [(Timestamp, Event)]) -> BoxFuture<'a, Result<(), StoreError>> {
        self.inner.audit(events)
    }

    fn audit_tip(&self) -> BoxFuture<'_, Result<Tip, StoreError>> {
        self.inner.audit_tip()
    }

    fn audit_since(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<AuditRow>, StoreError>> {
        self.inner.audit_since(after, limit)
    }

    fn audit_before(&self, before: u64, limit: usize) -> BoxFuture<'_, Result<Vec<AuditRow>, StoreError>> {
        self.inner.audit_before(before, limit)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

#[tokio::test]
async fn a_commit_of_unknown_outcome_is_read_back_before_the_next() {
    let directory = TempDir::new().unwrap();
    let inner = SqliteStore::open(directory.path(), NOW).await.unwrap();
    let (fail_after, fail_before) = (AtomicBool::new(false), AtomicBool::new(false));
    let store = Arc::new(Faulty { inner, fail_after, fail_before, fail_reads: AtomicUsize::new(0) });
    let core = Core::open(Arc::clone(&store) as Arc<dyn Store>, clock(), CoreConfig::default()).await.unwrap();

    store.fail_after.store(true, Ordering::SeqCst);
    let lost = core.commit(unit(vec![put("lost-answer", Expect::Absent)])).await;
    assert!(matches!(lost, Err(CommitError::Unavailable(_))), "nobody is told that it was not made: {lost:?}");
    store.fail_reads.store(1, Ordering::SeqCst);
    let still = core.commit(unit(vec![put("b", Expect::Absent)])).await;
    assert!(matches!(still, Err(CommitError::Unavailable(_))), "nothing goes past what is not known: {still:?}");
    store.fail_before.store(true, Ordering::SeqCst);
    assert!(core.commit(unit(vec![put("c", Expect::Absent)])).await.is_err());
    let next = core.commit(unit(vec![put("d", Expect::Absent)])).await.unwrap();
    assert_eq!(next.position.revision, Revision(2));
    let log: Vec<u64> = core.index().since(Revision(0), 9).unwrap().iter().map(|l| l.commit.revision.0).collect();
    assert_eq!(log, [1, 2]);
    let live: Vec<String> = core.index().list(Kind::Service).iter().map(|s| s.key.to_string()).collect();
    assert_eq!(live, ["d", "lost-answer"]);
    core.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_that_lose_are_made_again_and_never_starve() {
    let directory = TempDir::new().unwrap();
    let core = core(&directory, &clock(), 4096).await;
    // Each plan depends on the whole kind and adds one service named after how many there are: without guards two
    // would count the same, without holding others back one could lose for ever.
    let tasks: Vec<_> = (0..12)
        .map(|_| {
            let core = Arc::clone(&core);
            tokio::spawn(async move {
                for _ in 0..10 {
                    core.transact(&system(), |index| {
                        let since = index.position().revision;
                        let name = format!("n{}", index.list(Kind::Service).len());
                        let plan = Plan::new(()).guard(Guard::KindUnchanged { kind: Kind::Service, since });
                        Ok::<_, CommitError>(plan.write(put(&name, Expect::Absent)))
                    })
                    .await
                    .unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(core.index().list(Kind::Service).len(), 120);
    assert_eq!(core.index().position().revision, Revision(120));
    core.close().await;
}

fn request(duration_seconds: u64, now: Timestamp) -> Grant {
    let resources = vec!["payments".parse().unwrap()];
    let workload = "spiffe://a/w".parse().unwrap();
    let new = NewGrantRequest::new(workload, resources, vec!["write".to_owned()], duration_seconds);
    grant::new_request(new, "alice", now).unwrap()
}

fn stored(grant: &Grant) -> Write {
    Write::put(&Object::Grant(Box::new(grant.clone())), Expect::Any)
}

fn state(core: &Core, grant: &Grant) -> Option<GrantState> {
    let stored = core.index().get(Kind::Grant, &grant.id.to_string())?;
    crate::control::rules::as_grant(&stored).map(|g| g.state)
}

async fn sweep_all(core: &Core, directory: &TempDir) -> Result<usize, CommitError> {
    let (store, clock) = (Arc::clone(core.store()), Arc::clone(core.clock()));
    let operators = Operators::open(store, clock, &directory.path().join("bootstrap-token")).await.unwrap();
    sweep::sweep(core, &Desk::new(operators, Limits::of(core, 0))).await
}

#[tokio::test]
async fn the_sweeper_ends_lapses_and_forgets() {
    let directory = TempDir::new().unwrap();
    let clock = clock();
    let first = core(&directory, &clock, 64).await;
    let asked = request(60, NOW);
    let active = grant::vote(&asked, "bob", VoteKind::Approve, &asked.digest, NOW).unwrap();
    let pending = request(60, NOW);
    first.commit(unit(vec![stored(&active), stored(&pending)])).await.unwrap();
    clock.advance(Duration::from_millis(59_999));
    assert_eq!(sweep_all(&first, &directory).await.unwrap(), 0);
    first.close().await;
    drop(first);

    // The agenda is made again from what is stored.
    let core = core(&directory, &clock, 64).await;
    clock.advance(Duration::from_millis(1));
    assert_eq!(sweep_all(&core, &directory).await.unwrap(), 1);
    assert_eq!((state(&core, &active), state(&core, &pending)), (Some(GrantState::Ended), Some(GrantState::Pending)));

    // Revoked ones are forgotten together with their revocations, in one revision.
    let other = request(3600, clock.now().wall);
    let revoked = grant::revoke(&other, "bob", "", clock.now().wall).unwrap();
    let revocation = |target| Revocation {
        id: Uuid::new_v4(),
        target,
        reason: String::new(),
        created_by: "bob".to_owned(),
        created_at: NOW,
    };
    let of_grant = Object::Revocation(revocation(Target::Grant { grant: revoked.id }));
    let of_issuer = Object::Revocation(revocation(Target::Issuer { issuer: "i".to_owned() }));
    let writes = [&of_grant, &of_issuer].map(|o| Write::put(o, Expect::Absent));
    core.commit(unit(writes.into_iter().chain([stored(&revoked)]).collect())).await.unwrap();

    clock.advance(Duration::from_secs(86_400 - 60));
    let before = core.index().position().revision;
    assert_eq!(sweep_all(&core, &directory).await.unwrap(), 1, "the request that nobody approved for a day");
    assert_eq!(state(&core, &pending), Some(GrantState::ExpiredUnapproved));
    clock.advance(Duration::from_secs(60));
    assert_eq!(sweep_all(&core, &directory).await.unwrap(), 2);
    assert_eq!((state(&core, &active), state(&core, &revoked)), (None, None));
    assert_eq!(core.index().position().revision, Revision(before.0 + 2));
    let left: Vec<String> = core.index().list(Kind::Revocation).iter().map(|s| s.key.to_string()).collect();
    assert_eq!(left, [of_issuer.key()], "only revocations of what is forgotten go with it");
    assert_eq!(sweep_all(&core, &directory).await.unwrap(), 0);
    core.close().await;
}

#[tokio::test]
async fn a_clock_that_was_set_back_is_raised_to_the_log() {
    let directory = TempDir::new().unwrap();
    let first = core(&directory, &clock(), 64).await;
    first.commit(unit(vec![put("a", Expect::Any)])).await.unwrap();
    first.close().await;
    drop(first);
    let behind = Arc::new(ManualClock::new(Timestamp::from_secs(1_000)));
    let second = core(&directory, &behind, 64).await;
    assert_eq!(behind.now().wall, NOW, "the log proves that this time has passed");
    second.close().await;
}
