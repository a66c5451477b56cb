//! What can be told of a binding and a proof alone: thumbprints of the RFCs, other algorithms, and that no change to a
//! proof goes unnoticed. The checks one by one are in `authz/proof/tests.rs`, through the gate.

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::key::ClientKey;
use super::*;
use crate::object::SigningAlgorithm;
use crate::testing::{KeyHolder, changed};

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);
const URI: &str = "https://shop.example/a";
const TOKEN: &str = "some.access.token";

/// A client and a good proof of it, made once.
static GOOD: LazyLock<(KeyHolder, String)> = LazyLock::new(|| {
    let client = KeyHolder::new();
    let proof = client.dpop(&KeyHolder::dpop_claims("GET", URI, TOKEN, NOW));
    (client, proof)
});

fn check(proof: &str, bound_to: &str) -> Result<Proven, Unproven> {
    check_dpop(&Dpop {
        proof,
        method: "GET",
        is_target: &|uri| uri == URI,
        token_digest: Some(&sha256(TOKEN.as_bytes())),
        bound_to: Some(&B64.decode(bound_to).unwrap().try_into().unwrap()),
        nonces: None,
        remembered_since: Timestamp::from_secs(0),
        now: NOW,
    })
    .and_then(|unverified| unverified.verify().map_err(Unproven::Refused))
}

fn judge(proof: &str) -> Result<Proven, Unproven> {
    check(proof, &GOOD.0.thumbprint())
}

#[test]
fn thumbprints_are_those_of_the_standards() {
    // RFC 7638, section 3.1, and RFC 8037, appendix A.3.
    let rsa = json!({
        "kty": "RSA", "e": "AQAB", "kid": "2011-04-29",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n\
              3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgd\
              AZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur\
              -kEgU8awapJzKnqDKgw",
    });
    let ed = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    for (jwk, algorithm, thumbprint) in [
        (&rsa, SigningAlgorithm::RS256, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"),
        (&rsa, SigningAlgorithm::PS512, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"),
        (&ed, SigningAlgorithm::EdDSA, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"),
    ] {
        let key = ClientKey::read(jwk, algorithm).unwrap();
        assert_eq!(B64.encode(key.thumbprint), thumbprint);
        key.compile().unwrap();
    }
    // RFC 9449, section 6.1: the key of its figures.
    let ec = json!({
        "kty": "EC", "crv": "P-256",
        "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs", "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
    });
    let key = ClientKey::read(&ec, SigningAlgorithm::ES256).unwrap();
    assert_eq!(B64.encode(key.thumbprint), "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I");
}

#[test]
fn a_key_is_for_one_algorithm_of_its_kind_and_strong_enough() {
    let short = json!({"kty": "RSA", "e": "AQAB", "n": B64.encode([0xff; 128])});
    ClientKey::read(&short, SigningAlgorithm::RS256).unwrap_err();
    let ec = GOOD.0.jwk();
    for algorithm in SigningAlgorithm::ALL.into_iter().filter(|a| *a != SigningAlgorithm::ES256) {
        ClientKey::read(&ec, algorithm).unwrap_err();
    }
    // Off the curve is arithmetic, and told when the key is compiled.
    let off = changed(ec.clone(), &json!({"x": ec["y"], "y": ec["x"]}));
    ClientKey::read(&off, SigningAlgorithm::ES256).unwrap().compile().unwrap_err();
    for (member, value) in
        [("key_ops", json!(["sign"])), ("use", json!("enc")), ("kty", json!(1)), ("x", json!("AQ=="))]
    {
        ClientKey::read(&changed(ec.clone(), &json!({member: value})), SigningAlgorithm::ES256).unwrap_err();
    }
}

#[test]
fn proofs_of_other_algorithms_hold() {
    let pair = signature::Ed25519KeyPair::generate().unwrap();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": B64.encode(pair.public_key())});
    holds("EdDSA", &jwk, |text| pair.sign(text).as_ref().to_vec());

    let pair = signature::EcdsaKeyPair::generate(&signature::ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(48);
    let jwk = json!({"kty": "EC", "crv": "P-384", "x": B64.encode(x), "y": B64.encode(y)});
    holds("ES384", &jwk, |text| pair.sign(&SystemRandom::new(), text).unwrap().as_ref().to_vec());

    let pair = signature::RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    // `RSAPublicKey` in DER: nine bytes of framing, the modulus, the exponent 65537.
    let n = &pair.public_key().as_ref()[9..265];
    let jwk = json!({"kty": "RSA", "n": B64.encode(n), "e": "AQAB"});
    let signs: [(&str, &'static dyn signature::RsaEncoding); 2] =
        [("RS256", &signature::RSA_PKCS1_SHA256), ("PS384", &signature::RSA_PSS_SHA384)];
    for (alg, encoding) in signs {
        holds(alg, &jwk, |text| {
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(encoding, &SystemRandom::new(), text, &mut signature).unwrap();
            signature
        });
    }
}

fn holds(alg: &str, jwk: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) {
    let algorithm = SigningAlgorithm::ALL.into_iter().find(|a| format!("{a:?}") == alg).unwrap();
    let thumbprint = B64.encode(ClientKey::read(jwk, algorithm).unwrap().thumbprint);
    let header = json!({"typ": "dpop+jwt", "alg": alg, "jwk": jwk}).to_string();
    let claims = KeyHolder::dpop_claims("GET", URI, TOKEN, NOW).to_string();
    let signed = format!("{}.{}", B64.encode(header), B64.encode(claims));
    let signature = sign(signed.as_bytes());
    check(&format!("{signed}.{}", B64.encode(&signature)), &thumbprint).unwrap_or_else(|e| panic!("{alg}: {e:?}"));
    let mut wrong = signature;
    wrong[7] ^= 1;
    assert!(check(&format!("{signed}.{}", B64.encode(&wrong)), &thumbprint).is_err(), "{alg}");
}

#[test]
fn an_es256_signature_in_der_does_not_hold() {
    let pair = signature::EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    let jwk = json!({"kty": "EC", "crv": "P-256", "x": B64.encode(x), "y": B64.encode(y)});
    let thumbprint = B64.encode(ClientKey::read(&jwk, SigningAlgorithm::ES256).unwrap().thumbprint);
    let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk}).to_string();
    let claims = KeyHolder::dpop_claims("GET", URI, TOKEN, NOW).to_string();
    let signed = format!("{}.{}", B64.encode(header), B64.encode(claims));
    let der = pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    check(&format!("{signed}.{}", B64.encode(der.as_ref())), &thumbprint).unwrap_err();
}

#[test]
fn keys_for_nonces_have_256_bits_at_least() {
    let shared = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let (one, other) = (Nonces::with_key(shared).unwrap(), Nonces::with_key(&format!("{shared}\n")).unwrap());
    assert_eq!(one.issue(NOW), other.issue(NOW));
    assert_ne!(one.issue(NOW), Nonces::random().unwrap().issue(NOW));
    for bad in ["", "short", "MDEyMzQ1Njc4OWFiY2Q=", "not base64 at all !"] {
        assert_eq!(Nonces::with_key(bad).unwrap_err(), NonceKeyError::Form);
    }
    assert!(!format!("{one:?}").contains("MDEy"));
}

#[test]
fn no_flip_of_one_bit_goes_unnoticed() {
    let good = &GOOD.1;
    judge(good).unwrap();
    for at in 0..good.len() {
        for bit in 0..7 {
            let mut bytes = good.clone().into_bytes();
            bytes[at] ^= 1 << bit;
            let proof = String::from_utf8(bytes).unwrap();
            assert!(judge(&proof).is_err(), "byte {at}, bit {bit}: {proof}");
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_text_is_no_proof(proof in "\\PC{0,200}") {
        prop_assert!(judge(&proof).is_err());
    }

    #[test]
    fn a_cut_or_spliced_proof_is_none(at in 0..GOOD.1.len(), len in 0..20_usize, text in "[A-Za-z0-9_.-]{0,20}") {
        let good = &GOOD.1;
        let end = (at + len).min(good.len());
        let spliced = format!("{}{text}{}", good.split_at(at).0, good.split_at(end).1);
        prop_assert_eq!(judge(&spliced).is_ok(), spliced == *good);
    }

    /// A proof that the client did sign, with any of its members changed to anything, holds only if that changes nothing
    /// that is checked.
    #[test]
    fn a_changed_claim_is_noticed(
        name in prop::sample::select(vec!["htm", "htu", "iat", "ath", "jti"]),
        value in prop_oneof![
            Just(json!(null)), any::<i64>().prop_map(Value::from), any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from), Just(json!([])), Just(json!({"a": 1})), any::<bool>().prop_map(Value::from),
        ],
    ) {
        let claims = changed(KeyHolder::dpop_claims("GET", URI, TOKEN, NOW), &json!({name: value}));
        let holds = judge(&GOOD.0.dpop(&claims)).is_ok();
        prop_assert_eq!(holds, name == "jti" && value.as_str().is_some_and(|jti| !jti.is_empty()));
    }
}
