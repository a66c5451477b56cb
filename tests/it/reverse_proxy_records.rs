//! Decision records of the reverse proxy as its access log: one for each request, with what became of what was allowed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portcullis::proxy::{Config, Protocol};
use portcullis::testing::Estate;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::reverse_proxy::{Proxy, ask, config, raw, upstream};
use crate::reverse_proxy_upstream::Service;

/// Until there are so many records.
async fn records(proxy: &Proxy, count: usize) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let records = proxy.records();
        if records.len() >= count {
            assert_eq!(records.len(), count, "{records:?}");
            return records;
        }
        assert!(Instant::now() < deadline, "{records:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether an allow's record says that nobody answered, and why.
fn unanswered(record: &Value, why: &str) {
    assert_eq!((&record["decision"], &record["upstream_error"]), (&json!("allow"), &json!(why)), "{record}");
    assert!(record["upstream_us"].is_u64(), "{record}");
    assert_eq!((&record["upstream"], &record["upstream_status"]), (&Value::Null, &Value::Null), "{record}");
}

/// A server that answers each request with these bytes, or hangs up when there are none.
async fn saying(bytes: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(bytes.as_bytes()).await;
        }
    });
    address
}

fn before(address: SocketAddr) -> Config {
    config(upstream(&[address], Protocol::Http1))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answered_request_has_one_record_with_who_answered_what_and_after_how_long() {
    let service = Service::start().await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let proxy = Proxy::open(config(upstream(&[service.address], protocol))).await;
        let started = Instant::now();
        assert_eq!(ask(&proxy, "GET /app/slow?ms=120", &[], "").await.0, 200);
        let took = started.elapsed();
        assert_eq!(ask(&proxy, "POST /app/echo", &["Content-Length: 3"], "abc").await.0, 200);
        assert_eq!(ask(&proxy, "GET /live/x", &[], "").await.0, 403);
        let [slow, echo, denied] = records(&proxy, 3).await.try_into().unwrap();
        for record in [&slow, &echo] {
            assert_eq!((&record["door"], &record["reason"]), (&json!("proxy"), &json!("allow.policy")), "{record}");
            assert_eq!(record["upstream"], service.address.to_string(), "{record}");
            assert_eq!(
                (&record["upstream_status"], &record["upstream_error"]),
                (&json!(200), &Value::Null),
                "{record}"
            );
        }
        let waited = Duration::from_micros(slow["upstream_us"].as_u64().unwrap());
        assert!(waited >= Duration::from_millis(115) && waited <= took, "{slow}");
        let decided = Duration::from_micros(slow["duration_us"].as_u64().unwrap());
        assert!(decided < Duration::from_millis(100), "what a decision takes is not what an answer takes: {slow}");
        let about_the_upstream = denied.as_object().unwrap().keys().any(|key| key.starts_with("upstream"));
        assert!(denied["decision"] == "deny" && !about_the_upstream, "{denied}");
        let metrics = proxy.metrics();
        for line in [
            "portcullis_proxy_forwarded_total{result=\"2xx\"} 2",
            "portcullis_proxy_upstream_seconds_count 2",
            "portcullis_checks_total{cached=\"false\",decision=\"allow\",door=\"proxy\",reason=\"allow.policy\"} 2",
        ] {
            assert!(metrics.lines().any(|l| l == line), "{line}: {metrics}");
        }
    }
    let gone = saying("HTTP/1.1 410 Gone\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    let proxy = Proxy::open(before(gone)).await;
    assert_eq!(ask(&proxy, "GET /app/x", &[], "").await.0, 410);
    assert_eq!(records(&proxy, 1).await[0]["upstream_status"], 410);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_record_comes_with_the_head_however_long_the_answer_lasts() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let mut events = TcpStream::connect(proxy.address).await.unwrap();
    events.write_all(proxy.head("GET /app/events", &[]).as_bytes()).await.unwrap();
    let mut first = [0; 12];
    events.read_exact(&mut first).await.unwrap();
    assert_eq!(records(&proxy, 1).await[0]["upstream_status"], 200);
    let mut socket = TcpStream::connect(proxy.address).await.unwrap();
    let wishes = ["Upgrade: websocket", "Connection: upgrade", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"];
    socket.write_all(proxy.head("GET /app/ws", &wishes).as_bytes()).await.unwrap();
    socket.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 101");
    assert_eq!(records(&proxy, 2).await[1]["upstream_status"], 101);
    // Nothing more when they end.
    drop((events, socket));
    assert_eq!(ask(&proxy, "GET /app/echo", &[], "").await.0, 200);
    records(&proxy, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_an_answer_has_one_record_with_why() {
    let service = Service::start().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let with = |address, change: &dyn Fn(&mut Config)| {
        let mut config = before(address);
        change(&mut config);
        config
    };
    for (config, line, more, status, why) in [
        (before(saying("").await), "POST /app/x", &["Content-Length: 0"][..], 502, "broken"),
        (before(saying("SSH-2.0\r\n\r\n").await), "GET /app/x", &[], 502, "broken"),
        (before(free), "GET /app/x", &[], 503, "connect"),
        (
            with(service.address, &|c| c.upstreams[0].timeouts.response = Duration::from_millis(50)),
            "GET /app/slow?ms=60000",
            &[],
            504,
            "timeout",
        ),
        (
            with(service.address, &|c| c.limits.max_body_bytes = Some(2)),
            "POST /app/x",
            &["Content-Length: 3"],
            413,
            "body",
        ),
        (
            with(service.address, &|c| c.limits.max_body_bytes = Some(2)),
            "POST /app/count",
            &["Transfer-Encoding: chunked"],
            413,
            "body",
        ),
        (
            with(service.address, &|c| c.upstreams[0].service = "other".to_owned()),
            "GET /app/x",
            &[],
            503,
            "no_upstream",
        ),
    ] {
        let proxy = Proxy::open(config).await;
        let body = if more == ["Transfer-Encoding: chunked"] { "3\r\nabc\r\n0\r\n\r\n" } else { "abc" };
        assert_eq!(ask(&proxy, line, more, body).await.0, status, "{why}");
        unanswered(&records(&proxy, 1).await[0], why);
        let line = format!("portcullis_proxy_forwarded_total{{result=\"{why}\"}} 1");
        assert!(proxy.metrics().lines().any(|l| l == line), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_or_is_cut_off_leaves_one_record() {
    let service = Service::start().await;
    let mut config = before(service.address);
    config.upstreams[0].max_requests = 1;
    let mut proxy = Proxy::open(config).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(proxy.head("GET /app/slow?ms=60000", &[]).as_bytes()).await.unwrap();
    service.until(1).await;
    assert_eq!(ask(&proxy, "GET /app/echo", &[], "").await.0, 503);
    unanswered(&records(&proxy, 1).await[0], "full");
    drop(client);
    unanswered(&records(&proxy, 2).await[1], "client_gone");

    // Revoked while it waits: the denial is on record too, and the client is told of it.
    let waiting = {
        let (address, head) = (proxy.address, proxy.head("GET /app/slow?ms=60000", &["Connection: close"]));
        tokio::spawn(async move { raw(address, head.as_bytes()).await })
    };
    service.until(2).await;
    proxy.estate.revoke(&json!({"kind": "workload", "workload": Estate::id("storefront")}));
    proxy.publish();
    let answer = waiting.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let all = records(&proxy, 4).await;
    let (denials, allows): (Vec<_>, Vec<_>) = all[2..].iter().partition(|record| record["decision"] == "deny");
    assert_eq!(denials[0]["reason"], "revoked.workload");
    unanswered(allows[0], "cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_ends_leaves_the_records_of_what_it_never_answered() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(proxy.head("GET /app/slow?ms=60000", &[]).as_bytes()).await.unwrap();
    service.until(1).await;
    proxy.drain.begin(Duration::from_millis(50));
    unanswered(&records(&proxy, 1).await[0], "client_gone");
}
