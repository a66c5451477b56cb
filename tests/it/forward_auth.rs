//! What every proxy that asks over HTTP has to do, with the real one between a client and a service: the same story for
//! Envoy's HTTP service, nginx, Traefik and Caddy, told by the module of each with the file that `envoy/` or `examples/` has.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis::authz::{Lease, Network};
use portcullis::clock::{Clock, SystemClock};
use portcullis::door::{self, Checks};
use portcullis::drain::{self, Drain};
use portcullis::forward_auth;
use portcullis::state::State;
use portcullis::telemetry::{Output, Records, RecordsConfig, SidecarMetrics, Telemetry};
use portcullis::testing::Estate;

use crate::envoy::{Answer, exchange, root};

/// The door on a small estate: `storefront` may read the catalog, refunds need a grant, which `agent` has.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    pub(crate) estate: Estate,
    pub(crate) state: Arc<State>,
    clock: Arc<SystemClock>,
    telemetry: Arc<Telemetry>,
    directory: tempfile::TempDir,
    drain: Drain,
}

/// A proxy's process.
pub(crate) struct Proxy {
    child: Child,
    log: PathBuf,
    pub(crate) address: SocketAddr,
    _directory: tempfile::TempDir,
}

/// How a proxy tells what the sidecar answers.
pub(crate) struct Traits {
    /// The status for a `system.*` denial.
    pub(crate) unavailable: u16,
    /// The statuses when nobody answers.
    pub(crate) silent: &'static [u16],
    /// Whether what a client says of the path, beside it, reaches the service, which is then the one to not believe it.
    pub(crate) passes_forwarded: bool,
    /// Whether a client's demand for a state as fresh as one it has seen reaches the sidecar.
    pub(crate) passes_min_revision: bool,
}

impl Door {
    pub(crate) async fn open() -> Self {
        let clock = Arc::new(SystemClock::new());
        let mut estate = Estate::new_at(clock.now().wall);
        estate.grant("agent", "payments/refunds", &["write"], None, 3600);
        let state = Arc::new(State::new());
        let directory = tempfile::tempdir().unwrap();
        let output = Output::File { path: directory.path().join("records"), max_bytes: u64::MAX, keep: 1 };
        let metrics = Arc::new(SidecarMetrics::new().unwrap());
        let records = RecordsConfig { output, queue: 1000 };
        let records = Records::start(records, metrics.records_dropped().clone()).unwrap();
        let telemetry = Telemetry::new(metrics, records, None, clock.clone() as _);
        let gate = Arc::new(crate::door::gate(&state, &clock));
        let config = door::Config {
            grant_request_url: Some("http://control/v1/grant-requests".into()),
            ..door::Config::default()
        };
        let checks = Checks::new(gate, Arc::clone(&telemetry), &config).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (drain, signal) = drain::channel();
        let loopback: Network = "127.0.0.0/8".parse().unwrap();
        let config = forward_auth::Config { trusted_peers: vec![loopback], ..forward_auth::Config::default() };
        tokio::spawn(forward_auth::serve(listener, checks, Vec::new(), config, signal));
        let door = Self { address, estate, state, clock, telemetry, directory, drain };
        door.state.restore(Arc::new(door.estate.snapshot()), door.lease(0));
        door
    }

    /// One that was confirmed so many seconds ago.
    fn lease(&self, age: u64) -> Lease {
        let now = self.clock.now();
        Lease {
            server_time: now.wall.saturating_sub(Duration::from_secs(age)),
            received: now.mono,
            lease: Duration::from_secs(10),
            max_staleness: Duration::from_secs(300),
        }
    }

    /// From now on the state is too old to answer from.
    pub(crate) fn go_stale(&self) {
        self.state.renew(self.lease(301));
    }

    pub(crate) fn bearer(&self, workload: &str) -> String {
        format!("authorization: Bearer {}", self.estate.token(workload))
    }

    /// Reason and path of every check so far.
    pub(crate) fn checks(&self) -> Vec<(String, String)> {
        assert!(self.telemetry.records().flush(Duration::from_secs(10)));
        let text = std::fs::read_to_string(self.directory.path().join("records")).unwrap_or_default();
        let check = |line: &str| {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(record["door"], "forward_auth", "{record}");
            let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
            (text("reason"), text("path"))
        };
        text.lines().map(check).collect()
    }

    fn last(&self) -> (String, String) {
        self.checks().pop().expect("a check")
    }
}

impl Proxy {
    /// Starts `binary` on a directory with these files, and waits until it listens at `address`.
    pub(crate) fn start(binary: &Path, files: &[(&str, String)], args: &[&str], address: SocketAddr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let log = directory.path().join("log");
        let output = std::fs::File::create(&log).unwrap();
        let child = Command::new(binary)
            .args(args)
            .current_dir(directory.path())
            .env("HOME", directory.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
        let mut proxy = Self { child, log, address, _directory: directory };
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(address).is_err() {
            let ended = proxy.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "it did not come up ({ended:?}):\n{}", proxy.log());
            // A process offers nothing else to wait on.
            std::thread::sleep(Duration::from_millis(20));
        }
        proxy
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary of a proxy: what the environment names, or what the installer puts there.
pub(crate) fn binary(name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(format!("PORTCULLIS_{}", name.to_uppercase())) {
        return path.into();
    }
    let installer = root().join("tests/it/proxies/install.sh");
    let output = Command::new("bash").arg(&installer).arg(name).stdin(Stdio::null()).output().expect("bash runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {name} failed:\n{said}", installer.display());
    String::from_utf8(output.stdout).expect("a UTF-8 path").trim().into()
}

/// A file of `examples/`.
pub(crate) fn example(name: &str) -> String {
    let path = root().join("examples").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Replaces, and there has to be something to replace.
pub(crate) fn put(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no `{from}` in:\n{text}");
    text.replace(from, to)
}

fn ask(at: SocketAddr, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
    let lines: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = format!("{method} {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{length}{lines}\r\n");
    exchange(at, format!("{head}{body}").as_bytes()).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}

/// A header of an answer.
fn header(answer: &Answer, name: &str) -> Vec<String> {
    let lines = answer.head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned()).collect()
}

/// The whole story. `at` is where the proxy listens, in front of a service that answers with the head it received.
pub(crate) fn tell(door: &Door, at: SocketAddr, traits: &Traits) {
    allows_and_denies(door, at);
    clients_cannot_speak_for_themselves(door, at, traits);
    decides_on_what_the_service_receives(door, at);
    survives_what_is_too_large(door, at);
    fails_closed(door, at, traits);
}

fn allows_and_denies(door: &Door, at: SocketAddr) {
    let (storefront, agent) = (door.bearer("storefront"), door.bearer("agent"));
    // Cold, then from the caches.
    for _ in 0..2 {
        let allowed = ask(at, "GET", "/catalog/1?q=a%20b", &[&storefront], "");
        assert_eq!(allowed.status, 200, "{allowed:?}");
        let received = allowed.body.to_lowercase();
        assert!(received.starts_with("get /catalog/1?q=a%20b http/1.1\r\n"), "{received}");
        assert!(received.contains("\r\nx-portcullis-workload: spiffe://test.example/storefront\r\n"), "{received}");
        assert!(received.contains("\r\nx-portcullis-decision-id: "), "{received}");
        assert!(!received.contains("x-portcullis-actor") && !received.contains("x-portcullis-grant"), "{received}");
        assert_eq!(door.last(), ("allow.policy".to_owned(), "/catalog/1".to_owned()));
    }
    let granted = ask(at, "POST", "/refunds/7", &[&agent], "{\"amount\": 1}");
    assert_eq!(granted.status, 200, "{granted:?}");
    assert!(granted.body.to_lowercase().contains("\r\nx-portcullis-grant: "), "{}", granted.body);
    assert_eq!(door.last().0, "allow.grant");

    let unknown = ask(at, "GET", "/catalog/1", &[], "");
    assert_eq!(unknown.status, 401, "{unknown:?}");
    assert_eq!(header(&unknown, "www-authenticate"), ["Bearer realm=\"portcullis\""], "{unknown:?}");
    assert_eq!(header(&unknown, "x-portcullis-reason"), ["credential"]);
    let denied = ask(at, "POST", "/refunds/7", &[&storefront], "");
    assert_eq!(denied.status, 403, "{denied:?}");
    assert_eq!(header(&denied, "x-portcullis-reason"), ["entitlement.no_grant"]);
    assert_eq!(header(&denied, "content-type"), ["application/problem+json"]);
    // A denial that can be submitted as a request for the grant.
    let problem: serde_json::Value =
        serde_json::from_str(&unchunked(&denied)).unwrap_or_else(|e| panic!("{e}: {denied:?}"));
    assert_eq!(problem["grant_request"]["resources"][0], "payments/refunds", "{problem}");
    assert_eq!(header(&denied, "x-portcullis-decision-id"), [problem["decision_id"].as_str().unwrap()]);
    // HEAD is asked about as HEAD, and answered without a body.
    let head = ask(at, "HEAD", "/catalog/1", &[&storefront], "");
    assert_eq!(head.status, 200, "{head:?}");
}

fn unchunked(answer: &Answer) -> String {
    let body = answer.body.trim();
    match (body.find('{'), body.rfind('}')) {
        (Some(from), Some(to)) => body[from..=to].to_owned(),
        _ => body.to_owned(),
    }
}

fn clients_cannot_speak_for_themselves(door: &Door, at: SocketAddr, traits: &Traits) {
    let storefront = door.bearer("storefront");
    let sent = [
        storefront.as_str(),
        "X-Portcullis-Workload: forged",
        "x-portcullis-workload: forged",
        "x_portcullis_workload: forged",
        "X-Portcullis_Workload: forged",
        "x_portcullis-subject: forged",
        "X-PORTCULLIS-ACTOR: forged",
        "x_portcullis_actor: forged",
        "x-portcullis-grant: forged",
        "x-portcullis-decision-id: forged",
        "x-portcullis-reason: forged",
    ];
    let allowed = ask(at, "GET", "/catalog/1", &sent, "");
    assert_eq!(allowed.status, 200, "{allowed:?}");
    let received = allowed.body.to_lowercase();
    assert!(!received.contains("forged"), "{received}");
    let workload = "x-portcullis-workload: spiffe://test.example/storefront\r\n";
    assert_eq!(received.matches(workload).count(), 1, "{received}");
    // Nor can they take the proxy's word about them from the service, as something for the next hop only.
    let names = ["workload", "subject", "actor", "grant", "decision-id"].map(|name| format!("X-Portcullis-{name}"));
    let (storefront_alone, all) = (door.bearer("storefront"), format!("Connection: close, {}", names.join(", ")));
    for named in [&*all, "Connection: x-portcullis-workload, close", "connection: close, X-PORTCULLIS-WORKLOAD"] {
        let answer = ask(at, "GET", "/catalog/1", &[&storefront_alone, named], "");
        let arrived = answer.body.to_lowercase().matches(workload).count() == 1;
        assert!(answer.status == 400 || answer.status == 200 && arrived, "{named}: {answer:?}");
    }

    // A request for what is allowed does not get a caller to what is not, whatever it says of itself.
    for header in [
        "X-Forwarded-Uri: /catalog/1",
        "X-Forwarded-URI: /catalog/1",
        "x_forwarded_uri: /catalog/1",
        "X-Original-URI: /catalog/1",
        "x_original_uri: /catalog/1",
        "X-Original-URL: /catalog/1",
        "X-Rewrite-URL: /catalog/1",
        "X-Forwarded-Method: GET",
        "X-Original-Method: GET",
        "X-HTTP-Method-Override: GET",
        "X-Forwarded-Host: other.example",
        "X-Original-Host: other.example",
        "X-Forwarded-For: 127.0.0.1",
        "Connection: X-Forwarded-Uri, X-Original-URI, authorization",
    ] {
        let answer = ask(at, "POST", "/refunds/7", &[&storefront, header], "");
        assert!((400..500).contains(&answer.status), "{header}: {answer:?}");
        assert!(!answer.body.contains("POST /refunds/7"), "{header}: {}", answer.body);
        let (reason, _) = door.last();
        assert!(!reason.starts_with("allow"), "{header}: {reason}");
    }
    // What it says about an allowed request is not the service's to hear from the client.
    for header in [
        "X-Forwarded-Uri: /forged",
        "X-Forwarded-Method: FORGED",
        "X-Original-URI: /forged",
        "x_forwarded_uri: /forged",
        "X-Original-URL: /forged",
        "X-Original-Host: forged",
        "X-Original-For: forged",
        "X-Rewrite-URL: /forged",
    ] {
        let answer = ask(at, "GET", "/catalog/1", &[&storefront, header], "");
        let heard = answer.body.to_lowercase().contains("forged");
        assert!(
            answer.status == 400 || answer.status == 200 && (!heard || traits.passes_forwarded),
            "{header}: {answer:?}"
        );
    }
    // Of two credentials neither counts.
    let other = door.bearer("agent");
    let two = ask(at, "POST", "/refunds/7", &[&storefront, &other], "");
    assert!((400..500).contains(&two.status) && !two.body.contains("POST /refunds/7"), "{two:?}");
    if traits.passes_min_revision {
        let fresher = ask(at, "GET", "/catalog/1", &[&storefront, "x-portcullis-min-revision: not one"], "");
        assert_eq!((fresher.status, door.last().0.as_str()), (400, "input.malformed"), "{fresher:?}");
    }
}

fn decides_on_what_the_service_receives(door: &Door, at: SocketAddr) {
    let storefront = door.bearer("storefront");
    let before = door.checks().len();
    for path in [
        "/catalog/..%2frefunds/7",
        "/catalog/..%5crefunds/7",
        "//refunds/7",
        "/refunds//7",
        "/refunds;x/7",
        "/%72efunds/7",
        "/a%zzb",
        "/a%00b",
        "/catalog/../refunds/7",
        "/catalog/%2e%2E/refunds/7",
        "/../refunds/7",
        "/catalog\\..\\refunds/7",
        "/refunds/./7",
        "/a%252fb",
        "/refunds/7#/../../catalog/1",
        "/catalog/1#/../../refunds/7",
    ] {
        let answer = ask(at, "GET", path, &[&storefront], "");
        let received = answer.body.split(' ').nth(1).filter(|_| answer.body.contains("HTTP/1.1\r\n")).unwrap_or("");
        // Refused, or sent on as what was decided on.
        if answer.status == 200 {
            assert!(received.starts_with("/catalog/") && !received.contains("refunds"), "{path}: {answer:?}");
            assert_eq!(door.last(), ("allow.policy".to_owned(), received.to_owned()), "{path}");
        } else {
            assert!((400..500).contains(&answer.status) && received.is_empty(), "{path}: {answer:?}");
        }
    }
    let allowed = door.checks().split_off(before).into_iter().filter(|(reason, _)| reason.starts_with("allow"));
    assert!(allowed.clone().all(|(_, path)| path.starts_with("/catalog/")), "{:?}", allowed.collect::<Vec<_>>());
    // What one spelling alone can mean goes through as it came.
    let escaped = ask(at, "GET", "/catalog/%C3%A9%40", &[&storefront], "");
    assert_eq!(escaped.status, 200, "{escaped:?}");
    assert!(escaped.body.starts_with("GET /catalog/%C3%A9%40 HTTP/1.1\r\n"), "{}", escaped.body);
}

fn survives_what_is_too_large(door: &Door, at: SocketAddr) {
    let storefront = door.bearer("storefront");
    // More than the proxy takes, or than the sidecar does: whoever says no, the service is not asked.
    for size in [40_000, 70_000, 200_000, 1_200_000] {
        let long = format!("x-long: {}", "x".repeat(size));
        // The proxy may hang up on it while it is still sent.
        let head = format!(
            "GET /catalog/1 HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{storefront}\r\n{long}\r\n\r\n"
        );
        if let Ok(answer) = exchange(at, head.as_bytes()) {
            let received = answer.body.contains("GET /catalog/1");
            assert!(
                answer.status == 200 && received && size < 65_536 || answer.status >= 400 && !received,
                "{size}: {}",
                answer.head
            );
        }
    }
    let many: String = (0..400).map(|n| format!("x-{n}: 1\r\n")).collect();
    let head =
        format!("GET /catalog/1 HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{storefront}\r\n{many}\r\n");
    if let Ok(answer) = exchange(at, head.as_bytes()) {
        assert!(answer.status >= 400 && !answer.body.contains("GET /catalog/1"), "{}", answer.head);
    }
    let after = ask(at, "GET", "/catalog/1", &[&storefront], "");
    assert_eq!(after.status, 200, "it goes on: {after:?}");
}

fn fails_closed(door: &Door, at: SocketAddr, traits: &Traits) {
    let storefront = door.bearer("storefront");
    door.go_stale();
    let stale = ask(at, "GET", "/catalog/1", &[&storefront], "");
    assert_eq!(stale.status, traits.unavailable, "{stale:?}");
    assert_eq!(header(&stale, "retry-after"), ["1"], "{stale:?}");
    assert_eq!(header(&stale, "x-portcullis-reason").first().map(|r| r.starts_with("system")), Some(true), "{stale:?}");
    assert!(!stale.body.contains("GET /catalog/1"));
    assert_eq!(door.last().0, "system.stale");
    door.state.renew(door.lease(0));
    assert_eq!(ask(at, "GET", "/catalog/1", &[&storefront], "").status, 200, "and it does answer when it can");

    // Nobody there.
    door.drain.begin(Duration::ZERO);
    while std::net::TcpStream::connect(door.address).is_ok() {
        std::thread::sleep(Duration::from_millis(10));
    }
    for _ in 0..3 {
        let silent = ask(at, "GET", "/catalog/1", &[&storefront], "");
        assert!(traits.silent.contains(&silent.status), "{silent:?}");
        assert!(!silent.body.contains("GET /catalog/1"), "{silent:?}");
    }
}
