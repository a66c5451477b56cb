//! Transaction tokens: context for policy, never a credential.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::authz::Reason;
use crate::cache::{CacheSizes, Gate};
use crate::clock::Clock;
use crate::credential::TokenSigner;
use crate::object::Kind;
use crate::state::State;
use crate::testing::{Estate, changed, request};

/// The catalog may be read as part of a transaction for orders alone.
const POLICIES: &str = r#"
@id("orders") permit(principal, action, resource) when {
    context has transaction && context.transaction has scope && context.transaction.scope == "orders"
};
@id("not-mallory") forbid(principal, action, resource) when {
    context has transaction && context.transaction.subject == "mallory"
};
"#;

const TRUST_DOMAIN: &str = "https://trust-domain.example";

struct Desk {
    estate: Estate,
    state: Arc<State>,
    gate: Gate,
    service: TokenSigner,
}

impl Desk {
    fn new() -> Self {
        let mut estate = Estate::new();
        let service = TokenSigner::generate_es256("tts-1").unwrap();
        let key = changed(service.public_jwk(), &json!({"use": "sig"}));
        estate.put(
            Kind::Issuer,
            &json!({
                "name": "transactions", "kind": "oidc", "issuer": "https://tts.example", "token_type": "txntoken+jwt",
                "audiences": [TRUST_DOMAIN], "jwks": {"keys": [key]},
            }),
        );
        estate.put_policies(POLICIES);
        let state = estate.state();
        let sizes = CacheSizes { tokens: 100, decisions: 100 };
        let gate = Gate::new(Arc::clone(&state), Arc::clone(&estate.clock) as _, sizes);
        Self { estate, state, gate, service }
    }

    fn txn_token(&self, changes: &Value) -> String {
        self.txn_token_of("txntoken+jwt", changes)
    }

    fn txn_token_of(&self, typ: &str, changes: &Value) -> String {
        let now = self.estate.clock.now().wall.as_secs();
        let claims = json!({
            "iss": "https://tts.example", "aud": TRUST_DOMAIN, "iat": now, "exp": now + 30, "txn": "t-1", "sub": "alice",
            "scope": "orders",
        });
        let header = json!({"alg": "ES256", "kid": "tts-1", "typ": typ});
        self.service.sign_with_header(&header, &changed(claims, changes)).unwrap()
    }

    fn send(&self, headers: &[(&str, String)]) -> Reason {
        let asked = request("GET", "/catalog/1", headers);
        let evaluated = self.gate.explain(&asked).0.reason;
        for _ in 0..2 {
            assert_eq!(self.gate.check(&asked).reason, evaluated, "through the caches");
        }
        evaluated
    }

    fn judge(&self, txn_token: &str) -> Reason {
        let bearer = format!("Bearer {}", self.estate.token("agent"));
        self.send(&[("authorization", bearer), ("txn-token", txn_token.to_owned())])
    }
}

#[test]
fn policy_reads_the_transaction() {
    let desk = Desk::new();
    assert_eq!(desk.judge(&desk.txn_token(&json!({}))), Reason::AllowPolicy);
    assert_eq!(desk.judge(&desk.txn_token(&json!({"scope": null, "purp": "orders"}))), Reason::AllowPolicy);
    assert_eq!(desk.judge(&desk.txn_token(&json!({"scope": "refunds"}))), Reason::PolicyNoMatch);
    assert_eq!(desk.judge(&desk.txn_token(&json!({"scope": null}))), Reason::PolicyNoMatch);
    assert_eq!(desk.judge(&desk.txn_token(&json!({"sub": "mallory"}))), Reason::PolicyExplicitDeny);
    // Warm as well as cold: one transaction's answer is not another's.
    assert_eq!(desk.judge(&desk.txn_token(&json!({}))), Reason::AllowPolicy);
    assert_eq!(
        desk.send(&[("authorization", format!("Bearer {}", desk.estate.token("agent")))]),
        Reason::PolicyNoMatch
    );
}

#[test]
fn what_is_wrong_with_it_makes_it_absent() {
    let mut desk = Desk::new();
    let now = desk.estate.clock.now().wall.as_secs();
    let other = TokenSigner::generate_es256("tts-1").unwrap();
    let good = desk.txn_token(&json!({}));
    let absent = [
        String::new(),
        "x.y.z".to_owned(),
        format!("{good}A"),
        other.sign_with_header(&json!({"alg": "ES256", "kid": "tts-1", "typ": "txntoken+jwt"}), &json!({})).unwrap(),
        desk.txn_token(&json!({"aud": "https://other-domain.example"})),
        desk.txn_token(&json!({"iss": "https://other.example"})),
        desk.txn_token(&json!({"exp": now})),
        desk.txn_token(&json!({"exp": now + 7200})),
        desk.txn_token(&json!({"txn": null})),
        desk.txn_token(&json!({"txn": ""})),
        desk.txn_token(&json!({"txn": 1})),
        desk.txn_token(&json!({"scope": ["orders"]})),
        desk.txn_token(&json!({"scope": "o".repeat(2000)})),
        desk.txn_token(&json!({"iat": null})),
        desk.txn_token(&json!({"act": {"sub": "bob"}})),
        desk.txn_token_of("JWT", &json!({})),
        desk.txn_token_of("at+jwt", &json!({})),
        desk.estate.token("agent"),
    ];
    for token in &absent {
        assert_eq!(desk.judge(token), Reason::PolicyNoMatch, "{token}");
    }
    assert_eq!(desk.judge(&good), Reason::AllowPolicy);
    desk.estate.clock.advance(Duration::from_secs(30));
    assert_eq!(desk.judge(&good), Reason::PolicyNoMatch, "expired, also where it is cached");
    let renewed = desk.txn_token(&json!({"jti": "txn-7"}));
    assert_eq!(desk.judge(&renewed), Reason::AllowPolicy);
    desk.estate.revoke(&json!({"kind": "token", "issuer": "transactions", "jti": "txn-7"}));
    desk.state.publish(Arc::new(desk.estate.snapshot()));
    assert_eq!(desk.judge(&renewed), Reason::RevokedToken);
}

#[test]
fn invariant_12_revoking_it_never_turns_a_deny_into_an_allow() {
    let mut desk = Desk::new();
    desk.estate.put_policies(&format!("{POLICIES}{}", r#"@id("all") permit(principal, action, resource);"#));
    desk.state.publish(Arc::new(desk.estate.snapshot()));
    let mallory = desk.txn_token(&json!({"sub": "mallory", "jti": "txn-m"}));
    assert_eq!(desk.judge(&mallory), Reason::PolicyExplicitDeny);
    desk.estate.revoke(&json!({"kind": "token", "issuer": "transactions", "jti": "txn-m"}));
    desk.state.publish(Arc::new(desk.estate.snapshot()));
    assert_eq!(desk.judge(&mallory), Reason::RevokedToken);
}

#[test]
fn it_authenticates_nobody() {
    let desk = Desk::new();
    let token = desk.txn_token(&json!({}));
    assert_eq!(desk.send(&[("txn-token", token.clone())]), Reason::CredentialMissing);
    // Known to the cache as a transaction token, and still no credential; nor the other way.
    assert_eq!(desk.judge(&token), Reason::AllowPolicy);
    assert_eq!(desk.send(&[("authorization", format!("Bearer {token}"))]), Reason::CredentialTyp);
    let sub = desk.txn_token(&json!({"sub": Estate::id("agent")}));
    assert_eq!(desk.send(&[("authorization", format!("Bearer {sub}"))]), Reason::CredentialTyp);
    assert_eq!(desk.judge(&token), Reason::AllowPolicy);
    let plain = desk.txn_token_of("JWT", &json!({}));
    assert_eq!(desk.send(&[("authorization", format!("Bearer {plain}"))]), Reason::CredentialIssuerUntrusted);
}

#[test]
fn where_no_policy_reads_it_it_is_not_looked_at() {
    let mut desk = Desk::new();
    desk.estate.put_policies(r#"@id("all") permit(principal, action, resource);"#);
    desk.state.publish(Arc::new(desk.estate.snapshot()));
    assert_eq!(desk.judge(&desk.txn_token(&json!({"sub": "mallory"}))), Reason::AllowPolicy);
    let bearer = ("authorization", format!("Bearer {}", desk.estate.token("agent")));
    assert_eq!(desk.send(std::slice::from_ref(&bearer)), Reason::AllowPolicy);
    let misses = desk.gate.token_cache().misses;
    assert_eq!(desk.send(&[bearer, ("txn-token", desk.txn_token(&json!({})))]), Reason::AllowPolicy);
    assert_eq!(desk.gate.token_cache().misses, misses, "nobody asked for it");
}
