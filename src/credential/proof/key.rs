//! The public key of a client: in the header of a DPoP proof, or in the `cnf` of a workload identity token.
//!
//! Pure. As strong and well-formed as an issuer's key has to be (`credential/jwk.rs`), for one algorithm, and public:
//! a member of a private or symmetric key is refused, because whoever sends such a key has given it away. Reading its
//! form is cheap and comes first; the parts that need arithmetic wait until everything else has passed.

use aws_lc_rs::signature::ParsedPublicKey;
use serde_json::Value;

use super::super::algorithm::Family;
use super::super::jwk::{Jwk, PublicPart};
use super::{Rejection, invalid};
use crate::object::{FieldError, SigningAlgorithm};

/// A key whose form is right.
#[derive(Debug)]
pub(super) struct ClientKey {
    public: PublicPart,
    algorithm: SigningAlgorithm,
    /// RFC 7638.
    pub(super) thumbprint: [u8; 32],
}

/// A key that can verify.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) algorithm: SigningAlgorithm,
    pub(super) thumbprint: [u8; 32],
    key: ParsedPublicKey,
}

// === impl ClientKey ===

impl ClientKey {
    /// Reads a key that signs with `algorithm`.
    pub(super) fn read(jwk: &Value, algorithm: SigningAlgorithm) -> Result<Self, Rejection> {
        let Value::Object(members) = jwk else { return Err(invalid("`jwk` is not a JSON object")) };
        let jwk = Jwk::of_client(members);
        if jwk.holds_secrets() {
            return Err(invalid("`jwk` holds private or symmetric key material"));
        }
        Self::public(jwk, algorithm).map_err(|_field| unusable())
    }

    fn public(jwk: Jwk<'_>, algorithm: SigningAlgorithm) -> Result<Self, FieldError> {
        let kty = jwk.required("kty")?;
        let fits = match algorithm.family() {
            Family::Rsa => kty == "RSA",
            Family::Ed25519 => kty == "OKP",
            Family::P256 | Family::P384 | Family::P521 => kty == "EC",
        };
        let public = if fits { Some(jwk.public(kty)?) } else { None };
        let public = public.filter(|public| public.family == algorithm.family());
        let public = public.ok_or_else(|| FieldError::new("kty", "is not of the algorithm"))?;
        if jwk.optional("use")?.is_some_and(|usage| usage != "sig") {
            return Err(FieldError::new("use", "is not for signatures"));
        }
        jwk.check_operations()?;
        if jwk.algorithm(public.family)?.is_some_and(|only| only != algorithm) {
            return Err(FieldError::new("alg", "is another algorithm"));
        }
        let thumbprint = jwk.thumbprint(kty)?;
        Ok(Self { public, algorithm, thumbprint })
    }

    /// Makes it ready to verify.
    pub(super) fn compile(self) -> Result<Holder, Rejection> {
        let key = self.public.verifier(self.algorithm).map_err(|_rejected| unusable())?;
        Ok(Holder { algorithm: self.algorithm, thumbprint: self.thumbprint, key })
    }
}

fn unusable() -> Rejection {
    invalid("`jwk` is not a public key for `alg` that is well-formed and strong enough")
}

// === impl Holder ===

impl Holder {
    /// Verifies a signature of the key.
    pub(super) fn verify(&self, signed: &str, signature: &[u8]) -> Result<(), Rejection> {
        let verified = self.key.verify_sig(signed.as_bytes(), signature);
        verified.map_err(|_opaque| invalid("the signature of the proof does not verify"))
    }
}

impl PartialEq for Holder {
    fn eq(&self, other: &Self) -> bool {
        self.thumbprint == other.thumbprint && self.algorithm == other.algorithm
    }
}
