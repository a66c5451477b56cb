//! The books over real SQLite: restarts, many at a time, scope, and the end of the grant.

use std::sync::Arc;

use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::clock::{ManualClock, SharedClock};
use crate::control::CoreConfig;
use crate::control::store::{SqliteStore, Unit};
use crate::object::GrantState;
use crate::testing::Estate;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn services(names: &[&str]) -> Arc<[Box<str>]> {
    names.iter().map(|name| Box::from(*name)).collect()
}

fn holder(n: usize) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://a/sidecar-{n}")).unwrap()
}

fn opening(account: u128) -> UseReport {
    UseReport { account: Uuid::from_u128(account), granted: 0, spent: 0, returned: 0, wanted: 1 }
}

fn metrics() -> Arc<ControlMetrics> {
    Arc::new(ControlMetrics::new().unwrap())
}

async fn open(directory: &TempDir, clock: &Arc<ManualClock>) -> Arc<Core> {
    let store = Arc::new(SqliteStore::open(directory.path(), NOW).await.unwrap());
    Core::open(store, Arc::clone(clock) as SharedClock, CoreConfig::default()).await.unwrap()
}

/// A core with a grant of `uses` uses on `payments/refunds`.
async fn site(uses: u32) -> (TempDir, Arc<ManualClock>, Arc<Core>, GrantId) {
    let directory = TempDir::new().unwrap();
    let mut estate = Estate::new_at(NOW);
    let asked = estate.ask("agent", "payments/refunds", &["write"], None, 3600);
    let (grant, _) = estate.grant_as(asked, |grant| grant.uses = Some(uses));
    let clock = Arc::clone(&estate.clock);
    let core = open(&directory, &clock).await;
    let write = Write::put(&Object::Grant(Box::new(grant.clone())), Expect::Absent);
    core.commit(Unit { changes: vec![write], ..Unit::new("test", "test", "r") }).await.unwrap();
    (directory, clock, core, grant.id)
}

fn state(core: &Core, id: GrantId) -> GrantState {
    Found::of(core.index(), id).grant().unwrap().state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_a_time_get_no_more_than_there_is() {
    let (_directory, _clock, core, id) = site(10).await;
    let uses = Uses::new(Arc::clone(&core), LEASE, metrics());
    let payments = services(&["payments"]);
    let asked: Vec<_> = (0..200)
        .map(|n| {
            let (uses, payments) = (Arc::clone(&uses), Arc::clone(&payments));
            tokio::spawn(async move { uses.report(&holder(n), payments, id, opening(n as u128)).await.unwrap() })
        })
        .collect();
    let mut given = 0;
    for answer in asked {
        match answer.await.unwrap() {
            UseAnswer::Given(n) => given += n,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(given, 10);
    assert!(core.index().position().revision.0 < 50, "they share commits");
    core.close().await;
}

#[tokio::test]
async fn a_book_outlives_its_control_plane_and_repetition_changes_nothing() {
    let (directory, clock, core, id) = site(2).await;
    let payments = services(&["payments"]);
    let uses = Uses::new(Arc::clone(&core), LEASE, metrics());
    for _ in 0..3 {
        let answer = uses.report(&holder(1), Arc::clone(&payments), id, opening(1)).await;
        assert_eq!(answer, Some(UseAnswer::Given(1)), "the same request, repeated");
    }
    core.close().await;
    drop((uses, core));

    let core = open(&directory, &clock).await;
    let uses = Uses::new(Arc::clone(&core), LEASE, metrics());
    let ask = |n: u128, report: UseReport| {
        let (uses, payments) = (Arc::clone(&uses), Arc::clone(&payments));
        async move { uses.report(&holder(n as usize), payments, id, report).await.unwrap() }
    };
    assert_eq!(ask(1, opening(1)).await, UseAnswer::Given(1), "and again");
    assert_eq!(ask(2, opening(2)).await, UseAnswer::Given(1));
    assert_eq!(ask(3, opening(3)).await, UseAnswer::Given(0));
    // One spends, one gives back; what was given back goes to the third.
    assert_eq!(ask(1, UseReport { granted: 1, spent: 1, wanted: 0, ..opening(1) }).await, UseAnswer::Given(1));
    assert_eq!(ask(2, UseReport { granted: 1, returned: 1, wanted: 0, ..opening(2) }).await, UseAnswer::Given(1));
    assert_eq!(ask(3, opening(3)).await, UseAnswer::Given(1));
    assert_eq!(state(&core, id), GrantState::Active);
    assert_eq!(ask(3, UseReport { granted: 1, spent: 1, wanted: 0, ..opening(3) }).await, UseAnswer::Exhausted(1));
    assert_eq!(state(&core, id), GrantState::Exhausted);
    assert_eq!(ask(4, opening(4)).await, UseAnswer::Exhausted(0));
    core.close().await;
}

#[tokio::test]
async fn the_silent_are_closed_also_after_a_restart() {
    let (directory, clock, core, id) = site(1).await;
    let uses = Uses::new(Arc::clone(&core), LEASE, metrics());
    let payments = services(&["payments"]);
    assert_eq!(uses.report(&holder(1), Arc::clone(&payments), id, opening(1)).await, Some(UseAnswer::Given(1)));
    core.close().await;
    drop((uses, core));
    let core = open(&directory, &clock).await;
    // Away for longer than what was held is leased.
    clock.advance(100 * LEASE);
    let metrics = metrics();
    let uses = Uses::new(Arc::clone(&core), LEASE, Arc::clone(&metrics));
    uses.sweep().await;
    clock.advance(5 * LEASE);
    uses.sweep().await;
    assert_eq!(state(&core, id), GrantState::Active, "whoever has it may still come back");
    clock.advance(LEASE);
    uses.sweep().await;
    assert_eq!(state(&core, id), GrantState::Exhausted);
    let counted = metrics.exposition().render();
    assert!(counted.contains("portcullis_grant_uses_forfeited_total{reason=\"restart\"} 1"), "{counted}");
    assert!(counted.contains("portcullis_grant_uses_forfeited_total{reason=\"silent\"} 0"), "{counted}");
    // Whoever had it learns that it is closed, whatever it says.
    let back = UseReport { granted: 1, returned: 1, wanted: 0, ..opening(1) };
    assert_eq!(uses.report(&holder(1), payments, id, back).await, Some(UseAnswer::Closed));
    assert_eq!(Found::of(core.index(), id).book().unwrap().available(), 0);
    core.close().await;
}

#[tokio::test]
async fn uses_of_other_services_grants_are_nobodys_business() {
    let (_directory, _clock, core, id) = site(5).await;
    let uses = Uses::new(Arc::clone(&core), LEASE, metrics());
    let catalog = services(&["catalog"]);
    assert_eq!(uses.report(&holder(1), catalog, id, opening(1)).await, Some(UseAnswer::Closed));
    let nobody = GrantId(Uuid::from_u128(1));
    assert_eq!(uses.report(&holder(1), services(&["payments"]), nobody, opening(1)).await, Some(UseAnswer::Closed));
    assert!(Found::of(core.index(), id).book.is_none());
    core.close().await;
}
