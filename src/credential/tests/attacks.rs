//! The known ways to fool a verifier of tokens, each by name (RFC 8725, section 2, and the CVEs behind it).

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD as B64};

use super::*;
use CredentialReason::{Alg, IssuerUntrusted, KidUnknown, Malformed, Signature, Subject, Typ};

const HEADER: &str = r#"{"alg":"ES256","kid":"k1"}"#;

fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()))
}

/// The parts of a good token.
fn parts(f: &Fixture) -> [String; 3] {
    let token = f.signer.sign(&claims()).unwrap();
    let parts: Vec<_> = token.split('.').map(str::to_owned).collect();
    parts.try_into().unwrap()
}

#[test]
fn alg_none_in_any_spelling_is_refused() {
    let f = Fixture::new();
    let [_, _, signature] = parts(&f);
    for alg in ["none", "None", "NONE", "nOnE", "none ", ""] {
        let signed = unsigned(&json!({"alg": alg, "kid": "k1"}), &claims());
        f.refuses(&format!("{signed}."), Alg);
        f.refuses(&format!("{signed}.{signature}"), Alg);
    }
}

#[test]
fn hmac_with_the_public_key_as_its_secret_is_refused() {
    let f = Fixture::new();
    let jwk = f.signer.public_jwk();
    let [x, y] = ["x", "y"].map(|m| B64.decode(jwk[m].as_str().unwrap()).unwrap());
    let point = [&[4][..], &x, &y].concat();
    let spki_prefix = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
        0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    let spki = [&spki_prefix[..], &point].concat();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(&spki));
    for secret in [point, spki, pem.into_bytes(), jwk.to_string().into_bytes(), x, Vec::new()] {
        for (name, algorithm) in
            [("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)]
        {
            let signed = unsigned(&json!({"alg": name, "kid": "k1", "typ": "JWT"}), &claims());
            let tag = hmac::sign(&hmac::Key::new(algorithm, &secret), signed.as_bytes());
            f.refuses(&format!("{signed}.{}", B64.encode(tag)), Alg);
            // The same tag under the key's own algorithm.
            let signed = unsigned(&json!({"alg": "ES256", "kid": "k1", "typ": "JWT"}), &claims());
            let tag = hmac::sign(&hmac::Key::new(algorithm, &secret), signed.as_bytes());
            f.refuses(&format!("{signed}.{}", B64.encode(tag)), Signature);
        }
    }
}

#[test]
fn other_algorithms_are_refused_by_name() {
    let f = Fixture::new();
    for alg in ["EdDSA", "ES256K", "es256", "RS1", "dir", "RSA-OAEP", "A128KW"] {
        let header = json!({"alg": alg, "kid": "k1"}).to_string();
        assert_eq!(f.judge_raw(&header, &claims().to_string()).unwrap_err().reason, Alg, "{alg}");
    }
    // Good names, on a key of another family.
    for alg in ["RS256", "PS512", "ES384", "ES512"] {
        let header = json!({"alg": alg, "kid": "k1"}).to_string();
        assert_eq!(f.judge_raw(&header, &claims().to_string()).unwrap_err().reason, Alg, "{alg}");
    }
}

#[test]
fn headers_that_bring_or_point_to_a_key_are_refused() {
    let f = Fixture::new();
    let attacker = TokenSigner::generate_es256("k1").unwrap();
    let extras = [
        json!({"jwk": attacker.public_jwk()}),
        json!({"jku": "https://attacker.example/jwks.json"}),
        json!({"x5u": "https://attacker.example/chain.pem"}),
        json!({"x5c": ["MIIB"]}),
        json!({"x5t": "AAAA"}),
        json!({"crit": ["exp"]}),
        json!({"crit": ["b64"], "b64": false}),
        json!({"zip": "DEF"}),
        json!({"cty": "JWT"}),
        json!({"enc": "A256GCM"}),
        json!({"Alg": "none"}),
    ];
    for extra in extras {
        let mut header = json!({"alg": "ES256", "kid": "k1"});
        header.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        for signer in [&attacker, &f.signer] {
            f.refuses(&signer.sign_with_header(&header, &claims()).unwrap(), Malformed);
        }
    }
}

#[test]
fn a_key_of_one_trust_domain_does_not_sign_for_another() {
    let (a, b) = (TokenSigner::generate_es256("k").unwrap(), TokenSigner::generate_es256("k").unwrap());
    let only_a = TokenSigner::generate_es256("only-a").unwrap();
    let issuers = compiled(&[
        issuer("a", "a.example", &[a.public_jwk(), only_a.public_jwk()]),
        issuer("b", "b.example", &[b.public_jwk()]),
    ]);
    let for_b = claims_with("sub", json!("spiffe://b.example/w"));
    let judge = |signer: &TokenSigner| {
        verify(&signer.sign(&for_b).unwrap(), &issuers, Timestamp::from_secs(NOW)).map_err(|e| e.reason)
    };
    assert_eq!(&*judge(&b).unwrap().issuer, "b");
    assert_eq!(judge(&a).unwrap_err(), Signature, "the same `kid` in both sets");
    assert_eq!(judge(&only_a).unwrap_err(), KidUnknown, "a `kid` of the other set is none here");
}

#[test]
fn a_trust_domain_is_matched_whole() {
    let f = Fixture::new();
    for domain in ["prod.example.attacker", "xprod.example", "prod", "example", "prod.example."] {
        let claims = claims_with("sub", json!(format!("spiffe://{domain}/w")));
        assert_eq!(f.judge(&claims).unwrap_err().reason, IssuerUntrusted, "{domain}");
    }
}

#[test]
fn the_issuer_claim_does_not_choose_the_key_set() {
    let (a, b) = (TokenSigner::generate_es256("k").unwrap(), TokenSigner::generate_es256("k").unwrap());
    let issuers = compiled(&[issuer("a", "a.example", &[a.public_jwk()]), issuer("b", "b.example", &[b.public_jwk()])]);
    let mut claims = claims_with("sub", json!("spiffe://b.example/w"));
    claims["iss"] = json!("a");
    let token = a.sign(&claims).unwrap();
    assert_eq!(verify(&token, &issuers, Timestamp::from_secs(NOW)).unwrap_err().reason, Signature);
}

#[test]
fn a_subject_that_is_no_spiffe_id_names_nobody() {
    let f = Fixture::new();
    for sub in [
        "alice",
        "",
        "spiffe://prod.example",
        "spiffe://prod.example/",
        "SPIFFE://prod.example/w",
        "spiffe://prod.example/../w",
        "spiffe://prod.example/w ",
        "spiffe://prod.example/w\0",
    ] {
        assert_eq!(f.judge(&claims_with("sub", json!(sub))).unwrap_err().reason, Subject, "{sub}");
    }
    for sub in [json!(null), json!(7), json!(["spiffe://prod.example/w"]), json!({})] {
        let claims = claims().to_string().replace(r#""spiffe://prod.example/ns/shop/sa/storefront""#, &sub.to_string());
        assert_eq!(f.judge_raw(HEADER, &claims).unwrap_err().reason, Malformed, "{sub}");
    }
}

#[test]
fn a_key_id_is_needed_and_must_be_known() {
    let f = Fixture::new();
    let claims = claims().to_string();
    for header in [
        r#"{"alg":"ES256"}"#,
        r#"{"alg":"ES256","kid":""}"#,
        r#"{"alg":"ES256","kid":"K1"}"#,
        r#"{"alg":"ES256","kid":"../../etc/passwd"}"#,
        r#"{"alg":"ES256","kid":"k1' OR 1=1 --"}"#,
    ] {
        assert_eq!(f.judge_raw(header, &claims).unwrap_err().reason, KidUnknown, "{header}");
    }
}

/// The class of CVE-2026-25537: a claim of the wrong type must not pass for an absent one.
#[test]
fn times_of_the_wrong_type_are_refused() {
    let f = Fixture::new();
    for name in ["exp", "nbf", "iat"] {
        let good = NOW + u64::from(name == "exp") * 60;
        for value in [
            format!("\"{good}\""),
            format!("{good}.0"),
            format!("{good}.5"),
            "1.7e9".into(),
            "17e8".into(),
            "1e999".into(),
            "-1".into(),
            "-0".into(),
            "null".into(),
            "true".into(),
            "[]".into(),
            "{}".into(),
            format!("[{good}]"),
            "18446744073709551616".into(),
            "18446744073709551615".into(),
            "253402300800".into(),
            format!("0{good}"),
            format!("+{good}"),
            "NaN".into(),
            String::new(),
        ] {
            let mut others = claims();
            others.as_object_mut().unwrap().remove(name);
            let rest = others.to_string();
            let claims = format!("{},\"{name}\":{value}}}", rest.strip_suffix('}').unwrap());
            let rejection = f.judge_raw(HEADER, &claims).unwrap_err();
            assert_eq!(rejection.reason, Malformed, "{name}: {value}: {rejection}");
        }
    }
    for name in ["exp", "aud", "sub"] {
        assert_eq!(f.judge(&claims_with(name, Value::Null)).unwrap_err().reason, Malformed, "no `{name}`");
    }
}

#[test]
fn other_claims_of_the_wrong_type_are_refused() {
    let f = Fixture::new();
    let long = "x".repeat(257);
    for (name, value) in [
        ("aud", json!(7)),
        ("aud", json!({"shop": 1})),
        ("aud", json!(["shop", 7])),
        ("aud", json!([["shop"]])),
        ("aud", json!(vec!["shop"; 65])),
        ("jti", json!(7)),
        ("jti", json!("")),
        ("jti", json!(long)),
        ("jti", json!("a\nb")),
        ("jti", json!(["a"])),
    ] {
        let rejection = f.judge(&claims_with(name, value.clone())).unwrap_err();
        assert_eq!(rejection.reason, Malformed, "{name}: {value}");
    }
}

#[test]
fn duplicate_members_are_refused_at_every_depth() {
    let f = Fixture::new();
    let good = claims().to_string();
    for header in [
        r#"{"alg":"ES256","alg":"ES256","kid":"k1"}"#,
        r#"{"alg":"none","alg":"ES256","kid":"k1"}"#,
        r#"{"alg":"ES256","kid":"k0","kid":"k1"}"#,
        r#"{"alg":"ES256","kid":"k1","\u0061lg":"none"}"#,
    ] {
        assert_eq!(f.judge_raw(header, &good).unwrap_err().reason, Malformed, "{header}");
    }
    let open = good.strip_suffix('}').unwrap();
    for tail in [
        r#","sub":"spiffe://prod.example/admin"}"#,
        r#","exp":9999999999}"#,
        r#","\u0065xp":9999999999}"#,
        r#","x":1,"x":2}"#,
        r#","x":{"y":1,"y":2}}"#,
        r#","x":[[{"y":{"z":1,"\u007a":2}}]]}"#,
    ] {
        assert_eq!(f.judge_raw(HEADER, &format!("{open}{tail}")).unwrap_err().reason, Malformed, "{tail}");
    }
    f.judge_raw(HEADER, &format!(r#"{open},"x":{{"y":{{"y":1}},"z":[{{"y":1}},{{"y":2}}]}}}}"#)).unwrap();
}

#[test]
fn json_that_two_parsers_could_read_differently_is_refused() {
    let f = Fixture::new();
    let good = claims().to_string();
    let bad = |claims: &str| assert_eq!(f.judge_raw(HEADER, claims).unwrap_err().reason, Malformed, "{claims}");
    for text in ["", "null", "[]", "\"x\"", "{}", "{", "\u{feff}{}"] {
        bad(text);
        assert_eq!(f.judge_raw(text, &good).unwrap_err().reason, Malformed, "{text}");
    }
    bad(&format!("{good}{good}"));
    bad(&format!("{good},"));
    bad(&format!("\u{feff}{good}"));
    bad(&format!("/* */{good}"));
    bad(&good.replace("\"shop\"", "\"shop\","));
    bad(&good.replace("token-1", "\\ud800"));
    bad(&good.replace("token-1", "a\u{1}b"));
    // Not UTF-8.
    let broken = [&b"{\"x\":\"\xff\","[..], &good.as_bytes()[1..]].concat();
    let token = format!("{}.{}.AAAA", B64.encode(HEADER), B64.encode(broken));
    f.refuses(&token, Malformed);
}

#[test]
fn depth_and_width_are_bounded() {
    let f = Fixture::new();
    let nested = |n: usize| {
        let good = claims().to_string();
        format!("{},\"x\":{}1{}}}", good.strip_suffix('}').unwrap(), "[".repeat(n), "]".repeat(n))
    };
    f.judge_raw(HEADER, &nested(16)).unwrap();
    assert_eq!(f.judge_raw(HEADER, &nested(17)).unwrap_err().reason, Malformed);
    assert_eq!(f.judge_raw(HEADER, &nested(2000)).unwrap_err().reason, Malformed);
    let wide = |n: usize| {
        let mut claims = claims();
        let members = claims.as_object_mut().unwrap();
        (members.len()..n).for_each(|i| drop(members.insert(format!("m{i}"), json!(0))));
        claims
    };
    f.judge(&wide(128)).unwrap();
    assert_eq!(f.judge(&wide(129)).unwrap_err().reason, Malformed);
    let long = f.signer.sign(&claims_with("x", json!("y".repeat(6200)))).unwrap();
    assert!(long.len() > MAX_TOKEN);
    f.refuses(&long, Malformed);
    let fits = f.signer.sign(&claims_with("x", json!("y".repeat(5500)))).unwrap();
    f.verify(&fits).unwrap();
}

#[test]
fn a_token_has_one_spelling() {
    let f = Fixture::new();
    let [header, claims, signature] = parts(&f);
    f.verify(&format!("{header}.{claims}.{signature}")).unwrap();
    for part in 0..3 {
        for (before, after) in
            [("", "="), ("", "=="), (" ", ""), ("", "\n"), ("", "A.A"), ("", "\0"), ("", "%3D"), ("", "+"), ("", "é")]
        {
            let mut spoiled = [header.clone(), claims.clone(), signature.clone()];
            spoiled[part] = format!("{before}{}{after}", spoiled[part]);
            f.refuses(&spoiled.join("."), Malformed);
        }
    }
    // 64 bytes end in a character of which 4 bits must be zero.
    let last = signature.chars().last().unwrap();
    let stray = char::from(last as u8 + 1);
    f.refuses(&format!("{header}.{claims}.{}{stray}", signature.strip_suffix(last).unwrap()), Malformed);
}

#[test]
fn other_numbers_of_parts_and_other_serialisations_are_refused() {
    let f = Fixture::new();
    let [header, claims, signature] = parts(&f);
    let json = json!({"payload": claims, "protected": header, "signature": signature}).to_string();
    for token in [
        "",
        ".",
        "..",
        "...",
        &header,
        &format!("{header}.{claims}"),
        &format!("{header}.{claims}."),
        &format!("{header}..{signature}"),
        &format!(".{claims}.{signature}"),
        &format!("{header}.{claims}.{signature}."),
        &format!(".{header}.{claims}.{signature}"),
        &format!("{header}.{claims}.{signature}.{signature}.{signature}"),
        &json,
    ] {
        f.refuses(token, Malformed);
    }
}

#[test]
fn signatures_of_another_form_are_refused() {
    let f = Fixture::new();
    let [header, claims, signature] = parts(&f);
    let raw = B64.decode(&signature).unwrap();
    let with = |signature: &[u8]| format!("{header}.{claims}.{}", B64.encode(signature));
    f.verify(&with(&raw)).unwrap();
    f.refuses(&with(&[&raw[..], b"\0"].concat()), Signature);
    f.refuses(&with(&[b"\0", &raw[..]].concat()), Signature);
    f.refuses(&with(&raw[..63]), Signature);
    f.refuses(&with(&[&raw[..], &raw[..]].concat()), Signature);
    // CVE-2022-21449, "psychic signatures": zero and the order of the group.
    f.refuses(&with(&[0; 64]), Signature);
    f.refuses(&with(&[0xff; 64]), Signature);
    let other = TokenSigner::generate_es256("k1").unwrap();
    f.refuses(&other.sign(&super::claims()).unwrap(), Signature);
}

#[test]
fn an_ecdsa_signature_in_der_is_refused() {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let point = pair.public_key().as_ref();
    let jwk = json!({"kty": "EC", "crv": "P-256", "use": "jwt-svid", "kid": "k1",
        "x": B64.encode(&point[1..33]), "y": B64.encode(&point[33..])});
    let issuers = compiled(&[issuer("prod", "prod.example", &[jwk])]);
    let signed = unsigned(&json!({"alg": "ES256", "kid": "k1"}), &claims());
    let der = pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    let token = format!("{signed}.{}", B64.encode(der));
    let rejection = verify(&token, &issuers, Timestamp::from_secs(NOW)).unwrap_err();
    assert_eq!(rejection.reason, Signature);
}

#[test]
fn what_would_be_worth_more_as_a_bearer_token_is_refused() {
    let f = Fixture::new();
    let bound =
        f.signer.sign(&claims_with("cnf", json!({"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}))).unwrap();
    assert!(f.verify(&bound).unwrap().confirmation.is_some(), "the caller is told, and has to ask for a proof");
    let delegated = claims_with("act", json!({"sub": "spiffe://prod.example/agent"}));
    assert_eq!(f.judge(&delegated).unwrap_err().reason, Typ);
}
