//! What the standards allow, and the edge of each rule.

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
    RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use smallvec::SmallVec;

use super::*;
use crate::credential::jwk::{Compiled, Key};
use crate::object::{IssuerKind, ProofPolicy, SigningAlgorithm};

static RSA: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());

/// The JWK of [`RSA`]; the offsets are those of a DER `RSAPublicKey` with a 2048-bit modulus and exponent 65537.
pub(super) fn rsa_jwk() -> Value {
    let der = RSA.public_key().as_ref();
    assert_eq!(der[..9], [0x30, 0x82, 1, 0x0a, 2, 0x82, 1, 1, 0]);
    json!({"kty": "RSA", "use": "jwt-svid", "kid": "rsa", "n": B64.encode(&der[9..265]), "e": "AQAB"})
}

/// Signs with `algorithm`; returns the token and the JWK that verifies it.
fn sign(algorithm: SigningAlgorithm, header_alg: &str) -> (String, Value) {
    use SigningAlgorithm::{ES256, ES384, ES512, PS256, PS384, PS512, RS256, RS384, RS512};
    let header = json!({"alg": header_alg, "kid": "rsa"}).to_string();
    let signed = format!("{}.{}", B64.encode(header), B64.encode(claims().to_string()));
    let rng = SystemRandom::new();
    let (padding, curve) = match algorithm {
        RS256 => (Some(&RSA_PKCS1_SHA256), None),
        RS384 => (Some(&RSA_PKCS1_SHA384), None),
        RS512 => (Some(&RSA_PKCS1_SHA512), None),
        PS256 => (Some(&RSA_PSS_SHA256), None),
        PS384 => (Some(&RSA_PSS_SHA384), None),
        PS512 => (Some(&RSA_PSS_SHA512), None),
        ES256 => (None, Some(("P-256", &ECDSA_P256_SHA256_FIXED_SIGNING))),
        ES384 => (None, Some(("P-384", &ECDSA_P384_SHA384_FIXED_SIGNING))),
        ES512 => (None, Some(("P-521", &ECDSA_P521_SHA512_FIXED_SIGNING))),
        SigningAlgorithm::EdDSA => panic!("not an algorithm of JWT-SVIDs"),
    };
    let (signature, jwk) = if let Some((crv, signing)) = curve {
        let pair = EcdsaKeyPair::generate(signing).unwrap();
        let point = &pair.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        let jwk = json!({"kty": "EC", "use": "jwt-svid", "kid": "rsa", "crv": crv,
            "x": B64.encode(x), "y": B64.encode(y)});
        (pair.sign(&rng, signed.as_bytes()).unwrap().as_ref().to_vec(), jwk)
    } else {
        let mut signature = vec![0; RSA.public_modulus_len()];
        RSA.sign(padding.unwrap(), &rng, signed.as_bytes(), &mut signature).unwrap();
        (signature, rsa_jwk())
    };
    (format!("{signed}.{}", B64.encode(signature)), jwk)
}

fn judge_with(token: &str, jwk: Value) -> Result<VerifiedToken, Rejection> {
    verify(token, &compiled(&[issuer("prod", "prod.example", &[jwk])]), Timestamp::from_secs(NOW))
}

#[test]
fn a_good_token_says_who_and_until_when() {
    let f = Fixture::new();
    let token = f.judge(&claims_with("nbf", json!(NOW - 30))).unwrap();
    let expected = VerifiedToken {
        subject: "spiffe://prod.example/ns/shop/sa/storefront".into(),
        workload: Some(SpiffeId::parse("spiffe://prod.example/ns/shop/sa/storefront").unwrap()),
        actors: SmallVec::new(),
        confirmation: None,
        may_act: None,
        proof: ProofPolicy::default(),
        is_wit: false,
        bound_objects: SmallVec::new(),
        tie: None,
        claims: None,
        kind: IssuerKind::Spiffe,
        issuer: "prod".into(),
        kid: "k1".into(),
        jti: Some("token-1".into()),
        issued_at: Some(Timestamp::from_secs(NOW - 60)),
        not_before: Some(Timestamp::from_secs(NOW - 30)),
        expires_at: Timestamp::from_secs(NOW + 240),
    };
    assert_eq!(token, expected);
}

#[test]
fn every_algorithm_of_the_standard_verifies_and_only_as_itself() {
    for algorithm in SigningAlgorithm::SPIFFE {
        let name = format!("{algorithm:?}");
        let (token, jwk) = sign(algorithm, &name);
        judge_with(&token, jwk).unwrap_or_else(|e| panic!("{name}: {e}"));
        for other in SigningAlgorithm::SPIFFE.into_iter().filter(|o| *o != algorithm) {
            let (token, jwk) = sign(algorithm, &format!("{other:?}"));
            let expected =
                if jwk["kty"] == "RSA" && other.family() == algorithm.family() { "signature" } else { "alg" };
            let rejection = judge_with(&token, jwk).unwrap_err();
            assert_eq!(rejection.reason.code(), format!("credential.{expected}"), "{name} as {other:?}");
        }
    }
}

#[test]
fn an_algorithm_must_be_the_issuers_and_the_keys() {
    let (token, mut jwk) = sign(SigningAlgorithm::RS256, "RS256");
    jwk["alg"] = json!("RS256");
    judge_with(&token, jwk.clone()).unwrap();
    jwk["alg"] = json!("PS256");
    assert_eq!(judge_with(&token, jwk.clone()).unwrap_err().reason, CredentialReason::Alg);
    jwk.as_object_mut().unwrap().remove("alg");
    let mut only_ps = issuer("prod", "prod.example", &[jwk]);
    only_ps.algorithms = Some(vec![SigningAlgorithm::PS256]);
    let rejection = verify(&token, &compiled(&[only_ps]), Timestamp::from_secs(NOW)).unwrap_err();
    assert_eq!(rejection.reason, CredentialReason::Alg);
}

/// RFC 7515, appendix A.3: somebody else's key and signature.
#[test]
fn known_answer_of_rfc_7515_verifies() {
    let jwk = json!({"kty": "EC", "crv": "P-256", "use": "jwt-svid", "kid": "a3",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"});
    let signed = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvb\
                  S9pc19yb290Ijp0cnVlfQ";
    let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let Compiled::Key(key) = Key::compile(0, &jwk, IssuerKind::Spiffe, &SigningAlgorithm::ALL).unwrap() else {
        panic!("ignored")
    };
    let verifier = key.verifier(SigningAlgorithm::ES256).unwrap();
    verifier.verify_sig(signed.as_bytes(), &B64.decode(signature).unwrap()).unwrap();
}

#[test]
fn type_is_absent_or_jwt_or_jose() {
    let f = Fixture::new();
    let claims = claims().to_string();
    for good in [r#"{"alg":"ES256","kid":"k1"}"#, r#"{"typ":"JOSE","alg":"ES256","kid":"k1"}"#] {
        f.judge_raw(good, &claims).unwrap();
    }
    for typ in ["jwt", "at+jwt", "wit+jwt", "dpop+jwt", "application/jwt", ""] {
        let header = json!({"alg": "ES256", "kid": "k1", "typ": typ}).to_string();
        assert_eq!(f.judge_raw(&header, &claims).unwrap_err().reason, CredentialReason::Typ, "{typ}");
    }
}

#[test]
fn times_hold_to_the_second() {
    use CredentialReason::{Expired, Lifetime, NotYetValid};
    let f = Fixture::new();
    // The issuer's longest lifetime is the default, 3600 s.
    let cases: &[(Value, Option<CredentialReason>)] = &[
        (json!({"iat": NOW - 60, "exp": NOW + 1}), None),
        (json!({"iat": NOW - 60, "exp": NOW}), Some(Expired)),
        (json!({"iat": NOW - 60, "exp": 0}), Some(Expired)),
        (json!({"iat": NOW + 5, "exp": NOW + 60}), None),
        (json!({"iat": NOW + 6, "exp": NOW + 60}), Some(NotYetValid)),
        (json!({"nbf": NOW + 5, "exp": NOW + 60}), None),
        (json!({"nbf": NOW + 6, "exp": NOW + 60}), Some(NotYetValid)),
        (json!({"iat": NOW - 60, "exp": NOW + 3540}), None),
        (json!({"iat": NOW - 60, "exp": NOW + 3541}), Some(Lifetime)),
        (json!({"exp": NOW + 3600}), None),
        (json!({"exp": NOW + 3601}), Some(Lifetime)),
        (json!({"iat": 0, "exp": NOW + 1}), Some(Lifetime)),
        (json!({"exp": 253_402_300_799_u64}), Some(Lifetime)),
    ];
    for (times, expected) in cases {
        let mut claims = claims();
        let members = claims.as_object_mut().unwrap();
        members.remove("iat");
        members.extend(times.as_object().unwrap().clone());
        assert_eq!(f.judge(&claims).err().map(|e| e.reason), *expected, "{times}");
    }
}

#[test]
fn audience_must_name_one_of_the_issuers() {
    let f = Fixture::new();
    for good in [json!("shop"), json!(["shop"]), json!(["other", "shop.example"])] {
        f.judge(&claims_with("aud", good)).unwrap();
    }
    for bad in [json!("Shop"), json!("shop "), json!("shop,other"), json!(["other"]), json!([]), json!("")] {
        let rejection = f.judge(&claims_with("aud", bad.clone())).unwrap_err();
        assert_eq!(rejection.reason, CredentialReason::Audience, "{bad}");
    }
}

#[test]
fn a_callers_audience_takes_the_place_of_the_issuers() {
    let f = Fixture::new();
    let now = Timestamp::from_secs(NOW);
    let token = f.signer.sign(&claims_with("aud", json!("portcullis-control"))).unwrap();
    verify_for(&token, &f.issuers, &["portcullis-control"], now).unwrap();
    assert_eq!(f.verify(&token).unwrap_err().reason, CredentialReason::Audience);
    let for_shop = f.signer.sign(&claims()).unwrap();
    for audiences in [&["portcullis-control"][..], &[]] {
        let rejection = verify_for(&for_shop, &f.issuers, audiences, now).unwrap_err();
        assert_eq!(rejection.reason, CredentialReason::Audience);
    }
}

#[test]
fn claims_that_mean_nothing_here_do_not_matter() {
    let f = Fixture::new();
    f.judge(&claims_with("iss", json!("https://spire.example"))).unwrap();
    f.judge(&claims_with("k8s", json!({"pod": {"labels": ["a", 1.5, -2, true, null]}}))).unwrap();
}

#[test]
fn a_signing_key_survives_its_file() {
    let f = Fixture::new();
    let pem = f.signer.pkcs8_pem().unwrap();
    assert!(pem.lines().all(|line| line.len() <= 64), "RFC 7468");
    let again = TokenSigner::from_pkcs8_pem(&pem.replace('\n', "\r\n"), "k1").unwrap();
    assert_eq!(again.public_jwk(), f.signer.public_jwk());
    f.verify(&again.sign(&claims()).unwrap()).unwrap();

    let debug = format!("{again:?}");
    assert!(debug.contains("***") && pem.lines().all(|line| !debug.contains(line)), "{debug}");
    for bad in ["", "-----BEGIN PRIVATE KEY-----", &pem.replace("PRIVATE", "PUBLIC"), &format!("{}{}", *pem, *pem)] {
        assert_eq!(TokenSigner::from_pkcs8_pem(bad, "k").unwrap_err(), SignerError::Pem, "{bad}");
    }
    let first_line = pem.lines().nth(1).unwrap();
    let truncated = format!("-----BEGIN PRIVATE KEY-----\n{first_line}\n-----END PRIVATE KEY-----");
    assert_eq!(TokenSigner::from_pkcs8_pem(&truncated, "k").unwrap_err(), SignerError::Key);
}

#[test]
fn digests_tell_tokens_apart() {
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let hex: String = token_digest("abc").iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, abc, "FIPS 180-2, appendix B.1");
    assert_ne!(token_digest("abc"), token_digest("abd"));
}
