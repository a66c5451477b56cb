//! Why the desk refuses.
//!
//! Plane: control. Each refusal names a field, a rule or a policy; the API turns it into a problem document, and the
//! sweeper writes it down as the reason of a grant that could not start.

use crate::control::commit::CommitError;
use crate::grant::{RuleError, policy};
use crate::object::FieldError;

/// Why.
#[derive(Debug, Clone, thiserror::Error)]
pub(in crate::control) enum Refusal {
    /// There is no such grant.
    #[error("there is no grant or request `{0}`")]
    Unknown(String),
    /// A field asks for what cannot be had.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A rule that holds whatever policies say.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// Grant policies.
    #[error(transparent)]
    Policy(policy::Refusal),
    /// Nobody may do this, or not this one.
    #[error("{0}")]
    Forbidden(String),
    /// Not as things are.
    #[error("{0}")]
    Conflict(String),
    /// The grant policies in force are of another version.
    #[error("the grant policies in force cannot be read by this version; publish them again")]
    Unreadable,
    /// It could not be committed.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl From<policy::Refusal> for Refusal {
    fn from(refusal: policy::Refusal) -> Self {
        match refusal {
            policy::Refusal::Terms(error) => Self::Field(error),
            other => Self::Policy(other),
        }
    }
}
