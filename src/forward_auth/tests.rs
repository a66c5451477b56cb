//! Tests of the whole door over real sockets, as proxies and others might speak to it.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::authz::{Decision, DecisionId, Reason};
use crate::cache::VerificationPool;
use crate::clock::{Clock, SharedClock, SystemClock};
use crate::door::{self, Checks, Decide};
use crate::drain::{self, Drain};
use crate::telemetry::{Output, Records, RecordsConfig, SidecarMetrics, Telemetry};

struct Running {
    at: SocketAddr,
    drain: Drain,
    telemetry: Arc<Telemetry>,
    served: JoinHandle<std::io::Result<()>>,
    dir: tempfile::TempDir,
}

/// An answer: status, head, body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

fn loopback() -> Config {
    Config { trusted_peers: vec!["127.0.0.0/8".parse().unwrap()], ..Config::default() }
}

/// Allows `GET` of paths under `/ok`, and panics at `/panic`.
fn by_path(request: &crate::authz::Request<'_>) -> Decision {
    assert!(request.path != "/panic", "as a bug would");
    let allows = request.path.starts_with("/ok") && request.method == "GET" && request.host == "shop.example";
    let reason = match request.path {
        _ if allows => Reason::AllowPolicy,
        "/stale" => Reason::SystemStale,
        _ => Reason::PolicyNoMatch,
    };
    Decision::for_test(reason, DecisionId::new(SystemClock::new().now().wall))
}

async fn start(config: Config) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let clock: SharedClock = Arc::new(SystemClock::new());
    let metrics = Arc::new(SidecarMetrics::new().unwrap());
    let output = Output::File { path: dir.path().join("records"), max_bytes: u64::MAX, keep: 1 };
    let records = Records::start(RecordsConfig { output, queue: 1000 }, metrics.records_dropped().clone()).unwrap();
    let telemetry = Telemetry::new(metrics, records, None, clock.clone());
    let shared = door::Config::default();
    let pool = VerificationPool::start(shared.verification).unwrap();
    let checks = Checks::on(Decide::Test(Box::new(by_path), clock), pool, telemetry.clone(), &shared);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (drain, signal) = drain::channel();
    let mount = Mount {
        is_for: |path| path.starts_with("/access/"),
        serve: Arc::new(|request, peer| {
            Box::pin(async move { Response::new(Bytes::from(format!("{} from {peer}", request.uri().path()))) })
        }),
    };
    let served = tokio::spawn(serve(listener, checks, vec![mount], config, signal));
    Running { at, drain, telemetry, served, dir }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.at).await.unwrap()
    }

    /// Sends a request as it stands, and reads until the connection is closed.
    async fn send(&self, request: &str) -> Answer {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        read(&mut stream).await
    }

    async fn ask(&self, target: &str, headers: &[(&str, &str)]) -> Answer {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        self.send(&format!("GET {target} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n")).await
    }

    fn records(&self) -> Vec<serde_json::Value> {
        assert!(self.telemetry.records().flush(Duration::from_secs(10)));
        let text = std::fs::read_to_string(self.dir.path().join("records")).unwrap_or_default();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    fn reasons(&self) -> Vec<String> {
        self.records().iter().map(|r| r["reason"].as_str().unwrap().to_owned()).collect()
    }
}

async fn read(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

fn forwarded(uri: &str) -> [(&str, &str); 4] {
    [("host", "pc"), ("x-forwarded-method", "GET"), ("x-forwarded-host", "shop.example"), ("x-forwarded-uri", uri)]
}

fn original(uri: &str) -> [(&str, &str); 4] {
    [("host", "pc"), ("x-original-method", "GET"), ("x-original-host", "shop.example"), ("x-original-uri", uri)]
}

#[tokio::test]
async fn each_dialect_is_asked_in_its_own_way() {
    let running = start(loopback()).await;
    let mut told = Vec::new();
    for (target, status) in [("/ok/1?q", 200), ("/no", 403), ("/stale", 429), ("/panic", 429)] {
        let answer = running.ask(&format!("/envoy{target}"), &[("host", "shop.example")]).await;
        assert_eq!(answer.status, status, "envoy {target}: {}", answer.head);
        told.push(answer);
    }
    for path in ["/traefik", "/caddy"] {
        for (target, status) in [("/ok/1?q", 200), ("/no", 403), ("/stale", 503), ("/panic", 503)] {
            let answer = running.ask(path, &forwarded(target)).await;
            assert_eq!(answer.status, status, "{path} {target}: {}", answer.head);
        }
    }
    for (target, status) in [("/ok/1?q", 200), ("/no", 403), ("/stale", 403), ("/panic", 403)] {
        let answer = running.ask("/nginx", &original(target)).await;
        assert_eq!(answer.status, status, "nginx {target}: {}", answer.head);
        assert_eq!(answer.body, "", "what nginx drops is not sent");
    }
    assert!(told[0].head.contains("x-portcullis-workload: spiffe://td/w"), "{}", told[0].head);
    assert!(told[1].body.contains("\"reason\":\"policy.no_match\""), "{}", told[1].body);
    let expected = ["allow.policy", "policy.no_match", "system.stale", "system.internal"].repeat(4);
    assert_eq!(running.reasons(), expected);
    let first = &running.records()[0];
    assert_eq!(
        (&first["door"], &first["path"], &first["method"]),
        (&"forward_auth".into(), &"/ok/1".into(), &"GET".into())
    );
}

#[tokio::test]
async fn only_listed_peers_are_believed_and_every_question_has_its_outcome() {
    let running = start(Config::default()).await;
    assert_eq!(running.ask("/traefik", &forwarded("/ok")).await.status, 400);
    assert_eq!(running.ask("/nginx", &original("/ok")).await.status, 403);
    assert_eq!(running.ask("/envoy/ok", &[("host", "shop.example")]).await.status, 400);
    assert_eq!(running.reasons(), ["input.malformed"; 3]);
    assert!(running.records()[0]["detail"].as_str().unwrap().contains("trusted_peers"));
    // And keeps no connection that a proxy might want.
    let mut kept = running.connect().await;
    kept.write_all(b"GET /envoy/ok HTTP/1.1\r\nHost: shop.example\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(2), kept.read_to_end(&mut answer)).await;
    assert!(closed.is_ok() && answer.starts_with(b"HTTP/1.1 400 "), "it is closed after the answer");
    assert_eq!(running.reasons(), ["input.malformed"; 4]);
    // What knows its own callers is asked by anybody.
    let mounted = running.ask("/access/v1/evaluation", &[("host", "pc")]).await;
    assert_eq!((mounted.status, mounted.body.contains("/access/v1/evaluation from 127.0.0.1")), (200, true));
    let nothing = running.ask("/ok", &[("host", "pc")]).await;
    assert_eq!((nothing.status, running.reasons().len()), (404, 4), "no question, no outcome");

    let one = Config { dialects: vec![Dialect::Nginx], ..loopback() };
    let running = start(one).await;
    assert_eq!(running.ask("/nginx", &original("/ok")).await.status, 200);
    assert_eq!(running.ask("/traefik", &forwarded("/ok")).await.status, 404);
    assert_eq!(running.ask("/envoy/ok", &[("host", "shop.example")]).await.status, 404);
}

#[tokio::test]
async fn what_contradicts_itself_is_refused() {
    let running = start(loopback()).await;
    let with = |more: &[(&'static str, &'static str)]| {
        let mut lines = forwarded("/ok").to_vec();
        lines.extend(more);
        lines
    };
    for more in [
        &[("x-forwarded-uri", "/ok")][..],
        &[("x_forwarded_uri", "/ok")],
        &[("x-original-uri", "/admin")],
        &[("x-forwarded-proto", "gopher")],
    ] {
        assert_eq!(running.ask("/traefik", &with(more)).await.status, 400, "{more:?}");
    }
    // A target with an authority has two hosts.
    let two = "GET http://shop.example/envoy/ok HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n";
    assert_eq!(running.send(two).await.status, 400);
    let expected = ["duplicate_header", "duplicate_header", "header_mismatch", "malformed", "malformed"]
        .map(|r| format!("input.{r}"));
    assert_eq!(running.reasons(), expected);
}

#[tokio::test]
async fn large_and_slow_questions_are_refused_and_the_door_goes_on() {
    let config = Config { read_timeout: Duration::from_millis(200), max_body_bytes: 1000, ..loopback() };
    let running = start(config).await;
    // Over our limits, hyper still reads it and we refuse; far over them, hyper does.
    let long = "x".repeat((1 << 16) + 1);
    assert_eq!(running.ask("/envoy/ok", &[("host", "shop.example"), ("x-long", &long)]).await.status, 400);
    let names: Vec<String> = (0..257).map(|n| format!("x-{n}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    assert_eq!(running.ask("/envoy/ok", &many).await.status, 400);
    let far: Vec<(&str, &str)> = std::iter::repeat_n(("x-many", "1"), 1000).collect();
    assert_eq!(running.ask("/envoy/ok", &far).await.status, 431);
    assert_eq!(running.reasons(), ["input.malformed"; 2]);

    let post = |length: usize, body: &str| {
        format!(
            "GET /envoy/ok HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    assert_eq!(running.send(&post(5, "12345")).await.status, 200);
    assert_eq!(running.send(&post(1001, &"x".repeat(1001))).await.status, 400);
    assert_eq!(running.send(&post(5, "1234")).await.status, 429, "the rest does not come");
    assert_eq!(running.reasons().pop().as_deref(), Some("system.overload"));

    // A head that does not come to its end: no answer, and the connection is closed.
    let mut slow = running.connect().await;
    slow.write_all(b"GET /envoy/ok HTTP/1.1\r\nHo").await.unwrap();
    let begun = Instant::now();
    let answer = read(&mut slow).await;
    assert!(answer.status == 0 || answer.status == 408, "{}", answer.head);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn bodies_have_so_much_room_together_and_give_it_back() {
    let running = start(Config { max_buffered_bytes: 8, ..loopback() }).await;
    let post = |body: &str| {
        let head = "GET /envoy/ok HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n";
        format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())
    };
    for _ in 0..3 {
        assert_eq!(running.send(&post("12345")).await.status, 200);
        assert_eq!(running.send(&post("123456789")).await.status, 429);
    }
    // One that is still on its way holds what it may need.
    let mut slow = running.connect().await;
    slow.write_all(post("12345").trim_end_matches('5').as_bytes()).await.unwrap();
    let refused = async {
        while running.send(&post("12345")).await.status == 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refused).await.expect("its room is taken");
    slow.write_all(b"5").await.unwrap();
    assert_eq!(read(&mut slow).await.status, 200);
    assert_eq!(running.send(&post("12345")).await.status, 200);
}

#[tokio::test]
async fn a_connection_rests_between_questions_and_ends_with_the_drain() {
    let running = start(Config { read_timeout: Duration::from_millis(100), ..loopback() }).await;
    let mut kept = running.connect().await;
    let ask = async |kept: &mut TcpStream| {
        kept.write_all(b"GET /envoy/ok HTTP/1.1\r\nHost: shop.example\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 4096];
        let read = kept.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..read]).to_lowercase()
    };
    assert!(ask(&mut kept).await.starts_with("http/1.1 200 "));
    // Longer than a head may take: it has not begun.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let answer = ask(&mut kept).await;
    assert!(answer.starts_with("http/1.1 200 ") && !answer.contains("connection: close"), "{answer}");

    running.drain.begin(Duration::from_secs(60));
    let new = running.ask("/envoy/ok", &[("host", "shop.example")]).await;
    assert_eq!(new.status, 200, "still answered, also on a new connection");
    let last = ask(&mut kept).await;
    assert!(last.starts_with("http/1.1 200 ") && last.contains("connection: close"), "{last}");
    assert_eq!(kept.read(&mut [0]).await.unwrap(), 0, "closed");
    tokio::time::timeout(Duration::from_secs(10), running.served)
        .await
        .expect("ends with its connections")
        .unwrap()
        .unwrap();
}
