//! `examples/authzen-todo/` on a control plane and a sidecar, composed as in production: the public interop scenario of
//! AuthZEN, asked over a socket as an application asks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portcullis::app;
use portcullis::clock::{Clock, SystemClock};
use portcullis::config::{Environment, RawControl, RawSidecar};
use portcullis::credential::TokenSigner;
use portcullis::drain;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::running::{Server, Site, address_to_keep, deps};

const APP: &str = "spiffe://citadel.example/todo-app";
const SIDECAR: &str = "spiffe://citadel.example/portcullis/sidecar";

/// Whose it is, and the decision.
type Owned = (String, bool);

/// The decision table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    subjects: BTreeMap<String, String>,
    evaluation: Vec<(String, String, String, String, Option<String>, bool)>,
    evaluations: Vec<(String, Owned, Owned)>,
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/authzen-todo").join(name)
}

/// The example's control plane, with its objects applied, and its sidecar's AuthZEN address.
async fn open() -> (Site, Server, SocketAddr) {
    let dir = tempfile::tempdir().unwrap();
    let signer = TokenSigner::generate_es256("citadel").unwrap();
    let (api, sync) = (address_to_keep(), address_to_keep());
    let text = format!(
        "listeners: {{ api: '{api}', sync: '{sync}', admin: '127.0.0.1:0' }}\ndata_directory: {}\n\
         insecure_loopback: true\nsync:\n  trust: [citadel]\n  enforcement_points:\n    \
         - {{ identity: '{SIDECAR}', services: [todo] }}\n",
        dir.path().join("control").display()
    );
    let raw = RawControl::parse(Path::new("control.yaml"), &text, &Environment::default()).unwrap();
    let bound = app::control::build(raw.validate().unwrap(), &deps()).await.unwrap();
    let (api, sync) = (bound.api(), bound.sync());
    let (begin, signal) = drain::channel();
    let control = Server::start(begin, Some(bound.admin()), bound.run(signal));
    for name in ["issuer.yaml", "workloads.yaml", "services.yaml", "policies.yaml", "policies.cedar"] {
        std::fs::copy(example(name), dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("jwks.json"), json!({ "keys": [signer.public_jwk()] }).to_string()).unwrap();
    let site = Site { dir, api, sync, signer, control };
    let write = site.path("alice");
    site.must("control/bootstrap-token", &["operator", "create", "alice", "--write-token", &write]).await;
    let files = ["issuer", "workloads", "services", "policies"].map(|name| site.path(&format!("{name}.yaml")));
    let args: Vec<&str> = std::iter::once("apply").chain(files.iter().flat_map(|f| ["-f", f.as_str()])).collect();
    site.must("alice", &args).await;
    std::fs::write(site.path("sidecar.jwt"), token(&site, SIDECAR, "portcullis-control")).unwrap();

    let overrides = [
        ("LISTENERS__EXT_AUTHZ__TCP", "null".to_owned()),
        ("LISTENERS__FORWARD_AUTH", "127.0.0.1:0".to_owned()),
        ("LISTENERS__ADMIN", "127.0.0.1:0".to_owned()),
        ("CONTROL_PLANE__URL", format!("http://{sync}")),
        ("CONTROL_PLANE__INSECURE_LOOPBACK", "true".to_owned()),
        ("CONTROL_PLANE__TOKEN_FILE", site.path("sidecar.jwt")),
        ("CONTROL_PLANE__VERIFY_KEY_FILE", site.path("control/verify-key")),
        ("STATE__DIRECTORY", site.path("state")),
        ("RECORDS__OUTPUT", "file".to_owned()),
        ("RECORDS__FILE", site.path("decisions.jsonl")),
    ];
    let env = Environment::new(overrides.map(|(name, value)| (format!("PORTCULLIS__{name}"), value)));
    let text = std::fs::read_to_string(example("sidecar.yaml")).unwrap();
    let raw = RawSidecar::parse(Path::new("sidecar.yaml"), &text, &env).unwrap();
    let bound = app::sidecar::build(raw.validate().unwrap(), &deps()).unwrap();
    let address = bound.forward_auth().unwrap();
    let mut ready = bound.readiness().watch();
    let (begin, signal) = drain::channel();
    let server = Server::start(begin, Some(bound.admin()), bound.run(signal));
    tokio::time::timeout(Duration::from_secs(20), ready.wait_for(|ready| *ready)).await.expect("ready").unwrap();
    (site, server, address)
}

fn token(site: &Site, id: &str, audience: &str) -> String {
    let now = SystemClock::new().now().wall.as_secs();
    site.signer.sign(&json!({ "sub": id, "aud": [audience], "iat": now, "exp": now + 1800 })).unwrap()
}

/// One request on a connection of its own: status, head, body.
async fn exchange(address: SocketAddr, head: &str, body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{head}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), body.to_owned())
}

async fn post(address: SocketAddr, api: &str, token: &str, body: &Value) -> (u16, Value) {
    let head = format!(
        "POST /access/v1/{api} HTTP/1.1\r\nhost: pdp.citadel.example\r\ncontent-type: application/json\r\n\
         authorization: Bearer {token}\r\nx-request-id: todo-1\r\n"
    );
    let (status, head, body) = exchange(address, &head, &body.to_string()).await;
    assert!(head.contains("x-request-id: todo-1"), "{head}");
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

fn user(table: &Table, name: &str) -> Value {
    json!({ "type": "user", "id": table.subjects[name] })
}

fn todo(owner: &str) -> Value {
    let id = "7240d0db-8ff0-41ec-98b2-34a096273b9f";
    json!({ "type": "todo", "id": id, "properties": { "ownerID": owner } })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_public_interop_scenario_is_answered_as_its_table_says() {
    let (site, server, address) = open().await;
    let text = std::fs::read_to_string(example("decisions.yaml")).unwrap();
    let table: Table = serde_yaml_ng::from_str(&text).unwrap();
    let app = token(&site, APP, "portcullis");
    assert_eq!((table.evaluation.len(), table.evaluations.len()), (40, 3), "the whole table");
    for (subject, action, kind, id, owner, expected) in &table.evaluation {
        let mut resource = json!({ "type": kind, "id": id });
        if let Some(owner) = owner {
            resource["properties"] = json!({ "ownerID": owner });
        }
        let body = json!({ "subject": user(&table, subject), "action": { "name": action }, "resource": resource });
        let (status, answer) = post(address, "evaluation", &app, &body).await;
        assert_eq!((status, &answer["decision"]), (200, &json!(expected)), "{subject} {action} {owner:?}: {answer}");
    }
    for (subject, first, second) in &table.evaluations {
        let each = [first, second].map(|(owner, _)| json!({ "resource": todo(owner) }));
        let body = json!({
            "subject": user(&table, subject), "action": { "name": "can_update_todo" }, "evaluations": each,
        });
        let (status, answer) = post(address, "evaluations", &app, &body).await;
        let decisions: Vec<&Value> =
            answer["evaluations"].as_array().unwrap().iter().map(|one| &one["decision"]).collect();
        assert_eq!((status, decisions), (200, vec![&json!(first.1), &json!(second.1)]), "{subject}");
    }

    // Who may delete Morty's: he himself, and the admin.
    let body = json!({ "subject": { "type": "user" }, "action": { "name": "can_delete_todo" },
                       "resource": todo("morty@the-citadel.com") });
    let (_, found) = post(address, "search/subject", &app, &body).await;
    let mut expected = vec![user(&table, "rick"), user(&table, "morty")];
    expected.sort_by_key(|one| one["id"].to_string());
    assert_eq!(found["results"], json!(expected));
    let body = json!({ "subject": user(&table, "beth"), "resource": todo("beth@the-smiths.com") });
    let (_, found) = post(address, "search/action", &app, &body).await;
    assert_eq!(found["results"], json!([{ "name": "can_read_todos" }, { "name": "can_read_user" }]));

    // Nobody else, loopback or not: without a token, and with one of somebody who is not on the list.
    let body =
        json!({ "subject": user(&table, "rick"), "action": { "name": "can_read_todos" }, "resource": todo("x") });
    let rick = format!("spiffe://citadel.example/users/{}", table.subjects["rick"]);
    let (status, _) = post(address, "evaluation", &token(&site, &rick, "portcullis"), &body).await;
    assert_eq!(status, 403);
    let (status, _) = post(address, "evaluation", "none", &body).await;
    assert_eq!(status, 401);
    let (status, _, metadata) =
        exchange(address, "GET /.well-known/authzen-configuration HTTP/1.1\r\nhost: x\r\n", "").await;
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    assert_eq!((status, &metadata["policy_decision_point"]), (200, &json!("https://pdp.citadel.example")));

    // A revocation is in force here as soon as its receipt says so.
    site.must("alice", &["revoke", "workload", &rick, "--reason", "portal trouble", "--wait", "10s"]).await;
    let (status, answer) = post(address, "evaluation", &app, &body).await;
    assert_eq!(
        (status, &answer["decision"], &answer["context"]["reason"]),
        (200, &json!(false), &json!("revoked.workload"))
    );

    let metrics = server.metrics().await;
    assert!(metrics.contains(r#"door="authzen""#), "{metrics}");
    server.stop().await;
    site.control.stop().await;
    let records = std::fs::read_to_string(site.dir.path().join("decisions.jsonl")).unwrap();
    let by_app = records.lines().filter(|line| line.contains(&format!("\"asked_by\":\"{APP}\""))).count();
    assert!(by_app >= 40 + 2 * 3, "{by_app} records");
}
