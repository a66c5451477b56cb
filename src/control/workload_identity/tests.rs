//! Whose a token is, as the log says it now: what counts, what has to be shown beside it, and what ends it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;
use crate::authz::Change;
use crate::control::index::Commit;
use crate::credential::TokenSigner;
use crate::testing::{Estate, KeyHolder, changed};
use crate::wire::Epoch;

const HERE: &str = "https://control.example";

struct Site {
    estate: Estate,
    index: Arc<Index>,
    identity: Arc<WorkloadIdentity>,
}

impl Site {
    fn new() -> Self {
        Self::with(json!({"max_delegation_depth": 2}))
    }

    /// With an issuer that differs by these fields.
    fn with(changes: Value) -> Self {
        let mut estate = Estate::new();
        let keys = json!({ "keys": [estate.signer.public_jwk()] });
        let issuer =
            json!({"name": "test", "kind": "spiffe", "trust_domain": "test.example", "audiences": ["a"], "jwks": keys});
        estate.put(Kind::Issuer, &changed(issuer, &changes));
        let index = Arc::new(Index::new(Epoch::starting(Timestamp::from_secs(1)), Revision(0), [], 99));
        let identity = WorkloadIdentity::new(Arc::clone(&index), Vouchers::All, None, TokenReviewSettings::default());
        let site = Self { estate, index, identity: Arc::new(identity) };
        site.commit(site.estate.changes());
        site
    }

    fn commit(&self, changes: Vec<Change>) {
        let revision = self.index.position().revision.next();
        let stored = |c: Change| {
            let object = c.body.as_ref().map(|b| Object::parse(c.kind, b).unwrap());
            let (key, body) = (Arc::from(c.key), c.body.unwrap_or_default());
            Arc::new(Stored::new(c.kind, key, revision, body, object))
        };
        let changes = changes.into_iter().map(stored).collect();
        self.index
            .apply(Arc::new(Commit { revision, at: Timestamp::from_secs(1), author: Arc::from("test"), changes }))
            .unwrap();
    }

    fn token(&self, name: &str, changes: Value) -> String {
        let claims = changed(self.estate.claims(name), &json!({ "aud": [HERE] }));
        self.estate.signer.sign(&changed(claims, &changes)).unwrap()
    }

    async fn judge(&self, token: &str, evidence: Evidence) -> Result<Identified, Refusal> {
        let clock: SharedClock = Arc::clone(&self.estate.clock) as _;
        self.identity.identify(token, &[HERE], evidence, &clock).await
    }

    async fn reason(&self, token: &str, evidence: Evidence) -> Reason {
        self.judge(token, evidence).await.unwrap_err().reason
    }
}

fn id(name: &str) -> String {
    Estate::id(name)
}

#[tokio::test]
async fn a_registered_workload_is_known_by_a_token_for_here() {
    let site = Site::new();
    let found = site.judge(&site.token("agent", json!({})), Evidence::default()).await.unwrap();
    assert_eq!((found.workload.as_str(), found.actor), (&*id("agent"), None));
    assert_eq!(found.token.jti.as_deref(), Some("jti-agent"));
    let nobody = Evidence::default();
    let stranger = site.token("stranger", json!({}));
    assert_eq!(site.reason(&stranger, nobody).await, Reason::CredentialSubject);
    // Meant for the services, and not for the control plane.
    let elsewhere = site.token("agent", json!({"aud": ["a"]}));
    assert_eq!(site.reason(&elsewhere, nobody).await, Reason::CredentialAudience);
    // With the signature of another token.
    let (token, other) = (site.token("agent", json!({})), site.token("storefront", json!({})));
    let claims = token.rsplit_once('.').unwrap().0;
    let forged = format!("{claims}.{}", other.rsplit_once('.').unwrap().1);
    assert_eq!(site.reason(&forged, nobody).await, Reason::CredentialSignature);
}

#[tokio::test]
async fn who_acts_is_registered_and_of_the_issuers_own() {
    let site = Site::new();
    let act = |name: &str| site.token("storefront", json!({"act": {"sub": id(name)}}));
    let found = site.judge(&act("agent"), Evidence::default()).await.unwrap();
    assert_eq!(found.actor.unwrap().as_str(), id("agent"));
    assert_eq!(site.reason(&act("stranger"), Evidence::default()).await, Reason::CredentialSubject);
    let foreign = site.token("storefront", json!({"act": {"sub": "spiffe://other.example/agent"}}));
    assert_eq!(site.reason(&foreign, Evidence::default()).await, Reason::CredentialSubject);
}

#[tokio::test]
async fn both_say_who_may_act_for_whom() {
    let registered = |name: &str, delegators: &[&str], actors: &[&str]| {
        json!({
            "id": id(name), "kind": "agent", "owner": "team", "environment": "production",
            "delegators": delegators, "actors": actors,
        })
    };
    for (delegators, actors, counts) in [
        (&["spiffe://test.example/storefront"][..], &["spiffe://test.example/*"][..], true),
        (&["spiffe://test.example/ci"], &[], false),
        (&[], &["spiffe://test.example/ci"], false),
    ] {
        let mut site = Site::new();
        let token = site.token("storefront", json!({"act": {"sub": id("agent")}}));
        let changes = vec![
            site.estate.put(Kind::Workload, &registered("agent", delegators, &[])),
            site.estate.put(Kind::Workload, &registered("storefront", &[], actors)),
        ];
        site.commit(changes);
        match site.judge(&token, Evidence::default()).await {
            Ok(found) => assert!(counts && found.actor.is_some(), "{delegators:?} {actors:?}"),
            Err(refusal) => assert!(!counts && refusal.reason == Reason::CredentialSubject, "{refusal}"),
        }
    }
}

#[tokio::test]
async fn a_bound_token_counts_only_with_all_that_it_is_bound_to() {
    let site = Site::new();
    let holder = KeyHolder::new();
    let key: [u8; 32] = URL_SAFE_NO_PAD.decode(holder.thumbprint()).unwrap().try_into().unwrap();
    let certificate = [7; 32];
    let both = json!({"jkt": holder.thumbprint(), "x5t#S256": URL_SAFE_NO_PAD.encode(certificate)});
    let token = site.token("agent", json!({ "cnf": both }));
    let shown = |certificate, dpop_key| Evidence { certificate, dpop_key };
    assert!(site.judge(&token, shown(Some(certificate), Some(key))).await.is_ok());
    for (evidence, reason) in [
        (shown(None, None), Reason::CredentialPopMissing),
        (shown(Some(certificate), None), Reason::CredentialPopMissing),
        (shown(None, Some(key)), Reason::CredentialPopMissing),
        (shown(Some([8; 32]), Some(key)), Reason::CredentialPopInvalid),
        (shown(Some(certificate), Some([8; 32])), Reason::CredentialPopInvalid),
    ] {
        assert_eq!(site.reason(&token, evidence).await, reason, "{evidence:?}");
    }
}

#[tokio::test]
async fn what_was_revoked_since_does_not_count() {
    for (target, reason) in [
        (json!({"kind": "token", "issuer": "test", "jti": "jti-storefront"}), Reason::RevokedToken),
        (json!({"kind": "workload", "workload": id("storefront")}), Reason::RevokedWorkload),
        (json!({"kind": "issuer", "issuer": "test"}), Reason::RevokedIssuer),
        (json!({"kind": "key", "issuer": "test", "kid": "key-1"}), Reason::RevokedKey),
        (json!({"kind": "delegator", "workload": id("storefront")}), Reason::RevokedDelegator),
        (json!({"kind": "workload", "workload": id("agent")}), Reason::RevokedWorkload),
        (
            json!({"kind": "tokens_before", "workload": id("agent"), "before": "2027-02-01T00:00:00.000Z"}),
            Reason::RevokedToken,
        ),
    ] {
        let mut site = Site::new();
        let token = site.token("storefront", json!({"act": {"sub": id("agent")}}));
        assert!(site.judge(&token, Evidence::default()).await.is_ok());
        let change = site.estate.revoke(&target);
        site.commit(vec![change]);
        assert_eq!(site.reason(&token, Evidence::default()).await, reason, "{target}");
    }
}

#[tokio::test]
async fn a_token_of_a_control_plane_buys_nothing_from_it() {
    let mut site = Site::new();
    let signer = TokenSigner::generate_es256("own").unwrap();
    let mut jwk = signer.public_jwk();
    jwk["use"] = json!("sig");
    let issuer = json!({"name": "own", "kind": "portcullis", "issuer": HERE, "jwks": {"keys": [jwk]}});
    let change = site.estate.put(Kind::Issuer, &issuer);
    site.commit(vec![change]);
    let own = json!({"aud": HERE, "iss": HERE, "client_id": id("agent"), "jti": "1", "scope": "read",
                     "grant_id": uuid::Uuid::new_v4()});
    let claims = changed(site.estate.claims("agent"), &own);
    let token = signer.sign_with_header(&json!({"typ": "at+jwt", "alg": "ES256", "kid": "own"}), &claims).unwrap();
    let refusal = site.judge(&token, Evidence::default()).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::CredentialTyp, "{refusal}");
    assert!(refusal.detail.contains("for nothing else"));
}

#[tokio::test]
async fn a_mapped_workload_is_found_as_soon_as_it_is_registered() {
    let mut site = Site::new();
    let keys = json!({ "keys": [changed(site.estate.signer.public_jwk(), &json!({"use": "sig"}))] });
    let issuer =
        json!({"name": "idp", "kind": "oidc", "issuer": "https://idp.example", "audiences": ["a"], "jwks": keys});
    let change = site.estate.put(Kind::Issuer, &issuer);
    site.commit(vec![change]);
    let token = site.token("agent", json!({"iss": "https://idp.example", "sub": "deploy"}));
    assert_eq!(site.reason(&token, Evidence::default()).await, Reason::CredentialSubject);
    let workload = json!({
        "id": id("deploy"), "kind": "pipeline", "owner": "team", "environment": "production",
        "credentials": [{"issuer": "idp", "when": {"sub": "deploy"}}],
    });
    let change = site.estate.put(Kind::Workload, &workload);
    site.commit(vec![change]);
    let found = site.judge(&token, Evidence::default()).await.unwrap();
    assert_eq!(found.workload.as_str(), id("deploy"));
}
