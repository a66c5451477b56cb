//! What policies may know of a message of the Model Context Protocol: `context.mcp`.
//!
//! Pure. INVARIANT: an attribute is given to Cedar exactly when a policy reads it, and what is given is what a decision is
//! remembered by; [`McpFacts::attributes`] is the one list of both. An absent attribute is absent, never empty.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use cedar_policy::RestrictedExpression;

use crate::object::ArgumentType;

/// A message of a client, or a question about one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct McpFacts<'a> {
    /// The server, as the route names it.
    pub server: &'a str,
    /// What kind of message it is.
    pub message: McpMessage,
    /// The version of the protocol, if the client says one.
    pub version: Option<&'static str>,
    /// The JSON-RPC method of a request or a notification.
    pub method: Option<Cow<'a, str>>,
    /// The tool that is called.
    pub tool: Option<Cow<'a, str>>,
    /// The prompt that is asked for.
    pub prompt: Option<Cow<'a, str>>,
    /// The URI of the resource that is read or subscribed to.
    pub resource: Option<Cow<'a, str>>,
    /// The arguments of the tool that the route selects and the call has.
    pub arguments: Vec<(&'a str, McpValue<'a>)>,
}

/// What comes from a client of the streamable HTTP transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum McpMessage {
    /// A JSON-RPC request.
    Request,
    /// A JSON-RPC notification.
    Notification,
    /// The answer to a request of the server.
    Response,
    /// `GET`: opens a stream for messages of the server.
    Stream,
    /// `DELETE`: ends the session.
    End,
    /// No message: whether a tool is to be shown in the answer to `tools/list`. Asked like a call without arguments.
    Listing,
}

/// An argument of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum McpValue<'a> {
    /// A string.
    Text(Cow<'a, str>),
    /// An integer.
    Long(i64),
    /// A boolean.
    Boolean(bool),
}

/// The attributes of `context.mcp` that policies read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct McpReads(u16);

/// An attribute on its way to Cedar or into a key.
enum Attribute<'f> {
    Text(&'f str),
    Arguments(&'f [(&'f str, McpValue<'f>)]),
}

/// Their names in Cedar, by the number of their bit.
const NAMES: [&str; 8] = ["server", "message", "version", "method", "tool", "prompt", "resource", "arguments"];

// === impl McpReads ===

impl McpReads {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Everything.
    pub const ALL: Self = Self(u16::MAX);
    /// Whether there is a message. That depends on the route alone.
    pub const PRESENCE: Self = Self(1 << 15);

    /// The attribute of this name; everything for a name that is not known.
    pub(super) fn of(name: &str) -> Self {
        let known = NAMES.iter().zip(0..).find(|(known, _)| **known == name);
        known.map_or(Self::ALL, |(_, bit)| Self(1 << bit).union(Self::PRESENCE))
    }

    /// What either reads.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether anything is read.
    pub const fn any(self) -> bool {
        self.0 != 0
    }

    const fn reads(self, bit: u16) -> bool {
        self.0 & (1 << bit) != 0
    }
}

// === impl McpMessage ===

impl McpMessage {
    /// As policies know it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Notification => "notification",
            Self::Response => "response",
            Self::Stream => "stream",
            Self::End => "end",
            Self::Listing => "listing",
        }
    }
}

// === impl McpFacts ===

impl<'a> McpFacts<'a> {
    /// A message without anything in it.
    pub const fn new(server: &'a str, message: McpMessage, version: Option<&'static str>) -> Self {
        Self { server, message, version, method: None, tool: None, prompt: None, resource: None, arguments: Vec::new() }
    }

    /// What is read of it, by the number of the attribute.
    fn attributes(&self, reads: McpReads) -> impl Iterator<Item = (u8, &'static str, Attribute<'_>)> {
        let texts = [
            Some(self.server),
            Some(self.message.name()),
            self.version,
            self.method.as_deref(),
            self.tool.as_deref(),
            self.prompt.as_deref(),
            self.resource.as_deref(),
        ];
        let texts = texts.into_iter().map(|text| text.map(Attribute::Text));
        let all = texts.chain([Some(Attribute::Arguments(&self.arguments))]).zip(NAMES).zip(0_u8..);
        all.filter_map(move |((attribute, name), bit)| {
            attribute.filter(|_| reads.reads(u16::from(bit))).map(|attribute| (bit, name, attribute))
        })
    }

    /// The record that Cedar gets; `None` if it cannot be made.
    pub(super) fn expression(&self, reads: McpReads) -> Option<RestrictedExpression> {
        let mut pairs = Vec::with_capacity(NAMES.len());
        for (_, name, attribute) in self.attributes(reads) {
            let value = match attribute {
                Attribute::Text(text) => RestrictedExpression::new_string(text.to_owned()),
                Attribute::Arguments(arguments) => {
                    let arguments = arguments.iter().map(|(name, value)| ((*name).to_owned(), value.expression()));
                    RestrictedExpression::new_record(arguments).ok()?
                }
            };
            pairs.push((name.to_owned(), value));
        }
        RestrictedExpression::new_record(pairs).ok()
    }

    /// Hands over what is read of it, each part under a tag of its kind; the caller writes lengths.
    pub fn encode(&self, reads: McpReads, first_tag: u8, put: &mut impl FnMut(u8, &[u8])) {
        let mut tagged = |offset: u8, bytes: &[u8]| put(first_tag.saturating_add(offset), bytes);
        for (number, _, attribute) in self.attributes(reads) {
            match attribute {
                Attribute::Text(text) => tagged(number, text.as_bytes()),
                Attribute::Arguments(arguments) => {
                    for (name, value) in arguments {
                        tagged(number, name.as_bytes());
                        match value {
                            McpValue::Text(text) => tagged(number + 1, text.as_bytes()),
                            McpValue::Long(long) => tagged(number + 2, &long.to_le_bytes()),
                            McpValue::Boolean(boolean) => tagged(number + 3, &[u8::from(*boolean)]),
                        }
                    }
                }
            }
        }
    }
}

// === impl McpValue ===

impl McpValue<'_> {
    fn expression(&self) -> RestrictedExpression {
        match self {
            Self::Text(text) => RestrictedExpression::new_string(text.clone().into_owned()),
            Self::Long(long) => RestrictedExpression::new_long(*long),
            Self::Boolean(boolean) => RestrictedExpression::new_bool(*boolean),
        }
    }
}

/// The types of `context.mcp` in the schema, with these arguments.
pub(super) fn schema(arguments: &BTreeMap<String, ArgumentType>) -> String {
    let mut text = String::from("type McpArguments = {\n");
    for (name, kind) in arguments {
        let kind = match kind {
            ArgumentType::String => "String",
            ArgumentType::Long => "Long",
            ArgumentType::Boolean => "Bool",
        };
        // Writing to a `String` does not fail.
        let _ = writeln!(text, "  \"{}\"?: {kind},", name.escape_default());
    }
    text.push_str(MCP);
    text
}

const MCP: &str = r#"};

type Mcp = {
  // as the route names it
  server: String,
  // "request", "notification", "response", "stream" (GET), "end" (DELETE), or "listing": is the tool to be shown?
  message: String,
  // "2025-06-18", "2025-11-25" or "2026-07-28"; `initialize` may come without one
  version?: String,
  // the JSON-RPC method, as in "tools/call"
  method?: String,
  // of "tools/call"
  tool?: String,
  // of "prompts/get", and of "completion/complete" for a prompt
  prompt?: String,
  // the URI of "resources/read", "resources/subscribe" and "resources/unsubscribe"
  resource?: String,
  // of "tools/call", as far as routes select them
  arguments: McpArguments,
};
"#;

#[cfg(test)]
mod tests;
