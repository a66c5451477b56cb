//! Check 10 of RFC 9449, section 4.3, and sections 8 and 9: nonces of the enforcement point.

use super::*;

const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

fn demanding() -> Shop {
    Shop::with_policy(&json!({"dpop_nonce": true}))
}

impl Shop {
    fn with_nonce(&self, nonce: &Value) -> Decision {
        let proof = self.proof(&json!({"nonce": nonce}));
        self.send(&[("authorization", format!("DPoP {}", self.token)), ("dpop", proof)])
    }
}

#[test]
fn check_10_the_nonce_is_one_of_ours() {
    let shop = demanding();
    let first = shop.with_nonce(&json!(null));
    assert_eq!(first.reason, Reason::CredentialPopInvalid);
    let challenge = challenge_of(&first);
    assert!(challenge.starts_with("DPoP ") && challenge.ends_with("error=\"use_dpop_nonce\""), "{challenge}");
    let nonce = first.dpop_nonce.clone().expect("a nonce to use");
    assert!(problem::headers(&first).iter().any(|(name, value)| *name == "dpop-nonce" && *value == nonce));

    let allowed = shop.with_nonce(&json!(nonce));
    assert_eq!(allowed.reason, Reason::AllowPolicy);
    assert_eq!(allowed.dpop_nonce, None, "this one goes on counting");
    for wrong in [String::new(), format!("{nonce}A"), nonce.clone().split_off(1), "A".repeat(43)] {
        let denied = shop.with_nonce(&json!(wrong));
        assert_eq!(denied.reason, Reason::CredentialPopInvalid);
        assert_eq!(denied.dpop_nonce.as_deref(), Some(&*nonce), "{wrong}");
    }
    for not_text in [json!(1), json!([nonce]), json!({})] {
        let denied = shop.with_nonce(&not_text);
        assert_eq!((denied.reason, denied.dpop_nonce), (Reason::CredentialPopInvalid, None));
    }
}

#[test]
fn a_nonce_counts_for_one_to_two_periods_and_the_next_comes_in_time() {
    let shop = demanding();
    let nonce = json!(shop.with_nonce(&json!(null)).dpop_nonce.unwrap());
    let period = crate::credential::NONCE_PERIOD;
    shop.estate.clock.advance(period);
    shop.state.renew(shop.estate.lease());
    let allowed = shop.with_nonce(&nonce);
    assert_eq!(allowed.reason, Reason::AllowPolicy);
    let next = allowed.dpop_nonce.expect("the next nonce comes with the allow");
    assert_ne!(nonce, json!(next));
    assert_eq!(shop.with_nonce(&json!(next)).reason, Reason::AllowPolicy);
    shop.estate.clock.advance(period);
    shop.state.renew(shop.estate.lease());
    let denied = shop.with_nonce(&nonce);
    assert_eq!(denied.reason, Reason::CredentialPopInvalid);
    assert!(denied.dpop_nonce.is_some());
}

#[test]
fn enforcement_points_with_one_key_know_each_others_nonces() {
    let mut shop = demanding();
    let shared = || Some(Nonces::with_key(SECRET).unwrap());
    shop.gate = gate(&shop.estate, &shop.state).with_proofs(10, shared());
    let nonce = json!(shop.with_nonce(&json!(null)).dpop_nonce.unwrap());
    shop.gate = gate(&shop.estate, &shop.state).with_proofs(10, shared());
    assert_eq!(shop.with_nonce(&nonce).reason, Reason::AllowPolicy);
    shop.gate = gate(&shop.estate, &shop.state);
    assert_eq!(shop.with_nonce(&nonce).reason, Reason::CredentialPopInvalid, "a key of its own");
}

#[test]
fn only_who_has_a_good_token_is_given_a_nonce() {
    let shop = demanding();
    let proof = shop.proof(&json!({}));
    let forged = format!("{}A", shop.token);
    let denied = shop.send(&[("authorization", format!("DPoP {forged}")), ("dpop", proof.clone())]);
    assert_eq!((denied.reason.family(), denied.dpop_nonce), ("credential", None));
    let bearer = shop.send(&[("authorization", format!("Bearer {}", shop.token)), ("dpop", proof)]);
    assert_eq!((bearer.reason, bearer.dpop_nonce), (Reason::CredentialPopMissing, None));
}

#[test]
fn a_nonce_does_not_replace_any_other_check() {
    let shop = demanding();
    let nonce = shop.with_nonce(&json!(null)).dpop_nonce.unwrap();
    shop.refuses(&shop.proof(&json!({"nonce": nonce, "htm": "POST"})));
    shop.refuses(&shop.proof(&json!({"nonce": nonce, "iat": 0})));
    let proof = shop.proof(&json!({"nonce": nonce}));
    assert_eq!(shop.judge(&proof), Reason::AllowPolicy);
    assert_eq!(shop.judge(&proof), Reason::CredentialReplay);
}
