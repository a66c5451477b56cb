//! The life of a workload: suspended, resumed, retired, edited; and revocations that are lifted.

use std::time::Duration;

use serde_json::{Value, json};

use super::harness::{STOREFRONT, Site, issuer, refund_request, workload, workload_path};
use crate::clock::Clock;
use crate::control::store::{Expect, Unit, Write};
use crate::object::{Grant, Kind, Object};
use crate::wire::Revision;

/// The kinds that the last revision changed.
fn last_changes(site: &Site) -> Vec<Kind> {
    let log = site.core.index().since(Revision(site.revision() - 1), 1).unwrap();
    log[0].commit.changes.iter().map(|change| change.kind).collect()
}

fn standing(site: &Site) -> usize {
    site.core.index().revocations_of(STOREFRONT).len()
}

#[tokio::test]
async fn a_suspension_is_a_revocation_until_the_workload_is_resumed() {
    let site = Site::new().await;
    site.furnish().await;
    let (alice, bob) = (site.operator("alice").await, site.operator("bob").await);
    let pending = site.ask(&alice).await;
    let approve = format!("/v1/grant-requests/{}/approve", pending["id"].as_str().unwrap());
    let vote = json!({ "digest": pending["digest"] });
    let path = workload_path(STOREFRONT);
    let (suspend, resume) = (format!("{path}/suspend?wait=1s"), format!("{path}/resume?wait=1s"));

    let suspended = site.call_as(&alice, "POST", &suspend, json!({ "reason": "odd traffic" })).await.expect(200);
    assert_eq!(last_changes(&site), [Kind::Revocation, Kind::Workload], "one revision");
    let state = &suspended.body["object"]["suspended"];
    assert_eq!((&state["by"], &state["reason"]), (&json!("alice"), &json!("odd traffic")));
    assert_eq!(suspended.body["receipt"]["revision"], suspended.body["position"]);
    let shown = site.get(&path).await.expect(200);
    assert_eq!((shown.header("etag"), &shown.body), (suspended.header("etag"), &suspended.body["object"]));
    let revocation = site.get(&format!("/v1/revocations/{}", state["revocation"].as_str().unwrap())).await.expect(200);
    assert_eq!(revocation.body["target"], json!({ "kind": "workload", "workload": STOREFRONT }));

    // Nothing new for it, and nothing that waits comes into force.
    site.call("POST", "/v1/grant-requests", refund_request()).await.expect(422).names("workload", "is suspended");
    site.call_as(&bob, "POST", &approve, vote.clone()).await.expect(422).names("workload", "is suspended");
    // Asked for again, it is the same suspension, with the same receipt.
    site.clock.advance(Duration::from_secs(5));
    let again = site.call_as(&bob, "POST", &suspend, Value::Null).await.expect(200);
    assert_eq!(again.body["position"], suspended.body["position"]);
    assert_eq!(again.header("etag"), suspended.header("etag"));
    assert_eq!(again.body["receipt"]["revision"], suspended.body["position"]);
    assert_eq!((&again.body["object"], standing(&site)), (&suspended.body["object"], 1));
    // Not to be lifted behind the workload's back.
    let lift = format!("/v1/revocations/{}/lift", state["revocation"].as_str().unwrap());
    let refused = site.call("POST", &lift, json!({ "reason": "x" })).await.expect(409);
    assert!(refused.body["detail"].as_str().unwrap().contains("resume the workload"), "{}", refused.body);

    site.call("POST", &resume, Value::Null).await.expect(400);
    site.call("POST", &resume, json!({ "reason": " " })).await.expect(422).names("reason", "for a reason");
    let resumed = site.call_as(&bob, "POST", &resume, json!({ "reason": "false alarm" })).await.expect(200);
    assert_eq!(last_changes(&site), [Kind::Lift, Kind::Revocation, Kind::Workload], "one revision");
    assert_eq!((&resumed.body["object"], standing(&site)), (&workload(STOREFRONT), 0));
    assert_eq!(resumed.body["receipt"]["complete"], true);
    let lifted = site.get(&format!("/v1/lifts/{}", state["revocation"].as_str().unwrap())).await.expect(200).body;
    assert_eq!((&lifted["revocation"], &lifted["lifted_by"]), (&revocation.body, &json!("bob")));
    let before = site.revision();
    site.call("POST", &resume, json!({ "reason": "again" })).await.expect(200);
    assert_eq!(site.revision(), before, "it is in service already");
    site.call_as(&bob, "POST", &approve, vote).await.expect(200);
}

#[tokio::test]
async fn a_revocation_that_is_no_suspension_outlasts_a_resumption() {
    let site = Site::new().await;
    site.furnish().await;
    let path = workload_path(STOREFRONT);
    let target = json!({ "target": { "kind": "workload", "workload": STOREFRONT }, "reason": "key leaked" });
    let revoked = site.call("POST", "/v1/revocations", target).await.expect(201).body["object"].clone();
    let refused = site.call("POST", "/v1/grant-requests", refund_request()).await.expect(422);
    refused.names("workload", "has been revoked");
    site.call("POST", &format!("{path}/suspend"), Value::Null).await.expect(200);
    let resumed = site.call("POST", &format!("{path}/resume"), json!({ "reason": "done" })).await.expect(200);
    assert_eq!((&resumed.body["still_revoked_by"], standing(&site)), (&json!([revoked["id"]]), 1));
    let lift = format!("/v1/revocations/{}/lift?wait=1s", revoked["id"].as_str().unwrap());
    let lifted = site.call("POST", &lift, json!({ "reason": "new key" })).await.expect(200);
    assert_eq!(lifted.body["receipt"]["complete"], true);
    assert_eq!(standing(&site), 0);
    site.ask(&site.token).await;
}

#[tokio::test]
async fn replacing_a_workload_neither_suspends_nor_resumes() {
    let site = Site::new().await;
    site.furnish().await;
    let path = workload_path(STOREFRONT);
    site.call("POST", &format!("{path}/suspend"), Value::Null).await.expect(200);
    let suspended = site.get(&path).await.body;
    // Without the member, with it as it is, and with another.
    let mut edited = workload(STOREFRONT);
    edited["labels"] = json!({ "tier": "gold" });
    site.call("PUT", &path, edited.clone()).await.expect(200);
    assert_eq!(site.get(&path).await.body["suspended"], suspended["suspended"]);
    edited["suspended"] = suspended["suspended"].clone();
    edited["owner"] = json!("other-team");
    edited["environment"] = json!("staging");
    edited["kind"] = json!("agent");
    edited["roles"] = json!(["reader", "writer"]);
    edited["delegators"] = json!(["spiffe://test.example/users/*"]);
    site.call("PUT", &path, edited.clone()).await.expect(200);
    assert_eq!(site.get(&path).await.body, edited, "all of this can be edited");
    edited["suspended"]["reason"] = json!("no reason");
    site.call("PUT", &path, edited.clone()).await.expect(422).names("suspended", "not by replacing it");
    site.call("POST", &format!("{path}/resume"), json!({ "reason": "ok" })).await.expect(200);
    edited["suspended"] = suspended["suspended"].clone();
    site.call("PUT", &path, edited.clone()).await.expect(422).names("suspended", "not by replacing it");
    // Nor does registering.
    edited["id"] = json!("spiffe://test.example/new");
    let new = workload_path("spiffe://test.example/new");
    site.call("PUT", &new, edited.clone()).await.expect(422).names("suspended", "not by replacing it");
    // The id and the owner.
    site.call("PUT", &path, edited.clone()).await.expect(422).names("id", "the path says");
    edited["suspended"] = Value::Null;
    edited["owner"] = json!("");
    site.call("PUT", &new, edited.clone()).await.expect(422).names("owner", "needs an owner");
    edited.as_object_mut().unwrap().remove("owner");
    site.call("PUT", &new, edited).await.expect(422).names("owner", "missing field");
}

#[tokio::test]
async fn steps_go_by_the_version_that_the_caller_means() {
    let site = Site::new().await;
    site.furnish().await;
    let path = workload_path(STOREFRONT);
    let stale = site.get(&path).await.header("etag").to_owned();
    let mut edited = workload(STOREFRONT);
    edited["owner"] = json!("other-team");
    site.call("PUT", &path, edited.clone()).await.expect(200);
    let conditional = |method: &str, path: &str, tag: &str, body: Value| {
        let mut request = site.request(&site.token, method, path, (!body.is_null()).then_some(&body));
        request.headers_mut().insert("if-match", tag.parse().unwrap());
        site.send(request)
    };
    conditional("PUT", &path, &stale, workload(STOREFRONT)).await.expect(412);
    conditional("POST", &format!("{path}/suspend"), &stale, Value::Null).await.expect(412);
    conditional("DELETE", &path, &stale, Value::Null).await.expect(412);
    let current = site.get(&path).await.header("etag").to_owned();
    let suspended = conditional("POST", &format!("{path}/suspend"), &current, Value::Null).await.expect(200);
    conditional("POST", &format!("{path}/resume"), &current, json!({ "reason": "x" })).await.expect(412);
    let tag = suspended.header("etag").to_owned();
    conditional("POST", &format!("{path}/resume"), &tag, json!({ "reason": "x" })).await.expect(200);
}

#[tokio::test]
async fn what_is_retired_stays_so() {
    let site = Site::new().await;
    site.furnish().await;
    let path = workload_path(STOREFRONT);
    let nobody = workload_path("spiffe://test.example/nobody");
    for (method, path) in [("DELETE", nobody.clone()), ("POST", format!("{nobody}/suspend"))] {
        site.call(method, &path, Value::Null).await.expect(404);
    }
    // One that is suspended can be retired.
    site.call("POST", &format!("{path}/suspend"), Value::Null).await.expect(200);
    let retired = site.call("DELETE", &format!("{path}?wait=1s"), Value::Null).await.expect(200);
    site.clock.advance(Duration::from_secs(5));
    let again = site.call("DELETE", &format!("{path}?wait=1s"), Value::Null).await.expect(200);
    assert_eq!(again.body["position"], retired.body["position"]);
    assert_eq!(again.body["receipt"]["revision"], retired.body["position"]);
    site.call("POST", &format!("{path}/suspend"), Value::Null).await.expect(409);
    site.call("POST", &format!("{path}/resume"), json!({ "reason": "x" })).await.expect(409);
    site.call("PUT", &path, workload(STOREFRONT)).await.expect(409);
    // To revoke it once more is to find that it has been retired, and by what.
    let revoke = json!({ "target": { "kind": "workload", "workload": STOREFRONT }, "reason": "once more" });
    let found = site.call("POST", "/v1/revocations?wait=1s", revoke).await.expect(200).body;
    assert_eq!((&found["position"], &found["object"]["reason"]), (&retired.body["position"], &json!("retired")));
    let again = site.call("DELETE", &format!("{path}?wait=1s"), Value::Null).await.expect(200);
    assert_eq!(again.body["position"], retired.body["position"]);
    let revocations = site.core.index().revocations_of(STOREFRONT);
    assert_eq!(revocations.len(), 2, "the suspension's and the retirement's");
    for revocation in revocations {
        let lift = format!("/v1/revocations/{}/lift", revocation.key);
        let refused = site.call("POST", &lift, json!({ "reason": "x" })).await.expect(409);
        assert!(refused.body["detail"].as_str().unwrap().contains("has been retired"), "{}", refused.body);
    }
    let site = site.restart().await;
    site.call("PUT", &path, workload(STOREFRONT)).await.expect(409);
}

#[tokio::test]
async fn what_a_retired_workload_has_asked_for_others_waits_no_longer() {
    let site = Site::new().await;
    site.furnish().await;
    let other = "spiffe://test.example/other";
    site.call("PUT", &workload_path(other), workload(other)).await.expect(201);
    let mut asked = refund_request();
    asked["workload"] = json!(other);
    let (kept, ends) =
        (site.call("POST", "/v1/grant-requests", asked.clone()).await.expect(201), site.ask(&site.token));
    let (kept, mut ends) = (kept.body["object"].clone(), ends.await);
    // As `storefront` asks for `other`.
    (ends["workload"], ends["requested_by"], ends["requester"]) =
        (json!(other), json!(STOREFRONT), json!({ "kind": "workload" }));
    let mut grant: Grant = serde_json::from_value(ends.clone()).unwrap();
    grant.digest = grant.request_digest();
    let write = Write::put(&Object::Grant(Box::new(grant)), Expect::Any);
    site.core.commit(Unit::new("test", "test", "").with(write)).await.unwrap();
    let retired = site.call("DELETE", &workload_path(STOREFRONT), Value::Null).await.expect(200);
    assert_eq!(retired.body["revoked_grants"], json!([ends["id"]]));
    let state = async |grant: &Value| {
        site.get(&format!("/v1/grants/{}", grant["id"].as_str().unwrap())).await.body["state"].clone()
    };
    assert_eq!((state(&ends).await, state(&kept).await), (json!("revoked"), json!("pending")));
}

#[tokio::test]
async fn lifting_a_revocation_leaves_a_record() {
    let site = Site::new().await;
    site.furnish().await;
    let alice = site.operator("alice").await;
    let now = site.clock.now().wall;
    for target in [
        json!({ "kind": "token", "issuer": "test", "jti": "t-1" }),
        json!({ "kind": "tokens_before", "workload": STOREFRONT, "before": now }),
        json!({ "kind": "workload", "workload": STOREFRONT }),
        json!({ "kind": "issuer", "issuer": "test" }),
        json!({ "kind": "key", "issuer": "test", "kid": "key-1" }),
        json!({ "kind": "certificate", "serial": "a1b2c" }),
        json!({ "kind": "delegator", "workload": STOREFRONT }),
    ] {
        let made =
            site.call("POST", "/v1/revocations", json!({ "target": target, "reason": "leak" })).await.expect(201);
        let (made, id) = (made.body["object"].clone(), made.body["object"]["id"].as_str().unwrap().to_owned());
        let (path, lift) = (format!("/v1/revocations/{id}"), format!("/v1/revocations/{id}/lift?wait=1s"));
        site.call("POST", &lift, json!({ "reason": "" })).await.expect(422).names("reason", "for a reason");
        site.call("POST", &lift, json!({})).await.expect(422).names("reason", "missing field");
        let lifted = site.call_as(&alice, "POST", &lift, json!({ "reason": "no leak" })).await.expect(200);
        assert_eq!(last_changes(&site), [Kind::Lift, Kind::Revocation], "{target}");
        assert_eq!(lifted.body["receipt"]["complete"], true);
        let record = &lifted.body["object"];
        assert_eq!((&record["revocation"], &record["lifted_by"]), (&made, &json!("alice")));
        assert_eq!(site.get(&format!("/v1/lifts/{id}")).await.expect(200).body, *record);
        let gone = site.get(&path).await.expect(404);
        assert!(gone.body["detail"].as_str().unwrap().contains(&format!("/v1/lifts/{id}")), "{}", gone.body);
        // Who lost the answer asks again.
        let again = site.call("POST", &lift, json!({ "reason": "other" })).await.expect(200);
        assert_eq!((&again.body["object"], &again.body["position"]), (record, &lifted.body["position"]));
        site.call("POST", &lift, json!({ "reason": "" })).await.expect(422).names("reason", "for a reason");
    }
    assert_eq!(site.get("/v1/revocations").await.body["items"], json!([]));
    let before = site.get("/v1/lifts").await.body["items"].clone();
    assert_eq!(before.as_array().unwrap().len(), 7);
    let site = site.restart().await;
    assert_eq!(site.get("/v1/lifts").await.body["items"], before);
    site.call("POST", "/v1/revocations/nothing/lift", json!({ "reason": "x" })).await.expect(404);
}

#[tokio::test]
async fn a_revoked_grant_stays_over() {
    let site = Site::new().await;
    site.furnish().await;
    let grant = site.ask(&site.token).await;
    let id = grant["id"].as_str().unwrap();
    site.call("POST", &format!("/v1/grants/{id}/revoke"), Value::Null).await.expect(200);
    let revocation = site.core.index().list(Kind::Revocation).remove(0);
    let lift = format!("/v1/revocations/{}/lift", revocation.key);
    let refused = site.call("POST", &lift, json!({ "reason": "a mistake" })).await.expect(409);
    assert!(refused.body["detail"].as_str().unwrap().contains("stays so"), "{}", refused.body);
    assert_eq!(site.get(&format!("/v1/grants/{id}")).await.body["state"], "revoked");
}

#[tokio::test]
async fn workloads_are_listed_by_what_they_are() {
    let site = Site::new().await;
    site.furnish().await;
    site.call("PUT", "/v1/issuers/other", issuer("other", "other.example")).await.expect(201);
    let agent = "spiffe://other.example/agent";
    let mut document = workload(agent);
    (document["kind"], document["owner"], document["environment"]) = (json!("agent"), json!("ml"), json!("live"));
    site.call("PUT", &workload_path(agent), document).await.expect(201);
    site.call("POST", &format!("{}/suspend", workload_path(agent)), Value::Null).await.expect(200);
    for (query, ids) in [
        ("", vec![agent, STOREFRONT]),
        ("owner=ml", vec![agent]),
        ("kind=service", vec![STOREFRONT]),
        ("environment=live", vec![agent]),
        ("suspended=true", vec![agent]),
        ("suspended=false", vec![STOREFRONT]),
        ("kind=service&owner=ml", vec![]),
    ] {
        let listed = site.get(&format!("/v1/workloads?{query}")).await.expect(200).body;
        let listed: Vec<&str> = listed["items"].as_array().unwrap().iter().filter_map(|w| w["id"].as_str()).collect();
        assert_eq!(listed, ids, "{query}");
    }
    site.get("/v1/workloads?kind=robot").await.expect(400).names("kind", "unknown variant");
}

/// A suspension against requests that come in at the same time: none is taken after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_slips_past_a_suspension() {
    let site = std::sync::Arc::new(Site::new().await);
    site.furnish().await;
    let asking: Vec<_> = (0..8)
        .map(|_| {
            let site = std::sync::Arc::clone(&site);
            tokio::spawn(async move {
                for _ in 0..6 {
                    let answer = site.call("POST", "/v1/grant-requests", refund_request()).await;
                    assert!(matches!(answer.status.as_u16(), 201 | 422), "{answer:?}");
                }
            })
        })
        .collect();
    site.call("POST", &format!("{}/suspend", workload_path(STOREFRONT)), Value::Null).await.expect(200);
    for task in asking {
        task.await.unwrap();
    }
    let log = site.core.index().since(Revision(0), usize::MAX).unwrap();
    let changed = |kind: Kind| log.iter().filter(move |l| l.commit.changes.iter().any(|c| c.kind == kind));
    let suspended = changed(Kind::Revocation).map(|l| l.commit.revision).next().unwrap();
    let last = changed(Kind::Grant).map(|l| l.commit.revision).next_back();
    assert!(last.is_none_or(|last| last < suspended), "{last:?} after {suspended}");
    let Some(Object::Workload(workload)) = &site.core.index().list(Kind::Workload)[0].object else { panic!() };
    assert!(workload.suspended.is_some());
}
