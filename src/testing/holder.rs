//! A client that holds a key and proves it: DPoP proofs and workload proof tokens, good ones and whatever a test needs.
//!
//! Feature `testing`. Panics on misuse: it is test code. Each proof has a `jti` of its own.
#![allow(clippy::expect_used, reason = "test support: a broken fixture should stop the test")]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::credential::{TokenSigner, token_digest};

/// A client's key.
#[derive(Debug)]
pub struct KeyHolder {
    signer: TokenSigner,
}

/// SHA-256 in base64url.
pub fn digest(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(token_digest(text))
}

/// Lays `changes` over an object: null removes a member.
pub fn changed(mut object: Value, changes: &Value) -> Value {
    let members = object.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => drop(members.remove(name)),
            value => drop(members.insert(name.clone(), value.clone())),
        }
    }
    object
}

// === impl KeyHolder ===

impl KeyHolder {
    /// A client with a new key.
    pub fn new() -> Self {
        Self { signer: TokenSigner::generate_es256("client").expect("a key") }
    }

    /// The public key, as the header of a proof has it.
    pub fn jwk(&self) -> Value {
        changed(self.signer.public_jwk(), &json!({"use": null, "kid": null, "alg": null}))
    }

    /// RFC 7638.
    pub fn thumbprint(&self) -> String {
        let jwk = self.jwk();
        digest(&format!(r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#, member(&jwk, "x"), member(&jwk, "y")))
    }

    /// The claims of a good DPoP proof.
    pub fn dpop_claims(method: &str, uri: &str, token: &str, now: Timestamp) -> Value {
        json!({"jti": Uuid::new_v4(), "htm": method, "htu": uri, "iat": now.as_secs(), "ath": digest(token)})
    }

    /// A DPoP proof with these claims.
    pub fn dpop(&self, claims: &Value) -> String {
        self.sign(&json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": self.jwk()}), claims)
    }

    /// The claims of a good workload proof token.
    pub fn wpt_claims(uri: &str, wit: &str, now: Timestamp) -> Value {
        json!({"jti": Uuid::new_v4(), "aud": uri, "exp": now.as_secs() + 60, "wth": digest(wit)})
    }

    /// A workload proof token with these claims.
    pub fn wpt(&self, claims: &Value) -> String {
        self.sign(&json!({"typ": "wpt+jwt", "alg": "ES256"}), claims)
    }

    /// Signs anything.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        self.signer.sign_with_header(header, claims).expect("a signature")
    }

    /// Signs anything, as it is written.
    pub fn sign_raw(&self, header: &str, claims: &str) -> String {
        self.signer.sign_raw(header, claims).expect("a signature")
    }
}

impl Default for KeyHolder {
    fn default() -> Self {
        Self::new()
    }
}

fn member(jwk: &Value, name: &str) -> String {
    jwk.get(name).expect("a member").to_string()
}
