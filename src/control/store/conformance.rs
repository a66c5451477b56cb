//! What every store must do, whatever the database: one suite, run by each implementation over databases of its own.
//!
//! Tests only. Each case opens the same database again and again, and looks only at what the trait promises: dense
//! revisions in commit order, expectations and guards, restarts, compaction, monotone times, operators.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;

use super::{Committed, Conflict, Expect, Guard, LogChange, OperatorRow, Store, StoreError, Unit, Write};
use crate::clock::Timestamp;
use crate::control::audit::{Author, Changed, Event, Finding, Tip, Verifier};
use crate::control::principal::OperatorKind;
use crate::control::restore::restore;
use crate::object::Kind;
use crate::wire::Revision;

/// One database that can be opened again and again, once at a time.
pub(crate) trait Site: Sync {
    /// Opens it.
    fn open(&self) -> LocalBoxFuture<'_, Arc<dyn Store>>;
}

pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

/// A service document with this name.
pub(crate) fn service(name: &str) -> Bytes {
    Bytes::from(format!(r#"{{"name":"{name}","routes":[]}}"#))
}

pub(crate) fn put(name: &str, expect: Expect) -> Write {
    Write { kind: Kind::Service, key: name.to_owned(), expect, body: Some(service(name)) }
}

pub(crate) fn unit(changes: Vec<Write>) -> Unit {
    Unit { changes, ..Unit::new("alice", "test", "r-1") }
}

fn by(name: &str) -> Event {
    Event::done(Author::system(name), "operator.test", "", "r-2")
}

type Outcome = Result<Committed, Conflict>;

async fn commit(store: &dyn Store, units: Vec<Unit>) -> Vec<Outcome> {
    store.commit(&units, NOW).await.unwrap()
}

async fn one(store: &dyn Store, unit: Unit) -> Outcome {
    commit(store, vec![unit]).await.remove(0)
}

fn revision(outcome: &Outcome) -> u64 {
    outcome.as_ref().unwrap().position.revision.0
}

/// Writers at the same time, some of whom lose: revisions are dense, each is given once, the log has them in order,
/// and every writer's own commits are in the order in which it made them.
pub(crate) async fn commit_order_is_revision_order(site: &dyn Site) {
    const WRITERS: usize = 8;
    const UNITS: usize = 40;
    let store = site.open().await;
    let tasks: Vec<_> = (0..WRITERS)
        .map(|w| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut mine = Vec::new();
                for n in 0..UNITS {
                    let key = format!("w{w}-{n}");
                    // Contended by everybody, won once.
                    let lost = unit(vec![put(&format!("contended-{n}"), Expect::Absent), put(&key, Expect::Any)]);
                    let sure = unit(vec![put(&key, Expect::Any)]);
                    let outcomes = store.commit(&[lost, sure], NOW).await.unwrap();
                    mine.extend(outcomes.into_iter().flatten().map(|c| c.position.revision.0));
                    tokio::task::yield_now().await;
                }
                mine
            })
        })
        .collect();
    let mut given = Vec::new();
    for task in tasks {
        let mine = task.await.unwrap();
        assert!(mine.is_sorted_by(|a, b| a < b), "a writer's later commit has a later revision");
        given.extend(mine);
    }
    given.sort_unstable();
    let expected: Vec<u64> = (1..=(WRITERS * UNITS + UNITS) as u64).collect();
    assert_eq!(given, expected, "dense, without gaps, each once");
    let log = store.log_since(Revision(0), usize::MAX).await.unwrap();
    let logged: Vec<u64> = log.iter().map(|c| c.revision.0).collect();
    assert_eq!(logged, expected);
    assert!(log.is_sorted_by_key(|c| c.at));
    let loaded = store.load().await.unwrap();
    assert_eq!(loaded.objects.len(), WRITERS * UNITS + UNITS);
    restore(loaded).unwrap();
    store.close().await;
}

/// A unit whose expectations do not hold is rejected alone, whole, and takes no revision.
pub(crate) async fn expectations(site: &dyn Site) {
    let store = &*site.open().await;
    let first = revision(&one(store, unit(vec![put("a", Expect::Absent)])).await);
    let at = |r| Expect::Revision(Revision(r));

    let conflict = |key: &str, found: Option<u64>| Conflict {
        kind: Kind::Service,
        key: Some(key.to_owned()),
        found: found.map(Revision),
    };
    let outcomes = commit(
        store,
        vec![
            unit(vec![put("a", Expect::Absent)]),
            unit(vec![put("b", Expect::Absent), put("a", at(first + 1))]),
            unit(vec![put("c", Expect::Absent)]),
            unit(vec![put("d", at(1))]),
            unit(vec![Write::delete(Kind::Service, "nothing", Expect::Any)]),
            unit(vec![put("a", at(first))]),
            unit(vec![put("a", at(first))]),
        ],
    )
    .await;
    assert_eq!(outcomes[0], Err(conflict("a", Some(first))));
    assert_eq!(outcomes[1], Err(conflict("a", Some(first))), "one bad expectation rejects the whole unit");
    assert_eq!(revision(&outcomes[2]), first + 1, "and no other");
    assert_eq!(outcomes[3], Err(conflict("d", None)));
    assert_eq!(outcomes[4], Err(conflict("nothing", None)), "there is nothing to delete");
    assert_eq!(revision(&outcomes[5]), first + 2);
    assert_eq!(outcomes[6], Err(conflict("a", Some(first + 2))), "it sees what its own group wrote before it");
    let keys: Vec<String> = store.load().await.unwrap().objects.into_iter().map(|o| o.key).collect();
    assert_eq!(keys, ["a", "c"], "a rejected unit leaves nothing behind");
    store.close().await;
}

/// Guards cover what was read and not written: one object, or all of a kind.
pub(crate) async fn guards(site: &dyn Site) {
    let store = &*site.open().await;
    let first = revision(&one(store, unit(vec![put("a", Expect::Absent)])).await);
    let guarded = |guard: Guard, key: &str| Unit { guards: vec![guard], ..unit(vec![put(key, Expect::Any)]) };
    let on_a = |expect| Guard::Object { kind: Kind::Service, key: "a".to_owned(), expect };
    let on_kind = |since| Guard::KindUnchanged { kind: Kind::Service, since: Revision(since) };

    assert!(one(store, guarded(on_a(Expect::Revision(Revision(first))), "b")).await.is_ok());
    assert!(one(store, guarded(on_a(Expect::Absent), "b")).await.is_err());
    assert!(one(store, guarded(on_kind(first), "c")).await.is_err(), "`b` came after");
    let other = Guard::KindUnchanged { kind: Kind::Grant, since: Revision(0) };
    assert!(one(store, guarded(other, "c")).await.is_ok(), "no grant was ever written");
    let tip = revision(&one(store, unit(vec![Write::delete(Kind::Service, "b", Expect::Any)])).await);
    assert!(one(store, guarded(on_kind(tip - 1), "d")).await.is_err(), "a delete is a change");
    let outcomes = commit(store, vec![guarded(on_kind(tip), "d"), guarded(on_kind(tip), "e")]).await;
    assert!(outcomes[0].is_ok());
    assert_eq!(outcomes[1].as_ref().unwrap_err().key, None, "also when the change is in the same group");
    store.close().await;
    // The marks of kinds are as durable as the rest.
    let store = &*site.open().await;
    assert!(one(store, guarded(on_kind(tip), "f")).await.is_err());
    store.close().await;
}

/// What was answered is there after a restart: epoch, revision, objects, log with the replaced versions.
pub(crate) async fn restart(site: &dyn Site) {
    let store = site.open().await;
    let epoch = store.epoch();
    one(&*store, unit(vec![put("a", Expect::Absent), put("b", Expect::Absent)])).await.unwrap();
    one(&*store, unit(vec![Write::delete(Kind::Service, "a", Expect::Any)])).await.unwrap();
    one(&*store, unit(vec![put("a", Expect::Absent)])).await.unwrap();
    let before = store.load().await.unwrap();
    store.close().await;
    assert!(matches!(store.load().await, Err(StoreError::Closed { .. })));
    drop(store);

    let store = site.open().await;
    assert_eq!(store.epoch(), epoch);
    let after = store.load().await.unwrap();
    assert_eq!((after.revision, after.floor, after.at), (Revision(3), Revision(0), NOW));
    assert_eq!((&after.objects, &after.log), (&before.objects, &before.log));
    let change = |body: Option<&str>, previous: Option<(u64, &str)>| LogChange {
        kind: Kind::Service,
        key: "a".to_owned(),
        body: body.map(service),
        previous: previous.map(|(r, name)| (Revision(r), service(name))),
    };
    assert_eq!(after.log[1].changes, [change(None, Some((1, "a")))], "a delete says what was deleted");
    assert_eq!(after.log[2].changes, [change(Some("a"), None)], "created again: a new life");
    assert_eq!(revision(&one(&*store, unit(vec![put("c", Expect::Any)])).await), 4, "it goes on where it was");
    store.close().await;
}

/// Trimming forgets the log below the floor and nothing else; the floor never moves back.
pub(crate) async fn compaction(site: &dyn Site) {
    let store = site.open().await;
    for n in 0..10 {
        one(&*store, unit(vec![put(&format!("k{}", n % 3), Expect::Any)])).await.unwrap();
    }
    one(&*store, unit(vec![Write::delete(Kind::Service, "k0", Expect::Any)])).await.unwrap();
    let before = store.load().await.unwrap();
    store.trim(Revision(8)).await.unwrap();
    store.trim(Revision(5)).await.unwrap();
    let after = store.load().await.unwrap();
    assert_eq!((after.revision, after.floor), (Revision(11), Revision(8)));
    assert_eq!(after.objects, before.objects);
    assert_eq!(after.log, before.log[8..]);
    assert_eq!(store.log_since(Revision(9), 1).await.unwrap(), before.log[9..10]);
    store.close().await;
    let store = site.open().await;
    let restored = restore(store.load().await.unwrap()).unwrap();
    let at_floor: BTreeMap<&str, u64> = restored.objects.iter().map(|s| (&*s.key, s.revision.0)).collect();
    assert_eq!(at_floor, BTreeMap::from([("k0", 7), ("k1", 8), ("k2", 6)]), "the state at the floor");
    assert_eq!(restored.log.last().unwrap().changes[0].object, None, "the tombstone is still in the log");
    // Everything up to the tip may go.
    store.trim(Revision(11)).await.unwrap();
    store.close().await;
    let store = site.open().await;
    assert!(store.load().await.unwrap().log.is_empty());
    assert_eq!(revision(&one(&*store, unit(vec![put("z", Expect::Any)])).await), 12);
    store.close().await;
}

/// Times never run backwards along the log, whatever the clock says.
pub(crate) async fn time_is_monotone(site: &dyn Site) {
    let store = site.open().await;
    one(&*store, unit(vec![put("a", Expect::Any)])).await.unwrap();
    store.close().await;
    let store = site.open().await;
    let earlier = Timestamp::from_secs(1_000);
    let outcomes = store.commit(&[unit(vec![put("b", Expect::Any)])], earlier).await.unwrap();
    assert_eq!(outcomes[0].as_ref().unwrap().at, NOW);
    store.close().await;
}

/// Operators: unique for ever, revoked once, never the last one.
pub(crate) async fn operators(site: &dyn Site) {
    let store = site.open().await;
    let row = |name: &str, byte: u8| OperatorRow {
        name: name.to_owned(),
        kind: if byte == 2 { OperatorKind::Automation } else { OperatorKind::Person },
        token_sha256: [byte; 32],
        created_at: NOW,
        created_by: "system".to_owned(),
        revoked: None,
    };
    assert!(store.add_operator(&row("a", 1), &by("a")).await.unwrap());
    assert!(!store.add_operator(&row("a", 2), &by("a")).await.unwrap(), "the name is taken");
    assert!(!store.revoke_operator("a", &by("a"), NOW).await.unwrap(), "the last one stays");
    assert!(store.add_operator(&row("b", 2), &by("a")).await.unwrap());
    assert!(store.revoke_operator("a", &by("b"), NOW).await.unwrap());
    assert!(!store.revoke_operator("a", &by("b"), NOW).await.unwrap(), "once");
    assert!(!store.add_operator(&row("a", 3), &by("a")).await.unwrap(), "the name stays taken");
    store.close().await;
    let store = site.open().await;
    let rows = store.operators().await.unwrap();
    assert_eq!(rows[0], OperatorRow { revoked: Some((NOW, "b".to_owned())), ..row("a", 1) });
    assert_eq!(rows[1], row("b", 2));
    store.close().await;
}

/// The audit trail: a record for each revision and for each change of an operator, none for what was rejected or did
/// not happen; one chain across restarts; what it says of an object is the object's digest.
pub(crate) async fn audit(site: &dyn Site) {
    let store = site.open().await;
    assert_eq!(store.audit_tip().await.unwrap().seq, 1, "the trail says where it begins");
    let rejected = unit(vec![put("a", Expect::Absent), put("gone", Expect::Revision(Revision(9)))]);
    commit(&*store, vec![unit(vec![put("a", Expect::Absent)]), rejected]).await;
    let row = OperatorRow {
        name: "alice".to_owned(),
        kind: OperatorKind::Person,
        token_sha256: [7; 32],
        created_at: NOW,
        created_by: "system".to_owned(),
        revoked: None,
    };
    assert!(store.add_operator(&row, &by("system")).await.unwrap());
    assert!(!store.add_operator(&row, &by("system")).await.unwrap());
    let refused = Event::done(Author::unknown(), "grant.approve", "grant/1", "r-3").answered(403);
    store.audit(&[(NOW, refused.clone()), (NOW, refused)]).await.unwrap();
    store.close().await;
    let store = site.open().await;
    commit(&*store, vec![unit(vec![Write::delete(Kind::Service, "a", Expect::Any)])]).await;

    let rows = store.audit_since(0, usize::MAX).await.unwrap();
    let mut verifier = Verifier::new(Vec::new()).from_beginning(Tip::genesis(store.epoch()));
    let records: Vec<_> = rows.iter().map(|row| verifier.record(Some(row.seq), &row.sealed).unwrap()).collect();
    assert_eq!(verifier.tip(), Some(store.audit_tip().await.unwrap()));
    assert_eq!(verifier.finish().findings, Vec::<Finding>::new());
    let said: Vec<(&str, &str, Option<u64>)> =
        records.iter().map(|r| (&*r.author, &*r.action, r.revision.map(|r| r.0))).collect();
    assert_eq!(
        said,
        [
            ("system", "audit.begin", None),
            ("alice", "test", Some(1)),
            ("system", "operator.test", None),
            ("", "grant.approve", None),
            ("", "grant.approve", None),
            ("alice", "test", Some(2)),
        ]
    );
    assert_eq!(&*records[0].object, "revision/0");
    assert_eq!((&*records[1].object, &*records[1].request_id, records[1].at), ("service/a", "r-1", NOW));
    assert_eq!(records[1].changes, [Changed::object(Kind::Service, "a", Some(&service("a")))]);
    assert_eq!(records[2].changes, [row.changed()]);
    assert_eq!(records[3].status, Some(403));
    assert_eq!(records[5].changes, [Changed::object(Kind::Service, "a", None)]);
    assert_eq!(store.audit_since(1, 2).await.unwrap(), rows[1..3]);
    let latest = store.audit_before(u64::MAX, 2).await.unwrap();
    assert_eq!(latest, [rows[5].clone(), rows[4].clone()]);
    store.close().await;
}
