//! Who is let in, what they may do, and how often: through the whole router.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, header};
use serde_json::{Value, json};

use super::harness::{STOREFRONT, Site, catalog, workload, workload_path};
use crate::control::callers::{CallersConfig, Peer, Rate, WorkloadCallers};
use crate::control::token_review::TokenReviewSettings;
use crate::control::workload_identity::Vouchers;
use crate::credential::TokenSigner;

const RATE: Rate = Rate { calls: 1, per: Duration::from_secs(1000), burst: 3 };

pub(super) fn with_workloads() -> CallersConfig {
    let reviews = TokenReviewSettings::default();
    let workloads = WorkloadCallers { audience: "api".to_owned(), vouchers: Vouchers::All, reviews };
    CallersConfig { workloads: Some(workloads), ..CallersConfig::default() }
}

async fn publish(site: &Site, token: &str, text: &str) -> super::harness::Answer {
    site.call_as(token, "POST", "/v1/operator-policies", json!({ "text": text })).await
}

#[tokio::test]
async fn a_workloads_own_token_counts_where_workloads_may_call() {
    let signer = TokenSigner::generate_es256("k").unwrap();
    let token = |sub: &str, aud: &str| {
        let now = super::harness::NOW.as_secs();
        signer.sign(&json!({ "sub": sub, "aud": [aud], "iat": now, "exp": now + 300 })).unwrap()
    };
    for (config, status) in [(with_workloads(), 403), (CallersConfig::default(), 401)] {
        let site = Site::with_callers(config).await;
        let issuer = json!({
            "name": "test", "kind": "spiffe", "trust_domain": "test.example", "audiences": ["x"],
            "jwks": { "keys": [signer.public_jwk()] },
        });
        site.call("PUT", "/v1/issuers/test", issuer).await.expect(201);
        site.call("PUT", &workload_path(STOREFRONT), workload(STOREFRONT)).await.expect(201);
        // Known but not allowed, or not known at all.
        site.call_as(&token(STOREFRONT, "api"), "GET", "/v1/grants", Value::Null).await.expect(status);
        site.call_as(&token(STOREFRONT, "other"), "GET", "/v1/grants", Value::Null).await.expect(401);
        let nobody = token("spiffe://test.example/unregistered", "api");
        site.call_as(&nobody, "GET", "/v1/grants", Value::Null).await.expect(401);
        let suspend = format!("{}/suspend", workload_path(STOREFRONT));
        site.call("POST", &suspend, json!({ "reason": "looks odd" })).await.expect(200);
        site.call_as(&token(STOREFRONT, "api"), "GET", "/v1/grants", Value::Null).await.expect(401);
    }
}

#[tokio::test]
async fn what_is_published_counts_at_once_and_nobody_locks_everybody_out() {
    let site = Site::new().await;
    let alice = site.operator("alice").await;
    let shown = site.call_as(&alice, "GET", "/v1/operator-policies/current", Value::Null).await.expect(200).body;
    assert!(shown["author"].is_null() && shown["schema"].as_str().unwrap().contains("\"grant.approve\""), "{shown}");
    let readers = r#"@id("readers") permit(principal, action in Action::"read", resource);"#;
    publish(&site, &alice, readers).await.expect(422).names("text", "`alice` could not publish");
    publish(&site, &alice, "@id(\"x\") permit(principal, action == Action::\"fly\", resource);").await.expect(422);
    let by_alice = format!(
        "{readers} @id(\"alice\") permit(principal == Operator::\"alice\", action in Action::\"operator_policy\", resource);"
    );
    publish(&site, &alice, &by_alice).await.expect(201);
    publish(&site, &alice, &by_alice).await.expect(200);
    site.call_as(&alice, "GET", "/v1/services", Value::Null).await.expect(200);
    let denied = site.call_as(&alice, "PUT", "/v1/services/catalog", catalog()).await.expect(403);
    assert!(denied.body["detail"].as_str().unwrap().contains("`service.put`"), "{}", denied.body);
    assert_eq!(site.revision(), 1, "a refused call changes nothing");
    // Not even `bootstrap` may do the rest, but it can always publish.
    site.call("PUT", "/v1/services/catalog", catalog()).await.expect(403);
    site.call("GET", "/v1/nothing", Value::Null).await.expect(404);
    publish(&site, &site.token, readers).await.expect(201);
    publish(&site, &alice, &by_alice).await.expect(403);
    let everything = r#"@id("all") permit(principal, action, resource);"#;
    publish(&site, &site.token, everything).await.expect(201);
    site.call_as(&alice, "PUT", "/v1/services/catalog", catalog()).await.expect(201);
    let site = site.restart().await;
    site.call_as(&alice, "DELETE", "/v1/services/catalog", Value::Null).await.expect(200);
}

#[tokio::test]
async fn who_calls_too_often_is_told_when_to_come_back_and_others_are_not_in_its_way() {
    let config = CallersConfig { calls: Some(RATE), ..CallersConfig::default() };
    let site = Site::with_callers(config).await;
    let alice = site.operator("alice").await;
    for _ in 0..3 {
        site.call_as(&alice, "GET", "/v1/status", Value::Null).await.expect(200);
    }
    let answer = site.call_as(&alice, "GET", "/v1/status", Value::Null).await.expect(429);
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    assert!((990..=1000).contains(&wait), "{wait}");
    assert!(!answer.header("x-request-id").is_empty());
    site.call("GET", "/v1/status", Value::Null).await.expect(200);
}

#[tokio::test]
async fn an_address_that_fails_too_often_is_told_so_and_a_good_token_from_there_is_let_in() {
    let config = CallersConfig { failures: Some(RATE), ..CallersConfig::default() };
    let site = Site::with_callers(config).await;
    let from = |address: &str, token: &str| {
        let mut request = Request::get("/v1/status")
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Body::empty())
            .unwrap();
        request.extensions_mut().insert(Peer { address: address.parse().unwrap(), certificate: None });
        request
    };
    for _ in 0..3 {
        site.send(from("192.0.2.1", "ptc_op_wrong")).await.expect(401);
    }
    assert!(!site.send(from("192.0.2.1", "ptc_op_wrong")).await.expect(429).header("retry-after").is_empty());
    site.send(from("192.0.2.2", "ptc_op_wrong")).await.expect(401);
    site.send(from("192.0.2.1", &site.token)).await.expect(200);
}

#[tokio::test]
async fn who_floods_what_anybody_may_ask_does_not_fill_the_trail() {
    let config = CallersConfig { failures: Some(RATE), ..CallersConfig::default() };
    let site = Site::with_callers(config).await;
    for _ in 0..20 {
        let mut request = Request::post("/v1/token").body(Body::from("garbage")).unwrap();
        request.extensions_mut().insert(Peer { address: "192.0.2.1".parse().unwrap(), certificate: None });
        assert!(site.send(request).await.status.is_client_error());
    }
    let lost = |records: &Value| records["items"].as_array().unwrap().iter().any(|r| r["action"] == "audit.lost");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let records = loop {
        assert!(std::time::Instant::now() < until, "nothing was left out");
        let records = site.call("GET", "/v1/audit?limit=100", Value::Null).await.expect(200).body;
        if lost(&records) {
            break records;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let of_strangers = |r: &&Value| r["author"] == "" && r["action"] != "audit.lost";
    let told: Vec<&Value> = records["items"].as_array().unwrap().iter().filter(of_strangers).collect();
    assert_eq!(told.len(), 3, "{records}");
    assert!(told.iter().all(|record| record["peer"] == "192.0.2.1"), "{records}");
}
