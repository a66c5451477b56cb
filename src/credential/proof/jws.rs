//! The parts of a proof: compact serialisation, header and claims as strict JSON (RFC 7515; RFC 7519; RFC 8725).
//!
//! Pure. The same strictness as for tokens: no duplicate member at any depth, whole numbers, unpadded base64url with one
//! spelling. INVARIANT: nothing is decoded that is larger than the cap, and no header member but `jwk`, where the kind of
//! proof has one, can bring a key or change the processing. Fails closed.

use serde_json::{Map, Value};

use super::super::json::StrictValue;
use super::super::jws::{Compact, DANGEROUS, decode};
use super::{MAX_PROOF, Rejection, invalid};
use crate::clock::Timestamp;
use crate::object::SigningAlgorithm;

/// The longest `jti`, in bytes.
const MAX_JTI: usize = 256;

/// A proof, decoded and not verified.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) header: Map<String, Value>,
    claims: &'a str,
    pub(super) signature: Vec<u8>,
    pub(super) signed: &'a str,
}

/// The claims of a proof.
#[derive(Debug)]
pub(super) struct Claims(Map<String, Value>);

// === impl Parts ===

impl<'a> Parts<'a> {
    /// Splits a proof, and reads its header, whose `typ` has to be this and whose members may include `jwk` or not.
    pub(super) fn read(proof: &'a str, typ: &str, has_jwk: bool) -> Result<Self, Rejection> {
        if proof.len() > MAX_PROOF {
            return Err(invalid("the proof is longer than 8 KiB"));
        }
        let not_a_jws = |_rejected| invalid("the proof is not a JWS of three parts in unpadded base64url");
        let parts = Compact::split(proof).map_err(not_a_jws)?;
        let header = decode(parts.header).map_err(not_a_jws)?;
        let header = object(&header, "the header of the proof is not a JSON object of distinct members")?;
        if header.get("typ").and_then(Value::as_str) != Some(typ) {
            return Err(invalid("`typ` is not that of a proof"));
        }
        if DANGEROUS.iter().any(|name| header.contains_key(*name) && !(has_jwk && *name == "jwk")) {
            return Err(invalid("the header of the proof has a member that carries a key or changes the processing"));
        }
        let signature = decode(parts.signature).map_err(not_a_jws)?;
        if signature.is_empty() {
            return Err(invalid("the signature of the proof is empty"));
        }
        Ok(Self { header, claims: parts.claims, signature, signed: parts.signed })
    }

    /// The algorithm: asymmetric, and one that is known.
    pub(super) fn algorithm(&self) -> Result<SigningAlgorithm, Rejection> {
        let name = self.header.get("alg").and_then(Value::as_str);
        name.and_then(SigningAlgorithm::from_name)
            .ok_or(invalid("`alg` of the proof is not a known asymmetric signature algorithm"))
    }

    /// The claims.
    pub(super) fn claims(&self) -> Result<Claims, Rejection> {
        let text = decode(self.claims).map_err(|_rejected| invalid("the claims of the proof are not base64url"))?;
        object(&text, "the claims of the proof are not a JSON object of distinct members").map(Claims)
    }
}

fn object(json: &[u8], fault: &'static str) -> Result<Map<String, Value>, Rejection> {
    match StrictValue::parse(json) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) | Err(_) => Err(invalid(fault)),
    }
}

// === impl Claims ===

impl Claims {
    /// A text, if there is the claim.
    pub(super) fn optional(&self, name: &str, fault: &'static str) -> Result<Option<&str>, Rejection> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(fault)),
        }
    }

    /// A text.
    pub(super) fn text(&self, name: &str, fault: &'static str) -> Result<&str, Rejection> {
        self.optional(name, fault)?.ok_or(invalid(fault))
    }

    /// A NumericDate that is a whole number, if there is the claim.
    pub(super) fn time(&self, name: &str, fault: &'static str) -> Result<Option<Timestamp>, Rejection> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        let seconds = value.as_u64().filter(|seconds| *seconds <= Timestamp::MAX.as_secs());
        seconds.map(|seconds| Some(Timestamp::from_secs(seconds))).ok_or(invalid(fault))
    }

    /// The id of the proof.
    pub(super) fn jti(&self) -> Result<&str, Rejection> {
        let fault = "`jti` of the proof is not a string of 1 to 256 bytes";
        let jti = self.text("jti", fault)?;
        if (1..=MAX_JTI).contains(&jti.len()) { Ok(jti) } else { Err(invalid(fault)) }
    }

    /// Whether there is the claim.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}
