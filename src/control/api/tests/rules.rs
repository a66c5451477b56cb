//! Rules that span objects and operators: votes, overlapping routes, what is in use.

use serde_json::{Value, json};

use super::harness::{STOREFRONT, Site, catalog, payments, refund_request, workload, workload_path};
use crate::control::store::{Expect, Unit, Write};
use crate::object::Object;

#[tokio::test]
async fn votes_count_once_never_the_requesters_and_only_for_what_was_asked() {
    let site = Site::new().await;
    site.furnish().await;
    let (alice, bob, carol) = (site.operator("alice").await, site.operator("bob").await, site.operator("carol").await);
    let grant = site.ask(&alice).await;
    let id = grant["id"].as_str().unwrap();
    let (approve, deny) = (format!("/v1/grant-requests/{id}/approve"), format!("/v1/grant-requests/{id}/deny"));
    let vote = json!({ "digest": grant["digest"] });

    let own = site.call_as(&alice, "POST", &approve, vote.clone()).await.expect(403);
    assert!(own.body["detail"].as_str().unwrap().contains("`alice` asked for this grant"));
    site.call_as(&alice, "POST", &deny, vote.clone()).await.expect(403);
    let wrong = site.call_as(&bob, "POST", &approve, json!({ "digest": "00" })).await.expect(409);
    wrong.names("digest", "`00`");
    site.call_as(&bob, "POST", &approve, json!({})).await.expect(422).names("digest", "missing field");
    site.call_as(&bob, "POST", &approve, vote.clone()).await.expect(200);
    site.call_as(&bob, "POST", &approve, vote.clone()).await.expect(409);
    site.call_as(&carol, "POST", &deny, vote).await.expect(409);
    assert_eq!(site.get(&format!("/v1/grants/{id}")).await.body["votes"].as_array().unwrap().len(), 1);
    site.call("POST", "/v1/grant-requests/nothing/approve", json!({ "digest": "" })).await.expect(404);
}

#[tokio::test]
async fn the_owner_of_a_workload_does_not_approve_for_it() {
    let site = Site::new().await;
    site.furnish().await;
    let owner = site.operator("olga").await;
    let mut owned = workload(STOREFRONT);
    owned["owner"] = json!("olga");
    site.call("PUT", &workload_path(STOREFRONT), owned).await.expect(200);
    let grant = site.ask(&site.token).await;
    let path = format!("/v1/grant-requests/{}/approve", grant["id"].as_str().unwrap());
    site.call_as(&owner, "POST", &path, json!({ "digest": grant["digest"] })).await.expect(403);
    let path = format!("/v1/grant-requests/{}/deny", grant["id"].as_str().unwrap());
    site.call_as(&owner, "POST", &path, json!({ "digest": grant["digest"] })).await.expect(200);
}

#[tokio::test]
async fn an_approval_looks_at_what_holds_then() {
    let site = Site::new().await;
    site.furnish().await;
    let alice = site.operator("alice").await;
    let grant = site.ask(&alice).await;
    let mut shorter = payments();
    shorter["routes"][0]["grants"]["max_duration_seconds"] = json!(60);
    site.call("PUT", "/v1/services/payments", shorter).await.expect(200);
    let path = format!("/v1/grant-requests/{}/approve", grant["id"].as_str().unwrap());
    let refused = site.call("POST", &path, json!({ "digest": grant["digest"] })).await.expect(422);
    refused.names("duration_seconds", "at most 60");
    site.call("PUT", "/v1/services/payments", payments()).await.expect(200);
    site.call("POST", &path, json!({ "digest": grant["digest"] })).await.expect(200);
}

#[tokio::test]
async fn a_route_may_limit_how_often_a_grant_is_used() {
    let site = Site::new().await;
    site.furnish().await;
    let mut limited = payments();
    limited["routes"][0]["grants"]["max_uses"] = json!(0);
    let refused = site.call("PUT", "/v1/services/payments", limited.clone()).await.expect(422);
    refused.names("routes[0].grants.max_uses", "between 1");
    limited["routes"][0]["grants"]["max_uses"] = json!(2);
    site.call("PUT", "/v1/services/payments", limited).await.expect(200);
    for uses in [json!(null), json!(3)] {
        let mut asked = refund_request();
        asked["uses"] = uses;
        site.call("POST", "/v1/grant-requests", asked).await.expect(422).names("uses", "at most 2");
    }
    let mut asked = refund_request();
    asked["uses"] = json!(2);
    site.call("POST", "/v1/grant-requests", asked).await.expect(201);
}

#[tokio::test]
async fn overlapping_routes_are_refused_and_both_are_named() {
    let site = Site::new().await;
    site.furnish().await;
    let before = site.revision();
    let routes = |name: &str, paths: &[&str]| {
        let routes: Vec<Value> =
            paths.iter().enumerate().map(|(i, p)| json!({ "name": format!("r{i}"), "path": p })).collect();
        json!({ "name": name, "routes": routes })
    };
    // Within one service.
    let own = routes("other", &["/x/{*}/b", "/x/a/{*}"]);
    let refused = site.call("PUT", "/v1/services/other", own).await.expect(422);
    refused.names("routes[1].path", "`other/r0`");
    refused.names("routes[1].path", "`other/r1`");
    // With a neighbour behind the same enforcement point.
    let mut neighbour = catalog();
    neighbour["routes"] = json!([{ "name": "all", "path": "/{*}/7" }]);
    let refused = site.call("PUT", "/v1/services/catalog", neighbour).await.expect(422);
    refused.names("routes[0].path", "`catalog/all`");
    refused.names("routes[0].path", "`payments/refunds`");
    assert_eq!(site.revision(), before);
    // Elsewhere the same paths are no matter.
    site.call("PUT", "/v1/services/elsewhere", routes("elsewhere", &["/refunds/{*}"])).await.expect(201);
    // A narrower one is no conflict.
    let mut narrower = payments();
    narrower["routes"].as_array_mut().unwrap().push(json!({ "name": "seven", "path": "/refunds/7" }));
    site.call("PUT", "/v1/services/payments", narrower).await.expect(200);
}

#[tokio::test]
async fn what_a_live_grant_names_is_not_taken_away() {
    let site = Site::new().await;
    site.furnish().await;
    let alice = site.operator("alice").await;
    let grant = site.ask(&alice).await;
    let id = grant["id"].as_str().unwrap();
    let mut without = payments();
    without["routes"].as_array_mut().unwrap().remove(0);
    for refused in [
        site.call("DELETE", "/v1/services/payments", Value::Null).await.expect(409),
        site.call("PUT", "/v1/services/payments", without.clone()).await.expect(409),
    ] {
        assert!(refused.body["detail"].as_str().unwrap().contains(id), "{}", refused.body);
    }
    let mut other = payments();
    other["routes"].as_array_mut().unwrap().remove(1);
    site.call("PUT", "/v1/services/payments", other).await.expect(200);
    site.call("POST", &format!("/v1/grants/{id}/revoke"), json!({})).await.expect(200);
    site.call("PUT", "/v1/services/payments", without).await.expect(200);
    site.call("DELETE", "/v1/services/payments", Value::Null).await.expect(200);
    site.call("DELETE", "/v1/services/payments", Value::Null).await.expect(404);
    site.call("DELETE", "/v1/issuers/test", Value::Null).await.expect(200);
    site.get("/v1/issuers/test").await.expect(404);
}

/// Retirement against requests that come in at the same time: no request outlives its workload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_slips_past_a_retirement() {
    for _ in 0..5 {
        let site = std::sync::Arc::new(Site::new().await);
        site.furnish().await;
        let asking: Vec<_> = (0..8)
            .map(|_| {
                let site = std::sync::Arc::clone(&site);
                tokio::spawn(async move {
                    let mut taken = 0;
                    for _ in 0..6 {
                        let answer = site.call("POST", "/v1/grant-requests", refund_request()).await;
                        taken += usize::from(answer.status == 201);
                        assert!(matches!(answer.status.as_u16(), 201 | 422), "{answer:?}");
                    }
                    taken
                })
            })
            .collect();
        let retired = site.call("DELETE", &workload_path(STOREFRONT), Value::Null).await.expect(200);
        let mut taken = 0;
        for task in asking {
            taken += task.await.unwrap();
        }
        assert_eq!(retired.body["revoked_grants"].as_array().unwrap().len(), taken);
        let left = site.get("/v1/grants?state=pending").await.body;
        assert_eq!(left["items"], json!([]));
    }
}

#[tokio::test]
async fn keys_that_were_fetched_stay_as_long_as_their_source_does() {
    let site = Site::new().await;
    let from = |url: &str| json!({ "type": "jwks_uri", "url": url });
    let mut jwk = crate::credential::TokenSigner::generate_es256("one").unwrap().public_jwk();
    jwk["use"] = json!("sig");
    let mut issuer = json!({
        "name": "idp", "kind": "oidc", "issuer": "https://idp.example", "audiences": ["us"],
        "keys_from": from("https://idp.example/keys"), "jwks": { "keys": [jwk] },
    });
    let put = async |issuer: &Value| site.call("PUT", "/v1/issuers/idp", issuer.clone()).await;
    put(&issuer).await.expect(201);
    let keys = async || site.get("/v1/issuers/idp/keys").await.expect(200).body["keys"].clone();
    assert_eq!(keys().await, 1);

    // The document as an operator has it, without the keys.
    issuer.as_object_mut().unwrap().remove("jwks");
    let again = put(&issuer).await.expect(200);
    assert!(again.body.get("committed_at").is_none(), "nothing has changed: {again:?}");
    issuer["audiences"] = json!(["others"]);
    let edited = put(&issuer).await.expect(200);
    assert_eq!(edited.body["object"]["jwks"]["keys"].as_array().unwrap().len(), 1, "{edited:?}");

    // Another source: keys of the old one do not count until it has answered.
    issuer["keys_from"] = from("https://elsewhere.example/keys");
    put(&issuer).await.expect(200);
    assert_eq!(keys().await, 0);
    site.get("/v1/issuers/nobody/keys").await.expect(404);

    let bound = json!({ "target": { "kind": "bound_object", "issuer": "idp", "uid": "u" } });
    site.call("POST", "/v1/revocations", bound).await.expect(422).names("target.issuer", "not bound to objects");
}

#[tokio::test]
async fn objects_of_a_cluster_can_be_revoked_by_their_uid() {
    let site = Site::new().await;
    let mut jwk = crate::credential::TokenSigner::generate_es256("one").unwrap().public_jwk();
    jwk["use"] = json!("sig");
    let cluster = json!({
        "name": "cluster", "kind": "kubernetes", "issuer": "https://kubernetes.example", "audiences": ["us"],
        "jwks": { "keys": [jwk] },
    });
    site.call("PUT", "/v1/issuers/cluster", cluster).await.expect(201);
    let revoke = async |issuer: &str, uid: &str| {
        let body = json!({ "target": { "kind": "bound_object", "issuer": issuer, "uid": uid }, "reason": "evicted" });
        site.call("POST", "/v1/revocations", body).await
    };
    let made = revoke("cluster", "8f2c5f0e-pod").await.expect(201);
    let target = &made.body["object"]["target"];
    assert_eq!((&target["kind"], &target["uid"]), (&json!("bound_object"), &json!("8f2c5f0e-pod")), "{made:?}");
    revoke("cluster", "").await.expect(422).names("target.uid", "must not be empty");
    revoke("clutser", "u").await.expect(422).names("target.issuer", "no issuer `clutser`");
    let listed = site.get("/v1/revocations").await.expect(200);
    assert_eq!(listed.body["items"].as_array().unwrap().len(), 1, "{listed:?}");
}

#[tokio::test]
async fn an_old_document_does_not_put_keys_back_that_their_source_has_replaced() {
    let site = Site::new().await;
    let jwk = |kid: &str| {
        let mut jwk = crate::credential::TokenSigner::generate_es256(kid).unwrap().public_jwk();
        jwk["use"] = json!("sig");
        jwk
    };
    let (old, one, two) = (jwk("old"), jwk("one"), jwk("two"));
    let bare = json!({
        "name": "idp", "kind": "oidc", "issuer": "https://idp.example", "audiences": ["us"],
        "keys_from": { "type": "jwks_uri", "url": "https://idp.example/keys" },
    });
    let with = |document: &Value, keys: &[&Value]| {
        let mut document = document.clone();
        document["jwks"] = json!({ "keys": keys });
        document
    };
    let put = async |document: Value| site.call("PUT", "/v1/issuers/idp", document).await;
    let shown = async || site.get("/v1/issuers/idp").await.expect(200).body;
    put(with(&bare, &[])).await.expect(422).names("jwks", "`portcullis revoke issuer`");
    let mut claims = with(&bare, &[&old]);
    claims["keys_fetched"] = json!(true);
    put(claims).await.expect(201);
    assert_eq!(shown().await["keys_fetched"], Value::Null, "no document says so");
    let before = shown().await;

    // The source has answered.
    let mut fetched = with(&bare, &[&one, &two]);
    fetched["keys_fetched"] = json!(true);
    let fetched: crate::object::Issuer = serde_json::from_value(fetched).unwrap();
    let write = Write::put(&Object::Issuer(Box::new(fetched)), Expect::Any);
    site.core.commit(Unit::new("system:keys", "issuer.keys", "").with(write)).await.unwrap();
    let held = shown().await;

    for stale in [before, with(&bare, &[&old]), with(&bare, &[&one]), with(&bare, &[&one, &two, &old])] {
        put(stale).await.expect(422).names("jwks", "the keys come from `keys_from`");
    }
    put(with(&bare, &[])).await.expect(422).names("jwks", "`portcullis revoke issuer`");
    put(with(&bare, &[&two])).await.expect(422);
    assert_eq!(shown().await, held);
    for same in [held.clone(), bare.clone(), with(&bare, &[&one, &two]), with(&bare, &[&two, &one])] {
        let answer = put(same).await.expect(200);
        assert!(answer.body.get("committed_at").is_none(), "nothing has changed: {answer:?}");
    }
    let mut edited = held.clone();
    edited["audiences"] = json!(["others"]);
    put(edited.clone()).await.expect(200);
    assert_eq!(shown().await, edited);

    // Emptied by its source: shown, edited and put again, it stays so.
    let mut emptied: crate::object::Issuer = serde_json::from_value(held).unwrap();
    emptied.jwks.keys.clear();
    let write = Write::put(&Object::Issuer(Box::new(emptied)), Expect::Any);
    site.core.commit(Unit::new("system:keys", "issuer.keys", "").with(write)).await.unwrap();
    put(with(&bare, &[])).await.expect(200);
    put(with(&bare, &[&one])).await.expect(422).names("jwks", "the keys come from `keys_from`");

    // A key that is not in the set, or not any more, can be revoked; not so when an operator puts the keys.
    let revoke = json!({ "target": { "kind": "key", "issuer": "idp", "kid": "old" } });
    site.call("POST", "/v1/revocations", revoke.clone()).await.expect(201);
    let mut own = with(&bare, &[&one]);
    own.as_object_mut().unwrap().remove("keys_from");
    put(own).await.expect(200);
    assert_eq!(shown().await["keys_fetched"], Value::Null);
    site.call("POST", "/v1/revocations", revoke).await.expect(422).names("target.kid", "has no key `old`");
}

#[tokio::test]
async fn one_service_says_what_an_mcp_resource_is_like() {
    let site = Site::new().await;
    let service = |name: &str, resource: &str| {
        let mcp = json!({ "resource": resource });
        json!({ "name": name, "routes": [
            { "name": "plain", "path": "/x" },
            { "name": "mcp", "path": "/mcp", "mcp": mcp },
            { "name": "again", "path": "/again", "mcp": mcp },
        ] })
    };
    let put = async |name: &str, resource: &str| {
        site.call("PUT", &format!("/v1/services/{name}"), service(name, resource)).await
    };
    put("desk", "https://mcp.example/mcp").await.expect(201);
    for taken in ["https://mcp.example/mcp", "https://mcp.example:8443/mcp"] {
        put("other", taken).await.expect(422).names("routes[1].mcp.resource", "service `desk`");
    }
    put("other", "https://mcp.example/other").await.expect(201);
    put("desk", "https://mcp.example:8443/mcp").await.expect(200);
    put("desk", "https://mcp.example/other").await.expect(422).names("routes[1].mcp.resource", "service `other`");
}
