//! The decision core without a socket: warm checks, cold checks, cold checks without the signature, at two sizes.
//!
//! Budgets B2 and B3 of the design. The memo stands for the caches: `Warm` keeps everything, `NoCrypto` keeps tokens
//! and forgets answers. Read with `benches/README.md`; a ratio between two sizes counts, an absolute time does not.

#![allow(clippy::expect_used, clippy::panic, reason = "a bench that cannot run should stop")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use portcullis::authz::{self, Inputs, NoMemo};
use portcullis::cache::{CacheSizes, Gate};
use portcullis::clock::{Clock, SystemClock, Timestamp};
use portcullis::credential::{self, IssuerSet};
use portcullis::object::{Kind, Object};
use portcullis::testing::{Estate, SigningKey, Size, request};
use serde_json::json;

use self::no_crypto::NoCrypto;

#[path = "no_crypto.rs"]
mod no_crypto;

const SIZES: [(&str, Size); 2] = [
    ("1k grants, 10 policies", Size { grants: 1_000, policies: 10, workloads: 500 }),
    ("1M grants, 10k policies", Size { grants: 1_000_000, policies: 10_000, workloads: 100_000 }),
];

fn decisions(c: &mut Criterion) {
    for (name, size) in SIZES {
        let estate = Estate::sized(size);
        let snapshot = Arc::new(estate.snapshot());
        let headers = [("authorization", format!("Bearer {}", estate.token("storefront")))];
        let read = request("GET", "/catalog/1", &headers);
        let refund = request("POST", "/refunds/7", &headers);
        let settings = authz::Settings::default();
        let inputs = || Inputs {
            snapshot: Some(&snapshot),
            lease: Some(estate.lease()),
            now: estate.clock.now(),
            proofs: None,
            settings: &settings,
            uses: None,
        };

        let state = estate.state();
        let gate = Gate::new(state, Arc::clone(&estate.clock) as _, CacheSizes { tokens: 100_000, decisions: 100_000 });
        for (what, r) in [("policy", &read), ("grant", &refund)] {
            let decision = gate.check(r);
            assert!(decision.permit().is_some(), "{name} {what}: {}", decision.reason);
            c.bench_function(&format!("warm {what}, {name}"), |b| b.iter(|| gate.check(black_box(r))));
            let memo = NoCrypto::default();
            c.bench_function(&format!("cold without crypto {what}, {name}"), |b| {
                b.iter(|| authz::decide(black_box(r), inputs(), &memo));
            });
            c.bench_function(&format!("cold {what}, {name}"), |b| {
                b.iter(|| authz::decide(black_box(r), inputs(), &NoMemo));
            });
        }
    }
}

/// B2 compares a cold check with these: per algorithm, the verification of a token as a whole, and the bare verification of
/// the same signature by the same key.
fn verification(c: &mut Criterion) {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256};
    let now = Timestamp::from_secs(1_800_000_000);
    let rsa2048 = include_str!("../tests/credentials/keys/rsa2048.pem");
    let p256 = include_str!("../tests/credentials/keys/p256.pem");
    let ed25519 = include_str!("../tests/credentials/keys/ed25519.pem");
    let keys = [("RS256", rsa2048), ("ES256", p256), ("EdDSA", ed25519)].map(|(name, pem)| {
        let key = SigningKey::from_pkcs8_pem(pem);
        let mut jwk = key.public_jwk();
        jwk.as_object_mut().expect("a JWK").insert("kid".to_owned(), json!(name));
        (name, key, jwk)
    });
    let jwks: Vec<_> = keys.iter().map(|(_, _, jwk)| jwk).collect();
    // Not a SPIFFE issuer, whose tokens EdDSA may not sign; its subjects are mapped, so that claims are kept as well.
    let document = json!({"name": "idp", "kind": "oidc", "issuer": "https://idp.example", "audiences": ["shop"], "jwks": {"keys": jwks}});
    let Ok(Object::Issuer(issuer)) = Object::parse(Kind::Issuer, document.to_string().as_bytes()) else {
        panic!("an issuer")
    };
    let (issuers, _) = IssuerSet::compile([&*issuer]);
    let claims = json!({"iss": "https://idp.example", "sub": "reports", "aud": "shop", "iat": now.as_secs() - 60, "exp": now.as_secs() + 240, "jti": "1"});
    for (name, key, _) in &keys {
        let header = json!({"alg": name, "kid": name, "typ": "JWT"});
        let token = key.token(name, header.to_string().as_bytes(), claims.to_string().as_bytes());
        assert!(credential::verify(&token, &issuers, now).is_ok(), "{name}");
        c.bench_function(&format!("verify a token ({name})"), |b| {
            b.iter(|| credential::verify(black_box(&token), &issuers, now));
        });
        let bare = match *name {
            "RS256" => ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.spki_der()),
            "ES256" => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.spki_der()),
            _ => ParsedPublicKey::new(&ED25519, key.spki_der()),
        };
        let bare = bare.expect("a key");
        let (signed, _) = token.rsplit_once('.').expect("a token");
        let signature = key.sign(name, signed.as_bytes());
        assert!(bare.verify_sig(signed.as_bytes(), &signature).is_ok(), "{name}");
        c.bench_function(&format!("one signature verification ({name})"), |b| {
            b.iter(|| bare.verify_sig(black_box(signed.as_bytes()), &signature).is_ok());
        });
    }
}

/// B7: one changed grant on top of a snapshot.
fn apply(c: &mut Criterion) {
    for (name, size) in SIZES {
        let mut estate = Estate::sized(size);
        let snapshot = estate.snapshot();
        let (_, change) = estate.grant("agent", "payments/refunds", &["write"], None, 60);
        let form = (change.sent(), change.key);
        c.bench_with_input(BenchmarkId::new("apply one grant", name), &form, |b, (form, key)| {
            b.iter(|| {
                let mut builder = authz::Builder::on(&snapshot);
                builder.take_in(authz::Prepared::sent(Kind::Grant, key.clone(), form.clone()));
                builder.finish(estate.position())
            });
        });
    }
    let clock = SystemClock::new();
    c.bench_function("clock", |b| b.iter(|| black_box(clock.now())));
}

criterion_group!(benches, verification, decisions, apply);
criterion_main!(benches);
