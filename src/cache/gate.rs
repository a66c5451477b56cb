//! The gate: what every door calls.
//!
//! Plane: shared, on the request path. Borrows the state for exactly one decision; needs no runtime.

use std::sync::Arc;

use super::memo::{CacheCounters, CacheSizes, MokaMemo};
use crate::authz::{self, Decision, Inputs, Reason, Request, Step};
use crate::clock::SharedClock;
use crate::state::State;

/// Decides on requests from the current state, through the caches.
#[derive(Debug)]
pub struct Gate {
    state: Arc<State>,
    clock: SharedClock,
    memo: MokaMemo,
}

// === impl Gate ===

impl Gate {
    /// A gate on `state`.
    pub fn new(state: Arc<State>, clock: SharedClock, sizes: CacheSizes) -> Self {
        Self { state, clock, memo: MokaMemo::new(sizes) }
    }

    /// Decides. Synchronous: no network, no disk, no wait.
    pub fn check(&self, request: &Request<'_>) -> Decision {
        // The guard is held until the decision stands: who replaces the state can wait for that.
        let world = self.state.load();
        let inputs = Inputs { snapshot: world.snapshot.as_deref(), lease: world.lease, now: self.clock.now() };
        let decision = authz::decide(request, inputs, &self.memo);
        if decision.reason == Reason::CredentialKidUnknown {
            let issuer = world.snapshot.as_deref().and_then(|s| authz::issuer_of_token(request, s));
            issuer.into_iter().for_each(|issuer| self.state.missing_keys().note(issuer));
        }
        decision
    }

    /// Decides without the caches and tells each step.
    pub fn explain(&self, request: &Request<'_>) -> (Decision, Vec<Step>) {
        let world = self.state.load();
        let inputs = Inputs { snapshot: world.snapshot.as_deref(), lease: world.lease, now: self.clock.now() };
        authz::explain(request, inputs)
    }

    /// The state it decides from.
    pub const fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// The clock it decides by.
    pub const fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// Counters of the token cache.
    pub fn token_cache(&self) -> CacheCounters {
        self.memo.tokens()
    }

    /// Counters of the decision cache.
    pub fn decision_cache(&self) -> CacheCounters {
        self.memo.answers()
    }
}
