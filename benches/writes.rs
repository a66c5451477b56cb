//! Durable grant writes a second on SQLite: many writers at once, through the committer and through the REST API.
//!
//! Budget B9 of the design. Every write is answered only when it is flushed (WAL, `synchronous=FULL`); the store is the
//! one of production, with a count around it that tells how many writes share a transaction. What one flush costs here is
//! measured first, in the same directory. Clients and control plane share this process. Read with `benches/README.md`.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench that cannot run should stop, and it reports to the terminal"
)]

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use hdrhistogram::Histogram;
use portcullis::clock::{SharedClock, SystemClock, Timestamp};
use portcullis::control::api::{ApiConfig, ServeLimits, router, serve};
use portcullis::control::audit::{Event, Tip};
use portcullis::control::fleet::{Fleet, FleetConfig};
use portcullis::control::keys::{Keys, KeysConfig};
use portcullis::control::operators::Operators;
use portcullis::control::principal::OperatorKind;
use portcullis::control::store::{
    AuditRow, Committed, Conflict, Expect, Loaded, LogCommit, OperatorRow, SqliteStore, Store, StoreError, Unit, Write,
};
use portcullis::control::{Core, CoreConfig, Intent};
use portcullis::grant;
use portcullis::object::{Object, VoteKind};
use portcullis::telemetry::ControlMetrics;
use portcullis::testing::{Estate, Size};
use portcullis::wire::{Epoch, Revision};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many workloads ask in turn, so that none has more grants than a workload has.
const WORKLOADS: usize = 2_000;

/// The store, and how often it was asked to commit.
#[derive(Debug)]
struct Counted {
    store: SqliteStore,
    transactions: AtomicU64,
    units: AtomicU64,
    micros: AtomicU64,
}

/// A control plane in a directory of its own.
struct Plane {
    core: Arc<Core>,
    counted: Arc<Counted>,
    url: String,
    operators: [String; 2],
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    if !args.iter().any(|a| a == "--bench") {
        return; // `cargo test --benches` builds and starts benches; there is nothing to test here.
    }
    let time = Duration::from_secs(flag("--seconds").and_then(|s| s.parse().ok()).unwrap_or(5));
    let writers = flag("--writers").map(|list| list.split(',').filter_map(|n| n.parse().ok()).collect());
    let writers: Vec<usize> = writers.unwrap_or_else(|| vec![1, 16, 64, 256]);
    let place = flag("--directory").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    println!("{place}: a flush of 4 KiB takes {}", percentiles(&flushes(Path::new(&place))));
    println!("writers  door    writes/s  grants/s  transactions/s  writes in one  ms in one  latency of a write");
    for writers in writers {
        for door in ["commit", "rest"] {
            runtime.block_on(run(Path::new(&place), door, writers, time));
        }
    }
}

/// What it costs to append and flush, without a database: in microseconds.
fn flushes(place: &Path) -> Histogram<u64> {
    let mut file = tempfile::tempfile_in(place).expect("a file");
    let mut histogram = Histogram::new(3).expect("a histogram");
    for _ in 0..200 {
        let begun = Instant::now();
        file.write_all(&[7; 4096]).expect("written");
        file.sync_data().expect("flushed");
        record(&mut histogram, begun);
    }
    histogram
}

fn record(histogram: &mut Histogram<u64>, begun: Instant) {
    histogram.record(u64::try_from(begun.elapsed().as_micros()).expect("a short time").max(1)).expect("a latency");
}

fn percentiles(micros: &Histogram<u64>) -> String {
    let [half, most] = [0.5, 0.99].map(|q| micros.value_at_quantile(q) as f64 / 1e3);
    format!("p50 {half:.2} ms, p99 {most:.2} ms")
}

async fn run(place: &Path, door: &'static str, writers: usize, time: Duration) {
    let plane = Arc::new(Plane::start(place).await);
    // Without the system's certificates, which take longer to read than a write takes.
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().expect("a client");
    let latencies = Arc::new(Mutex::new(Histogram::new(3).expect("a histogram")));
    let before = plane.counted.read();
    let begun = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|_| {
            let (plane, client, latencies) = (Arc::clone(&plane), client.clone(), Arc::clone(&latencies));
            tokio::spawn(async move {
                let (mut grants, mut own) = (0, Histogram::<u64>::new(3).expect("a histogram"));
                while begun.elapsed() < time {
                    match door {
                        "commit" => plane.commit(&mut own).await,
                        _ => plane.ask_and_approve(&client, &mut own).await,
                    }
                    grants += 1;
                }
                latencies.lock().expect("no writer panicked").add(own).expect("the same bounds");
                grants
            })
        })
        .collect();
    let mut grants = 0;
    for task in tasks {
        grants += task.await.expect("a writer");
    }
    let seconds = begun.elapsed().as_secs_f64();
    let after = plane.counted.read();
    let [transactions, units, micros] = std::array::from_fn(|n| (after[n] - before[n]) as f64);
    println!(
        "{writers:<8} {door:<7} {:8.0}  {:8.0}  {:14.0}  {:13.1}  {:9.2}  {}",
        units / seconds,
        f64::from(grants) / seconds,
        transactions / seconds,
        units / transactions,
        micros / transactions / 1e3,
        percentiles(&latencies.lock().expect("no writer panicked")),
    );
    plane.stop.cancel();
    plane.core.close().await;
}

// === impl Plane ===

impl Plane {
    async fn start(place: &Path) -> Self {
        let directory = tempfile::tempdir_in(place).expect("a directory");
        let clock: SharedClock = Arc::new(SystemClock::new());
        let store = SqliteStore::open(directory.path(), clock.now().wall).await.expect("a store");
        let count = AtomicU64::default;
        let counted = Arc::new(Counted { store, transactions: count(), units: count(), micros: count() });
        let core = Core::open(Arc::clone(&counted) as _, Arc::clone(&clock), CoreConfig::default()).await;
        let core = core.expect("a core");
        let file = directory.path().join("bootstrap-token");
        let operators = Operators::open(Arc::clone(core.store()), Arc::clone(&clock), &file).await.expect("operators");
        let by = Intent::system("bench", "operator.create");
        let mut tokens = [String::new(), String::new()];
        for (name, token) in ["alice", "bob"].into_iter().zip(&mut tokens) {
            *token = operators.create(name, OperatorKind::Person, &by).await.expect("an operator").1.to_string();
        }
        let fleet = FleetConfig {
            points: Vec::new(),
            max_staleness: Duration::from_secs(300),
            registry_file: None,
            max_instances: 16,
        };
        let fleet = Fleet::open(Arc::clone(&clock), fleet).expect("a fleet");
        let metrics = Arc::new(ControlMetrics::new().expect("metrics"));
        let keys = Keys::new(Arc::clone(&core), metrics, KeysConfig::default());
        let router = router(
            Arc::clone(&core),
            fleet,
            operators,
            keys,
            ApiConfig { grants_per_resource: usize::MAX, ..ApiConfig::default() },
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, None, router, ServeLimits::default(), stop.clone()));
        let size = Size { grants: 0, policies: 3, workloads: WORKLOADS };
        let estate = Estate::sized_at(clock.now().wall, size);
        let mut furnish = Unit::new("bench", "furnish", "bench");
        for change in estate.changes() {
            let body = change.body;
            furnish = furnish.with(Write { kind: change.kind, key: change.key, expect: Expect::Absent, body });
        }
        core.commit(furnish).await.expect("an estate");
        Self { core, counted, url, operators: tokens, stop, _directory: directory }
    }

    /// One active grant, as the committer gets it: one write.
    async fn commit(&self, latencies: &mut Histogram<u64>) {
        let now = self.core.clock().now().wall;
        let new = serde_json::from_value(request()).expect("a request");
        let asked = grant::new_request(new, "alice", now).expect("a request");
        let active = grant::vote(&asked, "bob", VoteKind::Approve, &asked.digest, now).expect("a vote");
        let write = Write::put(&Object::Grant(Box::new(active)), Expect::Absent);
        let begun = Instant::now();
        self.core.commit(Unit::new("bob", "grant.approve", "bench").with(write)).await.expect("a commit");
        record(latencies, begun);
    }

    /// One active grant, as two operators make it: two writes.
    async fn ask_and_approve(&self, client: &reqwest::Client, latencies: &mut Histogram<u64>) {
        let asked = self.post(client, 0, "grant-requests", &request(), latencies).await;
        let (id, digest) = (asked["object"]["id"].as_str().expect("an id"), &asked["object"]["digest"]);
        let path = format!("grant-requests/{id}/approve");
        let approved = self.post(client, 1, &path, &json!({ "digest": digest }), latencies).await;
        assert_eq!(approved["object"]["state"], "active", "{approved}");
    }

    async fn post(
        &self,
        client: &reqwest::Client,
        operator: usize,
        path: &str,
        body: &Value,
        latencies: &mut Histogram<u64>,
    ) -> Value {
        let token = self.operators.get(operator).expect("an operator");
        let request = client.post(format!("{}/{path}", self.url)).bearer_auth(token).json(body);
        let begun = Instant::now();
        let response = request.send().await.expect("an answer");
        let status = response.status();
        let answer: Value = response.json().await.expect("JSON");
        record(latencies, begun);
        assert!(status.is_success(), "{status}: {answer}");
        answer
    }
}

/// A request for a new grant, of the next workload.
fn request() -> Value {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed) % WORKLOADS;
    json!({
        "workload": Estate::id(&format!("w{n}")), "resources": ["payments/refunds"], "actions": ["write"],
        "duration_seconds": 300, "reason": "ticket 7", "reuse": false,
    })
}

// === impl Counted ===

impl Counted {
    fn read(&self) -> [u64; 3] {
        [&self.transactions, &self.units, &self.micros].map(|n| n.load(Ordering::Relaxed))
    }
}

impl Store for Counted {
    fn epoch(&self) -> Epoch {
        self.store.epoch()
    }

    fn load(&self) -> BoxFuture<'_, Result<Loaded, StoreError>> {
        self.store.load()
    }

    fn log_since(&self, after: Revision, limit: usize) -> BoxFuture<'_, Result<Vec<LogCommit>, StoreError>> {
        self.store.log_since(after, limit)
    }

    fn commit<'a>(
        &'a self,
        units: &'a [Unit],
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Vec<Result<Committed, Conflict>>, StoreError>> {
        Box::pin(async move {
            let begun = Instant::now();
            let outcomes = self.store.commit(units, now).await;
            let micros = u64::try_from(begun.elapsed().as_micros()).expect("a short time");
            self.transactions.fetch_add(1, Ordering::Relaxed);
            self.units.fetch_add(units.len() as u64, Ordering::Relaxed);
            self.micros.fetch_add(micros, Ordering::Relaxed);
            outcomes
        })
    }

    fn trim(&self, floor: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.trim(floor)
    }

    fn operators(&self) -> BoxFuture<'_, Result<Vec<OperatorRow>, StoreError>> {
        self.store.operators()
    }

    fn add_operator<'a>(&'a self, row: &'a OperatorRow, event: &'a Event) -> BoxFuture<'a, Result<bool, StoreError>> {
        self.store.add_operator(row, event)
    }

    fn revoke_operator<'a>(
        &'a self,
        name: &'a str,
        event: &'a Event,
        at: Timestamp,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        self.store.revoke_operator(name, event, at)
    }

    fn audit<'a>(&'a self, events: &'a [(Timestamp, Event)]) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.audit(events)
    }

    fn audit_tip(&self) -> BoxFuture<'_, Result<Tip, StoreError>> {
        self.store.audit_tip()
    }

    fn audit_since(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<AuditRow>, StoreError>> {
        self.store.audit_since(after, limit)
    }

    fn audit_before(&self, before: u64, limit: usize) -> BoxFuture<'_, Result<Vec<AuditRow>, StoreError>> {
        self.store.audit_before(before, limit)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.store.close()
    }
}
