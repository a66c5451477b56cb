//! The classes of token vulnerabilities that have CVEs, a test for each, named after it.
//!
//! Each goes through the caches, where two of them live, and first shows that the same token without the attack is allowed.

use std::sync::Arc;

use portcullis::authz::Reason::{
    self, AllowPolicy, CredentialAlg, CredentialIssuerUntrusted, CredentialKidUnknown, CredentialMalformed,
    CredentialSignature, CredentialSubject,
};
use portcullis::cache::Gate;
use portcullis::clock::Timestamp;
use portcullis::credential::check_issuer;
use portcullis::object::Issuer;
use portcullis::testing::request;
use serde_json::{Value, json};

use crate::credentials::{Case, Corpus, NOW, gate};

struct Bench {
    corpus: Corpus,
    gate: Arc<Gate>,
}

impl Bench {
    fn new() -> Self {
        let corpus = Corpus::load();
        let (gate, bad) = gate(&corpus, &corpus.common, Timestamp::from_secs(NOW));
        assert!(bad.is_empty(), "{bad:?}");
        Self { corpus, gate }
    }

    /// The token that a case of the corpus' form describes.
    fn token(&self, case: &Value) -> String {
        let mut case = case.clone();
        case["name"] = json!("inline");
        case["reason"] = json!("allow.policy");
        let case: Case = serde_json::from_value(case).unwrap();
        self.corpus.token("svid", &case)
    }

    fn judge(&self, token: &str) -> Reason {
        let headers = [("authorization", format!("Bearer {token}"))];
        let request = request("GET", "/catalog/1", &headers);
        let first = self.gate.check(&request).reason;
        assert_eq!(self.gate.check(&request).reason, first, "the second time, from the caches");
        first
    }

    #[track_caller]
    fn gives(&self, case: &Value, reason: Reason) {
        assert_eq!(self.judge(&self.token(case)), reason, "{case}");
    }
}

/// CVE-2026-25537: a claim of the wrong type was skipped, and the token counted as one without it.
#[test]
fn wrong_typed_exp_and_nbf_are_not_treated_as_absent() {
    let b = Bench::new();
    b.gives(&json!({"claims": {"with": {"nbf": NOW}}}), AllowPolicy);
    for claim in ["exp", "nbf", "iat"] {
        for raw in ["\"0\"", "\"never\"", "null", "true", "[]", "{}", "0.5", "-1", "1e1"] {
            b.gives(&json!({"claims": {"raw": {claim: raw}}}), CredentialMalformed);
        }
    }
}

#[test]
fn exp_as_float_string_or_huge_is_refused() {
    let b = Bench::new();
    b.gives(&json!({"claims": {"raw": {"exp": (NOW + 60).to_string()}}}), AllowPolicy);
    for raw in [
        format!("{}.0", NOW + 60),
        format!("\"{}\"", NOW + 60),
        "1.80000006e9".to_owned(),
        "1e400".to_owned(),
        "9223372036854775807".to_owned(),
        "18446744073709551616".to_owned(),
        "9".repeat(400),
    ] {
        b.gives(&json!({"claims": {"raw": {"exp": raw}}}), CredentialMalformed);
    }
}

/// CVE-2015-9235, CVE-2016-10555.
#[test]
fn algorithm_confusion_with_the_public_key_as_hmac_secret() {
    let b = Bench::new();
    for (key, kid, name) in [("rsa2048", "rsa", "RS256"), ("p256", "ec", "ES256")] {
        b.gives(&json!({"key": key, "header": {"with": {"alg": name, "kid": kid}}}), AllowPolicy);
        for form in ["pem", "pem-without-newline", "der", "jwk", "empty"] {
            let hmac = json!({"secret": form, "of": key});
            for alg in ["HS256", "HS384", "HS512"] {
                b.gives(&json!({"hmac": hmac, "header": {"with": {"alg": alg, "kid": kid}}}), CredentialAlg);
            }
            let under_its_own_name =
                json!({"hmac": hmac, "sign": "HS256", "header": {"with": {"alg": name, "kid": kid}}});
            b.gives(&under_its_own_name, CredentialSignature);
        }
    }
}

/// CVE-2022-23540 and, for empty signatures, CVE-2020-28042. Every one of the 16 spellings.
#[test]
fn none_in_any_casing() {
    let b = Bench::new();
    for bits in 0_u8..16 {
        let spell = |(i, c): (usize, char)| if bits >> i & 1 == 1 { c.to_ascii_uppercase() } else { c };
        let none: String = "none".chars().enumerate().map(spell).collect();
        for form in ["{header}.{claims}.", "{header}.{claims}.{signature}", "{header}.{claims}.AA"] {
            b.gives(&json!({"header": {"with": {"alg": none}}, "token": form}), CredentialAlg);
        }
    }
    b.gives(&json!({"token": "{header}.{claims}."}), CredentialMalformed);
}

/// A `kid` that a key store takes for a path, a query or a URL.
#[test]
fn kid_injection() {
    let b = Bench::new();
    for kid in [
        "../../../../dev/null",
        "/proc/sys/kernel/randomize_va_space",
        "file:///dev/null",
        "https://attacker.example/jwks.json",
        "' UNION SELECT 'x",
        "ec\u{0}",
        "ec/../only-other",
        "$(id)",
        "*",
        "",
    ] {
        b.gives(&json!({"header": {"with": {"kid": kid}}}), CredentialKidUnknown);
        b.gives(&json!({"key": "p256-other", "header": {"with": {"kid": kid}}}), CredentialKidUnknown);
        let hmac = json!({"secret": "empty", "of": "p256"});
        b.gives(&json!({"hmac": hmac, "header": {"with": {"kid": kid, "alg": "HS256"}}}), CredentialAlg);
    }
}

/// CVE-2018-0114: the key that the token brings along verifies it.
#[test]
fn embedded_key() {
    let b = Bench::new();
    let attacker = b.corpus.keys["p256-other"].public_jwk();
    for member in ["jwk", "jku", "x5u", "x5c"] {
        let value = match member {
            "jwk" => attacker.clone(),
            "x5c" => json!(["MIIB"]),
            _ => json!("https://attacker.example/keys"),
        };
        for kid in [json!("ec"), json!("attacker"), Value::Null] {
            let header = json!({"with": {member: value, "kid": kid}});
            b.gives(&json!({"key": "p256-other", "header": header}), CredentialMalformed);
        }
    }
}

/// Keys kept under their `kid`, whoever's they are.
#[test]
fn key_set_cache_keyed_by_kid_alone() {
    let b = Bench::new();
    let of =
        |key: &str, domain: &str| json!({"key": key, "claims": {"with": {"sub": format!("spiffe://{domain}/web")}}});
    // Both issuers have a key `ec`. In either order, after either was used.
    for _ in 0..2 {
        b.gives(&of("p256", "prod.example"), AllowPolicy);
        b.gives(&of("p256", "other.example"), CredentialSignature);
        b.gives(&of("p256-other", "other.example"), AllowPolicy);
        b.gives(&of("p256-other", "prod.example"), CredentialSignature);
    }
    // The same `iss` twice, for two types of token, and a key `ed` in both sets.
    let ed = |key: &str, typ: &str| {
        json!({"template": "at", "key": key, "header": {"with": {"alg": "EdDSA", "kid": "ed", "typ": typ}},
               "claims": {"with": {"iss": "https://idp.example", "sub": "client-reports"}}})
    };
    b.gives(&ed("ed25519", "JWT"), AllowPolicy);
    b.gives(&ed("ed25519", "at+jwt"), CredentialSignature);
    b.gives(&ed("ed25519-other", "at+jwt"), AllowPolicy);
    b.gives(&ed("ed25519-other", "JWT"), CredentialSignature);
}

/// The token cache of a proxy looked tokens up by their signature: whoever had a good one could write any claims.
#[test]
fn token_cache_keyed_by_signature() {
    let b = Bench::new();
    let good = b.token(&json!({}));
    assert_eq!(b.judge(&good), AllowPolicy);
    let other = b.token(&json!({"claims": {"with": {"sub": "spiffe://prod.example/delegate"}}}));
    assert_eq!(b.judge(&other), AllowPolicy);
    let (_, signature) = good.rsplit_once('.').unwrap();
    let (signed, _) = other.rsplit_once('.').unwrap();
    assert_eq!(b.judge(&format!("{signed}.{signature}")), CredentialSignature);
    assert_eq!(b.judge(&good), AllowPolicy, "and the forgery threw nothing out");
}

/// The same, looked up by what is signed: whoever had seen a token's claims needed no signature.
#[test]
fn token_cache_keyed_by_claims() {
    let b = Bench::new();
    let good = b.token(&json!({}));
    assert_eq!(b.judge(&good), AllowPolicy);
    let (signed, _) = good.rsplit_once('.').unwrap();
    let forged = b.token(&json!({"key": "p256-other"}));
    assert!(forged.starts_with(signed), "the same header and claims");
    assert_eq!(b.judge(&forged), CredentialSignature);
    assert_eq!(b.judge(&format!("{signed}.{}", "A".repeat(86))), CredentialSignature);
    assert_eq!(b.judge(&format!("{signed}.")), CredentialMalformed);
    // The same `jti`, subject and times under another header and key.
    b.gives(&json!({"key": "rsa2048-other", "header": {"with": {"alg": "RS256", "kid": "rsa"}}}), CredentialSignature);
    assert_eq!(b.judge(&good), AllowPolicy);
}

/// One trust domain, or something that looks like it, speaks for another.
#[test]
fn trust_domain_confusion() {
    let b = Bench::new();
    let sub = |sub: &str| json!({"claims": {"with": {"sub": sub}}});
    b.gives(&sub("spiffe://prod.example/web"), AllowPolicy);
    b.gives(&sub("spiffe://other.example/web"), CredentialSignature);
    for domain in ["prod.example.attacker", "x.prod.example", "prod", "example", "prod.example."] {
        b.gives(&sub(&format!("spiffe://{domain}/web")), CredentialIssuerUntrusted);
    }
    for sub_ in [
        "spiffe://PROD.example/web",
        "spiffe://prod.example@other.example/web",
        "spiffe://prod.example:443/web",
        "spiffe://prod.example%2f@other.example/web",
        "spiffe:///prod.example/web",
    ] {
        b.gives(&sub(sub_), CredentialSubject);
    }
    // `iss` says one thing and `sub` another: `sub` picks the keys, and only its own.
    let both = json!({"with": {"iss": "https://idp.example", "sub": "spiffe://other.example/web"}});
    b.gives(&json!({"key": "p256", "claims": both}), CredentialSignature);
    b.gives(
        &json!({"key": "rsa2048", "header": {"with": {"alg": "RS256", "kid": "rsa"}}, "claims": both}),
        CredentialKidUnknown,
    );
}

/// A signature with more behind it, which a verifier of prefixes takes.
#[test]
fn signature_with_trailing_bytes() {
    let b = Bench::new();
    for (template, key, kid, alg) in [
        ("svid", "p256", "ec", "ES256"),
        ("svid", "p521", "ec521", "ES512"),
        ("svid", "rsa2048", "rsa", "RS256"),
        ("svid", "rsa2048", "rsa", "PS256"),
        ("oidc", "ed25519", "ed", "EdDSA"),
    ] {
        let with = |how: Value| json!({"template": template, "key": key, "header": {"with": {"alg": alg, "kid": kid}}, "signature": how});
        b.gives(&with(Value::Null), AllowPolicy);
        for how in ["append-zero", "append-many", "prepend-zero", "twice"] {
            b.gives(&with(json!(how)), CredentialSignature);
        }
    }
    b.gives(&json!({"token": "{header}.{claims}.{signature}A"}), CredentialSignature);
    for behind in ["=", "==", ".", " x", "%00"] {
        b.gives(&json!({"token": format!("{{header}}.{{claims}}.{{signature}}{behind}")}), CredentialMalformed);
    }
}

/// RFC 7518, section 3.4: a JWS has R and S side by side, and DER has many spellings.
#[test]
fn es256_in_der() {
    let b = Bench::new();
    for (key, kid, alg) in [("p256", "ec", "ES256"), ("p384", "ec384", "ES384")] {
        let header = json!({"with": {"alg": alg, "kid": kid}});
        b.gives(&json!({"key": key, "header": header}), AllowPolicy);
        b.gives(&json!({"key": key, "header": header, "signature": "der"}), CredentialSignature);
    }
}

fn issuer_with(jwk: Value) -> Issuer {
    let document = json!({"name": "x", "kind": "spiffe", "trust_domain": "x.example", "audiences": ["shop"], "jwks": {"keys": [jwk]}});
    serde_json::from_value(document).unwrap()
}

#[track_caller]
fn has_no_keys(b: &Bench, issuer: &Issuer, field: &str, token: &Value) {
    assert_eq!(check_issuer(issuer).unwrap_err().field, field);
    let issuers: Vec<Issuer> = b.corpus.common.iter().chain([issuer]).cloned().collect();
    let (gate, bad) = gate(&b.corpus, &issuers, Timestamp::from_secs(NOW));
    assert_eq!(bad.into_iter().collect::<Vec<_>>(), ["x"], "and no other issuer");
    let b = Bench { corpus: Corpus::load(), gate };
    b.gives(token, CredentialIssuerUntrusted);
    b.gives(&json!({}), AllowPolicy);
}

#[test]
fn rsa_below_2048_bits() {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
    let b = Bench::new();
    let n = B64.decode(b.corpus.keys["rsa2048"].public_jwk()["n"].as_str().unwrap()).unwrap();
    let token = json!({"key": "rsa2048", "header": {"with": {"alg": "RS256", "kid": "r"}},
                       "claims": {"with": {"sub": "spiffe://x.example/web"}}});
    for bytes in [64, 128, 192, 255] {
        let jwk = json!({"kty": "RSA", "kid": "r", "use": "jwt-svid", "e": "AQAB", "n": B64.encode(&n[..bytes])});
        has_no_keys(&b, &issuer_with(jwk), "jwks.keys[0].n", &token);
    }
}

/// CVE-2015-7940 and its like: a point of another curve gives the private key away; a verifier takes none of them.
#[test]
fn ec_point_off_curve() {
    let b = Bench::new();
    let good = b.corpus.keys["p256"].public_jwk();
    let other = b.corpus.keys["p256-other"].public_jwk();
    let zero = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let token = json!({"header": {"with": {"kid": "e"}}, "claims": {"with": {"sub": "spiffe://x.example/web"}}});
    for (x, y) in [
        (good["x"].clone(), other["y"].clone()),
        (good["y"].clone(), good["x"].clone()),
        (json!(zero), json!(zero)),
        (good["x"].clone(), json!(zero)),
        // The prime of the field itself: zero by another name.
        (json!("_____wAAAAEAAAAAAAAAAAAAAAD_______________8"), good["y"].clone()),
    ] {
        let jwk = json!({"kty": "EC", "crv": "P-256", "kid": "e", "use": "jwt-svid", "x": x, "y": y});
        has_no_keys(&b, &issuer_with(jwk), "jwks.keys[0].x", &token);
    }
}
