//! The API as applications see it, asked without a listener.
//!
//! Long because each way to ask wrongly has its line, and what is told of it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use super::*;
use crate::cache::{CacheSizes, Gate};
use crate::door::{self, Checks};
use crate::object::{Kind, WorkloadPattern};
use crate::state::State;
use crate::telemetry::{Output, Records, RecordsConfig, SidecarMetrics, Telemetry};
use crate::testing::Estate;

struct Desk {
    estate: Estate,
    state: Arc<State>,
    telemetry: Arc<Telemetry>,
    service: Service,
    dir: tempfile::TempDir,
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Bytes,
}

fn config() -> Config {
    let caller = |name: &str, may_assert: &[&str]| Caller {
        identity: Estate::id(name).parse().unwrap(),
        may_assert: may_assert.iter().map(|pattern| WorkloadPattern((*pattern).to_owned())).collect(),
    };
    Config {
        callers: vec![caller("ci", &["spiffe://test.example/*"]), caller("storefront", &[])],
        subject_types: vec![SubjectType { name: "user".to_owned(), prefix: "spiffe://test.example/".to_owned() }],
        resource_types: vec![ResourceType { name: "item".to_owned(), resource: "catalog/items".parse().unwrap() }],
        url: Some("https://pdp.example".to_owned()),
        max_body_bytes: 16_384,
        max_evaluations: 20,
        read_timeout: Duration::from_secs(5),
    }
}

impl Desk {
    fn new() -> Self {
        Self::with(config())
    }

    fn with(config: Config) -> Self {
        let estate = Estate::new();
        let state = estate.state();
        let sizes = CacheSizes { tokens: 100, decisions: 100 };
        let gate = Arc::new(Gate::new(Arc::clone(&state), Arc::clone(&estate.clock) as _, sizes));
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(SidecarMetrics::new().unwrap());
        let output = Output::File { path: dir.path().join("records"), max_bytes: u64::MAX, keep: 1 };
        let records = Records::start(RecordsConfig { output, queue: 1000 }, metrics.records_dropped().clone()).unwrap();
        let telemetry = Telemetry::new(metrics, records, None, Arc::clone(&estate.clock) as _);
        let checks = Checks::new(gate, Arc::clone(&telemetry), &door::Config::default()).unwrap();
        Self { estate, state, telemetry, service: Service::new(checks, config), dir }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = self.service.answer(request, IpAddr::V4(Ipv4Addr::LOCALHOST)).await;
        let (parts, body) = response.into_parts();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    fn request(&self, path: &str, caller: Option<&str>, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
        let mut request = Request::post(path).header("content-type", "application/json").header("host", "pdp.example");
        if let Some(caller) = caller {
            request = request.header("authorization", format!("Bearer {}", self.estate.token(caller)));
        }
        request.body(Full::new(body.into())).unwrap()
    }

    async fn ask_as(&self, caller: Option<&str>, api: &str, body: &Value) -> Answer {
        self.send(self.request(&format!("/access/v1/{api}"), caller, body.to_string())).await
    }

    /// What an application that may vouch for everybody is told.
    async fn ask(&self, api: &str, body: &Value) -> Answer {
        self.ask_as(Some("ci"), api, body).await
    }

    /// The records so far.
    fn records(&self) -> Vec<Value> {
        assert!(self.telemetry.records().flush(Duration::from_secs(10)));
        let text = std::fs::read_to_string(self.dir.path().join("records")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Answer {
    fn json(&self) -> Value {
        assert_eq!(
            (self.status, &self.headers["content-type"]),
            (StatusCode::OK, &"application/json".parse().unwrap())
        );
        serde_json::from_slice(&self.body).unwrap()
    }

    fn error(&self) -> (u16, String) {
        assert!(self.headers["content-type"].to_str().unwrap().starts_with("text/plain"));
        (self.status.as_u16(), String::from_utf8(self.body.to_vec()).unwrap())
    }
}

fn read(subject: &str) -> Value {
    json!({
        "subject": {"type": "workload", "id": Estate::id(subject)},
        "action": {"name": "read"},
        "resource": {"type": "route", "id": "catalog/items"},
    })
}

/// The body with one member replaced, or removed by null; `name` may have a dot.
fn with(mut body: Value, name: &str, value: Value) -> Value {
    let (parent, last) = match name.rsplit_once('.') {
        Some((parent, last)) => (parent.split('.').fold(&mut body, |value, name| &mut value[name]), last),
        None => (&mut body, name),
    };
    match value {
        Value::Null => _ = parent.as_object_mut().unwrap().remove(last),
        value => parent[last] = value,
    }
    body
}

#[tokio::test]
async fn an_evaluation_is_answered_recorded_and_counted() {
    let desk = Desk::new();
    let allowed = desk.ask("evaluation", &read("storefront")).await.json();
    assert_eq!(allowed["decision"], true);
    assert_eq!(allowed["context"]["reason"], "allow.policy");
    let denied = desk.ask("evaluation", &read("agent")).await.json();
    assert_eq!(denied["decision"], false);
    assert_eq!(denied["context"]["reason"], "entitlement.no_grant");
    assert_eq!(denied["context"]["grant_request"]["resources"], json!(["catalog/items"]));
    assert_eq!(denied["context"]["grant_request"]["workload"], Estate::id("agent"));

    let records = desk.records();
    assert_eq!(records.len(), 2);
    for (record, answer) in records.iter().zip([&allowed, &denied]) {
        assert_eq!((&record["door"], &record["asked_by"]), (&json!("authzen"), &json!(Estate::id("ci"))));
        assert_eq!(record["decision_id"], answer["context"]["decision_id"]);
        assert_eq!(record["reason"], answer["context"]["reason"]);
        assert_eq!((&record["resource"], &record["action"]), (&json!("catalog/items"), &json!("read")));
    }
    assert_eq!(records[0]["workload"], Estate::id("storefront"));
    let metrics = desk.telemetry.metrics().exposition().render();
    for reason in ["allow.policy", "entitlement.no_grant"] {
        let line =
            metrics.lines().find(|l| l.contains(r#"door="authzen""#) && l.contains(reason) && l.contains("false"));
        assert!(line.is_some_and(|line| line.ends_with(" 1")), "{reason}: {line:?}");
    }

    // By the words of the application, by request, and as one of a service.
    for body in [
        with(read("storefront"), "subject", json!({"type": "user", "id": "storefront"})),
        with(read("storefront"), "resource", json!({"type": "item", "id": "no matter which"})),
        with(read("storefront"), "resource", json!({"type": "service", "id": "catalog"})),
        json!({
            "subject": {"type": "user", "id": "storefront"},
            "action": {"name": "read", "properties": {"method": "GET"}},
            "resource": {"type": "service", "id": "catalog", "properties": {"path": "/catalog/7?x=1", "host": "shop.example"}},
        }),
    ] {
        assert_eq!(desk.ask("evaluation", &body).await.json()["decision"], true, "{body}");
    }
    assert_eq!(desk.records().last().unwrap()["path"], "/catalog/7");
}

#[tokio::test]
async fn only_those_on_the_list_are_answered_and_by_their_own_token() {
    let desk = Desk::new();
    let nobody = desk.ask_as(None, "evaluation", &read("storefront")).await;
    assert_eq!(nobody.status, StatusCode::UNAUTHORIZED);
    assert_eq!(nobody.headers["www-authenticate"], r#"Bearer realm="portcullis""#);
    assert_eq!(nobody.headers["x-portcullis-reason"], "credential");
    // Registered, with a good token, and not on the list; the body is not even read.
    let other = desk.send(desk.request("/access/v1/evaluation", Some("agent"), "no JSON")).await;
    assert_eq!(other.status, StatusCode::FORBIDDEN);
    let stranger = desk.ask_as(Some("stranger"), "evaluation", &read("storefront")).await;
    assert_eq!(stranger.status, StatusCode::UNAUTHORIZED);
    let mut request = desk.request("/access/v1/evaluation", None, read("storefront").to_string());
    request.headers_mut().insert("authorization", "Bearer a.b.c".parse().unwrap());
    assert_eq!(desk.send(request).await.status, StatusCode::UNAUTHORIZED);
    let reasons: Vec<Value> = desk.records().iter().map(|record| record["reason"].clone()).collect();
    assert_eq!(reasons, ["credential.missing", "policy.no_match", "credential.subject", "credential.malformed"]);

    // On the list, but it may vouch for nobody: it needs a token, and keeps it to itself.
    let denied = desk.ask_as(Some("storefront"), "evaluation", &read("storefront")).await.json();
    assert_eq!((&denied["decision"], &denied["context"]["reason"]), (&json!(false), &json!("credential.missing")));
    let token = desk.estate.token("storefront");
    let brought = with(read("storefront"), "subject.properties", json!({"token": token}));
    let answer = desk.ask_as(Some("storefront"), "evaluation", &brought).await;
    assert_eq!(answer.json()["decision"], true);
    assert!(!String::from_utf8_lossy(&answer.body).contains(&token));
    let recorded = desk.records().last().unwrap().clone();
    assert_eq!(recorded["token_id"], "jti-storefront");
    assert!(!recorded.to_string().contains(&token));
    // Somebody else's token.
    let stolen = with(read("storefront"), "subject.properties", json!({"token": desk.estate.token("agent")}));
    let denied = desk.ask_as(Some("storefront"), "evaluation", &stolen).await.json();
    assert_eq!((&denied["decision"], &denied["context"]["reason"]), (&json!(false), &json!("credential.subject")));

    let nobody = Desk::with(Config { callers: Vec::new(), ..config() });
    assert_eq!(nobody.ask("evaluation", &read("storefront")).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn what_cannot_be_read_is_an_error_and_what_is_unknown_is_denied() {
    let desk = Desk::new();
    let good = || read("storefront");
    for (name, value, why) in [
        ("subject", Value::Null, "`subject` is missing"),
        ("action", Value::Null, "`action` is missing"),
        ("resource", Value::Null, "`resource` is missing"),
        ("subject.type", Value::Null, "`subject.type` is missing"),
        ("subject.id", Value::Null, "`subject.id` is missing"),
        ("action.name", Value::Null, "`action.name` is missing"),
        ("resource.type", Value::Null, "`resource.type` is missing"),
        ("resource.id", Value::Null, "`resource.id` is missing"),
        ("subject", json!("alice"), "`subject` is not an object"),
        ("action.name", json!(123), "`action.name` is not a string"),
        ("subject.id", json!("x".repeat(3000)), "`subject.id` is longer than 2048 bytes"),
        ("subject.properties", json!([]), "`subject.properties` is not an object"),
        ("subject.properties", json!({"token": 7}), "`subject.properties.token` is not a string"),
        ("context", json!("x"), "`context` is not an object"),
        ("action.properties", json!({"method": null}), "`action.properties.method` is not a string"),
        ("action.properties", json!({"method": 5}), "`action.properties.method` is not a string"),
        ("resource.properties", json!({"path": null}), "`resource.properties.path` is not a string"),
        ("resource.properties", json!({"path": ["/"]}), "`resource.properties.path` is not a string"),
        ("resource.properties", json!({"host": false}), "`resource.properties.host` is not a string"),
    ] {
        let answer = desk.ask("evaluation", &with(good(), name, value)).await;
        assert_eq!(answer.error(), (400, why.to_owned()), "{name}");
        assert_eq!(answer.headers["x-portcullis-reason"], "input");
    }
    let double = good().to_string().replacen("\"type\":\"workload\"", "\"type\":\"workload\",\"type\":\"workload\"", 1);
    let deep = format!(r#"{{"context":{}1{}}}"#, r#"{"a":"#.repeat(40), "}".repeat(40));
    let large = with(good(), "context", json!({"x": "y".repeat(20_000)})).to_string();
    for body in ["", "{", "[]", "\"x\"", "{}", "{} {}", &double, &deep, &large] {
        let answer = desk.send(desk.request("/access/v1/evaluation", Some("ci"), body.to_owned())).await;
        assert_eq!(answer.error().0, 400, "{body:.60}");
    }
    for kind in [None, Some("text/plain"), Some("application/jsonp"), Some("application/json, text/plain")] {
        let mut request = desk.request("/access/v1/evaluation", Some("ci"), good().to_string());
        request.headers_mut().remove("content-type");
        kind.map(|kind| request.headers_mut().insert("content-type", kind.parse().unwrap()));
        assert_eq!(desk.send(request).await.error().0, 400, "{kind:?}");
    }
    let mut request = desk.request("/access/v1/evaluation", Some("ci"), good().to_string());
    request.headers_mut().insert("content-type", "Application/JSON; charset=utf-8".parse().unwrap());
    assert_eq!(desk.send(request).await.json()["decision"], true);
    // Every one of them is on record.
    assert!(desk.records().iter().filter(|record| record["reason"] == "input.malformed").count() >= 25);

    for (name, value, reason) in [
        ("subject.type", json!("spaceship"), "credential.subject"),
        ("subject.id", json!("alice"), "credential.subject"),
        ("subject.id", json!(Estate::id("nobody")), "credential.subject"),
        ("resource.type", json!("spaceship"), "policy.no_match"),
        ("resource.id", json!("catalog/none"), "policy.no_match"),
        ("action.name", json!("fly"), "policy.no_match"),
    ] {
        let answer = desk.ask("evaluation", &with(good(), name, value)).await.json();
        assert_eq!((&answer["decision"], &answer["context"]["reason"]), (&json!(false), &json!(reason)), "{name}");
    }
    // What nobody knows is ignored.
    let more = with(with(good(), "future", json!({"nested": true})), "evaluations", json!([read("agent")]));
    assert_eq!(desk.ask("evaluation", &more).await.json()["decision"], true);
}

#[tokio::test]
async fn several_evaluations_inherit_and_end_as_they_are_told() {
    let desk = Desk::new();
    let decisions = |answer: &Value| -> Vec<bool> {
        answer["evaluations"].as_array().unwrap().iter().map(|one| one["decision"].as_bool().unwrap()).collect()
    };
    let mut batch = read("storefront");
    batch["evaluations"] = json!([
        {},
        {"subject": {"id": Estate::id("agent")}},
        {"subject": {"type": "user", "id": "storefront"}, "context": {"x": 1}},
        {"action": {"name": "write"}},
        {"resource": {"id": "payments/refunds"}, "action": {"name": "read"}},
        {"action": {"properties": {"method": "GET"}}, "resource": {"properties": {"path": "/catalog/1"}}},
        7,
        {"resource": "x"},
        {},
    ]);
    let all = desk.ask("evaluations", &batch).await.json();
    assert_eq!(decisions(&all), [true, false, true, false, false, true, false, false, true]);
    assert_eq!(all["evaluations"][6]["context"]["error"]["status"], 400);
    assert_eq!(all["evaluations"][7]["context"]["error"]["message"], "`resource` is not an object");
    assert_eq!(all.get("decision"), None);
    assert_eq!(desk.records().len(), 9, "each is recorded");

    for (semantic, expected) in [
        ("execute_all", vec![true, false, true, false, false, true, false, false, true]),
        ("deny_on_first_deny", vec![true, false]),
        ("permit_on_first_permit", vec![true]),
    ] {
        batch["options"] = json!({"evaluations_semantic": semantic, "another": 1});
        let before = desk.records().len();
        let answer = desk.ask("evaluations", &batch).await.json();
        assert_eq!(decisions(&answer), expected, "{semantic}");
        assert_eq!(desk.records().len() - before, expected.len(), "{semantic}: what is not evaluated is not recorded");
    }
    batch["evaluations"] = json!([{"subject": {"id": Estate::id("agent")}}, {}, {}]);
    assert_eq!(decisions(&desk.ask("evaluations", &batch).await.json()), [false, true]);

    // Without a list it is one evaluation.
    for list in [Value::Null, json!([])] {
        let answer = desk.ask("evaluations", &with(read("storefront"), "evaluations", list)).await.json();
        assert_eq!((&answer["decision"], answer.get("evaluations")), (&json!(true), None));
    }
    for (name, value) in [
        ("options", json!({"evaluations_semantic": "other"})),
        ("options", json!({"evaluations_semantic": 7})),
        ("options", json!([])),
        ("evaluations", json!({"1": {}})),
        ("evaluations", json!(vec![json!({}); 21])),
        ("subject", json!("alice")),
    ] {
        let answer = desk.ask("evaluations", &with(batch.clone(), name, value)).await;
        assert_eq!(answer.error().0, 400, "{name}");
    }
}

#[tokio::test]
async fn searches_find_what_evaluations_allow() {
    let desk = Desk::new();
    let subjects = json!({
        "subject": {"type": "user"}, "action": {"name": "read"}, "resource": {"type": "route", "id": "catalog/items"},
    });
    let found = desk.ask("search/subject", &subjects).await.json();
    assert_eq!(found["results"], json!([{"type": "user", "id": "storefront"}]));
    assert_eq!(found["page"], json!({"next_token": "", "count": 1}));
    let workloads = with(subjects.clone(), "subject", json!({"type": "workload", "id": "ignored"}));
    let found = desk.ask("search/subject", &workloads).await.json();
    assert_eq!(found["results"], json!([{"type": "workload", "id": Estate::id("storefront")}]));
    let spaceships = with(subjects.clone(), "subject.type", json!("spaceship"));
    assert_eq!(desk.ask("search/subject", &spaceships).await.json()["results"], json!([]));
    // One that may vouch for nobody finds nobody.
    assert_eq!(desk.ask_as(Some("storefront"), "search/subject", &subjects).await.json()["results"], json!([]));

    let by = json!({"type": "user", "id": "storefront"});
    let resources = json!({"subject": by, "action": {"name": "read"}, "resource": {"type": "route"}});
    let found = desk.ask("search/resource", &resources).await.json();
    assert_eq!(found["results"], json!([{"type": "route", "id": "catalog/items"}]));
    let services = with(resources.clone(), "resource.type", json!("service"));
    let found = desk.ask("search/resource", &services).await.json();
    assert_eq!(found["results"], json!([{"type": "service", "id": "catalog"}]));
    let unknown = with(resources.clone(), "resource.type", json!("spaceship"));
    assert_eq!(desk.ask("search/resource", &unknown).await.json()["results"], json!([]));
    // Which items there are, only the application knows.
    let items = with(resources.clone(), "resource.type", json!("item"));
    assert_eq!(desk.ask("search/resource", &items).await.error().0, 501);

    let actions = json!({"subject": by, "resource": {"type": "item", "id": "7"}});
    let found = desk.ask("search/action", &actions).await.json();
    assert_eq!(found["results"], json!([{"name": "read"}]));
    let nobody = with(actions.clone(), "subject.id", json!("nobody"));
    assert_eq!(desk.ask("search/action", &nobody).await.json()["results"], json!([]));

    for (api, body, name) in [
        ("search/subject", &subjects, "action"),
        ("search/subject", &subjects, "resource.id"),
        ("search/subject", &subjects, "subject.type"),
        ("search/resource", &resources, "subject.id"),
        ("search/resource", &resources, "action"),
        ("search/action", &actions, "resource"),
    ] {
        assert_eq!(desk.ask(api, &with(body.clone(), name, Value::Null)).await.error().0, 400, "{api} without {name}");
    }
    desk.estate.clock.advance(Duration::from_secs(301));
    // Its own token ends with the state: a fresh one, and still nothing is found that cannot be known.
    assert_eq!(desk.ask("search/action", &actions).await.error().0, 503);
}

#[tokio::test]
async fn a_search_goes_on_where_its_page_ended() {
    let mut desk = Desk::new();
    for n in 0..7 {
        let id = Estate::id(&format!("w{n}"));
        let roles = json!(["storefront"]);
        desk.estate.put(
            Kind::Workload,
            &json!({"id": id, "kind": "service", "owner": "t", "environment": "e", "roles": roles}),
        );
    }
    desk.state.publish(Arc::new(desk.estate.snapshot()));
    let search = json!({
        "subject": {"type": "user"}, "action": {"name": "read"}, "resource": {"type": "route", "id": "catalog/items"},
    });
    let (mut ids, mut token) = (Vec::new(), String::new());
    loop {
        let page = with(search.clone(), "page", json!({"limit": 3, "token": token}));
        let found = desk.ask("search/subject", &page).await.json();
        let results = found["results"].as_array().unwrap();
        assert!(results.len() <= 3 && found["page"]["count"] == results.len());
        ids.extend(results.iter().map(|one| one["id"].as_str().unwrap().to_owned()));
        token = found["page"]["next_token"].as_str().unwrap().to_owned();
        if token.is_empty() {
            break;
        }
        let other = with(page.clone(), "action.name", json!("write"));
        let elsewhere = with(other, "page.token", json!(token));
        assert_eq!(desk.ask("search/subject", &elsewhere).await.error().0, 400, "a token of another search");
    }
    assert_eq!(ids, ["storefront", "w0", "w1", "w2", "w3", "w4", "w5", "w6"]);
}

#[tokio::test]
async fn the_metadata_and_the_request_id_are_as_the_api_says() {
    let desk = Desk::new();
    let get = |path: &str| Request::get(path).body(Full::default()).unwrap();
    let metadata = desk.send(get("/.well-known/authzen-configuration")).await.json();
    assert_eq!(
        metadata,
        json!({
            "policy_decision_point": "https://pdp.example",
            "access_evaluation_endpoint": "https://pdp.example/access/v1/evaluation",
            "access_evaluations_endpoint": "https://pdp.example/access/v1/evaluations",
            "search_subject_endpoint": "https://pdp.example/access/v1/search/subject",
            "search_resource_endpoint": "https://pdp.example/access/v1/search/resource",
            "search_action_endpoint": "https://pdp.example/access/v1/search/action",
        })
    );
    let unset = Desk::with(Config { url: None, ..config() });
    assert_eq!(unset.send(get("/.well-known/authzen-configuration")).await.status, StatusCode::NOT_FOUND);
    assert_eq!(desk.send(get("/access/v1/evaluation")).await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(desk.send(get("/access/v2/evaluation")).await.status, StatusCode::NOT_FOUND);
    for path in ["/access/v1/evaluation", "/.well-known/authzen-configuration"] {
        assert!(is_for(path));
    }
    assert!(!is_for("/envoy/access/v1/evaluation") && !is_for("/access"));

    let id = "bfe9eb29-ab87-4ca3-be83-a1d5d8305716";
    let mut request = desk.request("/access/v1/evaluation", Some("ci"), read("storefront").to_string());
    request.headers_mut().insert("x-request-id", id.parse().unwrap());
    let allowed = desk.send(request).await;
    assert_eq!((&allowed.headers["x-request-id"], &allowed.json()["decision"]), (&id.parse().unwrap(), &json!(true)));
    let mut request = desk.request("/access/v1/evaluation", None, "x");
    request.headers_mut().insert("x-request-id", id.parse().unwrap());
    let refused = desk.send(request).await;
    assert_eq!((refused.status, &refused.headers["x-request-id"]), (StatusCode::UNAUTHORIZED, &id.parse().unwrap()));
    for ids in [vec!["a".to_owned(), "b".to_owned()], vec!["x".repeat(600)]] {
        let mut request = desk.request("/access/v1/evaluation", Some("ci"), read("storefront").to_string());
        ids.iter().for_each(|id| _ = request.headers_mut().append("x-request-id", id.parse().unwrap()));
        assert_eq!(desk.send(request).await.error().0, 400);
    }
    assert!(!desk.ask("evaluation", &read("storefront")).await.headers.contains_key("x-request-id"));
}

#[tokio::test]
async fn state_that_is_missing_or_old_allows_nothing() {
    let desk = Desk::new();
    assert_eq!(desk.ask("evaluation", &read("storefront")).await.json()["decision"], true);
    desk.estate.clock.advance(Duration::from_secs(299));
    assert_eq!(desk.ask("evaluation", &read("storefront")).await.json()["decision"], true);
    desk.estate.clock.advance(Duration::from_secs(1));
    let stale = desk.ask("evaluation", &read("storefront")).await.json();
    assert_eq!((&stale["decision"], &stale["context"]["reason"]), (&json!(false), &json!("system.stale")));
    let batch = with(read("storefront"), "evaluations", json!([{}, {}]));
    assert_eq!(desk.ask("evaluations", &batch).await.json()["evaluations"][1]["decision"], false);

    let desk = Desk::new();
    let later = crate::wire::Position { revision: desk.estate.position().revision.next(), ..desk.estate.position() };
    let mut request = desk.request("/access/v1/evaluation", Some("ci"), read("storefront").to_string());
    request.headers_mut().insert("x-portcullis-min-revision", later.to_string().parse().unwrap());
    assert_eq!(desk.send(request).await.json()["context"]["reason"], "system.stale");
    let mut request = desk.request("/access/v1/evaluation", Some("ci"), read("storefront").to_string());
    request.headers_mut().insert("x-portcullis-min-revision", "soon".parse().unwrap());
    assert_eq!(desk.send(request).await.error().0, 400);

    // Revocations reach callers and subjects alike.
    let mut desk = Desk::new();
    desk.estate.revoke(&json!({"kind": "workload", "workload": Estate::id("storefront")}));
    desk.state.publish(Arc::new(desk.estate.snapshot()));
    let denied = desk.ask("evaluation", &read("storefront")).await.json();
    assert_eq!((&denied["decision"], &denied["context"]["reason"]), (&json!(false), &json!("revoked.workload")));
    let caller = desk.ask_as(Some("storefront"), "evaluation", &read("agent")).await;
    assert_eq!(caller.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_call_that_is_dropped_is_told_of() {
    let desk = Desk::new();
    // Its body never comes.
    let body = http_body_util::StreamBody::new(futures_util::stream::pending::<
        Result<hyper::body::Frame<Bytes>, std::io::Error>,
    >());
    let token = format!("Bearer {}", desk.estate.token("ci"));
    let request = Request::post("/access/v1/evaluation").header("content-type", "application/json");
    let request = request.header("host", "pdp.example").header("authorization", token).body(body).unwrap();
    let answer = desk.service.answer(request, IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert!(tokio::time::timeout(Duration::from_millis(20), answer).await.is_err());
    let records = desk.records();
    assert_eq!((records.len(), &records[0]["reason"]), (1, &json!("system.internal")));
}

/// A body of which nothing comes.
fn never() -> impl hyper::body::Body<Data = Bytes, Error = std::io::Error> + Unpin {
    http_body_util::StreamBody::new(futures_util::stream::pending::<Result<hyper::body::Frame<Bytes>, std::io::Error>>())
}

#[tokio::test]
async fn strangers_are_refused_before_their_body_comes() {
    let desk = Desk::new();
    let send = |token: Option<String>| {
        let mut request = Request::post("/access/v1/evaluation").header("content-type", "application/json");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let (service, request) = (desk.service.clone(), request.body(never()).unwrap());
        async move {
            let answer = service.answer(request, IpAddr::V4(Ipv4Addr::LOCALHOST));
            tokio::time::timeout(Duration::from_secs(4), answer).await.unwrap().status()
        }
    };
    assert_eq!(send(None).await, StatusCode::UNAUTHORIZED);
    assert_eq!(send(Some("a.b.c".to_owned())).await, StatusCode::UNAUTHORIZED);
    assert_eq!(send(Some(desk.estate.token("stranger"))).await, StatusCode::UNAUTHORIZED);
    assert_eq!(send(Some(desk.estate.token("agent"))).await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn what_becomes_known_of_a_caller_while_its_body_comes_counts() {
    let mut desk = Desk::new();
    assert_eq!(desk.ask("evaluation", &read("storefront")).await.json()["decision"], true);
    let (revoked, body) = (tokio::sync::Notify::new(), read("storefront").to_string());
    let chunk = async {
        revoked.notified().await;
        Ok::<_, std::io::Error>(hyper::body::Frame::data(Bytes::from(body)))
    };
    let slow = http_body_util::StreamBody::new(Box::pin(futures_util::stream::once(chunk)));
    let token = format!("Bearer {}", desk.estate.token("ci"));
    let request = Request::post("/access/v1/evaluation").header("content-type", "application/json");
    let request = request.header("authorization", token).body(slow).unwrap();
    let service = desk.service.clone();
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        desk.estate.revoke(&json!({"kind": "workload", "workload": Estate::id("ci")}));
        desk.state.publish(Arc::new(desk.estate.snapshot()));
        revoked.notify_one();
    };
    let (answer, ()) = tokio::join!(service.answer(request, IpAddr::V4(Ipv4Addr::LOCALHOST)), revoke);
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_list_inherits_no_more_than_so_much_and_verifies_no_more_than_so_many() {
    let desk = Desk::with(Config { max_body_bytes: MAX_BODY, ..config() });
    let mut batch = with(read("storefront"), "context", json!({"x": "y".repeat(100_000)}));
    batch["evaluations"] = json!(vec![json!({}); 10]);
    let all = desk.ask("evaluations", &batch).await.json();
    assert_eq!(all["evaluations"].as_array().unwrap().len(), 10);
    batch["evaluations"] = json!(vec![json!({}); 11]);
    let refused = desk.ask("evaluations", &batch).await.error();
    assert_eq!(refused, (400, format!("the evaluations would inherit more than {} bytes in all", 1 << 20)));

    let with_tokens = |tokens: &[String]| {
        let of = |token: &String| json!({"subject": {"properties": {"token": token}}});
        let mut batch = read("storefront");
        batch["evaluations"] = tokens.iter().map(of).collect();
        batch
    };
    let token = |n: usize| {
        let claims = crate::testing::changed(desk.estate.claims("storefront"), &json!({"jti": format!("t{n}")}));
        desk.estate.signer.sign(&claims).unwrap()
    };
    let tokens: Vec<String> = (0..15).map(token).collect();
    let decided = |answer: &Value| -> Vec<(bool, String)> {
        let one =
            |one: &Value| (one["decision"].as_bool().unwrap(), one["context"]["reason"].as_str().unwrap().to_owned());
        answer["evaluations"].as_array().unwrap().iter().map(one).collect()
    };
    let allowed = (true, "allow.policy".to_owned());
    let answer = decided(&desk.ask("evaluations", &with_tokens(&tokens)).await.json());
    let (first, rest) = answer.split_at(10);
    assert!(first.iter().all(|one| *one == allowed), "{answer:?}");
    assert!(rest.iter().all(|one| *one == (false, "system.overload".to_owned())), "{answer:?}");
    // Those that are known by then cost nothing.
    let answer = decided(&desk.ask("evaluations", &with_tokens(&tokens)).await.json());
    assert!(answer.iter().all(|one| *one == allowed), "{answer:?}");
    // The same one counts once.
    let same = vec![token(99); 15];
    let answer = decided(&desk.ask("evaluations", &with_tokens(&same)).await.json());
    assert!(answer.iter().all(|one| *one == allowed), "{answer:?}");
}

#[tokio::test]
async fn the_revision_that_is_demanded_counts_for_searches_and_by_its_other_spelling() {
    let desk = Desk::new();
    let now = desk.estate.position();
    let later = crate::wire::Position { revision: now.revision.next(), ..now };
    let search = json!({
        "subject": {"type": "user"}, "action": {"name": "read"}, "resource": {"type": "route", "id": "catalog/items"},
    });
    for header in ["x-portcullis-min-revision", "x_portcullis_min_revision", "x-portcullis_min-revision"] {
        let ask = |api: &str, body: &Value, at: crate::wire::Position| {
            let mut request = desk.request(&format!("/access/v1/{api}"), Some("ci"), body.to_string());
            request.headers_mut().insert(header, at.to_string().parse().unwrap());
            desk.send(request)
        };
        assert_eq!(ask("search/subject", &search, now).await.json()["page"]["count"], 1, "{header}");
        assert_eq!(ask("search/subject", &search, later).await.error().0, 503, "{header}");
        assert_eq!(ask("evaluation", &read("storefront"), now).await.json()["decision"], true, "{header}");
        let stale = ask("evaluation", &read("storefront"), later).await.json();
        assert_eq!(stale["context"]["reason"], "system.stale", "{header}");
    }
}

#[tokio::test]
async fn the_token_in_a_search_for_subjects_is_for_no_policy() {
    let mut desk = Desk::new();
    desk.estate.put_policies(
        r#"@id("all") permit(principal, action, resource);
           @id("seen") forbid(principal, action, resource) when {
             context has asked && context.asked.subject.hasTag("token") };"#,
    );
    desk.state.publish(Arc::new(desk.estate.snapshot()));
    let search = json!({
        "subject": {"type": "user", "properties": {"token": "a.b.c"}}, "action": {"name": "read"},
        "resource": {"type": "route", "id": "catalog/items"},
    });
    let found = desk.ask("search/subject", &search).await.json();
    assert_ne!(found["page"]["count"], 0, "{found}");
}

#[tokio::test]
async fn a_host_that_is_not_said_is_unknown_to_policies() {
    let mut desk = Desk::new();
    desk.estate.put_policies(
        r#"@id("all") permit(principal, action, resource);
           @id("admin") forbid(principal, action, resource) when { context has host && context.host == "admin.example" };"#,
    );
    desk.state.publish(Arc::new(desk.estate.snapshot()));
    for (host, reason) in [
        (json!("shop.example"), "allow.policy"),
        (json!("admin.example"), "policy.explicit_deny"),
        (json!(""), "policy.error"),
        (Value::Null, "policy.error"),
    ] {
        let body = with(read("storefront"), "action.properties", json!({"method": "GET"}));
        let body = with(body, "resource.properties", json!({"path": "/catalog/7"}));
        let body = with(body, "resource.properties.host", host.clone());
        let answer = desk.ask("evaluation", &body).await.json();
        assert_eq!(answer["context"]["reason"], reason, "{host}");
    }
}
