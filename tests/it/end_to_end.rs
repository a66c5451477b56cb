//! One grant from its denial to its revocation, through every plane.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::running::{DOMAIN, Server, Site, portcullis, start_control};

const AUDIENCE: &str = "portcullis-demo";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_denial_becomes_a_grant_that_ends_where_it_is_enforced() {
    let site = Site::open().await;
    let sidecar = site.sidecar().await;
    let storefront = site.token("storefront", AUDIENCE);

    let standing = sidecar.check("GET", "/catalog/1", &storefront).await;
    assert_eq!(standing.status, 200, "{standing:?}");
    let workload = standing.upstream.iter().find(|(name, _)| name == "x-portcullis-workload");
    assert_eq!(workload.unwrap().1, format!("{DOMAIN}/storefront"));

    // Denied, and the denial is a request.
    let denied = sidecar.check("POST", "/refunds/7", &storefront).await;
    assert_eq!((denied.status, denied.reason.as_str()), (403, "entitlement.no_grant"));
    let submit_to = denied.body["grant_request"]["submit_to"].as_str().unwrap();
    assert_eq!(submit_to, format!("http://{}/v1/grant-requests", site.api));
    std::fs::write(site.path("denial.json"), denied.body.to_string()).unwrap();
    let requested = site.must("alice", &["grant", "request", "--from-denial", &site.path("denial.json")]).await;
    let id = requested["object"]["id"].as_str().unwrap();
    assert_eq!(requested["object"]["state"], "pending");

    // Nobody approves their own request; the answer is no, not an error.
    let (status, refused) = site.run("alice", &["grant", "approve", id]).await;
    assert_eq!(status, 1, "{refused}");
    site.must("bob", &["grant", "approve", id]).await;
    sidecar.comes_to(200, "POST", "/refunds/7", &storefront).await;

    // The grant buys what it names, for whom it names.
    let agent = site.token("agent", AUDIENCE);
    assert_eq!(sidecar.check("POST", "/refunds/7", &agent).await.reason, "entitlement.no_grant");
    assert_eq!(sidecar.check("POST", "/payouts/7", &storefront).await.status, 403);

    // Revoked: once the receipt says so, the very next check is denied.
    let revoked = site.must("bob", &["grant", "revoke", id, "--reason", "done", "--wait", "10s"]).await;
    assert_eq!(revoked["receipt"]["complete"], true, "{revoked}");
    let applied = &revoked["receipt"]["applied"][0];
    assert_eq!(applied["enforcement_point"], format!("{DOMAIN}/sidecar"));
    let after = sidecar.check("POST", "/refunds/7", &storefront).await;
    assert_eq!((after.status, after.reason.as_str()), (403, "revoked.grant"));

    let fleet = site.must("alice", &["fleet"]).await;
    assert_eq!(fleet["items"][0]["connected"], true, "{fleet}");
    assert_eq!(fleet["items"][0]["behind"], 0, "{fleet}");

    let records = site.path("decisions.jsonl");
    sidecar.server.stop().await;
    let tail = portcullis(&["decisions", "tail", "--file", &records, "--reason", "revoked.grant", "--output", "json"]);
    let record: Value = serde_json::from_slice(&tail.stdout).unwrap();
    assert_eq!(record["reason"], "revoked.grant");
    assert_eq!(record["grant_id"], id);
    site.control.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_sidecar_answers_from_disk_while_the_control_plane_is_gone_and_catches_up() {
    let site = Site::open().await;
    let storefront = site.token("storefront", AUDIENCE);
    let first = site.sidecar().await;
    first.server.stop().await;
    let (api, sync) = (site.api.to_string(), site.sync.to_string());
    let Site { dir, signer, control, .. } = site;
    control.stop().await;

    // Restarted with nobody to sync from: ready from disk.
    let site = Site { control: Server::nothing(), dir, api: api.parse().unwrap(), sync: sync.parse().unwrap(), signer };
    let sidecar = site.sidecar().await;
    assert_eq!(sidecar.check("GET", "/catalog/1", &storefront).await.status, 200);
    assert_eq!(sidecar.check("POST", "/refunds/7", &storefront).await.reason, "entitlement.no_grant");
    let token_file = site.path("storefront.jwt");
    std::fs::write(&token_file, &storefront).unwrap();
    let (state, key) = (site.path("state"), site.path("control/verify-key"));
    let offline = |path: &str, key: &str| {
        portcullis(&["check", "--path", path, "--token-file", &token_file, "--snapshot", &state, "--verify-key", key])
    };
    assert_eq!(offline("/catalog/1", &key).status.code(), Some(0), "{:?}", offline("/catalog/1", &key));
    assert_eq!(offline("/refunds/1", &key).status.code(), Some(1));
    assert_eq!(offline("/catalog/1", &token_file).status.code(), Some(2), "not a key");

    let (control, ..) = start_control(site.dir.path(), &api, &sync).await;
    let revoke = ["revoke", "workload", "spiffe://demo.portcullis.local/storefront", "--wait", "20s"];
    let revoked = site.must("alice", &revoke).await;
    assert_eq!(revoked["receipt"]["complete"], true, "{revoked}");
    let after = sidecar.check("GET", "/catalog/1", &storefront).await;
    assert_eq!(after.status, 401, "{after:?}");
    assert!(after.reason.starts_with("revoked"), "{after:?}");
    sidecar.server.stop().await;
    control.stop().await;
}

#[test]
fn dev_runs_everything_twice_on_one_directory_and_ends_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("dev").display().to_string();
    for start in ["the first", "the second"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["dev", "--free-ports", "--data-dir", &data, "--output", "json"])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let running = read_document(child.stdout.take().unwrap());
        let at = |name: &str| running[name].as_str().unwrap().to_owned();
        let (server, admin) = (at("api"), at("sidecar_admin"));
        let file = |name: &str| format!("{}/{name}", at("directory"));

        let storefront = file("storefront.jwt");
        let read = ["check", "--path", "/catalog/1", "--token-file", &storefront, "--admin", &admin];
        assert_eq!(portcullis(&read).status.code(), Some(0), "{start}: {:?}", portcullis(&read));
        // As a proxy asks over HTTP.
        let over_http = at("forward_auth").strip_prefix("http://").unwrap().parse().unwrap();
        let token = std::fs::read_to_string(&storefront).unwrap();
        let question = format!(
            "GET /envoy/catalog/1 HTTP/1.1\r\nHost: demo.local\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
            token.trim()
        );
        let answer = crate::envoy::exchange(over_http, question.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{start}: {answer:?}");
        assert!(answer.head.contains("x-portcullis-workload: spiffe://demo.portcullis.local/storefront"), "{answer:?}");
        // As an application asks that has no request to forward.
        let (authzen, path) = at("authzen").strip_prefix("http://").unwrap().split_once('/').map(own).unwrap();
        let pipeline = std::fs::read_to_string(file("ci.jwt")).unwrap();
        for (subject, allowed) in [("storefront", true), ("agent", false)] {
            let body = serde_json::json!({
                "subject": {"type": "workload", "id": format!("{DOMAIN}/{subject}")},
                "action": {"name": "read"}, "resource": {"type": "service", "id": "catalog"},
            });
            let (body, token) = (body.to_string(), pipeline.trim());
            let question = format!(
                "POST /{path}/evaluation HTTP/1.1\r\nHost: demo.local\r\nConnection: close\r\n\
                 Authorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let answer = crate::envoy::exchange(authzen.parse().unwrap(), question.as_bytes()).unwrap();
            let told: Value = serde_json::from_str(&answer.body).unwrap_or_default();
            assert_eq!(
                (answer.status, &told["decision"]),
                (200, &Value::Bool(allowed)),
                "{start}: {subject}: {answer:?}"
            );
        }
        let refund = ["check", "--method", "POST", "--path", "/refunds/7", "--token-file", &storefront];
        let refund: Vec<&str> = refund.into_iter().chain(["--admin", &admin, "--output", "json"]).collect();
        let denied = portcullis(&refund);
        assert_eq!(denied.status.code(), Some(1), "{start}");
        std::fs::write(file("denial.json"), &denied.stdout).unwrap();

        let alice = file("alice.token");
        let as_alice = |args: &[&str]| {
            let more = ["--server", &server, "--token-file", &alice, "--output", "json"];
            portcullis(&[args, &more].concat())
        };
        let request = as_alice(&["grant", "request", "--from-denial", &file("denial.json")]);
        assert_eq!(request.status.code(), Some(0), "{start}: {request:?}");
        let fleet: Value = serde_json::from_slice(&as_alice(&["fleet"]).stdout).unwrap();
        assert_eq!(fleet["items"].as_array().unwrap().len(), 1, "{start}: one enforcement point: {fleet}");

        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{start}");
    }
}

fn own((address, path): (&str, &str)) -> (String, String) {
    (address.to_owned(), path.to_owned())
}

/// The first JSON document on a stream that stays open.
fn read_document(stream: impl std::io::Read) -> Value {
    let mut text = String::new();
    for line in BufReader::new(stream).lines() {
        text.push_str(&line.unwrap());
        if let Ok(value) = serde_json::from_str(&text) {
            return value;
        }
    }
    panic!("the process ended before it said where it runs: {text}");
}

#[test]
fn a_port_that_is_taken_is_named_with_what_to_try() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let offset = (taken.local_addr().unwrap().port() - 9190).to_string();
    let output = portcullis(&["dev", "--only", "upstream", "--port-offset", &offset]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let address = taken.local_addr().unwrap().to_string();
    assert!(text.contains(&address) && text.contains("--port-offset"), "{text}");
}
