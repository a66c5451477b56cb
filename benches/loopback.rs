//! CPU per check over a loopback socket: Portcullis, warm, beside `static-allow`, in alternating rounds of one run.
//!
//! Budgets B1 and B10 of the design. `static-allow` is a tonic server that answers OK without looking: the floor of any
//! ext_authz server in Rust; it lives here and nowhere else. Each server is a process of its own; its CPU time is the
//! kernel's accounting of that process. The load is that of `portcullis bench`. Read with `benches/README.md`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a bench that cannot run should stop, and it reports to the terminal"
)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envoy_types::pb::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use portcullis::authz::Lease;
use portcullis::cache::{CacheSizes, Gate, coalesce};
use portcullis::clock::{Clock, SystemClock};
use portcullis::credential::TokenSigner;
use portcullis::state::State;
use portcullis::telemetry::{Output, Records, RecordsConfig, SidecarMetrics, Telemetry};
use portcullis::testing::{Estate, Size};
use portcullis::{drain, ext_authz, readiness};
use tokio::net::TcpListener;

use self::floor::{StaticAllow, check_request};

#[path = "flood.rs"]
mod flood;
#[path = "floor.rs"]
mod floor;
#[path = "in_line.rs"]
mod in_line;
#[path = "open_loop.rs"]
mod open_loop;
#[path = "overload.rs"]
mod overload;
#[path = "saturated.rs"]
mod saturated;
#[path = "through_envoy.rs"]
mod through_envoy;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 16;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let is_set = |name: &str| args.iter().any(|a| a == name);
    if let Some(processors) = flag("--on") {
        open_loop::stay_on(&processors);
    }
    if let Some(kind) = flag("--serve") {
        let grants = flag("--grants").and_then(|n| n.parse().ok()).unwrap_or(1_000);
        // `@N`: one runtime with N threads; `/N`: N runtimes with one.
        let (kind, threads, workers) = match (kind.split_once('@'), kind.split_once('/')) {
            (Some((kind, n)), _) => (kind, n.parse().expect("a number"), 0),
            (_, Some((kind, n))) => (kind, 1, n.parse().expect("a number")),
            _ => (&*kind, 1, 0),
        };
        return serve(kind, grants, (threads, workers), flag("--key"), flag("--to"));
    }
    let number = |name: &str, default: u64| flag(name).and_then(|n| n.parse().ok()).unwrap_or(default);
    if let (Some(address), Some(token)) = (flag("--attack"), flag("--token")) {
        return flood::attack(&address, &token, number("--rate", 1), number("--seconds", 1), is_set("--sink"));
    }
    if !args.iter().any(|a| a == "--bench") {
        return; // `cargo test --benches` builds and starts benches; there is nothing to test here.
    }
    let seconds = flag("--seconds").and_then(|s| s.parse().ok()).unwrap_or(3);
    let rounds = flag("--rounds").and_then(|s| s.parse().ok()).unwrap_or(5);
    let grants = flag("--grants").unwrap_or_else(|| "1000".to_owned());
    if is_set("--flood") {
        let (rate, flood) = (number("--rate", 500), number("--bad", 4_000));
        return flood::run(&grants, &flood::Plan { rounds, seconds, rate, flood, unpinned: is_set("--unpinned") });
    }
    if is_set("--overload") {
        return overload::run(&grants, &overload::Plan { rounds, seconds, cold: number("--cold", 50) });
    }
    if is_set("--runtimes") {
        return saturated::runtimes(&grants, rounds, seconds);
    }
    if is_set("--proxy") {
        return in_line::run(&grants, rounds, seconds);
    }
    if is_set("--envoy") {
        let plan = through_envoy::Plan { rounds, seconds, rates: flag("--rate").map_or(vec![500, 1_000], rates) };
        return through_envoy::run(&grants, &plan);
    }
    saturated::run(&grants, rounds, seconds, number("--checks", 20_000));
}

fn rates(list: String) -> Vec<u64> {
    list.split(',').map(|rate| rate.parse().expect("requests a second")).collect()
}

// === the server processes ===

struct Server {
    name: &'static str,
    child: Child,
    address: String,
    token: String,
    /// That the token was signed with, in PEM form and then in base64.
    key: String,
    /// What it prints when it is asked how many records it dropped.
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Server {
    fn start(name: &'static str, grants: &str) -> Self {
        Self::spawn(name, grants, &[])
    }

    /// Starts it on these processors.
    fn start_on(name: &'static str, grants: &str, processors: Option<&str>) -> Self {
        let on: Vec<&str> = processors.map(|list| ["--on", list]).into_iter().flatten().collect();
        Self::spawn(name, grants, &on)
    }

    fn spawn(name: &'static str, grants: &str, more: &[&str]) -> Self {
        let exe = std::env::current_exe().expect("our own path");
        let mut child = Command::new(exe)
            .args(["--serve", name, "--grants", grants])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a server process");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut line = || lines.next().expect("a line").expect("text");
        let (address, token, key) = (line(), line(), line());
        Self { name, child, address, token, key, lines }
    }

    /// As a target of `portcullis bench`.
    fn target(&self, scheme: &str) -> portcullis::bench::Target {
        format!("{}={scheme}://{}", self.name, self.address).parse().expect("a target")
    }

    /// How many decision records it has dropped so far.
    fn dropped(&mut self) -> u64 {
        writeln!(self.child.stdin.as_mut().expect("its input")).expect("a question");
        self.lines.next().expect("a line").expect("text").parse().expect("a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time of a process, from `/proc/PID/stat`, in ticks of 10 ms.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running server");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().map(|&i| fields[i].parse::<f64>().expect("ticks")).sum();
    ticks / 100.0
}

// === the servers ===

/// On a runtime with so many threads or, with `workers`, on as many runtimes with a single thread.
fn serve(kind: &str, grants: usize, (threads, workers): (usize, usize), key: Option<String>, to: Option<String>) {
    // As the sidecar has them.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(threads).on_thread_park(coalesce::before_park);
    let runtime = runtime.enable_all().build().expect("a runtime");
    let workers: Vec<_> = (0..workers)
        .map(|_| {
            let (hand, handle) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.on_thread_park(coalesce::before_park).enable_all().build().expect("a runtime");
                hand.send(runtime.handle().clone()).expect("somebody waits");
                runtime.block_on(std::future::pending::<()>());
            });
            handle.recv().expect("a runtime")
        })
        .collect();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        if kind == "static-allow" {
            println!("{address}\n-\n-");
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().tcp_nodelay(true);
            server
                .clone()
                .add_service(AuthorizationServer::new(StaticAllow))
                .serve_with_incoming(incoming)
                .await
                .expect("serving");
            return;
        }
        if kind == "upstream" {
            return through_envoy::upstream(listener).await;
        }
        if let (Some(to), "plain-proxy") = (&to, kind) {
            return in_line::plain(listener, to.clone()).await;
        }
        let clock: Arc<SystemClock> = Arc::new(SystemClock::new());
        let mut estate = Estate::sized_at(clock.now().wall, Size { grants, policies: 100, workloads: 1_000 });
        if let Some(key) = key {
            let pem = URL_SAFE_NO_PAD.decode(key).expect("base64");
            let pem = std::str::from_utf8(&pem).expect("text");
            estate.sign_with(TokenSigner::from_pkcs8_pem(pem, estate.signer.kid()).expect("a key"));
        }
        let state = Arc::new(State::new());
        let now = clock.now();
        let day = Duration::from_secs(86_400);
        let lease = Lease { server_time: now.wall, received: now.mono, lease: day, max_staleness: day };
        state.restore(Arc::new(estate.snapshot()), lease);
        let gate = Gate::new(state, clock.clone() as _, CacheSizes { tokens: 100_000, decisions: 100_000 });
        let metrics = Arc::new(SidecarMetrics::new().expect("metrics"));
        let path = std::env::temp_dir().join(format!("portcullis-bench-{}.jsonl", std::process::id()));
        let output = match kind {
            "portcullis+records" => Output::File { path, max_bytes: 100 << 20, keep: 1 },
            _ => Output::Off,
        };
        let records = Records::start(RecordsConfig { output, queue: 65_536 }, metrics.records_dropped().clone());
        let dropped = metrics.records_dropped().clone();
        std::thread::spawn(move || {
            for _ in std::io::stdin().lines() {
                println!("{}", dropped.get());
            }
        });
        let telemetry = Telemetry::new(metrics, records.expect("records"), None, clock);
        let key = URL_SAFE_NO_PAD.encode(estate.signer.pkcs8_pem().expect("a key").as_bytes());
        println!("{address}\n{}\n{key}", estate.token("storefront"));
        if let Some(to) = to {
            return in_line::serve(listener, Arc::new(gate), telemetry, to).await;
        }
        let (_drain, signal) = drain::channel();
        let listeners = ext_authz::Listeners { tcp: Some(listener), unix: None, workers };
        let config = overload::config(kind);
        ext_authz::serve(listeners, Arc::new(gate), telemetry, readiness::Readiness::new(), config, signal)
            .await
            .expect("serving");
    });
}
