//! Grants with a number of uses over the real control plane's store, the real sync server and real gates: many sidecars in
//! one process, each with a state directory of its own, killed and started again at any time.
//!
//! To kill one is to drop it: nothing is drained, nothing is said. What was allowed is counted where it is allowed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rand::RngExt;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::frames::identity;
use super::plane::{AUDIENCE, eventually};
use crate::authz::Reason;
use crate::cache::{CacheSizes, Gate};
use crate::clock::{SharedClock, SystemClock};
use crate::control::fleet::{Fleet, FleetConfig, PointConfig};
use crate::control::store::{Expect, SqliteStore, Unit, Write};
use crate::control::sync_server::{SyncServerConfig, SyncServerDeps, serve};
use crate::control::uses::Uses;
use crate::control::{Core, CoreConfig};
use crate::object::{Grant, GrantId, GrantState, Kind, Object};
use crate::state::State;
use crate::sync::{BackoffConfig, ControlPlane, SyncClient, SyncClientConfig, SystemDial};
use crate::testing::{Estate, request};
use crate::wire::SigningKey;

const LEASE: Duration = Duration::from_secs(1);
/// What the door waits.
const WAIT: Duration = Duration::from_millis(150);

/// A control plane over a store.
struct Plane {
    estate: Estate,
    clock: SharedClock,
    directory: TempDir,
    tokens: TempDir,
    key: Arc<SigningKey>,
    address: SocketAddr,
    running: Option<Running>,
}

struct Running {
    core: Arc<Core>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// A sidecar, in so far as it decides.
struct Sidecar {
    gate: Gate,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

// === impl Plane ===

impl Plane {
    /// With the estate and one grant of `uses` uses.
    async fn start(uses: u32) -> (Self, GrantId) {
        let clock: SharedClock = Arc::new(SystemClock::new());
        let mut estate = Estate::new_at(clock.now().wall);
        let asked = estate.ask("agent", "payments/refunds", &["write"], None, 3600);
        let (grant, _) = estate.grant_as(asked, |grant| grant.uses = Some(uses));
        let mut plane = Self {
            clock,
            directory: TempDir::new().unwrap(),
            tokens: TempDir::new().unwrap(),
            key: Arc::new(SigningKey::generate().unwrap().0),
            address: "127.0.0.1:0".parse().unwrap(),
            running: None,
            estate,
        };
        plane.run().await;
        let changes = plane.estate.changes().into_iter();
        let changes = changes.map(|c| Write { kind: c.kind, key: c.key, expect: Expect::Any, body: c.body }).collect();
        let unit = Unit { changes, ..Unit::new("test", "test", "r") };
        plane.core().commit(unit).await.unwrap();
        let now = plane.clock.now().wall.as_secs();
        let claims = json!({"sub": identity(), "aud": [AUDIENCE], "iat": now, "exp": now + 3000, "jti": "s"});
        std::fs::write(plane.tokens.path().join("token"), plane.estate.signer.sign(&claims).unwrap()).unwrap();
        (plane, grant.id)
    }

    /// Serves what the directory holds.
    async fn run(&mut self) {
        let store = Arc::new(SqliteStore::open(self.directory.path(), self.clock.now().wall).await.unwrap());
        let core = Core::open(store, Arc::clone(&self.clock), CoreConfig::default()).await.unwrap();
        let services = vec!["catalog".to_owned(), "payments".to_owned()];
        let points = vec![PointConfig { identity: identity(), services }];
        let fleet =
            FleetConfig { points, max_staleness: Duration::from_secs(300), registry_file: None, max_instances: 1000 };
        let metrics = Arc::new(crate::telemetry::ControlMetrics::new().unwrap());
        let uses = Uses::new(Arc::clone(&core), LEASE, Arc::clone(&metrics));
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let deps = SyncServerDeps {
            index: Arc::clone(core.index()),
            fleet: Fleet::open(Arc::clone(&self.clock), fleet).unwrap(),
            key: Arc::clone(&self.key),
            clock: Arc::clone(&self.clock),
            metrics,
            keys: None,
            uses: Some(Arc::clone(&uses)),
        };
        let config = SyncServerConfig {
            audience: AUDIENCE.to_owned(),
            trusted_issuers: vec!["test".to_owned()],
            bookmark_interval: Duration::from_millis(100),
            retry_after: Duration::from_millis(20),
            ..SyncServerConfig::default()
        };
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(uses.run()));
        let stopped = stop.clone();
        let task = tokio::spawn(async move { serve(listener, deps, config, stopped).await.unwrap() });
        self.running = Some(Running { core, stop, task });
    }

    async fn stop(&mut self) {
        if let Some(Running { core, stop, task }) = self.running.take() {
            stop.cancel();
            task.await.unwrap();
            core.close().await;
        }
    }

    fn core(&self) -> &Arc<Core> {
        &self.running.as_ref().unwrap().core
    }

    fn grant(&self, id: GrantId) -> Grant {
        match &self.core().index().get(Kind::Grant, &id.to_string()).unwrap().object {
            Some(Object::Grant(grant)) => Grant::clone(grant),
            other => panic!("{other:?}"),
        }
    }

    async fn sidecar(&self, directory: &TempDir) -> Sidecar {
        let config = SyncClientConfig {
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
            directory: Some(directory.path().to_owned()),
            max_staleness: None,
            backoff: BackoffConfig { base: Duration::from_millis(5), max: Duration::from_millis(50), seed: None },
            idle_timeout: Duration::from_secs(10),
        };
        // Work on the disk that a killed one has begun ends by itself, and with it the lock on its directory.
        let until = Instant::now() + Duration::from_secs(20);
        let (state, client) = loop {
            let state = Arc::new(State::new());
            match SyncClient::open(config.clone(), Arc::clone(&state), Arc::clone(&self.clock)) {
                Ok(client) => break (state, client),
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(client.run(stop.clone()));
        let gate = Gate::new(state, Arc::clone(&self.clock), CacheSizes { tokens: 10, decisions: 10 });
        Sidecar { gate, stop, task }
    }
}

// === impl Sidecar ===

impl Sidecar {
    /// Decides like the door: waits for a use that is on its way.
    async fn ask(&self, token: &str) -> Reason {
        let headers = [("authorization", format!("Bearer {token}"))];
        let refund =
            crate::authz::Request { door: crate::authz::Door::ExtAuthz, ..request("POST", "/refunds/7", &headers) };
        let deadline = tokio::time::Instant::now() + WAIT;
        let mut decision = self.gate.check(&refund);
        let (purse, clock) = (self.gate.state().purse(), self.gate.clock());
        while let Some(grant) = decision.awaits {
            let Some(place) = purse.queue(grant, clock.now().mono) else { break };
            let in_time = tokio::time::timeout_at(deadline, purse.called(place)).await.is_ok();
            decision = self.gate.check_again(&refund).unwrap();
            purse.leave(place, clock.now().mono);
            if !in_time {
                break;
            }
        }
        assert_eq!(decision.permit().is_some(), decision.reason.is_allow());
        decision.reason
    }

    async fn kill(self) {
        self.task.abort();
        let _aborted = self.task.await;
    }

    async fn drain(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Starts `count` clients of sidecars; each asks until the grant is over for it. Counts allows.
async fn race(plane: &Arc<Plane>, id: GrantId, count: usize, kills: bool, allowed: &Arc<AtomicU32>) {
    let token = plane.estate.token("agent");
    let until = Instant::now() + Duration::from_secs(60);
    let clients: Vec<_> = (0..count)
        .map(|_| {
            let (plane, allowed, token) = (Arc::clone(plane), Arc::clone(allowed), token.clone());
            tokio::spawn(async move {
                let directory = TempDir::new().unwrap();
                let mut sidecar = plane.sidecar(&directory).await;
                loop {
                    assert!(Instant::now() < until, "the grant is never exhausted: {:?}", plane.grant(id).state);
                    match sidecar.ask(&token).await {
                        Reason::AllowGrant => {
                            allowed.fetch_add(1, Ordering::SeqCst);
                        }
                        Reason::EntitlementGrantExhausted => break,
                        Reason::SystemNotReady | Reason::SystemUses => {}
                        other => panic!("{other}"),
                    }
                    let (dies, pause) = (rand::rng().random_ratio(1, 3), rand::rng().random_range(0..20));
                    if kills && dies {
                        sidecar.kill().await;
                        sidecar = plane.sidecar(&directory).await;
                    }
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                sidecar.drain().await;
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_sidecars_that_nobody_kills_allow_exactly_ten() {
    let (plane, id) = Plane::start(10).await;
    let (mut plane, allowed) = (Arc::new(plane), Arc::default());
    race(&plane, id, 50, false, &allowed).await;
    assert_eq!(allowed.load(Ordering::SeqCst), 10);
    assert_eq!(plane.grant(id).state, GrantState::Exhausted);
    Arc::get_mut(&mut plane).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_sidecars_killed_at_random_never_allow_more_than_ten() {
    let (plane, id) = Plane::start(10).await;
    let (mut plane, allowed) = (Arc::new(plane), Arc::default());
    race(&plane, id, 50, true, &allowed).await;
    let first = allowed.load(Ordering::SeqCst);
    assert!((1..=10).contains(&first), "{first} allowed");
    assert_eq!(plane.grant(id).state, GrantState::Exhausted);
    // Over a restart of the control plane, and with sidecars that know nothing.
    let plane_again = Arc::get_mut(&mut plane).unwrap();
    plane_again.stop().await;
    plane_again.run().await;
    race(&plane, id, 5, true, &allowed).await;
    assert_eq!(allowed.load(Ordering::SeqCst), first);
    Arc::get_mut(&mut plane).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_use_works_at_the_first_call_and_only_once() {
    let (mut plane, id) = Plane::start(1).await;
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (first, second) = (plane.sidecar(&one).await, plane.sidecar(&two).await);
    let token = plane.estate.token("agent");
    let ready = |s: &Sidecar| s.gate.state().load().lease.is_some();
    eventually("both are ready", || ready(&first) && ready(&second)).await;
    // What only looks spends nothing.
    let headers = [("authorization", format!("Bearer {token}"))];
    for _ in 0..3 {
        assert_eq!(first.gate.check(&request("POST", "/refunds/7", &headers)).reason, Reason::AllowGrant);
        assert_eq!(second.gate.explain(&request("POST", "/refunds/7", &headers)).0.reason, Reason::AllowGrant);
    }
    assert_eq!(first.ask(&token).await, Reason::AllowGrant);
    assert_eq!(first.ask(&token).await, Reason::EntitlementGrantExhausted);
    eventually("the control plane knows", || plane.grant(id).state == GrantState::Exhausted).await;
    assert_eq!(second.ask(&token).await, Reason::EntitlementGrantExhausted);
    first.drain().await;
    second.drain().await;
    plane.stop().await;
}

/// A sidecar that is cut off spends what it holds, within its lease, and nothing after; the rest waits for its word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_off_from_the_control_plane_it_answers_that_it_does_not_know() {
    let (mut plane, id) = Plane::start(3).await;
    let directory = TempDir::new().unwrap();
    let sidecar = plane.sidecar(&directory).await;
    let token = plane.estate.token("agent");
    eventually("it is ready", || sidecar.gate.state().load().lease.is_some()).await;
    assert_eq!(sidecar.ask(&token).await, Reason::AllowGrant);
    plane.stop().await;
    assert_eq!(sidecar.ask(&token).await, Reason::SystemUses);
    plane.run().await;
    let until = Instant::now() + Duration::from_secs(20);
    let mut allowed = 1;
    while allowed < 3 {
        assert!(Instant::now() < until);
        allowed += u32::from(sidecar.ask(&token).await.is_allow());
    }
    assert_eq!(sidecar.ask(&token).await, Reason::EntitlementGrantExhausted);
    eventually("it is exhausted", || plane.grant(id).state == GrantState::Exhausted).await;
    sidecar.drain().await;
    plane.stop().await;
}

/// What a sidecar holds when it is drained is there for others at once; what a killed one held never is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_sidecar_gives_back_and_a_killed_one_does_not() {
    for drains in [true, false] {
        let (mut plane, _) = Plane::start(1).await;
        let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (first, second) = (plane.sidecar(&one).await, plane.sidecar(&two).await);
        let token = plane.estate.token("agent");
        let ready = |s: &Sidecar| s.gate.state().load().lease.is_some();
        eventually("both are ready", || ready(&first) && ready(&second)).await;
        // A check that does not wait has the use fetched, and goes away.
        let headers = [("authorization", format!("Bearer {token}"))];
        let refund =
            crate::authz::Request { door: crate::authz::Door::ExtAuthz, ..request("POST", "/refunds/7", &headers) };
        assert_eq!(first.gate.check(&refund).reason, Reason::SystemUses);
        let purse = first.gate.state().purse();
        eventually("it holds the use", || purse.counts().given == 1).await;
        match drains {
            true => first.drain().await,
            false => first.kill().await,
        }
        let until = Instant::now() + Duration::from_secs(20);
        let reason = loop {
            assert!(Instant::now() < until);
            let reason = second.ask(&token).await;
            if reason != Reason::SystemUses {
                break reason;
            }
        };
        let expected = if drains { Reason::AllowGrant } else { Reason::EntitlementGrantExhausted };
        assert_eq!(reason, expected);
        second.drain().await;
        plane.stop().await;
    }
}
