//! Workload proof tokens (draft-ietf-wimse-wpt-02, section 2): a WIMSE workload identity token's proof. Experimental.
//!
//! Pure. Follows a draft and will change with it. `alg` is the one that `cnf.jwk` names, `aud` is the URI of the request,
//! `wth` the digest of the workload identity token, `tth` that of the transaction token of the request, which is then
//! required. `oth` binds tokens that nothing here understands, so it is refused, as the draft has it.

use std::time::Duration;

use super::cnf::Confirmation;
use super::jws::{Claims, Parts};
use super::{Rejection, SignedBy, Unproven, Unverified, invalid, is_digest, proven, sha256};
use crate::clock::Timestamp;
use crate::credential::TOKEN_CLOCK_SKEW;

/// How far ahead the `exp` of a proof may lie.
pub const WPT_MAX_LIFETIME: Duration = Duration::from_secs(300);

/// What a proof is judged by.
#[derive(Clone, Copy)]
pub struct Wpt<'a> {
    /// The proof.
    pub proof: &'a str,
    /// What the workload identity token is bound to.
    pub confirmation: &'a Confirmation,
    /// Whether a URI is that of the request, but for query and fragment.
    pub is_target: &'a dyn Fn(&str) -> bool,
    /// SHA-256 of the workload identity token.
    pub token_digest: &'a [u8; 32],
    /// The transaction token of the request, if it has one.
    pub transaction: Option<&'a [u8]>,
    /// The time.
    pub now: Timestamp,
}

/// Checks a proof, all but its signature.
pub fn check_wpt<'a>(wpt: &Wpt<'a>) -> Result<Unverified<'a>, Unproven> {
    let Some(key) = wpt.confirmation.holder() else {
        return Err(invalid("the token is not bound to a key that a workload proof token can prove").into());
    };
    let parts = Parts::read(wpt.proof, "wpt+jwt", false)?;
    if parts.algorithm()? != key.algorithm {
        return Err(invalid("`alg` of the proof is not that of `cnf.jwk`").into());
    }
    let claims = parts.claims()?;
    let jti = claims.jti()?;
    if !(wpt.is_target)(claims.text("aud", "`aud` of the proof is not one string")?) {
        return Err(invalid("the proof is for another URI").into());
    }
    let until = check_time(&claims, wpt.now)?;
    if !is_digest(claims.text("wth", "`wth` is not a string")?, wpt.token_digest) {
        return Err(invalid("the proof is for another workload identity token").into());
    }
    let bound = match (claims.optional("tth", "`tth` is not a string")?, wpt.transaction) {
        (None, None) => true,
        (Some(tth), Some(token)) => is_digest(tth, &sha256(token)),
        (None, Some(_)) | (Some(_), None) => false,
    };
    if !bound {
        return Err(invalid("`tth` of the proof is not that of the request's transaction token").into());
    }
    if claims.has("oth") {
        return Err(invalid("the proof binds other tokens, with `oth`, which is not understood").into());
    }
    let proven = proven(&key.thumbprint, jti, until, false);
    Ok(Unverified { key: SignedBy::Bound(key), signed: parts.signed, signature: parts.signature, proven })
}

fn check_time(claims: &Claims, now: Timestamp) -> Result<Timestamp, Rejection> {
    let fault = "`exp` of the proof is not a whole number of seconds";
    let until = claims.time("exp", fault)?.ok_or(invalid(fault))?;
    if now >= until {
        return Err(invalid("the proof has expired"));
    }
    if until.since(now) > WPT_MAX_LIFETIME {
        return Err(invalid("the proof lives longer than five minutes"));
    }
    for name in ["iat", "nbf"] {
        let time = claims.time(name, "`iat` or `nbf` of the proof is not a whole number of seconds")?;
        if time.is_some_and(|time| time > now.saturating_add(TOKEN_CLOCK_SKEW)) {
            return Err(invalid("`iat` or `nbf` of the proof lies in the future"));
        }
    }
    Ok(until)
}

impl std::fmt::Debug for Wpt<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wpt").field("confirmation", &self.confirmation).finish_non_exhaustive()
    }
}
