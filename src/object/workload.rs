//! Workloads: the principals, registered before any of their credentials count.
//!
//! Pure. The id is a SPIFFE ID and is never reused. Roles are what policies name; labels are free.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::mapping::{CredentialMapping, MAX_MAPPINGS};
use super::{FieldError, check_name, check_text};
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
        Ok(())
    }
}
