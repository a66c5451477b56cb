//! The credential corpus, `tests/credentials/*.yaml`: every case through the verifier alone, the engine, the caches, Envoy's
//! door over a real socket, the admin server's check, and `portcullis token verify --batch`, one process for all of it. All
//! must give the same reason.
//!
//! A case says what the token is like (`corpus`), `forge` makes it; nothing here decides what the answer should be.

mod corpus;
mod forge;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use portcullis::authz::{Builder, Change, Reason, Snapshot};
use portcullis::cache::{CacheSizes, Gate};
use portcullis::clock::{Clock as _, ManualClock, Timestamp};
use portcullis::credential::{self, CredentialReason, IssuerSet};
use portcullis::object::{Issuer, Kind, Object, PolicySet};
use portcullis::state::State;
use portcullis::testing::{Estate, request};
use portcullis::wire::Position;
use serde_json::{Value, json};

use self::corpus::File;
pub(crate) use self::corpus::{Case, Corpus, NOW};
use crate::check_door::CheckDoor;
use crate::decisions::{ask, grpc, metadata};

/// The issuer kinds and codes that have to occur.
const KINDS: [&str; 5] = ["github", "kubernetes", "oidc", "portcullis", "spiffe"];
const PATH: &str = "/catalog/1";

/// Everything that a case's token was judged by, to put to the command line.
struct Line {
    name: String,
    text: String,
    expected: Option<String>,
}

/// A state with these issuers and the corpus' workloads, in which whoever is somebody may do everything.
fn snapshot(corpus: &Corpus, issuers: &[Issuer]) -> (Snapshot, BTreeSet<String>) {
    let service = json!({"name": "catalog", "routes": [{"name": "items", "path": "/catalog/{*}"}]});
    let policies =
        PolicySet::new("@id(\"all\") permit (principal, action, resource);".to_owned(), "t".to_owned(), vec![]);
    let mut builder = Builder::empty();
    let objects = issuers.iter().cloned().map(|i| Object::Issuer(Box::new(i)));
    let objects = objects.chain(corpus.workloads.iter().cloned().map(Object::Workload));
    let objects = objects.chain([Object::Grant(Box::new(corpus.grant.clone()))]);
    for object in objects
        .chain([Object::parse(Kind::Service, service.to_string().as_bytes()).unwrap(), Object::PolicySet(policies)])
    {
        builder.apply(Change { kind: object.kind(), key: object.key(), body: Some(Bytes::from(object.to_json())) });
    }
    let (snapshot, bad) = builder.finish(Estate::new().position());
    (snapshot, bad.into_iter().map(|b| b.key).collect())
}

/// A gate over that state, at a time.
pub(crate) fn gate(corpus: &Corpus, issuers: &[Issuer], now: Timestamp) -> (Arc<Gate>, BTreeSet<String>) {
    let (snapshot, bad) = snapshot(corpus, issuers);
    assert_ne!(snapshot.position(), Position::NONE);
    let clock = Arc::new(ManualClock::new(now));
    let lease = portcullis::authz::Lease {
        server_time: now,
        received: clock.now().mono,
        lease: Duration::from_secs(10),
        max_staleness: Duration::from_secs(300),
    };
    let state = Arc::new(State::new());
    state.restore(Arc::new(snapshot), lease);
    (Arc::new(Gate::new(state, clock, CacheSizes { tokens: 1000, decisions: 1000 })), bad)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_credential_gets_its_reason_everywhere() {
    let corpus = Corpus::load();
    let (mut names, mut reasons, mut kinds) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let (mut lines, mut wrong) = (Vec::new(), Vec::new());
    for file in &corpus.files {
        let mut hit = BTreeSet::new();
        let mut by_time: BTreeMap<Timestamp, Vec<&Case>> = BTreeMap::new();
        for case in &file.cases {
            by_time.entry(case.now()).or_default().push(case);
        }
        let issuers = corpus.issuers(file);
        let (set, _) = IssuerSet::compile(&issuers);
        for (now, cases) in by_time {
            let (gate, bad) = gate(&corpus, &issuers, now);
            assert_eq!(bad, file.bad_issuers, "{}: issuers whose keys do not compile", file.name);
            let (mut client, drain) = grpc(&gate).await;
            let check_door = CheckDoor::of(&gate);
            for case in cases {
                let name = format!("{}: {}", file.name, case.name);
                assert!(names.insert(name.clone()), "{name} occurs twice");
                hit.insert(case.reason);
                let token = corpus.token(&file.template, case);

                // Every disagreement is told, so that a change of a rule shows all that it changes.
                let mut differs = |at: &str, found: &str, expected: &str| {
                    if found != expected {
                        wrong.push(format!("{name}: {at}: {found}, expected {expected}: {token}"));
                    }
                };
                let alone = credential::verify(&token, &set, now);
                if let Ok(verified) = &alone {
                    kinds.insert(verified.kind.name());
                }
                let alone = alone.err().map_or("ok", |rejection| rejection.reason.code());
                differs("the verifier alone", alone, case.alone());

                let expected = case.reason.code();
                let mut sent = vec![("authorization".to_owned(), format!("Bearer {token}"))];
                sent.extend(case.headers.iter().cloned());
                let borrowed: Vec<(&str, String)> = sent.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
                let request = request("GET", PATH, &borrowed);
                differs("the engine", gate.explain(&request).0.reason.code(), expected);
                differs("the caches, filled", gate.check(&request).reason.code(), expected);
                let again = gate.check(&request);
                differs("the caches, asked", again.reason.code(), expected);
                assert!(again.cached || !case.reason.is_allow(), "{name}: the second answer is not from the cache");
                let response = client.check(ask("GET", PATH, "shop.example", &sent)).await;
                let response = response.unwrap_or_else(|e| panic!("{name}: {e}")).into_inner();
                differs("Envoy's door", metadata(&response, "reason").as_deref().unwrap_or("nothing"), expected);
                let code = response.status.unwrap().code;
                differs(
                    "Envoy's status",
                    if code == 0 { "0" } else { "1" },
                    if case.reason.is_allow() { "0" } else { "1" },
                );
                let answer = check_door.check(&request).await;
                differs("the check", &answer.reason, expected);
                assert_eq!(answer.allowed, case.reason.is_allow(), "{name}");
                lines.push(line(file, case, &name, &token, &issuers));
            }
            drop(client);
            drain.begin(Duration::from_secs(1));
        }
        assert!(hit.len() > 1, "{}: all cases have one reason, which a blind verifier could give", file.name);
        reasons.extend(hit.into_iter().map(|r| r.code()));
    }
    assert!(wrong.is_empty(), "{} answers differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(names.len() >= 300, "only {} cases", names.len());
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), KINDS, "every kind of issuer verifies something");
    for code in CredentialReason::ALL {
        assert!(reasons.contains(code.code()), "no case is refused for `{code}`");
    }
    the_command_line_agrees(&corpus, &lines);
}

fn line(file: &File, case: &Case, name: &str, token: &str, issuers: &[Issuer]) -> Line {
    let mut line = json!({"id": name, "token": token, "now": case.now().as_secs()});
    if !file.issuers.is_empty() {
        line["issuer"] = json!(issuers);
    }
    // What only a request can tell, the command line does not.
    let of_request =
        matches!(case.reason.family(), "input" | "entitlement") || case.reason == Reason::CredentialAudience;
    let reason = if of_request { case.alone() } else { case.reason.code() };
    let expected = (reason != "ok" && !case.reason.is_allow()).then(|| reason.to_owned());
    Line { name: name.to_owned(), text: line.to_string(), expected }
}

/// `token verify --batch`: the same verdicts in the same order, claims only of what verified.
fn the_command_line_agrees(corpus: &Corpus, lines: &[Line]) {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, documents: Vec<Value>| {
        let text: Vec<String> = documents.iter().map(ToString::to_string).collect();
        let path = dir.path().join(name);
        std::fs::write(&path, text.join("\n---\n")).unwrap();
        path
    };
    let issuers = write("issuers.yaml", corpus.common.iter().map(|i| json!({ "issuer": i })).collect());
    let workloads = write("workloads.yaml", corpus.workloads.iter().map(|w| json!(w)).collect());
    let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["token", "verify", "--batch", "-", "--issuer"])
        .arg(issuers)
        .arg("--workloads")
        .arg(workloads)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let text: String = lines.iter().map(|l| format!("{}\n", l.text)).collect();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(output.status.code(), Some(1), "some are refused, and every line was judged");
    let verdicts: Vec<Value> = output
        .stdout
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    assert_eq!(verdicts.len(), lines.len());
    for (line, verdict) in lines.iter().zip(&verdicts) {
        let name = &line.name;
        assert_eq!(verdict["id"], json!(name), "in order");
        assert_eq!(verdict["reason"], json!(line.expected), "{name}: {verdict}");
        assert_eq!(verdict["valid"], json!(line.expected.is_none()), "{name}");
        let verified =
            line.expected.as_deref().is_none_or(|r| r == "credential.subject" || r == "credential.pop_missing");
        assert!(verified || verdict["claims"].is_null(), "{name}: claims of a token that did not verify");
        if line.expected.is_none() {
            assert!(verdict["claims"].is_object() && verdict["workload"].is_string(), "{name}: {verdict}");
        }
    }
}
