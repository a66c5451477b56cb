//! Tests of token exchange over the real store: what is issued, what bounds it, and everything that is refused.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::clock::{Clock as _, ManualClock};
use crate::control::core::{Intent, Plan};
use crate::control::index::Index;
use crate::control::keys::KeysConfig;
use crate::control::store::{Expect, SqliteStore, Write};
use crate::control::token_keys::TokenKeysConfig;
use crate::control::{CommitError, CoreConfig};
use crate::credential::{IssuerSet, TokenSigner, VerifiedToken, verify};
use crate::object::Object;
use crate::telemetry::ControlMetrics;
use crate::testing::{Estate, KeyHolder, changed};

const HERE: &str = "https://control.example";
const ENDPOINT: &str = "https://control.example/v1/token";

struct Site {
    _directory: TempDir,
    estate: Estate,
    core: Arc<Core>,
    exchange: Arc<Exchange>,
}

impl Site {
    async fn new() -> Self {
        Self::with(1000).await
    }

    async fn with(per_minute: u32) -> Self {
        let estate = Estate::new();
        let directory = TempDir::new().unwrap();
        let now = estate.clock.now().wall;
        let store = Arc::new(SqliteStore::open(directory.path(), now).await.unwrap());
        let clock: Arc<ManualClock> = Arc::clone(&estate.clock);
        let core = Core::open(store, clock, CoreConfig::default()).await.unwrap();
        let config = TokenKeysConfig {
            name: "portcullis".to_owned(),
            issuer: HERE.to_owned(),
            rotate_every: Duration::from_secs(86_400),
            cache: Duration::from_secs(300),
            max_staleness: Duration::from_secs(300),
        };
        let keys = TokenKeys::open(Arc::clone(&core), directory.path(), config).await.unwrap();
        let metrics = Arc::new(ControlMetrics::new().unwrap());
        let issuers = Keys::new(Arc::clone(&core), metrics, KeysConfig::default());
        let reviews = TokenReviewSettings::default();
        let config = ExchangeConfig { audiences: vec![HERE.to_owned()], per_minute, reviews };
        let exchange = Exchange::new(Arc::clone(&core), keys, issuers, config);
        let site = Self { _directory: directory, estate, core, exchange };
        for (kind, document) in [
            (
                Kind::Issuer,
                json!({
                    "name": "test", "kind": "spiffe", "trust_domain": "test.example", "audiences": ["a"],
                    "max_delegation_depth": 2, "jwks": {"keys": [site.estate.signer.public_jwk()]},
                }),
            ),
            (Kind::Workload, workload("agent", json!({}))),
            (Kind::Workload, workload("user", json!({"actors": [Estate::id("agent"), Estate::id("loner")]}))),
            (Kind::Workload, workload("loner", json!({}))),
            (
                Kind::Service,
                json!({
                    "name": "payments", "hosts": ["pay.example"], "origins": ["https://pay.example"],
                    "routes": [{"name": "refunds", "path": "/refunds/{*}", "grants": {"max_duration_seconds": 900}}],
                }),
            ),
            (Kind::Service, json!({"name": "catalog", "routes": [{"name": "items", "path": "/catalog/{*}"}]})),
        ] {
            site.put(&Object::parse(kind, document.to_string().as_bytes()).unwrap()).await;
        }
        site
    }

    async fn put(&self, object: &Object) {
        let intent = Intent::system("test", "test");
        let plan = |_: &Index| Ok::<_, CommitError>(Plan::new(()).write(Write::put(object, Expect::Any)));
        self.core.transact(&intent, plan).await.unwrap();
    }

    async fn grant(&mut self, workload: &str, resource: &str, actions: &[&str], secs: u64) -> Grant {
        let (grant, _) = self.estate.grant(workload, resource, actions, None, secs);
        self.put(&Object::Grant(Box::new(grant.clone()))).await;
        grant
    }

    fn token(&self, name: &str, changes: Value) -> String {
        let claims = changed(self.estate.claims(name), &json!({ "aud": [HERE] }));
        self.estate.signer.sign(&changed(claims, &changes)).unwrap()
    }

    async fn ask(&self, subject: &str, rest: &str) -> Result<Issued, Refused> {
        self.ask_with(subject, rest, Shown::default()).await
    }

    async fn ask_with(&self, subject: &str, rest: &str, shown: Shown) -> Result<Issued, Refused> {
        let form = format!(
            "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token={subject}\
             &subject_token_type=urn:ietf:params:oauth:token-type:jwt&{rest}"
        );
        self.exchange.exchange(Asked::parse(form.as_bytes())?, shown).await
    }

    async fn refused(&self, subject: &str, rest: &str) -> (&'static str, &'static str) {
        let refused = self.ask(subject, rest).await.unwrap_err();
        assert!(!refused.description.contains(subject), "a refusal repeats a token");
        (refused.error, refused.reason.unwrap_or(""))
    }

    /// What an enforcement point makes of a token.
    fn verified(&self, issued: &Issued) -> VerifiedToken {
        let stored = self.core.index().list(Kind::Issuer);
        let (set, _) = IssuerSet::compile(stored.iter().filter_map(|s| rules::as_issuer(s)));
        verify(issued.token.reveal(), &set, self.estate.clock.now().wall).unwrap()
    }

    fn now(&self) -> u64 {
        self.estate.clock.now().wall.as_secs()
    }
}

fn workload(name: &str, changes: Value) -> Value {
    let document = json!({"id": Estate::id(name), "kind": "service", "owner": "team", "environment": "production"});
    changed(document, &changes)
}

fn actor(token: &str) -> String {
    format!("audience=payments&actor_token={token}&actor_token_type=urn:ietf:params:oauth:token-type:jwt")
}

#[tokio::test]
async fn a_token_is_for_one_grant_one_service_some_actions_and_five_minutes() {
    let mut site = Site::new().await;
    let grant = site.grant("agent", "payments/refunds", &["read", "write"], 900).await;
    let subject = site.token("agent", json!({}));
    let issued = site.ask(&subject, "audience=payments&scope=write").await.unwrap();
    assert_eq!((issued.token_type, issued.expires_in, issued.scope.as_str()), ("Bearer", 300, "write"));
    let token = site.verified(&issued);
    let tie = token.tie.as_deref().unwrap();
    assert_eq!((tie.grant, &*tie.service, tie.scope.len()), (grant.id, "payments", 1));
    assert_eq!(token.workload.unwrap().as_str(), Estate::id("agent"));
    assert!(token.actors.is_empty() && token.confirmation.is_none());
    assert!(!format!("{issued:?}").contains(issued.token.reveal()));
    let by_url = site.ask(&subject, "resource=https://pay.example/refunds/7").await.unwrap();
    assert_eq!(by_url.scope, "read write", "without a scope, what the grant gives");
    // Each is in the audit trail by the time it is handed out, and none of them can be read there.
    let trail = site.core.store().audit_since(0, 1000).await.unwrap();
    let records: Vec<&str> = trail.iter().map(|row| &*row.sealed.text).filter(|r| r.contains("token.issue")).collect();
    assert_eq!(records.len(), 2);
    let jti = token.jti.as_deref().unwrap();
    assert!(records[0].contains(jti) && records[0].contains(&grant.id.to_string()), "{}", records[0]);
    assert!(records[0].contains(&format!(r#""author":"{}""#, Estate::id("agent"))), "{}", records[0]);
    assert!(!records.iter().any(|record| record.contains(issued.token.reveal())));
    // What was exchanged buys nothing more.
    assert_eq!(site.refused(issued.token.reveal(), "audience=payments").await, ("invalid_request", "credential"));
}

#[tokio::test]
async fn a_token_ends_with_its_grant_and_with_the_tokens_that_it_was_made_of() {
    let mut site = Site::new().await;
    site.grant("agent", "payments", &["write"], 120).await;
    let subject = site.token("agent", json!({}));
    assert_eq!(site.ask(&subject, "audience=payments").await.unwrap().expires_in, 120);
    let short = site.token("agent", json!({"exp": site.now() + 60}));
    assert_eq!(site.ask(&short, "audience=payments").await.unwrap().expires_in, 60);
    site.estate.clock.advance(Duration::from_millis(119_500));
    let refused = site.ask(&site.token("agent", json!({})), "audience=payments").await;
    assert!(refused.is_err() || refused.unwrap().expires_in == 1);
    site.estate.clock.advance(Duration::from_millis(600));
    let late = site.refused(&site.token("agent", json!({})), "audience=payments").await;
    assert_eq!(late, ("access_denied", "entitlement.grant_expired"));
}

#[tokio::test]
async fn without_a_grant_there_is_a_request_to_post_and_with_one_that_waits_there_is_that() {
    let mut site = Site::new().await;
    let subject = site.token("agent", json!({}));
    let refused = site.ask(&subject, "audience=payments&scope=write").await.unwrap_err();
    assert_eq!((refused.status, refused.error, refused.reason), (400, "access_denied", Some("entitlement.no_grant")));
    let request = *refused.grant_request.unwrap();
    assert_eq!((request.duration_seconds, request.actions.as_slice()), (900, ["write".to_owned()].as_slice()));
    let asked = crate::grant::new_request(request, "alice", site.estate.clock.now().wall).unwrap();
    rules::grantable(site.core.index(), &asked).unwrap();
    site.put(&Object::Grant(Box::new(asked.clone()))).await;
    let waits = site.ask(&subject, "audience=payments&scope=write").await.unwrap_err();
    assert_eq!((waits.error, waits.grant), ("authorization_pending", Some(asked.id)));
    let none = site.ask(&subject, "audience=payments&scope=fly").await.unwrap_err();
    assert!(none.grant_request.is_none(), "there is no such action to be granted");
    let granted = site.grant("agent", "payments", &["read"], 60).await;
    let other = format!("audience=payments&scope=write&grant_id={}", granted.id);
    assert_eq!(site.refused(&subject, &other).await, ("access_denied", "entitlement.scope"));
    for rest in [
        "audience=nothing",
        "resource=https://elsewhere.example/",
        "resource=pay.example",
        "resource=ftp://pay.example",
    ] {
        assert_eq!(site.refused(&subject, rest).await.0, "invalid_target", "{rest}");
    }
}

#[tokio::test]
async fn only_the_good_token_of_a_workload_in_use_is_exchanged() {
    let mut site = Site::new().await;
    site.grant("agent", "payments", &["write"], 900).await;
    let good = site.token("agent", json!({}));
    let elsewhere = site.token("agent", json!({"aud": ["a"]}));
    let expired = site.token("agent", json!({"exp": site.now() - 1}));
    let stranger = site.token("stranger", json!({}));
    let claims = changed(site.estate.claims("agent"), &json!({ "aud": [HERE] }));
    let forged = TokenSigner::generate_es256("key-1").unwrap().sign(&claims).unwrap();
    for token in [&*elsewhere, &expired, &stranger, "a.b.c", &forged] {
        assert_eq!(site.refused(token, "audience=payments").await, ("invalid_request", "credential"), "{token}");
    }
    let revoked = json!({"id": Uuid::new_v4(), "target": {"kind": "token", "issuer": "test", "jti": "jti-agent"},
                         "created_by": "bob", "created_at": site.estate.clock.now().wall});
    let suspended =
        json!({"suspended": {"revocation": Uuid::new_v4(), "by": "bob", "at": site.estate.clock.now().wall}});
    let suspended = workload("agent", suspended);
    site.put(&Object::parse(Kind::Workload, suspended.to_string().as_bytes()).unwrap()).await;
    assert_eq!(site.refused(&good, "audience=payments").await, ("access_denied", "revoked.workload"));
    site.put(&Object::parse(Kind::Workload, workload("agent", json!({})).to_string().as_bytes()).unwrap()).await;
    site.ask(&good, "audience=payments").await.unwrap();
    site.put(&Object::parse(Kind::Revocation, revoked.to_string().as_bytes()).unwrap()).await;
    assert_eq!(site.refused(&good, "audience=payments").await, ("invalid_request", "revoked"));
}

#[tokio::test]
async fn who_acts_is_in_the_token_and_only_by_somebodys_word() {
    let mut site = Site::new().await;
    site.grant("user", "payments", &["write"], 900).await;
    site.grant("loner", "payments", &["write"], 900).await;
    let (user, agent) = (site.token("user", json!({})), site.token("agent", json!({})));
    let issued = site.ask(&user, &actor(&agent)).await.unwrap();
    let token = site.verified(&issued);
    assert_eq!(token.workload.as_ref().unwrap().as_str(), Estate::id("user"));
    assert_eq!(&*token.actors[0].subject, Estate::id("agent"));
    // Nobody says that the agent may act for this one.
    let loner = site.token("loner", json!({}));
    assert_eq!(site.refused(&loner, &actor(&agent)).await, ("access_denied", "revoked.delegator"));
    let named = site.token("loner", json!({"may_act": {"sub": Estate::id("agent")}}));
    site.ask(&named, &actor(&agent)).await.unwrap();
    let another = site.token("user", json!({"may_act": {"sub": Estate::id("ci")}}));
    assert_eq!(site.refused(&another, &actor(&agent)).await, ("access_denied", "revoked.delegator"));
    // Who acted already stays behind whoever acts now.
    let chained = site.token("user", json!({"act": {"sub": Estate::id("loner")}}));
    let chain = site.verified(&site.ask(&chained, &actor(&agent)).await.unwrap()).actors;
    let chain: Vec<&str> = chain.iter().map(|a| &*a.subject).collect();
    assert_eq!(chain, [Estate::id("agent"), Estate::id("loner")]);
    // Whoever acts for the actor is not named by anybody.
    let behind = site.token("agent", json!({"act": {"sub": Estate::id("loner")}}));
    assert_eq!(site.refused(&user, &actor(&behind)).await, ("access_denied", "revoked.delegator"));
    // The life of the actor's token counts as well.
    let short = site.token("agent", json!({"exp": site.now() + 30}));
    assert_eq!(site.ask(&user, &actor(&short)).await.unwrap().expires_in, 30);
    // Once nobody may act for it any more, nobody does by a token of their own either.
    let target = json!({ "kind": "delegator", "workload": Estate::id("user") });
    let revocation = json!({"id": Uuid::new_v4(), "target": target, "created_by": "bob", "created_at": site.estate.clock.now().wall});
    site.put(&Object::parse(Kind::Revocation, revocation.to_string().as_bytes()).unwrap()).await;
    assert_eq!(site.refused(&user, &actor(&agent)).await, ("invalid_request", "revoked"));
    site.ask(&user, "audience=payments").await.unwrap();
}

#[tokio::test]
async fn a_token_is_bound_to_the_key_that_its_request_was_proven_with() {
    let mut site = Site::new().await;
    site.grant("agent", "payments", &["write"], 900).await;
    let (subject, client) = (site.token("agent", json!({})), KeyHolder::new());
    let now = site.estate.clock.now().wall;
    let proof =
        |uri: &str| client.dpop(&changed(KeyHolder::dpop_claims("POST", uri, "", now), &json!({ "ath": null })));
    let shown = |proof: &str| Shown { dpop: Some(proof.to_owned()), ..Shown::default() };
    let good = proof(ENDPOINT);
    let issued = site.ask_with(&subject, "audience=payments", shown(&good)).await.unwrap();
    assert_eq!(issued.token_type, "DPoP");
    let bound = site.verified(&issued).confirmation.unwrap();
    assert_eq!(URL_SAFE_NO_PAD.encode(bound.dpop_thumbprint().unwrap()), client.thumbprint());
    let again = site.ask_with(&subject, "audience=payments", shown(&good)).await.unwrap_err();
    assert_eq!(again.error, "invalid_dpop_proof", "used up");
    let elsewhere = proof("https://pay.example/v1/token");
    let refused = site.ask_with(&subject, "audience=payments", shown(&elsewhere)).await.unwrap_err();
    assert_eq!(refused.error, "invalid_dpop_proof");
    // A token that is bound itself is not exchanged without its key.
    let own = site.token("agent", json!({"cnf": {"jkt": client.thumbprint()}}));
    assert_eq!(site.refused(&own, "audience=payments").await, ("invalid_request", "credential"));
    site.ask_with(&own, "audience=payments", shown(&proof(ENDPOINT))).await.unwrap();
    let certified = Shown { certificate: Some([7; 32]), ..Shown::default() };
    let issued = site.ask_with(&subject, "audience=payments", certified).await.unwrap();
    assert!(site.verified(&issued).confirmation.unwrap().is_certificate(&[7; 32]));
}

#[tokio::test]
async fn a_workload_gets_so_many_a_minute_and_nobody_any_without_a_key() {
    let mut site = Site::with(2).await;
    site.grant("agent", "payments", &["write"], 900).await;
    site.grant("user", "payments", &["write"], 900).await;
    let subject = site.token("agent", json!({}));
    for _ in 0..2 {
        site.ask(&subject, "audience=payments").await.unwrap();
    }
    let refused = site.ask(&subject, "audience=payments").await.unwrap_err();
    assert_eq!((refused.status, refused.error), (429, "slow_down"));
    assert_eq!(refused.retry_after, Some(Duration::from_secs(30)));
    let user = site.token("user", json!({}));
    site.ask(&user, "audience=payments").await.unwrap();
    let kid = site.exchange.keys().signer().unwrap().kid().to_owned();
    let intent = Intent::system("test", "test");
    site.exchange.keys().revoke(&intent, &kid, "").await.unwrap();
    let refused = site.ask(&user, "audience=payments").await.unwrap_err();
    assert_eq!((refused.status, refused.error), (503, "temporarily_unavailable"));
}
