//! One JSON Web Key, of an issuer or of a client that proves possession of it, compiled for verification (RFC 7517; RFC
//! 7518, section 6; RFC 7638; RFC 8037).
//!
//! Pure. A key is parsed once per algorithm that it may be used with, so that a check does nothing but verify, and an
//! algorithm that a key does not have cannot be tried on it. Weak and ill-formed keys are refused, not skipped: RSA
//! below 2048 bits, points off their curve, values that are not of canonical length.

use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::error::KeyRejected;
use aws_lc_rs::signature::{ParsedPublicKey, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::algorithm::Family;
use super::verify::sha256;
use crate::object::{FieldError, IssuerKind, SigningAlgorithm};

/// The longest key id, in bytes.
const MAX_KID: usize = 256;
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A public key that signs tokens.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) kid: Arc<str>,
    verifiers: Box<[(SigningAlgorithm, ParsedPublicKey)]>,
}

/// What became of one member of a key set.
#[derive(Debug)]
pub(super) enum Compiled {
    Key(Key),
    /// Not for the issuer's tokens: for another use (Trust Domain and Bundle, section 4.2.2; RFC 7517, section 4.2), of a
    /// kind that nothing here verifies, or, but in SPIFFE, without a name that a token could call it by.
    Ignored(FieldError),
}

/// A JWK and where it stands, for error messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Jwk<'a> {
    /// Its number in the key set of an issuer; absent for the key of a client.
    index: Option<usize>,
    members: &'a Map<String, Value>,
}

/// The public part of a key, checked for strength and form.
#[derive(Debug)]
pub(super) struct PublicPart {
    pub(super) family: Family,
    bytes: Vec<u8>,
}

/// The points of Ed25519 whose order divides 8, without the sign of x; the last two are spelt past the prime. RFC 8032,
/// section 5.1.7, lets them pass, and a signature under one of them says nothing.
const SMALL_ORDER: [&str; 7] = [
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "JuiVj8KyJ7BFw_SJ8u-Y8NXfrAXTxjM5sTgCiG1T_AU",
    "xxdqcD1N2E-6PAt2DRBnDyogU_osOczGTsf9d5KsA3o",
    "7P_______________________________________38",
    "7f_______________________________________38",
    "7v_______________________________________38",
];

/// What a stranger wrote, for an error message: no longer than a name, and no control characters.
fn clipped(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(32).collect()
}

// === impl Key ===

impl Key {
    /// Compiles `jwks.keys[index]` of an issuer of this kind, for those of `allowed` that fit it.
    pub(super) fn compile(
        index: usize,
        jwk: &Value,
        kind: IssuerKind,
        allowed: &[SigningAlgorithm],
    ) -> Result<Compiled, FieldError> {
        let Value::Object(members) = jwk else {
            return Err(FieldError::new(format!("jwks.keys[{index}]"), "is not a JSON object"));
        };
        let jwk = Jwk { index: Some(index), members };
        let spiffe = kind == IssuerKind::Spiffe;
        match (jwk.optional("use")?, spiffe) {
            (Some("jwt-svid"), true) | (Some("sig") | None, false) => {}
            (Some(other), true) => {
                return Ok(Compiled::Ignored(jwk.error("use", format!("is `{}`, not `jwt-svid`", clipped(other)))));
            }
            (None, true) => {
                return Ok(Compiled::Ignored(jwk.error("use", "is missing; keys of JWT-SVIDs have `jwt-svid`")));
            }
            (Some(other), false) => {
                return Ok(Compiled::Ignored(jwk.error("use", format!("is `{}`, not `sig`", clipped(other)))));
            }
        }
        let kty = jwk.required("kty")?;
        let known = match kty {
            "RSA" | "EC" => true,
            "OKP" => !spiffe,
            _ => false,
        };
        if !known {
            return Ok(Compiled::Ignored(
                jwk.error("kty", format!("is `{}`, which no token here is signed with", clipped(kty))),
            ));
        }
        if !spiffe && kty != "RSA" && jwk.optional("crv")?.is_some_and(|crv| Family::of_curve(crv).is_none()) {
            return Ok(Compiled::Ignored(jwk.error("crv", "is a curve that no token here is signed with")));
        }
        // Providers publish keys for encryption beside those for signatures, and not every one says so in `use`.
        if !spiffe && jwk.optional("alg")?.is_some_and(|alg| SigningAlgorithm::from_name(alg).is_none()) {
            return Ok(Compiled::Ignored(jwk.error("alg", "is none that a token here is signed with")));
        }
        if !spiffe && jwk.check_operations().is_err() && members.get("key_ops").is_some_and(Value::is_array) {
            return Ok(Compiled::Ignored(jwk.error("key_ops", "does not name `verify`")));
        }
        if !spiffe && !members.contains_key("kid") {
            return Ok(Compiled::Ignored(jwk.error("kid", "is missing, so no token can name the key")));
        }
        let kid = jwk.required("kid")?;
        if !(1..=MAX_KID).contains(&kid.len()) || kid.chars().any(char::is_control) {
            return Err(jwk.error("kid", "must have 1 to 256 bytes and no control character"));
        }
        jwk.check_operations()?;
        let public = jwk.public(kty)?;
        let only = jwk.algorithm(public.family)?;
        // Parsed even when no allowed algorithm fits, so that a bad key is found whatever the issuer allows.
        let mut verifiers = Vec::new();
        for algorithm in SigningAlgorithm::ALL.into_iter().filter(|a| a.family() == public.family) {
            let parsed = jwk.verifier(&public, algorithm)?;
            if allowed.contains(&algorithm) && only.is_none_or(|only| only == algorithm) {
                verifiers.push((algorithm, parsed));
            }
        }
        Ok(Compiled::Key(Self { kid: Arc::from(kid), verifiers: verifiers.into() }))
    }

    /// The key, ready to verify signatures of `algorithm`; absent if it may not be used so.
    pub(super) fn verifier(&self, algorithm: SigningAlgorithm) -> Option<&ParsedPublicKey> {
        self.verifiers.iter().find(|(a, _)| *a == algorithm).map(|(_, key)| key)
    }

    /// Whether no algorithm of its issuer fits it.
    pub(super) fn is_unusable(&self) -> bool {
        self.verifiers.is_empty()
    }
}

// === impl PublicPart ===

impl PublicPart {
    /// Ready to verify signatures of an algorithm of its family.
    pub(super) fn verifier(&self, algorithm: SigningAlgorithm) -> Result<ParsedPublicKey, KeyRejected> {
        ParsedPublicKey::new(algorithm.verification(), &self.bytes)
    }
}

// === impl Jwk ===

impl<'a> Jwk<'a> {
    /// The key of a client, which stands alone.
    pub(super) const fn of_client(members: &'a Map<String, Value>) -> Self {
        Self { index: None, members }
    }

    fn error(&self, member: &str, message: impl Into<String>) -> FieldError {
        let field = match self.index {
            Some(index) => format!("jwks.keys[{index}].{member}"),
            None => format!("jwk.{member}"),
        };
        FieldError::new(field, message)
    }

    /// Whether it has a member of a private or symmetric key (RFC 7518, sections 6.2.2, 6.3.2 and 6.4).
    pub(super) fn holds_secrets(&self) -> bool {
        ["d", "p", "q", "dp", "dq", "qi", "oth", "k"].iter().any(|member| self.members.contains_key(*member))
    }

    pub(super) fn optional(&self, member: &str) -> Result<Option<&'a str>, FieldError> {
        match self.members.get(member) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.error(member, "is not a string")),
        }
    }

    pub(super) fn required(&self, member: &str) -> Result<&'a str, FieldError> {
        self.optional(member)?.ok_or_else(|| self.error(member, "is missing"))
    }

    fn bytes(&self, member: &str) -> Result<Vec<u8>, FieldError> {
        let text = self.required(member)?;
        URL_SAFE_NO_PAD.decode(text).map_err(|e| self.error(member, format!("is not unpadded base64url: {e}")))
    }

    /// `key_ops`, if present, names `verify`.
    pub(super) fn check_operations(&self) -> Result<(), FieldError> {
        match self.members.get("key_ops") {
            None => Ok(()),
            Some(Value::Array(ops)) if ops.iter().any(|op| op == "verify") => Ok(()),
            Some(_) => Err(self.error("key_ops", "does not name `verify`")),
        }
    }

    /// `alg`, if present, is of the key's family and then the only algorithm of the key.
    pub(super) fn algorithm(&self, family: Family) -> Result<Option<SigningAlgorithm>, FieldError> {
        let Some(name) = self.optional("alg")? else { return Ok(None) };
        match SigningAlgorithm::from_name(name) {
            Some(algorithm) if algorithm.family() == family => Ok(Some(algorithm)),
            _ => Err(self.error("alg", format!("`{}` is not an algorithm for this kind of key", clipped(name)))),
        }
    }

    /// The public part of a key of type `kty`, for which there is a family.
    pub(super) fn public(&self, kty: &str) -> Result<PublicPart, FieldError> {
        let (family, bytes) = match kty {
            "RSA" => (Family::Rsa, self.rsa()?),
            "OKP" => (Family::Ed25519, self.okp()?),
            _ => self.ec()?,
        };
        Ok(PublicPart { family, bytes })
    }

    fn verifier(&self, public: &PublicPart, algorithm: SigningAlgorithm) -> Result<ParsedPublicKey, FieldError> {
        public.verifier(algorithm).map_err(|_rejected| match public.family {
            Family::Rsa => self.error("n", "is not an RSA public key together with `e`"),
            Family::Ed25519 => self.error("x", "is not an Ed25519 public key"),
            Family::P256 | Family::P384 | Family::P521 => {
                self.error("x", "is not a point on the curve together with `y`")
            }
        })
    }

    /// SHA-256 of the required members in their one spelling (RFC 7638, section 3). Call it on a key whose public part
    /// was read: then every value is base64url or a registered name, which JSON writes without escapes.
    pub(super) fn thumbprint(&self, kty: &str) -> Result<[u8; 32], FieldError> {
        let text = match kty {
            "RSA" => format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, self.required("e")?, self.required("n")?),
            "OKP" => format!(r#"{{"crv":"{}","kty":"OKP","x":"{}"}}"#, self.required("crv")?, self.required("x")?),
            _ => {
                let (crv, x, y) = (self.required("crv")?, self.required("x")?, self.required("y")?);
                format!(r#"{{"crv":"{crv}","kty":"EC","x":"{x}","y":"{y}"}}"#)
            }
        };
        Ok(sha256(text.as_bytes()))
    }

    /// The `SubjectPublicKeyInfo` of an RSA key.
    fn rsa(&self) -> Result<Vec<u8>, FieldError> {
        let (n, e) = (self.bytes("n")?, self.bytes("e")?);
        let bits = |member: &str, value: &[u8]| match value.first() {
            None | Some(0) => Err(self.error(member, "must not be empty nor start with a zero byte")),
            Some(first) => Ok(value.len() * 8 - first.leading_zeros() as usize),
        };
        let size = bits("n", &n)?;
        if !RSA_BITS.contains(&size) {
            return Err(self.error("n", format!("has {size} bits; an RSA key has 2048 to 8192")));
        }
        let odd = e.last().is_some_and(|b| b & 1 == 1);
        if !odd || !(17..=33).contains(&bits("e", &e)?) {
            return Err(self.error("e", "is not an odd number from 65537 to 33 bits"));
        }
        let der: Result<PublicKeyX509Der<'_>, _> = RsaPublicKeyComponents { n, e }.as_der();
        der.map(|der| der.as_ref().to_vec()).map_err(|_opaque| self.error("n", "is not an RSA public key with `e`"))
    }

    /// The 32 bytes of an Ed25519 key (RFC 8037, section 2).
    fn okp(&self) -> Result<Vec<u8>, FieldError> {
        let crv = self.required("crv")?;
        if crv != "Ed25519" {
            return Err(self.error("crv", format!("`{}` is not `Ed25519`", clipped(crv))));
        }
        let x = self.bytes("x")?;
        if x.len() != 32 {
            return Err(self.error("x", format!("has {} bytes; on Ed25519 it has 32", x.len())));
        }
        let mut unsigned = x.clone();
        if let Some(last) = unsigned.last_mut() {
            *last &= 0x7f;
        }
        if SMALL_ORDER.contains(&&*URL_SAFE_NO_PAD.encode(unsigned)) {
            return Err(self.error("x", "is a point of small order, under which anybody can sign"));
        }
        Ok(x)
    }

    /// The uncompressed point of an EC key.
    fn ec(&self) -> Result<(Family, Vec<u8>), FieldError> {
        let crv = self.required("crv")?;
        let (family, length) = Family::of_curve(crv)
            .filter(|(family, _)| *family != Family::Ed25519)
            .ok_or_else(|| self.error("crv", format!("`{}` is none of `P-256`, `P-384` and `P-521`", clipped(crv))))?;
        let mut point = Vec::with_capacity(1 + 2 * length);
        point.push(4);
        for member in ["x", "y"] {
            let coordinate = self.bytes(member)?;
            if coordinate.len() != length {
                return Err(self.error(member, format!("has {} bytes; on {crv} it has {length}", coordinate.len())));
            }
            point.extend_from_slice(&coordinate);
        }
        Ok((family, point))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_hold_no_more_of_a_strangers_text_than_a_name() {
        let long = format!("\u{1b}[2J{}", "x".repeat(10_000));
        let key = json!({"kty": "EC", "use": "sig", "kid": "a", "crv": "P-256", "x": "AA", "y": "AA"});
        let compile = |kind, member: &str| {
            let mut key = key.clone();
            key[member] = json!(long);
            match Key::compile(0, &key, kind, &SigningAlgorithm::ALL) {
                Ok(Compiled::Ignored(error)) | Err(error) => error.to_string(),
                Ok(Compiled::Key(_)) => panic!("`{member}` counts for nothing"),
            }
        };
        for (kind, member) in [
            (IssuerKind::Oidc, "use"),
            (IssuerKind::Oidc, "kty"),
            (IssuerKind::Oidc, "crv"),
            (IssuerKind::Oidc, "alg"),
            (IssuerKind::Spiffe, "use"),
        ] {
            let message = compile(kind, member);
            assert!(message.contains(member), "{message}");
            assert!(message.len() < 150 && !message.chars().any(char::is_control), "{kind} {member}: {message}");
        }
        let strange = json!({"alg": long, "crv": long});
        let strange = Jwk::of_client(strange.as_object().unwrap());
        for error in
            [strange.algorithm(Family::P256).unwrap_err(), strange.okp().unwrap_err(), strange.ec().unwrap_err()]
        {
            assert!(error.to_string().len() < 150, "{error}");
        }
    }
}
