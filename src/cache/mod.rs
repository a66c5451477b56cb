//! The two caches and the gate in front of the engine. STUB to be filled.

use std::sync::Arc;

use crate::authz::{Decision, DecisionId, Reason, Request};
use crate::clock::SharedClock;
use crate::state::State;

/// What every door calls: decides on a request from the current state, through the caches.
#[derive(Debug)]
pub struct Gate {
    state: Arc<State>,
    clock: SharedClock,
}

/// Sizes of the two caches.
#[derive(Debug, Clone, Copy)]
pub struct CacheSizes {
    /// Verified tokens.
    pub tokens: u64,
    /// Decisions.
    pub decisions: u64,
}

/// Counters of one cache since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheCounters {
    /// Look-ups that found a usable entry.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
    /// Entries that were dropped for room or because they were out of date.
    pub evictions: u64,
    /// Entries now.
    pub entries: u64,
}

/// One step of an explanation.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Step {
    /// Which step of the order of a decision.
    pub step: &'static str,
    /// What it found.
    pub outcome: String,
}

impl Gate {
    /// A gate on `state`.
    pub fn new(state: Arc<State>, clock: SharedClock, sizes: CacheSizes) -> Self {
        let _ = sizes;
        Self { state, clock }
    }

    /// Decides. Synchronous: no network, no disk, no wait.
    pub fn check(&self, request: &Request<'_>) -> Decision {
        let _ = (request, &self.state);
        Decision::refuse(DecisionId::new(self.clock.now().wall), Reason::SystemNotReady, "stub")
    }

    /// Decides without the caches and tells each step.
    pub fn explain(&self, request: &Request<'_>) -> (Decision, Vec<Step>) {
        (self.check(request), Vec::new())
    }

    /// The state it decides from.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// The clock it decides by.
    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// Counters of the token cache.
    pub fn token_cache(&self) -> CacheCounters {
        CacheCounters::default()
    }

    /// Counters of the decision cache.
    pub fn decision_cache(&self) -> CacheCounters {
        CacheCounters::default()
    }
}
