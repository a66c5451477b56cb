//! Who asks: an application that wants to know what somebody else may do, authenticated by its own workload token.
//!
//! Pure. Verified by the same verifier and held to the same revocations as any workload; whether it may ask is for the door's
//! list. Fails closed: nobody asks by a certificate, on behalf of somebody else, or with a token for one grant, and no address
//! makes anybody trusted. INVARIANT: an asker has no permit: what it is told forwards nothing.

use std::sync::Arc;

use super::authenticate::{Caller, authenticate, registered};
use super::decision::{Decision, DecisionId, Parts};
use super::engine::{Deferred, Halt, Inputs, Memo, Unverifying, deny};
use super::intake::intake;
use super::proof;
use super::reason::Reason;
use super::request::Request;
use crate::object::{Authentication, WorkloadPattern};

/// An application that has been authenticated.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Its SPIFFE ID.
    pub id: &'a Arc<str>,
    /// Whom it may ask about without a token of theirs.
    pub may_assert: &'a [WorkloadPattern],
}

/// Authenticates whoever sends a request to be told of decisions: its SPIFFE ID, or the denial. `origins` are those under
/// which it knows this place, for its proof of possession. Unless `may_verify`, what takes a public-key operation is deferred.
pub fn authenticate_asker(
    request: &Request<'_>,
    origins: &[Box<str>],
    inputs: Inputs<'_>,
    memo: &impl Memo,
    may_verify: bool,
) -> Result<Result<Arc<str>, Decision>, Deferred> {
    known(request, Some(origins), inputs, memo, may_verify)
}

/// Authenticates again whoever has been a moment ago, by what holds now. Its proof of possession was good, and used up.
pub fn authenticate_asker_again(
    request: &Request<'_>,
    inputs: Inputs<'_>,
    memo: &impl Memo,
    may_verify: bool,
) -> Result<Result<Arc<str>, Decision>, Deferred> {
    known(request, None, inputs, memo, may_verify)
}

/// `origins` are `None` for one whose proof was good.
fn known(
    request: &Request<'_>,
    origins: Option<&[Box<str>]>,
    inputs: Inputs<'_>,
    memo: &impl Memo,
    may_verify: bool,
) -> Result<Result<Arc<str>, Decision>, Deferred> {
    let mut parts = Parts::undecided(DecisionId::new(inputs.now.wall));
    let known = match may_verify {
        true => identify(request, origins, inputs, memo, &mut parts),
        false => identify(request, origins, inputs, &Unverifying(memo), &mut parts),
    };
    match known {
        Ok(id) => Ok(Ok(id)),
        Err(Halt::Deferred(deferred)) => Err(deferred),
        Err(Halt::Denied((reason, detail))) => {
            // INVARIANT: a denial has no allow in it, whatever was noted on the way.
            parts.reason = if reason.is_allow() { Reason::SystemInternal } else { reason };
            parts.detail = detail;
            Ok(Err(Decision::new(parts)))
        }
    }
}

fn identify(
    request: &Request<'_>,
    origins: Option<&[Box<str>]>,
    inputs: Inputs<'_>,
    memo: &impl Memo,
    parts: &mut Parts,
) -> Result<Arc<str>, Halt> {
    let (Some(snapshot), Some(lease)) = (inputs.snapshot, inputs.lease) else {
        return Err((Reason::SystemNotReady, None).into());
    };
    parts.position = Some(snapshot.position());
    parts.behind_ms = u64::try_from(lease.age(inputs.now).as_millis()).unwrap_or(u64::MAX);
    let intake = intake(request).map_err(|(reason, detail)| (reason, Some(Arc::from(detail))))?;
    parts.challenge = proof::challenge(intake.authorization.map(|a| a.scheme), snapshot.issuers.demands_dpop());
    let caller = authenticate(request.peer, &intake, Some(Authentication::Token), inputs, snapshot, memo)?;
    if caller.tie().is_some() {
        return deny(Reason::CredentialAudience, "a token for one grant is not for asking");
    }
    if caller.actor().is_some() {
        return deny(Reason::CredentialSubject, "nobody asks on behalf of somebody else");
    }
    let mut unused = None;
    if let Some(origins) = origins {
        let claim = proof::Claim {
            method: request.method,
            scheme: request.scheme,
            authority: request.host,
            intake: &intake,
            origins,
            proving: inputs.proofs,
            verified: false,
            was_shown: false,
            now: inputs.now.wall,
        };
        let mut asked = (parts.challenge, None);
        let proven = proof::prove(&claim, &caller, || Ok(None), memo, &mut asked);
        (parts.challenge, parts.dpop_nonce) = asked;
        unused = proven?.unused;
    }
    if let Some(reason) = caller.revoked(snapshot) {
        return Err((reason, None).into());
    }
    if let Some(problem) = &snapshot.denies_everything {
        return deny(Reason::SystemInternal, problem);
    }
    let (workload, _) = registered(Caller::workload(&caller), snapshot)?;
    if let Some(unused) = unused {
        unused.use_up(inputs.proofs, inputs.now.wall, false)?;
    }
    parts.token_id = caller.token_id().cloned();
    Ok(Arc::clone(&workload.id))
}
