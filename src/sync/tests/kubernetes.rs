//! Sidecars with a Kubernetes service account token: whose it is, and what the cluster's API server says to it.

use std::time::Duration;

use serde_json::{Value, json};
use tonic::{Code, Status};

use super::frames::identity;
use super::plane::{AUDIENCE, Plane, eventually};
use super::stream::{bookmarked, raw};
use crate::clock::Clock;
use crate::control::keys::tests::endpoint::{Ca, Endpoint, Say};
use crate::control::token_review::TokenReviewConfig;
use crate::object::Kind;
use crate::testing::changed;
use crate::wire::proto::ServerFrame;

const ISSUER: &str = "https://kubernetes.default.svc";
const SUB: &str = "system:serviceaccount:gate:sidecar";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// A control plane that trusts a cluster, and nobody else, for its sidecars. Nothing is mapped.
fn cluster() -> Plane {
    let mut plane = Plane::stopped(100, &["catalog", "payments"]);
    let issuer = json!({
        "name": "cluster", "kind": "kubernetes", "issuer": ISSUER, "audiences": ["elsewhere"],
        "jwks": {"keys": [changed(plane.estate.signer.public_jwk(), &json!({"use": "sig"}))]},
    });
    let change = plane.estate.put(Kind::Issuer, &issuer);
    plane.commit(vec![change]);
    plane.config.trusted_issuers = vec!["cluster".to_owned()];
    write_token(&plane, "pod-1");
    plane
}

fn write_token(plane: &Plane, pod: &str) {
    let bound = json!({
        "namespace": "gate",
        "serviceaccount": {"name": "sidecar", "uid": "sa-uid"},
        "pod": {"name": "sidecar-0", "uid": pod},
    });
    plane.write_token(json!({"iss": ISSUER, "sub": SUB, "kubernetes.io": bound}));
}

/// Registers `id`, with a mapping of the sidecar's account if it is `theirs`.
fn register(plane: &mut Plane, id: &str, theirs: bool) {
    let mappings = if theirs { json!([{"issuer": "cluster", "when": {"sub": SUB}}]) } else { json!([]) };
    let workload =
        json!({"id": id, "kind": "service", "owner": "team", "environment": "production", "credentials": mappings});
    let change = plane.estate.put(Kind::Workload, &workload);
    plane.commit(vec![change]);
}

fn revoke(plane: &mut Plane, target: &Value) {
    let change = plane.estate.revoke(target);
    plane.commit(vec![change]);
}

async fn refused(plane: &Plane, code: Code, part: &str) {
    let status = raw(plane, None, bookmarked).await.expect_err(part);
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(part), "{status}");
    let token = std::fs::read_to_string(plane.tokens.path().join("token")).unwrap();
    assert!(!format!("{status:?}").contains(&token));
}

/// How an open stream ends after `change`.
async fn ends(plane: &mut Plane, change: impl FnOnce(&mut Plane)) -> Status {
    let (address, token) = (plane.address, std::fs::read_to_string(plane.tokens.path().join("token")).unwrap());
    let stream = tokio::spawn(super::stream::raw_at(address, token, None, |_: &[ServerFrame]| false));
    eventually("the stream is open", || plane.fleet.streams() == 1).await;
    change(plane);
    tokio::time::timeout(Duration::from_secs(10), stream).await.expect("it ends").unwrap().unwrap_err()
}

#[tokio::test]
async fn a_token_opens_the_stream_of_the_one_workload_that_it_is_mapped_to() {
    let mut plane = cluster();
    plane.run().await;
    refused(&plane, Code::Unauthenticated, "no registered workload has a credential mapping").await;
    register(&mut plane, identity().as_str(), true);
    let sidecar = plane.sidecar(None);
    sidecar.reaches(plane.index.position()).await;
    sidecar.stop().await;

    register(&mut plane, "spiffe://test.example/other", true);
    refused(&plane, Code::Unauthenticated, "more than one workload").await;
    register(&mut plane, identity().as_str(), false);
    refused(&plane, Code::PermissionDenied, "`spiffe://test.example/other` is not configured").await;
    register(&mut plane, "spiffe://test.example/other", false);
    refused(&plane, Code::Unauthenticated, "no registered workload").await;
    register(&mut plane, identity().as_str(), true);
    raw(&plane, None, bookmarked).await.unwrap();

    let now = plane.estate.clock.now().wall.as_secs();
    for (change, part) in [
        (json!({"aud": ["https://kubernetes.default.svc"]}), "audience"),
        (json!({"exp": now}), "expired"),
        (json!({"kubernetes.io": null}), "credential.typ"),
    ] {
        let bound = json!({"namespace": "gate", "serviceaccount": {"name": "sidecar", "uid": "sa-uid"}});
        let claims = changed(json!({"iss": ISSUER, "sub": SUB, "kubernetes.io": bound}), &change);
        plane.write_token(claims);
        refused(&plane, Code::Unauthenticated, part).await;
    }
}

#[tokio::test]
async fn a_revoked_pod_and_a_mapping_that_is_gone_end_streams() {
    let mut plane = cluster();
    plane.run().await;
    register(&mut plane, identity().as_str(), true);
    let revoked = |uid: &str| json!({"kind": "bound_object", "issuer": "cluster", "uid": uid});
    let status = ends(&mut plane, |plane| {
        revoke(plane, &revoked("pod-2"));
        register(plane, "spiffe://test.example/unrelated", false);
        revoke(plane, &revoked("pod-1"));
    })
    .await;
    let why = "an object that this token is bound to was revoked";
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, why));
    refused(&plane, Code::Unauthenticated, why).await;
    write_token(&plane, "pod-2");
    refused(&plane, Code::Unauthenticated, why).await;
    write_token(&plane, "pod-3");
    let status = ends(&mut plane, |plane| register(plane, identity().as_str(), false)).await;
    assert!(status.message().contains("no registered workload"), "{status}");
    register(&mut plane, identity().as_str(), true);
    let status = ends(&mut plane, |plane| register(plane, "spiffe://test.example/other", true)).await;
    assert!(status.message().contains("more than one workload"), "{status}");
    register(&mut plane, "spiffe://test.example/other", false);
    revoke(&mut plane, &revoked("sa-uid"));
    refused(&plane, Code::Unauthenticated, why).await;
}

#[tokio::test]
async fn an_api_server_has_to_confirm_the_token_of_every_new_stream() {
    let ca = Ca::new();
    let api: Endpoint = ca.endpoint().await;
    let mut plane = cluster();
    let token_file = plane.tokens.path().join("ours");
    std::fs::write(&token_file, "ours").unwrap();
    let server = TokenReviewConfig { issuer: "cluster".to_owned(), url: api.url(""), ca_file: ca.file(), token_file };
    plane.config.token_review.servers = vec![server];
    plane.config.token_review.timeout = Duration::from_millis(500);
    plane.run().await;
    let answer = |authenticated: bool| {
        let user = json!({"username": SUB, "uid": "sa-uid"});
        let status = json!({"authenticated": authenticated, "user": user, "audiences": [AUDIENCE]});
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status});
        Say::Created(review.to_string())
    };
    api.say(REVIEWS, answer(true));
    refused(&plane, Code::Unauthenticated, "no registered workload").await;
    register(&mut plane, "spiffe://test.example/other", true);
    refused(&plane, Code::PermissionDenied, "is not configured as an enforcement point").await;
    assert_eq!(api.times_asked(), 0, "for nobody but an enforcement point");
    register(&mut plane, "spiffe://test.example/other", false);
    register(&mut plane, identity().as_str(), true);

    raw(&plane, None, bookmarked).await.unwrap();
    raw(&plane, None, bookmarked).await.unwrap();
    assert_eq!(api.times_asked(), 2, "nothing is remembered");
    let sent: Value = serde_json::from_str(&api.last_asked().body).unwrap();
    assert_eq!(sent["spec"]["audiences"], json!([AUDIENCE]));

    api.say(REVIEWS, answer(false));
    refused(&plane, Code::Unauthenticated, "the API server does not confirm it").await;
    for say in [Say::Silence, Say::Status(500), Say::Body("{".to_owned())] {
        api.say(REVIEWS, say);
        refused(&plane, Code::Unavailable, "the token of `cluster` could not be confirmed").await;
    }

    // A sidecar that is turned away comes back, and gets in when the API server answers.
    let sidecar = plane.sidecar(None);
    eventually("it is refused", || sidecar.stats.read().failures >= 2).await;
    assert_eq!(sidecar.position(), None);
    api.say(REVIEWS, answer(true));
    sidecar.reaches(plane.index.position()).await;
}
