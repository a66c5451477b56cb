//! MCP servers behind the reverse proxy, which reads the messages that it forwards: the files of `examples/mcp/`, tool by tool,
//! what must not get through, and what may be held of what clients send. Also grants for one exact body.
//!
//! The server keeps what it received, so that each test sees what was forwarded, byte for byte.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use portcullis::clock::{Clock, SystemClock};
use portcullis::object::{ExactCall, Kind};
use portcullis::proxy::{Config, Protocol, UpstreamConfig};
use portcullis::testing::{AUDIENCE, Estate, KeyHolder, changed};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::mcp::{estate, is_whole};
use crate::reverse_proxy::{Proxy, config, raw, upstream};
use crate::reverse_proxy_upstream::Service;

/// A server of HTTP/1 that says what the test has it say, whole; after `STAYS` it says no more and keeps the connection.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    received: Arc<Mutex<Vec<String>>>,
}

pub(crate) const STAYS: &str = "\u{1}";
/// The head of a stream of events.
pub(crate) const EVENTS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n";
pub(crate) const LEGACY: [&str; 2] = ["Content-Type: application/json", "MCP-Protocol-Version: 2025-11-25"];
pub(crate) const SEARCH: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search"}}"#;

impl Server {
    pub(crate) async fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, received) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
        let (kept, answer) = (Arc::clone(&received), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !is_whole(&request) {
                        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let request = String::from_utf8_lossy(&request).into_owned();
                    kept.lock().unwrap().push(request.clone());
                    let said = answer(&request);
                    let _ = stream.write_all(said.trim_end_matches(STAYS).as_bytes()).await;
                    if said.ends_with(STAYS) {
                        let _closed = stream.read_to_end(&mut Vec::new()).await;
                    }
                });
            }
        });
        Self { address, received }
    }

    /// One that answers every message with an empty result.
    async fn plain() -> Self {
        Self::start(|_| answer("application/json", r#"{"jsonrpc":"2.0","id":1,"result":{}}"#)).await
    }

    /// The last request, head and body.
    pub(crate) fn last(&self) -> String {
        self.received.lock().unwrap().last().cloned().unwrap_or_default()
    }

    pub(crate) fn requests(&self) -> usize {
        self.received.lock().unwrap().len()
    }
}

/// An answer of the server.
pub(crate) fn answer(kind: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nETag: \"a\"\r\nConnection: close\r\n\r\n{body}"
    )
}

fn of_services(at: SocketAddr, protocol: Protocol) -> Config {
    let one = upstream(&[at], protocol);
    let mut config = config(one.clone());
    config.upstreams =
        ["desk", "payments"].map(|service| UpstreamConfig { service: service.to_owned(), ..one.clone() }).to_vec();
    config
}

pub(crate) async fn before(at: SocketAddr) -> Proxy {
    with(at, |_| {}, |_| {}).await
}

pub(crate) async fn with(at: SocketAddr, change: impl FnOnce(&mut Config), put: impl FnOnce(&mut Estate)) -> Proxy {
    let (mut estate, grant) = estate(&SystemClock::new());
    put(&mut estate);
    let mut config = of_services(at, Protocol::Http1);
    change(&mut config);
    Proxy::on(estate, grant, config).await
}

pub(crate) fn head(proxy: &Proxy, workload: &str, line: &str, headers: &[&str]) -> String {
    let bearer = proxy.bearer(workload);
    let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
    format!("{line} HTTP/1.1\r\nHost: mcp.example.com\r\nConnection: close\r\n{bearer}\r\n{headers}\r\n")
}

pub(crate) async fn send(proxy: &Proxy, workload: &str, line: &str, headers: &[&str], body: &str) -> String {
    let length = format!("Content-Length: {}", body.len());
    let head = head(proxy, workload, line, &[headers, &[&*length]].concat());
    raw(proxy.address, format!("{head}{body}").as_bytes()).await
}

/// A message of 2025-11-25.
pub(crate) async fn post(proxy: &Proxy, workload: &str, body: &str) -> String {
    send(proxy, workload, "POST /mcp", &LEGACY, body).await
}

async fn call(proxy: &Proxy, workload: &str, tool: &str, arguments: Value) -> String {
    let params = json!({"name": tool, "arguments": arguments});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
    post(proxy, workload, &body.to_string()).await
}

/// Status, and the reason of a denial.
pub(crate) fn reason(answer: &str) -> String {
    let problem: Value = serde_json::from_str(body_of(answer)).unwrap_or_default();
    let status = answer.get(9..12).unwrap_or_else(|| panic!("{answer:?}"));
    format!("{status} {}", problem["reason"].as_str().unwrap_or("none"))
}

pub(crate) fn body_of(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_allowed_and_denied_one_by_one() {
    let server = Server::plain().await;
    let proxy = before(server.address).await;
    let body =
        r#"{ "jsonrpc":"2.0", "id": 7,"method":"tools/call",  "params":{"name":"search","arguments":{"q":"été"}}}"#;
    let searched = post(&proxy, "helper", body).await;
    assert_eq!(reason(&searched), "200 none", "{searched}");
    let seen = server.last();
    assert!(seen.ends_with(&format!("\r\n\r\n{body}")), "what was read is what is forwarded: {seen}");
    assert!(seen.contains(&format!("content-length: {}\r\n", body.len())), "{seen}");
    assert!(seen.contains("x-portcullis-workload: spiffe://test.example/helper\r\n"), "{seen}");
    assert!(!seen.to_lowercase().contains("authorization"), "no token reaches the server: {seen}");
    let record = proxy.records().pop().unwrap();
    let told = ["door", "reason", "mcp_method", "mcp_tool"].map(|key| record[key].clone());
    assert_eq!(told, ["proxy", "allow.policy", "tools/call", "search"].map(Value::from));

    assert_eq!(reason(&post(&proxy, "agent", body).await), "403 entitlement.scope", "policy gives it to the role");
    let refund = async |amount: i64| call(&proxy, "helper", "refund", json!({"order": {"amount": amount}})).await;
    assert_eq!(reason(&refund(100).await), "200 none");
    let denied = refund(5000).await;
    assert_eq!(reason(&denied), "403 entitlement.no_grant");
    let challenge = denied.lines().find_map(|l| l.strip_prefix("www-authenticate: ")).unwrap();
    assert_eq!(
        challenge,
        "Bearer realm=\"portcullis\", error=\"insufficient_scope\", scope=\"desk:use desk:refund\", \
         resource_metadata=\"https://mcp.example.com/.well-known/oauth-protected-resource/mcp\""
    );
    let problem: Value = serde_json::from_str(body_of(&denied)).unwrap();
    let asked = &problem["grant_request"];
    assert_eq!((&asked["resources"], &asked["conditions"]), (&json!(["desk/mcp"]), &json!({"tools": ["refund"]})));
    let closed = call(&proxy, "agent", "close_account", json!({"order": {"amount": 5000}})).await;
    assert_eq!(reason(&closed), "200 none", "by its grant");
    let forced = call(&proxy, "agent", "close_account", json!({"force": true})).await;
    assert_eq!(reason(&forced), "403 policy.explicit_deny");
    assert_eq!(server.requests(), 3, "nothing that was denied got there");
    // Each request once, however often it was decided on.
    assert_eq!(proxy.records().len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_is_spoken() {
    let server = Server::plain().await;
    let proxy = before(server.address).await;
    for said in ["2025-06-18", "2025-11-25"] {
        let version = format!("MCP-Protocol-Version: {said}");
        let first = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": said}});
        let first = first.to_string();
        assert_eq!(reason(&send(&proxy, "helper", "POST /mcp", &LEGACY[..1], &first).await), "200 none");
        let headers = [LEGACY[0], &*version];
        assert_eq!(reason(&send(&proxy, "helper", "POST /mcp", &headers, SEARCH).await), "200 none");
        let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(reason(&send(&proxy, "helper", "POST /mcp", &headers, note).await), "200 none");
        let response = r#"{"jsonrpc":"2.0","id":"s","result":{}}"#;
        assert_eq!(reason(&send(&proxy, "helper", "POST /mcp", &headers, response).await), "200 none");
        for line in ["GET /mcp", "DELETE /mcp"] {
            let answered = raw(proxy.address, head(&proxy, "helper", line, &[&version]).as_bytes()).await;
            assert_eq!(reason(&answered), "200 none", "{line}: {answered}");
        }
    }
    let newest = ["Content-Type: application/json", "MCP-Protocol-Version: 2026-07-28", "Mcp-Method: tools/call"];
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28"});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "search", "_meta": meta}});
    let body = body.to_string();
    let named = async |name: &str| {
        let headers = [&newest[..], &[name]].concat();
        reason(&send(&proxy, "helper", "POST /mcp", &headers, &body).await)
    };
    assert_eq!(named("Mcp-Name: search").await, "200 none");
    assert_eq!(named("Mcp-Name: =?base64?c2VhcmNo?=").await, "200 none");
    assert_eq!(named("Mcp-Name: delete").await, "400 input.header_mismatch");
    assert_eq!(named("X-Other: 1").await, "400 input.header_mismatch", "it has to be there");
    let stream = raw(proxy.address, head(&proxy, "helper", "GET /mcp", &newest[1..2]).as_bytes()).await;
    assert_eq!(reason(&stream), "400 input.malformed", "this version has none");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_be_read_in_two_ways_does_not_get_through() {
    let server = Server::plain().await;
    let proxy = before(server.address).await;
    for bad in [
        format!("[{SEARCH}]"),
        format!("{SEARCH}{SEARCH}"),
        SEARCH.replace(r#""name":"search""#, r#""name":"search","name":"delete""#),
        SEARCH.replace(r#""name":"search""#, r#""name":"search","Name":"delete""#),
        SEARCH.replace("tools/call", "Tools/Call"),
        SEARCH.replace("2.0", "1.0"),
        String::new(),
    ] {
        assert_eq!(reason(&post(&proxy, "helper", &bad).await), "400 input.malformed", "{bad}");
    }
    let none = raw(proxy.address, head(&proxy, "helper", "POST /mcp", &LEGACY).as_bytes()).await;
    assert_eq!(reason(&none), "400 input.malformed", "this door knows that there is no message");
    for header in ["Content-Encoding: deflate", "Content-Type: application/json; charset=utf-16"] {
        let plain = if header.starts_with("Content-Type") { "X-Plain: 1" } else { LEGACY[0] };
        let headers = [header, plain, LEGACY[1]];
        let refused = send(&proxy, "helper", "POST /mcp", &headers, SEARCH).await;
        assert_eq!(reason(&refused), "400 input.malformed", "{header}");
    }
    for line in ["GET /mcp", "DELETE /mcp"] {
        let with_body = send(&proxy, "helper", line, &LEGACY[1..], SEARCH).await;
        assert_eq!(reason(&with_body), "400 input.malformed", "{line}");
    }
    assert_eq!(server.requests(), 0);
}

/// A message in chunks, as a client may send it.
fn chunked(proxy: &Proxy, workload: &str, body: &str, trailers: &str) -> String {
    let (first, second) = body.split_at(30);
    let chunks = [first, second].map(|c| format!("{:x}\r\n{c}\r\n", c.len())).concat();
    let framed = ["Transfer-Encoding: chunked", "Trailer: X-Sum", LEGACY[0], LEGACY[1]];
    format!("{}{chunks}0\r\n{trailers}\r\n", head(proxy, workload, "POST /mcp", &framed))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_whole_before_it_is_decided_on_however_it_comes() {
    let server = Server::plain().await;
    let proxy = before(server.address).await;
    let in_chunks = raw(proxy.address, chunked(&proxy, "helper", SEARCH, "X-Sum: 7\r\n").as_bytes()).await;
    assert_eq!(reason(&in_chunks), "200 none", "{in_chunks}");
    let seen = server.last().to_lowercase();
    assert!(seen.contains(&format!("content-length: {}\r\n", SEARCH.len())), "{seen}");
    for gone in ["transfer-encoding", "trailer", "x-sum"] {
        assert!(!seen.contains(gone), "what nobody decided on is not sent: {seen}");
    }
    let denied =
        raw(proxy.address, chunked(&proxy, "helper", &SEARCH.replace("search", "delete"), "").as_bytes()).await;
    assert_eq!(reason(&denied), "403 entitlement.no_grant");

    // A megabyte in two ways, and no more than that.
    let filled = |bytes: usize| SEARCH.replace("{\"name\"", &format!("{{\"x\":\"{}\",\"name\"", "x".repeat(bytes)));
    assert_eq!(reason(&post(&proxy, "helper", &filled(1_048_000)).await), "200 none");
    assert!(server.last().ends_with(&filled(1_048_000)));
    let large = head(&proxy, "helper", "POST /mcp", &[LEGACY[0], LEGACY[1], "Content-Length: 1048577"]);
    assert_eq!(reason(&raw(proxy.address, large.as_bytes()).await), "400 input.body_truncated", "not one byte is read");
    // Little more than is read, so that all of it is taken before the connection ends.
    let large = raw(proxy.address, chunked(&proxy, "helper", &filled(1_048_600), "").as_bytes()).await;
    assert_eq!(reason(&large), "400 input.body_truncated");
    let last = proxy.records().pop().unwrap();
    assert!(last["detail"].as_str().unwrap().contains("larger"), "{last}");

    // A client that waits is told to go on only when its credential is good.
    let waits = [LEGACY[0], LEGACY[1], "Expect: 100-continue", &format!("Content-Length: {}", SEARCH.len())];
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(head(&proxy, "helper", "POST /mcp", &waits).as_bytes()).await.unwrap();
    let mut first = [0; 25];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(SEARCH.as_bytes()).await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(reason(&rest), "200 none");
    let nobody = head(&proxy, "helper", "POST /mcp", &waits).replace("Bearer ", "Bearer x");
    assert!(raw(proxy.address, nobody.as_bytes()).await.starts_with("HTTP/1.1 401 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_on_both_sides() {
    let service = Service::start().await;
    let (estate, grant) = estate(&SystemClock::new());
    let proxy = Proxy::on(estate, grant, of_services(service.address, Protocol::Http2)).await;
    let (send, connection) = h2::client::handshake(TcpStream::connect(proxy.address).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    let auth = proxy.bearer("helper");
    let ask = async |body: &str| {
        let request = Request::post("http://mcp.example.com/mcp")
            .header("authorization", auth.split_once(": ").unwrap().1)
            .header("content-type", "application/json")
            .header("mcp-protocol-version", "2025-11-25")
            .body(())
            .unwrap();
        let (answer, mut up) = send.clone().ready().await.unwrap().send_request(request, false).unwrap();
        let (first, second) = body.split_at(20);
        up.send_data(Bytes::copy_from_slice(first.as_bytes()), false).unwrap();
        up.send_data(Bytes::copy_from_slice(second.as_bytes()), true).unwrap();
        let answer = answer.await.unwrap();
        let (status, mut down) = (answer.status().as_u16(), answer.into_body());
        let mut all = Vec::new();
        while let Some(piece) = down.data().await {
            all.extend_from_slice(&piece.unwrap());
        }
        (status, serde_json::from_slice::<Value>(&all).unwrap())
    };
    let (status, seen) = ask(SEARCH).await;
    assert_eq!((status, seen["body"].as_str()), (200, Some(SEARCH)), "{seen}");
    assert_eq!(seen["headers"]["content-length"], SEARCH.len().to_string(), "{seen}");
    let (status, problem) = ask(&SEARCH.replace("search", "delete")).await;
    assert_eq!((status, problem["reason"].as_str()), (403, Some("entitlement.no_grant")));
    assert_eq!(service.requests(), 1);
}

/// The reasons on record, once there are so many.
async fn reasons(proxy: &Proxy, many: usize) -> Vec<Value> {
    loop {
        let reasons: Vec<Value> = proxy.records().into_iter().map(|record| record["reason"].clone()).collect();
        if reasons.len() >= many {
            return reasons;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_body_and_too_many_of_them_hold_nothing_for_long() {
    let server = Server::start(|_| format!("{EVENTS}: here\n\n{STAYS}")).await;
    let change = |config: &mut Config| {
        config.limits.head_timeout = Duration::from_millis(600);
        config.limits.max_kept_bytes = 100;
    };
    let mut proxy = with(server.address, change, |_| {}).await;
    let length = format!("Content-Length: {}", SEARCH.len());
    let framed = [LEGACY[0], LEGACY[1], &*length];
    // Drop by drop: each piece comes soon after the last, and the whole does not.
    let begun = Instant::now();
    let mut slow = TcpStream::connect(proxy.address).await.unwrap();
    slow.write_all(head(&proxy, "helper", "POST /mcp", &framed).as_bytes()).await.unwrap();
    let mut answered = Vec::new();
    for byte in SEARCH.bytes() {
        let _ = slow.write_all(&[byte]).await;
        let read = tokio::time::timeout(Duration::from_millis(50), slow.read_buf(&mut answered)).await;
        if read.is_ok() {
            break;
        }
    }
    let _reset = slow.read_to_end(&mut answered).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(reason(&String::from_utf8_lossy(&answered)), "400 input.body_truncated");
    // A client that goes away in the middle is on record as what it was.
    let mut gone = TcpStream::connect(proxy.address).await.unwrap();
    gone.write_all(format!("{}{{", head(&proxy, "helper", "POST /mcp", &framed)).as_bytes()).await.unwrap();
    drop(gone);
    assert_eq!(reasons(&proxy, 2).await, [json!("input.body_truncated"), json!("input.body_truncated")]);
    // One message is kept for as long as its answer is open, and a second finds no room until then.
    let mut open = TcpStream::connect(proxy.address).await.unwrap();
    let held = format!("{}{SEARCH}", head(&proxy, "helper", "POST /mcp", &framed));
    open.write_all(held.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(4).any(|w| w == b"here") {
        assert!(open.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
    }
    assert_eq!(reason(&raw(proxy.address, held.as_bytes()).await), "503 system.overload");
    proxy.estate.revoke(&json!({"kind": "workload", "workload": Estate::id("helper")}));
    proxy.publish();
    let _cut = open.read_to_end(&mut seen).await;
    assert_eq!(reasons(&proxy, 5).await[4], "revoked.workload");
    let agent = head(&proxy, "agent", "POST /mcp", &framed);
    let found = raw(proxy.address, format!("{agent}{SEARCH}").as_bytes()).await;
    assert_eq!(reason(&found), "403 entitlement.scope", "its room is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_cut_when_the_grant_for_its_tool_is_revoked() {
    let event = r#"data: {"jsonrpc":"2.0","method":"a"}"#;
    let server = Server::start(move |_| format!("{EVENTS}{event}\n\n{STAYS}")).await;
    let mut proxy = before(server.address).await;
    let body = SEARCH.replace("search", "close_account");
    let length = format!("Content-Length: {}", body.len());
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    let head = head(&proxy, "agent", "POST /mcp", &[LEGACY[0], LEGACY[1], &length]);
    client.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\n\n\r\n") {
        assert!(client.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
    }
    // A change about somebody else, after which it is decided on again, on the same message.
    proxy.estate.revoke(&json!({"kind": "workload", "workload": Estate::id("helper")}));
    proxy.publish();
    tokio::time::timeout(Duration::from_millis(300), client.read_buf(&mut seen)).await.expect_err("goes on");
    proxy.estate.revoke_grant(proxy.grant);
    proxy.publish();
    let rest = tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut seen)).await;
    let _reset = rest.expect("it is cut");
    assert!(!seen.ends_with(b"0\r\n\r\n"), "it does not look whole");
    let last = proxy.records().pop().unwrap();
    assert_eq!((&last["reason"], &last["mcp_tool"]), (&json!("revoked.grant"), &json!("close_account")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_goes_on_only_where_a_route_says_so() {
    let server = Server::plain().await;
    let put = |estate: &mut Estate| {
        let mut document: Value = serde_yaml_ng::from_str(&crate::mcp::example("services.yaml")).unwrap();
        document["service"]["routes"][0]["pass_token"] = json!(true);
        estate.put(Kind::Service, &document["service"]);
    };
    let proxy = with(server.address, |_| {}, put).await;
    assert_eq!(reason(&post(&proxy, "helper", SEARCH).await), "200 none");
    assert!(server.last().contains("\r\nauthorization: Bearer "), "{}", server.last());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_of_possession_is_good_for_one_message() {
    let server = Server::plain().await;
    let put = |estate: &mut Estate| {
        estate.put(
            Kind::Issuer,
            &json!({
                "name": "test", "kind": "spiffe", "trust_domain": "test.example", "audiences": [AUDIENCE],
                "jwks": {"keys": [estate.signer.public_jwk()]}, "proof": {},
            }),
        );
    };
    let proxy = with(server.address, |_| {}, put).await;
    let client = KeyHolder::new();
    let cnf = json!({"cnf": {"jkt": client.thumbprint()}});
    let token = proxy.estate.signer.sign(&changed(proxy.estate.claims("helper"), &cnf)).unwrap();
    let now = SystemClock::new().now().wall;
    let proof = client.dpop(&KeyHolder::dpop_claims("POST", "http://mcp.example.com/mcp", &token, now));
    let length = SEARCH.len();
    let message = format!(
        "POST /mcp HTTP/1.1\r\nHost: mcp.example.com\r\nConnection: close\r\nAuthorization: DPoP {token}\r\nDPoP: {proof}\r\n\
         {}\r\n{}\r\nContent-Length: {length}\r\n\r\n{SEARCH}",
        LEGACY[0], LEGACY[1]
    );
    assert_eq!(reason(&raw(proxy.address, message.as_bytes()).await), "200 none");
    assert!(!server.last().contains("dpop"), "{}", server.last());
    assert_eq!(reason(&raw(proxy.address, message.as_bytes()).await), "401 credential");
    let reasons: Vec<Value> = proxy.records().into_iter().map(|record| record["reason"].clone()).collect();
    assert_eq!(reasons, ["allow.policy", "credential.replay"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn anybody_learns_where_to_get_a_token() {
    let server = Server::plain().await;
    let proxy = before(server.address).await;
    let ask = async |line: &str, more: &str| {
        let request = format!("{line} HTTP/1.1\r\nHost: mcp.example.com\r\nConnection: close\r\n{more}\r\n");
        raw(proxy.address, request.as_bytes()).await
    };
    let unknown = ask("GET /mcp", "").await;
    assert_eq!(reason(&unknown), "401 credential");
    let part = "www-authenticate: Bearer realm=\"portcullis\", scope=\"desk:use\", resource_metadata=\"https://mcp.example.com";
    assert!(unknown.contains(part), "{unknown}");
    let place = "/.well-known/oauth-protected-resource/mcp";
    for token in [String::new(), format!("{}\r\n", proxy.bearer("helper"))] {
        let metadata = ask(&format!("GET {place}"), &token).await;
        assert!(metadata.starts_with("HTTP/1.1 200 "), "{metadata}");
        assert!(metadata.contains("content-type: application/json\r\n"), "{metadata}");
        let document: Value = serde_json::from_str(body_of(&metadata)).unwrap();
        let expected = json!({
            "resource": "https://mcp.example.com/mcp", "authorization_servers": ["https://idp.example.com"],
            "scopes_supported": ["desk:use"], "bearer_methods_supported": ["header"], "resource_name": "desk",
        });
        assert_eq!(document, expected);
    }
    for other in [format!("GET {place}/x"), format!("POST {place}"), "GET /.well-known/oauth-protected-resource".into()]
    {
        assert_eq!(reason(&ask(&other, "").await), "401 credential", "{other}");
    }
    assert_eq!(server.requests(), 0);
    // On record as what they were to a server that saw none of them.
    let records: Vec<Value> = proxy.records().into_iter().map(|record| record["reason"].clone()).collect();
    assert_eq!(records[1..3], [json!("credential.missing"), json!("policy.no_match")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_for_one_body_is_for_no_other() {
    let server = Server::plain().await;
    let put = |estate: &mut Estate| {
        for (method, digest) in [
            ("PUT", "a8b88b82fe90a16048eb8851fe382405395cd395dafaa7ca9be90ec00f82a72b"),
            ("DELETE", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ] {
            let mut asked = estate.ask("ci", "payments/refunds", &["write", "delete"], None, 3600);
            let method = serde_json::from_value(json!(method)).unwrap();
            asked.call =
                Some(ExactCall { method, path: "/refunds/7".to_owned(), body_sha256: Some(digest.to_owned()) });
            estate.grant_as(asked, |_| {});
        }
    };
    let proxy = with(server.address, |config| config.limits.max_body_bytes = Some(1000), put).await;
    let put = async |body: &str| send(&proxy, "ci", "PUT /refunds/7", &[], body).await;
    let done = put(r#"{"amount":10}"#).await;
    assert_eq!(reason(&done), "200 none", "{done}");
    assert!(server.last().ends_with("\r\n\r\n{\"amount\":10}"), "{}", server.last());
    assert!(server.last().contains("authorization: Bearer "), "a route that says nothing passes the token on");
    for other in [r#"{"amount":100}"#, r#"{"amount": 10}"#, ""] {
        assert_eq!(reason(&put(other).await), "403 entitlement.condition", "{other}");
    }
    let large = head(&proxy, "ci", "PUT /refunds/7", &["Content-Length: 2000000"]);
    assert_eq!(reason(&raw(proxy.address, large.as_bytes()).await), "400 input.body_truncated");
    // That there is no body is known here without a header that says so.
    let deleted = raw(proxy.address, head(&proxy, "ci", "DELETE /refunds/7", &[]).as_bytes()).await;
    assert_eq!(reason(&deleted), "200 none", "{deleted}");
    assert_eq!(server.requests(), 2);
    let grants: Vec<bool> = proxy.records().iter().map(|record| record["grant_id"].is_string()).collect();
    assert!(grants.iter().all(|told| *told), "{grants:?}");
}
