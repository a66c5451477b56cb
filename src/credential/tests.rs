//! Tests of the credential module.

use serde_json::json;

use super::*;
use crate::clock::Timestamp;
use crate::object::{Issuer, from_json};

#[test]
fn what_the_signer_signs_verifies() {
    let signer = TokenSigner::generate_es256("k1").unwrap();
    let issuer: Issuer = from_json(
        json!({"name":"prod","kind":"spiffe","trust_domain":"prod.example","audiences":["shop"],
            "jwks":{"keys":[signer.public_jwk()]}})
        .to_string()
        .as_bytes(),
    )
    .unwrap();
    check_issuer(&issuer).unwrap();
    let (issuers, errors) = IssuerSet::compile([&issuer]);
    assert_eq!(errors, []);
    let token = signer.sign(&json!({"sub":"spiffe://prod.example/a","aud":"shop","exp":2000,"iat":1000})).unwrap();
    let verified = verify(&token, &issuers, Timestamp::from_secs(1500)).unwrap();
    assert_eq!(verified.subject.as_str(), "spiffe://prod.example/a");
}
