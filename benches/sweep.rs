//! How the sidecar grows: CPU and latency of a check against grants, policies and rate, as plots and as numbers.
//!
//! The real binary answers from a generated estate (`portcullis bench generate`); the load is that of `portcullis bench
//! run`. Sizes take turns, round after round, so that what the machine does meanwhile falls on all of them; the median of
//! the rounds counts. Plots and data go to `docs/performance/`. Read with `benches/README.md`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a bench that cannot run should stop, and it reports to the terminal"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use portcullis::bench::generate::{Estate, Options, Size, generate};
use portcullis::bench::{Expect, Mix, Pace, Plot, Report, Settings, Shares, Target, micros, run};
use portcullis::clock::{Clock, SystemClock};
use serde_json::{Value, json};

#[expect(dead_code, reason = "the request that other benches send is not sent here")]
#[path = "floor.rs"]
mod floor;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What runs up in the plots.
const COST: &str = "CPU of a check (µs)";
/// A rate that no size saturates.
const RATE: f64 = 500.0;
/// A rate of checks that each need a signature verified.
const COLD_RATE: f64 = 300.0;
/// Of them; the others are known.
const COLD_SHARE: f64 = 0.9;

struct Args(Vec<String>);

/// A server process and where it answers.
struct Server {
    child: Child,
    door: SocketAddr,
}

/// An estate on disk with a sidecar that answers from it.
struct Sized {
    size: u64,
    place: tempfile::TempDir,
    server: Server,
}

/// What was measured at one size or rate, in every round.
#[derive(Default)]
struct Row {
    warm_cpu: Vec<f64>,
    warm_p50: Vec<f64>,
    warm_p99: Vec<f64>,
    cold_cpu: Vec<f64>,
    cold_p50: Vec<f64>,
    cold_p99: Vec<f64>,
}

fn main() {
    let args = Args(std::env::args().skip(1).collect());
    if args.has("--floor") {
        return serve_floor();
    }
    if !args.has("--bench") {
        return; // `cargo test --benches` builds and starts benches; there is nothing to test here.
    }
    if let Some(reports) = args.text("--fleet") {
        return by_fleet(&args, Path::new(reports));
    }
    let parts = ["grants", "policies", "rate"];
    let asked: Vec<&str> = parts.into_iter().filter(|part| args.has(part)).collect();
    let rounds = args.number("--rounds", 5);
    let turn = Duration::from_secs(args.number("--seconds", 2));
    for part in if asked.is_empty() { parts.to_vec() } else { asked } {
        match part {
            "grants" => {
                let sizes = args.sizes(&[1_000, 10_000, 100_000, 1_000_000]);
                let of = |grants| Size { grants, workloads: (grants / 10).max(500), policies: 100, services: 4 };
                by_size(&args, "grants", &sizes, of, rounds, turn);
            }
            "policies" => {
                let sizes = args.sizes(&[10, 100, 1_000, 10_000]);
                let of = |policies| Size { grants: 10_000, workloads: 1_000, policies, services: 4 };
                by_size(&args, "policies", &sizes, of, rounds, turn);
            }
            _ => by_rate(&args, rounds, turn),
        }
    }
}

/// CPU and latency against a size, which is everything that differs.
fn by_size(args: &Args, name: &'static str, sizes: &[u64], of: impl Fn(u64) -> Size, rounds: u64, turn: Duration) {
    println!("{name}: {rounds} rounds, {} s a turn", turn.as_secs());
    let sized: Vec<Sized> = sizes.iter().map(|size| Sized::start(*size, of(*size))).collect();
    let mut rows: Vec<Row> = sizes.iter().map(|_| Row::default()).collect();
    for _ in 0..rounds {
        for (sized, row) in sized.iter().zip(&mut rows) {
            let saturated = sized.ask(0.0, Pace::Saturate, turn);
            row.warm_cpu.push(cpu(&saturated, 0));
            let paced = sized.ask(0.0, Pace::Rate(RATE), turn);
            row.warm_p50.push(paced.targets[0].latency_us.get("p50"));
            row.warm_p99.push(paced.targets[0].latency_us.get("p99"));
            let cold = sized.ask(COLD_SHARE, Pace::Rate(COLD_RATE), turn);
            row.cold_cpu.push(cpu(&cold, 0));
            row.cold_p50.push(cold.targets[0].latency_us.get("p50"));
            row.cold_p99.push(cold.targets[0].latency_us.get("p99"));
        }
    }
    let columns: Vec<[f64; 6]> = rows.iter().map(Row::medians).collect();
    println!("{name:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}", "warm CPU", "p50", "p99", "cold CPU", "p50", "p99");
    for (size, c) in sizes.iter().zip(&columns) {
        let shown: Vec<String> = c.iter().map(|us| format!("{:>9}", micros(*us))).collect();
        println!("{size:>10} {}", shown.join(" "));
    }
    let at = |column: usize| -> Vec<(f64, f64)> {
        sizes.iter().zip(&columns).map(|(size, c)| ((*size as f64).log10(), c[column])).collect()
    };
    let names = ["tokens and decisions known", "nine of ten tokens never seen"];
    let of_cpu = vec![at(0), at(3)];
    args.plot(&format!("cpu-by-{name}"), &linear(name, &ticks(sizes), of_cpu), &names);
    let names = ["p50, known", "p99, known", "p50, never seen", "p99, never seen"];
    args.plot(
        &format!("latency-by-{name}"),
        &logarithmic(name, &ticks(sizes), vec![at(1), at(2), at(4), at(5)]),
        &names,
    );
    let points: Vec<Value> = sizes
        .iter()
        .zip(&columns)
        .map(|(size, c)| {
            json!({ name: size, "warm_cpu_us": c[0], "warm_p50_us": c[1], "warm_p99_us": c[2], "cold_cpu_us": c[3],
                    "cold_p50_us": c[4], "cold_p99_us": c[5] })
        })
        .collect();
    args.data(name, &points);
}

/// CPU and latency against the rate, beside `static-allow`.
fn by_rate(args: &Args, rounds: u64, turn: Duration) {
    let rates = args.sizes(&[100, 300, 1_000, 3_000, 10_000, 20_000]);
    println!("rate: {rounds} rounds, {} s a turn, beside static-allow", turn.as_secs());
    let sized = Sized::start(10_000, Size { grants: 10_000, workloads: 1_000, policies: 100, services: 4 });
    let floor = Server::start_floor();
    // At a low rate it would take a long time until every token has been seen once.
    sized.ask(0.0, Pace::Saturate, turn);
    let mut columns = Vec::new();
    println!("{:>10} {:>30} {:>30}", "", "static-allow", "portcullis");
    println!("{:>10} {:>9} {:>9} {:>9}  {:>9} {:>9} {:>9}", "rate", "CPU", "p50", "p99", "CPU", "p50", "p99");
    for rate in &rates {
        let mut mix = sized.mix(0.0);
        mix.expect(Expect::Any);
        let mut settings = settings(Pace::Rate(*rate as f64), turn);
        settings.targets = [("static-allow", &floor), ("portcullis", &sized.server)].map(|(n, s)| s.target(n)).to_vec();
        settings.pids = vec![("static-allow".into(), floor.child.id()), ("portcullis".into(), sized.server.child.id())];
        settings.rounds = usize::try_from(rounds).expect("a number of rounds");
        let report = run(&mix, &settings, |_| {}).expect("a report");
        let of = |n: usize| {
            let rounds = &report.targets[n].rounds;
            let each = |of: &dyn Fn(&portcullis::bench::Round) -> f64| median(rounds.iter().map(of).collect());
            [
                each(&|r| r.cpu_us.unwrap_or_default()),
                each(&|r| r.latency_us.get("p50")),
                each(&|r| r.latency_us.get("p99")),
            ]
        };
        let row = [of(0), of(1)];
        let shown: Vec<String> = row.as_flattened().iter().map(|us| format!("{:>9}", micros(*us))).collect();
        println!("{rate:>10} {}", shown.join(" "));
        columns.push(row);
    }
    let at = |server: usize, column: usize| -> Vec<(f64, f64)> {
        rates.iter().zip(&columns).map(|(rate, c)| ((*rate as f64).log10(), c[server][column])).collect()
    };
    let title = "checks a second";
    args.plot("cpu-by-rate", &linear(title, &ticks(&rates), vec![at(0, 0), at(1, 0)]), &["static-allow", "portcullis"]);
    args.plot(
        "latency-by-rate",
        &logarithmic(title, &ticks(&rates), vec![at(0, 1), at(0, 2), at(1, 1), at(1, 2)]),
        &["static-allow, p50", "static-allow, p99", "portcullis, p50", "portcullis, p99"],
    );
    let points: Vec<Value> = rates
        .iter()
        .zip(&columns)
        .map(|(rate, [floor, ours])| {
            let of = |c: &[f64; 3]| json!({ "cpu_us": c[0], "p50_us": c[1], "p99_us": c[2] });
            json!({ "rate": rate, "static_allow": of(floor), "portcullis": of(ours) })
        })
        .collect();
    args.data("rate", &points);
}

/// Propagation of a revocation against sidecars, from the reports `fleet-N.json` of the bench `fleet` in a directory.
fn by_fleet(args: &Args, reports: &Path) {
    let mut found: Vec<(u64, [f64; 3])> = Vec::new();
    for file in std::fs::read_dir(reports).expect("a directory").flatten() {
        let name = file.file_name().into_string().expect("a name");
        if !(name.starts_with("fleet-") && name.ends_with(".json")) {
            continue;
        }
        let report: Value = serde_json::from_slice(&std::fs::read(file.path()).expect("a report")).expect("JSON");
        let of = |what: &str, q: &str| 1000.0 * report["single"][what][q].as_f64().expect("milliseconds");
        let acknowledged = "commit_to_acknowledged_ms";
        let values = [of(acknowledged, "p50"), of(acknowledged, "p99"), of("receipt_ms", "p99")];
        found.push((report["sidecars"].as_u64().expect("a number"), values));
    }
    found.sort_by_key(|(sidecars, _)| *sidecars);
    let sizes: Vec<u64> = found.iter().map(|(sidecars, _)| *sidecars).collect();
    let at = |n: usize| found.iter().map(|(sidecars, values)| ((*sidecars as f64).log10(), values[n])).collect();
    let names = ["acknowledged, p50", "acknowledged, p99", "receipt, p99"];
    let plot = logarithmic("connected sidecars", &ticks(&sizes), vec![at(0), at(1), at(2)]);
    args.plot("propagation-by-sidecars", &plot, &names);
    let point = |(sidecars, v): &(u64, [f64; 3])| json!({ "sidecars": sidecars, "acknowledged_p50_us": v[0], "acknowledged_p99_us": v[1], "receipt_p99_us": v[2] });
    args.data("propagation", &found.iter().map(point).collect::<Vec<_>>());
}

fn settings(pace: Pace, duration: Duration) -> Settings {
    Settings {
        targets: Vec::new(),
        pace,
        connections: 2,
        streams: 16,
        rounds: 1,
        duration,
        warm_up: Duration::from_millis(500),
        timeout: Duration::from_secs(1),
        pids: Vec::new(),
        threads: 1,
        most_requests: 200_000,
    }
}

fn cpu(report: &Report, target: usize) -> f64 {
    report.targets[target].cpu_us.expect("the CPU of a process that was named")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

// === the plots ===

fn ticks(sizes: &[u64]) -> Vec<(f64, String)> {
    sizes.iter().map(|size| ((*size as f64).log10(), size.to_string())).collect()
}

fn range(ticks: &[(f64, String)]) -> (f64, f64) {
    (ticks[0].0 - 0.1, ticks[ticks.len() - 1].0 + 0.1)
}

fn linear<'a>(x_title: &'a str, ticks: &[(f64, String)], series: Vec<Vec<(f64, f64)>>) -> Plot<'a> {
    let most = series.iter().flatten().map(|p| p.1).fold(1.0, f64::max) * 1.1;
    let (x_ticks, x_range) = (ticks.to_vec(), range(ticks));
    Plot { x_title, y_title: COST, x_ticks, x_range, y_range: (0.0, most), log: false, series, dots: true }
}

fn logarithmic<'a>(x_title: &'a str, ticks: &[(f64, String)], series: Vec<Vec<(f64, f64)>>) -> Plot<'a> {
    let values = || series.iter().flatten().map(|p| p.1.log10());
    let y_range = (values().fold(f64::INFINITY, f64::min).floor(), values().fold(0.0, f64::max).ceil());
    let (x_ticks, x_range) = (ticks.to_vec(), range(ticks));
    Plot { x_title, y_title: "latency", x_ticks, x_range, y_range, log: true, series, dots: true }
}

// === impl Args ===

impl Args {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|a| a == name)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().position(|a| a == name).and_then(|i| self.0.get(i + 1)).map(String::as_str)
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.text(name).map_or(default, |n| n.parse().expect("a number"))
    }

    /// `--sizes A,B,C`, or these.
    fn sizes(&self, default: &[u64]) -> Vec<u64> {
        let Some(list) = self.text("--sizes") else { return default.to_vec() };
        list.split(',').map(|n| n.parse().expect("a number")).collect()
    }

    /// `--out DIR`, or where the documentation has it.
    fn out(&self) -> PathBuf {
        self.text("--out").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance"), PathBuf::from)
    }

    fn plot(&self, name: &str, plot: &Plot<'_>, series: &[&str]) {
        std::fs::create_dir_all(self.out()).expect("a directory");
        std::fs::write(self.out().join(format!("{name}.svg")), plot.svg(series)).expect("written");
    }

    /// Puts the points of one part into the data file, beside those of the others.
    fn data(&self, part: &str, points: &[Value]) {
        let path = self.out().join("data.json");
        let known = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let mut all: serde_json::Map<String, Value> = known.unwrap_or_default();
        all.insert(part.to_owned(), points.into());
        let text = serde_json::to_string_pretty(&all).expect("JSON");
        std::fs::write(path, text + "\n").expect("written");
    }
}

// === impl Row ===

impl Row {
    fn medians(&self) -> [f64; 6] {
        [&self.warm_cpu, &self.warm_p50, &self.warm_p99, &self.cold_cpu, &self.cold_p50, &self.cold_p99]
            .map(|values| median(values.clone()))
    }
}

// === impl Sized ===

impl Sized {
    fn start(number: u64, size: Size) -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let now = SystemClock::new().now().wall;
        let estate = Estate::new(size, 1, now, Duration::from_secs(86_400)).expect("an estate");
        let out = place.path().join("estate");
        let options = Options { out: out.clone(), tokens: 1_000, control_store: false, documents: false };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(generate(&estate, &options, |_, _| {})).expect("files");
        let server = Server::start_sidecar(&out.join("sidecar.yaml"));
        Self { size: number, place, server }
    }

    fn mix(&self, never_seen: f64) -> Mix {
        let shares = Shares { never_seen: Some(never_seen), denied: Some(0.0) };
        Mix::load(&self.place.path().join("estate/mix.yaml"), shares).expect("the generated mix")
    }

    fn ask(&self, never_seen: f64, pace: Pace, turn: Duration) -> Report {
        let mut settings = settings(pace, turn);
        settings.targets = vec![self.server.target("sidecar")];
        settings.pids = vec![("sidecar".to_owned(), self.server.child.id())];
        let report = run(&self.mix(never_seen), &settings, |_| {}).expect("a report");
        assert!(report.is_right(), "wrong or missing answers at {}: {:?}", self.size, report.targets[0].examples);
        report
    }
}

// === impl Server ===

impl Server {
    fn start_sidecar(config: &Path) -> Self {
        let [door, admin] = [(); 2].map(|()| free_port());
        let child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["sidecar", "--config"])
            .arg(config)
            .env("PORTCULLIS__LISTENERS__EXT_AUTHZ__TCP", door.to_string())
            .env("PORTCULLIS__LISTENERS__ADMIN", admin.to_string())
            .env("PORTCULLIS__TELEMETRY__LOG_LEVEL", "error")
            .stdout(Stdio::null())
            .spawn()
            .expect("a sidecar");
        let started = Instant::now();
        while !is_ready(admin) {
            assert!(started.elapsed() < Duration::from_secs(60), "the sidecar is not ready after a minute");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, door }
    }

    fn start_floor() -> Self {
        let mut child = Command::new(std::env::current_exe().expect("our own path"))
            .arg("--floor")
            .stdout(Stdio::piped())
            .spawn()
            .expect("a server process");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        Self { child, door: line.trim().parse().expect("an address") }
    }

    fn target(&self, name: &str) -> Target {
        format!("{name}=grpc://{}", self.door).parse().expect("a target")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port")
}

fn is_ready(admin: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(admin) else { return false };
    let mut answer = String::new();
    let asked = stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
}

fn serve_floor() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        println!("{}", listener.local_addr().expect("an address"));
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let mut server = tonic::transport::Server::builder().tcp_nodelay(true);
        let serving = server.add_service(AuthorizationServer::new(floor::StaticAllow)).serve_with_incoming(incoming);
        serving.await.expect("serving");
    });
}
