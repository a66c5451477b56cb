//! The grant policies in force, compiled once for each revision that published some.
//!
//! Plane: control. Fails closed: a set that this version cannot compile refuses every request until another is published.

use std::sync::Arc;

use super::refusal::Refusal;
use crate::control::compiled::Compiled;
use crate::control::index::{Index, Stored};
use crate::control::store::{Expect, Guard};
use crate::grant::policy::GrantPolicies;
use crate::object::{GrantPolicySet, Kind, Object};
use crate::wire::Revision;

/// The last set that was compiled.
#[derive(Debug, Default)]
pub(super) struct PolicyCache(Compiled<GrantPolicies>);

/// Compiled policies, and the revision that published them.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) rules: Arc<GrantPolicies>,
    revision: Revision,
}

// === impl PolicyCache ===

impl PolicyCache {
    /// Sees to it that the policies in force are compiled.
    pub(super) async fn ready(&self, index: &Index) {
        if let Some(stored) = index.get(Kind::GrantPolicySet, GrantPolicySet::KEY)
            && self.0.known(stored.revision).is_none()
        {
            let revision = stored.revision;
            let _compiled = self.0.of(revision, move || compile(&stored)).await;
        }
    }

    /// The policies in force; `None` when there have never been any.
    pub(super) fn in_force(&self, index: &Index) -> Result<Option<InForce>, Refusal> {
        let Some(stored) = index.get(Kind::GrantPolicySet, GrantPolicySet::KEY) else { return Ok(None) };
        let revision = stored.revision;
        let rules = self.0.of_now(revision, || compile(&stored)).ok_or(Refusal::Unreadable)?;
        Ok(Some(InForce { rules, revision }))
    }

    /// No others have come into force.
    pub(super) fn guard(found: Option<&InForce>) -> Guard {
        let expect = found.map_or(Expect::Absent, |policies| Expect::Revision(policies.revision));
        Guard::Object { kind: Kind::GrantPolicySet, key: GrantPolicySet::KEY.to_owned(), expect }
    }
}

fn compile(stored: &Stored) -> Option<GrantPolicies> {
    let Some(Object::GrantPolicySet(set)) = &stored.object else { return None };
    let revision = stored.revision;
    GrantPolicies::compile(&set.text)
        .inspect_err(|errors| tracing::error!(%revision, %errors, "grant policies do not compile"))
        .ok()
}
