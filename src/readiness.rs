//! Readiness by dropped guards. Plane: cross-cutting.
//!
//! Whatever must happen before a process may be sent work holds a [`Blocker`] and drops it when done: forgetting to
//! say "ready" is impossible, and a task that dies does not leave the process advertised with half its parts, because
//! it holds its blocker only while it is on its way. A drain takes a blocker to stop being ready. This is what health
//! checks are told; it never decides a request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// What a process is waiting for before it is ready. Cheap to clone; clones share.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    waiting: Mutex<Waiting>,
    ready: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    names: BTreeMap<u64, &'static str>,
}

/// Keeps a process unready until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it makes the process ready"]
pub struct Blocker {
    readiness: Arc<Inner>,
    number: u64,
}

// === impl Readiness ===

impl Readiness {
    /// Nothing to wait for yet, so ready: take the blockers before serving.
    pub fn new() -> Self {
        Self(Arc::new(Inner { waiting: Mutex::default(), ready: watch::Sender::new(true) }))
    }

    /// Not ready until the result is dropped. `name` is what people are told is being waited for.
    pub fn block(&self, name: &'static str) -> Blocker {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let number = waiting.next;
        waiting.next += 1;
        waiting.names.insert(number, name);
        self.0.ready.send_replace(false);
        Blocker { readiness: self.0.clone(), number }
    }

    /// Whether nothing blocks.
    pub fn is_ready(&self) -> bool {
        *self.0.ready.borrow()
    }

    /// What is being waited for, oldest first.
    pub fn waiting_for(&self) -> Vec<&'static str> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).names.values().copied().collect()
    }

    /// Tells of every change.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.0.ready.subscribe()
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Blocker ===

impl Drop for Blocker {
    fn drop(&mut self) {
        let mut waiting = self.readiness.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.names.remove(&self.number);
        // Under the lock, so that a blocker taken meanwhile is not overruled.
        self.readiness.ready.send_replace(waiting.names.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_the_last_blocker_is_dropped() {
        let readiness = Readiness::new();
        let first = readiness.block("first sync");
        let second = readiness.block("listeners");
        let mut watch = readiness.watch();
        assert!(!*watch.borrow_and_update());
        assert_eq!(readiness.waiting_for(), ["first sync", "listeners"]);
        drop(first);
        assert!(!readiness.is_ready());
        assert_eq!(readiness.waiting_for(), ["listeners"]);
        drop(second);
        assert!(readiness.is_ready());
        assert!(*watch.borrow_and_update());
        let draining = readiness.clone().block("draining");
        assert!(!*watch.borrow_and_update());
        drop(draining);
        assert!(readiness.is_ready());
    }
}
