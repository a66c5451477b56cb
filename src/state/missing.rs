//! Issuers whose tokens named a key that their sets do not have, on their way to the control plane.
//!
//! Plane: shared. Noted on the request path, only when a check fails for that reason: bounded, and it never waits, for a
//! note that is lost comes again with the next such token. `sync` takes the notes and reports them. Holds names of
//! issuers from the snapshot, and nothing of a token.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};

/// How many issuers wait to be reported at most.
const MAX_WAITING: usize = 64;

/// Notes that wait to be reported.
#[derive(Debug, Default)]
pub struct MissingKeys {
    waiting: Mutex<Vec<Arc<str>>>,
}

// === impl MissingKeys ===

impl MissingKeys {
    /// Notes an issuer, unless it waits already, too many do, or somebody else is at it.
    pub fn note(&self, issuer: &Arc<str>) {
        let mut waiting = match self.waiting.try_lock() {
            Ok(waiting) => waiting,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if waiting.len() < MAX_WAITING && !waiting.contains(issuer) {
            waiting.push(Arc::clone(issuer));
        }
    }

    /// Takes what waits.
    pub fn take(&self) -> Vec<Arc<str>> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_distinct_and_bounded() {
        let missing = MissingKeys::default();
        for i in 0..1000 {
            missing.note(&Arc::from(format!("issuer-{}", i % 100)));
        }
        let taken = missing.take();
        assert_eq!(taken.len(), MAX_WAITING);
        assert_eq!(taken.iter().collect::<std::collections::HashSet<_>>().len(), MAX_WAITING);
        assert!(missing.take().is_empty());
    }
}
