//! The Cedar schema that every policy set is validated against.
//!
//! Pure. Principals are workloads in roles, resources are routes in services, actions are the built-in ones and the
//! custom ones of the routes, and so are the arguments of tools. The schema is part of the public interface: attributes
//! are added, never renamed.

use std::collections::BTreeMap;

use cedar_policy::Schema;

use super::asked;
use super::mcp;
use crate::object::ArgumentType;

/// The names in a schema that come from services.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// Actions beside the built-in ones.
    pub actions: &'a [String],
    /// Arguments of MCP tools, and their types.
    pub arguments: &'a BTreeMap<String, ArgumentType>,
}

/// The actions that exist without any route naming them.
pub const BUILTIN_ACTIONS: [&str; 3] = ["read", "write", "delete"];

const ENTITIES: &str = r#"
entity Role;
entity Workload in [Role] {
  // "service", "pipeline", "agent" or "third_party"
  kind: String,
  environment: String,
  owner: String,
} tags String;
entity Service;
entity Route in [Service];

type Grant = {
  id: String,
  actions: Set<String>,
  // not_after - not_before
  duration_seconds: Long,
};

type Transaction = {
  // the transaction's id
  txn: String,
  // what it is for, if the token says so
  scope?: String,
  // for whom, as the token names it
  subject: String,
};

type RequestContext = {
  method: String,
  // canonical, without the query
  path: String,
  // lower-case, without the port
  host: String,
  // the active grant that covers the request, if there is one
  grant?: Grant,
  // the verified transaction token that came along, if one did; it says nothing of who calls
  transaction?: Transaction,
  // what an application says that asks by itself (AuthZEN): its word, nothing of it was verified here
  asked?: Asked,
  // the message, on a route that speaks the Model Context Protocol
  mcp?: Mcp,
};
"#;

/// The text of the schema with these names.
pub(super) fn text(names: Names<'_>) -> String {
    let arguments = mcp::schema(names.arguments);
    let custom_actions = names.actions;
    let mut names: Vec<&str> =
        BUILTIN_ACTIONS.iter().copied().chain(custom_actions.iter().map(String::as_str)).collect();
    names.sort_unstable();
    names.dedup();
    let list: Vec<String> = names.iter().map(|n| format!("\"{}\"", n.escape_default())).collect();
    format!(
        "{ENTITIES}{}\n{arguments}\naction {} appliesTo {{ principal: [Workload], resource: [Route], context: RequestContext }};\n",
        asked::SCHEMA,
        list.join(", ")
    )
}

/// The parsed schema. An error means that a name cannot be written in Cedar.
pub(super) fn parse(names: Names<'_>) -> Result<Schema, String> {
    match Schema::from_cedarschema_str(&text(names)) {
        Ok((schema, _warnings)) => Ok(schema),
        Err(e) => Err(e.to_string()),
    }
}
