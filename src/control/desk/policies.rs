//! The grant policies in force, compiled once for each revision that published some.
//!
//! Plane: control. Fails closed: a set that this version cannot compile refuses every request until another is published.

use std::sync::{Arc, Mutex, PoisonError};

use super::refusal::Refusal;
use crate::control::index::Index;
use crate::control::store::{Expect, Guard};
use crate::grant::policy::GrantPolicies;
use crate::object::{GrantPolicySet, Kind, Object};
use crate::wire::Revision;

/// The last set that was compiled.
#[derive(Debug, Default)]
pub(super) struct PolicyCache(Mutex<Option<(Revision, Option<Arc<GrantPolicies>>)>>);

/// Compiled policies, and the revision that published them.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) rules: Arc<GrantPolicies>,
    revision: Revision,
}

// === impl PolicyCache ===

impl PolicyCache {
    /// The policies in force; `None` when there have never been any.
    pub(super) fn in_force(&self, index: &Index) -> Result<Option<InForce>, Refusal> {
        let Some(stored) = index.get(Kind::GrantPolicySet, GrantPolicySet::KEY) else { return Ok(None) };
        let revision = stored.revision;
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = match cache.as_ref() {
            Some((of, rules)) if *of == revision => rules.clone(),
            _ => {
                let rules = match &stored.object {
                    Some(Object::GrantPolicySet(set)) => GrantPolicies::compile(&set.text)
                        .inspect_err(|errors| tracing::error!(%revision, %errors, "grant policies do not compile"))
                        .ok()
                        .map(Arc::new),
                    _ => None,
                };
                *cache = Some((revision, rules.clone()));
                rules
            }
        };
        let rules = rules.ok_or(Refusal::Unreadable)?;
        Ok(Some(InForce { rules, revision }))
    }

    /// No others have come into force.
    pub(super) fn guard(found: Option<&InForce>) -> Guard {
        let expect = found.map_or(Expect::Absent, |policies| Expect::Revision(policies.revision));
        Guard::Object { kind: Kind::GrantPolicySet, key: GrantPolicySet::KEY.to_owned(), expect }
    }
}
