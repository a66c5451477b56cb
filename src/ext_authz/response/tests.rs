//! Tests of writing answers, with prost and Envoy's own types as the oracle.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use envoy_types::pb::google::protobuf::value::Kind;
use proptest::prelude::*;
use prost::Message;
use smallvec::SmallVec;

use super::*;
use crate::authz::{DecisionId, Door, Header, Peer, Reason};
use crate::clock::Timestamp;
use crate::object::GrantId;
use crate::wire::{Epoch, Position, Revision};

fn id() -> DecisionId {
    DecisionId::new(Timestamp::from_millis(1_700_000_000_000))
}

fn request<'a>(headers: &[(&'a str, &'a [u8])]) -> Request<'a> {
    let headers: SmallVec<_> = headers.iter().map(|&(name, value)| Header { name: name.as_bytes(), value }).collect();
    Request {
        door: Door::ExtAuthz,
        method: "GET",
        path: "/",
        host: "h",
        scheme: "https",
        headers,
        partial_body: false,
        body: None,
        peer: Peer::default(),
    }
}

fn read(message: &Bytes) -> CheckResponse {
    let (prefix, message) = message.split_at(PREFIX_LEN);
    assert_eq!(prefix[0], 0);
    assert_eq!(u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize, message.len());
    let read = CheckResponse::decode(message).unwrap();
    assert_eq!(read.encoded_len(), message.len(), "nothing in it that Envoy's types do not know");
    read
}

fn ok(response: &CheckResponse) -> &OkHttpResponse {
    match response.http_response.as_ref().unwrap() {
        HttpResponse::OkResponse(ok) => ok,
        other => panic!("{other:?}"),
    }
}

fn denied(response: &CheckResponse) -> &DeniedHttpResponse {
    match response.http_response.as_ref().unwrap() {
        HttpResponse::DeniedResponse(denied) => denied,
        other => panic!("{other:?}"),
    }
}

/// Names and values; every one must overwrite, in the present form and the deprecated one.
fn set(options: &[HeaderValueOption]) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for option in options {
        let header = option.header.as_ref().unwrap();
        assert_eq!(option.append_action(), HeaderAppendAction::OverwriteIfExistsOrAdd);
        #[allow(deprecated, reason = "older Envoys read it")]
        let append = option.append.as_ref().map(|a| a.value);
        assert_eq!(append, Some(false));
        assert!(header.raw_value.is_empty());
        assert!(out.insert(header.key.clone(), header.value.clone()).is_none(), "`{}` is set twice", header.key);
    }
    out
}

fn metadata(response: &CheckResponse) -> BTreeMap<String, Kind> {
    let fields = &response.dynamic_metadata.as_ref().unwrap().fields;
    fields.iter().map(|(k, v)| (k.clone(), v.kind.clone().unwrap())).collect()
}

fn text(s: impl ToString) -> Kind {
    Kind::StringValue(s.to_string())
}

#[test]
fn an_allow_sets_who_is_known_and_removes_the_rest() {
    let epoch = Epoch::starting(Timestamp::from_secs(1_600_000_000));
    let mut decision = Decision::for_test(Reason::AllowGrant, id());
    decision.grant = Some(GrantId(uuid::Uuid::max()));
    decision.position = Some(Position { epoch, revision: Revision(7) });
    decision.cached = true;
    let request = request(&[
        ("x-portcullis-workload", b"spiffe://evil/1"),
        ("x_portcullis_workload", b"spiffe://evil/2"),
        ("X-Portcullis_Actor", b"spiffe://evil/3"),
        ("x-portcullis-actor", b"spiffe://evil/4"),
        ("x-portcullis-later-addition", b"1"),
        ("x-portcullisx", b"not ours"),
        ("x-portcullis-", b"not ours either"),
        ("accept", b"*/*"),
    ]);
    let response = read(&encode(&decision, Some(&request), None));
    assert_eq!(response.status.as_ref().unwrap().code, 0);
    let ok = ok(&response);
    let expected = [
        ("x-portcullis-workload", "spiffe://td/w".to_owned()),
        ("x-portcullis-subject", "spiffe://td/w".to_owned()),
        ("x-portcullis-grant", "ffffffff-ffff-ffff-ffff-ffffffffffff".to_owned()),
        ("x-portcullis-decision-id", decision.id.to_string()),
    ];
    assert_eq!(set(&ok.headers), expected.map(|(k, v)| (k.to_owned(), v)).into());
    assert_eq!(
        ok.headers_to_remove,
        [
            "x-portcullis-actor",
            "x-portcullis-reason",
            "x-portcullis-min-revision",
            "x_portcullis_workload",
            "X-Portcullis_Actor",
            "x-portcullis-later-addition",
        ]
    );
    assert_eq!(
        set(&ok.response_headers_to_add),
        [("x-portcullis-decision-id".to_owned(), decision.id.to_string())].into()
    );
    assert_eq!(
        metadata(&response),
        [
            ("decision_id", text(decision.id)),
            ("reason", text("allow.grant")),
            ("workload", text("spiffe://td/w")),
            ("grant_id", text("ffffffff-ffff-ffff-ffff-ffffffffffff")),
            ("revision", text(format!("{epoch}.7"))),
            ("cached", Kind::BoolValue(true)),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into()
    );
}

proptest! {
    /// Envoy removes after it sets, and compares names without case.
    #[test]
    fn no_header_that_is_set_is_removed_and_no_other_of_ours_stays(
        sent in proptest::collection::vec(
            prop_oneof!["(?i)x[-_]portcullis[-_](workload|subject|actor|grant|decision[-_]id|reason|min[-_]revision|[a-z]{1,4})", "[a-zA-Z_-]{1,20}"], 0..20),
        has_actor: bool, has_grant: bool, has_subject: bool,
    ) {
        let mut decision = Decision::for_test(Reason::AllowPolicy, id());
        decision.actor = has_actor.then(|| Arc::from("spiffe://td/actor"));
        decision.grant = has_grant.then(|| GrantId(uuid::Uuid::nil()));
        if !has_subject {
            decision.subject = None;
        }
        let headers: Vec<_> = sent.iter().map(|n| (n.as_str(), &b"evil"[..])).collect();
        let response = read(&encode(&decision, Some(&request(&headers)), None));
        let ok = ok(&response);
        let set = set(&ok.headers);
        let removed: Vec<String> = ok.headers_to_remove.iter().map(|n| n.to_ascii_lowercase()).collect();
        for name in set.keys() {
            prop_assert!(!removed.contains(name), "`{}` is set and removed", name);
        }
        for name in IDENTITY {
            prop_assert!(set.contains_key(name) || removed.contains(&name.to_owned()), "`{}` stays", name);
        }
        for name in &sent {
            let lower = name.to_ascii_lowercase();
            let ours = lower.replace('_', "-").strip_prefix("x-portcullis-").is_some_and(|rest| !rest.is_empty());
            prop_assert_eq!(ours, set.contains_key(&lower) || removed.contains(&lower), "`{}`", name);
        }
    }
}

#[test]
fn every_denial_is_a_denied_response() {
    for &reason in Reason::ALL.iter().filter(|r| !r.is_allow()) {
        for decision in [Decision::for_test(reason, id()), Decision::refuse(id(), reason, "because")] {
            let response = read(&encode(&decision, Some(&request(&[])), None));
            let status = response.status.as_ref().unwrap();
            assert_eq!(status.code, reason.grpc_status() as i32, "{reason}");
            assert_ne!(status.code, 0, "{reason} would be an allow");
            let denied = denied(&response);
            assert_eq!(denied.status.as_ref().unwrap().code, i32::from(reason.http_status()));
            let headers = set(&denied.headers);
            assert_eq!(headers["x-portcullis-decision-id"], decision.id.to_string());
            assert!(headers.contains_key("x-portcullis-reason") && !headers.contains_key("grpc-status"));
            let body: serde_json::Value = serde_json::from_str(&denied.body).unwrap();
            assert_eq!(body["status"], reason.http_status());
            assert_eq!(metadata(&response)["reason"], text(reason.code()));
        }
    }
}

#[test]
fn a_denied_grpc_request_gets_its_grpc_status() {
    let decision = Decision::for_test(Reason::InputAmbiguousPath, id());
    let status_for = |content_type: &'static [u8]| {
        let request = request(&[("Content-Type", content_type)]);
        set(&denied(&read(&encode(&decision, Some(&request), None))).headers).get("grpc-status").cloned()
    };
    for grpc in [&b"application/grpc"[..], b"application/grpc+proto", b"application/grpc;x=y"] {
        assert_eq!(status_for(grpc).as_deref(), Some("3"));
    }
    for other in [&b"application/grpc-web"[..], b"application/json", b""] {
        assert_eq!(status_for(other), None);
    }
    for &reason in Reason::ALL {
        assert_eq!(grpc_code(reason.grpc_status()), (reason.grpc_status() as u8).to_string());
    }
}

#[test]
fn an_allow_without_its_request_denies() {
    let decision = Decision::for_test(Reason::AllowPolicy, id());
    let response = read(&encode(&decision, None, None));
    assert_eq!(response.status.as_ref().unwrap().code, 7);
    assert_eq!(denied(&response).status.as_ref().unwrap().code, 403);
}

#[test]
fn a_nonce_goes_out_with_an_allow_and_with_a_denial() {
    let request = request(&[]);
    for reason in [Reason::AllowPolicy, Reason::CredentialPopInvalid] {
        let mut decision = Decision::for_test(reason, id());
        for nonce in [None, Some("abc".to_owned())] {
            decision.dpop_nonce.clone_from(&nonce);
            let response = read(&encode(&decision, Some(&request), None));
            let headers = match response.http_response.as_ref().unwrap() {
                HttpResponse::OkResponse(ok) => &ok.response_headers_to_add,
                HttpResponse::DeniedResponse(denied) => &denied.headers,
                other => panic!("{other:?}"),
            };
            let found = headers.iter().filter_map(|h| h.header.as_ref()).find(|h| h.key == "dpop-nonce");
            assert_eq!(found.map(|h| h.value.clone()), nonce);
        }
    }
}

#[test]
fn a_credential_that_is_not_to_be_passed_on_goes_in_every_spelling() {
    let sent = request(&[("authorization", b"Bearer x"), ("workload_proof_token", b"x"), ("txn-token", b"x")]);
    let mut decision = Decision::for_test(Reason::AllowPolicy, id());
    decision.removes_token = true;
    let response = read(&encode(&decision, Some(&sent), None));
    let mut removed = ok(&response).headers_to_remove.clone();
    removed.retain(|name| !name.starts_with("x-portcullis"));
    removed.sort_unstable();
    let all = ["authorization", "dpop", "workload-identity-token", "workload-proof-token", "workload_proof_token"];
    assert_eq!(removed, all);
}

#[test]
fn a_document_is_a_denial_with_a_status_of_200() {
    let decision = Decision::for_test(Reason::CredentialMissing, id());
    let response = read(&encode_document(&decision, b"{}"));
    assert_eq!(response.status.as_ref().unwrap().code, 7, "to Envoy it is denied");
    let denied = denied(&response);
    assert_eq!((denied.status.as_ref().unwrap().code, &*denied.body), (200, "{}"));
    assert_eq!(set(&denied.headers)["content-type"], "application/json");
}
