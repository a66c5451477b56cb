//! Key sets: what compiles, what is ignored, what is refused, and that a bad issuer fails alone.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;

use super::standard::rsa_jwk;
use super::*;
use CredentialReason::IssuerUntrusted;

fn ec_jwk() -> Value {
    TokenSigner::generate_es256("k1").unwrap().public_jwk()
}

/// `jwk` with one member replaced, or removed if `value` is null.
fn with(mut jwk: Value, member: &str, value: Value) -> Value {
    let members = jwk.as_object_mut().unwrap();
    if value.is_null() {
        members.remove(member);
    } else {
        members.insert(member.to_owned(), value);
    }
    jwk
}

fn rsa_with_bits(bits: usize) -> Value {
    let mut n = vec![0xff; bits / 8];
    n[0] = 0x80;
    with(rsa_jwk(), "n", json!(B64.encode(n)))
}

#[test]
fn weak_and_ill_formed_keys_are_refused_by_field() {
    let ec = ec_jwk();
    let x = ec["x"].as_str().unwrap();
    let mut off = B64.decode(x).unwrap();
    off[31] ^= 1;
    let mut leading_zero = vec![0];
    leading_zero.extend(B64.decode(rsa_jwk()["n"].as_str().unwrap()).unwrap());
    let cases = [
        (rsa_with_bits(1024), "n", "1024 bits"),
        (rsa_with_bits(2040), "n", "2040 bits"),
        (rsa_with_bits(16384), "n", "16384 bits"),
        (with(rsa_jwk(), "n", json!(B64.encode(leading_zero))), "n", "zero byte"),
        (with(rsa_jwk(), "n", json!(B64.encode([0x80; 256]))), "n", "not an RSA public key"),
        (with(rsa_jwk(), "n", json!("")), "n", "empty"),
        (with(rsa_jwk(), "n", json!("AQAB=")), "n", "base64url"),
        (with(rsa_jwk(), "n", Value::Null), "n", "missing"),
        (with(rsa_jwk(), "e", json!("Aw")), "e", "65537"),
        (with(rsa_jwk(), "e", json!("AQAA")), "e", "odd"),
        (with(rsa_jwk(), "e", json!("AAEAAQ")), "e", "zero byte"),
        (with(rsa_jwk(), "e", json!("__________8")), "e", "33 bits"),
        (with(rsa_jwk(), "alg", json!("ES256")), "alg", "`ES256`"),
        (with(rsa_jwk(), "alg", json!("HS256")), "alg", "`HS256`"),
        (with(ec.clone(), "x", json!(B64.encode(off))), "x", "not a point on the curve"),
        (with(with(ec.clone(), "x", json!(B64.encode([0; 32]))), "y", json!(B64.encode([0; 32]))), "x", "not a point"),
        (with(ec.clone(), "x", json!(B64.encode([1; 31]))), "x", "31 bytes"),
        (with(ec.clone(), "y", json!(B64.encode([0; 33]))), "y", "33 bytes"),
        (with(ec.clone(), "y", json!(format!("{x}="))), "y", "base64url"),
        (with(ec.clone(), "y", Value::Null), "y", "missing"),
        (with(ec.clone(), "crv", json!("secp256k1")), "crv", "`secp256k1`"),
        (with(ec.clone(), "crv", json!("P-384")), "x", "32 bytes"),
        (with(ec.clone(), "alg", json!("ES384")), "alg", "`ES384`"),
        (with(ec.clone(), "alg", json!("RS256")), "alg", "`RS256`"),
        (with(ec.clone(), "alg", json!(256)), "alg", "not a string"),
        (with(ec.clone(), "kid", Value::Null), "kid", "missing"),
        (with(ec.clone(), "kid", json!("")), "kid", "1 to 256"),
        (with(ec.clone(), "kid", json!("k".repeat(257))), "kid", "1 to 256"),
        (with(ec.clone(), "kid", json!("a\nb")), "kid", "control"),
        (with(ec.clone(), "kid", json!(1)), "kid", "not a string"),
        (with(ec.clone(), "kty", Value::Null), "kty", "missing"),
        (with(ec.clone(), "key_ops", json!(["sign"])), "key_ops", "`verify`"),
        (with(ec.clone(), "key_ops", json!("verify")), "key_ops", "`verify`"),
    ];
    for (jwk, member, message) in cases {
        // Behind a good key, so that the index counts.
        let good = with(ec_jwk(), "kid", json!("good"));
        let error = check_issuer(&issuer("prod", "prod.example", &[good, jwk.clone()])).unwrap_err();
        assert_eq!(error.field, format!("jwks.keys[1].{member}"), "{jwk}: {error}");
        assert!(error.message.contains(message), "{jwk}: {error}");
    }
    let not_an_object = check_issuer(&issuer("prod", "prod.example", &[json!("key")])).unwrap_err();
    assert_eq!(not_an_object.field, "jwks.keys[0]");
}

#[test]
fn a_bundle_may_hold_keys_for_other_purposes() {
    let f = Fixture::new();
    let bundle = [
        with(with(ec_jwk(), "use", json!("x509-svid")), "kid", Value::Null),
        with(ec_jwk(), "use", json!("sig")),
        with(ec_jwk(), "use", Value::Null),
        json!({"kty": "OKP", "use": "jwt-svid", "crv": "Ed25519", "x": "AAAA"}),
        with(with(f.signer.public_jwk(), "key_ops", json!(["verify"])), "kid", json!("k1")),
    ];
    let issuers = compiled(&[issuer("prod", "prod.example", &bundle)]);
    verify(&f.signer.sign(&claims()).unwrap(), &issuers, Timestamp::from_secs(NOW)).unwrap();
}

#[test]
fn a_set_in_which_no_key_can_be_used_names_the_first() {
    for (jwk, field, message) in [
        (with(ec_jwk(), "use", json!("sig")), "jwks.keys[0].use", "`sig`"),
        (with(ec_jwk(), "use", Value::Null), "jwks.keys[0].use", "missing"),
        (with(ec_jwk(), "use", json!("JWT-SVID")), "jwks.keys[0].use", "`JWT-SVID`"),
        (with(ec_jwk(), "kty", json!("OKP")), "jwks.keys[0].kty", "`OKP`"),
    ] {
        let error = check_issuer(&issuer("prod", "prod.example", &[jwk])).unwrap_err();
        assert_eq!(error.field, field);
        assert!(error.message.contains(message) && error.message.contains("no key of the set"), "{error}");
    }
    let mut only_rsa = issuer("prod", "prod.example", &[ec_jwk()]);
    only_rsa.algorithms = Some(vec![crate::object::SigningAlgorithm::RS256]);
    assert_eq!(check_issuer(&only_rsa).unwrap_err().field, "jwks.keys[0]");
}

#[test]
fn one_key_id_names_one_key() {
    let error = check_issuer(&issuer("prod", "prod.example", &[ec_jwk(), ec_jwk()])).unwrap_err();
    assert_eq!((&*error.field, &*error.message), ("jwks.keys[1].kid", "`k1` occurs twice"));
}

#[test]
fn an_empty_set_is_valid_and_revokes_the_domain() {
    let f = Fixture::new();
    let revoked = issuer("prod", "prod.example", &[]);
    check_issuer(&revoked).unwrap();
    let token = f.signer.sign(&claims()).unwrap();
    for issuers in [compiled(&[revoked]), IssuerSet::default()] {
        let rejection = verify(&token, &issuers, Timestamp::from_secs(NOW)).unwrap_err();
        assert_eq!(rejection.reason, IssuerUntrusted);
    }
}

#[test]
fn a_bad_issuer_fails_alone_and_denies() {
    let f = Fixture::new();
    let bad = TokenSigner::generate_es256("k1").unwrap();
    let (issuers, errors) = IssuerSet::compile(&[
        issuer("bad", "bad.example", &[bad.public_jwk(), rsa_with_bits(1024)]),
        issuer("prod", "prod.example", &[f.signer.public_jwk()]),
    ]);
    let [(name, error)] = &errors[..] else { panic!("{errors:?}") };
    assert_eq!((&**name, &*error.field), ("bad", "jwks.keys[1].n"));
    let now = Timestamp::from_secs(NOW);
    verify(&f.signer.sign(&claims()).unwrap(), &issuers, now).unwrap();
    let of_bad = bad.sign(&claims_with("sub", json!("spiffe://bad.example/w"))).unwrap();
    assert_eq!(verify(&of_bad, &issuers, now).unwrap_err().reason, IssuerUntrusted, "not even by its good key");
}

#[test]
fn two_issuers_for_one_trust_domain_are_both_denied_in_either_order() {
    let (a, b) = (TokenSigner::generate_es256("a").unwrap(), TokenSigner::generate_es256("b").unwrap());
    let mut both =
        [issuer("first", "prod.example", &[a.public_jwk()]), issuer("second", "prod.example", &[b.public_jwk()])];
    for _ in 0..2 {
        let (issuers, errors) = IssuerSet::compile(&both);
        let mut names: Vec<_> = errors.iter().map(|(name, e)| (&**name, &*e.field)).collect();
        names.sort_unstable();
        assert_eq!(names, [("first", "trust_domain"), ("second", "trust_domain")]);
        for signer in [&a, &b] {
            let token = signer.sign(&claims()).unwrap();
            let rejection = verify(&token, &issuers, Timestamp::from_secs(NOW)).unwrap_err();
            assert_eq!(rejection.reason, IssuerUntrusted);
        }
        both.reverse();
    }
}

#[test]
fn an_ed25519_key_under_which_anybody_can_sign_is_refused() {
    let with_key = |x: &[u8]| {
        issuer_from(json!({
            "name": "idp", "kind": "oidc", "issuer": "https://idp.example", "audiences": ["shop"],
            "jwks": { "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": B64.encode(x) }] },
        }))
    };
    let ends = |first: u8, middle: u8, last: u8| {
        let mut y = [middle; 32];
        (y[0], y[31]) = (first, last);
        y
    };
    // Zero, one, minus one, and zero and one as the prime and its successor; each with either sign of x.
    for y in [ends(0, 0, 0), ends(1, 0, 0), ends(0xec, 0xff, 0x7f), ends(0xed, 0xff, 0x7f), ends(0xee, 0xff, 0x7f)] {
        for sign in [0, 0x80] {
            let error = check_issuer(&with_key(&ends(y[0], y[1], y[31] | sign))).unwrap_err();
            assert_eq!(error.field, "jwks.keys[0].x", "{y:02x?}: {error}");
        }
    }
    // RFC 8032, section 7.1, test 1.
    check_issuer(&with_key(&B64.decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").unwrap())).unwrap();
}
