//! Tests of what HTTP doors answer: what a client is told, and what reaches the upstream.

use std::sync::Arc;

use super::*;
use crate::authz::{DecisionId, Door, Reason};
use crate::clock::Timestamp;
use crate::door::{Asked, OwnedPeer};
use crate::object::GrantId;
use crate::telemetry::OpenRecord;

fn checked(decision: Decision, headers: &[(&str, &str)]) -> Checked {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    let request = Asked {
        door: Door::Proxy,
        method: "GET".to_owned(),
        path: "/".to_owned(),
        host: String::new(),
        scheme: "https".into(),
        headers: map,
        partial_body: false,
        body: None,
        peer: OwnedPeer::default(),
    };
    let grant_request_url = Some(Arc::from("http://127.0.0.1:9180/v1/grant-requests"));
    Checked { decision, request, grant_request_url, record: OpenRecord::default() }
}

fn id() -> DecisionId {
    DecisionId::new(Timestamp::from_millis(1_700_000_000_000))
}

fn header<'a, B>(response: &'a Response<B>, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn every_denial_has_its_status_and_its_reason_and_none_is_a_success() {
    for &reason in Reason::ALL.iter().filter(|reason| !reason.is_allow()) {
        let checked = checked(Decision::for_test(reason, id()), &[("content-type", "application/grpc+proto")]);
        let response = denial(&checked);
        assert_eq!(response.status().as_u16(), reason.http_status(), "{reason}");
        assert_eq!(header(&response, "x-portcullis-reason"), Some(reason.code()));
        assert_eq!(header(&response, "x-portcullis-decision-id"), Some(&*id_text(&checked)));
        assert_eq!(header(&response, "content-type"), Some("application/problem+json"));
        assert_eq!(header(&response, "www-authenticate").is_some(), reason.http_status() == 401, "{reason}");
        assert_eq!(header(&response, "retry-after").is_some(), reason.http_status() == 503, "{reason}");
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!((&body["reason"], &body["status"]), (&reason.code().into(), &reason.http_status().into()));
        assert_eq!(header(&response, "grpc-status"), Some(grpc_code(reason.grpc_status())), "{reason}");

        let grpc = grpc_denial(&checked);
        assert_eq!((grpc.status().as_u16(), grpc.body().len()), (200, 0));
        assert_eq!(header(&grpc, "content-type"), Some("application/grpc"));
        assert_eq!(header(&grpc, "grpc-status"), Some(grpc_code(reason.grpc_status())));
        assert_ne!(header(&grpc, "grpc-status"), Some("0"));
        assert!(upstream(&checked).is_none() && !prepare(&checked, &mut HeaderMap::new()), "{reason}");
    }
    // Asked for with a permit in hand, it still denies.
    let allowed = checked(Decision::for_test(Reason::AllowPolicy, id()), &[]);
    assert_eq!(denial(&allowed).status().as_u16(), 403);
    assert_eq!(header(&denial(&allowed), "grpc-status"), None, "no gRPC call");
    assert_eq!(header(&grpc_denial(&allowed), "grpc-status"), Some("7"));
}

fn id_text(checked: &Checked) -> String {
    checked.decision.id.to_string()
}

#[test]
fn an_unauthenticated_caller_learns_the_family() {
    let denied = denial(&checked(Decision::refuse(id(), Reason::CredentialSignature, "secret detail"), &[]));
    assert_eq!((denied.status().as_u16(), header(&denied, "x-portcullis-reason")), (401, Some("credential")));
    assert!(!String::from_utf8_lossy(denied.body()).contains("detail"));
}

#[test]
fn each_identity_header_is_set_or_removed_in_every_spelling() {
    let sent = [
        ("x-portcullis-workload", "spiffe://evil/w"),
        ("x-portcullis-workload", "spiffe://evil/w2"),
        ("x_portcullis_workload", "spiffe://evil/w"),
        ("x-portcullis_actor", "spiffe://evil/a"),
        ("x-portcullis-actor", "spiffe://evil/a"),
        ("x-portcullis-roles", "admin"),
        ("x-portcullis-min-revision", "e.1"),
        ("x-portcullisx", "kept"),
        ("authorization", "Bearer t"),
    ];
    let mut decision = Decision::for_test(Reason::AllowGrant, id());
    decision.grant = Some(GrantId(uuid::Uuid::from_u128(7)));
    decision.subject = Some(Arc::from("user 100%\u{e9}"));
    let checked = checked(decision, &sent);
    let upstream = upstream(&checked).unwrap();
    let set: Vec<_> = upstream.set.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    let (id, grant) = (id_text(&checked), uuid::Uuid::from_u128(7).to_string());
    let expected = [
        ("x-portcullis-workload", "spiffe://td/w"),
        ("x-portcullis-subject", "user%20100%25%c3%a9"),
        ("x-portcullis-grant", &grant),
        ("x-portcullis-decision-id", &id),
    ];
    assert_eq!(set, expected);
    let mut removed: Vec<_> = upstream.remove.iter().map(HeaderName::as_str).collect();
    removed.sort_unstable();
    let expected = [
        "x-portcullis-actor",
        "x-portcullis-min-revision",
        "x-portcullis-reason",
        "x-portcullis-roles",
        "x-portcullis_actor",
        "x_portcullis_workload",
    ];
    assert_eq!(removed, expected);

    // Another set of headers than the one that was asked about, as after the hop-by-hop ones are gone.
    let mut headers = checked.request.headers.clone();
    headers.insert(HeaderName::from_static("x_portcullis-subject"), HeaderValue::from_static("late"));
    assert!(prepare(&checked, &mut headers));
    let mut left: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    left.sort_unstable();
    let mut expected = vec![("authorization", "Bearer t"), ("x-portcullisx", "kept")];
    expected.extend(set);
    expected.sort_unstable();
    assert_eq!(left, expected);
}

#[test]
fn a_credential_that_is_not_to_be_passed_on_goes_in_every_spelling() {
    let sent = [("authorization", "Bearer x"), ("workload_proof_token", "x"), ("txn-token", "x"), ("dpop", "x")];
    let mut decision = Decision::for_test(Reason::AllowPolicy, id());
    let removed = |checked: &Checked| {
        let mut names: Vec<_> = upstream(checked).unwrap().remove.iter().map(|name| name.as_str().to_owned()).collect();
        names.retain(|name| !name.starts_with("x-portcullis"));
        names.sort_unstable();
        names
    };
    let passes = checked(decision.clone(), &sent);
    assert_eq!(removed(&passes), [""; 0]);
    decision.removes_token = true;
    let removes = checked(decision, &sent);
    let all = ["authorization", "dpop", "workload-identity-token", "workload-proof-token", "workload_proof_token"];
    assert_eq!(removed(&removes), all);
    for (checked, left) in [(passes, 4), (removes, 1)] {
        let mut headers = checked.request.headers.clone();
        assert!(prepare(&checked, &mut headers));
        assert_eq!(headers.keys().filter(|name| !name.as_str().starts_with("x-portcullis")).count(), left);
        assert!(headers.contains_key("txn-token"), "it is made to be handed on");
    }
}
