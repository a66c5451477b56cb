//! Which revocations end which workload, so that nobody walks over all revocations to find out.
//!
//! Plane: control. Fed by the index with every version of every object; holds no state of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Stored;
use crate::object::{Object, Target};

/// The revocations that stand against each workload, by key.
#[derive(Debug, Default)]
pub(super) struct RevokedWorkloads(HashMap<Box<str>, BTreeMap<Arc<str>, Arc<Stored>>>);

// === impl RevokedWorkloads ===

impl RevokedWorkloads {
    pub(super) fn add(&mut self, stored: &Arc<Stored>) {
        let Some(workload) = ended_by(stored) else { return };
        self.0.entry(Box::from(workload)).or_default().insert(Arc::clone(&stored.key), Arc::clone(stored));
    }

    pub(super) fn remove(&mut self, old: &Stored) {
        let Some(workload) = ended_by(old) else { return };
        if let Some(standing) = self.0.get_mut(workload) {
            standing.remove(&old.key);
            if standing.is_empty() {
                self.0.remove(workload);
            }
        }
    }

    pub(super) fn of(&self, workload: &str) -> Vec<Arc<Stored>> {
        self.0.get(workload).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }
}

/// The workload that this ends, if it is a revocation of one.
fn ended_by(stored: &Stored) -> Option<&str> {
    match &stored.object {
        Some(Object::Revocation(revocation)) => match &revocation.target {
            Target::Workload { workload } => Some(workload.as_str()),
            _ => None,
        },
        _ => None,
    }
}
