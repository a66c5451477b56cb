//! The state in force: a snapshot and its lease, swapped whole.
//!
//! Plane: shared. Readers borrow without a lock; `sync` is the only writer. [`State::publish`] hands back the state
//! that it replaced, so that the writer can wait until no check uses it any more before it acknowledges a revision.

mod missing;

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

pub use self::missing::MissingKeys;
use crate::authz::{Lease, Snapshot};
use crate::grant::Signal;
use crate::grant::purse::Purse;

/// What checks are answered from.
#[derive(Debug, Default)]
pub struct World {
    /// The compiled state; absent before the first sync.
    pub snapshot: Option<Arc<Snapshot>>,
    /// How long it may be relied on; absent until a bookmark or a dated state from disk.
    pub lease: Option<Lease>,
}

/// Holder of the current [`World`].
#[derive(Debug, Default)]
pub struct State {
    world: ArcSwap<World>,
    missing_keys: MissingKeys,
    purse: Purse,
    changes: Signal,
}

/// A world that has been replaced, perhaps still in use by checks under way.
#[derive(Debug)]
pub struct Retired(Arc<World>);

// === impl State ===

impl State {
    /// An empty state: every answer is `system.not_ready`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Borrows the current world. Keep the guard until the answer is handed over.
    pub fn load(&self) -> Guard<Arc<World>> {
        self.world.load()
    }

    /// Issuers to report to the control plane, because a key of theirs is missing.
    pub const fn missing_keys(&self) -> &MissingKeys {
        &self.missing_keys
    }

    /// The uses of grants that may be spent here.
    pub const fn purse(&self) -> &Purse {
        &self.purse
    }

    /// Rings after a snapshot has been put in force.
    pub const fn changes(&self) -> &Signal {
        &self.changes
    }

    /// Puts a snapshot in force, under the current lease.
    pub fn publish(&self, snapshot: Arc<Snapshot>) -> Retired {
        let lease = self.world.load().lease;
        let retired = Retired(self.world.swap(Arc::new(World { snapshot: Some(snapshot), lease })));
        self.changes.ring();
        retired
    }

    /// Puts a snapshot in force together with its lease, as read from disk.
    pub fn restore(&self, snapshot: Arc<Snapshot>, lease: Lease) -> Retired {
        let retired = Retired(self.world.swap(Arc::new(World { snapshot: Some(snapshot), lease: Some(lease) })));
        self.changes.ring();
        retired
    }

    /// Renews the lease.
    pub fn renew(&self, lease: Lease) {
        let snapshot = self.world.load().snapshot.clone();
        self.world.store(Arc::new(World { snapshot, lease: Some(lease) }));
    }
}

// === impl Retired ===

impl Retired {
    /// Whether no check uses its snapshot any more. Swapping settles every reader's debt, so the counts are exact.
    /// The snapshot is counted as well: a check may still hold an older world that [`State::renew`] replaced, with the
    /// same snapshot.
    pub fn is_drained(&self) -> bool {
        let snapshot_is_free = self.0.snapshot.as_ref().is_none_or(|s| Arc::strong_count(s) == 1);
        Arc::strong_count(&self.0) == 1 && snapshot_is_free
    }
}
