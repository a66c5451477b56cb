//! What makes a route one of the Model Context Protocol: what rules may read of its messages, and what a client that is
//! denied is told.
//!
//! Pure. INVARIANT: a field that cannot be understood is an error, because an argument that is silently not looked at
//! would leave a `forbid` without effect. Nothing here allows anything: scopes say what to ask for, policy decides.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{FieldError, check_name};

/// The settings of a route that speaks the Model Context Protocol over HTTP (streamable HTTP).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct McpRoute {
    /// The server's name in policies, `context.mcp.server`. Without it, the name of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Arguments of tools that policies may read, by the name that they have there: `context.mcp.arguments.NAME`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub arguments: BTreeMap<String, McpArgument>,
    /// The URL by which clients and authorization servers know the server (RFC 9728), as in `https://mcp.example/mcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The issuers of which a client may get a token for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorization_servers: Vec<String>,
    /// Where the server's metadata is, if not where RFC 9728 has it for `resource`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_metadata: Option<String>,
    /// The scopes that a denied client is told to ask for. Empty: the action of the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// The same for calls of single tools, in place of `scopes`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tool_scopes: BTreeMap<String, Vec<String>>,
}

/// An argument of tools that policies may read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct McpArgument {
    /// What it has to be. A call that has it as something else is refused.
    #[serde(rename = "type")]
    pub kind: ArgumentType,
    /// Where it is among the arguments: a JSON Pointer (RFC 6901) through objects. Without it, `/` and its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// What an argument has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ArgumentType {
    /// A string.
    String,
    /// An integer that every JSON parser reads alike: between -(2^53 - 1) and 2^53 - 1, without fraction or exponent.
    Long,
    /// `true` or `false`.
    Boolean,
}

/// How many arguments a route may name.
const MAX_ARGUMENTS: usize = 32;
/// How many objects an argument may be in, itself included.
const MAX_STEPS: usize = 8;
const MAX_TEXT: usize = 512;
const MAX_SCOPES: usize = 32;
const MAX_TOOLS: usize = 1000;

// === impl McpRoute ===

impl McpRoute {
    /// Checks every field; `field` is the name of the whole.
    pub(super) fn check(&self, field: &str) -> Result<(), FieldError> {
        if let Some(server) = &self.server {
            check_name(&format!("{field}.server"), server)?;
        }
        self.check_arguments(field)?;
        for (name, url) in [("resource", &self.resource), ("resource_metadata", &self.resource_metadata)] {
            url.as_ref().map_or(Ok(()), |url| check_url(&format!("{field}.{name}"), url))?;
        }
        for (i, url) in self.authorization_servers.iter().enumerate() {
            check_url(&format!("{field}.authorization_servers[{i}]"), url)?;
        }
        if self.authorization_servers.len() > MAX_SCOPES {
            let message = format!("at most {MAX_SCOPES} are allowed");
            return Err(FieldError::new(format!("{field}.authorization_servers"), message));
        }
        check_scopes(&format!("{field}.scopes"), &self.scopes)?;
        if self.tool_scopes.len() > MAX_TOOLS {
            return Err(FieldError::new(
                format!("{field}.tool_scopes"),
                format!("at most {MAX_TOOLS} tools are allowed"),
            ));
        }
        for (tool, scopes) in &self.tool_scopes {
            check_tool(&format!("{field}.tool_scopes"), tool)?;
            check_scopes(&format!("{field}.tool_scopes.{tool}"), scopes)?;
        }
        Ok(())
    }

    fn check_arguments(&self, field: &str) -> Result<(), FieldError> {
        if self.arguments.len() > MAX_ARGUMENTS {
            let message = format!("at most {MAX_ARGUMENTS} are allowed");
            return Err(FieldError::new(format!("{field}.arguments"), message));
        }
        let mut paths: Vec<(&str, Vec<String>)> = Vec::new();
        for (name, argument) in &self.arguments {
            check_argument_name(&format!("{field}.arguments"), name)?;
            let at = format!("{field}.arguments.{name}.at");
            let path = argument.path(name).ok_or_else(|| {
                FieldError::new(&at, format!("is not a JSON Pointer of 1 to {MAX_STEPS} steps, as in `/order/amount`"))
            })?;
            // One that is in another is no object and a scalar at once.
            if let Some((other, _)) =
                paths.iter().find(|(_, other)| path.starts_with(other) || other.starts_with(&path))
            {
                return Err(FieldError::new(&at, format!("is the place of `{other}`, or in it, or around it")));
            }
            paths.push((name, path));
        }
        Ok(())
    }
}

// === impl McpArgument ===

impl McpArgument {
    /// The members that lead to it from the arguments of a call; `None` if `at` is no pointer.
    pub fn path(&self, name: &str) -> Option<Vec<String>> {
        let Some(pointer) = &self.at else { return Some(vec![name.to_owned()]) };
        if pointer.len() > MAX_TEXT {
            return None;
        }
        let steps: Option<Vec<String>> = pointer.strip_prefix('/')?.split('/').map(unescape).collect();
        steps.filter(|steps| steps.len() <= MAX_STEPS && steps.iter().all(|step| !step.is_empty()))
    }
}

/// RFC 6901, section 4.
fn unescape(step: &str) -> Option<String> {
    let mut out = String::with_capacity(step.len());
    let mut chars = step.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '~' => match chars.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            c => c,
        });
    }
    Some(out)
}

/// A name that can be written in a policy without quotes.
pub(super) fn check_argument_name(field: &str, name: &str) -> Result<(), FieldError> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if first && name.len() <= 63 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Ok(());
    }
    let message = format!("`{name}` is not a name: 1 to 63 of a-z, A-Z, 0-9 and `_`, first a letter or `_`");
    Err(FieldError::new(field, message))
}

/// A tool's name as a client can send it.
pub(super) fn check_tool(field: &str, tool: &str) -> Result<(), FieldError> {
    if tool.is_empty() || tool.len() > crate::authz::MAX_MCP_NAME || tool.chars().any(char::is_control) {
        return Err(FieldError::new(field, format!("`{}` is not the name of a tool", tool.escape_default())));
    }
    Ok(())
}

/// Scope tokens (RFC 6749, section 3.3), which stand between quotes in a header.
fn check_scopes(field: &str, scopes: &[String]) -> Result<(), FieldError> {
    if scopes.len() > MAX_SCOPES {
        return Err(FieldError::new(field, format!("at most {MAX_SCOPES} are allowed")));
    }
    let ok = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
    match scopes.iter().position(|scope| scope.is_empty() || scope.len() > 128 || !scope.bytes().all(ok)) {
        Some(i) => {
            let message = format!("`{}` is not a scope", scopes.get(i).map_or("", String::as_str).escape_default());
            Err(FieldError::new(format!("{field}[{i}]"), message))
        }
        None => Ok(()),
    }
}

/// An absolute URL without query and fragment. It stands between quotes in a header.
fn check_url(field: &str, url: &str) -> Result<(), FieldError> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = rest.and_then(|rest| rest.split('/').next());
    let ok = |b: u8| {
        b.is_ascii_graphic()
            && !matches!(b, b'"' | b'\\' | b'?' | b'#' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
    };
    let in_host =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    if url.len() > MAX_TEXT
        || host.is_none_or(|host| host.is_empty() || !host.bytes().all(in_host))
        || !url.bytes().all(ok)
    {
        let message = "is not an `https://` or `http://` URL with its host in lower case, without query and fragment";
        return Err(FieldError::new(field, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(document: Value) -> Result<(), FieldError> {
        serde_json::from_value::<McpRoute>(document).unwrap().check("mcp")
    }

    #[test]
    fn a_field_that_cannot_be_understood_is_named() {
        let long = "x".repeat(600);
        for (document, field) in [
            (json!({"server": "Bad Name"}), "mcp.server"),
            (json!({"arguments": {"a-b": {"type": "long"}}}), "mcp.arguments"),
            (json!({"arguments": {"": {"type": "long"}}}), "mcp.arguments"),
            (json!({"arguments": {"a": {"type": "long", "at": "amount"}}}), "mcp.arguments.a.at"),
            (json!({"arguments": {"a": {"type": "long", "at": "/"}}}), "mcp.arguments.a.at"),
            (json!({"arguments": {"a": {"type": "long", "at": "/x~2"}}}), "mcp.arguments.a.at"),
            (json!({"arguments": {"a": {"type": "long", "at": "/1/2/3/4/5/6/7/8/9"}}}), "mcp.arguments.a.at"),
            (json!({"arguments": {"a": {"type": "long"}, "b": {"type": "long", "at": "/a/b"}}}), "mcp.arguments.b.at"),
            (json!({"arguments": {"a": {"type": "long", "at": "/b/c"}, "b": {"type": "long"}}}), "mcp.arguments.b.at"),
            (json!({"resource": "mcp.example"}), "mcp.resource"),
            (json!({"resource": "https://MCP.example/"}), "mcp.resource"),
            (json!({"resource": "https:///mcp"}), "mcp.resource"),
            (json!({"resource": "https://mcp.example/a?b"}), "mcp.resource"),
            (json!({"resource": format!("https://mcp.example/{long}")}), "mcp.resource"),
            (json!({"resource_metadata": "https://mcp.example/\"x"}), "mcp.resource_metadata"),
            (json!({"authorization_servers": ["https://a.example", "a"]}), "mcp.authorization_servers[1]"),
            (json!({"scopes": ["a", "b c"]}), "mcp.scopes[1]"),
            (json!({"scopes": ["a\"b"]}), "mcp.scopes[0]"),
            (json!({"tool_scopes": {"t": [""]}}), "mcp.tool_scopes.t[0]"),
            (json!({"tool_scopes": {"": ["x"]}}), "mcp.tool_scopes"),
        ] {
            assert_eq!(check(document.clone()).unwrap_err().field, field, "{document}");
        }
        assert!(serde_json::from_value::<McpRoute>(json!({"argument": {}})).is_err());
        assert!(serde_json::from_value::<McpRoute>(json!({"arguments": {"a": {"type": "double"}}})).is_err());
    }

    #[test]
    fn an_argument_is_where_its_pointer_says() {
        let path = |at: Option<&str>| {
            McpArgument { kind: ArgumentType::String, at: at.map(str::to_owned) }.path("amount").unwrap_or_default()
        };
        assert_eq!(path(None), ["amount"]);
        assert_eq!(path(Some("/order/total~1sum~0x")), ["order", "total/sum~x"]);
        assert_eq!(
            check(json!({
                "server": "desk", "resource": "https://mcp.example:8443/mcp", "scopes": ["mcp:read"],
                "authorization_servers": ["https://idp.example/realms/a"], "tool_scopes": {"refund": ["mcp:refund"]},
                "arguments": {"amount": {"type": "long", "at": "/order/amount"}, "order": {"type": "string", "at": "/order/id"}},
            })),
            Ok(())
        );
        assert_eq!(check(json!({})), Ok(()));
    }
}
