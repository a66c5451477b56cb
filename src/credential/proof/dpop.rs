//! DPoP proofs: the checks of RFC 9449, section 4.3, but for those of headers (1) and of use before (section 11.1).
//!
//! Pure. The numbers in the comments are those of the RFC. All cheap checks come before the key is parsed and the
//! signature, last, is verified: a proof for another token, request or time costs no cryptography but digests.
//! A query or fragment in `htu` is ignored, as check 9 has it.

use std::time::Duration;

use subtle::ConstantTimeEq;

use super::jws::{Claims, Parts};
use super::key::ClientKey;
use super::nonce::{Age, Nonces};
use super::{Rejection, SignedBy, Unproven, Unverified, invalid, is_digest, proven};
use crate::clock::Timestamp;
use crate::credential::TOKEN_CLOCK_SKEW;

/// How long after its `iat` a proof counts.
pub const DPOP_WINDOW: Duration = Duration::from_secs(60);
/// The algorithms that proofs may use, as a challenge names them.
pub const DPOP_ALGORITHMS: &str = "ES256 ES384 ES512 EdDSA PS256 PS384 PS512 RS256 RS384 RS512";

/// What a proof is judged by.
#[derive(Clone, Copy)]
pub struct Dpop<'a> {
    /// The value of the `DPoP` header.
    pub proof: &'a str,
    /// The method of the request.
    pub method: &'a str,
    /// Whether a URI is that of the request, but for query and fragment.
    pub is_target: &'a dyn Fn(&str) -> bool,
    /// SHA-256 of the access token; absent where one is only asked for.
    pub token_digest: Option<&'a [u8; 32]>,
    /// The thumbprint that the token is bound to; absent where any key will do.
    pub bound_to: Option<&'a [u8; 32]>,
    /// Whose nonces the proof has to carry, if it needs one.
    pub nonces: Option<&'a Nonces>,
    /// Since when proofs are remembered: an older one may have been used already.
    pub remembered_since: Timestamp,
    /// The time.
    pub now: Timestamp,
}

/// Checks a proof, all but its signature.
pub fn check_dpop<'a>(dpop: &Dpop<'a>) -> Result<Unverified<'a>, Unproven> {
    // 2, 4: one JWT, of this type. 5: asymmetric and known. 7: the key is public.
    let parts = Parts::read(dpop.proof, "dpop+jwt", true)?;
    let algorithm = parts.algorithm()?;
    let jwk = parts.header.get("jwk").ok_or(invalid("the header of the proof has no `jwk`"))?;
    let key = ClientKey::read(jwk, algorithm)?;
    // 12, second half.
    if dpop.bound_to.is_some_and(|bound| !bool::from(key.thumbprint.ct_eq(bound))) {
        return Err(invalid("the proof is of another key than the token is bound to").into());
    }
    // 3: the claims that there must be.
    let claims = parts.claims()?;
    let jti = claims.jti()?;
    // 8, 9: this method, this URI.
    if claims.text("htm", "`htm` is not a string")? != dpop.method {
        return Err(invalid("the proof is for another method").into());
    }
    if !(dpop.is_target)(claims.text("htu", "`htu` is not a string")?) {
        return Err(invalid("the proof is for another URI").into());
    }
    // 11: made just now.
    let until = check_time(&claims, dpop)?;
    // 12, first half: this token.
    if let Some(digest) = dpop.token_digest
        && !is_digest(claims.text("ath", "`ath` is not a string")?, digest)
    {
        return Err(invalid("the proof is for another access token").into());
    }
    // 10: a nonce of ours, where one is demanded.
    let nonce = claims.optional("nonce", "`nonce` is not a string")?;
    let nonce_is_old = match (dpop.nonces, nonce) {
        (None, _) => false,
        (Some(_), None) => return Err(Unproven::NeedsNonce(invalid("the proof has no `nonce`"))),
        (Some(nonces), Some(nonce)) => match nonces.age(nonce, dpop.now) {
            Age::Current => false,
            Age::Previous => true,
            Age::Unknown => {
                return Err(Unproven::NeedsNonce(invalid("`nonce` of the proof is not, or no longer, one of ours")));
            }
        },
    };
    // 6, the signature, is for the caller, last.
    let proven = proven(&key.thumbprint, jti, until, nonce_is_old);
    Ok(Unverified { key: SignedBy::Sent(key), signed: parts.signed, signature: parts.signature, proven })
}

/// Until when a proof of this time counts.
fn check_time(claims: &Claims, dpop: &Dpop<'_>) -> Result<Timestamp, Rejection> {
    let fault = "`iat` of the proof is not a whole number of seconds";
    let issued = claims.time("iat", fault)?.ok_or(invalid(fault))?;
    if issued > dpop.now.saturating_add(TOKEN_CLOCK_SKEW) {
        return Err(invalid("`iat` of the proof lies in the future"));
    }
    let until = issued.saturating_add(DPOP_WINDOW);
    if dpop.now >= until {
        return Err(invalid("the proof is too old"));
    }
    // Whole seconds: a proof of the second in which this process started counts.
    if issued.as_secs() < dpop.remembered_since.as_secs() {
        return Err(invalid("the proof was made before this enforcement point started, and may have been used"));
    }
    Ok(until)
}

impl std::fmt::Debug for Dpop<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dpop").field("method", &self.method).finish_non_exhaustive()
    }
}
