//! Tests of token reviews: an API server on loopback that speaks real TLS and says all sorts of things.

use serde_json::{Value, json};

use super::*;
use crate::clock::Timestamp;
use crate::control::keys::tests::endpoint::{Ca, Endpoint, Say};
use crate::credential::{IssuerSet, TokenSigner, verify_for};
use crate::object::Issuer;
use crate::telemetry::KeyFetch;
use crate::testing::changed;

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const AUDIENCE: &str = "portcullis-control";
const SUB: &str = "system:serviceaccount:gate:sidecar";

struct Cluster {
    ca: Ca,
    api: Endpoint,
    token: String,
    verified: VerifiedToken,
    dir: tempfile::TempDir,
}

impl Cluster {
    async fn new() -> Self {
        Self::of_kind("kubernetes").await
    }

    async fn of_kind(kind: &str) -> Self {
        let ca = Ca::new();
        let signer = TokenSigner::generate_es256("k").unwrap();
        let issuer = json!({
            "name": "cluster", "kind": kind, "issuer": "https://cluster.example", "audiences": ["other"],
            "jwks": { "keys": [changed(signer.public_jwk(), &json!({ "use": "sig" }))] },
        });
        let issuer: Issuer = serde_json::from_value(issuer).unwrap();
        let claims = json!({
            "iss": "https://cluster.example", "sub": SUB, "aud": [AUDIENCE], "iat": 1000, "exp": 1600,
            "kubernetes.io": { "namespace": "gate", "serviceaccount": { "name": "sidecar", "uid": "sa-uid" } },
        });
        let token = signer.sign(&claims).unwrap();
        let (issuers, _) = IssuerSet::compile([&issuer]);
        let verified = verify_for(&token, &issuers, &[AUDIENCE], Timestamp::from_secs(1100)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "ours-1\n").unwrap();
        Self { api: ca.endpoint().await, ca, token, verified, dir }
    }

    fn server(&self) -> TokenReviewConfig {
        TokenReviewConfig {
            issuer: "cluster".to_owned(),
            url: self.api.url(""),
            ca_file: self.ca.file(),
            token_file: self.dir.path().join("token"),
        }
    }

    async fn review(&self) -> Result<(), Unconfirmed> {
        self.review_by(TokenReviewSettings { servers: vec![self.server()], ..TokenReviewSettings::default() }).await
    }

    async fn review_by(&self, settings: TokenReviewSettings) -> Result<(), Unconfirmed> {
        let result = TokenReviews::new(settings).confirm(&self.token, &self.verified, AUDIENCE).await;
        if let Err(why) = &result {
            let text = format!("{why} {why:?}");
            assert!(!text.contains(&self.token) && !text.contains("ours-"), "{text}");
        }
        result
    }
}

/// What an API server says to a good token, with `changes` to its status.
fn yes(changes: &Value) -> Value {
    let user = json!({ "username": SUB, "uid": "sa-uid", "groups": ["system:serviceaccounts"] });
    let status = json!({ "authenticated": true, "user": user, "audiences": [AUDIENCE] });
    json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": changed(status, changes) })
}

fn unanswered(result: Result<(), Unconfirmed>) -> FetchError {
    match result {
        Err(Unconfirmed::Unanswered(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_yes_confirms_and_the_question_is_the_one_of_the_standard() {
    let cluster = Cluster::new().await;
    for say in [Say::Created(yes(&json!({})).to_string()), Say::Body(yes(&json!({})).to_string())] {
        cluster.api.say(REVIEWS, say);
        cluster.review().await.unwrap();
    }
    let asked = cluster.api.last_asked();
    assert_eq!((asked.method.as_str(), asked.authorization.as_str()), ("POST", "Bearer ours-1"));
    let body: Value = serde_json::from_str(&asked.body).unwrap();
    let spec = json!({ "token": cluster.token, "audiences": [AUDIENCE] });
    assert_eq!(body, json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec }));
    // Asked anew each time, with our token as it is then.
    std::fs::write(cluster.dir.path().join("token"), "ours-2").unwrap();
    cluster.review().await.unwrap();
    assert_eq!(cluster.api.last_asked().authorization, "Bearer ours-2");
    assert_eq!(cluster.api.times_asked(), 3);
    // Without a UID in the answer, or an empty error, the rest decides.
    for changes in [json!({ "user": { "username": SUB } }), json!({ "error": "" })] {
        cluster.api.serve_json(REVIEWS, &yes(&changes));
        cluster.review().await.unwrap();
    }
}

#[tokio::test]
async fn every_other_answer_is_a_no() {
    let cluster = Cluster::new().await;
    let user = |username: &str, uid: Value| json!({ "user": { "username": username, "uid": uid } });
    for (changes, part) in [
        (json!({ "authenticated": false }), "`status.authenticated` is not true"),
        (json!({ "authenticated": null }), "`status.authenticated` is not true"),
        (json!({ "error": format!("bad {}", cluster.token) }), "`status.error` is set"),
        (json!({ "error": "expired", "authenticated": false }), "`status.error` is set"),
        (user("system:serviceaccount:gate:other", json!("sa-uid")), "username"),
        (user("", json!("sa-uid")), "username"),
        (json!({ "user": null }), "username"),
        (json!({ "user": { "username": [SUB] } }), "username"),
        (user(SUB, json!("another")), "UID"),
        (user(SUB, json!(7)), "UID"),
        (json!({ "audiences": ["https://kubernetes.default.svc"] }), "audiences"),
        (json!({ "audiences": [] }), "audiences"),
        (json!({ "audiences": null }), "audiences"),
        (json!({ "audiences": AUDIENCE }), "audiences"),
    ] {
        cluster.api.serve_json(REVIEWS, &yes(&changes));
        match cluster.review().await {
            Err(Unconfirmed::Denied(why)) => assert!(why.contains(part), "{changes}: {why}"),
            other => panic!("{changes}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_not_an_answer_confirms_nothing() {
    let cluster = Cluster::new().await;
    let body = |value: Value| Say::Body(value.to_string());
    let twice = yes(&json!({})).to_string().replace("\"authenticated\"", "\"authenticated\":false,\"authenticated\"");
    for (say, part) in [
        (Say::Status(401), "answered 401"),
        (Say::Status(403), "answered 403"),
        (Say::Status(500), "answered 500"),
        (Say::Status(204), "answered 204"),
        (Say::Redirect(cluster.api.url("/elsewhere")), "redirects are not followed"),
        (Say::Body(String::new()), "not strict JSON"),
        (Say::Body("<html>".to_owned()), "not strict JSON"),
        (Say::Body(twice), "not strict JSON"),
        (Say::Endless(1 << 20), "more than 262144 bytes"),
        (body(json!([])), "is not a TokenReview"),
        (body(json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" })), "is not a TokenReview"),
        (
            body(changed(yes(&json!({})), &json!({ "apiVersion": "authentication.k8s.io/v1beta1" }))),
            "not a TokenReview",
        ),
        (body(changed(yes(&json!({})), &json!({ "status": null }))), "no `status`"),
        (body(changed(yes(&json!({})), &json!({ "status": "Success" }))), "no `status`"),
        (body(yes(&json!({ "authenticated": "true" }))), "not a boolean"),
        (body(yes(&json!({ "error": ["x"] }))), "not text"),
    ] {
        cluster.api.say("/elsewhere", Say::Body(yes(&json!({})).to_string()));
        cluster.api.say(REVIEWS, say);
        let error = unanswered(cluster.review().await);
        assert!(error.message.contains(part), "{part}: {error}");
        assert_eq!(error.result, KeyFetch::BadAnswer, "{error}");
        assert_eq!(cluster.api.last_asked().path, REVIEWS, "nothing else was asked");
    }
}

#[tokio::test]
async fn an_api_server_that_is_silent_or_somebody_else_confirms_nothing() {
    let cluster = Cluster::new().await;
    cluster.api.say(REVIEWS, Say::Silence);
    let short = |server| TokenReviewSettings {
        servers: vec![server],
        timeout: Duration::from_millis(300),
        ..TokenReviewSettings::default()
    };
    let error = unanswered(cluster.review_by(short(cluster.server())).await);
    assert_eq!(error.result, KeyFetch::Unreachable, "{error}");
    // One that waits for its turn waits no longer than that.
    let none = TokenReviewSettings { max_concurrent: 0, ..short(cluster.server()) };
    assert!(unanswered(cluster.review_by(none).await).message.contains("in time"));

    cluster.api.say(REVIEWS, Say::Created(yes(&json!({})).to_string()));
    let asked = cluster.api.times_asked();
    let plain = cluster.api.url("").replace("https://", "http://");
    let stranger = Ca::new();
    for server in [
        TokenReviewConfig { ca_file: stranger.file(), ..cluster.server() },
        TokenReviewConfig { ca_file: "/nowhere/ca.pem".into(), ..cluster.server() },
        TokenReviewConfig { token_file: "/nowhere/token".into(), ..cluster.server() },
        TokenReviewConfig { token_file: cluster.dir.path().to_owned(), ..cluster.server() },
        TokenReviewConfig { url: plain, ..cluster.server() },
    ] {
        let settings = TokenReviewSettings { servers: vec![server], ..TokenReviewSettings::default() };
        unanswered(cluster.review_by(settings).await);
    }
    for content in ["", " \n", "ours-1\nours-2", &"ours-1".repeat(20_000)] {
        std::fs::write(cluster.dir.path().join("token"), content).unwrap();
        assert!(unanswered(cluster.review().await).message.contains("token_file"));
    }
    assert_eq!(cluster.api.times_asked(), asked, "nothing was sent");
}

#[tokio::test]
async fn only_kubernetes_tokens_of_issuers_with_a_server_are_asked_about() {
    let cluster = Cluster::new().await;
    let other = TokenReviewConfig { issuer: "another".to_owned(), ..cluster.server() };
    let settings = TokenReviewSettings { servers: vec![other], ..TokenReviewSettings::default() };
    cluster.review_by(settings).await.unwrap();
    assert_eq!(cluster.api.times_asked(), 0);
    let cluster = Cluster::of_kind("oidc").await;
    cluster.api.say(REVIEWS, Say::Created(yes(&json!({})).to_string()));
    let refused = cluster.review().await.unwrap_err();
    assert!(refused.to_string().contains("not of kind `kubernetes`"), "{refused}");
    assert_eq!(cluster.api.times_asked(), 0);
}
