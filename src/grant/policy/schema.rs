//! The Cedar schema of grant policies.
//!
//! Pure. Part of the public interface: attributes are added, never renamed. A request is put to it once for each
//! resource, so that a policy about one resource need not think of the others.

use std::str::FromStr;
use std::sync::OnceLock;

use cedar_policy::Schema;

/// The text of the schema.
pub(super) const TEXT: &str = r#"
entity Group;
// Whoever calls the API as an operator; its id is its name.
entity Operator in [Group] {
  // "person" or "automation"
  kind: String,
};
entity Role;
entity Workload in [Role] {
  // "service", "pipeline", "agent" or "third_party"
  kind: String,
  environment: String,
  owner: String,
} tags String;
entity Service;
entity Route in [Service];

type Ask = {
  // for whom
  workload: Workload,
  // whether the workload itself asks
  for_itself: Bool,
  actions: Set<String>,
  duration_seconds: Long,
  reason: String,
  ticket?: String,
  // narrows the resource
  path?: String,
  // how many requests it is to allow
  uses?: Long,
  // whether it holds only under conditions, or for one exact call
  conditional: Bool,
  exact_call: Bool,
  // whether it is to start later
  scheduled: Bool,
  // whether it is to follow another grant
  renewal: Bool,
};

type Vote = {
  // the step that is approved
  step: String,
  // who asked
  requester: String,
  workload: Workload,
  for_itself: Bool,
  actions: Set<String>,
  duration_seconds: Long,
  reason: String,
  ticket?: String,
  path?: String,
  uses?: Long,
  conditional: Bool,
  exact_call: Bool,
  scheduled: Bool,
  renewal: Bool,
};

action "request" appliesTo { principal: [Operator, Workload], resource: [Service, Route], context: Ask };
action "break_glass" appliesTo { principal: [Operator], resource: [Service, Route], context: Ask };
action "approve" appliesTo { principal: [Operator], resource: [Service, Route], context: Vote };
"#;

/// The parsed schema; parsing is slow, so it is done once.
pub(super) fn schema() -> Result<Schema, String> {
    static PARSED: OnceLock<Result<Schema, String>> = OnceLock::new();
    let parse = || Schema::from_str(TEXT).map_err(|e| e.to_string());
    PARSED.get_or_init(parse).clone()
}
