//! What the client makes of frames that are forged, foreign, out of order, old or unusable.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::fake::Fake;
use super::frames::{Frames, identity};
use super::plane::{Sidecar, eventually};
use crate::authz::Change;
use crate::clock::{Clock, Timestamp};
use crate::object::Kind;
use crate::sync::{BackoffConfig, ControlPlane, SyncClientConfig, SystemDial};
use crate::testing::Estate;
use crate::wire::proto::{self, ServerFrame, payload::Body};
use crate::wire::{Epoch, Position, Revision, ScopeId};

struct Setup {
    frames: Frames,
    estate: Estate,
    fake: Fake,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

impl Setup {
    async fn new() -> Self {
        let (fake, address) = Fake::start(vec![]).await;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "t").unwrap();
        Self { frames: Frames::new(), estate: Estate::new(), fake, address, dir }
    }

    fn sidecar(&self) -> Sidecar {
        let config = SyncClientConfig {
            control_plane: ControlPlane {
                url: format!("http://{}", self.address).parse().unwrap(),
                insecure_loopback: true,
                ca_file: None,
                identity_files: None,
                token_file: Some(self.dir.path().join("token")),
                connect_timeout: Duration::from_secs(5),
                dial: Arc::new(SystemDial),
            },
            verify_key: self.frames.key.verify_key(),
            identity: identity(),
            services: vec!["catalog".to_owned(), "payments".to_owned()],
            directory: Some(self.dir.path().join("state")),
            max_staleness: None,
            backoff: BackoffConfig { base: Duration::from_millis(1), max: Duration::from_millis(10), seed: None },
            idle_timeout: Duration::from_secs(10),
        };
        Sidecar::start(config, self.estate.clock.clone())
    }

    fn at(&self, revision: u64) -> Position {
        Position { epoch: self.frames.epoch, revision: Revision(revision) }
    }

    fn snapshot(&self, revision: u64) -> Vec<ServerFrame> {
        let mut frames = self.frames.snapshot(revision, &self.estate.changes());
        frames.push(self.frames.bookmark(revision, self.estate.clock.now().wall));
        frames
    }

    /// Plays `script` to a sidecar at revision 7 and checks that it gives the stream up and stays where it was.
    async fn refused(&self, sidecar: &Sidecar, script: Vec<ServerFrame>) {
        let (failures, digest) = (sidecar.stats.read().failures, sidecar.digest());
        let position = sidecar.position();
        self.fake.add(script);
        let hellos = self.fake.hellos().len();
        eventually("the script is played and refused", || {
            sidecar.stats.read().failures > failures && self.fake.hellos().len() > hellos
        })
        .await;
        assert_eq!(sidecar.position(), position);
        assert_eq!(sidecar.digest(), digest);
    }
}

/// A sidecar that follows a first stream to revision 7, which then ends by a gap.
async fn at_seven(s: &Setup) -> Sidecar {
    let mut script = s.snapshot(7);
    script.push(s.frames.delta(8, 9, &[]));
    s.fake.add(script);
    let sidecar = s.sidecar();
    eventually("the first stream ended", || sidecar.stats.read().failures >= 1 && sidecar.position() == Some(s.at(7)))
        .await;
    sidecar
}

#[tokio::test]
async fn forged_and_foreign_frames_end_the_stream_and_change_nothing() {
    let mut s = Setup::new().await;
    let sidecar = at_seven(&s).await;
    let change = s.estate.delete(Kind::Service, "catalog");
    let good = s.frames.delta(7, 8, std::slice::from_ref(&change));
    let other = Frames::new();
    let stolen = ServerFrame { payload: good.payload.clone(), signature: other.key.sign(&good.payload).into() };
    s.refused(&sidecar, vec![stolen]).await;
    let mut payload = good.payload.to_vec();
    let last = payload.len() - 1;
    payload[last] ^= 1;
    s.refused(&sidecar, vec![ServerFrame { payload: payload.into(), signature: good.signature.clone() }]).await;
    s.refused(&sidecar, vec![ServerFrame::default()]).await;
    let own = std::mem::replace(&mut s.frames.scope, ScopeId::new(&identity(), ["catalog"]));
    let foreign = s.frames.delta(7, 8, std::slice::from_ref(&change));
    s.frames.scope = own;
    s.refused(&sidecar, vec![foreign]).await;
    s.fake.add(vec![good]);
    sidecar.reaches(s.at(8)).await;
}

#[tokio::test]
async fn invariant_06_applied_revision_never_falls() {
    let mut s = Setup::new().await;
    let sidecar = at_seven(&s).await;
    s.refused(&sidecar, s.snapshot(6)).await;
    s.refused(&sidecar, vec![s.frames.delta(5, 6, &[])]).await;
    s.refused(&sidecar, vec![s.frames.delta(7, 7, &[])]).await;
    let epoch = s.frames.epoch;
    s.frames.epoch = Epoch::starting(Timestamp::from_secs(1_600_000_000));
    s.refused(&sidecar, s.snapshot(900)).await;
    s.refused(&sidecar, vec![s.frames.delta(7, 8, &[])]).await;
    // Not after a restart either, also when the state itself is gone: the mark remembers.
    s.frames.epoch = epoch;
    sidecar.stop().await;
    for file in std::fs::read_dir(s.dir.path().join("state")).unwrap().map(|e| e.unwrap().path()) {
        if !file.ends_with("high-water-mark") {
            std::fs::remove_file(file).unwrap();
        }
    }
    s.fake.add(s.snapshot(6));
    let again = s.sidecar();
    eventually("the older snapshot is refused", || again.stats.read().failures >= 1).await;
    assert_eq!(again.position(), None);
    s.fake.add(s.snapshot(7));
    again.reaches(s.at(7)).await;
    // A later epoch is later, whatever its revision.
    s.frames.epoch = Epoch::starting(Timestamp::from_secs(1_900_000_000));
    again.stop().await;
    s.fake.add(s.snapshot(1));
    let again = s.sidecar();
    again.reaches(s.at(1)).await;
}

#[tokio::test]
async fn gaps_and_broken_snapshots_are_not_applied() {
    let s = Setup::new().await;
    let sidecar = at_seven(&s).await;
    let now = s.estate.clock.now().wall;
    s.refused(&sidecar, vec![s.frames.delta(8, 9, &[])]).await;
    s.refused(&sidecar, vec![s.frames.bookmark(8, now)]).await;
    let whole = s.frames.snapshot(9, &s.estate.changes());
    let without =
        |i: usize| whole.iter().enumerate().filter(|(n, _)| *n != i).map(|(_, f)| f.clone()).collect::<Vec<_>>();
    for missing in [0, 1, 3, whole.len() - 2] {
        s.refused(&sidecar, without(missing)).await;
    }
    let mut twice = whole.clone();
    twice.insert(2, whole[1].clone());
    s.refused(&sidecar, twice).await;
    let mut mixed = whole.clone();
    mixed.insert(3, s.frames.delta(7, 8, &[]));
    s.refused(&sidecar, mixed).await;
    // After the mess the cursor is still that of the state in force.
    assert_eq!(s.fake.hellos().last().unwrap().cursor.as_ref().unwrap().revision, 7);
    s.fake.add(whole);
    sidecar.reaches(s.at(9)).await;
}

#[tokio::test]
async fn an_unusable_object_is_reported_and_blocks_nothing() {
    let s = Setup::new().await;
    let bad = |kind, key: &str| Change { kind, key: key.to_owned(), body: Some("{}".into()) };
    let unknown = proto::Object { kind: 99, key: "new".to_owned(), revision: 8, body: "{}".into(), deleted: false };
    let mut script = s.snapshot(7);
    script.push(s.frames.delta(7, 8, &[bad(Kind::Workload, "spiffe://test.example/x"), bad(Kind::Grant, "g")]));
    script.push(s.frames.seal(Body::Delta(proto::Delta { from: 8, to: 9, objects: vec![unknown] })));
    script.push(s.frames.bookmark(9, s.estate.clock.now().wall));
    s.fake.add(script);
    let sidecar = s.sidecar();
    sidecar.reaches(s.at(9)).await;
    eventually("all is acknowledged", || s.fake.acks().last() == Some(&9)).await;
    let nacks = s.fake.nacks();
    assert_eq!(nacks.len(), 3, "{nacks:?}");
    assert!(nacks[0].starts_with("workload/spiffe://test.example/x: "), "{nacks:?}");
    assert!(nacks[2].starts_with("99/new: "), "{nacks:?}");
    assert_eq!(sidecar.stats.read().unusable, 3);
}

#[tokio::test]
async fn nothing_is_acknowledged_that_is_not_confirmed_by_the_stream() {
    let s = Setup::new().await;
    let sidecar = at_seven(&s).await;
    // A stream that says nothing about the state in force.
    s.fake.add(vec![]);
    let hellos = s.fake.hellos().len();
    eventually("the stream is open", || s.fake.hellos().len() > hellos).await;
    sidecar.stop().await;
    assert_eq!(s.fake.acks_on(2), Vec::<u64>::new());
}

#[tokio::test]
async fn an_issuer_with_a_missing_key_is_reported_once_in_a_while() {
    let s = Setup::new().await;
    let sidecar = at_seven(&s).await;
    s.fake.add(vec![]);
    let note = |issuer: &str| sidecar.state.missing_keys().note(&std::sync::Arc::from(issuer));
    note("test");
    note("test");
    eventually("it is reported", || s.fake.missing() == ["test"]).await;
    // Again within ten seconds: only the other one is news, and it comes after.
    note("test");
    note("other");
    eventually("the other is reported", || s.fake.missing().len() > 1).await;
    assert_eq!(s.fake.missing(), ["test", "other"]);
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_the_stream_a_snapshot_counts_whole_or_not_at_all() {
    let s = Setup::new().await;
    let sidecar = at_seven(&s).await;
    let whole = s.snapshot(8);
    let without = |n: usize| {
        let mut script = whole.clone();
        script.remove(n);
        script
    };
    s.refused(&sidecar, without(3)).await;
    s.refused(&sidecar, without(whole.len() - 3)).await;
    let mut broken_off = whole[..5].to_vec();
    broken_off.push(s.frames.delta(7, 8, &[]));
    s.refused(&sidecar, broken_off).await;
    s.fake.add(whole);
    sidecar.reaches(s.at(8)).await;
    eventually("it is acknowledged", || s.fake.acks().contains(&8)).await;
    let digest = sidecar.digest();
    sidecar.stop().await;
    let left: Vec<_> = std::fs::read_dir(s.dir.path().join("state")).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{left:?}");
    let again = s.sidecar();
    assert_eq!((again.position(), again.digest()), (Some(s.at(8)), digest), "from disk");
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_starts_over_leaves_nothing_of_the_first_on_disk() {
    let s = Setup::new().await;
    let sidecar = at_seven(&s).await;
    let mut script = s.snapshot(8)[..5].to_vec();
    script.extend(s.snapshot(9));
    s.fake.add(script);
    sidecar.reaches(s.at(9)).await;
    eventually("it is acknowledged", || s.fake.acks().contains(&9)).await;
    let digest = sidecar.digest();
    sidecar.stop().await;
    let again = s.sidecar();
    assert_eq!((again.position(), again.digest()), (Some(s.at(9)), digest), "from disk");
    again.stop().await;
}
