//! Lists of tools on their way through the reverse proxy: each caller sees what it may use, and what cannot be read is not
//! passed on.

use std::time::Duration;

use portcullis::proxy::Config;
use portcullis::testing::Estate;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::reverse_proxy::{Proxy, raw};
use crate::reverse_proxy_mcp::{
    EVENTS, LEGACY, STAYS, Server, answer, before, body_of, head, post, reason, send, with,
};

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

/// What the server has, beside what a list says else.
fn all() -> String {
    let tools = ["search", "refund", "close_account", "delete"].map(
        |name| json!({"name": name, "inputSchema": {"type": "object"}, "description": format!("{name} of a customer")}),
    );
    json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools, "nextCursor": "c", "ttlMs": 60_000, "cacheScope": "public"}})
        .to_string()
}

fn names(message: &str) -> Vec<String> {
    let message: Value = serde_json::from_str(message).unwrap_or_else(|e| panic!("{e}: {message}"));
    let tools = message["result"]["tools"].as_array().unwrap();
    tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_sees_its_tools() {
    let server = Server::start(|_| answer("application/json", &all())).await;
    let mut proxy = before(server.address).await;
    let headers = [LEGACY[0], LEGACY[1], "Accept-Encoding: gzip, br"];
    let listed = send(&proxy, "helper", "POST /mcp", &headers, LIST).await;
    assert_eq!(names(body_of(&listed)), ["search", "refund"], "{listed}");
    let message: Value = serde_json::from_str(body_of(&listed)).unwrap();
    assert_eq!(message["result"]["tools"][0]["description"], "search of a customer");
    assert_eq!(message["result"]["cacheScope"], "private", "it is for this caller alone");
    assert_eq!(message["result"]["nextCursor"], "c");
    assert!(listed.contains(&format!("content-length: {}\r\n", body_of(&listed).len())), "{listed}");
    assert!(!listed.to_lowercase().contains("etag"), "{listed}");
    assert!(listed.contains("cache-control: no-store\r\n"), "{listed}");
    assert!(server.last().contains("accept-encoding: identity\r\n"), "{}", server.last());

    assert_eq!(names(body_of(&post(&proxy, "agent", LIST).await)), ["close_account"]);
    assert_eq!(names(body_of(&post(&proxy, "ci", LIST).await)), [""; 0]);
    proxy.estate.revoke_grant(proxy.grant);
    proxy.publish();
    assert_eq!(names(body_of(&post(&proxy, "agent", LIST).await)), [""; 0]);
    // Only lists are touched.
    let body = LIST.replace("tools/list", "ping");
    let other = send(&proxy, "helper", "POST /mcp", &headers, &body).await;
    assert_eq!(body_of(&other), all());
    assert!(server.last().contains("accept-encoding: gzip, br\r\n"), "{}", server.last());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_not_passed_on() {
    let answers = |request: &str| {
        let kind = request.lines().find_map(|line| line.strip_prefix("x-kind: ")).unwrap();
        let good = answer("application/json", &all());
        match kind {
            "compressed" => good.replace("ETag: \"a\"", "Content-Encoding: gzip"),
            "unsaid" => good.replace("Content-Type", "X-Type"),
            "twice" => good.replace("ETag: \"a\"", "Content-Type: text/plain"),
            "html" => answer("text/html", &all()),
            "batch" => answer("application/json", &format!("[{}]", all())),
            "double" => answer("application/json", &all().replace("\"id\":1", "\"id\":1,\"result\":{\"tools\":[]}")),
            "short" => good.replace("Content-Length: ", "Content-Length: 1"),
            "large" => answer("application/json", &all().replace("customer", &"x".repeat(2 << 20))),
            "error" => answer("text/plain", "no such session").replace("200 OK", "404 Not Found"),
            "wrong" => answer("application/json", r#"{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"m"}}"#)
                .replace("200 OK", "400 Bad Request"),
            other => panic!("{other}"),
        }
    };
    let server = Server::start(answers).await;
    let proxy = before(server.address).await;
    for (kind, expected) in [
        ("compressed", "502"),
        ("unsaid", "502"),
        ("twice", "502"),
        ("html", "502"),
        ("batch", "502"),
        ("double", "502"),
        ("short", "502"),
        ("large", "502"),
        ("error", "404"),
        ("wrong", "400"),
    ] {
        let header = format!("X-Kind: {kind}");
        let answered = send(&proxy, "helper", "POST /mcp", &[LEGACY[0], LEGACY[1], &header], LIST).await;
        assert_eq!(answered.get(9..12), Some(expected), "{kind}: {answered}");
        assert!(!answered.contains("close_account"), "{kind}: {answered}");
        if kind == "error" {
            assert_eq!(body_of(&answered), "no such session");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_is_read_as_far_as_it_counts() {
    let many: Vec<Value> = (0..1500).map(|_| json!({"name": "search", "description": "x".repeat(1000)})).collect();
    let list = json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": many}}).to_string();
    let server = Server::start(move |_| answer("application/json", &list)).await;
    let proxy = before(server.address).await;
    let listed = post(&proxy, "helper", LIST).await;
    assert_eq!(names(body_of(&listed)), vec!["search"; 1000]);
    assert_eq!(names(body_of(&post(&proxy, "agent", LIST).await)), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_does_not_come_is_not_waited_for_and_one_that_comes_too_late_is_denied() {
    let unfinished =
        |_: &str| answer("application/json", &all()).replace("Content-Length: ", "Content-Length: 1") + STAYS;
    let server = Server::start(unfinished).await;
    let soon = |config: &mut Config| config.upstreams[0].timeouts.response = Duration::from_millis(300);
    let proxy = with(server.address, soon, |_| {}).await;
    assert_eq!(reason(&post(&proxy, "helper", LIST).await), "504 none");

    let mut proxy = before(server.address).await;
    let length = format!("Content-Length: {}", LIST.len());
    let list = format!("{}{LIST}", head(&proxy, "helper", "POST /mcp", &[LEGACY[0], LEGACY[1], &length]));
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(list.as_bytes()).await.unwrap();
    while server.requests() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.estate.revoke(&json!({"kind": "workload", "workload": Estate::id("helper")}));
    proxy.publish();
    let mut answered = String::new();
    client.read_to_string(&mut answered).await.unwrap();
    assert_eq!(reason(&answered), "401 revoked", "{answered}");
    assert_eq!(proxy.records().pop().unwrap()["reason"], "revoked.workload");
}

/// Asks, and reads until `end` has come.
async fn until(proxy: &Proxy, request: String, end: &str) -> String {
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(end) {
        assert!(client.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
    }
    String::from_utf8(seen).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_filtered_event_by_event() {
    let stream = |request: &str| {
        let begins = format!("{EVENTS}: here\r\n\r\nid: 7\r\n");
        let bad = if request.contains("x-bad") { "data: {\"result\":\r\n\r\n" } else { "" };
        let events =
            format!("{begins}data: {}\r\n\r\n{bad}data: {{\"jsonrpc\":\"2.0\",\"method\":\"x\"}}\r\n\r\n", all());
        events + STAYS
    };
    let server = Server::start(stream).await;
    let proxy = before(server.address).await;
    let length = format!("Content-Length: {}", LIST.len());
    let list = |workload| format!("{}{LIST}", head(&proxy, workload, "POST /mcp", &[LEGACY[0], LEGACY[1], &length]));
    // What a server sends again after a broken stream comes on one that a `GET` opens.
    let resumed = |workload| head(&proxy, workload, "GET /mcp", &[LEGACY[1], "Last-Event-ID: 6"]);
    for (workload, tools) in [("helper", ["search", "refund"].as_slice()), ("agent", &["close_account"])] {
        for request in [list(workload), resumed(workload)] {
            let seen = until(&proxy, request, r#""method":"x""#).await;
            let data = seen.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
            assert_eq!(names(data), tools, "{workload}: {seen}");
            assert!(seen.contains(": here\n\n") && seen.contains("id: 7\ndata: "), "{seen}");
            assert!(server.last().contains("accept-encoding: identity\r\n"), "{}", server.last());
        }
    }
    // An event that cannot be read ends the stream.
    let bad = head(&proxy, "agent", "GET /mcp", &[LEGACY[1], "X-Bad: 1"]);
    let seen = raw(proxy.address, bad.as_bytes()).await;
    assert!(!seen.contains(r#""method":"x""#), "{seen}");
    assert!(!seen.ends_with("0\r\n\r\n"), "it does not look whole: {seen}");
    // What answers a `GET` in another form is no stream.
    let page = Server::start(|_| answer("text/html", &all())).await;
    let proxy = before(page.address).await;
    let answered = raw(proxy.address, head(&proxy, "agent", "GET /mcp", &LEGACY[1..]).as_bytes()).await;
    assert_eq!(reason(&answered), "502 none");
}
