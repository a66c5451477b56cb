//! The decision core: a request and a snapshot become a decision.
//!
//! Plane: pure. Synchronous, no I/O, time is an argument; it also has to run inside Envoy, without a runtime.
//! Default deny: allowed means that Cedar says so, without an evaluation error. Adding a forbid, removing a grant or
//! adding a revocation never turns a deny into an allow.

mod asker;
mod authenticate;
mod case;
mod change;
mod decision;
mod engine;
mod evaluation;
mod explain;
mod freshness;
mod identify;
mod intake;
mod mapping;
mod mcp;
mod missing_key;
mod owners;
mod path;
mod peer;
pub mod problem;
mod proof;
mod question;
mod ready;
mod reason;
mod request;
mod revocations;
mod route;
mod search;
mod snapshot;
mod spend;
mod target;
mod template;
#[cfg(test)]
mod tests;
mod transaction;

pub use self::asker::{Asker, authenticate_asker, authenticate_asker_again};
pub use self::authenticate::KnownToken;
pub use self::change::{Change, Prepared};
pub use self::decision::{Decision, DecisionId, GrantHint, NeedsBody, Permit};
pub use self::engine::{
    Deferred, Inputs, Memo, NoMemo, allowed_tools, decide, decide_again, decide_again_deferred, decide_open,
    decide_unless_costly, explain,
};
pub use self::evaluation::{About, AboutCall, AboutResource, Evaluation, evaluate, evaluate_unless_costly};
pub use self::explain::Step;
pub use self::freshness::{Lease, MAX_CLOCK_SKEW};
pub use self::identify::{Identity, identify};
pub(crate) use self::intake::min_revision;
pub use self::intake::{CREDENTIAL_HEADERS, is_credential_header, is_min_revision};
pub use self::mcp::{
    EventFilter, MAX_LISTED_TOOLS, MAX_MCP_BODY, MAX_MCP_NAME, MAX_TOOLS_ANSWER, McpCall, McpTerms, TermsError,
    Unfilterable, filter_tools, metadata_place,
};
pub use self::missing_key::issuer_of_token;
pub use self::owners::Owners;
pub use self::path::{AmbiguousPath, CanonicalPath, MAX_PATH};
pub use self::peer::{ForwardingHeader, KnownCertificate, Network, NetworkError, ProxyPeer, Settings, TrustedProxy};
pub use self::proof::{Challenge, Proving, Registered, Replay};
pub use self::question::KnownAnswer;
pub use self::reason::{GrpcStatus, Reason};
pub use self::request::{Door, Header, Peer, Request};
pub use self::route::{RouteConflict, RouteMatch, RouteTable, RouteTableError};
pub use self::search::{Found, MAX_EXAMINED, Search};
pub use self::snapshot::{BadObject, Builder, Snapshot};
pub use self::template::{MAX_SEGMENTS, MAX_TEMPLATE, Relation, Template, TemplateError, matches_pattern};
