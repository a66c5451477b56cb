//! What the API is for: from nothing to a grant and back, receipts, restarts.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::harness::{
    NOW, POLICIES, SIDECAR, STOREFRONT, Site, catalog, payments, refund_request, workload, workload_path,
};
use crate::clock::Clock;
use crate::object::{Kind, Object};
use crate::wire::Position;

#[tokio::test]
async fn a_grant_from_request_to_revocation() {
    let site = Site::new().await;
    site.furnish().await;
    let (alice, bob) = (site.operator("alice").await, site.operator("bob").await);

    // The request of a denial is submitted as it stands.
    let mut request = refund_request();
    request["submit_to"] = json!("http://127.0.0.1:9180/v1/grant-requests");
    let asked = site.call_as(&alice, "POST", "/v1/grant-requests", request).await.expect(201);
    let grant = &asked.body["object"];
    let id = grant["id"].as_str().unwrap();
    assert_eq!((&grant["state"], &grant["requested_by"]), (&json!("pending"), &json!("alice")));
    assert_eq!(asked.header("location"), format!("/v1/grant-requests/{id}"));
    let at: Position = asked.body["position"].as_str().unwrap().parse().unwrap();
    assert_eq!(at, site.core.index().position());

    site.clock.advance(Duration::from_secs(30));
    let approve = format!("/v1/grant-requests/{id}/approve");
    let approved = site.call_as(&bob, "POST", &approve, json!({ "digest": grant["digest"] })).await.expect(200);
    let active = &approved.body["object"];
    assert_eq!(active["state"], "active");
    assert_eq!(active["votes"][0]["approver"], "bob");
    let start = site.clock.now().wall;
    assert_eq!(active["not_before"], json!(start), "it counts from its activation");
    assert_eq!(active["not_after"], json!(start.saturating_add(Duration::from_secs(300))));

    let before = site.revision();
    let revoke = format!("/v1/grants/{id}/revoke?wait=5s");
    let revoked = site.call_as(&alice, "POST", &revoke, json!({ "reason": "done" })).await.expect(200);
    assert_eq!(revoked.body["object"]["state"], "revoked");
    assert_eq!(site.revision(), before + 1, "grant and revocation are one revision");
    assert_eq!(revoked.body["receipt"]["complete"], true);
    assert_eq!(revoked.body["receipt"]["revision"], revoked.body["position"]);
    assert_eq!(revoked.body["receipt"]["never_connected"], json!([SIDECAR]));
    let log = site.core.index().since(crate::wire::Revision(before), 9).unwrap();
    let kinds: Vec<Kind> = log[0].commit.changes.iter().map(|c| c.kind).collect();
    assert_eq!(kinds, [Kind::Revocation, Kind::Grant]);
    assert_eq!(&*log[0].commit.author, "alice");

    // Who lost the answer asks again and gets the same position.
    let again = site.call_as(&bob, "POST", &revoke, Value::Null).await.expect(200);
    assert_eq!(again.body["position"], revoked.body["position"]);
    assert_eq!(again.body["receipt"]["revision"], revoked.body["position"]);
    assert_eq!(site.revision(), before + 1);
}

#[tokio::test]
async fn a_receipt_waits_for_the_enforcement_points_that_are_connected() {
    let site = Site::new().await;
    site.furnish().await;
    let (alice, bob) = (site.operator("alice").await, site.operator("bob").await);
    let grant = site.ask(&alice).await;
    let id = grant["id"].as_str().unwrap();
    let approve = format!("/v1/grant-requests/{id}/approve");
    site.call_as(&bob, "POST", &approve, json!({ "digest": grant["digest"] })).await.expect(200);
    let sidecar = site.fleet.connected(&SIDECAR.parse().unwrap(), "one", "0.1.0").unwrap();
    let listed = site.get("/v1/enforcement-points").await.expect(200);
    assert_eq!(listed.body["items"][0]["identity"], SIDECAR);

    let revoke = format!("/v1/grants/{id}/revoke?wait=1s");
    let late = site.call("POST", &revoke, json!({})).await.expect(200);
    assert_eq!(late.body["receipt"]["complete"], false, "it has not said so");
    assert_eq!(late.body["receipt"]["pending"][0]["enforcement_point"], SIDECAR);
    sidecar.acked(late.body["position"].as_str().unwrap().parse().unwrap());
    let done = site.call("POST", &revoke, json!({})).await.expect(200);
    assert_eq!(done.body["receipt"]["complete"], true);
    assert_eq!(done.body["receipt"]["applied"][0]["instance"], "one");
}

#[tokio::test]
async fn revocations_end_issuers_keys_tokens_and_workloads() {
    let site = Site::new().await;
    site.furnish().await;
    let targets = [
        json!({ "kind": "token", "issuer": "test", "jti": "t-1" }),
        json!({ "kind": "tokens_before", "workload": STOREFRONT, "before": NOW }),
        json!({ "kind": "workload", "workload": STOREFRONT }),
        json!({ "kind": "issuer", "issuer": "test" }),
        json!({ "kind": "key", "issuer": "test", "kid": "key-1" }),
    ];
    for target in &targets {
        let answer = site.call("POST", "/v1/revocations?wait=1s", json!({ "target": target, "reason": "leak" })).await;
        let answer = answer.expect(201);
        assert_eq!(&answer.body["object"]["target"], target);
        assert_eq!(answer.body["object"]["created_by"], "bootstrap");
        assert_eq!(answer.body["receipt"]["complete"], true);
        let one = site.get(answer.header("location")).await.expect(200);
        assert_eq!(one.body, answer.body["object"]);
    }
    // A serial number in any form that programs print; it is kept in one.
    let target = json!({ "kind": "certificate", "serial": "00:0A:1B:2C" });
    let answer = site.call("POST", "/v1/revocations", json!({ "target": target })).await.expect(201);
    assert_eq!(answer.body["object"]["target"], json!({ "kind": "certificate", "serial": "a1b2c" }));
    assert_eq!(site.get("/v1/revocations").await.body["items"].as_array().unwrap().len(), targets.len() + 1);
    let id = site.core.index().list(Kind::Revocation)[0].key.to_string();
    let deleted = site.call("DELETE", &format!("/v1/revocations/{id}"), Value::Null).await.expect(405);
    assert!(deleted.header("allow").contains("GET"), "append-only");

    // A grant's revocation by this way is the same as by the other. Nobody asks for what is revoked.
    let of_workload = site.core.index().revocations_of(STOREFRONT).remove(0);
    let lift = format!("/v1/revocations/{}/lift", of_workload.key);
    site.call("POST", &lift, json!({ "reason": "no leak" })).await.expect(200);
    let (alice, before) = (site.operator("alice").await, site.revision());
    let grant = site.ask(&alice).await;
    let target = json!({ "target": { "kind": "grant", "grant": grant["id"] } });
    site.call("POST", "/v1/revocations", target.clone()).await.expect(201);
    assert_eq!(site.revision(), before + 2);
    let path = format!("/v1/grants/{}", grant["id"].as_str().unwrap());
    assert_eq!(site.get(&path).await.body["state"], "revoked");
    site.call("POST", "/v1/revocations", target).await.expect(409);
}

#[tokio::test]
async fn retiring_a_workload_ends_everything_it_holds_in_one_revision() {
    let site = Site::new().await;
    site.furnish().await;
    let other = "spiffe://test.example/other";
    site.call("PUT", &workload_path(other), workload(other)).await.expect(201);
    let (alice, bob) = (site.operator("alice").await, site.operator("bob").await);
    let active = site.ask(&alice).await;
    let path = format!("/v1/grant-requests/{}/approve", active["id"].as_str().unwrap());
    site.call_as(&bob, "POST", &path, json!({ "digest": active["digest"] })).await.expect(200);
    let pending = site.ask(&alice).await;
    let mut of_other = refund_request();
    of_other["workload"] = json!(other);
    let untouched = site.call("POST", "/v1/grant-requests", of_other).await.expect(201).body["object"].clone();

    let before = site.revision();
    let path = format!("{}?reason=decommissioned&wait=1s", workload_path(STOREFRONT));
    let retired = site.call("DELETE", &path, Value::Null).await.expect(200);
    assert_eq!(site.revision(), before + 1, "one revision");
    let ended: BTreeSet<&str> =
        retired.body["revoked_grants"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let expected: BTreeSet<&str> = [&active, &pending].iter().filter_map(|g| g["id"].as_str()).collect();
    assert_eq!(ended, expected);
    assert_eq!(retired.body["receipt"]["complete"], true);
    for (grant, state) in [(&active, "revoked"), (&pending, "revoked"), (&untouched, "pending")] {
        let path = format!("/v1/grants/{}", grant["id"].as_str().unwrap());
        assert_eq!(site.get(&path).await.body["state"], state);
    }
    let revocations = site.core.index().list(Kind::Revocation);
    let Some(Object::Revocation(r)) = &revocations[0].object else { panic!() };
    assert_eq!((revocations.len(), &*r.reason), (1, "decommissioned"));

    site.get(&workload_path(STOREFRONT)).await.expect(404);
    site.call("PUT", &workload_path(STOREFRONT), workload(STOREFRONT)).await.expect(409);
    let refused = site.call("POST", "/v1/grant-requests", refund_request()).await.expect(422);
    refused.names("workload", "has been retired");
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let site = Site::new().await;
    site.furnish().await;
    let alice = site.operator("alice").await;
    let grant = site.ask(&alice).await;
    let paths = ["/v1/issuers", "/v1/workloads", "/v1/services", "/v1/grants", "/v1/policies/current", "/v1/operators"];
    let mut before = Vec::new();
    for path in paths {
        before.push(site.get(path).await.expect(200).body);
    }
    let site = site.restart().await;
    for (path, before) in paths.iter().zip(before) {
        assert_eq!(site.get(path).await.expect(200).body, before, "{path}");
    }
    let path = format!("/v1/grant-requests/{}/approve", grant["id"].as_str().unwrap());
    let own = site.call_as(&alice, "POST", &path, json!({ "digest": grant["digest"] })).await;
    own.expect(403);
    site.call("POST", &path, json!({ "digest": grant["digest"] })).await.expect(200);
}

#[tokio::test]
async fn putting_what_is_there_changes_nothing() {
    let site = Site::new().await;
    site.furnish().await;
    let before = site.revision();
    let same = site.call("PUT", "/v1/services/catalog", catalog()).await.expect(200);
    assert_eq!(site.revision(), before);
    let shown = site.get("/v1/services/catalog").await.expect(200);
    assert_eq!(same.body["position"], shown.header("x-portcullis-position"));
    assert_eq!(same.header("etag"), shown.header("etag"));
    assert_eq!(same.body.get("committed_at"), None);
    site.call("POST", "/v1/policies", json!({ "text": POLICIES })).await.expect(200);
    assert_eq!(site.revision(), before);
}

#[tokio::test]
async fn preconditions_hold_at_the_write() {
    let site = Site::new().await;
    site.furnish().await;
    let shown = site.get("/v1/services/payments").await;
    let tag = shown.header("etag");
    let conditional = |name: &'static str, value: &str, body: &Value| {
        let mut request = site.request(&site.token, "PUT", "/v1/services/payments", Some(body));
        request.headers_mut().insert(name, value.parse().unwrap());
        request
    };
    let mut changed = payments();
    changed["hosts"] = json!(["payments.example"]);
    site.send(conditional("if-none-match", "*", &changed)).await.expect(412);
    site.send(conditional("if-match", "\"0\"", &changed)).await.expect(412);
    site.send(conditional("if-match", tag, &changed)).await.expect(200);
    site.send(conditional("if-match", tag, &payments())).await.expect(412);
    site.send(conditional("if-none-match", "\"1\"", &changed)).await.expect(400);
}

#[tokio::test]
async fn lists_come_in_pages_and_filtered() {
    let site = Site::new().await;
    site.furnish().await;
    let (alice, bob) = (site.operator("alice").await, site.operator("bob").await);
    let mut grants = Vec::new();
    for _ in 0..5 {
        grants.push(site.ask(&alice).await);
    }
    let denied = &grants[2];
    let path = format!("/v1/grant-requests/{}/deny", denied["id"].as_str().unwrap());
    let vote = json!({ "digest": denied["digest"], "reason": "no ticket" });
    let answer = site.call_as(&bob, "POST", &path, vote).await.expect(200);
    assert_eq!(answer.body["object"]["ended"]["reason"], "no ticket");
    let path = format!("/v1/grant-requests/{}/withdraw", grants[3]["id"].as_str().unwrap());
    site.call_as(&bob, "POST", &path, Value::Null).await.expect(403);
    site.call_as(&alice, "POST", &path, Value::Null).await.expect(200);
    let path = format!("/v1/grant-requests/{}/approve", grants[4]["id"].as_str().unwrap());
    site.call_as(&bob, "POST", &path, json!({ "digest": grants[4]["digest"] })).await.expect(200);

    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = site.get(&format!("/v1/grants?limit=2&after={after}")).await.expect(200).body;
        seen.extend(page["items"].as_array().unwrap().iter().map(|g| g["id"].clone()));
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut after),
            None => break,
        }
    }
    assert_eq!(seen.len(), 5);
    let count = async |query: &str| site.get(query).await.expect(200).body["items"].as_array().unwrap().len();
    assert_eq!(count("/v1/grants?state=pending").await, 2);
    assert_eq!(count("/v1/grants?state=denied").await, 1);
    assert_eq!(count("/v1/grants?state=active&workload=spiffe://test.example/storefront").await, 1);
    assert_eq!(count("/v1/grants?workload=spiffe://test.example/nobody").await, 0);
    assert_eq!(count("/v1/grant-requests").await, 4, "what never became a grant");
    site.get("/v1/grants?state=flying").await.expect(400);
    site.get("/v1/grants?limit=0").await.expect(400).names("limit", "between 1 and 1000");
    site.get("/v1/grants?colour=red").await.expect(400).names("colour", "unknown field");
}

#[tokio::test]
async fn status_says_where_it_stands() {
    let site = Site::new().await;
    site.furnish().await;
    site.clock.advance(Duration::from_secs(90));
    let status = site.get("/v1/status").await.expect(200).body;
    assert_eq!(status["position"], site.core.index().position().to_string());
    assert_eq!((&status["revision"], &status["uptime_seconds"]), (&json!(5), &json!(90)));
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
}
