//! The decision core without a socket: warm checks, cold checks, cold checks without the signature, at two sizes.
//!
//! Budgets B2 and B3 of the design. The memo stands for the caches: `Warm` keeps everything, `NoCrypto` keeps tokens
//! and forgets answers. Read with `benches/README.md`; a ratio between two sizes counts, an absolute time does not.

#![allow(clippy::expect_used, clippy::panic, reason = "a bench that cannot run should stop")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use portcullis::authz::{self, Inputs, KnownAnswer, KnownToken, Memo, NoMemo};
use portcullis::cache::{CacheSizes, Gate};
use portcullis::clock::{Clock, SystemClock, Timestamp};
use portcullis::credential::{self, IssuerSet};
use portcullis::object::{Kind, Object};
use portcullis::testing::{Estate, Size, request};

/// Remembers the one token, and no answer: what is left is everything but the signature and the policy cache.
#[derive(Default)]
struct NoCrypto(std::sync::OnceLock<Arc<KnownToken>>);

impl Memo for NoCrypto {
    fn token(&self, _: &[u8; 32], usable: impl Fn(&KnownToken) -> bool) -> Option<Arc<KnownToken>> {
        self.0.get().filter(|k| usable(k)).cloned()
    }
    fn keep_token(&self, _: [u8; 32], token: &Arc<KnownToken>) {
        let _ = self.0.set(Arc::clone(token));
    }
    fn answer(&self, _: &[u8], _: impl Fn(&KnownAnswer) -> bool) -> Option<Arc<KnownAnswer>> {
        None
    }
    fn keep_answer(&self, _: &[u8], _: &Arc<KnownAnswer>) {}
}

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

/// B2 compares a cold check with these two: the bare signature, and the verification of a token as a whole.
fn verification(c: &mut Criterion) {
    let estate = Estate::new();
    let issuer = estate.changes().into_iter().find(|c| c.kind == Kind::Issuer).and_then(|c| c.body).expect("an issuer");
    let Ok(Object::Issuer(issuer)) = Object::parse(Kind::Issuer, &issuer) else { panic!("an issuer") };
    let issuer = *issuer;
    let (issuers, _) = IssuerSet::compile([&issuer]);
    let token = estate.token("storefront");
    let now: Timestamp = estate.clock.now().wall;
    c.bench_function("verify a token (ES256)", |b| b.iter(|| credential::verify(black_box(&token), &issuers, now)));

    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    let random = aws_lc_rs::rand::SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).expect("a key");
    let signature = pair.sign(&random, token.as_bytes()).expect("a signature");
    let key = aws_lc_rs::signature::ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pair.public_key().as_ref())
        .expect("a key");
    c.bench_function("one signature verification (ES256)", |b| {
        b.iter(|| key.verify_sig(black_box(token.as_bytes()), signature.as_ref()).is_ok());
    });
}

/// B7: one changed grant on top of a snapshot.
fn apply(c: &mut Criterion) {
    for (name, size) in SIZES {
        let mut estate = Estate::sized(size);
        let snapshot = estate.snapshot();
        let (_, change) = estate.grant("agent", "payments/refunds", &["write"], None, 60);
        c.bench_with_input(BenchmarkId::new("apply one grant", name), &change, |b, change| {
            b.iter(|| {
                let mut builder = authz::Builder::on(&snapshot);
                builder.apply(change.clone());
                builder.finish(estate.position())
            });
        });
    }
    let clock = SystemClock::new();
    c.bench_function("clock", |b| b.iter(|| black_box(clock.now())));
}

criterion_group!(benches, decisions, verification, apply);
criterion_main!(benches);
