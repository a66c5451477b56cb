//! One JSON Web Key of a SPIFFE bundle, compiled for verification (RFC 7517; RFC 7518, section 6).
//!
//! Pure. A key is parsed once per algorithm that it may be used with, so that a check does nothing but verify, and an
//! algorithm that a key does not have cannot be tried on it. Weak and ill-formed keys are refused, not skipped: RSA
//! below 2048 bits, points off their curve, values that are not of canonical length.

use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{ParsedPublicKey, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::algorithm::Family;
use crate::object::{FieldError, SigningAlgorithm};

/// The longest key id, in bytes.
const MAX_KID: usize = 256;
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A public key that signs JWT-SVIDs.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) kid: Arc<str>,
    verifiers: Box<[(SigningAlgorithm, ParsedPublicKey)]>,
}

/// What became of one member of a key set.
#[derive(Debug)]
pub(super) enum Compiled {
    Key(Key),
    /// Not for JWT-SVIDs, says the standard (Trust Domain and Bundle, sections 4.1.3 and 4.2.2).
    Ignored(FieldError),
}

/// A JWK and where it stands, for error messages.
struct Jwk<'a> {
    index: usize,
    members: &'a Map<String, Value>,
}

// === impl Key ===

impl Key {
    /// Compiles `jwks.keys[index]` for those of `allowed` that fit it.
    pub(super) fn compile(index: usize, jwk: &Value, allowed: &[SigningAlgorithm]) -> Result<Compiled, FieldError> {
        let Value::Object(members) = jwk else {
            return Err(FieldError::new(format!("jwks.keys[{index}]"), "is not a JSON object"));
        };
        let jwk = Jwk { index, members };
        match jwk.optional("use")? {
            Some("jwt-svid") => {}
            Some(other) => return Ok(Compiled::Ignored(jwk.error("use", format!("is `{other}`, not `jwt-svid`")))),
            None => return Ok(Compiled::Ignored(jwk.error("use", "is missing; keys of JWT-SVIDs have `jwt-svid`"))),
        }
        let kty = jwk.required("kty")?;
        if !matches!(kty, "RSA" | "EC") {
            return Ok(Compiled::Ignored(jwk.error("kty", format!("is `{kty}`, neither `RSA` nor `EC`"))));
        }
        let kid = jwk.required("kid")?;
        if !(1..=MAX_KID).contains(&kid.len()) || kid.chars().any(char::is_control) {
            return Err(jwk.error("kid", "must have 1 to 256 bytes and no control character"));
        }
        jwk.check_operations()?;
        let (family, public) = if kty == "RSA" { (Family::Rsa, jwk.rsa()?) } else { jwk.ec()? };
        let only = jwk.algorithm(family)?;
        // Parsed even when no allowed algorithm fits, so that a bad key is found whatever the issuer allows.
        let mut verifiers = Vec::new();
        for algorithm in SigningAlgorithm::ALL.into_iter().filter(|a| a.family() == family) {
            let parsed = ParsedPublicKey::new(algorithm.verification(), &public).map_err(|_rejected| match family {
                Family::Rsa => jwk.error("n", "is not an RSA public key together with `e`"),
                Family::P256 | Family::P384 | Family::P521 => {
                    jwk.error("x", "is not a point on the curve together with `y`")
                }
            })?;
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

// === impl Jwk ===

impl<'a> Jwk<'a> {
    fn error(&self, member: &str, message: impl Into<String>) -> FieldError {
        FieldError::new(format!("jwks.keys[{}].{member}", self.index), message)
    }

    fn optional(&self, member: &str) -> Result<Option<&'a str>, FieldError> {
        match self.members.get(member) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.error(member, "is not a string")),
        }
    }

    fn required(&self, member: &str) -> Result<&'a str, FieldError> {
        self.optional(member)?.ok_or_else(|| self.error(member, "is missing"))
    }

    fn bytes(&self, member: &str) -> Result<Vec<u8>, FieldError> {
        let text = self.required(member)?;
        URL_SAFE_NO_PAD.decode(text).map_err(|e| self.error(member, format!("is not unpadded base64url: {e}")))
    }

    /// `key_ops`, if present, names `verify`.
    fn check_operations(&self) -> Result<(), FieldError> {
        match self.members.get("key_ops") {
            None => Ok(()),
            Some(Value::Array(ops)) if ops.iter().any(|op| op == "verify") => Ok(()),
            Some(_) => Err(self.error("key_ops", "does not name `verify`")),
        }
    }

    /// `alg`, if present, is of the key's family and then the only algorithm of the key.
    fn algorithm(&self, family: Family) -> Result<Option<SigningAlgorithm>, FieldError> {
        let Some(name) = self.optional("alg")? else { return Ok(None) };
        match SigningAlgorithm::from_name(name) {
            Some(algorithm) if algorithm.family() == family => Ok(Some(algorithm)),
            _ => Err(self.error("alg", format!("`{name}` is not an algorithm for this kind of key"))),
        }
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

    /// The uncompressed point of an EC key.
    fn ec(&self) -> Result<(Family, Vec<u8>), FieldError> {
        let crv = self.required("crv")?;
        let (family, length) = Family::of_curve(crv)
            .ok_or_else(|| self.error("crv", format!("`{crv}` is none of `P-256`, `P-384` and `P-521`")))?;
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
