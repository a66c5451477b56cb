//! Transaction tokens: what a request is part of, for policy to read and nothing else
//! (draft-ietf-oauth-transaction-tokens; header `Txn-Token`).
//!
//! Pure. Verified like any token of its issuer, whose `token_type` says that it makes these. INVARIANT: such a token
//! authenticates nobody, and what is missing, malformed, expired or for another trust domain (`aud`) is absent from the
//! context. Only a revoked one refuses the request, because a policy may forbid by what is there. It is not looked at where
//! no policy reads it.

use std::sync::Arc;

use serde_json::Value;

use super::authenticate::{KnownToken, verified};
use super::engine::{Halt, Memo};
use super::intake::Intake;
use super::snapshot::Snapshot;
use crate::clock::Now;
use crate::credential::{Purpose, VerifiedToken};
use crate::policy::TransactionFacts;

/// The longest text that is handed to policy, in bytes.
const MAX_TEXT: usize = 1024;

/// The verified transaction token of a request, if policy reads such and there is one. Does not decide without having
/// looked: a signature that may not be verified here and now is no absence.
pub(super) fn transaction(
    intake: &Intake<'_>,
    snapshot: &Snapshot,
    now: Now,
    memo: &impl Memo,
) -> Result<Option<Arc<KnownToken>>, Halt> {
    if !snapshot.policies.reads().transaction {
        return Ok(None);
    }
    let Some(token) = intake.beside.txn_token.and_then(|token| std::str::from_utf8(token).ok()) else {
        return Ok(None);
    };
    match verified(token, Purpose::Transaction, snapshot, now, memo) {
        Ok(known) => Ok(Some(known)),
        Err(Halt::Denied(_)) => Ok(None),
        Err(deferred @ Halt::Deferred(_)) => Err(deferred),
    }
}

/// What policy may know. `txn` is required; `scope` was `purp` in earlier drafts.
pub(super) fn transaction_of(token: &VerifiedToken, claims: &Value) -> Option<TransactionFacts> {
    let text = |name: &str| claims.get(name).map(|value| value.as_str().filter(|text| text.len() <= MAX_TEXT));
    let scope = match text("scope").or_else(|| text("purp")) {
        None => None,
        // There, and not what it has to be.
        Some(None) => return None,
        Some(Some(scope)) => Some(Arc::from(scope)),
    };
    let txn = text("txn")?.filter(|txn| !txn.is_empty())?;
    Some(TransactionFacts { txn: Arc::from(txn), scope, subject: Arc::clone(&token.subject) })
}
