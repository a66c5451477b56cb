//! Workloads: the principals, registered before any of their credentials count.
//!
//! Pure. The id is a SPIFFE ID and is never reused. Roles are what policies name; labels are free.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::mapping::{CredentialMapping, MAX_MAPPINGS};
use super::{FieldError, check_name, check_text};
use crate::clock::Timestamp;
use crate::credential::SpiffeId;

/// A registered workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Its canonical id.
    pub id: SpiffeId,
    /// What it is.
    pub kind: WorkloadKind,
    /// The team or person who answers for it.
    pub owner: String,
    /// Where it runs, as in `production`.
    pub environment: String,
    /// Roles, `Role::"name"` in policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// Free labels, tags of the principal in policies.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Credentials that are this workload's although they do not name it: of Kubernetes, OIDC and GitHub issuers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<CredentialMapping>,
    /// Whom it may act for (RFC 8693, `act`): SPIFFE IDs, or everything below one, as in `spiffe://example.org/users/*`.
    /// Without any, the issuer's word is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delegators: Vec<WorkloadPattern>,
    /// Who may act for it, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actors: Vec<WorkloadPattern>,
    /// Set while it is suspended: by `suspend` and `resume`, never by replacing the document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<Suspension>,
}

/// One SPIFFE ID, or all below one: `spiffe://example.org/agents/*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct WorkloadPattern(pub String);

/// Since when and why a workload is suspended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Suspension {
    /// The revocation that enforces it.
    pub revocation: Uuid,
    /// Who suspended it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

/// What a workload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadKind {
    /// A long-running service.
    Service,
    /// A CI or data pipeline.
    Pipeline,
    /// An AI agent.
    Agent,
    /// Somebody else's software.
    ThirdParty,
}

impl WorkloadKind {
    /// The name used in documents and policies.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Pipeline => "pipeline",
            Self::Agent => "agent",
            Self::ThirdParty => "third_party",
        }
    }
}

// === impl Workload ===

impl Workload {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.owner.is_empty() {
            return Err(FieldError::new("owner", "a workload needs an owner"));
        }
        check_text("owner", &self.owner, 200)?;
        check_name("environment", &self.environment)?;
        if self.roles.len() > 64 {
            return Err(FieldError::new("roles", "at most 64 roles are allowed"));
        }
        for (i, role) in self.roles.iter().enumerate() {
            check_name(&format!("roles[{i}]"), role)?;
        }
        if self.labels.len() > 64 {
            return Err(FieldError::new("labels", "at most 64 labels are allowed"));
        }
        for (key, value) in &self.labels {
            check_name("labels", key)?;
            check_text(&format!("labels.{key}"), value, 200)?;
        }
        if self.credentials.len() > MAX_MAPPINGS {
            return Err(FieldError::new("credentials", format!("at most {MAX_MAPPINGS} mappings are allowed")));
        }
        for (i, mapping) in self.credentials.iter().enumerate() {
            mapping.check(&format!("credentials[{i}]"))?;
        }
        for (field, patterns) in [("delegators", &self.delegators), ("actors", &self.actors)] {
            if patterns.len() > 64 {
                return Err(FieldError::new(field, "at most 64 are allowed"));
            }
            for (i, pattern) in patterns.iter().enumerate() {
                pattern.check(&format!("{field}[{i}]"))?;
            }
        }
        match &self.suspended {
            Some(suspension) => check_text("suspended.reason", &suspension.reason, 1000),
            None => Ok(()),
        }
    }

    /// Whether `actor` may act for this workload, as far as the two of them say.
    pub fn may_be_acted_for_by(&self, actor: &Self) -> bool {
        let listed = |patterns: &[WorkloadPattern], id: &SpiffeId| {
            patterns.is_empty() || patterns.iter().any(|p| p.matches(id.as_str()))
        };
        listed(&actor.delegators, &self.id) && listed(&self.actors, &actor.id)
    }
}

// === impl WorkloadPattern ===

impl WorkloadPattern {
    /// Whether it means the workload of this id.
    pub fn matches(&self, id: &str) -> bool {
        match self.0.strip_suffix('*') {
            // What comes before the star ends with a slash, so that no name is cut in the middle.
            Some(below) => id.strip_prefix(below).is_some_and(|rest| !rest.is_empty()),
            None => self.0 == id,
        }
    }

    /// Whether it means all below a name, and not one workload.
    pub fn is_below(&self) -> bool {
        self.0.ends_with('*')
    }

    fn check(&self, field: &str) -> Result<(), FieldError> {
        let id = self.0.strip_suffix("/*").unwrap_or(&self.0);
        // A trust domain alone is no workload, but all of it may be meant.
        let domain = self.0.ends_with("/*").then(|| format!("{id}/x"));
        match SpiffeId::parse(domain.as_deref().unwrap_or(id)) {
            Ok(_) => Ok(()),
            Err(e) => Err(FieldError::new(field, format!("`{}`: {e}", self.0))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_one_workload_or_all_below() {
        let pattern = |text: &str| WorkloadPattern(text.to_owned());
        assert!(pattern("spiffe://a/x").matches("spiffe://a/x"));
        assert!(!pattern("spiffe://a/x").matches("spiffe://a/x/y"));
        assert!(pattern("spiffe://a/x/*").matches("spiffe://a/x/y/z"));
        for other in ["spiffe://a/x", "spiffe://a/x/", "spiffe://a/xy", "spiffe://b/x/y"] {
            assert!(!pattern("spiffe://a/x/*").matches(other), "{other}");
        }
        for good in ["spiffe://a/x", "spiffe://a/x/*", "spiffe://a/*"] {
            assert_eq!(pattern(good).check("actors[0]"), Ok(()), "{good}");
        }
        for bad in ["", "*", "spiffe://a/x*", "spiffe://*/x", "spiffe://a/*/x", "alice", "https://a/*"] {
            assert_eq!(pattern(bad).check("actors[0]").unwrap_err().field, "actors[0]", "{bad}");
        }
    }
}
