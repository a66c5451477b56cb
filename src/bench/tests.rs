//! The generator against servers whose behaviour is known: ours, one that stalls, ones that fail in each way there is.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::{Response, Status};

use super::*;
use crate::bench::generate::{self, Estate, Options, Size};
use crate::cache::{CacheSizes, Gate};
use crate::clock::{SharedClock, SystemClock};
use crate::state::State;
use crate::sync::disk;
use crate::telemetry::{Output, Records, RecordsConfig, SidecarMetrics, Telemetry};
use crate::wire::VerifyKey;
use crate::{drain, ext_authz, readiness};

/// Answers the nth check as it is told.
struct Scripted<F>(F, AtomicU64, tokio::sync::Mutex<()>);

#[tonic::async_trait]
impl<F: Fn(u64) -> (Duration, Result<(), Status>) + Send + Sync + 'static> Authorization for Scripted<F> {
    async fn check(&self, _: tonic::Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        // One at a time: while one is held up, so are all.
        let _turn = self.2.lock().await;
        let (wait, answer) = self.0(self.1.fetch_add(1, Ordering::Relaxed));
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        answer.map(|()| Response::new(CheckResponse::default()))
    }
}

fn scripted(
    runtime: &Runtime,
    script: impl Fn(u64) -> (Duration, Result<(), Status>) + Send + Sync + 'static,
) -> String {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let service = AuthorizationServer::new(Scripted(script, AtomicU64::new(0), tokio::sync::Mutex::default()));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    format!("grpc://{address}")
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn settings(targets: &[(&str, &str)], pace: Pace) -> Settings {
    let target = |(name, url): &(&str, &str)| format!("{name}={url}").parse().unwrap();
    Settings {
        targets: targets.iter().map(target).collect(),
        pace,
        connections: 1,
        streams: 8,
        rounds: 1,
        duration: Duration::from_secs(1),
        warm_up: Duration::ZERO,
        timeout: Duration::from_secs(5),
        pids: vec![],
        threads: 1,
        most_requests: 1000,
    }
}

fn one_request(expect: &str) -> Mix {
    let text = format!("requests: [{{name: only, paths: [/], expect: {expect}}}]");
    Mix::parse(Path::new("mix.yaml"), &text, Shares::default()).unwrap()
}

#[test]
fn a_pause_of_the_server_counts_for_every_request_that_was_due_in_it() {
    let server = runtime();
    // The fiftieth check holds up the server for 300 ms: at 500 a second 150 requests are due meanwhile.
    let url = scripted(&server, |n| (Duration::from_millis(if n == 50 { 300 } else { 0 }), Ok(())));
    let mut settings = settings(&[("stalls", &url)], Pace::Rate(500.0));
    // Also with a single stream, on which a closed loop would have seen one slow request.
    settings.streams = 1;
    let report = run(&one_request("allow"), &settings, |_| ()).unwrap();
    let stalls = &report.targets[0];
    assert_eq!((stalls.answered, stalls.failed, stalls.wrong), (500, 0, 0), "all that were due were sent");
    assert!(stalls.latency_us.max >= 300_000.0, "{:?}", stalls.latency_us);
    // Of 500, 150 waited for 300 ms to 0: a tenth of all for more than 200 ms. Noise only adds to that.
    assert!(stalls.latency_us.get("p90") >= 190_000.0, "{:?}", stalls.latency_us);
    let slow: u64 = stalls.histogram.iter().filter(|(upper, _)| *upper >= 100_000.0).map(|(_, n)| n).sum();
    assert!(slow >= 95, "{slow} of 500");
}

#[test]
fn saturation_sends_as_fast_as_answers_come() {
    let server = runtime();
    let url = scripted(&server, |_| (Duration::from_millis(20), Ok(())));
    let report = run(&one_request("allow"), &settings(&[("slow", &url)], Pace::Saturate), |_| ()).unwrap();
    let slow = &report.targets[0];
    // One at a time, 20 ms or more each.
    assert!((1..=60).contains(&slow.answered), "{}", slow.answered);
    assert!(slow.latency_us.get("p50") >= 20_000.0, "{:?}", slow.latency_us);
}

#[test]
fn failures_are_counted_apart_and_by_name() {
    let server = runtime();
    let refuses = scripted(&server, |_| (Duration::ZERO, Err(Status::unavailable("busy"))));
    let hangs = scripted(&server, |_| (Duration::from_secs(600), Ok(())));
    let closes = server.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let closing = format!("grpc://{}", closes.local_addr().unwrap());
    server.spawn(async move {
        // Takes connections, waits for a first byte, and hangs up.
        while let Ok((stream, _)) = closes.accept().await {
            let _readable = stream.readable().await;
        }
    });
    let targets = [("refuses", refuses.as_str()), ("hangs", &hangs), ("closes", &closing)];
    let mut settings = settings(&targets, Pace::Rate(100.0));
    (settings.duration, settings.timeout) = (Duration::from_millis(500), Duration::from_secs(1));
    let report = run(&one_request("allow"), &settings, |_| ()).unwrap();
    for (target, names) in report.targets.iter().zip([
        &["gRPC status 14"][..],
        &["timeout", "not sent in time"],
        &["connection closed or stream reset", "unreachable", "timeout", "not sent in time"],
    ]) {
        assert_eq!(
            (target.answered, target.failed, target.wrong),
            (0, 50, 0),
            "{}: {:?}",
            target.name,
            target.failures
        );
        assert!(target.failures.contains_key(names[0]), "{:?}", target.failures);
        assert!(target.failures.keys().all(|name| names.contains(&name.as_str())), "{:?}", target.failures);
        assert!(target.latency_us.get("p50") >= 999_000.0, "no answer is no fast answer: {:?}", target.latency_us);
    }
    assert_eq!(report.targets[0].trouble.as_deref(), Some("busy"));
}

#[test]
fn what_cannot_be_reached_is_told_before_anything_is_measured() {
    let server = runtime();
    // A port that was just free and is nobody's.
    let address = server.block_on(async { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap() });
    let error = |settings: &Settings| run(&one_request("allow"), settings, |_| ()).unwrap_err().to_string();
    let gone = settings(&[("gone", &format!("grpc://{address}"))], Pace::Rate(10.0));
    assert!(error(&gone).contains("target `gone` at `grpc://127.0.0.1:"), "{}", error(&gone));
    let none = settings(&[("none", "unix:/nowhere/x.sock")], Pace::Saturate);
    assert!(error(&none).contains("cannot be reached"), "{}", error(&none));
    for (change, part) in [
        (Settings { targets: vec![], ..gone.clone() }, "at least one target"),
        (Settings { targets: vec![gone.targets[0].clone(), gone.targets[0].clone()], ..gone.clone() }, "two targets"),
        (Settings { pace: Pace::Rate(0.0), ..gone.clone() }, "a rate of `0`"),
        (Settings { streams: 0, ..gone.clone() }, "`0` streams"),
        (Settings { pids: vec![("x".to_owned(), 1)], ..gone.clone() }, "--pid `x`"),
        (Settings { timeout: Duration::ZERO, ..gone }, "a timeout of `0s`"),
    ] {
        assert!(error(&change).contains(part), "{}", error(&change));
    }
}

#[test]
fn proxies_are_asked_over_http() {
    let server = runtime();
    let listener = server.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let status = |uri: axum::http::Uri| async move {
        let code = uri.path().trim_start_matches('/').parse().unwrap_or(200);
        (axum::http::StatusCode::from_u16(code).unwrap(), "a body that is read")
    };
    server.spawn(async move { axum::serve(listener, axum::Router::new().fallback(status)).await });
    let text = "requests:\n  - {name: yes, paths: [/200], expect: allow}\n  - {name: no, paths: [/403], expect: deny}\n  \
                - {name: exact, paths: [/418], expect: 418}\n  - {name: gateway, paths: [/502], expect: deny}\n  \
                - {name: surprise, paths: [/401], expect: allow}\n";
    let mix = Mix::parse(Path::new("mix.yaml"), text, Shares::default()).unwrap();
    let report = run(&mix, &settings(&[("proxy", &url)], Pace::Rate(500.0)), |_| ()).unwrap();
    let proxy = &report.targets[0];
    let kinds: Vec<&str> = proxy.answers.keys().map(String::as_str).collect();
    assert_eq!(kinds, ["200", "401", "403", "418"]);
    assert_eq!(proxy.wrong, proxy.answers["401"]);
    assert_eq!(proxy.examples[0], "`surprise`: expected allow, got 401");
    assert_eq!(proxy.failures.keys().collect::<Vec<_>>(), ["gateway 502"]);
    assert_eq!(proxy.answered + proxy.failed, 500);
}

/// Our own server, on an estate in `dir`.
fn portcullis(runtime: &Runtime, dir: &Path) -> SocketAddr {
    let clock: SharedClock = Arc::new(SystemClock::new());
    let size = Size { grants: 30, workloads: 10, policies: 5, services: 2 };
    let estate = Estate::new(size, 1, clock.now().wall, Duration::from_secs(3600)).unwrap();
    let options = Options { out: dir.to_owned(), tokens: 10, control_store: false, documents: false };
    runtime.block_on(generate::generate(&estate, &options, |_, _| ())).unwrap();
    let key = VerifyKey::parse(&std::fs::read_to_string(dir.join("verify-key")).unwrap()).unwrap();
    let offline = disk::load_offline(&dir.join("sidecar"), key, None, &clock).unwrap();
    let state = Arc::new(State::new());
    state.restore(offline.snapshot.unwrap(), offline.lease.unwrap());
    let gate = Gate::new(state, Arc::clone(&clock), CacheSizes { tokens: 1000, decisions: 1000 });
    let metrics = Arc::new(SidecarMetrics::new().unwrap());
    let config = RecordsConfig { output: Output::Off, queue: 16 };
    let records = Records::start(config, metrics.records_dropped().clone()).unwrap();
    let telemetry = Telemetry::new(metrics, records, None, clock);
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        let (_drain, signal) = drain::channel();
        let listeners = ext_authz::Listeners { tcp: Some(listener), ..Default::default() };
        let readiness = readiness::Readiness::new();
        ext_authz::serve(listeners, Arc::new(gate), telemetry, readiness, ext_authz::Config::default(), signal).await
    });
    address
}

#[test]
fn our_own_server_answers_a_generated_mix_as_it_says() {
    let server = runtime();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("estate");
    let address = portcullis(&server, &out);
    let scripted = scripted(&server, |_| (Duration::ZERO, Ok(())));
    let shares = Shares { never_seen: Some(0.2), denied: Some(0.3) };
    let mut mix = Mix::load(&out.join("mix.yaml"), shares).unwrap();
    let url = format!("grpc://{address}");
    let mut settings = settings(&[("ours", &url), ("floor", &scripted)], Pace::Rate(300.0));
    settings.connections = 2;
    settings.rounds = 2;
    settings.pids = vec![("ours".to_owned(), std::process::id())];
    let steps = std::cell::RefCell::new(Vec::new());
    let report = run(&mix, &settings, |step| steps.borrow_mut().push((step.round, step.target.to_owned()))).unwrap();
    let order: Vec<(usize, &str)> = [(1, "ours"), (1, "floor"), (2, "floor"), (2, "ours")].to_vec();
    assert_eq!(steps.into_inner().iter().map(|(n, t)| (*n, t.as_str())).collect::<Vec<_>>(), order);

    let (ours, floor) = (&report.targets[0], &report.targets[1]);
    assert_eq!((ours.wrong, ours.failed, ours.answered), (0, 0, 600), "{:?} {:?}", ours.examples, ours.failures);
    let denied: u64 = ours.answers.iter().filter(|(name, _)| name.starts_with("deny")).map(|(_, n)| n).sum();
    assert!((150..=210).contains(&denied), "{denied} of 600");
    assert!(ours.cpu_us.unwrap() > 0.0 && ours.memory.unwrap().resident > 1 << 20);
    assert_eq!(floor.cpu_us, None);
    // The other allows everything: what should be denied there is wrong, and is shown.
    assert_eq!(floor.wrong, denied, "both were sent the same");
    assert!(floor.examples[0].starts_with("`denied-s"), "{:?}", floor.examples);
    assert!(!report.is_right());
    assert_eq!(report.comparisons.len(), 1);
    assert!(report.comparisons[0].ratios.contains_key("p99") && !report.comparisons[0].ratios.contains_key("cpu"));

    mix.expect(Expect::Allow);
    settings.rounds = 1;
    settings.targets.truncate(1);
    let ours = run(&mix, &settings, |_| ()).unwrap().targets.remove(0);
    assert!(ours.wrong > 0 && ours.examples[0].contains("expected allow, got deny 403"), "{:?}", ours.examples);
}

#[test]
fn the_page_loads_nothing_and_says_what_the_text_says() {
    let server = runtime();
    let url = scripted(&server, |_| (Duration::ZERO, Ok(())));
    let mut settings = settings(&[("<script>&", &url), ("b", &url)], Pace::Rate(200.0));
    settings.rounds = 2;
    settings.duration = Duration::from_millis(200);
    let report = run(&one_request("deny"), &settings, |_| ()).unwrap();
    let page = html(&report);
    for part in
        ["<script", " src=", " href=", "<link", "<img", "<iframe", "@import", "url(", "http://", "https://", "//cdn"]
    {
        assert!(!page.contains(part), "`{part}` in the page");
    }
    assert!(page.contains("&lt;script&gt;&amp;"), "names are escaped");
    assert_eq!(page.matches("<svg").count(), 3);
    // Two targets: a line each in every plot, and a dot for each round.
    assert_eq!((page.matches("<polyline").count(), page.matches("<circle").count()), (6, 4));
    assert!(page.contains("expected deny, got allow") && !page.contains("NaN") && !page.contains("inf"), "{page}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["targets"][0]["wrong"], 40 * 2);
    assert!(json["targets"][0]["latency_us"]["p99.9"].as_f64().unwrap() > 0.0);
    assert!(json["comparisons"][0]["ratios"]["p99"]["median"].as_f64().unwrap() > 0.0);
}
