//! The checks of RFC 9449, section 4.3, by their numbers. 10, the nonce, is in `nonces`.

use super::*;

#[test]
fn check_01_there_is_one_dpop_header() {
    let shop = Shop::new();
    let (a, b) = (shop.proof(&json!({})), shop.proof(&json!({})));
    let authorization = ("authorization", format!("DPoP {}", shop.token));
    for headers in [
        vec![authorization.clone(), ("dpop", a.clone()), ("dpop", b.clone())],
        vec![authorization.clone(), ("DPoP", a.clone()), ("dpop", a.clone())],
        vec![authorization.clone(), ("dpop", format!("{a},{b}"))],
        vec![authorization.clone(), ("dpop", format!("{a}, {a}"))],
    ] {
        assert_eq!(shop.send(&headers).reason, Reason::InputDuplicateHeader);
    }
    assert_eq!(shop.send(&[authorization]).reason, Reason::CredentialPopMissing);
    assert_eq!(shop.judge(&a), Reason::AllowPolicy, "none of them was used up");
}

#[test]
fn check_02_the_header_is_one_well_formed_jwt() {
    let shop = Shop::new();
    let good = shop.proof(&json!({}));
    let (signed, signature) = good.rsplit_once('.').unwrap();
    for bad in [
        String::new(),
        "x".to_owned(),
        "..".to_owned(),
        format!("{good}."),
        format!("{good}.x"),
        format!("{good}="),
        format!(" {good}"),
        format!("{good} "),
        format!("\"{good}\""),
        format!("{signed}."),
        signed.to_owned(),
        format!("{signed}.{signature}{}", "A".repeat(9000)),
    ] {
        shop.refuses(&bad);
    }
    let claims = KeyHolder::dpop_claims("GET", URI, &shop.token, shop.now()).to_string();
    let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": shop.client.jwk()}).to_string();
    assert_eq!(shop.judge(&shop.client.sign_raw(&header, &claims)), Reason::AllowPolicy);
    let twice = claims.replacen('{', r#"{"jti":"x","#, 1);
    shop.refuses(&shop.client.sign_raw(&header, &twice));
    shop.refuses(&shop.client.sign_raw(&header.replacen('{', r#"{"typ":"dpop+jwt","#, 1), &claims));
    shop.refuses(&shop.client.sign_raw(&header, "[]"));
    shop.refuses(&shop.client.sign_raw("\"dpop+jwt\"", &claims));
}

#[test]
fn check_03_all_claims_are_there_and_of_their_type() {
    let shop = Shop::new();
    for claim in ["jti", "htm", "htu", "iat", "ath"] {
        for value in [json!(null), json!(true), json!([]), json!({}), json!(["GET"]), json!(1.5), json!(-1)] {
            shop.refuses(&shop.proof(&json!({claim: value})));
        }
    }
    let iat = shop.now().as_secs();
    for value in [json!(iat.to_string()), json!(iat as f64), json!(u64::MAX), json!(1e300)] {
        shop.refuses(&shop.proof(&json!({"iat": value})));
    }
    for jti in [String::new(), "j".repeat(257)] {
        shop.refuses(&shop.proof(&json!({"jti": jti})));
    }
    assert_eq!(shop.judge(&shop.proof(&json!({"jti": "j".repeat(256)}))), Reason::AllowPolicy);
}

#[test]
fn check_04_the_type_is_dpop_jwt() {
    let shop = Shop::new();
    for typ in [json!(null), json!("JWT"), json!("dpop"), json!("DPOP+JWT"), json!("at+jwt"), json!(["dpop+jwt"])] {
        shop.refuses(&shop.proof_with_header(&json!({"typ": typ})));
    }
}

#[test]
fn check_05_the_algorithm_is_asymmetric_and_known() {
    let shop = Shop::new();
    for alg in ["none", "None", "HS256", "HS512", "es256", "ES256K", "A128KW", "", "RS1"] {
        shop.refuses(&shop.proof_with_header(&json!({"alg": alg})));
    }
    shop.refuses(&shop.proof_with_header(&json!({"alg": null})));
    for other in ["ES384", "RS256", "EdDSA"] {
        shop.refuses(&shop.proof_with_header(&json!({"alg": other})));
    }
    for member in ["jku", "x5u", "x5c", "crit", "b64", "zip", "enc"] {
        shop.refuses(&shop.proof_with_header(&json!({member: "x"})));
    }
}

#[test]
fn check_06_the_signature_is_of_the_key_in_the_header() {
    let shop = Shop::new();
    // Another client's key signs, under the header of the one that the token is bound to.
    let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": shop.client.jwk()});
    let claims = KeyHolder::dpop_claims("GET", URI, &shop.token, shop.now());
    shop.refuses(&KeyHolder::new().sign(&header, &claims));
    let good = shop.proof(&json!({}));
    let (signed, _) = good.rsplit_once('.').unwrap();
    shop.refuses(&format!("{signed}.{}", "A".repeat(86)));
    // A refused proof has not used its id up: nobody can spend the ids of others.
    assert_eq!(shop.judge(&shop.client.sign(&header, &claims)), Reason::AllowPolicy);
}

#[test]
fn check_07_the_key_is_public() {
    let shop = Shop::new();
    for secret in ["d", "k", "p", "q", "dp", "dq", "qi", "oth"] {
        let jwk = changed(shop.client.jwk(), &json!({secret: "AQAB"}));
        shop.refuses(&shop.proof_with_header(&json!({"jwk": jwk})));
    }
    for jwk in [json!(null), json!("x"), json!([]), json!({}), json!({"kty": "oct", "k": "AQAB"})] {
        shop.refuses(&shop.proof_with_header(&json!({"jwk": jwk})));
    }
    for (member, value) in [("use", "enc"), ("alg", "ES384"), ("kty", "RSA"), ("crv", "P-384"), ("x", "AQAB")] {
        let jwk = changed(shop.client.jwk(), &json!({member: value}));
        shop.refuses(&shop.proof_with_header(&json!({"jwk": jwk})));
    }
}

#[test]
fn check_08_the_method_is_that_of_the_request() {
    let shop = Shop::new();
    for htm in ["POST", "get", "GET ", "", "HEAD"] {
        shop.refuses(&shop.proof(&json!({"htm": htm})));
    }
}

#[test]
fn check_09_the_uri_is_that_of_the_request() {
    let mut shop = Shop::new();
    for htu in [
        "",
        "/catalog/1",
        "https://shop.example/catalog/2",
        "https://shop.example/catalog/1/",
        "http://shop.example/catalog/1",
        "https://shop.example:8443/catalog/1",
        "https://other.example/catalog/1",
        "https://shop.example@evil.example/catalog/1",
        "https://shop.example/x/../catalog/1",
    ] {
        shop.refuses(&shop.proof(&json!({"htu": htu})));
    }
    // A service that names its origins is known by those, whatever host the request claims.
    shop.estate.put(
        Kind::Service,
        &json!({"name": "catalog", "origins": ["https://api.example"], "routes": [
            {"name": "items", "methods": ["GET"], "path": "/catalog/{*}"},
        ]}),
    );
    shop.state.publish(Arc::new(shop.estate.snapshot()));
    shop.refuses(&shop.proof(&json!({})));
    let proof = shop.proof(&json!({"htu": "https://api.example/catalog/1"}));
    assert_eq!(shop.judge(&proof), Reason::AllowPolicy);
}

#[test]
fn check_11_the_proof_was_made_just_now() {
    let shop = Shop::new();
    let now = shop.now().as_secs();
    for iat in [0, now - 3600, now - 60, now + 6, now + 3600] {
        shop.refuses(&shop.proof(&json!({"iat": iat})));
    }
    for iat in [now - 59, now, now + 5] {
        assert_eq!(shop.judge(&shop.proof(&json!({"iat": iat}))), Reason::AllowPolicy, "{}", iat.abs_diff(now));
    }
}

#[test]
fn check_12_token_and_key_belong_together() {
    let shop = Shop::new();
    let another = bound(&shop.estate, &json!({"jkt": shop.client.thumbprint()}));
    for ath in [digest(&another), String::new(), digest(&shop.token).split_off(1), shop.token.clone()] {
        shop.refuses(&shop.proof(&json!({"ath": ath})));
    }
    // A proof that is good in itself, by a thief's own key.
    let thief = KeyHolder::new();
    shop.refuses(&thief.dpop(&KeyHolder::dpop_claims("GET", URI, &shop.token, shop.now())));
}
