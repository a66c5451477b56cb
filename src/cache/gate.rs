//! The gate: what every door calls.
//!
//! Plane: shared, on the request path. Borrows the state for exactly one decision; needs no runtime.

mod held;

use std::sync::Arc;

use bytes::Bytes;

pub use self::held::Held;
use super::memo::{CacheCounters, CacheSizes, MokaMemo, View};
use super::replay::ReplayStore;
use crate::authz::{self, Decision, Deferred, Inputs, Proving, Reason, Request, Settings, Step};
use crate::clock::{SharedClock, Timestamp};
use crate::credential::Nonces;
use crate::object::GrantId;
use crate::state::{State, World};

/// Decides on requests from the current state, through the caches.
#[derive(Debug)]
pub struct Gate {
    state: Arc<State>,
    clock: SharedClock,
    memo: MokaMemo,
    replay: ReplayStore,
    nonces: Option<Nonces>,
    /// Since when used proofs are remembered.
    since: Timestamp,
    settings: Settings,
}

/// How many used proofs of possession are remembered unless the configuration says otherwise.
pub const DEFAULT_PROOFS: u64 = 100_000;

// === impl Gate ===

impl Gate {
    /// A gate on `state`.
    pub fn new(state: Arc<State>, clock: SharedClock, sizes: CacheSizes) -> Self {
        let since = clock.now().wall;
        let replay = ReplayStore::new(DEFAULT_PROOFS);
        // Without a key no proof that needs a nonce counts, and the rest goes on.
        let nonces = Nonces::random().ok();
        Self { state, clock, memo: MokaMemo::new(sizes), replay, nonces, since, settings: Settings::default() }
    }

    /// With room for so many used proofs, and with nonces that others know too, if there are such.
    #[must_use]
    pub fn with_proofs(mut self, capacity: u64, nonces: Option<Nonces>) -> Self {
        self.replay = ReplayStore::new(capacity);
        self.nonces = nonces.or(self.nonces);
        self
    }

    /// What the owner says.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The same gate with these settings.
    #[must_use]
    pub fn with_settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// Decides. Synchronous: no network, no disk, no wait. Verifies a token that it does not know.
    pub fn check(&self, request: &Request<'_>) -> Decision {
        self.decide(request, &self.memo.view())
    }

    /// Decides what [`Self::check_unless_costly`] has deferred. Its credentials have been counted then.
    pub fn check_deferred(&self, request: &Request<'_>) -> Decision {
        self.decide(request, &self.memo.view_again())
    }

    fn decide(&self, request: &Request<'_>, memo: &View<'_>) -> Decision {
        // The guard is held until the decision stands: who replaces the state can wait for that.
        let world = self.state.load();
        let decision = authz::decide(request, self.inputs(&world), memo);
        self.note_missing_key(request, &world, &decision);
        decision
    }

    /// Decides, unless that takes the verification of a signature: [`Self::check_deferred`] then decides, on a
    /// thread of a [`VerificationPool`](super::VerificationPool).
    pub fn check_unless_costly(&self, request: &Request<'_>) -> Result<Decision, Deferred> {
        let world = self.state.load();
        let decision = authz::decide_unless_costly(request, self.inputs(&world), &self.memo.view())?;
        self.note_missing_key(request, &world, &decision);
        Ok(decision)
    }

    /// Decides again, once a use may have come that a decision [awaits](Decision::awaits), unless that takes the
    /// verification of a signature: [`Self::check_again_deferred`] then decides.
    pub fn check_again(&self, request: &Request<'_>) -> Result<Decision, Deferred> {
        let world = self.state.load();
        authz::decide_again(request, self.inputs(&world), &self.memo.view_again())
    }

    /// Which of these tools the sender of an allowed `tools/list` may use, all by one state. Spends nothing.
    pub fn allowed_tools(&self, request: &Request<'_>, tools: &[&str]) -> Vec<bool> {
        let world = self.state.load();
        authz::allowed_tools(request, self.inputs(&world), &self.memo.view_again(), tools)
    }

    /// What anybody may know of an MCP server, if the request asks for that. Forwards nothing.
    pub fn resource_metadata(&self, method: &str, host: &str, path: &str) -> Option<Bytes> {
        let world = self.state.load();
        world.snapshot.as_deref()?.resource_metadata(method, host, path)
    }

    /// Decides what [`Self::check_again`] has deferred.
    pub fn check_again_deferred(&self, request: &Request<'_>) -> Decision {
        let world = self.state.load();
        authz::decide_again_deferred(request, self.inputs(&world), &self.memo.view_again())
    }

    /// Decides on a request that was let through, by this grant if by one, and whose answer is still open: see [`authz::decide_open`].
    pub fn check_open(&self, request: &Request<'_>, by: Option<GrantId>) -> Decision {
        let world = self.state.load();
        authz::decide_open(request, by, self.inputs(&world), &self.memo.view_again())
    }

    /// Has the control plane told which issuer seems to have a new key. Not for what is allowed.
    fn note_missing_key(&self, request: &Request<'_>, world: &World, decision: &Decision) {
        if decision.reason == Reason::CredentialKidUnknown {
            let issuer = world.snapshot.as_deref().and_then(|s| authz::issuer_of_token(request, s));
            issuer.into_iter().for_each(|issuer| self.state.missing_keys().note(issuer));
        }
    }

    /// Decides without the caches and tells each step. Uses no proof up.
    pub fn explain(&self, request: &Request<'_>) -> (Decision, Vec<Step>) {
        let world = self.state.load();
        authz::explain(request, self.inputs(&world))
    }

    fn inputs<'a>(&'a self, world: &'a World) -> Inputs<'a> {
        let (snapshot, settings) = (world.snapshot.as_deref(), &self.settings);
        let proofs = Some(Proving { replay: &self.replay, nonces: self.nonces.as_ref(), since: self.since });
        Inputs { snapshot, lease: world.lease, now: self.clock.now(), proofs, settings, uses: Some(self.state.purse()) }
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

    /// Counters of the used proofs: replays are hits, first uses misses.
    pub fn used_proofs(&self) -> CacheCounters {
        self.replay.counters()
    }
}
