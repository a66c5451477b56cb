//! What is counted: each scenario sets up, warms up and then runs its work inside [`measured_by_the_gate`], the one
//! function that callgrind collects in. Instructions of other threads and of the set-up do not count.
//!
//! Deterministic but for hash seeds and the clock, whose share is far below the bound. Every answer is looked at.

use std::hint::black_box;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use portcullis::authz::{self, Builder, Change, Inputs, Prepared};
use portcullis::clock::Clock;
use portcullis::object::Kind;
use portcullis::telemetry::Output;
use portcullis::testing::{Estate, Size, WarmDoor, request};
use prost::Message;
use tokio::runtime::Runtime;

use super::floor::{StaticAllow, check_request};
use super::no_crypto::NoCrypto;
use super::wire::{Client, Seen};

/// One thing to count.
pub(crate) struct Scenario {
    /// Its name in the baseline.
    pub(crate) name: &'static str,
    /// What the function is called, in its mangled name, within which instructions count.
    pub(crate) within: &'static str,
    run: fn() -> Work,
}

/// How often a scenario's work was done, and what else it saw.
pub(crate) struct Work {
    pub(crate) times: usize,
    pub(crate) seen: Option<Seen>,
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "warm check by policy", within: HERE, run: || warm(false, Output::Off) },
    Scenario { name: "warm check by grant", within: HERE, run: || warm(true, Output::Off) },
    Scenario { name: "warm check by policy, recorded", within: HERE, run: || warm(false, records()) },
    Scenario { name: "one decision record, on the writer's thread", within: "write_decision_records", run: writer },
    Scenario { name: "cold check without crypto by policy", within: HERE, run: || cold(false) },
    Scenario { name: "cold check without crypto by grant", within: HERE, run: || cold(true) },
    Scenario { name: "compile 10,000 grants and 100 policies", within: HERE, run: compile },
    Scenario { name: "apply one grant to 100,000", within: HERE, run: apply },
    Scenario { name: "server, 1 in flight: static-allow", within: HERE, run: || floor(1) },
    Scenario { name: "server, 1 in flight: portcullis", within: HERE, run: || server(1, Output::Off) },
    Scenario { name: "server, 16 in flight: static-allow", within: HERE, run: || floor(16) },
    Scenario { name: "server, 16 in flight: portcullis", within: HERE, run: || server(16, Output::Off) },
    Scenario { name: "server, 16 in flight: portcullis, recorded", within: HERE, run: || server(16, records()) },
];

const HERE: &str = "measured_by_the_gate";

/// The name is what callgrind looks for: whatever mangling makes of it, it is in there.
#[inline(never)]
fn measured_by_the_gate(work: &mut dyn FnMut()) {
    work();
    // Not a tail call, which would leave before the work is done.
    black_box(());
}

/// Runs the scenario of this name.
pub(crate) fn run(name: &str) -> Work {
    let scenario = SCENARIOS.iter().find(|s| s.name == name).expect("a scenario of this name");
    (scenario.run)()
}

fn measure(times: usize, mut work: impl FnMut()) -> Work {
    measured_by_the_gate(&mut || (0..times).for_each(|_| work()));
    Work { times, seen: None }
}

// === the core ===

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Into a file that is written by another thread, which does not count.
fn records() -> Output {
    let path = std::env::temp_dir().join(format!("portcullis-gate-{}.jsonl", std::process::id()));
    Output::File { path, max_bytes: 1 << 30, keep: 1 }
}

fn message(token: &str, n: usize, by_grant: bool) -> Vec<u8> {
    let mut check = check_request(token, n);
    if by_grant {
        let http = check.attributes.as_mut().and_then(|a| a.request.as_mut()).and_then(|r| r.http.as_mut());
        let http = http.expect("an HTTP request");
        (http.method, http.path) = ("POST".to_owned(), "/refunds/7".to_owned());
    }
    CheckRequest::encode_to_vec(&check)
}

fn assert_allows(answer: &[u8]) {
    let answer = CheckResponse::decode(answer).expect("a CheckResponse");
    assert_eq!(answer.status.map(|status| status.code), Some(0), "the answer must be an allow");
}

/// What the thread that writes decision records does for one.
fn writer() -> Work {
    let output = records();
    let Output::File { path, .. } = output.clone() else { panic!("records go to a file") };
    let runtime = runtime();
    let WarmDoor { door, token } = runtime.block_on(WarmDoor::new(output));
    let message = message(&token, 0, false);
    (0..2_000).for_each(|_| drop(black_box(door.answer(&message).expect("a known token"))));
    // Writes what is queued.
    drop(door);
    drop(runtime);
    let written = std::fs::read_to_string(path).expect("records").lines().count();
    assert!(written >= 2_000, "{written} records");
    Work { times: written, seen: None }
}

/// From a message to its answer, both caches warm.
fn warm(by_grant: bool, output: Output) -> Work {
    let WarmDoor { door, token } = runtime().block_on(WarmDoor::new(output));
    let message = message(&token, 0, by_grant);
    let answer = || door.answer(black_box(&message)).expect("a known token");
    assert_allows(&answer()[5..]);
    (0..1_000).for_each(|_| drop(black_box(answer())));
    measure(2_000, || drop(black_box(answer())))
}

/// From a request to its decision, the token known and nothing else.
fn cold(by_grant: bool) -> Work {
    let estate = Estate::sized(Size { grants: 1_000, policies: 100, workloads: 1_000 });
    let snapshot = estate.snapshot();
    let headers = [("authorization", format!("Bearer {}", estate.token("storefront")))];
    let (method, path) = if by_grant { ("POST", "/refunds/7") } else { ("GET", "/catalog/1") };
    let request = request(method, path, &headers);
    let (memo, settings) = (NoCrypto::default(), authz::Settings::default());
    let decide = || {
        let (now, lease) = (estate.clock.now(), Some(estate.lease()));
        let inputs = Inputs { snapshot: Some(&snapshot), lease, now, proofs: None, settings: &settings, uses: None };
        authz::decide(black_box(&request), inputs, &memo)
    };
    (0..50).for_each(|_| assert!(decide().permit().is_some()));
    measure(200, || drop(black_box(decide())))
}

/// A full snapshot, from what is sent of it.
fn compile() -> Work {
    let estate = Estate::sized(Size { grants: 10_000, policies: 100, workloads: 1_000 });
    let (grants, others): (Vec<_>, Vec<_>) = estate.changes().into_iter().partition(|c| c.kind == Kind::Grant);
    let mut batch = Vec::new();
    for form in grants.iter().filter_map(Change::sent) {
        batch.extend(u32::try_from(form.len()).expect("a short form").to_be_bytes());
        batch.extend(form);
    }
    let mut others = Some(others);
    measure(1, || {
        let mut builder = Builder::empty();
        others.take().into_iter().flatten().for_each(|change| builder.apply(change));
        assert_eq!(builder.take_in_grants(black_box(&batch)), Ok(10_000));
        let (snapshot, bad) = builder.finish(estate.position());
        assert!(bad.is_empty() && snapshot.denies_everything().is_none());
        black_box(snapshot);
    })
}

/// One more grant on top of a snapshot.
fn apply() -> Work {
    let mut estate = Estate::sized(Size { grants: 100_000, policies: 100, workloads: 10_000 });
    let snapshot = estate.snapshot();
    let mut changes: Vec<_> = (0..50)
        .map(|_| estate.grant("agent", "payments/refunds", &["write"], None, 60).1)
        .map(|change| (change.sent(), change.key))
        .collect();
    measure(changes.len(), || {
        let mut builder = Builder::on(&snapshot);
        let (form, key) = changes.pop().expect("a change for each time");
        builder.take_in(Prepared::sent(Kind::Grant, key, form));
        let (next, bad) = builder.finish(estate.position());
        assert!(bad.is_empty());
        black_box(next);
    })
}

// === the servers ===

const CHECKS: usize = 2_000;

fn messages(token: &str) -> Vec<Vec<u8>> {
    (0..16).map(|n| message(token, n, false)).collect()
}

/// What [`CHECKS`] checks cost a server on one connection, once it has answered some.
fn on_one_connection(runtime: &Runtime, client: &Client, serving: tokio::task::JoinHandle<()>) -> Work {
    runtime.block_on(client.run(500));
    assert_allows(&client.last_answer());
    let mut seen = None;
    measured_by_the_gate(&mut || seen = Some(runtime.block_on(client.run(CHECKS))));
    assert_allows(&client.last_answer());
    client.close();
    runtime.block_on(serving).expect("a server that ends with its connection");
    Work { times: CHECKS, seen }
}

fn server(in_flight: usize, output: Output) -> Work {
    let runtime = runtime();
    let WarmDoor { door, token } = runtime.block_on(WarmDoor::new(output));
    let (client, wire) = Client::new(&messages(&token), in_flight);
    let serving = runtime.spawn(async move { door.serve(wire).await });
    on_one_connection(&runtime, &client, serving)
}

/// The same from `static-allow`, as `loopback` starts it.
fn floor(in_flight: usize) -> Work {
    let runtime = runtime();
    // As long as a real one; nobody verifies it.
    let (client, wire) = Client::new(&messages(&Estate::new().token("storefront")), in_flight);
    let serving = runtime.spawn(async move {
        let incoming = tokio_stream::once(std::io::Result::Ok(wire));
        let service = AuthorizationServer::new(StaticAllow);
        let mut server = tonic::transport::Server::builder();
        server.add_service(service).serve_with_incoming(incoming).await.expect("serving");
    });
    on_one_connection(&runtime, &client, serving)
}
