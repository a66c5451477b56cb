//! Tests of the whole door over real sockets, with Envoy's generated client.
//! Long because each way of misbehaving over the wire is a test of its own, on one set of helpers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request as Attributes};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::authz::{Decision, DecisionId, Reason, Request};
use crate::cache::{CacheSizes, Gate, VerificationPool};
use crate::clock::{Clock, SharedClock, SystemClock};
use crate::door::{Checks, Decide};
use crate::drain::{self, Drain};
use crate::readiness::Readiness;
use crate::telemetry::{CheckTracer, Output, Records, RecordsConfig, Shed, SidecarMetrics, Telemetry};

mod tracing;
mod uses;
mod verification;

struct Running {
    tcp: SocketAddr,
    unix: std::path::PathBuf,
    readiness: Readiness,
    drain: Drain,
    telemetry: Arc<Telemetry>,
    served: JoinHandle<std::io::Result<()>>,
    _dir: tempfile::TempDir,
}

async fn start(config: Config, decide: impl Fn(&Request<'_>) -> Decision + Send + Sync + 'static) -> Running {
    start_traced(config, decide, None).await
}

async fn start_traced(
    config: Config,
    decide: impl Fn(&Request<'_>) -> Decision + Send + Sync + 'static,
    tracer: Option<CheckTracer>,
) -> Running {
    start_on(Vec::new(), config, decide, tracer).await
}

async fn start_on(
    workers: Vec<tokio::runtime::Handle>,
    config: Config,
    decide: impl Fn(&Request<'_>) -> Decision + Send + Sync + 'static,
    tracer: Option<CheckTracer>,
) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let unix = dir.path().join("ext_authz.sock");
    let clock: SharedClock = Arc::new(SystemClock::new());
    let metrics = Arc::new(SidecarMetrics::new().unwrap());
    let output = Output::File { path: dir.path().join("records"), max_bytes: u64::MAX, keep: 1 };
    let records = Records::start(RecordsConfig { output, queue: 1000 }, metrics.records_dropped().clone()).unwrap();
    let telemetry = Telemetry::new(metrics, records, tracer, clock.clone());
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = tcp.local_addr().unwrap();
    let listeners = Listeners { tcp: Some(tcp), unix: Some(UnixSocket::bind(&unix, 0o660).unwrap()), workers };
    let readiness = Readiness::new();
    let (drain, signal) = drain::channel();
    let decide = Decide::Test(Box::new(decide), clock);
    let pool = VerificationPool::start(config.verification).unwrap();
    let served =
        tokio::spawn(serve_with(listeners, decide, pool, telemetry.clone(), readiness.clone(), config, signal));
    Running { tcp: at, unix, readiness, drain, telemetry, served, _dir: dir }
}

/// As a door is served, on what decides and a pool of the test's own.
async fn serve_with(
    listeners: Listeners,
    decide: Decide,
    pool: VerificationPool,
    telemetry: Arc<Telemetry>,
    readiness: Readiness,
    config: Config,
    drain: drain::Signal,
) -> std::io::Result<()> {
    let checks = Checks::on(decide, pool, telemetry, &config.checks());
    serve_checks(listeners, &checks, readiness, config, drain).await
}

impl Running {
    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.tcp)).unwrap().connect().await.unwrap()
    }

    async fn client(&self) -> AuthorizationClient<Channel> {
        AuthorizationClient::new(self.channel().await)
    }

    fn records(&self) -> Vec<serde_json::Value> {
        assert!(self.telemetry.records().flush(Duration::from_secs(10)));
        let text = std::fs::read_to_string(self._dir.path().join("records")).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    fn reasons(&self) -> Vec<String> {
        self.records().iter().map(|r| r["reason"].as_str().unwrap().to_owned()).collect()
    }

    async fn ended(self) {
        tokio::time::timeout(Duration::from_secs(10), self.served).await.unwrap().unwrap().unwrap();
    }
}

fn id() -> DecisionId {
    DecisionId::new(SystemClock::new().now().wall)
}

/// Allows paths under `/ok`.
fn by_path(request: &Request<'_>) -> Decision {
    let reason = if request.path.starts_with("/ok") { Reason::AllowPolicy } else { Reason::PolicyNoMatch };
    Decision::for_test(reason, id())
}

fn check(path: &str) -> CheckRequest {
    let http = HttpRequest { method: "GET".to_owned(), path: path.to_owned(), ..HttpRequest::default() };
    let request = Attributes { http: Some(http), ..Attributes::default() };
    CheckRequest { attributes: Some(AttributeContext { request: Some(request), ..AttributeContext::default() }) }
}

async fn ask(client: &mut AuthorizationClient<Channel>, path: &str) -> CheckResponse {
    client.check(check(path)).await.unwrap().into_inner()
}

/// The status and the reason that the client is told: a caller who was not authenticated learns only the family.
fn denial(response: &CheckResponse) -> (i32, String) {
    assert_ne!(response.status.as_ref().unwrap().code, 0);
    let Some(HttpResponse::DeniedResponse(denied)) = &response.http_response else { panic!("{response:?}") };
    let reason = denied.headers.iter().filter_map(|h| h.header.as_ref()).find(|h| h.key == "x-portcullis-reason");
    (denied.status.as_ref().unwrap().code, reason.unwrap().value.clone())
}

fn is_allowed(response: &CheckResponse) -> bool {
    response.status.as_ref().unwrap().code == 0 && matches!(response.http_response, Some(HttpResponse::OkResponse(_)))
}

#[tokio::test]
async fn answers_on_tcp_and_on_the_unix_socket() {
    let running = start(Config::default(), by_path).await;
    let path = running.unix.clone();
    let over_unix = Endpoint::from_static("http://ext-authz")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .unwrap();
    for mut client in [running.client().await, AuthorizationClient::new(over_unix)] {
        assert!(is_allowed(&ask(&mut client, "/ok/1?secret=1").await));
        assert_eq!(denial(&ask(&mut client, "/no").await), (403, "policy.no_match".to_owned()));
    }
    assert_eq!(running.reasons(), ["allow.policy", "policy.no_match"].repeat(2));
    let first = &running.records()[0];
    assert_eq!(
        (&first["door"], &first["path"], &first["method"]),
        (&"ext_authz".into(), &"/ok/1".into(), &"GET".into())
    );
    let unix = running.unix.clone();
    running.drain.begin(Duration::ZERO);
    running.ended().await;
    assert!(!unix.exists(), "the socket is removed");
}

#[tokio::test]
async fn the_gate_decides_on_what_the_door_hands_over() {
    use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue};
    let mut estate = crate::testing::Estate::new();
    estate.grant("agent", "payments/refunds", &["write"], None, 600);
    let gate = Arc::new(Gate::new(estate.state(), estate.clock.clone(), CacheSizes { tokens: 10, decisions: 10 }));
    let metrics = Arc::new(SidecarMetrics::new().unwrap());
    let off = RecordsConfig { output: Output::Off, queue: 1 };
    let records = Records::start(off, metrics.records_dropped().clone()).unwrap();
    let telemetry = Telemetry::new(metrics, records, None, estate.clock.clone());
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("http://{}", tcp.local_addr().unwrap());
    let (_drain, signal) = drain::channel();
    let listeners = Listeners { tcp: Some(tcp), ..Default::default() };
    tokio::spawn(serve(listeners, gate, telemetry, Readiness::new(), Config::default(), signal));
    let mut client = AuthorizationClient::connect(at).await.unwrap();

    let token = format!("Bearer {}", estate.token("agent"));
    let other = format!("Bearer {}", estate.token("ci"));
    let mut ask = async |raw: bool, authorization: &[&str]| {
        let mut request = check("/refunds/7");
        let http = request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
        http.method = "POST".to_owned();
        http.host = "shop.example".to_owned();
        let name = "authorization".to_owned();
        if raw {
            let one = |value: &&str| HeaderValue {
                key: name.clone(),
                raw_value: value.as_bytes().to_vec(),
                ..HeaderValue::default()
            };
            http.header_map = Some(HeaderMap { headers: authorization.iter().map(one).collect() });
        } else if !authorization.is_empty() {
            // As Envoy joins them.
            http.headers.insert(name, authorization.join(","));
        }
        client.check(request).await.unwrap().into_inner()
    };
    for raw in [false, true] {
        assert!(is_allowed(&ask(raw, &[&token]).await));
        assert_eq!(denial(&ask(raw, &[]).await), (401, "credential".to_owned()));
        assert_eq!(denial(&ask(raw, &[&token, &token]).await).0, 400, "two credentials, raw: {raw}");
        assert_eq!(denial(&ask(raw, &[&other]).await), (403, "entitlement.no_grant".to_owned()));
    }
    let Some(HttpResponse::OkResponse(ok)) = ask(true, &[&token]).await.http_response else { panic!("denied") };
    let workload = ok.headers.iter().filter_map(|h| h.header.as_ref()).find(|h| h.key == "x-portcullis-workload");
    assert_eq!(workload.unwrap().value, "spiffe://test.example/agent");
}

#[tokio::test]
async fn what_cannot_be_read_is_denied_and_never_an_error() {
    let config = Config { max_message_bytes: 1000, ..Config::default() };
    let running = start(config, by_path).await;
    let mut client = running.client().await;
    let malformed = (400, "input".to_owned());
    assert_eq!(denial(&client.check(CheckRequest::default()).await.unwrap().into_inner()), malformed);
    // Over the limit, from a little to far more than a frame or a window holds.
    for len in [1000, 20_000, 3_000_000, 15_999_000, 30_000_000] {
        let response = client.check(check(&format!("/ok{}", "x".repeat(len)))).await;
        match response {
            Ok(response) => assert_eq!(denial(&response.into_inner()), malformed, "{len} bytes"),
            Err(status) => panic!("{len} bytes: {status:?}"),
        }
    }
    assert!(is_allowed(&ask(&mut client, "/ok").await), "the connection goes on");
    assert!(running.reasons().iter().rev().skip(1).all(|r| r == "input.malformed"));
}

/// Speaks HTTP/2 by hand, to send what no client library would.
async fn raw_call(at: SocketAddr, uri: &str, body: &'static [u8]) -> (http::response::Parts, Vec<u8>, http::HeaderMap) {
    use http_body_util::{BodyExt, Full};
    let io = TokioIo::new(tokio::net::TcpStream::connect(at).await.unwrap());
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{at}{uri}")).body(Full::new(bytes::Bytes::from_static(body)));
    let (parts, body) = send.send_request(request.unwrap()).await.unwrap().into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let bytes = body.to_bytes().to_vec();
    drop(send);
    connection.await.unwrap().unwrap();
    (parts, bytes, trailers)
}

#[tokio::test]
async fn broken_framing_is_denied_and_never_an_error() {
    use prost::Message;
    let running = start(Config::default(), by_path).await;
    let uri = "/envoy.service.auth.v3.Authorization/Check";
    for body in [
        &b""[..],
        b"\0\0\0",
        b"\0\0\0\0\x05abc",
        b"\x01\0\0\0\x03abc",
        b"\0\0\0\0\x00\0\0\0\0\0",
        b"\0\0\0\0\x03\xff\xff\xff",
        b"\0\xff\xff\xff\xffabc",
    ] {
        let (parts, answer, trailers) = raw_call(running.tcp, uri, body).await;
        assert_eq!(
            (parts.status.as_u16(), &parts.headers["content-type"]),
            (200, &"application/grpc".parse().unwrap())
        );
        assert_eq!(trailers["grpc-status"], "0", "{body:?}");
        assert_eq!(denial(&CheckResponse::decode(&answer[5..]).unwrap()), (400, "input".to_owned()));
    }
    let (parts, answer, _) = raw_call(running.tcp, "/envoy.service.auth.v3.Authorization/Other", b"").await;
    assert_eq!((parts.headers["grpc-status"].to_str().unwrap(), answer.len()), ("12", 0));
}

#[tokio::test]
async fn a_panic_is_a_denial_and_the_door_goes_on() {
    let running = start(Config::default(), |request| match request.path {
        "/bug" => panic!("as an engine's bug would"),
        _ => by_path(request),
    })
    .await;
    let mut client = running.client().await;
    assert_eq!(denial(&ask(&mut client, "/bug").await), (503, "system".to_owned()));
    assert!(is_allowed(&ask(&mut client, "/ok").await));
    assert_eq!(running.reasons(), ["system.internal", "allow.policy"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_door_is_a_denial() {
    let (entered, in_engine) = mpsc::channel();
    let (go_on, told) = mpsc::channel::<()>();
    let told = std::sync::Mutex::new(told);
    let config = Config { max_concurrent_checks: 1, ..Config::default() };
    // A thread for each connection: the first one stands still.
    let runtimes =
        [(); 2].map(|()| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());
    let workers = runtimes.iter().map(|runtime| runtime.handle().clone()).collect();
    let decide = move |request: &Request<'_>| {
        if request.path == "/ok/slow" {
            entered.send(()).unwrap();
            told.lock().unwrap().recv().unwrap();
        }
        by_path(request)
    };
    let running = start_on(workers, config, decide, None).await;
    let mut slow = running.client().await;
    let slow = tokio::spawn(async move { ask(&mut slow, "/ok/slow").await });
    tokio::task::spawn_blocking(move || in_engine.recv().unwrap()).await.unwrap();
    let mut other = running.client().await;
    assert_eq!(denial(&ask(&mut other, "/ok").await), (503, "system".to_owned()));
    assert_eq!(running.telemetry.metrics().shed(Shed::All).get(), 1);
    go_on.send(()).unwrap();
    assert!(is_allowed(&slow.await.unwrap()));
    assert!(is_allowed(&ask(&mut other, "/ok").await), "the place is free again");
    runtimes.into_iter().for_each(tokio::runtime::Runtime::shutdown_background);
}

#[tokio::test]
async fn a_message_that_does_not_arrive_is_a_denial() {
    let config = Config { message_timeout: Duration::from_millis(50), ..Config::default() };
    let running = start(config, by_path).await;
    let io = TokioIo::new(tokio::net::TcpStream::connect(running.tcp).await.unwrap());
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    // A body that never ends.
    let body = http_body_util::StreamBody::new(futures_util::stream::pending::<
        Result<hyper::body::Frame<bytes::Bytes>, std::convert::Infallible>,
    >());
    let uri = format!("http://{}/envoy.service.auth.v3.Authorization/Check", running.tcp);
    let response = send.send_request(http::Request::post(uri).body(body).unwrap()).await.unwrap();
    use http_body_util::BodyExt;
    use prost::Message;
    let answer = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(denial(&CheckResponse::decode(&answer[5..]).unwrap()), (503, "system".to_owned()));
}

#[tokio::test]
async fn a_client_that_goes_away_is_recorded() {
    let running = start(Config::default(), by_path).await;
    let io = TokioIo::new(tokio::net::TcpStream::connect(running.tcp).await.unwrap());
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let uri = format!("http://{}/envoy.service.auth.v3.Authorization/Check", running.tcp);
    let call = |ends: bool| {
        let frames = futures_util::stream::poll_fn(move |_| match ends {
            true => std::task::Poll::Ready(None::<Result<hyper::body::Frame<bytes::Bytes>, std::convert::Infallible>>),
            false => std::task::Poll::Pending,
        });
        http::Request::post(&uri).body(http_body_util::StreamBody::new(frames)).unwrap()
    };
    let waiting = tokio::spawn(send.send_request(call(false)));
    // Calls of one connection are taken up in order: once the second is answered, the first is under way.
    send.send_request(call(true)).await.unwrap();
    assert_eq!(running.reasons(), ["input.malformed"]);
    connection.abort();
    waiting.abort();
    let told = async {
        while running.reasons().len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
    assert_eq!(running.records()[1]["decision"], "deny");
}

/// Otherwise each refusal resets a stream, and a connection with too many of those is closed.
#[tokio::test]
async fn a_refusal_for_want_of_a_place_waits_for_the_end_of_the_message() {
    let config = Config { max_concurrent_checks: 0, ..Config::default() };
    let running = start(config, by_path).await;
    let io = TokioIo::new(tokio::net::TcpStream::connect(running.tcp).await.unwrap());
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("http://{}/envoy.service.auth.v3.Authorization/Check", running.tcp);
    let call = |end: tokio::sync::oneshot::Receiver<()>| {
        let frames = futures_util::stream::unfold(Some(end), |end| async move {
            let _ = end?.await;
            None::<(Result<hyper::body::Frame<bytes::Bytes>, std::convert::Infallible>, _)>
        });
        http::Request::post(&uri).body(http_body_util::StreamBody::new(Box::pin(frames))).unwrap()
    };
    let (end, ended) = tokio::sync::oneshot::channel();
    let waiting = tokio::spawn(send.send_request(call(ended)));
    let (end_of_second, ended) = tokio::sync::oneshot::channel();
    end_of_second.send(()).unwrap();
    send.send_request(call(ended)).await.unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished(), "answered before its message had ended");
    end.send(()).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    assert_eq!(running.reasons(), ["system.overload", "system.overload"]);
}

#[tokio::test]
async fn health_follows_readiness_and_the_drain() {
    let running = start(Config::default(), by_path).await;
    let blocker = running.readiness.block("first sync");
    let mut health = HealthClient::new(running.channel().await);
    let mut status = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        health.check(request).await.unwrap().into_inner().status
    };
    let (serving, not_serving) = (1, 2);
    let mut watch = HealthClient::new(running.channel().await);
    let request = HealthCheckRequest { service: SERVICE.to_owned() };
    let mut changes = watch.watch(request).await.unwrap().into_inner();
    let mut next = async |expected: i32| {
        // Changes that follow each other quickly may be told as one.
        while changes.message().await.unwrap().unwrap().status != expected {}
    };
    next(not_serving).await;
    drop(blocker);
    next(serving).await;
    assert_eq!((status("").await, status(SERVICE).await), (serving, serving));
    let mut client = running.client().await;
    let unready = running.readiness.block("lost");
    next(not_serving).await;
    assert!(is_allowed(&ask(&mut client, "/ok").await), "health does not decide checks");
    drop(unready);
    next(serving).await;
    running.drain.begin(Duration::from_secs(30));
    next(not_serving).await;
    assert_eq!((status("").await, status(SERVICE).await), (not_serving, not_serving));
}

#[tokio::test]
async fn a_held_connection_is_answered_while_draining_and_the_door_ends_with_it() {
    let running = start(Config::default(), by_path).await;
    let mut held = running.client().await;
    assert!(is_allowed(&ask(&mut held, "/ok").await));
    running.drain.begin(Duration::from_secs(600));
    for _ in 0..10 {
        assert!(is_allowed(&ask(&mut held, "/ok").await));
    }
    let mut new = running.client().await;
    assert!(is_allowed(&ask(&mut new, "/ok").await), "Envoy may also reconnect meanwhile");
    assert!(!running.served.is_finished());
    drop((held, new));
    running.ended().await;
}

#[tokio::test]
async fn the_door_ends_at_the_deadline_although_a_connection_is_held() {
    let running = start(Config::default(), by_path).await;
    let mut held = running.client().await;
    assert!(is_allowed(&ask(&mut held, "/ok").await));
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    // Keeps asking until the door is gone; until then every answer is an answer.
    let asking = tokio::spawn(async move {
        while let Ok(response) = held.check(check("/ok")).await {
            assert!(is_allowed(&response.into_inner()));
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    running.drain.begin(Duration::from_millis(300));
    running.ended().await;
    assert!(asked.load(Ordering::SeqCst) > 0);
    tokio::time::timeout(Duration::from_secs(10), asking).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_idle_door_ends_as_soon_as_it_drains() {
    let running = start(Config::default(), by_path).await;
    running.drain.begin(Duration::from_secs(600));
    running.ended().await;
}

#[tokio::test]
async fn a_door_without_listeners_is_an_error() {
    let running = start(Config::default(), by_path).await;
    let (_drain, signal) = drain::channel();
    let decide = Decide::Test(Box::new(by_path), Arc::new(SystemClock::new()));
    let served = serve_with(
        Listeners::default(),
        decide,
        VerificationPool::start(Config::default().verification).unwrap(),
        running.telemetry.clone(),
        Readiness::new(),
        Config::default(),
        signal,
    );
    assert_eq!(served.await.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn more_connections_than_allowed_wait_their_turn() {
    let config = Config { max_connections: 1, ..Config::default() };
    let running = start(config, by_path).await;
    let mut first = running.client().await;
    assert!(is_allowed(&ask(&mut first, "/ok").await));
    let mut second =
        AuthorizationClient::new(Endpoint::from_shared(format!("http://{}", running.tcp)).unwrap().connect_lazy());
    let waiting = tokio::spawn(async move { ask(&mut second, "/ok").await });
    for _ in 0..20 {
        assert!(is_allowed(&ask(&mut first, "/ok").await));
    }
    assert!(!waiting.is_finished());
    drop(first);
    let answer = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert!(is_allowed(&answer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_are_spread_evenly_over_the_workers() {
    let runtimes = ["worker-0", "worker-1"].map(|name| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).thread_name(name).enable_all().build().unwrap()
    });
    let workers = runtimes.iter().map(|runtime| runtime.handle().clone()).collect();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let note = Arc::clone(&seen);
    let decide = move |request: &Request<'_>| {
        note.lock().unwrap().push(std::thread::current().name().unwrap_or_default().to_owned());
        by_path(request)
    };
    let running = start_on(workers, Config::default(), decide, None).await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = running.client().await;
        client.check(check("/ok")).await.unwrap();
        clients.push(client);
    }
    let mut threads = std::mem::take(&mut *seen.lock().unwrap());
    threads.sort();
    assert_eq!(threads, [["worker-0"; 3], ["worker-1"; 3]].concat());
    drop(clients);
    running.drain.begin(Duration::from_secs(5));
    running.ended().await;
    runtimes.into_iter().for_each(tokio::runtime::Runtime::shutdown_background);
}
