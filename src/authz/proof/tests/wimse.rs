//! WIMSE workload identity tokens with their proofs, in the header of either draft.

use super::*;

/// A shop whose issuer makes workload identity tokens, and one of those.
fn wimse() -> (Shop, String) {
    let shop = Shop::with_policy(&json!({"wimse": true}));
    let wit = wit(&shop, &json!({}));
    (shop, wit)
}

fn wit(shop: &Shop, changes: &Value) -> String {
    let jwk = changed(shop.client.jwk(), &json!({"alg": "ES256"}));
    let claims = changed(shop.estate.claims("storefront"), &json!({"aud": null, "cnf": {"jwk": jwk}}));
    let header = json!({"alg": "ES256", "kid": shop.estate.signer.kid(), "typ": "wit+jwt"});
    shop.estate.signer.sign_with_header(&header, &changed(claims, changes)).unwrap()
}

fn proof(shop: &Shop, wit: &str, changes: &Value) -> String {
    shop.client.wpt(&changed(KeyHolder::wpt_claims(URI, wit, shop.now()), changes))
}

fn judge(shop: &Shop, wit: &str, proof: &str) -> Reason {
    let headers = [("workload-identity-token", wit.to_owned()), ("authorization", format!("WPT {proof}"))];
    shop.send(&headers).reason
}

#[test]
fn a_workload_identity_token_counts_with_its_proof() {
    let (shop, wit) = wimse();
    let first = proof(&shop, &wit, &json!({}));
    assert_eq!(judge(&shop, &wit, &first), Reason::AllowPolicy);
    assert_eq!(judge(&shop, &wit, &first), Reason::CredentialReplay);
    // The header of draft 01; but not both.
    let second = proof(&shop, &wit, &json!({}));
    let token = ("workload-identity-token", wit.clone());
    let old = ("workload-proof-token", second.clone());
    let both = [token.clone(), old.clone(), ("authorization", format!("WPT {second}"))];
    assert_eq!(shop.send(&both).reason, Reason::InputDuplicateHeader);
    assert_eq!(shop.send(&[token, old]).reason, Reason::AllowPolicy);
}

#[test]
fn a_workload_identity_token_is_no_bearer_token() {
    let (shop, wit) = wimse();
    for scheme in ["Bearer", "DPoP"] {
        let denied = shop.send(&[("authorization", format!("{scheme} {wit}"))]);
        assert_eq!(denied.reason, Reason::CredentialPopMissing, "{scheme}");
    }
    let alone = shop.send(&[("workload-identity-token", wit.clone())]);
    assert_eq!(alone.reason, Reason::CredentialPopMissing);
    let beside = [("workload-identity-token", wit), ("authorization", format!("Bearer {}", shop.token))];
    assert_eq!(shop.send(&beside).reason, Reason::InputHeaderMismatch);
}

#[test]
fn a_workload_identity_token_names_a_public_key_and_its_algorithm() {
    let (shop, _) = wimse();
    let jwk = changed(shop.client.jwk(), &json!({"alg": "ES256"}));
    for cnf in [
        json!(null),
        json!({}),
        json!({"jkt": shop.client.thumbprint()}),
        json!({"jwk": shop.client.jwk()}),
        json!({"jwk": changed(jwk.clone(), &json!({"alg": "HS256"}))}),
        json!({"jwk": changed(jwk.clone(), &json!({"alg": "none"}))}),
        json!({"jwk": changed(jwk.clone(), &json!({"alg": "ES384"}))}),
        json!({"jwk": changed(jwk.clone(), &json!({"d": "AQAB"}))}),
        json!({"jwk": changed(jwk.clone(), &json!({"y": jwk["x"]}))}),
    ] {
        let wit = wit(&shop, &json!({"cnf": cnf}));
        let proof = proof(&shop, &wit, &json!({}));
        assert_eq!(judge(&shop, &wit, &proof), Reason::CredentialPopInvalid, "{cnf}");
    }
}

#[test]
fn each_claim_of_the_proof_is_checked() {
    let (shop, wit) = wimse();
    let now = shop.now().as_secs();
    let bad = [
        json!({"aud": null}),
        json!({"aud": [URI]}),
        json!({"aud": "https://shop.example/catalog/2"}),
        json!({"exp": null}),
        json!({"exp": now}),
        json!({"exp": now + 301}),
        json!({"exp": (now + 60).to_string()}),
        json!({"exp": (now + 60) as f64}),
        json!({"iat": now + 60}),
        json!({"nbf": "x"}),
        json!({"jti": null}),
        json!({"jti": ""}),
        json!({"wth": null}),
        json!({"wth": digest("another")}),
        json!({"tth": digest("no transaction token here")}),
        json!({"oth": {"x-token": digest("x")}}),
    ];
    for changes in &bad {
        let proof = proof(&shop, &wit, changes);
        assert_eq!(judge(&shop, &wit, &proof), Reason::CredentialPopInvalid, "{changes}");
    }
    let claims = KeyHolder::wpt_claims(URI, &wit, shop.now());
    for header in [
        json!({"alg": "ES256"}),
        json!({"alg": "ES256", "typ": "dpop+jwt"}),
        json!({"alg": "ES384", "typ": "wpt+jwt"}),
        json!({"alg": "none", "typ": "wpt+jwt"}),
        json!({"alg": "ES256", "typ": "wpt+jwt", "jwk": shop.client.jwk()}),
    ] {
        let proof = shop.client.sign(&header, &claims);
        assert_eq!(judge(&shop, &wit, &proof), Reason::CredentialPopInvalid, "{header}");
    }
    assert_eq!(judge(&shop, &wit, &KeyHolder::new().wpt(&claims)), Reason::CredentialPopInvalid);
    assert_eq!(judge(&shop, &wit, &shop.client.wpt(&claims)), Reason::AllowPolicy);
}

#[test]
fn a_transaction_token_is_bound_by_the_proof() {
    let (shop, wit) = wimse();
    let send = |proof: String| {
        let headers = [
            ("workload-identity-token", wit.clone()),
            ("authorization", format!("WPT {proof}")),
            ("txn-token", "some.transaction.token".to_owned()),
        ];
        shop.send(&headers).reason
    };
    assert_eq!(send(proof(&shop, &wit, &json!({}))), Reason::CredentialPopInvalid);
    assert_eq!(send(proof(&shop, &wit, &json!({"tth": digest("another")}))), Reason::CredentialPopInvalid);
    assert_eq!(send(proof(&shop, &wit, &json!({"tth": digest("some.transaction.token")}))), Reason::AllowPolicy);
}

#[test]
fn another_kind_of_token_does_not_count_in_its_header() {
    let (shop, _) = wimse();
    let token = shop.estate.token("storefront");
    let proof = proof(&shop, &token, &json!({}));
    assert_eq!(judge(&shop, &token, &proof), Reason::CredentialTyp);
    let elsewhere = wit(&shop, &json!({"aud": ["elsewhere"]}));
    let proof = super::wimse::proof(&shop, &elsewhere, &json!({}));
    assert_eq!(judge(&shop, &elsewhere, &proof), Reason::CredentialAudience, "an audience that it has still counts");
}

#[test]
fn where_no_issuer_makes_them_the_headers_mean_nothing() {
    let shop = Shop::new();
    let wit = wit(&shop, &json!({}));
    let proof = proof(&shop, &wit, &json!({}));
    assert_eq!(judge(&shop, &wit, &proof), Reason::CredentialMissing);
    let beside = [
        ("workload-identity-token", wit.clone()),
        ("authorization", format!("Bearer {}", shop.estate.token("storefront"))),
    ];
    assert_eq!(shop.send(&beside).reason, Reason::AllowPolicy);
    assert_eq!(shop.send(&[("authorization", format!("Bearer {wit}"))]).reason, Reason::CredentialTyp);
}

#[test]
fn its_issuer_is_told_of_a_key_that_nobody_has() {
    let (shop, _) = wimse();
    let header = json!({"alg": "ES256", "kid": "rotated", "typ": "wit+jwt"});
    let mut claims = shop.estate.claims("storefront");
    claims["cnf"] = json!({"jwk": shop.client.jwk()});
    let wit = shop.estate.signer.sign_with_header(&header, &claims).unwrap();
    let proof = proof(&shop, &wit, &json!({}));
    let headers = [("workload-identity-token", wit), ("authorization", format!("WPT {proof}"))];
    assert_eq!(shop.send(&headers).reason, Reason::CredentialKidUnknown);
    let snapshot = shop.estate.snapshot();
    let issuer = crate::authz::issuer_of_token(&request("GET", "/catalog/1", &headers), &snapshot);
    assert_eq!(issuer.map(|name| &**name), Some("test"));
}
