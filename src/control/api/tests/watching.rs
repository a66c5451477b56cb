//! Waiting until a request is decided: by long poll, and as events.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::harness::{SIDECAR, STOREFRONT, Site, issuer, refund_request};
use crate::control::store::{Expect, Unit, Write};
use crate::credential::TokenSigner;
use crate::object::{Allotments, Kind, Object};

impl Site {
    async fn decide(&self, grant: &Value, what: &str) {
        let path = format!("/v1/grant-requests/{}/{what}", grant["id"].as_str().unwrap());
        self.call("POST", &path, json!({ "digest": grant["digest"] })).await.expect(200);
    }

    async fn events(&self, path: &str, last: Option<&str>) -> Response<Body> {
        self.events_as(&self.token, path, last).await
    }

    async fn events_as(&self, token: &str, path: &str, last: Option<&str>) -> Response<Body> {
        let mut request = self.request(token, "GET", path, None);
        request.headers_mut().insert("accept", HeaderValue::from_static("text/event-stream"));
        if let Some(last) = last {
            request.headers_mut().insert("last-event-id", HeaderValue::from_str(last).unwrap());
        }
        self.router().oneshot(request).await.unwrap()
    }
}

/// The ids and documents of the events, to the end of the stream.
async fn read(response: Response<Body>) -> Vec<(String, Value)> {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let field = |event: &str, name: &str| event.lines().find_map(|l| l.strip_prefix(name)).map(str::to_owned);
    let events = text.split("\n\n").filter(|e| e.contains("event: state"));
    events.map(|e| (field(e, "id: ").unwrap(), serde_json::from_str(&field(e, "data: ").unwrap()).unwrap())).collect()
}

#[tokio::test]
async fn a_long_poll_answers_when_the_request_is_decided() {
    let site = Site::new().await;
    site.furnish().await;
    let alice = site.operator("alice").await;
    let grant = site.ask(&alice).await;
    let path = format!("/v1/grant-requests/{}", grant["id"].as_str().unwrap());
    let begun = std::time::Instant::now();
    let (url, other) = (format!("{path}?wait=60s&until=decided"), site.ask(&alice).await);
    let waiting = site.get(&url);
    let deciding = async {
        // What is written of others wakes nobody up for good.
        site.decide(&other, "deny").await;
        site.decide(&grant, "approve").await;
    };
    let (answer, ()) = tokio::join!(waiting, deciding);
    assert_eq!(answer.expect(200).body["state"], "active");
    assert!(begun.elapsed() < Duration::from_secs(30));
    // What has come already is not waited for.
    assert_eq!(site.get(&url).await.expect(200).body["state"], "active");
    // What does not come is answered as it is.
    assert_eq!(site.get(&format!("{path}?wait=1s&until=ended")).await.expect(200).body["state"], "active");
    site.get(&format!("{path}?wait=61s")).await.expect(400).names("wait", "1s");
    site.get(&format!("{path}?until=never")).await.expect(400).names("until", "never");
    site.get("/v1/grant-requests/unknown?wait=60s").await.expect(404);
}

#[tokio::test]
async fn a_stream_tells_every_state_once_and_goes_on_where_it_was_cut_off() {
    let site = Site::new().await;
    site.furnish().await;
    let alice = site.operator("alice").await;
    let grant = site.ask(&alice).await;
    let path = format!("/v1/grants/{}", grant["id"].as_str().unwrap());
    let stream = site.events(&path, None).await;
    site.decide(&grant, "approve").await;
    let decided = read(stream).await;
    let states = |events: &[(String, Value)]| events.iter().map(|(_, g)| g["state"].to_string()).collect::<Vec<_>>();
    assert_eq!(states(&decided), [r#""pending""#, r#""active""#], "it ends when the request is decided");

    site.call("POST", &format!("{path}/revoke"), json!({})).await.expect(200);
    let until = format!("{path}?until=ended");
    let later = read(site.events(&until, Some(&decided[0].0)).await).await;
    assert_eq!(states(&later), [r#""active""#, r#""revoked""#], "what was missed is told");
    assert_eq!(later[0].0, decided[1].0);
    let anew = read(site.events(&until, Some("not an id")).await).await;
    assert_eq!(states(&anew), [r#""revoked""#]);
    let nothing = site.events(&until, Some(&later[1].0)).await;
    assert_eq!(nothing.status(), 204, "a client that comes back by itself is told to stay away");
    assert_eq!(site.events("/v1/grants/unknown", None).await.status(), 404);
}

#[tokio::test]
async fn who_waits_is_bounded_in_number_and_in_time() {
    let site = Site::new().await;
    site.furnish().await;
    let alice = site.operator("alice").await;
    let grant = site.ask(&alice).await;
    let path = format!("/v1/grants/{}", grant["id"].as_str().unwrap());
    // Nothing is written from here on, so nothing real is waited for.
    tokio::time::pause();
    let mut streams = Vec::new();
    loop {
        let response = site.events(&path, None).await;
        if response.status() != 200 {
            assert_eq!(
                (response.status().as_u16(), &response.headers()["retry-after"]),
                (503, &HeaderValue::from_static("1"))
            );
            break;
        }
        streams.push(response);
    }
    assert_eq!(streams.len(), 256);
    site.get(&format!("{path}?wait=5s")).await.expect(503);
    site.get(&path).await.expect(200);

    // Without a decision a stream ends by itself, and says meanwhile that it is there.
    let begun = tokio::time::Instant::now();
    let text = streams.pop().unwrap().into_body().collect().await.unwrap().to_bytes();
    let text = std::str::from_utf8(&text).unwrap();
    assert_eq!(text.matches(": still waiting").count(), 39, "{text}");
    assert_eq!(begun.elapsed().as_secs(), 600);
    drop(streams);
    site.get(&format!("{path}?wait=5s")).await.expect(200);
    assert_eq!(site.core.index().list(Kind::Grant).len(), 1);
}

/// With an operator its long polls and streams end at once: it is told nothing that happens after.
#[tokio::test]
async fn an_operator_who_is_revoked_waits_no_longer_and_is_told_nothing_more() {
    let site = Site::new().await;
    site.furnish().await;
    let (alice, bob) = (site.operator("alice").await, site.operator("bob").await);
    let grant = site.ask(&alice).await;
    let path = format!("/v1/grants/{}", grant["id"].as_str().unwrap());
    let begun = std::time::Instant::now();
    let (url, unread) = (format!("{path}?wait=60s"), site.events_as(&alice, &path, None).await);
    let poll = site.call_as(&alice, "GET", &url, Value::Null);
    let stream = async { read(site.events_as(&alice, &path, None).await).await };
    let revoking = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        site.call("DELETE", "/v1/operators/alice", Value::Null).await.expect(204);
    };
    let (polled, streamed, ()) = tokio::join!(poll, stream, revoking);
    polled.expect(401);
    assert_eq!(streamed.len(), 1, "the state of before: {streamed:?}");
    assert!(begun.elapsed() < Duration::from_secs(30));
    let approve = format!("/v1/grant-requests/{}/approve", grant["id"].as_str().unwrap());
    site.call_as(&bob, "POST", &approve, json!({ "digest": grant["digest"] })).await.expect(403);
    assert_eq!(read(unread).await.len(), 0, "not even what was there before it was read");
}

/// The same for a workload, and for who may not any more.
#[tokio::test]
async fn a_workload_that_is_revoked_and_who_may_not_any_more_wait_no_longer() {
    let signer = TokenSigner::generate_es256("k").unwrap();
    let site = Site::with_callers(super::callers::with_workloads()).await;
    site.furnish().await;
    let mut trusted = issuer("test", "test.example");
    trusted["jwks"]["keys"] = json!([signer.public_jwk()]);
    site.call("PUT", "/v1/issuers/test", trusted).await.expect(200);
    let now = super::harness::NOW.as_secs();
    let own = json!({ "sub": STOREFRONT, "aud": ["api"], "iat": now, "exp": now + 300 });
    let (own, alice) = (signer.sign(&own).unwrap(), site.operator("alice").await);
    let grant = site.ask(&alice).await;
    let path = format!("/v1/grants/{}?wait=60s", grant["id"].as_str().unwrap());
    let waiting = async |token: &str, status: u16, change: (&str, Value)| {
        let begun = std::time::Instant::now();
        let poll = site.call_as(token, "GET", &path, Value::Null);
        let stream = async { read(site.events_as(token, &path, None).await).await };
        let changing = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            site.call("POST", change.0, change.1.clone()).await.expect(201);
        };
        let (polled, streamed, ()) = tokio::join!(poll, stream, changing);
        polled.expect(status);
        assert_eq!(streamed.len(), 1, "the state of before: {streamed:?}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    };
    let forbid = r#"@id("all") permit(principal, action, resource);
        @id("no-looking") forbid(principal == Operator::"alice", action in Action::"read", resource);"#;
    waiting(&alice, 403, ("/v1/operator-policies", json!({ "text": forbid }))).await;
    let revocation = json!({ "target": { "kind": "workload", "workload": STOREFRONT } });
    waiting(&own, 401, ("/v1/revocations", revocation)).await;
}

#[tokio::test]
async fn a_grant_is_shown_with_what_became_of_its_uses() {
    let site = Site::new().await;
    site.furnish().await;
    let alice = site.operator("alice").await;
    let mut request = refund_request();
    request["uses"] = json!(10);
    let asked = site.call_as(&alice, "POST", "/v1/grant-requests", request).await.expect(201).body["object"].clone();
    site.decide(&asked, "approve").await;
    let path = format!("/v1/grants/{}", asked["id"].as_str().unwrap());
    let shown = site.get(&path).await.expect(200);
    assert_eq!(shown.body["use_counts"], json!({ "spent": 0, "held": 0, "left": 10 }));
    assert_eq!((&shown.body["uses"], &shown.body["state"]), (&json!(10), &json!("active")));
    let book: Allotments = serde_json::from_value(json!({
        "grant": asked["id"], "uses": 10, "spent": 2,
        "accounts": [{ "id": uuid::Uuid::from_u128(1), "holder": SIDECAR, "granted": 4, "spent": 1, "returned": 1,
                       "until": super::harness::NOW }],
    }))
    .unwrap();
    let write = Write::put(&Object::Allotment(Box::new(book)), Expect::Absent);
    site.core.commit(Unit::new("test", "test", "").with(write)).await.unwrap();
    let again = site.get(&path).await.expect(200);
    assert_eq!(again.body["use_counts"], json!({ "spent": 3, "held": 2, "left": 5 }));
    assert_eq!(again.header("etag"), shown.header("etag"), "the grant is the same");
    // What is not counted has no such member.
    let other = site.ask(&alice).await;
    let other = site.get(&format!("/v1/grants/{}", other["id"].as_str().unwrap())).await.expect(200);
    assert!(other.body.get("use_counts").is_none(), "{}", other.body);
}
