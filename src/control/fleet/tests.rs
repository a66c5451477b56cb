//! Tests of the fleet: who counts as applied, pending or never connected, and when a receipt is complete.

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::wire::{Epoch, Revision};

const STALE: Duration = Duration::from_secs(300);

struct Setup {
    clock: Arc<ManualClock>,
    fleet: Arc<Fleet>,
    epoch: Epoch,
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://a/{name}")).unwrap()
}

fn setup(registry_file: Option<PathBuf>) -> Setup {
    let clock = Arc::new(ManualClock::new(Timestamp::from_secs(1_000_000)));
    let points = ["one", "two"].map(|n| PointConfig { identity: id(n), services: vec!["s".into()] }).to_vec();
    let config = FleetConfig { points, max_staleness: STALE, registry_file, max_instances: 3 };
    let epoch = Epoch::starting(clock.now().wall);
    Setup { fleet: Fleet::open(clock.clone(), config).unwrap(), clock, epoch }
}

impl Setup {
    fn at(&self, revision: u64) -> Position {
        Position { epoch: self.epoch, revision: Revision(revision) }
    }

    async fn receipt(&self, revision: u64) -> Receipt {
        self.fleet.receipt(self.at(revision), self.clock.now().wall, Duration::ZERO).await
    }
}

#[tokio::test]
async fn applied_only_when_every_live_instance_acknowledged() {
    let s = setup(None);
    let a = s.fleet.connected(&id("one"), "a", "1").unwrap();
    let b = s.fleet.connected(&id("one"), "b", "1").unwrap();
    a.acked(s.at(7));
    b.acked(s.at(6));
    let r = s.receipt(7).await;
    assert!(!r.complete && r.applied.is_empty(), "one instance is behind, so the enforcement point is: {r:?}");
    assert_eq!(r.pending.len(), 2);
    assert_eq!(r.never_connected, ["spiffe://a/two"]);
    b.acked(s.at(9));
    let r = s.receipt(7).await;
    assert!(r.complete);
    assert_eq!(r.applied.len(), 2);
    assert_eq!(s.fleet.list(s.at(9)).iter().filter(|p| p.behind == Some(0)).count(), 1);
}

#[tokio::test]
async fn a_lost_instance_is_pending_until_it_can_only_deny() {
    let s = setup(None);
    let a = s.fleet.connected(&id("one"), "a", "1").unwrap();
    a.acked(s.at(1));
    drop(a);
    s.clock.advance(Duration::from_secs(100));
    let r = s.receipt(2).await;
    assert_eq!(r.pending.len(), 1, "{r:?}");
    assert_eq!(r.deny_after, s.clock.now().wall.saturating_add(STALE + MAX_CLOCK_SKEW));
    s.clock.advance(Duration::from_secs(206));
    let r = s.receipt(2).await;
    assert!(r.complete && r.applied.is_empty(), "it denies by itself now, and has applied nothing: {r:?}");
}

#[tokio::test]
async fn a_reconnected_instance_has_to_acknowledge_anew() {
    let s = setup(None);
    let old = s.fleet.connected(&id("one"), "a", "1").unwrap();
    old.acked(s.at(5));
    let new = s.fleet.connected(&id("one"), "a", "1").unwrap();
    assert!(!s.receipt(5).await.complete, "it may have restarted from an older state");
    old.acked(s.at(6));
    assert!(!s.receipt(5).await.complete, "the old stream has no say");
    drop(old);
    assert_eq!(s.fleet.streams(), 1, "and its end is not the end of the new one");
    new.acked(s.at(5));
    assert!(s.receipt(5).await.complete);
}

#[tokio::test]
async fn waiting_ends_with_the_acknowledgement() {
    let s = setup(None);
    let a = s.fleet.connected(&id("one"), "a", "1").unwrap();
    let fleet = Arc::clone(&s.fleet);
    let (position, at) = (s.at(3), s.clock.now().wall);
    let waiting = tokio::spawn(async move { fleet.receipt(position, at, Duration::from_secs(60)).await });
    tokio::task::yield_now().await;
    s.clock.advance(Duration::from_millis(40));
    a.acked(s.at(3));
    let r = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert!(r.complete);
    assert_eq!(r.applied[0].elapsed_ms, 40);
}

#[tokio::test]
async fn a_restarted_control_plane_knows_whose_word_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("instances");
    let s = setup(Some(file.clone()));
    let _a = s.fleet.connected(&id("one"), "a", "1").unwrap();
    std::fs::OpenOptions::new().append(true).open(&file).unwrap();
    let again = setup(Some(file.clone()));
    let r = again.receipt(1).await;
    assert_eq!((r.pending.len(), &*r.pending[0].instance), (1, "a"));
    again.clock.advance(STALE + MAX_CLOCK_SKEW + REMEMBERED + Duration::from_secs(60));
    assert!(again.receipt(1).await.complete);
    assert_eq!(again.fleet.list(again.at(1)).iter().filter(|p| !p.instance.is_empty()).count(), 0, "forgotten");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "", "on disk too");
}

#[tokio::test]
async fn instances_of_an_identity_are_capped() {
    let s = setup(None);
    let _held: Vec<_> = ["a", "b", "c"].iter().map(|i| s.fleet.connected(&id("one"), i, "1").unwrap()).collect();
    assert_eq!(s.fleet.connected(&id("one"), "d", "1").unwrap_err(), TooManyInstances(3));
    s.fleet.connected(&id("one"), "a", "1").unwrap();
    s.fleet.connected(&id("two"), "d", "1").unwrap();
}
