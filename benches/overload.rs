//! `loopback --overload`: what is left of a server's goodput when it is driven at twice its capacity.
//!
//! One mix throughout: warm checks and good tokens that nobody has seen (`--cold PERCENT`). Goodput is right answers a second to
//! checks of that mix; a refusal is none. Capacity is the best goodput of closed loops with 16, 32 and 64 in flight of which it
//! refuses next to nothing, so that it is the capacity for the mix and not for the part of it that is
//! cheap. Then an open loop offers the same mix at twice that; latency counts from the time a check was meant to be sent.
//! In turn: with the limits that follow the delay, and with fixed ones. The server has the first half of the processors, the
//! generator the rest; like Envoy by default, it has at most 1,024 checks under way, and what it holds back for that is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use portcullis::cache::VerificationLimits;
use portcullis::ext_authz;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use super::open_loop::{Answer, Client, Template, Tokens, UnderWay, at_rate, processors, stay_on};
use super::{CONNECTIONS, Server, cpu_seconds};

/// What is asked of a round.
pub(super) struct Plan {
    pub(super) rounds: usize,
    pub(super) seconds: u64,
    /// Of a hundred checks, how many bring a token that nobody has seen.
    pub(super) cold: u64,
}

/// Envoy's default for a cluster (`max_requests`).
const MAX_UNDER_WAY: usize = 1024;
/// How many checks are in flight in the closed loops of which the best tells the capacity.
const IN_FLIGHT: [usize; 3] = [16, 32, 64];
/// Of a thousand checks, how many a server may refuse while its capacity is measured.
const REFUSED_AT_CAPACITY: u64 = 5;

/// The limits of a server of the bench.
pub(super) fn config(kind: &str) -> ext_authz::Config {
    let config = ext_authz::Config::default();
    match kind {
        "portcullis+refusing" => ext_authz::Config { max_concurrent_checks: 0, ..config },
        "portcullis+fixed" => {
            let verification = VerificationLimits { wait: None, ..config.verification };
            ext_authz::Config { adaptive: None, verification, ..config }
        }
        _ => config,
    }
}

/// Compares.
pub(super) fn run(grants: &str, plan: &Plan) {
    let [servers, generators] = processors();
    println!("server on processors {servers}, generator on {generators}; {} of 100 tokens are new", plan.cold);
    stay_on(&generators);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let start = |name| Server::start_on(name, grants, Some(&servers));
    let refusing = start("portcullis+refusing");
    let kinds = ["portcullis", "portcullis+fixed"].map(start);
    for (what, server, cold) in [("refused", &refusing, 0), ("warm", &kinds[0], 0), ("cold", &kinds[0], 100)] {
        let mix = Mix::new(server, cold, 30_000);
        let before = cpu_seconds(server.child.id());
        let (answers, _) = saturate(&runtime, server, mix, Duration::from_secs(2), 16);
        let cpu = (cpu_seconds(server.child.id()) - before) * 1e6 / (answers.allowed + answers.refused) as f64;
        println!("a {what:<7} check costs the server {cpu:6.1} us of CPU");
    }
    drop(refusing);
    let [mut kept, mut p99] = [const { [const { Vec::new() }; 2] }; 2];
    for round in 1..=plan.rounds {
        for (n, server) in kinds.iter().enumerate() {
            let time = Duration::from_secs(2);
            let goodput = IN_FLIGHT.map(|in_flight| {
                let mix = Mix::new(server, plan.cold, 100_000);
                let (answers, took) = saturate(&runtime, server, mix, time, in_flight);
                let asked = answers.allowed + answers.refused;
                let all_admitted = answers.refused * 1000 <= asked * REFUSED_AT_CAPACITY;
                if all_admitted { answers.allowed as f64 / took.as_secs_f64() } else { 0.0 }
            });
            let peak = goodput.into_iter().fold(0.0, f64::max);
            assert!(peak > 0.0, "the server refuses checks although few are in flight");
            let rate = (peak * 2.0) as u64;
            let driven = drive(&runtime, server, plan, rate);
            let goodput = driven.answers.allowed as f64 / plan.seconds as f64;
            let share = goodput / peak;
            let of = |h: &Histogram<u64>, q| h.value_at_quantile(q) as f64 / 1000.0;
            let part = |n: u64| n as f64 * 100.0 / (rate * plan.seconds) as f64;
            println!(
                "round {round}  {:<16} capacity {peak:6.0}/s, offered {rate:6}/s: goodput {goodput:6.0}/s {share:5.2}x, p99 {:6.1} ms",
                server.name,
                of(&driven.all(), 0.99)
            );
            println!(
                "         answered {:.0}/s warm, {:.0}/s cold; refused {:4.1} % ({} warm), held back {:4.1} %; p50/p99 ms warm {:.1}/{:.1} \
                 cold {:.1}/{:.1}; processors busy: server {:.2} generator {:.2}",
                driven.warm.len() as f64 / plan.seconds as f64,
                driven.cold.len() as f64 / plan.seconds as f64,
                part(driven.answers.refused),
                driven.warm_refused,
                part(driven.held_back),
                of(&driven.warm, 0.5),
                of(&driven.warm, 0.99),
                of(&driven.cold, 0.5),
                of(&driven.cold, 0.99),
                driven.busy[0],
                driven.busy[1],
            );
            kept[n].push(share);
            p99[n].push(of(&driven.all(), 0.99));
        }
    }
    for (n, server) in kinds.iter().enumerate() {
        let [kept, p99] = [&mut kept[n], &mut p99[n]].map(|list| {
            list.sort_by(f64::total_cmp);
            list[list.len() / 2]
        });
        println!("median    {:<16} keeps {kept:5.2}x of its capacity, p99 {p99:6.1} ms", server.name);
    }
}

/// Messages, in the order in which they are sent.
struct Mix {
    warm: Bytes,
    cold: std::vec::IntoIter<Bytes>,
    percent: u64,
    sent: u64,
}

#[derive(Default)]
struct Answers {
    allowed: u64,
    refused: u64,
}

struct Driven {
    answers: Answers,
    held_back: u64,
    warm_refused: u64,
    warm: Histogram<u64>,
    cold: Histogram<u64>,
    /// Processors that the server and the generator kept busy.
    busy: [f64; 2],
}

// === impl Mix ===

impl Mix {
    /// For at most so many checks.
    fn new(server: &Server, percent: u64, count: u64) -> Self {
        let tokens = Tokens::like(&server.token, &server.key);
        let template = Template::of(&tokens.fresh());
        let cold: Vec<Bytes> = (0..count * percent / 100 + 1).map(|_| template.with(&tokens.fresh())).collect();
        Self { warm: template.with(&tokens.fresh()), cold: cold.into_iter(), percent, sent: 0 }
    }

    /// The next, and whether its token is new. `None` when there is no new one left.
    fn next(&mut self) -> Option<(Bytes, bool)> {
        let before = self.sent * self.percent / 100;
        self.sent += 1;
        if self.sent * self.percent / 100 > before {
            return Some((self.cold.next()?, true));
        }
        Some((self.warm.clone(), false))
    }
}

// === impl Driven ===

impl Driven {
    fn all(&self) -> Histogram<u64> {
        let mut all = self.warm.clone();
        all.add(&self.cold).expect("histograms of one kind");
        all
    }
}

async fn clients(server: &Server, warm: &Bytes) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = Client::connect(&server.address).await;
        // Known from here on.
        client.check(warm.clone()).await;
        clients.push(client);
    }
    clients
}

/// A closed loop, until the time is over or no new token is left.
fn saturate(runtime: &Runtime, server: &Server, mix: Mix, time: Duration, in_flight: usize) -> (Answers, Duration) {
    let clients = runtime.block_on(clients(server, &mix.warm));
    let mix = Arc::new(std::sync::Mutex::new(mix));
    let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let over = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..in_flight)
            .map(|n: usize| {
                let (mut client, mix) = (clients[n % CONNECTIONS].clone(), Arc::clone(&mix));
                let (counts, over) = (Arc::clone(&counts), Arc::clone(&over));
                tokio::spawn(async move {
                    while !over.load(Ordering::Relaxed) {
                        let Some((message, _)) = mix.lock().expect("a mix").next() else { break };
                        let counted = usize::from(client.check(message).await == Answer::Allowed);
                        counts[counted].fetch_add(1, Ordering::Relaxed);
                        if start.elapsed() >= time {
                            over.store(true, Ordering::Relaxed);
                        }
                    }
                    over.store(true, Ordering::Relaxed);
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a load task");
        }
    });
    let took = start.elapsed();
    let [refused, allowed] = [0, 1].map(|n: usize| counts[n].load(Ordering::Relaxed));
    (Answers { allowed, refused }, took)
}

/// An open loop at this rate. The first second does not count: it is there before the limits have followed.
fn drive(runtime: &Runtime, server: &Server, plan: &Plan, rate: u64) -> Driven {
    let seconds = plan.seconds + 1;
    let mut mix = Mix::new(server, plan.cold, rate * seconds);
    let clients = runtime.block_on(clients(server, &mix.warm));
    let under_way = Arc::new(AtomicUsize::new(0));
    let histogram = || Arc::new(Mutex::new(Histogram::<u64>::new(3).expect("a histogram")));
    let latencies = [histogram(), histogram()];
    let refused = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let mut held_back = 0;
    let processes = [server.child.id(), std::process::id()];
    let before = processes.map(cpu_seconds);
    let start = Instant::now();
    at_rate(runtime, rate, rate * seconds, |n, due| {
        let (message, is_cold) = mix.next()?;
        let counts = n >= rate;
        let Some(begun) = UnderWay::begin(&under_way, MAX_UNDER_WAY) else {
            held_back += u64::from(counts);
            return None;
        };
        let mut client = clients[usize::try_from(n).expect("a number") % CONNECTIONS].clone();
        let (latencies, refused) = (Arc::clone(&latencies[usize::from(is_cold)]), Arc::clone(&refused));
        Some(async move {
            let answer = client.check(message).await;
            drop(begun);
            let took = u64::try_from(due.elapsed().as_micros()).expect("a short time");
            match answer {
                _ if !counts => {}
                Answer::Allowed => latencies.lock().await.record(took.max(1)).expect("a latency"),
                Answer::Refused => _ = refused[usize::from(is_cold)].fetch_add(1, Ordering::Relaxed),
                Answer::Denied => panic!("a good check was denied"),
            }
        })
    });
    let took = start.elapsed().as_secs_f64();
    let busy = [0, 1].map(|n: usize| (cpu_seconds(processes[n]) - before[n]) / took);
    let [warm, cold] = latencies.map(|h| h.try_lock().expect("every check has ended").clone());
    let [warm_refused, cold_refused] = [0, 1].map(|n: usize| refused[n].load(Ordering::Relaxed));
    let answers = Answers { allowed: warm.len() + cold.len(), refused: warm_refused + cold_refused };
    Driven { answers, held_back, warm_refused, warm, cold, busy }
}
