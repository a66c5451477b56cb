//! A request that is sent again with its key is done once and answered as before.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Request};
use serde_json::{Value, json};

use super::harness::{Answer, STOREFRONT, Site, refund_request};
use crate::control::sweep::forget_keys;
use crate::object::Kind;

impl Site {
    fn keyed(&self, token: &str, key: &str, path: &str, body: &Value) -> Request<Body> {
        let mut request = self.request(token, "POST", path, Some(body));
        request.headers_mut().insert("idempotency-key", HeaderValue::from_str(key).unwrap());
        request
    }

    async fn ask_with(&self, token: &str, key: &str, body: &Value) -> Answer {
        self.send(self.keyed(token, key, "/v1/grant-requests", body)).await
    }
}

#[tokio::test]
async fn the_same_request_is_done_once_and_answered_as_before() {
    let mut site = Site::new().await;
    site.furnish().await;
    let (alice, bob) = (site.operator("alice").await, site.operator("bob").await);
    let first = site.ask_with(&alice, "k-1", &refund_request()).await.expect(201);
    assert_eq!(first.header("idempotency-replayed"), "");
    let revision = site.revision();

    // Approved meanwhile: the answer is still that of the request.
    let id = first.body["object"]["id"].as_str().unwrap();
    let digest = &first.body["object"]["digest"];
    let approve = format!("/v1/grant-requests/{id}/approve");
    site.call_as(&bob, "POST", &approve, json!({ "digest": digest })).await.expect(200);
    for _ in 0..2 {
        site.clock.advance(Duration::from_secs(3600));
        let again = site.ask_with(&alice, "k-1", &refund_request()).await.expect(201);
        assert_eq!(again.body, first.body);
        assert_eq!(again.header("location"), first.header("location"));
        assert_eq!(again.header("idempotency-replayed"), "true");
        site = site.restart().await;
    }
    assert_eq!(site.revision(), revision + 1, "only the approval was written");

    // Spaces and the order of members are not what is asked.
    let members: Vec<String> =
        refund_request().as_object().unwrap().iter().rev().map(|(k, v)| format!(" \"{k}\" : {v}")).collect();
    let mut same = site.keyed(&alice, "k-1", "/v1/grant-requests", &Value::Null);
    *same.body_mut() = Body::from(format!("{{{}}}", members.join(",")));
    assert_eq!(site.send(same).await.expect(201).body, first.body);
}

#[tokio::test]
async fn a_key_belongs_to_its_caller_its_path_and_its_body() {
    let site = Site::new().await;
    site.furnish().await;
    let (alice, bob) = (site.operator("alice").await, site.operator("bob").await);
    let first = site.ask_with(&alice, "k-1", &refund_request()).await.expect(201);
    let mut other = refund_request();
    other["duration_seconds"] = json!(301);
    let before = site.revision();
    let refused = site.ask_with(&alice, "k-1", &other).await.expect(422);
    refused.names("idempotency-key", "another path or body");
    let revocation = json!({ "target": { "kind": "workload", "workload": STOREFRONT } });
    site.send(site.keyed(&alice, "k-1", "/v1/revocations", &revocation)).await.expect(422);
    assert_eq!(site.revision(), before, "nothing was done");
    let of_bob = site.ask_with(&bob, "k-1", &refund_request()).await.expect(201);
    assert_ne!(of_bob.body["object"]["id"], first.body["object"]["id"]);

    // What failed has used no key up.
    let mut wrong = refund_request();
    wrong["resources"] = json!(["payments/nothing"]);
    site.ask_with(&alice, "k-2", &wrong).await.expect(422);
    site.ask_with(&alice, "k-2", &refund_request()).await.expect(201);

    for key in ["", "two words", &"k".repeat(256)] {
        site.ask_with(&alice, key, &refund_request()).await.expect(400).names("idempotency-key", "1 to 255");
    }
    let mut twice = site.keyed(&alice, "k-3", "/v1/grant-requests", &refund_request());
    twice.headers_mut().append("idempotency-key", HeaderValue::from_static("k-4"));
    site.send(twice).await.expect(400).names("idempotency-key", "twice");
}

#[tokio::test]
async fn of_many_at_the_same_time_one_is_done() {
    let site = Site::new().await;
    site.furnish().await;
    let before = site.revision();
    let revocation = json!({ "target": { "kind": "workload", "workload": STOREFRONT }, "reason": "lost laptop" });
    let ask = || site.send(site.keyed(&site.token, "k", "/v1/revocations", &revocation));
    let answers = futures_util::future::join_all((0..20).map(|_| ask())).await;
    let ids: std::collections::BTreeSet<String> =
        answers.into_iter().map(|a| a.expect(201).body["object"]["id"].to_string()).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(site.revision(), before + 1);
    assert_eq!(site.core.index().list(Kind::Revocation).len(), 1);
}

#[tokio::test]
async fn a_key_is_held_for_a_day_and_then_forgotten() {
    let site = Site::new().await;
    site.furnish().await;
    let first = site.ask_with(&site.token, "k", &refund_request()).await.expect(201);
    site.clock.advance(Duration::from_secs(24 * 3600));
    assert_eq!(forget_keys(&site.core).await.unwrap(), 0);
    assert_eq!(site.ask_with(&site.token, "k", &refund_request()).await.expect(201).body, first.body);
    site.clock.advance(Duration::from_secs(3600));
    assert_eq!(forget_keys(&site.core).await.unwrap(), 1);
    assert_eq!(site.core.index().list(Kind::Idempotency).len(), 0);
    let anew = site.ask_with(&site.token, "k", &refund_request()).await.expect(201);
    assert_ne!(anew.body["object"]["id"], first.body["object"]["id"]);
}
