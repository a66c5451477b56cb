//! A control plane in miniature: index, fleet and the real sync server on a socket, and sidecars that follow it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::frames::identity;
use crate::authz::Change;
use crate::clock::{Clock, ManualClock};
use crate::control::fleet::{Fleet, FleetConfig, PointConfig};
use crate::control::index::{Commit, Index, Stored};
use crate::control::sync_server::{SyncServerConfig, SyncServerDeps, serve};
use crate::object::Object;
use crate::state::State;
use crate::sync::{BackoffConfig, ControlPlane, SyncClient, SyncClientConfig, SyncStats, SystemDial};
use crate::testing::Estate;
use crate::wire::{Epoch, Position, Revision, SigningKey};

/// The audience of sidecars' tokens.
pub(super) const AUDIENCE: &str = "portcullis-control";

/// The control plane.
pub(super) struct Plane {
    pub(super) estate: Estate,
    pub(super) index: Arc<Index>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) key: Arc<SigningKey>,
    pub(super) config: SyncServerConfig,
    pub(super) address: SocketAddr,
    pub(super) tokens: tempfile::TempDir,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

/// A sidecar's sync client.
pub(super) struct Sidecar {
    pub(super) state: Arc<State>,
    pub(super) stats: Arc<SyncStats>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Plane {
    /// A running control plane with the objects of [`Estate`], which keeps `ring` commits.
    pub(super) async fn start(ring: usize) -> Self {
        let mut plane = Self::stopped(ring, &["catalog", "payments"]);
        plane.run().await;
        plane
    }

    /// One that does not serve yet. Its enforcement point protects `services`.
    pub(super) fn stopped(ring: usize, services: &[&str]) -> Self {
        let estate = Estate::new();
        let epoch = Epoch::starting(estate.clock.now().wall);
        let index = Arc::new(Index::new(epoch, Revision(0), [], ring));
        let services = services.iter().map(|s| (*s).to_owned()).collect();
        let points = vec![PointConfig { identity: identity(), services }];
        let fleet =
            FleetConfig { points, max_staleness: Duration::from_secs(300), registry_file: None, max_instances: 100 };
        let config = SyncServerConfig {
            audience: AUDIENCE.to_owned(),
            trusted_issuers: vec!["test".to_owned()],
            bookmark_interval: Duration::from_millis(50),
            retry_after: Duration::from_millis(20),
            ..SyncServerConfig::default()
        };
        let plane = Self {
            fleet: Fleet::open(estate.clock.clone(), fleet).unwrap(),
            index,
            key: Arc::new(SigningKey::generate().unwrap().0),
            config,
            address: "127.0.0.1:0".parse().unwrap(),
            tokens: tempfile::tempdir().unwrap(),
            estate,
            running: None,
        };
        let all = plane.estate.changes();
        plane.commit(all);
        plane.write_token(json!({}));
        plane
    }

    /// Serves, on the address of before if there was one.
    pub(super) async fn run(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let deps = SyncServerDeps {
            index: Arc::clone(&self.index),
            fleet: Arc::clone(&self.fleet),
            key: Arc::clone(&self.key),
            clock: self.estate.clock.clone(),
            metrics: Arc::new(crate::telemetry::ControlMetrics::new().unwrap()),
            keys: None,
            uses: None,
        };
        let stop = CancellationToken::new();
        let (config, stopped) = (self.config.clone(), stop.clone());
        let task = tokio::spawn(async move { serve(listener, deps, config, stopped).await.unwrap() });
        self.running = Some((stop, task));
    }

    /// Goes away.
    pub(super) async fn stop(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            stop.cancel();
            task.await.unwrap();
        }
    }

    /// Commits changes as one revision.
    pub(super) fn commit(&self, changes: Vec<Change>) -> Position {
        let revision = self.index.position().revision.next();
        let changes = changes.into_iter().map(|c| Arc::new(stored(c, revision))).collect();
        let at = self.estate.clock.now().wall;
        self.index.apply(Arc::new(Commit { revision, at, author: Arc::from("test"), changes })).unwrap();
        self.index.position()
    }

    /// Writes the sidecar's token file; `change` replaces claims.
    pub(super) fn write_token(&self, change: serde_json::Value) {
        let now = self.estate.clock.now().wall.as_secs();
        let mut claims =
            json!({"sub": identity(), "aud": [AUDIENCE], "iat": now, "exp": now + 3000, "jti": "sidecar-1"});
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        std::fs::write(self.tokens.path().join("token"), self.estate.signer.sign(&claims).unwrap()).unwrap();
    }

    pub(super) fn client_config(&self, directory: Option<&Path>) -> SyncClientConfig {
        SyncClientConfig {
            control_plane: ControlPlane {
                url: format!("http://{}", self.address).parse().unwrap(),
                insecure_loopback: true,
                ca_file: None,
                identity_files: None,
                token_file: Some(self.tokens.path().join("token")),
                connect_timeout: Duration::from_secs(5),
                dial: Arc::new(SystemDial),
            },
            verify_key: self.key.verify_key(),
            identity: identity(),
            services: vec!["payments".to_owned(), "catalog".to_owned()],
            directory: directory.map(Path::to_owned),
            max_staleness: None,
            backoff: BackoffConfig { base: Duration::from_millis(5), max: Duration::from_millis(50), seed: None },
            idle_timeout: Duration::from_secs(10),
        }
    }

    pub(super) fn sidecar(&self, directory: Option<&Path>) -> Sidecar {
        Sidecar::start(self.client_config(directory), self.estate.clock.clone())
    }
}

impl Sidecar {
    pub(super) fn start(config: SyncClientConfig, clock: Arc<ManualClock>) -> Self {
        let state = Arc::new(State::new());
        let client = SyncClient::open(config, Arc::clone(&state), clock).unwrap();
        let stats = client.stats();
        let stop = CancellationToken::new();
        let task = tokio::spawn(client.run(stop.clone()));
        Self { state, stats, stop, task }
    }

    pub(super) fn position(&self) -> Option<Position> {
        self.state.load().snapshot.as_ref().map(|s| s.position())
    }

    pub(super) fn digest(&self) -> String {
        self.state.load().snapshot.as_ref().unwrap().digest()
    }

    /// Waits until it is at `position`.
    pub(super) async fn reaches(&self, position: Position) {
        eventually("the sidecar gets there", || self.position() == Some(position)).await;
    }

    pub(super) async fn stop(self) -> Arc<State> {
        self.stop.cancel();
        self.task.await.unwrap();
        self.state
    }
}

/// Waits for `condition`, for ten seconds at most.
pub(super) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("waited in vain: {what}");
}

fn stored(change: Change, revision: Revision) -> Stored {
    let object = change.body.as_ref().map(|b| Object::parse(change.kind, b).unwrap());
    let body = change.body.unwrap_or_default();
    Stored::new(change.kind, Arc::from(change.key), revision, body, object)
}
