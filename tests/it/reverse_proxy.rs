//! The reverse proxy between raw clients and real servers: what reaches the upstream, what does not, and in what form.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use portcullis::clock::{Clock, SystemClock};
use portcullis::door::{self, Checks};
use portcullis::drain::{self, Drain};
use portcullis::object::Kind;
use portcullis::proxy::{self, Config, Limits, Listener, Protocol, Timeouts, UpstreamConfig};
use portcullis::state::State;
use portcullis::telemetry::{Output, Records, RecordsConfig, SidecarMetrics, Telemetry};
use portcullis::testing::Estate;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::reverse_proxy_upstream::Service;

/// The proxy on a small estate: `storefront` may do anything to `app`; `/live/` of it takes a grant, which `agent` has.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) estate: Estate,
    pub(crate) state: Arc<State>,
    pub(crate) grant: portcullis::object::GrantId,
    pub(crate) drain: Drain,
    pub(crate) served: JoinHandle<std::io::Result<()>>,
    telemetry: Arc<Telemetry>,
    directory: tempfile::TempDir,
}

const POLICIES: &str = r#"
@id("app")  permit(principal in Role::"storefront", action, resource in Service::"app");
@id("jit")  permit(principal, action, resource in Service::"app") when { context has grant };
@id("live") forbid(principal, action, resource == Route::"app/live") unless { context has grant };
"#;

/// An upstream of `app` at these addresses.
pub(crate) fn upstream(addresses: &[SocketAddr], protocol: Protocol) -> UpstreamConfig {
    UpstreamConfig {
        service: "app".to_owned(),
        addresses: addresses.iter().map(SocketAddr::to_string).collect(),
        protocol,
        tls: None,
        timeouts: Timeouts::default(),
        retries: 1,
        max_requests: 100,
        health: None,
    }
}

pub(crate) fn config(upstream: UpstreamConfig) -> Config {
    Config {
        listener: Listener::default(),
        upstreams: vec![upstream],
        trusted_forwarders: Vec::new(),
        upgrades: vec!["websocket".to_owned()],
        limits: Limits::default(),
    }
}

impl Proxy {
    pub(crate) async fn open(config: Config) -> Self {
        let clock = Arc::new(SystemClock::new());
        let mut estate = Estate::new_at(clock.now().wall);
        let routes = json!([
            {"name": "live", "path": "/live/{**}", "grants": {"max_duration_seconds": 3600}},
            {"name": "mtls", "path": "/mtls/{**}", "authentication": "certificate"},
            {"name": "all", "path": "/app/{**}"},
        ]);
        estate.put(Kind::Service, &json!({"name": "app", "routes": routes}));
        estate.put_policies(POLICIES);
        let (grant, _) = estate.grant("agent", "app/live", &["read", "write"], None, 3600);
        Self::on(estate, grant.id, config).await
    }

    /// On another estate; `grant` is one of it.
    pub(crate) async fn on(estate: Estate, grant: portcullis::object::GrantId, config: Config) -> Self {
        let clock = Arc::new(SystemClock::new());
        let state = crate::door::state(&estate, &clock);
        let directory = tempfile::tempdir().unwrap();
        let output = Output::File { path: directory.path().join("records"), max_bytes: u64::MAX, keep: 1 };
        let metrics = Arc::new(SidecarMetrics::new().unwrap());
        let records = RecordsConfig { output, queue: 1000 };
        let records = Records::start(records, metrics.records_dropped().clone()).unwrap();
        let telemetry = Telemetry::new(metrics, records, None, clock.clone() as _);
        let gate = Arc::new(crate::door::gate(&state, &clock));
        let checks = Checks::new(gate, Arc::clone(&telemetry), &door::Config::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bound = proxy::Bound::new(listener, config).unwrap();
        let (drain, signal) = drain::channel();
        let served = tokio::spawn(proxy::serve(bound, checks, signal));
        Self { address, estate, state, grant, drain, served, telemetry, directory }
    }

    /// In front of one service that speaks HTTP/1.
    pub(crate) async fn before(service: &Service) -> Self {
        Self::open(config(upstream(&[service.address], Protocol::Http1))).await
    }

    pub(crate) fn bearer(&self, workload: &str) -> String {
        format!("Authorization: Bearer {}", self.estate.token(workload))
    }

    /// Puts what the estate has become in force; answers when that was.
    pub(crate) fn publish(&self) -> std::time::Instant {
        let _retired = self.state.publish(Arc::new(self.estate.snapshot()));
        std::time::Instant::now()
    }

    /// A head of HTTP/1.1 with `storefront`'s token.
    pub(crate) fn head(&self, line: &str, more: &[&str]) -> String {
        let mut head = format!("{line} HTTP/1.1\r\nHost: shop.example\r\n{}\r\n", self.bearer("storefront"));
        more.iter().for_each(|line| head.push_str(&format!("{line}\r\n")));
        head + "\r\n"
    }

    /// What a scrape is answered with.
    pub(crate) fn metrics(&self) -> String {
        self.telemetry.metrics().exposition().render()
    }

    /// Every record so far.
    pub(crate) fn records(&self) -> Vec<Value> {
        assert!(self.telemetry.records().flush(Duration::from_secs(10)));
        let text = std::fs::read_to_string(self.directory.path().join("records")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Sends bytes, and reads all until the other end closes.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _reset = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("closed");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The same with `Connection: close`; status and body.
pub(crate) async fn ask(proxy: &Proxy, line: &str, more: &[&str], body: &str) -> (u16, String) {
    let more: Vec<&str> = more.iter().copied().chain(["Connection: close"]).collect();
    let answer = raw(proxy.address, format!("{}{body}", proxy.head(line, &more)).as_bytes()).await;
    let status = answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"));
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

fn json_in(body: &str) -> Value {
    let (from, to) = (body.find('{').unwrap(), body.rfind('}').unwrap());
    serde_json::from_str(&body[from..=to]).unwrap_or_else(|e| panic!("{e}: {body}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_allowed_reaches_the_upstream_with_its_identity_and_nothing_of_the_connection() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let spoofed = [
        "X-Portcullis-Workload: spiffe://test.example/admin",
        "x_portcullis_grant: 1",
        "X-Forwarded-For: 10.0.0.1",
        "Forwarded: for=10.0.0.1",
        "X-Hop: 1",
        "Connection: X-Hop",
        "Keep-Alive: timeout=5",
        "Proxy-Authorization: Basic x",
        "X-Kept: a",
        "X-Kept: b",
    ];
    let (status, body) = ask(&proxy, "GET /app/echo?q=%41", &spoofed, "").await;
    assert_eq!(status, 200, "{body}");
    let seen = json_in(&body);
    assert_eq!((&seen["method"], &seen["path"]), (&json!("GET"), &json!("/app/echo?q=%41")));
    let headers = &seen["headers"];
    assert_eq!(headers["x-portcullis-workload"], json!(Estate::id("storefront")), "{headers}");
    assert_eq!(headers["host"], "shop.example");
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(headers["forwarded"], "for=127.0.0.1;proto=http;host=\"shop.example\"");
    assert_eq!(headers["x-kept"], json!(["a", "b"]));
    for gone in ["x_portcullis_grant", "x-portcullis-grant", "x-hop", "keep-alive", "proxy-authorization", "connection"]
    {
        assert_eq!(headers[gone], Value::Null, "{gone}: {headers}");
    }
    let record = proxy.records().pop().unwrap();
    assert_eq!(
        (&record["door"], &record["reason"], &record["path"]),
        (&json!("proxy"), &json!("allow.policy"), &json!("/app/echo"))
    );
    assert_eq!(headers["x-portcullis-decision-id"], record["decision_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_denied_does_not_reach_the_upstream() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let answer = raw(proxy.address, b"GET /app/echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(answer.contains("www-authenticate: Bearer") && answer.contains("application/problem+json"), "{answer}");
    for (line, status) in [
        ("GET /live/x", 403),
        ("GET /nowhere", 403),
        ("GET /app/%2e%2e/x", 400),
        ("GET /app/a%2fb", 400),
        ("GET /app//x", 400),
        ("GET /app/..", 400),
        ("OPTIONS *", 400),
        ("TRACE /app/echo", 400),
    ] {
        assert_eq!(ask(&proxy, line, &[], "").await.0, status, "{line}");
    }
    assert_eq!(service.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_trailers_go_both_ways() {
    let service = Service::start().await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let proxy = Proxy::open(config(upstream(&[service.address], protocol))).await;
        let chunked = "5\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 7\r\nX-Portcullis-Workload: admin\r\n\r\n";
        let more = ["Transfer-Encoding: chunked", "TE: trailers", "Trailer: X-Sum, X-Portcullis-Workload"];
        let (status, body) = ask(&proxy, "POST /app/echo", &more, chunked).await;
        assert_eq!(status, 200, "{body}");
        let seen = json_in(&body);
        assert_eq!(seen["body"], "hello world");
        assert_eq!(seen["trailers"], json!({"x-sum": "7"}), "{protocol:?}");
        assert!(body.contains("x-answered: yes"), "the answer's trailer: {body}");
        let (_, body) = ask(&proxy, "PUT /app/echo", &["Content-Length: 3"], "abc").await;
        assert_eq!(json_in(&body)["body"], "abc");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_is_told_to_go_on_only_once_it_is_allowed() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let more = ["Expect: 100-continue", "Content-Length: 3", "Connection: close"];
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(proxy.head("POST /app/echo", &more).as_bytes()).await.unwrap();
    let mut first = [0; 25];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 ") && rest.contains("abc"), "{rest}");
    let denied = raw(proxy.address, proxy.head("POST /live/x", &more).as_bytes()).await;
    assert!(denied.starts_with("HTTP/1.1 403 "), "{denied}");
    let odd = raw(proxy.address, proxy.head("POST /app/echo", &["Expect: 200-ok"]).as_bytes()).await;
    assert!(odd.starts_with("HTTP/1.1 400 "), "{odd}");
}

/// A server that reads a request and closes, `bad` times, and then answers.
async fn flaky(bad: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counts = Arc::clone(&count);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            if counts.fetch_add(1, Ordering::SeqCst) >= bad {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
                let _ = stream.read(&mut head).await;
            }
        }
    });
    (address, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_sent_again_only_when_that_is_harmless() {
    for (line, more, body, bad, expected) in [
        ("GET /app/x", &[][..], "", 1, (200, 2)),
        ("GET /app/x", &[][..], "", 2, (502, 2)),
        ("POST /app/x", &["Content-Length: 0"][..], "", 1, (502, 1)),
        ("PUT /app/x", &["Content-Length: 3"][..], "abc", 1, (502, 1)),
    ] {
        let (address, count) = flaky(bad).await;
        let proxy = Proxy::open(config(upstream(&[address], Protocol::Http1))).await;
        let (status, answer) = ask(&proxy, line, more, body).await;
        assert_eq!((status, count.load(Ordering::SeqCst)), expected, "{line}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_does_not_work_is_passed_over() {
    let service = Service::start().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = nobody.local_addr().unwrap();
    drop(nobody);
    let proxy = Proxy::open(config(upstream(&[gone, service.address], Protocol::Http1))).await;
    for _ in 0..6 {
        assert_eq!(ask(&proxy, "POST /app/echo", &["Content-Length: 0"], "").await.0, 200);
    }
    let proxy = Proxy::open(config(upstream(&[gone], Protocol::Http1))).await;
    let (status, body) = ask(&proxy, "GET /app/echo", &[], "").await;
    assert_eq!(status, 503);
    assert!(!body.contains("127.0.0.1"), "no word of where it is: {body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold() {
    let service = Service::start().await;
    let mut config = config(upstream(&[service.address], Protocol::Http1));
    config.limits.max_body_bytes = Some(10);
    config.limits.head_timeout = Duration::from_millis(200);
    config.limits.idle_timeout = Duration::from_millis(300);
    config.limits.max_header_bytes = 8192;
    let proxy = Proxy::open(config).await;
    assert_eq!(ask(&proxy, "POST /app/echo", &["Content-Length: 11"], "").await.0, 413);
    let chunked = "6\r\nabcdef\r\n6\r\nabcdef\r\n0\r\n\r\n";
    assert_eq!(ask(&proxy, "POST /app/echo", &["Transfer-Encoding: chunked"], chunked).await.0, 413);
    let long = format!("X: {}", "a".repeat(9000));
    assert_eq!(ask(&proxy, "GET /app/echo", &[&long], "").await.0, 431);
    // Slow: in a head, in a body, between two requests.
    let begun = std::time::Instant::now();
    assert_eq!(raw(proxy.address, b"GET /app/echo HTTP/1.1\r\nHost: a").await, "");
    let unfinished = proxy.head("POST /app/echo", &["Content-Length: 9"]) + "abc";
    raw(proxy.address, unfinished.as_bytes()).await;
    // One that takes nothing.
    let mut stalled = TcpStream::connect(proxy.address).await.unwrap();
    stalled.write_all(proxy.head("GET /app/bytes?n=200000000", &[]).as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut taken = Vec::new();
    let _reset = stalled.read_to_end(&mut taken).await;
    assert!(taken.len() < 200_000_000, "{}", taken.len());
    let kept = raw(proxy.address, proxy.head("GET /app/echo", &[]).as_bytes()).await;
    assert!(kept.starts_with("HTTP/1.1 200 "), "{kept}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_what_is_under_way_end_and_closes_what_does_not() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let mut slow = TcpStream::connect(proxy.address).await.unwrap();
    slow.write_all(proxy.head("GET /app/slow?ms=300", &[]).as_bytes()).await.unwrap();
    let mut endless = TcpStream::connect(proxy.address).await.unwrap();
    endless.write_all(proxy.head("GET /app/events", &[]).as_bytes()).await.unwrap();
    let mut piece = [0; 64];
    endless.read_exact(&mut piece).await.unwrap();
    service.until(2).await;
    proxy.drain.begin(Duration::from_millis(900));
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.to_ascii_lowercase().contains("connection: close"),
        "{answer}"
    );
    let late = raw(proxy.address, proxy.head("GET /app/echo", &[]).as_bytes()).await;
    assert!(late.starts_with("HTTP/1.1 200 "), "a new connection is still served: {late}");
    let mut rest = Vec::new();
    let _ = endless.read_to_end(&mut rest).await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "what was cut off does not look whole");
    proxy.served.await.unwrap().unwrap();
}
