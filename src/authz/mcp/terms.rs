//! The terms of an MCP route, compiled: which arguments are looked for, and what a denied client is told.
//!
//! Pure; made when routes compile, shared by everything that matches the route. INVARIANT: an argument is found only at its
//! exact place. A member that differs from a step of it in case alone is reported as such, because some servers would take
//! it (Go's `encoding/json` does).

use std::collections::BTreeMap;

use crate::object::{ArgumentType, McpRoute};

/// The compiled terms of an MCP route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct McpTerms {
    server: Box<str>,
    arguments: Branch,
    /// Where clients find the server's metadata.
    metadata_url: Option<Box<str>>,
    /// Joined by spaces; empty: the action of the request.
    scopes: Box<str>,
    tool_scopes: BTreeMap<Box<str>, Box<str>>,
}

/// Why the terms of a route do not compile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("argument `{0}` has no place, or one in that of another argument")]
pub struct TermsError(String);

/// The members of an object that lead to arguments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Branch(Vec<(Box<str>, Node)>);

/// What is at a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// More members.
    Branch(Branch),
    /// An argument, by its name in policies.
    Leaf(Box<str>, ArgumentType),
}

/// What a member of a message is to a branch.
pub(super) enum Member<'t> {
    /// On the way to an argument.
    Known(&'t Node),
    /// The same in another case.
    Variant,
    /// None of its concern.
    Other,
}

// === impl McpTerms ===

impl McpTerms {
    /// Compiles the terms of a route of `service`.
    pub fn compile(service: &str, route: &McpRoute) -> Result<Self, TermsError> {
        let mut arguments = Branch::default();
        for (name, argument) in &route.arguments {
            let path = argument.path(name).ok_or_else(|| TermsError(name.clone()))?;
            arguments.insert(&path, name, argument.kind).ok_or_else(|| TermsError(name.clone()))?;
        }
        let derived = || route.resource.as_deref().map(super::metadata::url);
        Ok(Self {
            server: route.server.as_deref().unwrap_or(service).into(),
            arguments,
            metadata_url: route.resource_metadata.clone().or_else(derived).map(Box::from),
            scopes: route.scopes.join(" ").into(),
            tool_scopes: route
                .tool_scopes
                .iter()
                .map(|(t, scopes)| (t.as_str().into(), scopes.join(" ").into()))
                .collect(),
        })
    }

    /// The server's name in policies.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Where clients find the server's metadata (RFC 9728).
    pub fn metadata_url(&self) -> Option<&str> {
        self.metadata_url.as_deref()
    }

    /// All scopes that a client is to ask for, joined by spaces, for a call of this tool or for any request. Without any,
    /// that is `action`.
    pub fn scopes<'a>(&'a self, tool: Option<&str>, action: Option<&'a str>) -> &'a str {
        let of_tool = tool.and_then(|tool| self.tool_scopes.get(tool)).map(|scopes| &**scopes);
        match of_tool.unwrap_or(&self.scopes) {
            "" => action.unwrap_or_default(),
            scopes => scopes,
        }
    }

    pub(super) const fn arguments(&self) -> &Branch {
        &self.arguments
    }
}

// === impl Branch ===

impl Branch {
    /// `None` if something is there already.
    fn insert(&mut self, path: &[String], name: &str, kind: ArgumentType) -> Option<()> {
        let (step, rest) = path.split_first()?;
        let known = self.0.iter_mut().find(|(member, _)| **member == **step);
        match (known, rest) {
            (None, []) => self.0.push((step.as_str().into(), Node::Leaf(name.into(), kind))),
            (None, rest) => {
                let mut branch = Self::default();
                branch.insert(rest, name, kind)?;
                self.0.push((step.as_str().into(), Node::Branch(branch)));
            }
            (Some((_, Node::Branch(branch))), [_, ..]) => branch.insert(rest, name, kind)?,
            (Some(_), _) => return None,
        }
        Some(())
    }

    /// What `member` is here.
    pub(super) fn member(&self, member: &str) -> Member<'_> {
        let mut variant = false;
        for (name, node) in &self.0 {
            if **name == *member {
                return Member::Known(node);
            }
            variant |= is_variant(member, name);
        }
        if variant { Member::Variant } else { Member::Other }
    }
}

/// Whether two names are the same to somebody who does not look at case, as Unicode has it: `K` is also the Kelvin sign.
pub(super) fn is_variant(a: &str, b: &str) -> bool {
    if a.is_ascii() && b.is_ascii() {
        return a.eq_ignore_ascii_case(b);
    }
    fold(a) == fold(b)
}

fn fold(text: &str) -> String {
    // Up and down again: some letters have no upper case of their own, and some no lower.
    text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}
