//! What a caller may learn from a denial, for every reason code.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::authz::DecisionId;
use crate::clock::Timestamp;
use crate::object::GrantTerms;

const URL: Option<&str> = Some("http://127.0.0.1:9180/v1/grant-requests");

fn decision(reason: Reason, authenticated: bool) -> Decision {
    let mut d = Decision::refuse(DecisionId::new(Timestamp::from_secs(1_700_000_000)), reason, "secret detail");
    d.workload = authenticated.then(|| Arc::from("spiffe://shop.example/pipeline/\"refunds\""));
    d.grant_request = Some(Arc::new(GrantHint {
        workload: Arc::from("spiffe://shop.example/pipeline/\"refunds\""),
        resource: Arc::from("payments/refunds"),
        actions: vec![Arc::from("write")],
        terms: GrantTerms::default(),
    }));
    d
}

fn parsed(d: &Decision, url: Option<&str>) -> Value {
    serde_json::from_slice(&body(d, url)).unwrap()
}

fn header(d: &Decision, name: &str) -> Option<String> {
    let all = headers(d);
    assert!(all.iter().filter(|(n, _)| *n == name).count() <= 1);
    all.into_iter().find(|(n, _)| *n == name).map(|(_, v)| v.into_owned())
}

#[test]
fn a_denied_workload_gets_a_request_it_can_submit() {
    let mut d = decision(Reason::EntitlementNoGrant, true);
    assert_eq!(
        parsed(&d, URL),
        json!({
            "type": "https://portcullis.dev/problems/entitlement.no_grant",
            "title": "this needs a grant, and there is none",
            "status": 403,
            "reason": "entitlement.no_grant",
            "decision_id": d.id.to_string(),
            "grant_request": {
                "workload": "spiffe://shop.example/pipeline/\"refunds\"",
                "resources": ["payments/refunds"],
                "actions": ["write"],
                "duration_seconds": 3600,
                "reason": format!("denied write on payments/refunds, decision {}", d.id),
                "submit_to": "http://127.0.0.1:9180/v1/grant-requests",
            },
        })
    );
    assert_eq!(parsed(&d, None)["grant_request"].get("submit_to"), None);
    // On a route that limits uses, the request has as many as may be had.
    let hint = Arc::make_mut(d.grant_request.as_mut().unwrap());
    hint.terms.max_uses = Some(1);
    assert_eq!(parsed(&d, None)["grant_request"]["uses"], 1);
    assert_eq!(header(&d, "x-portcullis-reason").as_deref(), Some("entitlement.no_grant"));
    assert_eq!(header(&d, "content-type").as_deref(), Some("application/problem+json"));
    assert_eq!(header(&d, "cache-control").as_deref(), Some("no-store"));
}

#[test]
fn who_is_not_authenticated_learns_only_the_family() {
    for &reason in Reason::ALL.iter().filter(|r| !r.is_allow()) {
        let d = decision(reason, false);
        let told = format!("{}{:?}", String::from_utf8(body(&d, URL)).unwrap(), headers(&d));
        assert!(!told.contains(reason.code()) && !told.contains(reason.title()), "{reason}: {told}");
        assert!(!told.contains("grant_request") && !told.contains("secret detail"), "{reason}: {told}");
        let json = parsed(&d, URL);
        assert_eq!(json["reason"], reason.family());
        assert_eq!(json["type"], format!("https://portcullis.dev/problems/{}", reason.family()));
        assert_eq!(json["status"], reason.http_status());
        assert_eq!(header(&d, "x-portcullis-reason").as_deref(), Some(reason.family()));
        // Two reasons of one family and status differ in nothing but the id, `missing` excepted.
        let twin = Reason::ALL.iter().copied().find(|r| {
            r.family() == reason.family() && r.http_status() == reason.http_status() && *r != Reason::CredentialMissing
        });
        if let Some(twin) = twin.filter(|_| reason != Reason::CredentialMissing) {
            let mut other = decision(twin, false);
            other.id = d.id;
            assert_eq!(body(&other, URL), body(&d, URL), "{reason} and {twin}");
            assert_eq!(headers(&other), headers(&d), "{reason} and {twin}");
        }
    }
}

#[test]
fn an_authenticated_caller_learns_the_code_and_never_the_detail() {
    for &reason in Reason::ALL.iter().filter(|r| !r.is_allow()) {
        let d = decision(reason, true);
        let json = parsed(&d, URL);
        assert_eq!(json["reason"], reason.code());
        assert_eq!(json["title"], reason.title());
        assert_eq!(json.get("grant_request").is_some(), reason.family() == "entitlement", "{reason}");
        assert!(!json.to_string().contains("secret detail"));
        assert_eq!(header(&d, "x-portcullis-decision-id"), Some(d.id.to_string()));
    }
}

#[test]
fn challenges_and_retry_hints_follow_the_status() {
    for &reason in Reason::ALL.iter().filter(|r| !r.is_allow()) {
        let d = decision(reason, false);
        let expected = match (reason, reason.http_status()) {
            (Reason::CredentialMissing, _) => Some(r#"Bearer realm="portcullis""#),
            (_, 401) => Some(r#"Bearer realm="portcullis", error="invalid_token""#),
            _ => None,
        };
        assert_eq!(header(&d, "www-authenticate").as_deref(), expected, "{reason}");
        assert_eq!(header(&d, "retry-after").is_some(), reason.http_status() == 503, "{reason}");
    }
}
