//! The control plane of the scale bench: the real sync server over TLS, on an index of generated documents.
//!
//! A process of its own, at a lower priority, because it would be on another machine. It is told what to do by lines on its
//! standard input: `restart` serves the same objects in a new epoch, which makes every sidecar start over; `change N` makes
//! N commits of one grant each, 500 a second; `token` asks for the token of a client.

use std::io::{BufRead, BufReader, Lines, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use portcullis::clock::{Clock, SystemClock};
use portcullis::control::fleet::{Fleet, FleetConfig, PointConfig};
use portcullis::control::index::{Commit, Index, Stored};
use portcullis::control::sync_server::{SyncServerConfig, SyncServerDeps};
use portcullis::credential::SpiffeId;
use portcullis::grant;
use portcullis::object::{Grant, Kind, Object, VoteKind};
use portcullis::testing::Estate;
use portcullis::tls::{self, ServerFiles};
use portcullis::wire::{Epoch, Revision, SigningKey};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::sidecar::{Site, cpu_of};

pub(super) const IDENTITY: &str = "spiffe://test.example/sidecar";
pub(super) const SERVICES: [&str; 2] = ["catalog", "payments"];

/// Registered workloads, whatever the number of grants.
const WORKLOADS: u64 = 10_000;

/// How many grants, and of which kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) grants: u64,
    /// One grant a workload, each for an exact path of its own. Else the workloads share them, and a quarter is for an
    /// exact path, a quarter for a pattern.
    pub(super) worst: bool,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.worst {
            "one a workload, each for a path of its own"
        } else {
            "a quarter each for a path and a pattern"
        };
        write!(f, "{} grants, {kind}; {WORKLOADS} registered workloads", self.grants)
    }
}

/// The process, from outside.
pub(super) struct Plane {
    child: Child,
    say: ChildStdin,
    hear: Lines<BufReader<ChildStdout>>,
    pub(super) address: SocketAddr,
}

impl Plane {
    pub(super) fn start(site: &Site, shape: Shape) -> Self {
        let exe = std::env::current_exe().expect("our own path");
        let mut child = Command::new(exe)
            .arg("--plane")
            .arg(site.dir.path())
            .args(["--grants", &shape.grants.to_string(), "--shape", if shape.worst { "worst" } else { "mixed" }])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a control plane");
        let say = child.stdin.take().expect("its input");
        let mut hear = BufReader::new(child.stdout.take().expect("its output")).lines();
        let address = hear.next().expect("a line").expect("text").parse().expect("an address");
        Self { child, say, hear, address }
    }

    /// Starts over in a new epoch; returns the revision that sidecars will come to.
    pub(super) fn restart(&mut self) -> u64 {
        self.ask("restart").parse().expect("a revision")
    }

    /// Changes so many grants, one by one; returns the revision that sidecars will come to.
    pub(super) fn change(&mut self, count: u64) -> u64 {
        self.ask(&format!("change {count}")).parse().expect("a revision")
    }

    /// A token of a client.
    pub(super) fn token(&mut self) -> String {
        self.ask("token")
    }

    pub(super) fn cpu(&self) -> Duration {
        cpu_of(self.child.id())
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.say, "{line}").expect("it listens");
        self.hear.next().expect("a line").expect("text")
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === the process ===

struct Objects {
    estate: Estate,
    stored: Vec<Arc<Stored>>,
    grants: u64,
    worst: bool,
}

/// Serves until standard input ends.
pub(super) fn serve(directory: &Path, shape: Shape) {
    let _ = rustix::process::nice(10);
    let clock: Arc<SystemClock> = Arc::new(SystemClock::new());
    let mut objects = Objects::new(clock.now().wall, shape);
    let (key, _) = SigningKey::generate().expect("a key");
    std::fs::write(directory.join("verify-key"), key.verify_key().to_string()).expect("written");
    let key = Arc::new(key);
    let path = |name: &str| directory.join(name);
    let files = ServerFiles {
        cert_file: path("server.pem"),
        key_file: path("server.key"),
        client_ca_file: Some(path("ca.pem")),
    };
    let tls = tls::server_config(&files, tls::TLS13, &[tls::ALPN_H2]).expect("TLS");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut address: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let mut revision = Revision(objects.stored.len() as u64);
    let mut lines = std::io::stdin().lines();
    loop {
        let index =
            Arc::new(Index::new(Epoch::starting(clock.now().wall), revision, objects.stored.iter().cloned(), 65_536));
        let points = SERVICES.map(str::to_owned).to_vec();
        let points = vec![PointConfig { identity: SpiffeId::parse(IDENTITY).expect("an id"), services: points }];
        let max_staleness = Duration::from_secs(3_600);
        let fleet = FleetConfig { points, max_staleness, registry_file: None, max_instances: 100 };
        let deps = SyncServerDeps {
            index: Arc::clone(&index),
            fleet: Fleet::open(clock.clone(), fleet).expect("a fleet"),
            key: Arc::clone(&key),
            clock: clock.clone(),
            metrics: Arc::new(portcullis::telemetry::ControlMetrics::new().expect("metrics")),
            keys: None,
            uses: None,
        };
        let config = SyncServerConfig {
            tls: Some(Arc::clone(&tls)),
            trusted_issuers: vec!["test".to_owned()],
            ..SyncServerConfig::default()
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).expect("a port");
        let bound = listener.local_addr().expect("an address");
        if address.port() == 0 {
            println!("{bound}");
        } else {
            println!("{}", revision.0);
        }
        address = bound;
        let listening = runtime.spawn(portcullis::control::sync_server::serve(listener, deps, config, stopped));
        loop {
            let Some(line) = lines.next() else { return };
            let line = line.expect("text");
            match line.split_once(' ') {
                Some(("change", count)) => {
                    for _ in 0..count.parse::<u64>().expect("a number") {
                        revision = revision.next();
                        let change = objects.change(revision);
                        index.apply(Arc::new(change)).expect("the next revision");
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    println!("{}", revision.0);
                }
                _ if line == "token" => println!("{}", objects.token(clock.now().wall.as_secs())),
                _ => break,
            }
        }
        stop.cancel();
        let _ = runtime.block_on(listening);
        revision = revision.next();
    }
}

impl Objects {
    fn new(now: portcullis::clock::Timestamp, shape: Shape) -> Self {
        let mut estate = Estate::new_at(now);
        estate.put(
            Kind::Workload,
            &json!({"id": IDENTITY, "kind": "service", "owner": "team", "environment": "production"}),
        );
        for n in 0..WORKLOADS {
            let roles = [format!("role-{}", n % 100)];
            let id = Estate::id(&format!("w{n}"));
            estate.put(
                Kind::Workload,
                &json!({"id": id, "kind": "service", "owner": "team", "environment": "production", "roles": roles}),
            );
        }
        let stored = |object: Object, revision: u64| {
            let (kind, key, body) = (object.kind(), Arc::from(object.key()), object.to_json().into());
            Arc::new(Stored::new(kind, key, Revision(revision), body, Some(object)))
        };
        let mut all = Vec::new();
        for change in estate.changes() {
            let object = Object::parse(change.kind, &change.body.expect("a document")).expect("a good document");
            all.push(stored(object, 1));
        }
        let Shape { grants, worst } = shape;
        let mut objects = Self { estate, stored: all, grants, worst };
        for n in 0..grants {
            let grant = Object::Grant(Box::new(objects.grant(n)));
            objects.stored.push(stored(grant, n + 2));
        }
        objects
    }

    fn grant(&self, n: u64) -> Grant {
        let workload = if self.worst { format!("w{n}") } else { format!("w{}", n % WORKLOADS) };
        let exact = format!("/refunds/{n}");
        let (resource, path) = match n % 4 {
            _ if self.worst => ("payments/refunds", Some(exact.as_str())),
            0 => ("payments/refunds", Some(exact.as_str())),
            1 => ("payments/refunds", Some("/refunds/{*}")),
            2 => ("payments", None),
            _ => ("payments/refunds", None),
        };
        let asked = self.estate.ask(&workload, resource, &["write"], path, 86_400);
        let now = self.estate.clock.now().wall;
        grant::vote(&asked, "bob", VoteKind::Approve, &asked.digest, now).expect("a vote")
    }

    /// A commit with one new grant.
    fn change(&mut self, revision: Revision) -> Commit {
        self.grants += 1;
        let object = Object::Grant(Box::new(self.grant(self.grants)));
        let (kind, key, body) = (object.kind(), Arc::from(object.key()), object.to_json().into());
        let stored = Arc::new(Stored::new(kind, key, revision, body, Some(object)));
        self.stored.push(Arc::clone(&stored));
        Commit { revision, at: self.estate.clock.now().wall, author: Arc::from("bench"), changes: vec![stored] }
    }

    fn token(&self, now: u64) -> String {
        let mut claims = self.estate.claims("storefront");
        claims["iat"] = json!(now);
        claims["exp"] = json!(now + 300);
        self.estate.signer.sign(&claims).expect("a token")
    }
}
