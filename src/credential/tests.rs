//! Tests of token verification, from the outside: what an issuer, an operator or an attacker would notice.
//!
//! `standard` holds what must be accepted and each rule's edge, `attacks` the known ways to fool a verifier, `keys` the
//! compilation of key sets, `props` the properties over arbitrary and mutated input.

mod attacks;
mod keys;
mod props;
mod standard;

use serde_json::{Value, json};

use super::*;
use crate::clock::Timestamp;
use crate::object::{Issuer, from_json};

/// When the tests take place, in seconds.
const NOW: u64 = 1_700_000_000;

/// A signer and the issuer that it signs for.
struct Fixture {
    signer: TokenSigner,
    issuers: IssuerSet,
}

impl Fixture {
    /// One issuer, `prod`, for the trust domain `prod.example`, with the key `k1`.
    fn new() -> Self {
        let signer = TokenSigner::generate_es256("k1").unwrap();
        let issuers = compiled(&[issuer("prod", "prod.example", &[signer.public_jwk()])]);
        Self { signer, issuers }
    }

    fn verify(&self, token: &str) -> Result<VerifiedToken, Rejection> {
        verify(token, &self.issuers, Timestamp::from_secs(NOW))
    }

    /// Signs and verifies.
    fn judge(&self, claims: &Value) -> Result<VerifiedToken, Rejection> {
        self.verify(&self.signer.sign(claims).unwrap())
    }

    fn judge_raw(&self, header: &str, claims: &str) -> Result<VerifiedToken, Rejection> {
        self.verify(&self.signer.sign_raw(header, claims).unwrap())
    }

    #[track_caller]
    fn refuses(&self, token: &str, reason: CredentialReason) {
        match self.verify(token) {
            Ok(_) => panic!("accepted, expected `{reason}`: {token}"),
            Err(rejection) => assert_eq!(rejection.reason, reason, "{rejection}: {token}"),
        }
    }
}

/// The claims of a good token for [`Fixture::new`].
fn claims() -> Value {
    json!({
        "sub": "spiffe://prod.example/ns/shop/sa/storefront",
        "aud": ["shop"],
        "iat": NOW - 60,
        "exp": NOW + 240,
        "jti": "token-1",
    })
}

/// Good claims with one of them replaced, or removed if `value` is null.
fn claims_with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    let members = claims.as_object_mut().unwrap();
    if value.is_null() {
        members.remove(name);
    } else {
        members.insert(name.to_owned(), value);
    }
    claims
}

fn issuer(name: &str, trust_domain: &str, keys: &[Value]) -> Issuer {
    issuer_from(json!({
        "name": name, "kind": "spiffe", "trust_domain": trust_domain, "audiences": ["shop", "shop.example"],
        "jwks": { "keys": keys },
    }))
}

fn issuer_from(document: Value) -> Issuer {
    from_json(document.to_string().as_bytes()).unwrap()
}

#[track_caller]
fn compiled(issuers: &[Issuer]) -> IssuerSet {
    let (set, errors) = IssuerSet::compile(issuers);
    assert_eq!(errors, []);
    set
}
