//! Properties: nothing panics, nothing but the issuer's own token verifies, and a cached token lives no longer.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use proptest::prelude::*;

use super::*;

/// A fixture and a good token, made once.
static GOOD: LazyLock<(Fixture, String)> = LazyLock::new(|| {
    let fixture = Fixture::new();
    let token = fixture.signer.sign(&claims()).unwrap();
    (fixture, token)
});

#[test]
fn no_flip_of_one_bit_goes_unnoticed() {
    let (f, good) = &*GOOD;
    f.verify(good).unwrap();
    for at in 0..good.len() {
        for bit in 0..7 {
            let mut bytes = good.clone().into_bytes();
            bytes[at] ^= 1 << bit;
            let token = String::from_utf8(bytes).unwrap();
            assert!(f.verify(&token).is_err(), "byte {at}, bit {bit}: {token}");
        }
    }
}

/// A JSON value that looks like part of a token more often than chance would have it.
fn jsonish() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (NOW - 10..NOW + 10).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "(spiffe://(prod.example|other)/[a-z./]{0,8}|ES256|none|JWT|k1|shop|.{0,12})".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let name = prop_oneof!["(alg|kid|typ|jwk|crit|sub|aud|exp|nbf|iat|jti|cnf|act)", ".{0,6}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(name, inner, 0..8).prop_map(|m| m.into_iter().collect::<Value>()),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_text_is_refused(token in "\\PC{0,200}") {
        prop_assert!(GOOD.0.verify(&token).is_err());
    }

    #[test]
    fn arbitrary_bytes_in_three_parts_are_refused(parts in prop::array::uniform3(prop::collection::vec(any::<u8>(), 0..80))) {
        let token = parts.map(|p| B64.encode(p)).join(".");
        prop_assert!(GOOD.0.verify(&token).is_err());
    }

    #[test]
    fn arbitrary_bytes_under_a_good_header_are_refused(claims in prop::collection::vec(any::<u8>(), 0..200)) {
        let (header, rest) = GOOD.1.split_once('.').unwrap();
        let (_, signature) = rest.split_once('.').unwrap();
        let token = format!("{header}.{}.{signature}", B64.encode(claims));
        prop_assert!(GOOD.0.verify(&token).is_err());
    }

    #[test]
    fn well_formed_json_of_any_shape_is_judged_without_panic(header in jsonish(), claims in jsonish()) {
        // Signed by the right key, so that nothing stops before the part in question.
        let (f, _) = &*GOOD;
        let good_header = json!({"alg": "ES256", "kid": "k1"});
        let _ = f.verify(&f.signer.sign_with_header(&header, &claims).unwrap());
        let _ = f.verify(&f.signer.sign_with_header(&good_header, &claims).unwrap());
        let verdict = f.verify(&f.signer.sign_with_header(&header, &super::claims()).unwrap());
        if verdict.is_ok() {
            prop_assert_eq!(&header["alg"], "ES256");
            prop_assert_eq!(&header["kid"], "k1");
        }
    }

    #[test]
    fn replaced_removed_or_inserted_characters_are_noticed(
        at in any::<prop::sample::Index>(), with in "[A-Za-z0-9_.=-]", how in 0..3,
    ) {
        let (f, good) = &*GOOD;
        let (before, after) = good.split_at(at.index(good.len()));
        let rest = after.split_at(1).1;
        let token = match how {
            0 => format!("{before}{with}{rest}"),
            1 => format!("{before}{rest}"),
            _ => format!("{before}{with}{after}"),
        };
        prop_assert_eq!(f.verify(&token).is_ok(), token == *good);
    }

    #[test]
    fn truncated_tokens_are_refused(length in any::<prop::sample::Index>()) {
        let (f, good) = &*GOOD;
        prop_assert!(f.verify(good.split_at(length.index(good.len())).0).is_err());
    }

    /// Part of invariants 4 and 13: what a cache keeps lives exactly as long as the token itself.
    #[test]
    fn a_kept_token_is_good_exactly_when_the_token_is(
        iat in prop::option::of(0_u64..20), nbf in prop::option::of(0_u64..20), exp in 1_u64..40, first in 0_u64..40_000,
        later in 0_u64..60_000,
    ) {
        let (f, _) = &*GOOD;
        let mut claims = json!({"sub": "spiffe://prod.example/w", "aud": "shop", "exp": NOW + exp});
        for (name, at) in [("iat", iat), ("nbf", nbf)] {
            if let Some(at) = at {
                claims[name] = json!(NOW + at);
            }
        }
        let token = f.signer.sign(&claims).unwrap();
        let at = |ms: u64| Timestamp::from_millis(NOW * 1000 + ms);
        if let Ok(kept) = verify(&token, &f.issuers, at(first)) {
            let fresh = verify(&token, &f.issuers, at(first + later));
            prop_assert_eq!(kept.check_time(at(first + later)), fresh.map(drop));
        }
    }
}
