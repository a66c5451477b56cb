//! The Model Context Protocol over HTTP: what a message is, so that rules can be about tools and not only about one path.
//!
//! Pure. Reads requests on routes that are marked for it, in versions 2025-06-18, 2025-11-25 and 2026-07-28 of the
//! streamable HTTP transport. INVARIANT: what two JSON parsers could read differently is refused, and so is what a header says
//! otherwise than the body; nothing is repaired, and the bytes that were read are those that are forwarded. A body that the
//! check did not carry whole is refused. Says nothing of who may do what: that is for policy, which gets [`McpFacts`].

mod carriage;
mod headers;
mod message;
mod metadata;
mod reader;
mod terms;
mod tools;
mod uri;

#[cfg(test)]
mod tests;

use self::headers::{Headers, Version};
use self::message::{Kind, Message};
pub(super) use self::metadata::Documents;
pub use self::metadata::metadata_place;
pub use self::terms::{McpTerms, TermsError};
pub use self::tools::{EventFilter, MAX_TOOLS_ANSWER, Unfilterable, filter_tools};
use super::intake::Refusal;
use super::reason::Reason;
use super::request::Request;
use crate::policy::{McpFacts, McpMessage};

/// The largest message that is read, in bytes.
pub const MAX_MCP_BODY: usize = 1 << 20;
/// The longest name of a tool or a prompt, in bytes.
pub const MAX_MCP_NAME: usize = 256;
/// How many tools are asked about at once.
pub const MAX_LISTED_TOOLS: usize = 1000;

/// What a decision on an MCP route is about, for records and for what a denied client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct McpCall {
    /// The route's terms.
    pub terms: std::sync::Arc<McpTerms>,
    /// The JSON-RPC method, once the message has been read.
    pub method: Option<Box<str>>,
    /// What it names: a tool, a prompt, or the URI of a resource.
    pub target: Option<Box<str>>,
    /// Whether `target` is a tool.
    pub is_tool: bool,
}

// === impl McpCall ===

impl McpCall {
    /// Of a request that has not been read yet.
    pub(super) fn unread(terms: &std::sync::Arc<McpTerms>) -> Self {
        Self { terms: std::sync::Arc::clone(terms), method: None, target: None, is_tool: false }
    }

    pub(super) fn note(&mut self, facts: &McpFacts<'_>) {
        self.method = facts.method.as_deref().map(Box::from);
        let target = facts.tool.as_deref().or(facts.prompt.as_deref()).or(facts.resource.as_deref());
        (self.target, self.is_tool) = (target.map(Box::from), facts.tool.is_some());
    }

    /// What records tell of it.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let target = if self.is_tool { "mcp_tool" } else { "mcp_target" };
        let method = self.method.as_deref().map(|method| ("mcp_method", method));
        method.into_iter().chain(self.target.as_deref().map(|name| (target, name)))
    }

    /// Whether its answer lists tools.
    pub fn lists_tools(&self) -> bool {
        self.method.as_deref() == Some(message::LIST)
    }

    /// The tool that is called, if one is.
    pub fn tool(&self) -> Option<&str> {
        self.target.as_deref().filter(|_| self.is_tool)
    }
}

/// Reads the message of a request. Borrows from it.
pub(super) fn read<'a>(request: &'a Request<'_>, terms: &'a McpTerms) -> Result<McpFacts<'a>, Refusal> {
    let headers = Headers::of(request)?;
    carriage::is_plain(request)?;
    let kind = match request.method {
        "POST" => return post(request, &headers, terms),
        "GET" => McpMessage::Stream,
        "DELETE" => McpMessage::End,
        _ => return malformed("the MCP transport has no such method"),
    };
    carriage::has_no_body(request)?;
    let version = headers.known_version()?;
    if !version.has_sessions() {
        return malformed("this version of MCP has neither streams of its own nor sessions");
    }
    headers.names_nothing()?;
    Ok(McpFacts::new(terms.server(), kind, Some(version.name())))
}

/// The question whether a tool is to be shown to whoever sends this request.
pub(super) fn listing<'a>(request: &Request<'_>, terms: &'a McpTerms, tool: &'a str) -> Result<McpFacts<'a>, Refusal> {
    let version = Headers::of(request)?.version()?;
    Ok(McpFacts {
        method: Some(message::CALL.into()),
        tool: Some(tool.into()),
        ..McpFacts::new(terms.server(), McpMessage::Listing, version.map(Version::name))
    })
}

/// A message, in a line for people.
pub(super) fn describe(facts: &McpFacts<'_>) -> String {
    let (message, method) = (facts.message.name(), facts.method.as_deref().unwrap_or("no method"));
    match facts.tool.as_deref().or(facts.prompt.as_deref()).or(facts.resource.as_deref()) {
        Some(target) => format!("{message}, {method} of `{}`", target.escape_debug()),
        None => format!("{message}, {method}"),
    }
}

fn post<'a>(request: &'a Request<'_>, headers: &Headers<'a>, terms: &'a McpTerms) -> Result<McpFacts<'a>, Refusal> {
    headers.is_plain_json()?;
    let body = match request.body {
        Some(body) if !body.is_empty() => body,
        _ if headers.says_empty() => return malformed("there is no message in the request"),
        _ => return Err((Reason::InputBodyTruncated, "the proxy did not send the message to the check".into())),
    };
    let message = Message::parse(body, terms).map_err(|wrong| (Reason::InputMalformed, wrong))?;
    let kind = message.kind().map_err(|wrong| (Reason::InputMalformed, wrong.into()))?;
    let is_first = message.method.as_deref() == Some(message::INITIALIZE);
    let version = if is_first { headers.version()? } else { Some(headers.known_version()?) };
    if kind == Kind::Response && version.is_some_and(|version| !version.has_sessions()) {
        return malformed("this version of MCP has no responses of clients");
    }
    headers.agree_with(&message, kind, version)?;
    message.facts(kind, version, terms).map_err(|wrong| (Reason::InputMalformed, wrong.into()))
}

fn malformed<T>(detail: &'static str) -> Result<T, Refusal> {
    Err((Reason::InputMalformed, detail.into()))
}
