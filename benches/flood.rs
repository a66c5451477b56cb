//! `loopback --flood`: the latency of warm checks at a fixed rate, with and without a flood of credentials that are bad.
//!
//! Warm checks are sent at their times whatever becomes of the ones before, and latency counts from the intended time,
//! so that a stall is not left out. The flood comes from a process of its own, on connections of its own, at a fixed
//! rate: half are tokens with a well-formed signature that does not verify, no two alike; a quarter name a key that does
//! not exist; a quarter are garbage. Rounds with and without it alternate; the median of their ratios counts.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use hdrhistogram::Histogram;
use tokio::sync::Mutex;
use tonic::transport::Channel;

use super::{Server, check_request};

/// What is asked of a round.
pub(super) struct Plan {
    pub(super) rounds: usize,
    pub(super) seconds: u64,
    /// Warm checks a second.
    pub(super) rate: u64,
    /// Bad checks a second.
    pub(super) flood: u64,
}

/// Compares.
pub(super) fn run(server: &Server, plan: &Plan) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let time = Duration::from_secs(plan.seconds);
    println!("{} rounds of {} s; {} warm and {} bad checks a second", plan.rounds, plan.seconds, plan.rate, plan.flood);
    runtime.block_on(warm(server, plan.rate, Duration::from_secs(1))); // warm-up
    let mut ratios = Vec::new();
    for round in 1..=plan.rounds {
        let without = runtime.block_on(warm(server, plan.rate, time));
        let exe = std::env::current_exe().expect("our own path");
        let mut attacker = Command::new(exe)
            .args(["--attack", &server.address, "--token", &server.token, "--rate", &plan.flood.to_string()])
            .args(["--seconds", &(plan.seconds + 2).to_string()])
            .spawn()
            .expect("an attacker");
        // The flood is up before the round begins, and lasts longer.
        std::thread::sleep(Duration::from_secs(1));
        let with = runtime.block_on(warm(server, plan.rate, time));
        assert!(attacker.wait().expect("an attacker").success());
        let p99 = |h: &Histogram<u64>| h.value_at_quantile(0.99);
        let ratio = p99(&with) as f64 / p99(&without) as f64;
        for (name, h) in [("without", &without), ("with", &with)] {
            let [p50, p99] = [0.5, 0.99].map(|q| h.value_at_quantile(q));
            println!("round {round}  {name:<8} p50 {p50:6} us  p99 {p99:6} us  max {:6} us", h.max());
        }
        println!("round {round}  p99 ratio {ratio:5.2}x");
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median    {:5.2}x of without a flood", ratios[ratios.len() / 2]);
}

async fn connect(address: &str) -> AuthorizationClient<Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an address");
    AuthorizationClient::new(endpoint.connect().await.expect("a connection"))
}

/// Calls `send` at a fixed rate, with its number and the time that was meant for it.
async fn at_rate<F: Future<Output = ()> + Send + 'static>(
    rate: u64,
    time: Duration,
    mut send: impl FnMut(u64, Instant) -> F,
) {
    let start = Instant::now();
    let mut tasks = Vec::new();
    for n in 0..rate * time.as_secs() {
        let due = start + Duration::from_nanos(n * 1_000_000_000 / rate);
        tokio::time::sleep_until(due.into()).await;
        tasks.push(tokio::spawn(send(n, due)));
    }
    for task in tasks {
        task.await.expect("a check");
    }
}

/// Latencies in microseconds.
async fn warm(server: &Server, rate: u64, time: Duration) -> Histogram<u64> {
    let client = connect(&server.address).await;
    let request = Arc::new(check_request(&server.token, 0));
    let latencies = Arc::new(Mutex::new(Histogram::new(3).expect("a histogram")));
    at_rate(rate, time, |_, due| {
        let (mut client, request, latencies) = (client.clone(), Arc::clone(&request), Arc::clone(&latencies));
        async move {
            let response = client.check(CheckRequest::clone(&request)).await.expect("an answer").into_inner();
            let took = u64::try_from(due.elapsed().as_micros()).expect("a short time");
            assert_eq!(response.status.expect("a status").code, 0, "a warm check must be an allow");
            latencies.lock().await.record(took.max(1)).expect("a latency");
        }
    })
    .await;
    Arc::into_inner(latencies).expect("every check has ended").into_inner()
}

/// The flood, as a process of its own.
pub(super) fn attack(address: &str, token: &str, rate: u64, seconds: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (signed, _) = token.rsplit_once('.').expect("a token");
    let (_, claims) = signed.split_once('.').expect("a token");
    let (signed, claims) = (signed.to_owned(), claims.to_owned());
    let allowed = Arc::new(AtomicU64::new(0));
    runtime.block_on(async {
        let clients = [connect(address).await, connect(address).await];
        at_rate(rate, Duration::from_secs(seconds), |n, _| {
            let random: [u8; 32] = rand::random();
            let bad = match n % 4 {
                // Two scalars below the order of the curve, so that the whole verification is done.
                0 | 1 => {
                    format!("{signed}.{}", URL_SAFE_NO_PAD.encode([&[1], &random[1..], &[1], &random[1..]].concat()))
                }
                2 => {
                    let header = format!(r#"{{"alg":"ES256","kid":"key-{n}","typ":"JWT"}}"#);
                    format!(
                        "{}.{claims}.{}",
                        URL_SAFE_NO_PAD.encode(header),
                        URL_SAFE_NO_PAD.encode([random; 2].concat())
                    )
                }
                _ => URL_SAFE_NO_PAD.encode(random),
            };
            let mut client = clients[usize::try_from(n % 2).expect("0 or 1")].clone();
            let (request, allowed) = (check_request(&bad, 0), Arc::clone(&allowed));
            async move {
                let answer = client.check(request).await.expect("an answer").into_inner();
                allowed.fetch_add(u64::from(answer.status.expect("a status").code == 0), Ordering::Relaxed);
            }
        })
        .await;
    });
    assert_eq!(allowed.load(Ordering::Relaxed), 0, "a bad token was allowed");
}
