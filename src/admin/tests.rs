//! Tests of the admin servers, over a real socket.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::cache::CacheSizes;
use crate::clock::{Clock, ManualClock, Timestamp};
use crate::readiness::Blocker;
use crate::telemetry::{LogConfig, LogFormat, Output, Records, RecordsConfig, SidecarMetrics};

struct Running {
    at: SocketAddr,
    client: reqwest::Client,
    blocker: Option<Blocker>,
    state: Arc<crate::state::State>,
    clock: Arc<ManualClock>,
    level: LevelHandle,
    _logging: crate::telemetry::Logging,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<io::Result<()>>,
}

async fn start() -> Running {
    let clock = Arc::new(ManualClock::new(Timestamp::from_secs(1_700_000_000)));
    start_with(Arc::new(crate::state::State::new()), clock).await
}

async fn start_with(state: Arc<crate::state::State>, clock: Arc<ManualClock>) -> Running {
    // reqwest is built without a default TLS provider; these tests speak plain HTTP only.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let gate = Arc::new(Gate::new(state.clone(), clock.clone(), CacheSizes { tokens: 10, decisions: 10 }));
    let metrics = Arc::new(SidecarMetrics::new().unwrap());
    metrics.watch(gate.clone()).unwrap();
    let records =
        Records::start(RecordsConfig { output: Output::Off, queue: 1 }, metrics.records_dropped().clone()).unwrap();
    let telemetry = Telemetry::new(metrics.clone(), records, None, clock.clone());
    let logging = crate::telemetry::detached(&LogConfig {
        level: "info".to_owned(),
        format: LogFormat::Text,
        otlp_endpoint: None,
        service_name: "test",
    })
    .unwrap();
    let readiness = Readiness::new();
    let blocker = Some(readiness.block("the first sync"));
    let level = logging.level().clone();
    let common = Common { readiness, exposition: metrics.exposition().clone(), level: level.clone() };
    let router = sidecar_router(common, gate, telemetry, None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = tokio::spawn(serve(listener, router, async {
        let _ = stopped.await;
    }));
    let client = reqwest::Client::new();
    Running { at, client, blocker, state, clock, level, _logging: logging, stop: Some(stop), served }
}

impl Running {
    async fn get(&self, path: &str) -> (u16, String) {
        let response = self.client.get(format!("http://{}{path}", self.at)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn check(&self, body: String) -> (u16, Value) {
        let url = format!("http://{}/v1/check", self.at);
        let response = self.client.post(url).body(body).send().await.unwrap();
        (response.status().as_u16(), serde_json::from_str(&response.text().await.unwrap()).unwrap())
    }
}

#[tokio::test]
async fn tells_what_it_waits_for() {
    let mut running = start().await;
    assert_eq!(running.get("/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(running.get("/readyz").await, (503, "waiting for: the first sync\n".to_owned()));
    running.blocker.take();
    assert_eq!(running.get("/readyz").await, (200, "ready\n".to_owned()));
}

#[tokio::test]
async fn log_level_is_read_and_changed() {
    let running = start().await;
    assert_eq!(running.get("/loglevel").await, (200, "info\n".to_owned()));
    let put = |level: &'static str| running.client.put(format!("http://{}/loglevel", running.at)).body(level).send();
    let changed = put("warn,portcullis::sync=debug").await.unwrap();
    assert_eq!(changed.status(), 200);
    assert_eq!(running.level.level().unwrap(), "portcullis::sync=debug,warn");
    let refused = put("portcullis=loud").await.unwrap();
    assert_eq!(refused.status(), 400);
    assert!(refused.text().await.unwrap().contains("`portcullis=loud` is not a log level"));
    assert_eq!(running.level.level().unwrap(), "portcullis::sync=debug,warn", "unchanged");
}

#[tokio::test]
async fn a_check_is_decided_counted_and_explained() {
    let running = start().await;
    let asked = json!({"method": "GET", "path": "/catalog/1", "host": "shop",
        "headers": {"authorization": "Bearer secret-token", "x-many": ["a", "b"]}, "explain": true});
    let (status, answer) = running.check(asked.to_string()).await;
    assert_eq!(status, 200);
    assert_eq!(answer["allowed"], false);
    assert_eq!(answer["reason"], "system.not_ready", "nothing has been synced: {answer}");
    assert_eq!(answer["status"], 503);
    assert_eq!(answer["problem"]["decision_id"], answer["decision_id"]);
    assert!(!answer.to_string().contains("secret-token"));
    let (_, metrics) = running.get("/metrics").await;
    let line =
        "portcullis_checks_total{cached=\"false\",decision=\"deny\",door=\"check\",reason=\"system.not_ready\"} 1\n";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test]
async fn a_check_answers_as_the_doors_do() {
    let mut estate = crate::testing::Estate::new();
    let (grant, _) = estate.grant("agent", "payments/refunds", &["write"], None, 600);
    let running = start_with(estate.state(), estate.clock.clone()).await;
    let ask = async |path: &str, method: &str, who: &str, explain: bool| {
        let token = format!("Bearer {}", estate.token(who));
        let asked = json!({"method": method, "path": path, "host": "shop.example",
            "headers": {"authorization": token}, "explain": explain});
        running.check(asked.to_string()).await.1
    };
    let allowed = ask("/refunds/7", "POST", "agent", false).await;
    assert_eq!((&allowed["allowed"], &allowed["reason"]), (&json!(true), &json!("allow.grant")), "{allowed}");
    assert_eq!(allowed["grant_id"], grant.id.to_string());
    assert_eq!(allowed["revision"], estate.position().to_string());
    assert_eq!(allowed.get("problem"), None);
    assert_eq!(ask("/refunds/7", "POST", "agent", false).await["cached"], true);
    let explained = ask("/refunds/7", "POST", "agent", true).await;
    assert_eq!((&explained["cached"], &explained["reason"]), (&json!(false), &json!("allow.grant")));
    assert!(explained["steps"].as_array().unwrap().len() > 3, "{explained}");
    let denied = ask("/refunds/7", "POST", "ci", false).await;
    assert_eq!(denied["reason"], "entitlement.no_grant");
    assert_eq!(denied["problem"]["grant_request"]["resources"], json!(["payments/refunds"]), "{denied}");

    let shown: Value = serde_json::from_str(&running.get("/snapshot").await.1).unwrap();
    assert_eq!(shown["revision"], estate.position().to_string());
    assert_eq!(shown["digest"], estate.snapshot().digest());
    assert_eq!((&shown["objects"]["grant"], &shown["objects"]["service"]), (&json!(1), &json!(2)), "{shown}");
}

#[tokio::test]
async fn a_bad_check_names_the_field() {
    let running = start().await;
    for (body, field, message) in [
        (json!({"method": "GET"}).to_string(), ".", "missing field `path`"),
        (json!({"method": "GET", "path": "/", "heders": {}}).to_string(), "heders", "unknown field `heders`"),
        (json!({"method": "GET", "path": 7}).to_string(), "path", "invalid type"),
        (json!({"method": "GET", "path": "/", "address": "10.0.0"}).to_string(), "address", "invalid IP address"),
        (format!("{}x", json!({"method": "GET", "path": "/"})), ".", "trailing characters"),
        (String::new(), ".", "EOF"),
    ] {
        let (status, problem) = running.check(body).await;
        assert_eq!(status, 400, "{problem}");
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
        assert!(problem["errors"][0]["message"].as_str().unwrap().contains(message), "{problem}");
    }
    let url = format!("http://{}/v1/check", running.at);
    let large = running.client.post(url).body(vec![b' '; MAX_BODY_BYTES + 1]).send().await.unwrap();
    assert_eq!(large.status(), 413);
}

#[tokio::test]
async fn snapshot_shows_the_lease() {
    let running = start().await;
    let (status, before) = running.get("/snapshot").await;
    assert_eq!(status, 200);
    let before: Value = serde_json::from_str(&before).unwrap();
    assert_eq!(
        before,
        json!({"revision": null, "digest": null, "objects": {}, "denies_everything": null, "lease": null})
    );
    let now = running.clock.now();
    running.state.renew(crate::authz::Lease {
        server_time: now.wall,
        received: now.mono,
        lease: Duration::from_secs(10),
        max_staleness: Duration::from_secs(300),
    });
    running.clock.advance(Duration::from_secs(4));
    let shown: Value = serde_json::from_str(&running.get("/snapshot").await.1).unwrap();
    assert_eq!(
        shown["lease"],
        json!({"confirmed_at": "2023-11-14T22:13:20.000Z", "age_ms": 4000,
            "strict_until": "2023-11-14T22:13:30.000Z", "good_until": "2023-11-14T22:18:20.000Z"})
    );
}

#[tokio::test]
async fn ends_although_a_client_stays_connected() {
    let mut running = start().await;
    // The client's pool keeps this connection.
    assert_eq!(running.get("/livez").await.0, 200);
    let silent = tokio::net::TcpStream::connect(running.at).await.unwrap();
    drop(running.stop.take());
    tokio::time::timeout(Duration::from_secs(10), running.served).await.unwrap().unwrap().unwrap();
    drop(silent);
}

#[tokio::test]
async fn probes_from_outside_see_health_and_metrics_and_nothing_else() {
    let server = start().await;
    let common = Common {
        readiness: Readiness::new(),
        exposition: SidecarMetrics::new().unwrap().exposition().clone(),
        level: server.level.clone(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let probes = tokio::spawn(serve(listener, probes_router(common), std::future::pending()));
    for (path, status) in
        [("livez", 200), ("readyz", 200), ("metrics", 200), ("loglevel", 404), ("snapshot", 404), ("v1/check", 404)]
    {
        let answer = server.client.get(format!("http://{at}/{path}")).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
    }
    let put = server.client.put(format!("http://{at}/loglevel")).body("trace").send().await.unwrap();
    assert_eq!(put.status(), 404);
    probes.abort();
}
