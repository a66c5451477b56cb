//! The simulated fleet against the real sync server: it is current only when it is, and it sees what is wrong.

use std::net::SocketAddr;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::{Clock, Timestamp};
use crate::control::fleet::{Fleet as Points, FleetConfig, PointConfig};
use crate::control::index::{Commit, Index, Stored};
use crate::control::sync_server::{SyncServerConfig, SyncServerDeps, serve};
use crate::credential::SpiffeId;
use crate::object::{Kind, Object};
use crate::testing::Estate;
use crate::wire::{Epoch, Position, SigningKey};

const AUDIENCE: &str = "portcullis-control";
const POINTS: usize = 4;

struct Plane {
    estate: Estate,
    index: Arc<Index>,
    points: Arc<Points>,
    key: Arc<SigningKey>,
    address: SocketAddr,
    identities: Identities,
    _directory: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

impl Plane {
    async fn start(max_streams: usize) -> Self {
        let estate = Estate::new();
        let clock = Arc::clone(&estate.clock);
        let directory = tempfile::tempdir().unwrap();
        let name = |n: usize| SpiffeId::parse(&Estate::id(&format!("sidecar-{n}"))).unwrap();
        let services = |n: usize| vec![["catalog", "payments"][n % 2].to_owned()];
        let point = |n| PointConfig { identity: name(n), services: services(n) };
        let config = FleetConfig {
            points: (0..POINTS).map(point).collect(),
            max_staleness: Duration::from_secs(300),
            registry_file: None,
            max_instances: 1000,
        };
        let now = clock.now().wall.as_secs();
        let credential = |n: usize| {
            let file = format!("{n}.token");
            let claims =
                json!({"sub": name(n), "aud": [AUDIENCE], "iat": now, "exp": now + 3000, "jti": n.to_string()});
            std::fs::write(directory.path().join(&file), estate.signer.sign(&claims).unwrap()).unwrap();
            let (cert_file, key_file) = (None, None);
            Credential { identity: name(n), services: services(n), token_file: Some(file.into()), cert_file, key_file }
        };
        let credentials = (0..POINTS).map(credential).collect();
        let index = Arc::new(Index::new(Epoch::starting(clock.now().wall), Revision(0), [], 100));
        let points = Points::open(clock.clone(), config).unwrap();
        let key = Arc::new(SigningKey::generate().unwrap().0);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let deps = SyncServerDeps {
            index: Arc::clone(&index),
            fleet: Arc::clone(&points),
            key: Arc::clone(&key),
            clock,
            metrics: Arc::new(crate::telemetry::ControlMetrics::new().unwrap()),
            keys: None,
            uses: None,
        };
        let server = SyncServerConfig {
            audience: AUDIENCE.to_owned(),
            trusted_issuers: vec!["test".to_owned()],
            bookmark_interval: Duration::from_millis(50),
            max_streams,
            ..SyncServerConfig::default()
        };
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, deps, server, stop.clone()));
        let identities = Identities::new(directory.path(), credentials);
        let changes = estate.changes();
        let plane =
            Self { estate, index, points, key, address, identities, _directory: directory, _stop: stop.drop_guard() };
        plane.commit(changes);
        plane
    }

    fn options(&self, sidecars: usize) -> Options {
        Options {
            control: format!("http://{}", self.address).parse().unwrap(),
            ca_file: None,
            verify_key: self.key.verify_key(),
            sidecars,
            verify_every: 2,
            timeout: Duration::from_secs(10),
            backoff: BackoffConfig { base: Duration::from_millis(5), max: Duration::from_millis(50), seed: None },
        }
    }

    fn commit(&self, changes: Vec<crate::authz::Change>) -> (Position, Timestamp) {
        let revision = self.index.position().revision.next();
        let stored = |c: crate::authz::Change| {
            let object = c.body.as_ref().map(|b| Object::parse(c.kind, b).unwrap());
            let (key, body) = (Arc::from(c.key), c.body.unwrap_or_default());
            Arc::new(Stored::new(c.kind, key, revision, body, object))
        };
        let (at, author) = (self.estate.clock.now().wall, Arc::from("test"));
        let changes = changes.into_iter().map(stored).collect();
        self.index.apply(Arc::new(Commit { revision, at, author, changes })).unwrap();
        (self.index.position(), at)
    }

    /// Revokes a token and waits until every instance that is there has applied it.
    async fn revoke(&mut self, jti: &str) -> Position {
        let change = self.estate.revoke(&json!({"kind": "token", "issuer": "test", "jti": jti}));
        let (position, at) = self.commit(vec![change]);
        let receipt = self.points.receipt(position, at, Duration::from_secs(10)).await;
        assert!(receipt.complete, "{receipt:?}");
        position
    }
}

#[tokio::test]
async fn a_fleet_joins_follows_acknowledges_and_comes_back() {
    let mut plane = Plane::start(100).await;
    let fleet = Fleet::start(plane.options(24), &plane.identities).unwrap();
    fleet.all_current(Duration::from_secs(20)).await.expect("all are current");
    assert_eq!((fleet.len(), fleet.counts().snapshots), (24, 24));
    fleet.note();
    let position = plane.revoke("somebody").await;
    let steps = fleet.take_steps();
    let reached = steps.iter().filter(|s| s.from < position.revision && position.revision <= s.to).count();
    assert_eq!(reached, 24, "each of them once: {steps:?}");
    fleet.reconnect(false);
    while fleet.counts().attempts < 48 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    fleet.all_current(Duration::from_secs(20)).await.expect("all come back");
    assert_eq!(fleet.counts().snapshots, 24, "with what they had");
    fleet.reconnect(true);
    while fleet.counts().snapshots < 48 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    fleet.all_current(Duration::from_secs(20)).await.expect("all come back");
    let counts = fleet.counts();
    assert_eq!((counts.violations, counts.failures), (0, 0), "{counts:?}");
    assert!(counts.verified > 0 && counts.verified < counts.frames && counts.received > counts.sent);
}

#[tokio::test]
async fn a_frame_with_another_key_or_scope_is_a_violation() {
    let plane = Plane::start(100).await;
    let (other, _) = SigningKey::generate().unwrap();
    let options = Options { verify_key: other.verify_key(), verify_every: 1, ..plane.options(1) };
    let fleet = Fleet::start(options, &plane.identities).unwrap();
    let mut misled = plane.identities.clone();
    for credential in &mut misled.identities {
        credential.services.push("another".to_owned());
    }
    let out_of_scope = Fleet::start(plane.options(1), &misled).unwrap();
    for (fleet, why) in [(&fleet, "signature"), (&out_of_scope, "scope")] {
        while fleet.counts().violations == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(fleet.counts().current, 0);
        assert!(fleet.last_failure().unwrap().contains(why), "{:?}", fleet.last_failure());
    }
}

#[tokio::test]
async fn a_herd_at_the_door_delays_nobody_inside_and_is_told_when_to_come_back() {
    let mut plane = Plane::start(12).await;
    let fleet = Fleet::start(plane.options(12), &plane.identities).unwrap();
    fleet.all_current(Duration::from_secs(20)).await.expect("all are current");
    let herd = Fleet::start(plane.options(100), &plane.identities).unwrap();
    while herd.counts().turned_away < 100 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    fleet.note();
    let position = plane.revoke("somebody").await;
    let steps = fleet.take_steps();
    assert_eq!(steps.iter().filter(|s| s.to >= position.revision).count(), 12);
    assert_eq!(herd.counts().attempts, 100, "those without a place wait as they were told, backoff or not");
    assert_eq!(fleet.counts().failures, 0);
    assert!(plane.index.get(Kind::Issuer, "test").is_some());
}

#[test]
fn a_manifest_is_read_back_and_half_a_certificate_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(MANIFEST);
    std::fs::write(&path, r#"{"identities": []}"#).unwrap();
    assert!(matches!(Identities::load(directory.path()), Err(IdentitiesError::Empty(_))));
    std::fs::write(&path, r#"{"identities": [{"identity": "spiffe://a/b", "services": ["s"], "token_file": "t"}]}"#)
        .unwrap();
    let found = Identities::load(directory.path()).unwrap();
    let members = found.take(3).unwrap();
    assert_eq!(members.len(), 3);
    assert_eq!(members[2].token_file.as_deref(), Some(&*directory.path().join("t")));
    std::fs::write(&path, r#"{"identities": [{"identity": "spiffe://a/b", "services": ["s"], "cert_file": "c"}]}"#)
        .unwrap();
    let half = Identities::load(directory.path()).unwrap().take(1).unwrap_err();
    assert!(half.to_string().contains("go together"), "{half}");
}
