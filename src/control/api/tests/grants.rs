//! Requests under grant policies, as operators meet them: publishing, steps, refusals, break-glass and its review.

use std::time::Duration;

use serde_json::{Value, json};

use super::harness::{Site, refund_request};

const POLICIES: &str = r#"
@id("refunds") @approvals("security:1,lead:1") @max_duration("4m") @requires("ticket")
permit(principal, action == Action::"request", resource in Service::"payments");
@id("small") @auto_approve("true") @max_duration("1m")
permit(principal == Operator::"bot", action == Action::"request", resource == Route::"catalog/items");
@id("mallory") forbid(principal == Operator::"mallory", action, resource);
@id("emergencies") @max_duration("2m")
permit(principal == Operator::"alice", action == Action::"break_glass", resource);
@id("sue") permit(principal == Operator::"sue", action == Action::"approve", resource) when { context.step == "security" };
@id("lea") permit(principal == Operator::"lea", action == Action::"approve", resource) when { context.step == "lead" };
"#;

impl Site {
    async fn publish(&self, text: &str) -> u64 {
        self.call("POST", "/v1/grant-policies", json!({ "text": text })).await.expect(201);
        self.revision()
    }
}

fn request(change: impl FnOnce(&mut Value)) -> Value {
    let mut request = refund_request();
    request["duration_seconds"] = json!(240);
    request["ticket"] = json!("OPS-7");
    change(&mut request);
    request
}

#[tokio::test]
async fn grant_policies_are_published_whole_and_shown_as_published() {
    let site = Site::new().await;
    site.furnish().await;
    site.get("/v1/grant-policies/current").await.expect(404);
    let dry = json!({ "text": POLICIES, "dry_run": true });
    let dry = site.call("POST", "/v1/grant-policies", dry).await.expect(200);
    assert_eq!(dry.body["report"]["ids"].as_array().unwrap().len(), 6);
    site.get("/v1/grant-policies/current").await.expect(404);

    let published = site.call("POST", "/v1/grant-policies", json!({ "text": POLICIES })).await.expect(201);
    let tag = published.header("etag").to_owned();
    assert_eq!(published.body["object"]["author"], "bootstrap");
    let shown = site.get("/v1/grant-policies/current").await.expect(200);
    assert_eq!((shown.header("etag"), &shown.body["text"]), (&*tag, &json!(POLICIES)));
    assert_eq!(shown.body["digest"], published.body["object"]["digest"]);
    assert_eq!(shown.body["digest"], dry.body["object"]["digest"]);
    let before = site.revision();
    let again = site.call("POST", "/v1/grant-policies", json!({ "text": POLICIES })).await.expect(200);
    assert_eq!((again.header("etag"), site.revision()), (&*tag, before), "nothing to change");

    let bad = POLICIES.replace("@requires(\"ticket\")", "@requires(\"luck\")");
    let refused = site.call("POST", "/v1/grant-policies", json!({ "text": bad })).await.expect(422);
    refused.names("text", "`luck` cannot be required");
    let error = &refused.body["errors"][0];
    assert_eq!((&error["policy"], &error["line"], &error["column"]), (&json!("refunds"), &json!(2), &json!(68)));
    assert_eq!(site.revision(), before);

    let write = async |name: &str, tag: &str, text: &str| {
        let mut request = site.request(&site.token, "POST", "/v1/grant-policies", Some(&json!({ "text": text })));
        request.headers_mut().insert(axum::http::HeaderName::try_from(name).unwrap(), tag.parse().unwrap());
        site.send(request).await
    };
    write("if-match", "\"1\"", "").await.expect(412);
    write("if-none-match", "*", "").await.expect(412);
    write("if-match", &tag, &POLICIES.replace("lead:1", "lead:2")).await.expect(201);
    write("if-match", &tag, POLICIES).await.expect(412);
    // They are nobody's business but the control plane's.
    let kinds = site.core.index().concerning(&["payments".into(), "catalog".into()]).1;
    assert!(kinds.iter().all(|stored| !stored.kind.is_private()));
    // They outlive a restart.
    let shown = site.get("/v1/grant-policies/current").await.body;
    let site = site.restart().await;
    assert_eq!(site.get("/v1/grant-policies/current").await.expect(200).body, shown);
}

#[tokio::test]
async fn a_request_goes_through_the_steps_that_policies_ask_for() {
    let site = Site::new().await;
    site.furnish().await;
    site.publish(POLICIES).await;
    let (alice, sue, lea) = (site.operator("alice").await, site.operator("sue").await, site.operator("lea").await);
    let asked = site.call_as(&alice, "POST", "/v1/grant-requests", request(|_| {})).await.expect(201);
    let grant = &asked.body["object"];
    let steps = json!([{ "name": "security", "approvals": 1 }, { "name": "lead", "approvals": 1 }]);
    assert_eq!((&grant["needs"]["steps"], &grant["needs"]["policies"]), (&steps, &json!(["refunds"])));
    let approve = format!("/v1/grant-requests/{}/approve", grant["id"].as_str().unwrap());
    let vote = json!({ "digest": grant["digest"] });

    let refused = site.call("POST", &approve, vote.clone()).await.expect(403);
    assert!(refused.body["detail"].as_str().unwrap().contains("no grant policy permits it"));
    let step = |name: &str| json!({ "digest": grant["digest"], "step": name });
    site.call_as(&sue, "POST", &approve, step("chief")).await.expect(422).names("step", "it has: security, lead");
    site.call_as(&sue, "POST", &approve, step("lead")).await.expect(403);
    // A vote for another request, or for this one as it was not asked for.
    let changed = json!({ "digest": "00".repeat(32) });
    site.call_as(&sue, "POST", &approve, changed).await.expect(409).names("digest", "the request has");
    let one = site.call_as(&sue, "POST", &approve, vote.clone()).await.expect(200);
    assert_eq!(
        (&one.body["object"]["state"], &one.body["object"]["votes"][0]["step"]),
        (&json!("pending"), &json!("security"))
    );
    let two = site.call_as(&lea, "POST", &approve, step("lead")).await.expect(200);
    assert_eq!(two.body["object"]["state"], "active");
    assert_eq!(two.body["object"]["digest"], grant["digest"]);
    // What is in force is the answer to the same request, with its own position.
    let again = site.call_as(&lea, "POST", "/v1/grant-requests", request(|r| r["duration_seconds"] = json!(100))).await;
    let again = again.expect(200);
    assert_eq!((&again.body["reused"], &again.body["object"]["id"]), (&json!(true), &grant["id"]));
    assert_eq!(again.body["position"], two.body["position"]);
    site.call_as(&lea, "POST", "/v1/grant-requests", request(|r| r["reuse"] = json!(false))).await.expect(201);
}

#[tokio::test]
async fn refusals_name_the_field_or_the_policy() {
    let site = Site::new().await;
    site.furnish().await;
    site.publish(POLICIES).await;
    let (alice, mallory) = (site.operator("alice").await, site.operator("mallory").await);
    let ask = async |who: &str, body: Value| site.call_as(who, "POST", "/v1/grant-requests", body).await;
    ask(&alice, request(|r| r["ticket"] = Value::Null)).await.expect(422).names("ticket", "requires a ticket");
    let long = request(|r| r["duration_seconds"] = json!(241));
    ask(&alice, long).await.expect(422).names("duration_seconds", "at most 240 seconds");
    let refused = ask(&mallory, request(|_| {})).await.expect(403);
    assert_eq!(refused.body["errors"][0]["policy"], "mallory", "{}", refused.body);
    let read = |r: &mut Value| (r["resources"], r["actions"]) = (json!(["catalog/items"]), json!(["read"]));
    let refused = ask(&alice, request(read)).await.expect(403);
    assert!(refused.body["detail"].as_str().unwrap().contains("no grant policy permits it"));
    let script = site.call("POST", "/v1/operators", json!({ "name": "bot", "kind": "automation" })).await;
    let bot = script.expect(201).body["token"].as_str().unwrap().to_owned();
    ask(&bot, request(read)).await.expect(422).names("duration_seconds", "at most 60 seconds");
    let short = request(|r| {
        read(r);
        r["duration_seconds"] = json!(60);
    });
    let auto = ask(&bot, short).await.expect(201);
    assert_eq!(
        (&auto.body["object"]["state"], &auto.body["object"]["needs"]["auto"]),
        (&json!("active"), &json!(true))
    );
    // Nobody is sent to approve what was in force at once.
    let approve = format!("/v1/grant-requests/{}/approve", auto.body["object"]["id"].as_str().unwrap());
    site.call("POST", &approve, json!({ "digest": auto.body["object"]["digest"] })).await.expect(409);
}

#[tokio::test]
async fn an_emergency_is_reviewed_by_somebody_else() {
    let site = Site::new().await;
    site.furnish().await;
    let (alice, bob) = (site.operator("alice").await, site.operator("bob").await);
    let glass = |seconds: u64| request(|r| (r["break_glass"], r["duration_seconds"]) = (json!(true), json!(seconds)));
    let ask = async |who: &str, body: Value| site.call_as(who, "POST", "/v1/grant-requests", body).await;
    let refused = ask(&alice, glass(60)).await.expect(403);
    assert!(refused.body["detail"].as_str().unwrap().contains("needs a grant policy"), "{}", refused.body);
    site.publish(POLICIES).await;
    ask(&bob, glass(60)).await.expect(403);
    ask(&alice, glass(121)).await.expect(422).names("duration_seconds", "at most 120");
    let made = ask(&alice, glass(60)).await.expect(201);
    let id = made.body["object"]["id"].as_str().unwrap();
    assert_eq!((&made.body["object"]["state"], &made.body["object"]["break_glass"]), (&json!("active"), &json!(true)));

    let open = site.get("/v1/reviews?state=open").await.expect(200);
    assert_eq!(open.body["items"][0]["grant"], id);
    assert_eq!(site.get("/v1/reviews?state=closed").await.body["items"], json!([]));
    site.get("/v1/reviews?state=ajar").await.expect(400).names("state", "ajar");
    let close = format!("/v1/reviews/{id}/close");
    let note = json!({ "note": "incident 7: three refunds, all right" });
    site.call_as(&alice, "POST", &close, note.clone()).await.expect(403);
    site.call_as(&bob, "POST", &close, json!({ "note": " " })).await.expect(422).names("note", "with a note");
    let script = site.call("POST", "/v1/operators", json!({ "name": "bot", "kind": "automation" })).await;
    let bot = script.expect(201).body["token"].as_str().unwrap().to_owned();
    site.call_as(&bot, "POST", &close, note.clone()).await.expect(403);
    // Neither time nor the end of the grant closes it.
    site.call("POST", &format!("/v1/grants/{id}/revoke"), json!({})).await.expect(200);
    site.clock.advance(Duration::from_secs(90_000));
    assert_eq!(site.get(&format!("/v1/reviews/{id}")).await.expect(200).body["closed"], Value::Null);
    let closed = site.call_as(&bob, "POST", &close, note.clone()).await.expect(200);
    assert_eq!(closed.body["object"]["closed"]["by"], "bob");
    site.call_as(&bob, "POST", &close, note).await.expect(409);
    assert_eq!(site.get("/v1/reviews?state=open").await.body["items"], json!([]));
    assert_eq!(
        site.get(&format!("/v1/reviews/{id}")).await.body["closed"]["note"],
        "incident 7: three refunds, all right"
    );
    site.get("/v1/reviews/nothing").await.expect(404);
}

#[tokio::test]
async fn a_denial_or_a_withdrawal_ends_it_whoever_else_approved() {
    let site = Site::new().await;
    site.furnish().await;
    site.publish(POLICIES).await;
    let (alice, sue, lea) = (site.operator("alice").await, site.operator("sue").await, site.operator("lea").await);
    for (who, verb, status, state) in [(&lea, "deny", 200, "denied"), (&alice, "withdraw", 200, "withdrawn")] {
        let asked = site.call_as(&alice, "POST", "/v1/grant-requests", request(|_| {})).await.expect(201);
        let (id, digest) = (asked.body["object"]["id"].as_str().unwrap(), &asked.body["object"]["digest"]);
        let path = |verb: &str| format!("/v1/grant-requests/{id}/{verb}");
        let vote = json!({ "digest": digest });
        site.call_as(&sue, "POST", &path("approve"), vote.clone()).await.expect(200);
        let body = if verb == "deny" { vote.clone() } else { json!({}) };
        if verb == "withdraw" {
            site.call_as(&lea, "POST", &path(verb), body.clone()).await.expect(403);
        }
        let ended = site.call_as(who, "POST", &path(verb), body).await.expect(status);
        assert_eq!(ended.body["object"]["state"], state);
        site.call_as(&lea, "POST", &path("approve"), vote).await.expect(409);
    }
}
