//! Grant policies: who may ask for which permission for whom, under which terms, and who may approve it.
//!
//! Pure. Cedar, with a schema of its own. Where several permits match, the strictest of their terms count; any forbid
//! refuses, and so does any error, because a policy that fails to evaluate might have been a forbid. What is not
//! permitted is refused. A text is accepted whole or not at all, strictly validated, and an annotation that is not
//! known refuses it: a term that is not understood must not be ignored.

mod eval;
mod schema;
mod terms;

use std::collections::{BTreeSet, HashMap};

use cedar_policy::PolicySet;
use serde::Serialize;

use self::terms::Terms;
use crate::object::FieldError;
use crate::policy::{PolicyError, PolicyErrors, parse_strictly};

pub use self::eval::{Ask, Requester};

/// A compiled set of grant policies.
#[derive(Debug)]
pub struct GrantPolicies {
    set: PolicySet,
    /// The terms of the permits that have any.
    terms: HashMap<String, Terms>,
    /// The routes that any policy names, as in `payments/refunds`.
    routes: BTreeSet<String>,
}

/// What a valid text contains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct GrantPolicyReport {
    /// Number of policies.
    pub policies: usize,
    /// Their ids, in the order of the text.
    pub ids: Vec<String>,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Policies forbid it.
    #[error("grant policies forbid it: {}", .0.join(", "))]
    Forbidden(Vec<String>),
    /// No policy permits it.
    #[error("no grant policy permits it")]
    NoMatch,
    /// Policies could not be evaluated.
    #[error("grant policies failed to evaluate: {}", .0.join(", "))]
    Failed(Vec<String>),
    /// It is permitted, but not like this.
    #[error(transparent)]
    Terms(#[from] FieldError),
}

// === impl GrantPolicies ===

impl GrantPolicies {
    /// Validates and compiles.
    pub fn compile(text: &str) -> Result<Self, PolicyErrors> {
        Ok(Self::compile_with_report(text)?.0)
    }

    /// Validates and compiles, and says what the text contains.
    pub fn compile_with_report(text: &str) -> Result<(Self, GrantPolicyReport), PolicyErrors> {
        let plain = |message: String| {
            PolicyErrors(vec![PolicyError { policy: None, line: None, column: None, message, help: None }])
        };
        let schema = schema::schema().map_err(plain)?;
        let policies = parse_strictly(text, &schema)?;
        let (mut terms, mut errors) = (HashMap::new(), Vec::new());
        for policy in &policies {
            match Terms::of(policy) {
                Ok(found) => _ = terms.insert(policy.id().to_string(), found),
                Err(bad) => errors.push(bad.located(text, policy)),
            }
        }
        if !errors.is_empty() {
            return Err(PolicyErrors(errors));
        }
        let literals = policies.iter().flat_map(cedar_policy::Policy::entity_literals);
        let routes = literals
            .filter(|uid| uid.type_name().basename() == "Route")
            .map(|uid| AsRef::<str>::as_ref(uid.id()).to_owned())
            .collect();
        let ids: Vec<String> = policies.iter().map(|p| p.id().to_string()).collect();
        let report = GrantPolicyReport { policies: ids.len(), ids };
        let set = PolicySet::from_policies(policies).map_err(|e| plain(e.to_string()))?;
        Ok((Self { set, terms, routes }, report))
    }
}

#[cfg(test)]
mod tests;
