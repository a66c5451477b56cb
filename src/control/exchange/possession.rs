//! DPoP at the token endpoint (RFC 9449, section 5): which key a new token is to be bound to.
//!
//! Plane: control. The proof is of no access token yet, so it has no `ath`, and any key will do. INVARIANT: a proof counts
//! once; what cannot be remembered does not count. Proofs from before this process started may have been used, and do not.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::refusal::Refused;
use crate::clock::Timestamp;
use crate::credential::{Dpop, Proven, check_dpop};

/// How many proofs are remembered at a time.
const MAX_PROOFS: usize = 100_000;

/// The proofs that were used and would still hold.
#[derive(Debug)]
pub(super) struct Proofs {
    since: Timestamp,
    /// The URL of the endpoint, as the control plane calls itself.
    endpoint: String,
    used: Mutex<HashMap<[u8; 32], Timestamp>>,
}

impl Proofs {
    pub(super) fn new(endpoint: String, since: Timestamp) -> Self {
        Self { since, endpoint, used: Mutex::default() }
    }

    /// Checks a proof for a request to this endpoint. What `Host` says does not count: whoever sends a proof chooses it.
    pub(super) fn check(&self, proof: &str, now: Timestamp) -> Result<Proven, Refused> {
        let is_target = |uri: &str| uri.split(['?', '#']).next().unwrap_or_default() == self.endpoint;
        let dpop = Dpop {
            proof,
            method: "POST",
            is_target: &is_target,
            token_digest: None,
            bound_to: None,
            nonces: None,
            remembered_since: self.since,
            now,
        };
        let unverified = check_dpop(&dpop).map_err(|e| Refused::proof(e.rejection().detail))?;
        unverified.verify().map_err(|e| Refused::proof(e.detail))
    }

    /// Uses a proof up.
    pub(super) fn use_up(&self, proven: &Proven, now: Timestamp) -> Result<(), Refused> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= MAX_PROOFS {
            used.retain(|_, until| *until > now);
        }
        if used.len() >= MAX_PROOFS {
            return Err(Refused::unavailable("no more proofs can be remembered now"));
        }
        match used.insert(proven.key, proven.until) {
            Some(until) if until > now => Err(Refused::proof("the proof was used before")),
            _ => Ok(()),
        }
    }
}
