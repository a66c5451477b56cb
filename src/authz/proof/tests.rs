//! Proofs of possession through the gate: each check of RFC 9449, section 4.3, by its number; replays, nonces, caches.
//!
//! `credential/proof/tests.rs` holds what can be told of a proof alone.
//! Long because each check is a test of its own.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::*;
use crate::authz::{Decision, problem};
use crate::cache::{CacheSizes, Gate};
use crate::clock::Clock;
use crate::object::Kind;
use crate::state::State;
use crate::testing::{AUDIENCE, Estate, KeyHolder, changed, digest, request};

mod checks;
mod nonces;
mod wimse;

const URI: &str = "https://shop.example/catalog/1";

/// The estate behind a gate, its clock past the first minute, and a client with a key and a token bound to it.
struct Shop {
    estate: Estate,
    state: Arc<State>,
    gate: Gate,
    client: KeyHolder,
    token: String,
}

fn gate(estate: &Estate, state: &Arc<State>) -> Gate {
    Gate::new(Arc::clone(state), Arc::clone(&estate.clock) as _, CacheSizes { tokens: 100, decisions: 100 })
}

impl Shop {
    fn new() -> Self {
        Self::with_policy(&json!({}))
    }

    /// With this `proof` policy of the issuer.
    fn with_policy(policy: &Value) -> Self {
        let mut estate = Estate::new();
        estate.put(
            Kind::Issuer,
            &json!({
                "name": "test", "kind": "spiffe", "trust_domain": "test.example", "audiences": [AUDIENCE],
                "jwks": {"keys": [estate.signer.public_jwk()]}, "proof": policy,
            }),
        );
        let state = estate.state();
        let gate = gate(&estate, &state);
        estate.clock.advance(Duration::from_secs(100));
        let client = KeyHolder::new();
        let token = bound(&estate, &json!({"jkt": client.thumbprint()}));
        Self { estate, state, gate, client, token }
    }

    fn now(&self) -> Timestamp {
        self.estate.clock.now().wall
    }

    /// A good proof with claims changed.
    fn proof(&self, changes: &Value) -> String {
        let claims = KeyHolder::dpop_claims("GET", URI, &self.token, self.now());
        self.client.dpop(&changed(claims, changes))
    }

    /// A good proof with members of its header changed.
    fn proof_with_header(&self, changes: &Value) -> String {
        let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": self.client.jwk()});
        let claims = KeyHolder::dpop_claims("GET", URI, &self.token, self.now());
        self.client.sign(&changed(header, changes), &claims)
    }

    fn send(&self, headers: &[(&str, String)]) -> Decision {
        let mut request = request("GET", "/catalog/1", headers);
        request.door = crate::authz::Door::ExtAuthz;
        self.gate.check(&request)
    }

    /// What a request with the token and this proof gets.
    fn judge(&self, proof: &str) -> Reason {
        self.send(&[("authorization", format!("DPoP {}", self.token)), ("dpop", proof.to_owned())]).reason
    }

    #[track_caller]
    fn refuses(&self, proof: &str) {
        assert_eq!(self.judge(proof), Reason::CredentialPopInvalid);
    }
}

/// A good token of `storefront` with this `cnf`.
fn bound(estate: &Estate, cnf: &Value) -> String {
    estate.signer.sign(&changed(estate.claims("storefront"), &json!({"cnf": cnf}))).unwrap()
}

#[test]
fn a_good_proof_lets_a_bound_token_count() {
    let shop = Shop::new();
    assert_eq!(shop.judge(&shop.proof(&json!({}))), Reason::AllowPolicy);
    assert_eq!(shop.judge(&shop.proof(&json!({"htu": "HTTPS://Shop.Example:443/catalog/1?q#f"}))), Reason::AllowPolicy);
    assert_eq!(shop.judge(&shop.proof(&json!({"more": {"a": [1.5]}}))), Reason::AllowPolicy, "more claims are ignored");
}

#[test]
fn a_bound_token_is_no_bearer_token() {
    let shop = Shop::new();
    let bearer = ("authorization", format!("Bearer {}", shop.token));
    let denied = shop.send(std::slice::from_ref(&bearer));
    assert_eq!(denied.reason, Reason::CredentialPopMissing);
    assert!(challenge_of(&denied).starts_with("DPoP "), "{}", challenge_of(&denied));
    // Nor with a proof beside it (RFC 9449, section 7.2).
    assert_eq!(shop.send(&[bearer, ("dpop", shop.proof(&json!({})))]).reason, Reason::CredentialPopMissing);
}

#[test]
fn an_unbound_token_is_no_dpop_token_and_a_proof_beside_it_is_ignored() {
    let shop = Shop::new();
    let token = shop.estate.token("storefront");
    let claims = KeyHolder::dpop_claims("GET", URI, &token, shop.now());
    let proof = ("dpop", shop.client.dpop(&claims));
    let as_dpop = [("authorization", format!("DPoP {token}")), proof.clone()];
    assert_eq!(shop.send(&as_dpop).reason, Reason::CredentialPopInvalid);
    let as_bearer = [("authorization", format!("Bearer {token}")), proof];
    assert_eq!(shop.send(&as_bearer).reason, Reason::AllowPolicy);
    assert_eq!(shop.send(&as_bearer).reason, Reason::AllowPolicy);
    assert_eq!(shop.gate.used_proofs().entries, 0);
}

#[test]
fn a_binding_that_is_not_understood_is_refused() {
    let shop = Shop::new();
    let jkt = shop.client.thumbprint();
    for cnf in [
        json!({}),
        json!({"kid": "x"}),
        json!({"jwe": "x"}),
        json!({"x5t": "x"}),
        json!({"jwk": shop.client.jwk()}),
        json!({"jkt": jkt, "jwk": shop.client.jwk()}),
        json!({"jkt": jkt, "kid": "x"}),
        json!({"jkt": format!("{jkt}=")}),
        json!({"jkt": jkt.clone().split_off(1)}),
        json!({"jkt": 1}),
        json!({"jkt": null}),
        json!({"x5t#S256": ""}),
        json!({"x5t#S256": [jkt]}),
    ] {
        let token = bound(&shop.estate, &cnf);
        let proof = shop.client.dpop(&KeyHolder::dpop_claims("GET", URI, &token, shop.now()));
        for scheme in ["DPoP", "Bearer"] {
            let headers = [("authorization", format!("{scheme} {token}")), ("dpop", proof.clone())];
            assert_eq!(shop.send(&headers).reason, Reason::CredentialPopInvalid, "{scheme} {cnf}");
        }
    }
}

#[test]
fn a_certificate_and_a_key_are_both_needed() {
    let shop = Shop::new();
    let certificate = digest("some certificate");
    for cnf in [json!({"x5t#S256": certificate}), json!({"x5t#S256": certificate, "jkt": shop.client.thumbprint()})] {
        let token = bound(&shop.estate, &cnf);
        let proof = shop.client.dpop(&KeyHolder::dpop_claims("GET", URI, &token, shop.now()));
        for scheme in ["DPoP", "Bearer"] {
            let headers = [("authorization", format!("{scheme} {token}")), ("dpop", proof.clone())];
            assert_eq!(shop.send(&headers).reason, Reason::CredentialPopMissing, "{scheme} {cnf}");
        }
    }
}

#[test]
fn a_certificate_of_the_connection_proves_itself() {
    let shop = Shop::new();
    let der = b"the thumbprint is of the bytes, whatever they are: TLS has proven the key";
    let pem = |der: &[u8]| {
        let body = STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
            .replace('\n', "%0A")
            .replace('+', "%2B")
    };
    let x5t = URL_SAFE_NO_PAD.encode(credential::certificate_thumbprint(der));
    let judge = |token: &str, certificate: Option<&str>, dpop: bool| {
        let proof = shop.client.dpop(&KeyHolder::dpop_claims("GET", URI, token, shop.now()));
        let scheme = if dpop { "DPoP" } else { "Bearer" };
        let headers = [("authorization", format!("{scheme} {token}")), ("dpop", proof)];
        let mut request = request("GET", "/catalog/1", &headers);
        request.door = crate::authz::Door::ExtAuthz;
        request.peer.certificate = certificate;
        shop.gate.check(&request).reason
    };
    let (own, other) = (pem(der), pem(b"another"));
    let token = bound(&shop.estate, &json!({"x5t#S256": x5t}));
    assert_eq!(judge(&token, Some(&own), false), Reason::AllowPolicy);
    assert_eq!(
        judge(&token, Some(&own), false),
        Reason::AllowPolicy,
        "a connection proves itself as often as it is used"
    );
    assert_eq!(judge(&token, Some(&other), false), Reason::CredentialPopInvalid, "also with a warm cache");
    assert_eq!(judge(&token, Some("no certificate"), false), Reason::CredentialMalformed);
    assert_eq!(judge(&token, None, false), Reason::CredentialPopMissing);
    assert_eq!(judge(&token, Some(&own), true), Reason::CredentialPopInvalid, "it is not bound to a key");
    // Certificate and key: both, or nothing.
    let token = bound(&shop.estate, &json!({"x5t#S256": x5t, "jkt": shop.client.thumbprint()}));
    assert_eq!(judge(&token, Some(&own), true), Reason::AllowPolicy);
    assert_eq!(judge(&token, Some(&own), false), Reason::CredentialPopMissing);
    assert_eq!(judge(&token, Some(&other), true), Reason::CredentialPopInvalid);
    assert_eq!(judge(&token, None, true), Reason::CredentialPopMissing);
}

#[test]
fn an_issuer_may_demand_bound_tokens() {
    let shop = Shop::with_policy(&json!({"required": true}));
    let unbound = shop.estate.token("storefront");
    let denied = shop.send(&[("authorization", format!("Bearer {unbound}"))]);
    assert_eq!(denied.reason, Reason::CredentialPopMissing);
    assert_eq!(shop.judge(&shop.proof(&json!({}))), Reason::AllowPolicy);
    let nobody = shop.send(&[]);
    assert_eq!(nobody.reason, Reason::CredentialMissing);
    let challenge = challenge_of(&nobody);
    assert!(challenge.starts_with("DPoP realm=\"portcullis\", algs=\"ES256 "), "{challenge}");
    assert!(challenge.ends_with(", Bearer realm=\"portcullis\""), "{challenge}");
}

#[test]
fn a_proof_counts_once() {
    let shop = Shop::new();
    let proof = shop.proof(&json!({}));
    assert_eq!(shop.judge(&proof), Reason::AllowPolicy);
    for _ in 0..2 {
        assert_eq!(shop.judge(&proof), Reason::CredentialReplay);
    }
    // The same id of the same key, in another proof; of another key it is another id.
    let claims = KeyHolder::dpop_claims("GET", URI, &shop.token, shop.now());
    assert_eq!(shop.judge(&shop.client.dpop(&claims)), Reason::AllowPolicy);
    let later = changed(claims.clone(), &json!({"iat": shop.now().as_secs() - 1}));
    assert_eq!(shop.judge(&shop.client.dpop(&later)), Reason::CredentialReplay);
    let other = KeyHolder::new();
    let token = bound(&shop.estate, &json!({"jkt": other.thumbprint()}));
    let proof = other.dpop(&changed(claims, &json!({"ath": digest(&token)})));
    let headers = [("authorization", format!("DPoP {token}")), ("dpop", proof)];
    assert_eq!(shop.send(&headers).reason, Reason::AllowPolicy);
}

#[test]
fn a_proof_is_remembered_as_long_as_it_would_hold() {
    let shop = Shop::new();
    let proof = shop.proof(&json!({"iat": shop.now().as_secs() + 5}));
    assert_eq!(shop.judge(&proof), Reason::AllowPolicy);
    for _ in 0..64 {
        shop.estate.clock.advance(Duration::from_secs(1));
        shop.state.renew(shop.estate.lease());
        assert_eq!(shop.judge(&proof), Reason::CredentialReplay);
        assert_eq!(shop.judge(&shop.proof(&json!({}))), Reason::AllowPolicy, "others come and go");
    }
    shop.estate.clock.advance(Duration::from_secs(1));
    assert_eq!(shop.judge(&proof), Reason::CredentialPopInvalid, "too old by now");
}

#[test]
fn a_warm_cache_is_no_proof() {
    let shop = Shop::new();
    for _ in 0..3 {
        assert_eq!(shop.judge(&shop.proof(&json!({}))), Reason::AllowPolicy);
    }
    let warm = shop.send(&[("authorization", format!("DPoP {}", shop.token)), ("dpop", shop.proof(&json!({})))]);
    assert!(warm.cached && warm.permit().is_some(), "the answer of policy is cached");
    shop.refuses(&shop.proof(&json!({"htm": "POST"})));
    shop.refuses(&KeyHolder::new().dpop(&KeyHolder::dpop_claims("GET", URI, &shop.token, shop.now())));
    assert_eq!(shop.send(&[("authorization", format!("DPoP {}", shop.token))]).reason, Reason::CredentialPopMissing);
    assert_eq!(shop.send(&[("authorization", format!("Bearer {}", shop.token))]).reason, Reason::CredentialPopMissing);
    // An unbound token of the same workload shares the cached answer, and takes nothing from it but that.
    let unbound = [("authorization", format!("Bearer {}", shop.estate.token("storefront")))];
    assert!(shop.send(&unbound).permit().is_some());
}

#[test]
fn who_only_asks_uses_no_proof_up() {
    let shop = Shop::new();
    let headers = [("authorization", format!("DPoP {}", shop.token)), ("dpop", shop.proof(&json!({})))];
    let asked = request("GET", "/catalog/1", &headers);
    for _ in 0..2 {
        assert_eq!(shop.gate.check(&asked).reason, Reason::AllowPolicy);
        assert_eq!(shop.gate.explain(&asked).0.reason, Reason::AllowPolicy);
    }
    let mut sent = asked.clone();
    sent.door = crate::authz::Door::ExtAuthz;
    assert_eq!(shop.gate.explain(&sent).0.reason, Reason::AllowPolicy, "explaining never uses up");
    assert_eq!(shop.gate.check(&sent).reason, Reason::AllowPolicy);
    assert_eq!(shop.gate.explain(&sent).0.reason, Reason::CredentialReplay);
    assert_eq!(shop.gate.check(&asked).reason, Reason::CredentialReplay);
}

#[test]
fn a_restart_refuses_what_it_may_have_seen() {
    let mut shop = Shop::new();
    let proof = shop.proof(&json!({}));
    assert_eq!(shop.judge(&proof), Reason::AllowPolicy);
    shop.estate.clock.advance(Duration::from_secs(2));
    shop.gate = gate(&shop.estate, &shop.state);
    shop.refuses(&proof);
    assert_eq!(shop.judge(&shop.proof(&json!({}))), Reason::AllowPolicy, "a new one counts at once");
}

#[test]
fn without_room_new_proofs_are_refused_and_old_ones_are_not_forgotten() {
    let mut shop = Shop::new();
    shop.gate = gate(&shop.estate, &shop.state).with_proofs(1, None);
    let proof = shop.proof(&json!({}));
    assert_eq!(shop.judge(&proof), Reason::AllowPolicy);
    assert_eq!(shop.judge(&shop.proof(&json!({}))), Reason::SystemOverload);
    assert_eq!(shop.judge(&proof), Reason::CredentialReplay);
    let unbound = [("authorization", format!("Bearer {}", shop.estate.token("storefront")))];
    assert!(shop.send(&unbound).permit().is_some(), "who needs no proof is not in its way");
    shop.estate.clock.advance(Duration::from_secs(61));
    assert_eq!(shop.judge(&shop.proof(&json!({}))), Reason::AllowPolicy);
}

#[test]
fn a_client_that_uses_its_share_up_is_in_nobodys_way() {
    let mut shop = Shop::new();
    shop.gate = gate(&shop.estate, &shop.state).with_proofs(64, None);
    let busy: Vec<Reason> = (0..400).map(|_| shop.judge(&shop.proof(&json!({})))).collect();
    let allowed = busy.iter().filter(|reason| **reason == Reason::AllowPolicy).count();
    assert_eq!(allowed, 32, "half of the room");
    assert_eq!(busy.last(), Some(&Reason::SystemOverload));
    shop.client = KeyHolder::new();
    shop.token = bound(&shop.estate, &json!({"jkt": shop.client.thumbprint()}));
    assert_eq!(shop.judge(&shop.proof(&json!({}))), Reason::AllowPolicy);
}

#[test]
fn what_is_revoked_takes_no_room() {
    let mut shop = Shop::new();
    shop.estate.revoke(&json!({"kind": "token", "issuer": "test", "jti": "jti-storefront"}));
    shop.state.publish(Arc::new(shop.estate.snapshot()));
    assert_eq!(shop.judge(&shop.proof(&json!({}))), Reason::RevokedToken);
    assert_eq!(shop.gate.used_proofs().entries, 0);
}

#[test]
fn a_stranger_learns_the_family_only() {
    let shop = Shop::new();
    let denied = shop.send(&[("authorization", format!("DPoP {}", shop.token)), ("dpop", "x".to_owned())]);
    assert_eq!(denied.reason, Reason::CredentialPopInvalid);
    let headers = problem::headers(&denied);
    let header = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
    assert_eq!(header("x-portcullis-reason").as_deref(), Some("credential"));
    assert!(header("www-authenticate").unwrap().ends_with("error=\"invalid_token\""));
    assert_eq!(header("dpop-nonce"), None);
}

fn challenge_of(decision: &Decision) -> String {
    let headers = problem::headers(decision);
    headers.iter().find(|(name, _)| *name == "www-authenticate").unwrap().1.to_string()
}

#[test]
fn a_thread_that_others_wait_for_verifies_no_proof_and_uses_none_up() {
    let shop = Shop::new();
    assert_eq!(shop.judge(&shop.proof(&json!({}))), Reason::AllowPolicy, "the token is known by now");
    let deferred = |proof: String| {
        let headers = [("authorization", format!("DPoP {}", shop.token)), ("dpop", proof)];
        let mut request = request("GET", "/catalog/1", &headers);
        request.door = crate::authz::Door::ExtAuthz;
        let first = shop.gate.check_unless_costly(&request).map(|decision| decision.reason);
        (first, shop.gate.check_deferred(&request).reason)
    };
    let good = shop.proof(&json!({}));
    assert_eq!(deferred(good.clone()), (Err(crate::authz::Deferred::Proof), Reason::AllowPolicy));
    assert_eq!(deferred(good), (Err(crate::authz::Deferred::Proof), Reason::CredentialReplay));
    // What is refused without cryptography is refused at once.
    let bad = shop.proof(&json!({"htm": "POST"}));
    assert_eq!(deferred(bad), (Ok(Reason::CredentialPopInvalid), Reason::CredentialPopInvalid));
}

#[test]
fn strangers_and_the_refused_use_up_no_room() {
    let shop = Shop::new();
    let room = |shop: &Shop| shop.gate.used_proofs().misses;
    let before = room(&shop);
    let mut claims = shop.estate.claims("nobody-registered");
    claims["cnf"] = json!({"jkt": shop.client.thumbprint()});
    let token = shop.estate.signer.sign(&claims).unwrap();
    let proof = shop.client.dpop(&KeyHolder::dpop_claims("GET", URI, &token, shop.now()));
    let headers = [("authorization", format!("DPoP {token}")), ("dpop", proof)];
    assert_eq!(shop.send(&headers).reason, Reason::CredentialSubject);
    assert_eq!(room(&shop), before);
}
