//! The `cnf` claim: what a token is bound to (RFC 7800, section 3.1; RFC 8705, section 3.1; RFC 9449, section 6.1).
//!
//! Pure. Understood are `x5t#S256`, `jkt` and, in a WIMSE workload identity token only, `jwk`. INVARIANT: a claim with
//! none of them, with any other member, of a wrong type, or that binds to two keys is refused and never read as "not
//! bound". Where a certificate and a key are named, both have to be proven.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use subtle::ConstantTimeEq;

use super::key::{ClientKey, Holder};
use super::{Rejection, invalid};
use crate::object::SigningAlgorithm;

/// What a token is bound to: a certificate, a key, or both.
#[derive(Clone, PartialEq)]
pub struct Confirmation {
    certificate: Option<[u8; 32]>,
    key: Option<Bound>,
}

#[derive(Clone, PartialEq)]
enum Bound {
    /// `jkt`
    Thumbprint([u8; 32]),
    /// `jwk`
    Key(Arc<Holder>),
}

// === impl Confirmation ===

impl Confirmation {
    /// Reads the claim of a token, which is a WIMSE workload identity token or is not.
    pub(in crate::credential) fn read(cnf: &Value, is_wit: bool) -> Result<Self, Rejection> {
        let Value::Object(members) = cnf else { return Err(invalid("`cnf` is not a JSON object")) };
        let mut confirmation = Self { certificate: None, key: None };
        for (name, value) in members {
            match name.as_str() {
                "x5t#S256" => confirmation.certificate = Some(digest(value)?),
                "jkt" if is_wit => return Err(invalid("a workload identity token is bound by `jwk`, not by `jkt`")),
                "jwk" if !is_wit => return Err(invalid("`cnf.jwk` is proven in workload identity tokens only")),
                // A second name for the key comes here too, whatever the order: the first has set it.
                "jkt" | "jwk" if confirmation.key.is_some() => return Err(invalid("`cnf` binds to two keys")),
                "jkt" => confirmation.key = Some(Bound::Thumbprint(digest(value)?)),
                "jwk" => confirmation.key = Some(Bound::Key(Arc::new(holder(value)?))),
                _ => return Err(invalid("`cnf` has a member that is not understood")),
            }
        }
        if is_wit && confirmation.key.is_none() {
            return Err(invalid("a workload identity token is bound to a key by `cnf.jwk`"));
        }
        if confirmation.certificate.is_none() && confirmation.key.is_none() {
            return Err(invalid("`cnf` is empty"));
        }
        Ok(confirmation)
    }

    /// What it names, as in the claim.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let key = self.key.as_ref().map(|key| match key {
            Bound::Thumbprint(_) => "jkt",
            Bound::Key(_) => "jwk",
        });
        self.certificate.map(|_| "x5t#S256").into_iter().chain(key)
    }

    /// Whether a client certificate is part of the proof.
    pub const fn needs_certificate(&self) -> bool {
        self.certificate.is_some()
    }

    /// Whether this is the certificate, by SHA-256 of its DER form (RFC 8705, section 3).
    pub fn is_certificate(&self, thumbprint: &[u8; 32]) -> bool {
        self.certificate.is_some_and(|bound| bound.ct_eq(thumbprint).into())
    }

    /// The thumbprint of the key that a DPoP proof has to be made with, if one is needed.
    pub const fn dpop_thumbprint(&self) -> Option<&[u8; 32]> {
        match &self.key {
            Some(Bound::Thumbprint(jkt)) => Some(jkt),
            Some(Bound::Key(_)) | None => None,
        }
    }

    /// The key that a workload proof token has to be made with, if one is needed.
    pub(super) fn holder(&self) -> Option<&Holder> {
        match &self.key {
            Some(Bound::Key(key)) => Some(key),
            Some(Bound::Thumbprint(_)) | None => None,
        }
    }

    /// Whether a workload proof token is part of the proof.
    pub const fn needs_wpt(&self) -> bool {
        matches!(self.key, Some(Bound::Key(_)))
    }
}

impl fmt::Debug for Confirmation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

fn digest(value: &Value) -> Result<[u8; 32], Rejection> {
    let bytes = value.as_str().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(invalid("a thumbprint in `cnf` is not SHA-256 in unpadded base64url"))
}

/// The key of a workload identity token says itself which algorithm its proofs use.
fn holder(jwk: &Value) -> Result<Holder, Rejection> {
    let algorithm = jwk.get("alg").and_then(Value::as_str).and_then(SigningAlgorithm::from_name);
    let algorithm = algorithm.ok_or(invalid("`cnf.jwk` has no `alg`, or none of a known asymmetric signature"))?;
    ClientKey::read(jwk, algorithm)?.compile()
}
