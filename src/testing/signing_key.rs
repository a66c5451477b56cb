//! Signing keys of every family, for tests and benches that need tokens which `TokenSigner` does not make.
//!
//! Feature `testing`. Panics on misuse: it is test code. Signs whatever it is given, with whatever algorithm fits the
//! key, so that a test can make a token that is wrong in one point and right in every other.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test support: a broken fixture should stop the test"
)]

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512,
    RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD as B64};
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// A private key.
#[derive(Debug)]
pub struct SigningKey(Pair);

#[derive(Debug)]
enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ecdsa(&'static str, EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

const CURVES: [(&str, &EcdsaSigningAlgorithm); 3] = [
    ("P-256", &ECDSA_P256_SHA256_FIXED_SIGNING),
    ("P-384", &ECDSA_P384_SHA384_FIXED_SIGNING),
    ("P-521", &ECDSA_P521_SHA512_FIXED_SIGNING),
];

// === impl SigningKey ===

impl SigningKey {
    /// Reads an unencrypted PKCS#8 key of any kind that a token can be signed with.
    pub fn from_pkcs8_pem(pem: &str) -> Self {
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = STANDARD.decode(body).expect("base64");
        if let Ok(pair) = RsaKeyPair::from_pkcs8(&der) {
            return Self(Pair::Rsa(Box::new(pair)));
        }
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der) {
            return Self(Pair::Ed25519(pair));
        }
        let ecdsa = CURVES.into_iter().find_map(|(curve, algorithm)| {
            EcdsaKeyPair::from_pkcs8(algorithm, &der).ok().map(|pair| Pair::Ecdsa(curve, pair))
        });
        Self(ecdsa.expect("an RSA, Ed25519 or NIST curve key"))
    }

    /// Signs for the algorithm with this `alg` value, or, where that is none of the key's, for the key's first.
    pub fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.0 {
            Pair::Rsa(pair) => {
                let padding: &dyn RsaEncoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &random, message, &mut signature).expect("a signature");
                signature
            }
            Pair::Ecdsa(_, pair) => pair.sign(&random, message).expect("a signature").as_ref().to_vec(),
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// A token of this header and these claims, as they are written.
    pub fn token(&self, algorithm: &str, header: &[u8], claims: &[u8]) -> String {
        let signed = format!("{}.{}", B64.encode(header), B64.encode(claims));
        let signature = self.sign(algorithm, signed.as_bytes());
        format!("{signed}.{}", B64.encode(signature))
    }

    /// The public half, as a DER `SubjectPublicKeyInfo`.
    pub fn spki_der(&self) -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = match &self.0 {
            Pair::Rsa(pair) => pair.public_key().as_der(),
            Pair::Ecdsa(_, pair) => pair.public_key().as_der(),
            Pair::Ed25519(pair) => pair.public_key().as_der(),
        }
        .expect("a public key");
        der.as_ref().to_vec()
    }

    /// The public half, as a PEM file.
    pub fn spki_pem(&self) -> String {
        let body = STANDARD.encode(self.spki_der());
        let lines: Vec<&str> = body.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).expect("base64")).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
    }

    /// The public half, as a JWK of the members that its kind needs and no other.
    pub fn public_jwk(&self) -> Value {
        let der = self.spki_der();
        let (_, spki) = SubjectPublicKeyInfo::from_der(&der).expect("a public key");
        let bits = &*spki.subject_public_key.data;
        match &self.0 {
            Pair::Rsa(_) => {
                let Ok(PublicKey::RSA(key)) = spki.parsed() else { panic!("an RSA key") };
                let number = |bytes: &[u8]| {
                    let zeros = bytes.iter().take_while(|b| **b == 0).count();
                    B64.encode(&bytes[zeros..])
                };
                json!({"kty": "RSA", "n": number(key.modulus), "e": number(key.exponent)})
            }
            Pair::Ecdsa(curve, _) => {
                let (x, y) = bits[1..].split_at(bits.len() / 2);
                json!({"kty": "EC", "crv": curve, "x": B64.encode(x), "y": B64.encode(y)})
            }
            Pair::Ed25519(_) => json!({"kty": "OKP", "crv": "Ed25519", "x": B64.encode(bits)}),
        }
    }
}
