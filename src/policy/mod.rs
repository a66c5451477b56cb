//! Cedar policy: schema, strict validation, slicing by scope, and which inputs a policy set reads.
//!
//! Plane: pure. Any evaluation error denies: Cedar skips a policy that errors, so an erroring `forbid` would not
//! forbid. A policy set that does not validate strictly is refused whole; it is never applied in part.

mod asked;
mod compiled;
mod eval;
mod mcp;
mod reads;
mod schema;
mod validate;

#[cfg(test)]
mod tests;

pub use self::asked::{AskedFacts, Properties, Told};
pub use self::compiled::{CompileError, CompiledPolicies};
pub use self::eval::{Facts, GrantFacts, Inquiry, Outcome, PrincipalEntity, ResourceEntity, TransactionFacts};
pub use self::mcp::{McpFacts, McpMessage, McpReads, McpValue};
pub use self::reads::Reads;
pub use self::schema::{BUILTIN_ACTIONS, Names};
pub use self::validate::{PolicyError, PolicyErrors, Report, validate};
pub(crate) use self::validate::{line_and_column, parse_strictly};
