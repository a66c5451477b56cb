//! Which grants each workload has, by key: one workload's are found without a walk over everybody's, and those that
//! are live without a walk over those that have ended.
//!
//! Plane: control. Holds keys; the grants themselves are in the index, in the same step.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::Stored;
use crate::credential::SpiffeId;
use crate::object::{Grant, Object};

/// Keys of grants, by workload.
#[derive(Debug, Default)]
pub(super) struct ByWorkload(HashMap<SpiffeId, Keys>);

#[derive(Debug, Default)]
struct Keys {
    live: BTreeSet<Arc<str>>,
    ended: BTreeSet<Arc<str>>,
}

impl ByWorkload {
    pub(super) fn add(&mut self, stored: &Stored) {
        let Some(Object::Grant(grant)) = &stored.object else { return };
        if !self.0.contains_key(&grant.workload) {
            self.0.insert(grant.workload.clone(), Keys::default());
        }
        if let Some(keys) = self.0.get_mut(&grant.workload) {
            keys.of(grant).insert(Arc::clone(&stored.key));
        }
    }

    pub(super) fn remove(&mut self, old: &Stored) {
        let Some(Object::Grant(grant)) = &old.object else { return };
        if let Some(keys) = self.0.get_mut(&grant.workload) {
            keys.of(grant).remove(&old.key);
            if keys.live.is_empty() && keys.ended.is_empty() {
                self.0.remove(&grant.workload);
            }
        }
    }

    /// Those that have not ended.
    pub(super) fn live(&self, workload: &SpiffeId) -> impl Iterator<Item = &Arc<str>> {
        self.0.get(workload).into_iter().flat_map(|keys| &keys.live)
    }

    /// Those that have.
    pub(super) fn ended(&self, workload: &SpiffeId) -> impl Iterator<Item = &Arc<str>> {
        self.0.get(workload).into_iter().flat_map(|keys| &keys.ended)
    }
}

impl Keys {
    fn of(&mut self, grant: &Grant) -> &mut BTreeSet<Arc<str>> {
        if grant.state.is_terminal() { &mut self.ended } else { &mut self.live }
    }
}
