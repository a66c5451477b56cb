//! Proof of possession: whether who presents a token holds what the token is bound to.
//!
//! Pure. Third step of a decision, after authentication. INVARIANTS: what is found here is never cached, so that a warm
//! cache cannot stand in for a proof; a token that is bound to something counts only with its proof, under whatever
//! scheme it came (RFC 9449, section 7.2); and a proof is used up only after all of it has been verified, once in a
//! decision. A `DPoP` header beside a bearer token that is bound to nothing proves nothing and is ignored. Fails closed.

use std::fmt;

use super::authenticate::Caller;
use super::engine::{Deferred, Denied, Halt, Memo, deny};
use super::intake::{Intake, Scheme};
use super::reason::Reason;
use super::target::Target;
use crate::clock::Timestamp;
use crate::credential::{self, Dpop, Nonces, Proven, Unproven, Wpt};

/// What an enforcement point knows of proofs.
#[derive(Debug, Clone, Copy)]
pub struct Proving<'a> {
    /// Which were used.
    pub replay: &'a dyn Replay,
    /// The nonces that it gives out; without them, a proof that needs one is refused.
    pub nonces: Option<&'a Nonces>,
    /// Since when it remembers.
    pub since: Timestamp,
}

/// The proofs that were used and would still hold. It forgets none of them early; when it has no room, it says so.
pub trait Replay: fmt::Debug + Sync {
    /// Remembers a proof until it ends.
    fn register(&self, proven: &Proven, now: Timestamp) -> Registered;
    /// Whether it remembers a proof.
    fn remembers(&self, key: &[u8; 32]) -> bool;
}

/// What came of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// Nobody has used the proof before.
    New,
    /// Somebody has.
    Seen,
    /// There is no room for it.
    Full,
    /// There is, and its key has as much of the room as one key gets.
    ShareUsedUp,
}

/// What a denied client is asked to bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Challenge {
    /// A bearer token (RFC 6750).
    #[default]
    Bearer,
    /// A bearer token, or one with a DPoP proof: some issuers demand it.
    Either,
    /// A token with a DPoP proof (RFC 9449, section 7.1).
    Dpop,
    /// A DPoP proof with the nonce that comes along (RFC 9449, section 9).
    DpopNonce,
    /// A workload identity token with its proof.
    Wpt,
}

/// A verified proof, not used up yet.
#[derive(Debug)]
pub(super) struct Unused(Proven);

/// What comes of the step.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// To be used up; absent when nothing has to be proven that could be replayed.
    pub(super) unused: Option<Unused>,
    /// What the client should bring next time.
    pub(super) nonce: Option<String>,
}

/// What a proof is judged by.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    pub(super) method: &'a str,
    pub(super) scheme: &'a str,
    pub(super) authority: &'a str,
    pub(super) intake: &'a Intake<'a>,
    /// Of the service that the request is for; empty: the request's own.
    pub(super) origins: &'a [Box<str>],
    pub(super) proving: Option<Proving<'a>>,
    /// Whether the signature of this very proof has been verified before.
    pub(super) verified: bool,
    pub(super) now: Timestamp,
    /// The proof was shown before, when the request was let through. What needs none, a certificate, is still asked for.
    pub(super) was_shown: bool,
}

/// Checks what the caller's token is bound to. `certificate` finds the thumbprint of the client's, if it showed one; what
/// a denial should ask for goes to `asked`, with its nonce.
pub(super) fn prove(
    claim: &Claim<'_>,
    caller: &Caller,
    certificate: impl FnOnce() -> Result<Option<[u8; 32]>, Denied>,
    memo: &impl Memo,
    asked: &mut (Challenge, Option<String>),
) -> Result<Outcome, Halt> {
    let Claim { method, scheme, authority, intake, origins, proving, verified, now, was_shown } = *claim;
    let (Some(token), Some(presented)) = (caller.token(), caller.presented()) else { return Ok(Outcome::default()) };
    if token.is_wit != (presented.scheme == Scheme::Wpt) {
        return match token.is_wit {
            true => deny(Reason::CredentialPopMissing, "a workload identity token is no bearer token"),
            false => deny(Reason::CredentialTyp, "`Workload-Identity-Token` holds another kind of token"),
        };
    }
    let Some(bound) = &token.confirmation else {
        return match presented.scheme {
            Scheme::Dpop => deny(Reason::CredentialPopInvalid, "the token is sent as DPoP, and not bound to a key"),
            Scheme::Bearer | Scheme::Wpt => Ok(Outcome::default()),
        };
    };
    if bound.needs_certificate() {
        match certificate()? {
            None => {
                return deny(Reason::CredentialPopMissing, "the token is bound to a certificate, and there is none");
            }
            Some(presented) if !bound.is_certificate(&presented) => {
                return deny(Reason::CredentialPopInvalid, "the token is bound to another certificate");
            }
            Some(_) => {}
        }
    }
    if was_shown {
        return Ok(Outcome::default());
    }
    let target = Target { origins, scheme, authority, path: &intake.path };
    let is_target = |uri: &str| target.is(uri);
    let checked = if let Some(bound_to) = bound.dpop_thumbprint() {
        asked.0 = Challenge::Dpop;
        let proof = match (presented.scheme, intake.beside.dpop) {
            (Scheme::Dpop, Some(proof)) => text(proof)?,
            _ => return deny(Reason::CredentialPopMissing, "the token is bound to a key, and sent without its proof"),
        };
        let Some(proving) = proving else { return deny(Reason::SystemInternal, "nothing here remembers proofs") };
        let nonces = match (token.proof.dpop_nonce, proving.nonces) {
            (false, _) => None,
            (true, Some(nonces)) => Some(nonces),
            (true, None) => return deny(Reason::SystemInternal, "there is no key for nonces"),
        };
        let (token_digest, bound_to) = (Some(presented.digest), Some(bound_to));
        let remembered_since = proving.since;
        let dpop = Dpop { proof, method, is_target: &is_target, token_digest, bound_to, nonces, remembered_since, now };
        credential::check_dpop(&dpop)
    } else if bound.needs_wpt() {
        let Some(proof) = wpt(intake)? else {
            return deny(Reason::CredentialPopMissing, "the workload identity token has no proof beside it");
        };
        let transaction = intake.beside.txn_token;
        let token_digest = presented.digest;
        credential::check_wpt(&Wpt {
            proof,
            confirmation: bound,
            is_target: &is_target,
            token_digest,
            transaction,
            now,
        })
    } else if presented.scheme == Scheme::Dpop {
        return deny(Reason::CredentialPopInvalid, "the token is sent as DPoP, and not bound to a key");
    } else {
        return Ok(Outcome::default());
    };
    let next = || proving.and_then(|proving| proving.nonces).map(|nonces| nonces.issue(now));
    let proven = match checked {
        Ok(unverified) if verified => Ok(unverified.verified_before()),
        Ok(unverified) => {
            if !memo.admits_verification() {
                return Err(Halt::Deferred(Deferred::Proof));
            }
            unverified.verify().map_err(Unproven::Refused)
        }
        Err(unproven) => Err(unproven),
    };
    match proven {
        Ok(proven) => Ok(Outcome { nonce: proven.nonce_is_old.then(next).flatten(), unused: Some(Unused(proven)) }),
        Err(unproven) => {
            if matches!(unproven, Unproven::NeedsNonce(_)) {
                *asked = (Challenge::DpopNonce, next());
            }
            let rejection = unproven.rejection();
            deny(Reason::from(rejection.reason), rejection.detail)
        }
    }
}

/// Which proof the client should be asked for, as far as scheme and issuers tell.
pub(super) fn challenge(presented: Option<Scheme>, some_issuer_demands: bool) -> Challenge {
    match presented {
        Some(Scheme::Dpop) => Challenge::Dpop,
        Some(Scheme::Wpt) => Challenge::Wpt,
        Some(Scheme::Bearer) | None if some_issuer_demands => Challenge::Either,
        Some(Scheme::Bearer) | None => Challenge::Bearer,
    }
}

/// The workload proof token: in `Authorization` since draft 02, in a header of its own before. One of the two.
fn wpt<'a>(intake: &Intake<'a>) -> Result<Option<&'a str>, Denied> {
    let authorization = intake.authorization.filter(|a| a.scheme == Scheme::Wpt).map(|a| a.token);
    match (authorization, intake.beside.wpt) {
        (Some(_), Some(_)) => deny(Reason::InputDuplicateHeader, "two workload proof tokens"),
        (Some(proof), None) => Ok(Some(proof)),
        (None, Some(proof)) => text(proof).map(Some),
        (None, None) => Ok(None),
    }
}

fn text(proof: &[u8]) -> Result<&str, Denied> {
    std::str::from_utf8(proof).or_else(|_not_utf8| deny(Reason::CredentialPopInvalid, "the proof is not text"))
}

// === impl Unused ===

impl Unused {
    /// Uses the proof up, or only looks whether it was, for callers that forward nothing.
    pub(super) fn use_up(self, proving: Option<Proving<'_>>, now: Timestamp, looks_only: bool) -> Result<(), Denied> {
        let Some(proving) = proving else { return deny(Reason::SystemInternal, "nothing here remembers proofs") };
        let registered = match looks_only {
            true if proving.replay.remembers(&self.0.key) => Registered::Seen,
            true => Registered::New,
            false => proving.replay.register(&self.0, now),
        };
        match registered {
            Registered::New => Ok(()),
            Registered::Seen => deny(Reason::CredentialReplay, "the proof was used before"),
            Registered::Full => deny(Reason::SystemOverload, "no more proofs can be remembered now"),
            Registered::ShareUsedUp => deny(Reason::SystemOverload, "no more proofs of this key can be remembered now"),
        }
    }
}

#[cfg(test)]
mod tests;
