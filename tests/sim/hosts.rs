//! The simulated hosts: a control plane whose log outlives it, and enforcement points whose disks outlive them.
//!
//! They run the real sync server and the real sync client, over TLS. Only the sockets and the clocks are simulated.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use portcullis::cache::{CacheSizes, Gate};
use portcullis::clock::{ManualClock, Timestamp};
use portcullis::control::fleet::{Fleet, FleetConfig, PointConfig, Receipt};
use portcullis::control::index::Index;
use portcullis::control::sync_server::{self, SyncServerConfig, SyncServerDeps};
use portcullis::credential::SpiffeId;
use portcullis::state::State;
use portcullis::sync::{BackoffConfig, ControlPlane, Dial, Dialled, SyncClient, SyncClientConfig};
use portcullis::telemetry::ControlMetrics;
use portcullis::testing::Estate;
use portcullis::tls::{self, Listen, ServerFiles};
use portcullis::wire::{Position, SigningKey, VerifyKey};
use rcgen::SanType;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::certificates::Authority;

pub(crate) const CONTROL: &str = "control";
pub(crate) const LEASE: Duration = Duration::from_secs(3);
pub(crate) const MAX_STALENESS: Duration = Duration::from_secs(20);
const SERVICES: [&str; 2] = ["catalog", "payments"];
const AUDIENCE: &str = "portcullis-control";
const PORT: u16 = 9181;

/// The control plane: what survives a crash of it, and what its software was asked to do.
pub(crate) struct Control {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) index: Arc<Index>,
    pub(crate) key: Arc<SigningKey>,
    pub(crate) points: Vec<PointConfig>,
    /// Revisions that somebody wants a receipt of.
    pub(crate) asked: Mutex<Vec<(Position, Timestamp)>>,
    /// Receipts, in the order in which they were given.
    pub(crate) given: Mutex<Vec<(Position, Receipt)>>,
    pub(crate) files: tempfile::TempDir,
    pub(crate) ca: Authority,
    pub(crate) tls: Arc<rustls::ServerConfig>,
}

/// An enforcement point: what survives a crash of it, and its state while it runs.
pub(crate) struct Edge {
    pub(crate) name: String,
    pub(crate) clock: Arc<ManualClock>,
    /// What checks are answered from; empty while it is down.
    pub(crate) gate: Mutex<Option<Gate>>,
    pub(crate) files: tempfile::TempDir,
    ca_file: PathBuf,
    verify_key: VerifyKey,
    seed: u64,
}

struct Listener(turmoil::net::TcpListener);

#[derive(Debug)]
struct Network;

/// The identity of an enforcement point.
pub(crate) fn identity(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://test.example/{name}")).unwrap()
}

// === impl Control ===

impl Control {
    pub(crate) fn new(clock: Arc<ManualClock>, index: Arc<Index>, edges: &[&str]) -> Self {
        let (files, ca) = (tempfile::tempdir().unwrap(), Authority::new());
        let services: Vec<String> = SERVICES.iter().map(|s| (*s).to_owned()).collect();
        let point = |name: &&str| PointConfig { identity: identity(name), services: services.clone() };
        Self {
            clock,
            index,
            key: Arc::new(SigningKey::generate().unwrap().0),
            points: edges.iter().map(point).collect(),
            asked: Mutex::default(),
            given: Mutex::default(),
            tls: server_tls(&ca),
            ca,
            files,
        }
    }

    /// Its software, from start to crash.
    pub(crate) async fn serve(self: Arc<Self>) -> turmoil::Result {
        let listener = turmoil::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
        let fleet = FleetConfig {
            points: self.points.clone(),
            max_staleness: MAX_STALENESS,
            registry_file: Some(self.files.path().join("enforcement-points")),
            max_instances: 10,
        };
        let fleet = Fleet::open(self.clock.clone(), fleet)?;
        tokio::spawn(Arc::clone(&self).give_receipts(Arc::clone(&fleet)));
        let config = SyncServerConfig {
            tls: Some(Arc::clone(&self.tls)),
            audience: AUDIENCE.to_owned(),
            trusted_issuers: vec!["test".to_owned()],
            lease: LEASE,
            bookmark_interval: Duration::from_millis(500),
            retry_after: Duration::from_millis(100),
            ..SyncServerConfig::default()
        };
        let deps = SyncServerDeps {
            index: Arc::clone(&self.index),
            fleet,
            key: Arc::clone(&self.key),
            clock: self.clock.clone(),
            metrics: Arc::new(ControlMetrics::new()?),
            keys: None,
            uses: None,
        };
        sync_server::serve(Listener(listener), deps, config, CancellationToken::new()).await?;
        Ok(())
    }

    /// What `revoke --wait` does, for all who ask.
    async fn give_receipts(self: Arc<Self>, fleet: Arc<Fleet>) {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let asked = std::mem::take(&mut *self.asked.lock().unwrap());
            for (position, committed_at) in asked {
                let (control, fleet) = (Arc::clone(&self), Arc::clone(&fleet));
                tokio::spawn(async move {
                    let receipt = fleet.receipt(position, committed_at, Duration::from_secs(5)).await;
                    control.given.lock().unwrap().push((position, receipt));
                });
            }
        }
    }
}

/// With a certificate for [`CONTROL`].
fn server_tls(ca: &Authority) -> Arc<rustls::ServerConfig> {
    let (cert_file, key_file) = ca.issue("server", vec![SanType::DnsName(CONTROL.try_into().unwrap())]);
    tls::server_config(&ServerFiles { cert_file, key_file, client_ca_file: None }, tls::TLS13, &[tls::ALPN_H2]).unwrap()
}

// === impl Edge ===

impl Edge {
    pub(crate) fn new(name: &str, estate: &Estate, control: &Control, now: Timestamp, seed: u64) -> Self {
        let files = tempfile::tempdir().unwrap();
        let secs = now.as_secs();
        let claims = json!({"sub": identity(name), "aud": [AUDIENCE], "iat": secs, "exp": secs + 3000, "jti": name});
        std::fs::write(files.path().join("token"), estate.signer.sign(&claims).unwrap()).unwrap();
        Self {
            name: name.to_owned(),
            clock: Arc::new(ManualClock::new(now)),
            gate: Mutex::default(),
            ca_file: control.ca.file(),
            verify_key: control.key.verify_key(),
            files,
            seed,
        }
    }

    /// Its software, from start to crash.
    pub(crate) async fn follow(self: Arc<Self>) -> turmoil::Result {
        let config = SyncClientConfig {
            control_plane: ControlPlane {
                url: format!("https://{CONTROL}:{PORT}").parse()?,
                insecure_loopback: false,
                ca_file: Some(self.ca_file.clone()),
                identity_files: None,
                token_file: Some(self.files.path().join("token")),
                connect_timeout: Duration::from_secs(2),
                dial: Arc::new(Network),
            },
            verify_key: self.verify_key.clone(),
            identity: identity(&self.name),
            services: SERVICES.iter().map(|s| (*s).to_owned()).collect(),
            directory: Some(self.files.path().join("state")),
            max_staleness: None,
            backoff: BackoffConfig {
                base: Duration::from_millis(100),
                max: Duration::from_secs(2),
                seed: Some(self.seed),
            },
            idle_timeout: Duration::from_secs(4),
        };
        let state = Arc::new(State::new());
        let client = SyncClient::open(config, Arc::clone(&state), self.clock.clone())?;
        let gate = Gate::new(state, self.clock.clone(), CacheSizes { tokens: 100, decisions: 100 });
        *self.gate.lock().unwrap() = Some(gate);
        client.run(CancellationToken::new()).await;
        Ok(())
    }
}

// === impl Network ===

impl Dial for Network {
    fn dial(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Dialled>> {
        let host = host.to_owned();
        Box::pin(async move {
            let tcp = turmoil::net::TcpStream::connect((host, port)).await?;
            let peer: IpAddr = tcp.peer_addr()?.ip();
            Ok(Dialled { io: Box::new(tcp), peer })
        })
    }
}

// === impl Listener ===

impl Listen for Listener {
    type Stream = turmoil::net::TcpStream;

    async fn accept(&mut self) -> io::Result<(Self::Stream, SocketAddr)> {
        self.0.accept().await
    }

    fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
