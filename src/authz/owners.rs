//! Whose a verified token is, without a snapshot: for the control plane, which authenticates its sidecars itself.
//!
//! Pure. Asks the very mappings that the engine asks, of the workloads that it is given. Fails closed: a token that is
//! nobody's, or could be two workloads', has no owner. Knows no revocations and grants nothing.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::mapping::{Mappings, Unmapped};
use crate::credential::{SpiffeId, VerifiedToken};
use crate::grant::{ShardedMap, WorkloadKey};
use crate::object::{IssuerKind, Workload};

/// Workloads, to be found by their credentials.
#[derive(Clone)]
pub struct Owners {
    mappings: Mappings,
    workloads: ShardedMap<Arc<Workload>>,
}

// === impl Owners ===

impl Owners {
    /// Of these workloads, each of which occurs once.
    pub fn new<'a>(workloads: impl IntoIterator<Item = &'a Workload>) -> Self {
        let mut owners = Self { mappings: Mappings::new(0), workloads: ShardedMap::new(0) };
        for workload in workloads {
            owners.mappings.replace(None, Some(workload), 0);
            owners.workloads.insert(WorkloadKey::of(workload.id.as_str()).0, Arc::new(workload.clone()), 0);
        }
        owners
    }

    /// Whether it knows a workload with this id.
    pub fn contains(&self, id: &str) -> bool {
        self.workloads.get(&WorkloadKey::of(id).0).is_some_and(|known| known.id.as_str() == id)
    }

    /// The one workload whose token it is: by the token's own word, or by a mapping. An error says why there is none.
    pub fn owner_of(&self, token: &VerifiedToken) -> Result<SpiffeId, &'static str> {
        if let Some(named) = &token.workload {
            return Ok(named.clone());
        }
        self.mapped(token, token.claims.as_deref().ok_or(Unmapped::Nobody.detail())?)
    }

    /// The one workload that acts by this token for its owner, if another does.
    pub fn actor_of(&self, token: &VerifiedToken) -> Option<Result<SpiffeId, &'static str>> {
        let actor = token.actors.first()?;
        Some(named_actor(token, &actor.subject).unwrap_or_else(|| self.mapped(token, &actor.claims)))
    }

    fn mapped(&self, token: &VerifiedToken, claims: &Value) -> Result<SpiffeId, &'static str> {
        let found = self.mappings.resolve(&token.issuer, token.kind, claims, &self.workloads, |w| w);
        found.map(|workload| workload.id.clone()).map_err(Unmapped::detail)
    }
}

/// The actor, where tokens of this kind name it themselves; `None` where its claims are mapped.
pub(super) fn named_actor(token: &VerifiedToken, subject: &str) -> Option<Result<SpiffeId, &'static str>> {
    match token.kind {
        IssuerKind::Portcullis | IssuerKind::Spiffe => Some(match SpiffeId::parse(subject) {
            // A trust domain vouches for its own; the control plane that issued a token has seen both credentials.
            Ok(id) if token.kind == IssuerKind::Portcullis || token.is_in_trust_domain(&id) => Ok(id),
            _ => Err("the actor in `act` is not a workload that the issuer vouches for"),
        }),
        IssuerKind::Kubernetes | IssuerKind::Oidc | IssuerKind::Github => None,
    }
}

impl fmt::Debug for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owners").field("workloads", &self.workloads.len()).finish_non_exhaustive()
    }
}
