//! What a client could have got past a decision with, at the edges of the reverse proxy: after its grant, after its answer,
//! beside what was looked at. Each was so once.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use portcullis::clock::{Clock, SystemClock};
use portcullis::grant::ledger::UseAnswer;
use portcullis::object::{Ending, GrantState, Kind, Object};
use portcullis::proxy::Protocol;
use portcullis::testing::Estate;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::reverse_proxy::{Proxy, ask, config, raw, upstream};
use crate::reverse_proxy_upstream::Service;

/// Gives the proxy what it asks for of counted grants, as the control plane would.
fn give(proxy: &Proxy) {
    let state = Arc::clone(&proxy.state);
    tokio::spawn(async move {
        let clock = SystemClock::new();
        loop {
            let now = clock.now().mono;
            for asked in state.purse().messages(now, usize::MAX) {
                let given = UseAnswer::Given(asked.report.granted + asked.report.wanted);
                let account = (asked.grant, asked.report.account);
                state.purse().answered(account, asked.number, given, Duration::from_secs(60), now);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_took_the_last_use_ends_with_its_grant() {
    let service = Service::start().await;
    let mut config = config(upstream(&[service.address], Protocol::Http1));
    config.limits.live_interval = Duration::from_millis(50);
    let mut proxy = Proxy::open(config).await;
    give(&proxy);
    let asked = proxy.estate.ask("storefront", "app/live", &["read"], None, 60);
    let (grant, _) = proxy.estate.grant_as(asked, |grant| (grant.uses, grant.duration_seconds) = (Some(1), 3));
    proxy.publish();
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(proxy.head("GET /live/events", &[]).as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(6).any(|w| w == b"tick 3") {
        assert!(client.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
    }
    let mut exhausted = grant.clone();
    exhausted.state = GrantState::Exhausted;
    let at = SystemClock::new().now().wall;
    exhausted.ended = Some(Ending { by: "test".to_owned(), at, reason: String::new() });
    proxy.estate.put_object(&Object::Grant(Box::new(exhausted)));
    proxy.publish();
    assert_eq!(ask(&proxy, "GET /live/echo", &[], "").await.0, 403, "nothing new by it");
    let rest = client.read_to_end(&mut seen);
    tokio::time::timeout(Duration::from_millis(500), rest).await.expect_err("the use was its own: it goes on");
    let rest = client.read_to_end(&mut seen);
    let _reset = tokio::time::timeout(Duration::from_secs(10), rest).await.expect("until the end of the grant");
    assert_eq!(proxy.records().pop().unwrap()["reason"], "entitlement.grant_expired");
}

/// A server that answers each request once its head is there, and keeps whatever it is sent.
async fn hasty() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, all) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let kept = Arc::clone(&all);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let (mut answered, mut piece) = (false, [0; 4096]);
                while let Ok(read @ 1..) = stream.read(&mut piece).await {
                    kept.lock().unwrap().extend_from_slice(&piece[..read]);
                    if !answered {
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                        answered = true;
                    }
                }
            });
        }
    });
    (address, all)
}

async fn until_seen(all: &Mutex<Vec<u8>>, what: &str) -> bool {
    for _ in 0..100 {
        if String::from_utf8_lossy(&all.lock().unwrap()).contains(what) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_answer_came_early_is_cut_too() {
    let (address, all) = hasty().await;
    let mut proxy = Proxy::open(config(upstream(&[address], Protocol::Http1))).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(proxy.head("POST /app/x", &["Transfer-Encoding: chunked"]).as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        assert!(client.read_buf(&mut answer).await.unwrap() > 0);
    }
    client.write_all(b"5\r\nfirst\r\n").await.unwrap();
    assert!(until_seen(&all, "first").await, "the upload goes on behind its answer");
    proxy.estate.revoke(&json!({"kind": "workload", "workload": Estate::id("storefront")}));
    proxy.publish();
    tokio::time::sleep(Duration::from_millis(250)).await;
    let _closed = client.write_all(b"6\r\nsecond\r\n").await;
    assert!(!until_seen(&all, "second").await, "nothing of it after the revocation");
    assert_eq!(proxy.records().pop().unwrap()["reason"], "revoked.workload");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_says_of_its_connection_is_not_decided_on() {
    let service = Service::start().await;
    let mut proxy = Proxy::before(&service).await;
    for (name, value) in [("x-forwarded-for", "10.0.0.1"), ("x-real-ip", "10.0.0.1"), ("x-run", "42")] {
        let asked = proxy.estate.ask("storefront", "app/live", &["read"], None, 60);
        let headers = json!({"headers": {name: [value]}});
        let (grant, _) =
            proxy.estate.grant_as(asked, |grant| grant.conditions = serde_json::from_value(headers).unwrap());
        proxy.publish();
        let status = ask(&proxy, "GET /live/echo", &[&format!("{name}: {value}")], "").await.0;
        assert_eq!(status, if name == "x-run" { 200 } else { 403 }, "{name}");
        proxy.estate.revoke_grant(grant.id);
    }
    // What it may ask of the decision still counts.
    assert_eq!(ask(&proxy, "GET /app/echo", &["X-Portcullis-Min-Revision: x"], "").await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_past_the_messages_of_an_mcp_server() {
    let service = Service::start().await;
    let mut proxy = Proxy::before(&service).await;
    let routes = json!([{"name": "mcp", "path": "/app/mcp", "mcp": {}}]);
    proxy.estate.put(Kind::Service, &json!({"name": "app", "routes": routes}));
    proxy.publish();
    let get = ["MCP-Protocol-Version: 2025-06-18", "Accept: text/event-stream"];
    let websocket = [&get[..], &["Upgrade: websocket", "Connection: Upgrade, close", "Sec-WebSocket-Key: x"]].concat();
    let mut head = proxy.head("GET /app/mcp", &websocket);
    let answer = raw(proxy.address, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let body = [&get[..], &["Content-Length: 3", "Connection: close"]].concat();
    for method in ["GET", "DELETE"] {
        head = proxy.head(&format!("{method} /app/mcp"), &body) + "abc";
        let answer = raw(proxy.address, head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{method}: {answer}");
    }
    assert_eq!(service.requests(), 0);
    assert!(ask(&proxy, "GET /app/mcp", &get, "").await.0 < 300, "what is looked at is forwarded");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_within_a_body_puts_nothing_into_it() {
    let (address, all) = hasty().await;
    let proxy = Proxy::open(config(upstream(&[address], Protocol::Http1))).await;
    for (length, rest) in [("Content-Length: 3", "abc\n"), ("Transfer-Encoding: chunked", "5\nabcde\r\n0\r\n\r\n")] {
        all.lock().unwrap().clear();
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        client.write_all(proxy.head("POST /app/x", &[length]).as_bytes()).await.unwrap();
        assert!(until_seen(&all, "\r\n\r\n").await);
        client.write_all(rest.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _reset =
            tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut answer)).await.expect("closed");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let sent = all.lock().unwrap().clone();
        assert!(sent.ends_with(b"\r\n\r\n") && !sent.contains(&0), "{length}: {}", String::from_utf8_lossy(&sent));
    }
    let refused = proxy.records().iter().filter(|record| record["reason"] == "input.malformed").count();
    assert_eq!(refused, 2, "they are on record");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_answer_to_an_upgrade_decides_what_follows_it() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let websocket = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: x"];
    let (first, second) = (proxy.head("GET /app/echo", &[]), proxy.head("GET /app/ws", &websocket));
    // As HTTP, the line feed would be refused.
    let frame = b"\x81\x85\0\0\0\0he\nlo";
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(&[first.as_bytes(), second.as_bytes(), frame].concat()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(7).any(|w| w == b"\x81\x05he\nlo") {
        assert!(client.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http2_that_takes_nothing_does_not_keep_its_connection() {
    let service = Service::start().await;
    let mut config = config(upstream(&[service.address], Protocol::Http1));
    config.limits.idle_timeout = Duration::from_millis(300);
    let proxy = Proxy::open(config).await;
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    let (send, connection) = builder.initial_window_size(0).handshake::<_, bytes::Bytes>(stream).await.unwrap();
    let ends = tokio::spawn(connection);
    // A denial has a body, for which there is no room.
    let request = Request::get("http://shop.example/app/echo").body(()).unwrap();
    let (answer, _) = send.ready().await.unwrap().send_request(request, true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 401);
    let _ended = tokio::time::timeout(Duration::from_secs(5), ends).await.expect("it is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_where_most_have_none_is_still_one() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let (status, body) = ask(&proxy, "GET /app/echo", &["Transfer-Encoding: chunked"], "3\r\nabc\r\n0\r\n\r\n").await;
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("\"body\":\"abc\""), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_begun_to_answer_is_not_asked_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(Mutex::new(0));
    let counts = Arc::clone(&count);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _head = stream.read(&mut [0; 4096]).await;
            *counts.lock().unwrap() += 1;
            let _ = stream.write_all(b"HTTP/1.1 2x0 OK\r\n\r\n").await;
        }
    });
    let proxy = Proxy::open(config(upstream(&[address], Protocol::Http1))).await;
    assert_eq!(ask(&proxy, "GET /app/x", &[], "").await.0, 502);
    assert_eq!(*count.lock().unwrap(), 1);
}

/// A connection of HTTP/2 whose streams have this much room, and the connection any.
async fn narrow(proxy: &Proxy, window: u32) -> h2::client::SendRequest<bytes::Bytes> {
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(1 << 30);
    let (send, connection) = builder.handshake::<_, bytes::Bytes>(stream).await.unwrap();
    tokio::spawn(connection);
    send.ready().await.unwrap()
}

fn get(proxy: &Proxy, path: &str) -> Request<()> {
    let auth = proxy.bearer("storefront");
    let request = Request::get(format!("http://shop.example{path}"));
    request.header("authorization", auth.split_once(": ").unwrap().1).body(()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_over_http2_that_is_not_taken_is_given_up_and_the_others_go_on() {
    let service = Service::start().await;
    for (protocol, window) in [(Protocol::Http1, 0), (Protocol::Http1, 30_000), (Protocol::Http2, 0)] {
        let mut one = upstream(&[service.address], protocol);
        one.max_requests = 2;
        let mut config = config(one);
        config.limits.idle_timeout = Duration::from_millis(400);
        let proxy = Proxy::open(config).await;
        let before = service.requests();
        let mut send = narrow(&proxy, window).await;
        let (answer, _) = send.send_request(get(&proxy, "/app/bytes?n=100000000"), true).unwrap();
        let stalled = answer.await.unwrap();
        // One that the upstream is slow with, on the same connection: nobody's fault, and it goes on.
        let (slow, _) = send.send_request(get(&proxy, "/app/slow?ms=2500"), true).unwrap();
        let slow = tokio::spawn(slow);
        service.until(before + 2).await;
        // Both places are taken, until the first is given up.
        let freed = async {
            while ask(&proxy, "GET /app/echo", &[], "").await.0 == 503 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(2), freed).await.unwrap_or_else(|_| panic!("{protocol:?} {window}"));
        let mut body = stalled.into_body();
        let mut taken = 0;
        let end = loop {
            match tokio::time::timeout(Duration::from_secs(5), body.data()).await.expect("it ends") {
                Some(Ok(piece)) => {
                    taken += piece.len();
                    body.flow_control().release_capacity(piece.len()).unwrap();
                }
                Some(Err(error)) => break error,
                None => panic!("{protocol:?} {window}: {taken} look whole"),
            }
        };
        assert!(end.is_reset() && taken < 200_000, "{protocol:?} {window}: {end} after {taken}");
        assert_eq!(slow.await.unwrap().unwrap().status(), 200, "{protocol:?} {window}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_over_http2_that_is_not_taken_is_cut_all_the_same() {
    let service = Service::start().await;
    let mut proxy = Proxy::before(&service).await;
    let mut send = narrow(&proxy, 0).await;
    let (answer, _) = send.send_request(get(&proxy, "/app/bytes?n=100000000"), true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    proxy.estate.revoke(&json!({"kind": "workload", "workload": Estate::id("storefront")}));
    proxy.publish();
    let end = tokio::time::timeout(Duration::from_secs(2), body.data()).await.expect("it is cut");
    assert!(end.is_some_and(|end| end.is_err_and(|error| error.is_reset())));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_take_nothing_keep_no_other_from_a_shared_connection() {
    let service = Service::start().await;
    let proxy = Proxy::open(config(upstream(&[service.address], Protocol::Http2))).await;
    let mut stalled = Vec::new();
    for _ in 0..40 {
        let mut send = narrow(&proxy, 0).await;
        let (answer, _) = send.send_request(get(&proxy, "/app/bytes?n=100000000"), true).unwrap();
        stalled.push((send, answer.await.unwrap()));
    }
    let other = ask(&proxy, "GET /app/bytes?n=5000000", &[], "");
    let (status, body) = tokio::time::timeout(Duration::from_secs(20), other).await.expect("in time");
    assert_eq!((status, body.len() > 5_000_000), (200, true));
}
