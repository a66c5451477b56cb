//! `loopback --flood`: the latency of warm checks at a fixed rate, with and without a flood of credentials that are bad.
//!
//! The flood comes from a process of its own, on connections of its own, at a fixed rate: half are tokens with a
//! well-formed signature that does not verify, no two alike; a quarter name a key that does not exist; a quarter are
//! garbage. A round has three arms: `quiet`; `sink`, the same flood sent to `static-allow`, which shows what client and
//! attacker take from each other; `flood`. Servers keep to one half of the processors, generators to the other. Beside the
//! warm checks, 50 a second bring a good token that nobody has seen: how many of them are answered is the goodput.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hdrhistogram::Histogram;
use prost::Message;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use super::open_loop::{Answer, Client, Template, Tokens, at_rate, frame, processors, stay_on};
use super::{Server, check_request};

/// What is asked of a round.
pub(super) struct Plan {
    pub(super) rounds: usize,
    pub(super) seconds: u64,
    /// Warm checks a second.
    pub(super) rate: u64,
    /// Bad checks a second.
    pub(super) flood: u64,
    /// Whether everybody runs where the kernel likes.
    pub(super) unpinned: bool,
}

/// Good tokens a second that nobody has seen.
const FRESH: u64 = 50;

/// What one arm has shown.
struct Arm {
    warm: Histogram<u64>,
    fresh: Histogram<u64>,
    /// Of the fresh ones.
    refused: u64,
}

/// Compares.
pub(super) fn run(grants: &str, plan: &Plan) {
    let pins = (!plan.unpinned).then(processors);
    if let Some([servers, generators]) = &pins {
        println!("servers on processors {servers}; client and attacker on {generators}");
        stay_on(generators);
    }
    let on = pins.as_ref().map(|[servers, _]| &**servers);
    let [server, sink] = ["portcullis", "static-allow"].map(|name| Server::start_on(name, grants, on));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    println!("{} rounds of {} s; {} warm and {} bad checks a second", plan.rounds, plan.seconds, plan.rate, plan.flood);
    let tokens = Tokens::like(&server.token, &server.key);
    measure(&runtime, &server, &tokens, plan.rate, 1); // warm-up
    let (mut ratios, mut to_sink) = (Vec::new(), Vec::new());
    let (mut answered, mut fresh) = (0, 0);
    for round in 1..=plan.rounds {
        let mut p99 = [0.0; 3];
        for (n, (name, target)) in
            [("quiet", None), ("sink", Some(&sink)), ("flood", Some(&server))].into_iter().enumerate()
        {
            let attacker = target.map(|target| {
                let exe = std::env::current_exe().expect("our own path");
                let attacker = Command::new(exe)
                    .args(["--attack", &target.address, "--token", &server.token, "--rate", &plan.flood.to_string()])
                    .args(["--seconds", &(plan.seconds + 3).to_string()])
                    .args((name == "sink").then_some("--sink"))
                    .spawn()
                    .expect("an attacker");
                // The flood is up before the arm begins, and lasts longer.
                std::thread::sleep(Duration::from_millis(1500));
                attacker
            });
            let cpu = super::cpu_seconds(server.child.id());
            let arm = measure(&runtime, &server, &tokens, plan.rate, plan.seconds);
            let cpu = (super::cpu_seconds(server.child.id()) - cpu) / plan.seconds as f64;
            if let Some(mut attacker) = attacker {
                assert!(attacker.wait().expect("an attacker").success());
            }
            let [p50, p99_of_arm] = [0.5, 0.99].map(|q| arm.warm.value_at_quantile(q));
            println!(
                "round {round}  {name:<6} warm p50 {p50:6} us  p99 {p99_of_arm:6} us  max {:6} us   fresh p99 {:6} us  \
                 refused {:3}   server {:4.1} % CPU",
                arm.warm.max(),
                arm.fresh.value_at_quantile(0.99),
                arm.refused,
                cpu * 100.0
            );
            p99[n] = p99_of_arm as f64;
            if name == "flood" {
                answered += arm.fresh.len();
                fresh += arm.fresh.len() + arm.refused;
            }
        }
        println!("round {round}  p99 {:5.2}x of quiet, sink {:5.2}x", p99[2] / p99[0], p99[1] / p99[0]);
        ratios.push(p99[2] / p99[0]);
        to_sink.push(p99[1] / p99[0]);
    }
    let median = |list: &mut Vec<f64>| {
        list.sort_by(f64::total_cmp);
        list[list.len() / 2]
    };
    println!("median    warm p99 under the flood {:5.2}x of without", median(&mut ratios));
    println!("median    warm p99 with the flood sent elsewhere {:5.2}x of without", median(&mut to_sink));
    println!("goodput   {answered} of {fresh} good tokens that nobody had seen were answered under the flood");
}

fn measure(runtime: &Runtime, server: &Server, tokens: &Tokens, rate: u64, seconds: u64) -> Arm {
    let template = Template::of(&tokens.fresh());
    let warm = template.with(&tokens.fresh());
    let unseen: Vec<Bytes> = (0..FRESH * seconds).map(|_| template.with(&tokens.fresh())).collect();
    let client = runtime.block_on(async {
        let mut client = Client::connect(&server.address).await;
        assert_eq!(client.check(warm.clone()).await, Answer::Allowed);
        client
    });
    let histogram = || Arc::new(Mutex::new(Histogram::new(3).expect("a histogram")));
    let (latencies, of_fresh, refused) = (histogram(), histogram(), Arc::new(AtomicU64::new(0)));
    let mut unseen = unseen.into_iter();
    let every = rate.div_ceil(FRESH);
    at_rate(runtime, rate, rate * seconds, |n, due| {
        let fresh = (n % every == 0).then(|| unseen.next()).flatten();
        let latencies = Arc::clone(if fresh.is_some() { &of_fresh } else { &latencies });
        let (mut client, is_warm, refused) = (client.clone(), fresh.is_none(), Arc::clone(&refused));
        let message = fresh.unwrap_or_else(|| warm.clone());
        Some(async move {
            let answer = client.check(message).await;
            let took = u64::try_from(due.elapsed().as_micros()).expect("a short time");
            match answer {
                Answer::Allowed => latencies.lock().await.record(took.max(1)).expect("a latency"),
                Answer::Refused if !is_warm => _ = refused.fetch_add(1, Ordering::Relaxed),
                _ => panic!("a good check was denied: {answer:?}"),
            }
        })
    });
    let take = |h: Arc<Mutex<Histogram<u64>>>| h.try_lock().expect("every check has ended").clone();
    Arm { warm: take(latencies), fresh: take(of_fresh), refused: refused.load(Ordering::Relaxed) }
}

/// The flood, as a process of its own.
pub(super) fn attack(address: &str, token: &str, rate: u64, seconds: u64, is_sink: bool) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let (signed, _) = token.rsplit_once('.').expect("a token");
    let (_, claims) = signed.split_once('.').expect("a token");
    let template = Template::of(token);
    let bad = |n: u64| {
        let random: [u8; 32] = rand::random();
        let signature = URL_SAFE_NO_PAD.encode([&[1], &random[1..], &[1], &random[1..]].concat());
        match n % 4 {
            // Two scalars below the order of the curve, so that the whole verification is done.
            0 | 1 => template.with(&format!("{signed}.{signature}")),
            2 => {
                let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"ES256","kid":"key-{n}","typ":"JWT"}}"#));
                frame(&check_request(&format!("{header}.{claims}.{signature}"), 0).encode_to_vec())
            }
            _ => frame(&check_request(&URL_SAFE_NO_PAD.encode(random), 0).encode_to_vec()),
        }
    };
    let messages: Vec<Bytes> = (0..rate * seconds).map(bad).collect();
    let mut messages = messages.into_iter();
    let allowed = Arc::new(AtomicU64::new(0));
    let clients = runtime.block_on(async { [Client::connect(address).await, Client::connect(address).await] });
    at_rate(&runtime, rate, rate * seconds, |n, _| {
        let mut client = clients[usize::try_from(n % 2).expect("0 or 1")].clone();
        let message = messages.next().expect("a message for each");
        let allowed = Arc::clone(&allowed);
        Some(async move {
            let is_allowed = client.check(message).await == Answer::Allowed;
            allowed.fetch_add(u64::from(is_allowed), Ordering::Relaxed);
        })
    });
    assert!(is_sink || allowed.load(Ordering::Relaxed) == 0, "a bad token was allowed");
}
