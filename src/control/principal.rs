//! Who calls the control plane's API: a name, what it is, how it proved it, the groups that its provider vouches for.
//!
//! Plane: control; plain data. A principal exists only once it is authenticated. Names never collide between the ways
//! of authenticating: operators have plain names, people of a provider `PROVIDER:NAME`, workloads their SPIFFE ID.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::credential::SpiffeId;

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Unique among all principals, and what log, votes and audit call it.
    pub name: Arc<str>,
    /// What it is.
    pub kind: PrincipalKind,
    /// How it proved that.
    pub via: Via,
    /// The groups that its provider vouches for; empty for everyone else.
    pub groups: Arc<[Arc<str>]>,
}

/// What a principal is. Rules that want a human ask for [`PrincipalKind::Person`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrincipalKind {
    /// A human.
    Person,
    /// A script or a pipeline that acts as an operator.
    Automation,
    /// A registered workload, with its own credential.
    Workload(SpiffeId),
}

/// How a principal proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// A bearer token that the control plane made.
    Token,
    /// A token of a configured OIDC provider.
    Oidc,
    /// A client certificate.
    Certificate,
    /// A workload's own token.
    Workload,
    /// The control plane itself.
    System,
}

/// What an operator was created as.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperatorKind {
    /// A human.
    #[default]
    Person,
    /// A script or a pipeline.
    Automation,
}

// === impl Principal ===

impl Principal {
    /// A principal of no group.
    pub fn new(name: impl Into<Arc<str>>, kind: PrincipalKind, via: Via) -> Self {
        Self { name: name.into(), kind, via, groups: Arc::from([]) }
    }

    /// Whether it is a human.
    pub fn is_person(&self) -> bool {
        self.kind == PrincipalKind::Person
    }

    /// Its SPIFFE ID, if it is a workload.
    pub const fn workload(&self) -> Option<&SpiffeId> {
        match &self.kind {
            PrincipalKind::Workload(id) => Some(id),
            PrincipalKind::Person | PrincipalKind::Automation => None,
        }
    }
}

// === impl PrincipalKind ===

impl PrincipalKind {
    /// As records spell it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Person => OperatorKind::Person.name(),
            Self::Automation => OperatorKind::Automation.name(),
            Self::Workload(_) => "workload",
        }
    }
}

impl From<OperatorKind> for PrincipalKind {
    fn from(kind: OperatorKind) -> Self {
        match kind {
            OperatorKind::Person => Self::Person,
            OperatorKind::Automation => Self::Automation,
        }
    }
}

// === impl OperatorKind ===

impl OperatorKind {
    /// As the store spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Automation => "automation",
        }
    }
}

impl fmt::Display for OperatorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for OperatorKind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        [Self::Person, Self::Automation]
            .into_iter()
            .find(|kind| kind.name() == s)
            .ok_or_else(|| format!("`{s}` is not a kind of operator"))
    }
}
