//! Which grants each workload has, by key: one workload's are found without a walk over everybody's.
//!
//! Plane: control. Holds keys; the grants themselves are in the index, in the same step.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::Stored;
use crate::credential::SpiffeId;
use crate::object::Object;

/// Keys of live grants, by workload.
#[derive(Debug, Default)]
pub(super) struct ByWorkload(HashMap<SpiffeId, BTreeSet<Arc<str>>>);

impl ByWorkload {
    pub(super) fn add(&mut self, stored: &Stored) {
        let Some(Object::Grant(grant)) = &stored.object else { return };
        match self.0.get_mut(&grant.workload) {
            Some(keys) => drop(keys.insert(Arc::clone(&stored.key))),
            None => drop(self.0.insert(grant.workload.clone(), BTreeSet::from([Arc::clone(&stored.key)]))),
        }
    }

    pub(super) fn remove(&mut self, old: &Stored) {
        let Some(Object::Grant(grant)) = &old.object else { return };
        if let Some(keys) = self.0.get_mut(&grant.workload) {
            keys.remove(&old.key);
            if keys.is_empty() {
                self.0.remove(&grant.workload);
            }
        }
    }

    pub(super) fn of(&self, workload: &SpiffeId) -> impl Iterator<Item = &Arc<str>> {
        self.0.get(workload).into_iter().flatten()
    }
}
