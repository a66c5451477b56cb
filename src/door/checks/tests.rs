//! Tests of one check from a request to its decision, on a gate and on decisions of the test's own.

use std::future::poll_fn;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use serde_json::json;

use super::*;
use crate::authz::{DecisionId, Deferred, Door};
use crate::cache::{AdaptiveLimits, CacheSizes, VerificationLimits};
use crate::clock::{Clock as _, SystemClock};
use crate::door::{OwnedPeer, Unread};
use crate::grant::ledger::UseAnswer;
use crate::object::Kind;
use crate::telemetry::{Output, Records, RecordsConfig, SidecarMetrics};
use crate::testing::Estate;

struct Told {
    telemetry: Arc<Telemetry>,
    dir: tempfile::TempDir,
}

impl Told {
    fn new(clock: crate::clock::SharedClock) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let output = Output::File { path: dir.path().join("records"), max_bytes: u64::MAX, keep: 1 };
        let metrics = Arc::new(SidecarMetrics::new().unwrap());
        let records = Records::start(RecordsConfig { output, queue: 100 }, metrics.records_dropped().clone()).unwrap();
        Self { telemetry: Telemetry::new(metrics, records, None, clock), dir }
    }

    /// Door and reason of every outcome so far.
    fn outcomes(&self) -> Vec<(String, String)> {
        assert!(self.telemetry.records().flush(Duration::from_secs(10)));
        let text = std::fs::read_to_string(self.dir.path().join("records")).unwrap_or_default();
        let record = |line: &str| {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| record[key].as_str().unwrap().to_owned();
            (text("door"), text("reason"))
        };
        text.lines().map(record).collect()
    }
}

fn outcome(door: &str, reason: &str) -> (String, String) {
    (door.to_owned(), reason.to_owned())
}

fn asked(method: &str, path: &str, token: Option<&str>) -> Asked {
    let mut headers = HeaderMap::new();
    if let Some(token) = token {
        headers.insert(http::header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
    }
    Asked {
        door: Door::Proxy,
        method: method.to_owned(),
        path: path.to_owned(),
        host: "shop.example".to_owned(),
        scheme: "https".into(),
        headers,
        partial_body: false,
        body: None,
        peer: OwnedPeer::default(),
    }
}

/// Checks that are decided by the test.
fn by(config: &Config, decide: impl Fn(&Request<'_>) -> Decision + Send + Sync + 'static) -> (Checks, Told) {
    let clock: crate::clock::SharedClock = Arc::new(SystemClock::new());
    let told = Told::new(clock.clone());
    let pool = VerificationPool::start(config.verification).unwrap();
    (Checks::on(Decide::Test(Box::new(decide), clock), pool, told.telemetry.clone(), config), told)
}

/// Checks on a gate with the estate.
fn of(estate: &Estate, pool: VerificationPool, config: &Config) -> (Checks, Told) {
    let told = Told::new(estate.clock.clone());
    let sizes = CacheSizes { tokens: 10, decisions: 10 };
    let gate = Arc::new(Gate::new(estate.state(), estate.clock.clone(), sizes));
    (Checks::on(Decide::Gate(gate), pool, told.telemetry.clone(), config), told)
}

fn pool(limits: VerificationLimits) -> VerificationPool {
    VerificationPool::start(limits).unwrap()
}

#[tokio::test]
async fn the_gate_decides_and_the_request_comes_back() {
    let mut estate = Estate::new();
    estate.grant("agent", "payments/refunds", &["write"], None, 600);
    let (checks, told) = of(&estate, pool(VerificationLimits::default()), &Config::default());
    let agent = estate.token("agent");
    // Cold, then from the caches.
    for cached in [false, true] {
        let checked = checks.check(asked("POST", "/refunds/7", Some(&agent))).await;
        assert!(checked.decision.permit().is_some());
        assert_eq!((checked.decision.reason, checked.decision.cached), (Reason::AllowGrant, cached));
        assert_eq!(checked.request.path, "/refunds/7");
        assert_eq!(checked.request.headers.len(), 1);
    }
    let denied = checks.check(asked("POST", "/refunds/7", None)).await;
    assert!(denied.decision.permit().is_none());
    let clone = checks.clone();
    let refused = clone.refuse(asked("GET", "/x", None), Reason::InputHeaderMismatch, "two hosts");
    assert!(refused.decision.permit().is_none());
    let expected = ["allow.grant", "allow.grant", "credential.missing", "input.header_mismatch"];
    assert_eq!(told.outcomes(), expected.map(|reason| outcome("proxy", reason)));
}

#[tokio::test]
async fn a_panic_a_full_house_and_too_many_headers_are_denials_with_one_outcome_each() {
    let (checks, told) = by(&Config { max_headers: 1, max_header_bytes: 100, ..Config::default() }, |request| {
        assert!(request.path != "/panic", "as a bug would");
        Decision::for_test(Reason::AllowPolicy, DecisionId::new(crate::clock::Timestamp::from_secs(1)))
    });
    let reason = async |asked: Asked| checks.check(asked).await.decision.reason;
    assert_eq!(reason(asked("GET", "/ok", Some("t"))).await, Reason::AllowPolicy);
    assert_eq!(reason(asked("GET", "/panic", None)).await, Reason::SystemInternal);
    assert_eq!(reason(asked("GET", "/ok", Some(&"t".repeat(100)))).await, Reason::InputMalformed);
    let mut two = asked("GET", "/ok", Some("t"));
    two.headers.append("x-a", HeaderValue::from_static("1"));
    assert_eq!(reason(two).await, Reason::InputMalformed);
    let expected = ["allow.policy", "system.internal", "input.malformed", "input.malformed"];
    assert_eq!(told.outcomes(), expected.map(|reason| outcome("proxy", reason)));

    let (full, told) = by(&Config { max_concurrent_checks: 0, ..Config::default() }, |_| panic!("not asked"));
    assert_eq!(full.check(asked("GET", "/ok", None)).await.decision.reason, Reason::SystemOverload);
    assert_eq!(told.telemetry.metrics().shed(Shed::All).get(), 1);
    assert_eq!(told.outcomes(), [outcome("proxy", "system.overload")]);
}

/// The limits follow how long tasks wait for their turn: here a task beside each check keeps the only thread for a while.
#[tokio::test]
async fn the_wait_for_a_thread_is_measured_and_narrows_the_limits() {
    let delay = Duration::from_millis(1);
    let adaptive = Some(AdaptiveLimits { min: 2, delay, cold_delay: delay });
    let (checks, told) = by(&Config { max_concurrent_checks: 1000, adaptive, ..Config::default() }, |_| {
        Decision::for_test(Reason::AllowPolicy, DecisionId::new(crate::clock::Timestamp::from_secs(1)))
    });
    let hog = tokio::spawn(async {
        loop {
            std::thread::sleep(Duration::from_millis(5));
            tokio::task::yield_now().await;
        }
    });
    let limit = || {
        let text = told.telemetry.metrics().exposition().render();
        let line =
            text.lines().find(|line| line.starts_with("portcullis_overload_limit{class=\"all\"}")).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<u32>().unwrap()
    };
    let narrowed = async {
        while !(1..1000).contains(&limit()) {
            for _ in 0..32 {
                assert!(checks.check(asked("GET", "/ok", None)).await.decision.permit().is_some());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), narrowed).await.expect("the limit follows");
    hog.abort();
}

/// The one thread of the pool is held, so that what waits, waits for certain.
#[tokio::test]
async fn what_waits_for_its_verification_is_told_of_when_it_is_dropped_and_denied_when_it_is_late() {
    let estate = Estate::new();
    let max_wait = Duration::from_millis(100);
    let pool = pool(VerificationLimits { threads: 1, queue: 1, wait: None, max_wait });
    let (entered, is_in) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let hold = move |_| {
        entered.send(()).unwrap();
        let _ = released.recv();
    };
    pool.submit(Deferred::Token, Source::Connection(0), hold).unwrap();
    is_in.recv().unwrap();
    let (checks, told) = of(&estate, pool, &Config { max_concurrent_checks: 10, adaptive: None, ..Config::default() });
    let token = estate.token("storefront");

    let mut waiting = Box::pin(checks.check(asked("GET", "/catalog/1", Some(&token))));
    assert!(poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await);
    let second = checks.check(asked("GET", "/catalog/1", Some(&token))).await;
    assert_eq!(second.decision.reason, Reason::SystemOverload, "no room behind it");
    drop(waiting);
    assert_eq!(told.outcomes(), ["system.overload", "system.internal"].map(|reason| outcome("proxy", reason)));

    drop(release);
    // Until the thread has thrown away what nobody waits for, there is no room.
    let verified = async {
        while checks.check(asked("GET", "/catalog/1", Some(&token))).await.decision.reason != Reason::AllowPolicy {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), verified).await.expect("the thread and every place are free again");
    assert_eq!(told.telemetry.metrics().verification_waiting(Deferred::Token).get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_waits_for_a_use_of_a_counted_grant_for_so_long() {
    let mut estate = Estate::new();
    let wanted = estate.ask("agent", "payments/refunds", &["write"], None, 3600);
    estate.grant_as(wanted, |grant| grant.uses = Some(2));
    let (checks, told) = of(&estate, pool(VerificationLimits::default()), &Config::default());
    let state = Arc::clone(checks.gate().unwrap().state());
    let token = estate.token("agent");
    let now = estate.clock.now().mono;
    let gives = async {
        let purse = state.purse();
        let message = loop {
            if let [message] = purse.messages(now, usize::MAX)[..] {
                break message;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        let place = (message.grant, message.report.account);
        purse.answered(place, message.number, UseAnswer::Given(1), Duration::from_secs(60), now);
    };
    let (mut checked, ()) = tokio::join!(checks.check(asked("POST", "/refunds/7", Some(&token))), gives);
    assert_eq!(checked.decision.reason, Reason::AllowGrant, "{:?}", checked.decision.detail);
    checked.open_record().answered(&"127.0.0.1:1".into(), 200);
    let begun = Instant::now();
    let checked = checks.check(asked("POST", "/refunds/7", Some(&token))).await;
    let took = begun.elapsed();
    assert_eq!(checked.decision.reason, Reason::SystemUses);
    assert!((Duration::from_millis(120)..Duration::from_millis(500)).contains(&took), "{took:?}");
    assert_eq!(told.outcomes(), ["allow.grant", "system.uses"].map(|reason| outcome("proxy", reason)));
}

#[tokio::test]
async fn the_record_of_an_allow_is_open_at_the_door_that_forwards_and_nowhere_else() {
    let estate = Estate::new();
    let (checks, told) = of(&estate, pool(VerificationLimits::default()), &Config::default());
    let token = estate.token("storefront");
    for door in Door::ALL {
        for (token, told_at_once) in [(Some(&*token), door != Door::Proxy), (None, true)] {
            let before = told.outcomes().len();
            let checked = checks.check(Asked { door, ..asked("GET", "/catalog/1", token) }).await;
            assert_eq!(checked.decision.permit().is_some(), token.is_some());
            let at_once = told.outcomes().len() - before;
            assert_eq!(at_once, usize::from(told_at_once), "{door:?}");
            drop(checked);
            assert_eq!(told.outcomes().len() - before, 1, "{door:?}: one record in the end, whatever happens");
        }
    }
}

fn mcp(estate: &mut Estate) {
    let route = json!({"name": "mcp", "path": "/mcp", "mcp": {}});
    estate.put(Kind::Service, &json!({"name": "desk", "routes": [route]}));
    let policy = r#"
        @id("ping") permit(principal, action, resource) when { context has mcp.method && context.mcp.method == "ping" };
        @id("grants") permit(principal, action, resource) when { context has grant };
    "#;
    estate.put_policies(policy);
}

fn message(token: &str) -> Asked {
    let mut asked = asked("POST", "/mcp", Some(token));
    for (name, value) in [("content-type", "application/json"), ("mcp-protocol-version", "2025-11-25")] {
        asked.headers.insert(name, HeaderValue::from_static(value));
    }
    asked
}

#[tokio::test]
async fn a_body_is_read_only_for_who_may_ask_and_what_takes_it_and_is_told_of_once() {
    let mut estate = Estate::new();
    mcp(&mut estate);
    let (checks, told) = of(&estate, pool(VerificationLimits::default()), &Config::default());
    let token = estate.token("ci");
    let reads = std::cell::Cell::new(0);
    let with = |body: &'static [u8]| {
        reads.set(reads.get() + 1);
        move |mut asked: Asked| async move {
            asked.body = Some(Bytes::from_static(body));
            (asked, Ok(()))
        }
    };
    let reading = async |asked: Asked, body: &'static [u8]| {
        let checked = checks.check_reading(asked, |asked| with(body)(asked)).await;
        (checked.decision.reason, checked.request.body.as_deref() == Some(body))
    };
    let (ping, list) = (
        &br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#[..],
        &br#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#[..],
    );
    assert_eq!(reading(message(&token), ping).await, (Reason::AllowPolicy, true));
    assert_eq!(reading(message(&token), list).await, (Reason::EntitlementNoGrant, true));
    assert_eq!(reads.get(), 2);
    assert_eq!(reading(message("bad"), ping).await.0.family(), "credential");
    assert!(!reading(asked("GET", "/catalog/1", Some(&token)), ping).await.1);
    assert_eq!(reads.get(), 2, "nobody else has a body read");
    // What cannot be read is denied as what asked for it, or as the reader says.
    let failing = |reason| {
        let unread = Unread { reason, detail: "as it is" };
        checks.check_reading(message(&token), move |asked| async move { (asked, Err(unread)) })
    };
    let denied = failing(None).await.decision;
    assert_eq!((denied.reason, denied.detail.as_deref()), (Reason::InputBodyTruncated, Some("as it is")));
    assert_eq!(failing(Some(Reason::SystemOverload)).await.decision.reason, Reason::SystemOverload);
    // One that says that it has read a body, and has none.
    let empty = checks.check_reading(message(&token), |asked| async move { (asked, Ok(())) }).await;
    assert_eq!(empty.decision.reason, Reason::InputBodyTruncated);
    // A client that is gone before its body was there.
    let mut waiting = Box::pin(checks.check_reading(message(&token), |_asked| std::future::pending()));
    assert!(poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await);
    drop(waiting);
    let reasons: Vec<String> = told.outcomes().into_iter().map(|(_, reason)| reason).collect();
    let truncated = "input.body_truncated";
    assert_eq!(reasons[..2], ["allow.policy", "entitlement.no_grant"]);
    assert_eq!(reasons[4..], [truncated, "system.overload", truncated, truncated]);
}

#[tokio::test]
async fn a_body_that_comes_late_is_decided_on_by_the_state_of_then() {
    let mut estate = Estate::new();
    mcp(&mut estate);
    let (checks, _told) = of(&estate, pool(VerificationLimits::default()), &Config::default());
    let state = Arc::clone(checks.gate().unwrap().state());
    let token = estate.token("ci");
    estate.revoke(&json!({"kind": "workload", "workload": Estate::id("ci")}));
    let changed = Arc::new(estate.snapshot());
    let checked = checks.check_reading(message(&token), |mut asked: Asked| async move {
        let _retired = state.publish(changed);
        asked.body = Some(Bytes::from_static(br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#));
        (asked, Ok(()))
    });
    assert_eq!(checked.await.decision.reason, Reason::RevokedWorkload);
}
