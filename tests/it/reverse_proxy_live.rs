//! Answers that are still open when what allowed them ends: cut, clearly, and soon.
//!
//! The time is from the moment the state is in force, which is when a sidecar sends its receipt, to the moment the client
//! knows.
#![allow(clippy::print_stdout, reason = "what is measured is told")]

use std::time::{Duration, Instant};

use http::Request;
use portcullis::proxy::Protocol;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::reverse_proxy::{Proxy, config, upstream};
use crate::reverse_proxy_upstream::Service;

/// What the issue asks for.
const SOON: Duration = Duration::from_millis(250);

fn tell(what: &str, since: Instant) {
    let took = since.elapsed();
    println!("{what}: cut {took:?} after the receipt");
    assert!(took < SOON, "{what}: {took:?}");
}

fn live_head(proxy: &Proxy, target: &str, more: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: shop.example\r\n{}\r\n{more}\r\n", proxy.bearer("agent"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_closed_with_1008_when_its_grant_is_revoked() {
    let service = Service::start().await;
    let mut proxy = Proxy::before(&service).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    let more = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n";
    // A frame right behind the head, as no client should send it, waits for the answer.
    let frame = [&[0x81, 0x85, 1, 2, 3, 4][..], &[b'h' ^ 1, b'e' ^ 2, b'l' ^ 3, b'l' ^ 4, b'o' ^ 1]].concat();
    let head = live_head(&proxy, "/live/ws", more);
    client.write_all(&[head.as_bytes(), &frame].concat()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(7).any(|w| w == b"\x81\x05hello") {
        assert!(client.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
    }
    assert!(seen.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&seen));
    let text = String::from_utf8_lossy(&seen).to_ascii_lowercase();
    assert!(text.contains("sec-websocket-accept: x") && text.contains("x-portcullis-decision-id: "), "{text}");

    proxy.estate.revoke_grant(proxy.grant);
    let since = proxy.publish();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    tell("WebSocket", since);
    let close = [&[0x88, 15, 0x03, 0xf0][..], b"revoked.grant"].concat();
    assert!(rest.ends_with(&close), "{rest:?}");
    // What is before it are whole frames.
    let before = rest.strip_suffix(&close[..]).unwrap();
    assert_eq!(before.len() % b"\x81\x04tick".len(), 0, "{before:?}");
    let last = proxy.records().pop().unwrap();
    assert_eq!((&last["reason"], &last["decision"]), (&json!("revoked.grant"), &json!("deny")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_is_not_allowed_or_not_listed_comes_to_nothing() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    for (token, target, upgrade, expected) in
        [("storefront", "/live/ws", "websocket", "403"), ("storefront", "/app/echo", "irc", "200")]
    {
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: a\r\n{}\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n\r\n",
            proxy.bearer(token)
        );
        client.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        client.read_exact(&mut first).await.unwrap();
        assert_eq!(&first[9..], expected.as_bytes(), "{upgrade}");
        // HTTP goes on on this connection.
        client.write_all(proxy.head("GET /app/echo", &["Connection: close"]).as_bytes()).await.unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert!(rest.contains("HTTP/1.1 200 "), "{rest}");
        assert!(!rest.contains("\"upgrade\":"), "{rest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_break_off_when_the_workload_is_revoked() {
    let service = Service::start().await;
    let mut proxy = Proxy::before(&service).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(proxy.head("GET /app/events", &[]).as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(6).any(|w| w == b"tick 3") {
        assert!(client.read_buf(&mut seen).await.unwrap() > 0);
    }
    // A change that is about somebody else changes nothing.
    proxy.estate.revoke_grant(proxy.grant);
    proxy.publish();
    tokio::time::timeout(Duration::from_millis(300), client.read_to_end(&mut seen)).await.expect_err("goes on");

    proxy.estate.revoke(&json!({"kind": "workload", "workload": portcullis::testing::Estate::id("storefront")}));
    let since = proxy.publish();
    let _reset = client.read_to_end(&mut seen).await;
    tell("SSE", since);
    assert!(!seen.ends_with(b"0\r\n\r\n"), "it does not look whole");
    assert_eq!(proxy.records().pop().unwrap()["reason"], "revoked.workload");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_stream_ends_with_permission_denied() {
    let service = Service::start().await;
    let mut proxy = Proxy::open(config(upstream(&[service.address], Protocol::Http2))).await;
    let (send, connection) = h2::client::handshake(TcpStream::connect(proxy.address).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    let auth = proxy.bearer("agent");
    let request = Request::post("http://shop.example/live/stream")
        .header("authorization", auth.split_once(": ").unwrap().1)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (answer, mut up) = send.ready().await.unwrap().send_request(request, false).unwrap();
    up.send_data(bytes::Bytes::from_static(b"\0\0\0\0\x01a"), false).unwrap();
    let mut down = answer.await.unwrap().into_body();
    assert_eq!(&down.data().await.unwrap().unwrap()[..], b"\0\0\0\0\x01a");
    proxy.estate.revoke_grant(proxy.grant);
    let since = proxy.publish();
    while let Some(piece) = down.data().await {
        piece.unwrap();
    }
    let trailers = down.trailers().await.unwrap().expect("trailers");
    tell("gRPC", since);
    assert_eq!(trailers["grpc-status"], "7");
    assert_eq!(trailers["grpc-message"], "revoked.grant");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_an_answer_yet_is_denied_when_policy_changes() {
    let service = Service::start().await;
    let mut proxy = Proxy::before(&service).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(proxy.head("GET /app/slow?ms=10000", &[]).as_bytes()).await.unwrap();
    service.until(1).await;
    proxy.estate.put_policies(r#"@id("no") forbid(principal, action, resource);"#);
    let since = proxy.publish();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    tell("waiting request", since);
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("policy.explicit_deny"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_token() {
    let service = Service::start().await;
    let mut config = config(upstream(&[service.address], Protocol::Http1));
    config.limits.live_interval = Duration::from_millis(100);
    let proxy = Proxy::open(config).await;
    let mut claims = proxy.estate.claims("storefront");
    claims["exp"] = json!(claims["iat"].as_u64().unwrap() + 3);
    let token = proxy.estate.signer.sign(&claims).unwrap();
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    let head = format!("GET /app/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut seen));
    let _reset = end.await.expect("it ends with the token");
    assert!(seen.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&seen));
    assert_eq!(proxy.records().pop().unwrap()["reason"], "credential.expired");
}
