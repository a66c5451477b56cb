//! A JSON-RPC message of a client, read strictly: what it is, and what it names.
//!
//! Pure. One pass that keeps only what rules are about. INVARIANT: no object in it has a member twice, at any depth; beside
//! a member that is looked at there is none that differs in case alone; depth and width are bounded; a batch, a second
//! message and anything that is not UTF-8 are refused. So every parser that accepts the body finds the same method and
//! name in it. Errors tell no text of the client.

use std::borrow::Cow;

use super::headers::Version;
use super::reader;
use super::terms::McpTerms;
use super::{MAX_MCP_BODY, MAX_MCP_NAME, uri};
use crate::policy::{McpFacts, McpMessage, McpValue};

/// The longest method, in bytes.
const MAX_METHOD: usize = 128;
/// Asks for a version, and so comes without one.
pub(super) const INITIALIZE: &str = "initialize";
/// Calls a tool.
pub(super) const CALL: &str = "tools/call";
/// Lists the tools.
pub(super) const LIST: &str = "tools/list";
const PROMPT: &str = "prompts/get";
const READ: &str = "resources/read";
const COMPLETE: &str = "completion/complete";
/// Methods whose meaning depends on their name alone.
const METHODS: [&str; 7] = [INITIALIZE, CALL, PROMPT, READ, "resources/subscribe", "resources/unsubscribe", COMPLETE];

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Notification,
    Response,
}

/// A message, as far as it is looked at.
#[derive(Debug, Default)]
pub(super) struct Message<'a> {
    pub(super) is_json_rpc: bool,
    pub(super) id: Option<Read<'a>>,
    pub(super) method: Option<Cow<'a, str>>,
    pub(super) has_params: bool,
    pub(super) has_result: bool,
    pub(super) has_error: bool,
    pub(super) name: Option<Read<'a>>,
    pub(super) uri: Option<Read<'a>>,
    pub(super) task: Option<Read<'a>>,
    pub(super) reference: Reference<'a>,
    pub(super) version: Option<Read<'a>>,
    pub(super) arguments: Arguments<'a>,
}

/// `params.ref` of `completion/complete`.
#[derive(Debug, Default)]
pub(super) struct Reference<'a> {
    pub(super) kind: Option<Read<'a>>,
    pub(super) name: Option<Read<'a>>,
    pub(super) uri: Option<Read<'a>>,
}

/// The arguments that were found.
#[derive(Debug, Default)]
pub(super) struct Arguments<'a> {
    pub(super) found: Vec<(&'a str, McpValue<'a>)>,
    /// That matters only where a tool is called.
    pub(super) wrong: Option<&'static str>,
}

/// A value, as far as it is told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Read<'a> {
    Null,
    Boolean(bool),
    Integer(i64),
    /// An integer that not every parser keeps.
    Wide,
    Text(Cow<'a, str>),
    /// Another number, an array, an object.
    Other,
}

// === impl Message ===

impl<'a> Message<'a> {
    /// Reads a body; an error says what is wrong with it.
    pub(super) fn parse(body: &'a [u8], terms: &'a McpTerms) -> Result<Self, Cow<'static, str>> {
        if body.len() > MAX_MCP_BODY {
            return Err("the message is too large".into());
        }
        let text = std::str::from_utf8(body).map_err(|_not_utf8| "the message is not UTF-8")?;
        let mut message = Self::default();
        let mut json = serde_json::Deserializer::from_str(text);
        let read = reader::read(&mut json, &mut message, terms.arguments());
        read.and_then(|()| json.end()).map_err(|error| wrong(&error))?;
        Ok(message)
    }

    /// What kind of message it is.
    pub(super) fn kind(&self) -> Result<Kind, &'static str> {
        if !self.is_json_rpc {
            return Err("the message is not JSON-RPC 2.0");
        }
        let answers = match (self.has_result, self.has_error) {
            (false, false) => false,
            (true, true) => return Err("the message has a result and an error"),
            _ => true,
        };
        match (&self.method, &self.id) {
            (Some(_), _) if answers => Err("the message is a request and a response"),
            (_, Some(Read::Null | Read::Boolean(_) | Read::Other)) => {
                Err("the `id` of the message is neither a string nor an integer")
            }
            (Some(_), Some(_)) => Ok(Kind::Request),
            (Some(_), None) => Ok(Kind::Notification),
            (None, _) if self.has_params => Err("the message has parameters and no method"),
            (None, Some(_)) if answers => Ok(Kind::Response),
            // A client that cannot read a request does not know its id.
            (None, None) if self.has_error => Ok(Kind::Response),
            _ => Err("the message has no method"),
        }
    }

    /// What it names, for the header that repeats it: by its method, because servers look at no other member.
    pub(super) fn named(&self) -> Option<&str> {
        let method = self.method.as_deref()?;
        match method {
            CALL | PROMPT => text(&self.name),
            _ if method.starts_with("resources/") => text(&self.uri),
            _ if method.starts_with("tasks/") => text(&self.task),
            _ => None,
        }
    }

    /// Whether `Mcp-Name` belongs to it.
    pub(super) fn must_repeat_its_name(&self) -> bool {
        matches!(self.method.as_deref(), Some(CALL | PROMPT | READ))
    }

    /// The version in `_meta`: absent, no text, or a text.
    pub(super) fn version(&self) -> Option<Option<&str>> {
        self.version.as_ref().map(|read| match read {
            Read::Text(text) => Some(&**text),
            _ => None,
        })
    }

    /// What rules are about.
    pub(super) fn facts(
        self,
        kind: Kind,
        version: Option<Version>,
        terms: &'a McpTerms,
    ) -> Result<McpFacts<'a>, &'static str> {
        let message = match kind {
            Kind::Request => McpMessage::Request,
            Kind::Notification => McpMessage::Notification,
            Kind::Response => McpMessage::Response,
        };
        let mut facts = McpFacts::new(terms.server(), message, version.map(Version::name));
        let Some(method) = self.method else { return Ok(facts) };
        if method.is_empty() || method.len() > MAX_METHOD || !method.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("the method is not one of MCP");
        }
        if METHODS.iter().any(|known| **known != *method && known.eq_ignore_ascii_case(&method)) {
            return Err("the method is in another case");
        }
        match &*method {
            CALL => {
                facts.tool = Some(name(self.name, "the call names no tool")?);
                if let Some(wrong) = self.arguments.wrong {
                    return Err(wrong);
                }
                facts.arguments = self.arguments.found;
            }
            PROMPT => facts.prompt = Some(name(self.name, "the request names no prompt")?),
            READ | "resources/subscribe" | "resources/unsubscribe" => facts.resource = Some(plain_uri(self.uri)?),
            COMPLETE => match text(&self.reference.kind) {
                Some("ref/prompt") => facts.prompt = Some(name(self.reference.name, "the request names no prompt")?),
                Some("ref/resource") => facts.resource = Some(plain_uri(self.reference.uri)?),
                _ => return Err("the request does not say what is to be completed"),
            },
            _ => {}
        }
        facts.method = Some(method);
        Ok(facts)
    }
}

/// Says what is wrong, without the client's text: `serde` quotes values that are of another type than expected.
fn wrong(error: &serde_json::Error) -> Cow<'static, str> {
    let text = error.to_string();
    if error.is_data() && text.starts_with("invalid") {
        return "a member of the message is of another type than it has to be".into();
    }
    format!("the message cannot be read: {text}").into()
}

fn text<'r>(read: &'r Option<Read<'_>>) -> Option<&'r str> {
    match read {
        Some(Read::Text(text)) => Some(text),
        _ => None,
    }
}

fn name<'a>(read: Option<Read<'a>>, missing: &'static str) -> Result<Cow<'a, str>, &'static str> {
    match read {
        Some(Read::Text(name)) if name.is_empty() => Err(missing),
        Some(Read::Text(name)) if name.len() > MAX_MCP_NAME || name.chars().any(char::is_control) => {
            Err("the name is too long, or has control characters")
        }
        Some(Read::Text(name)) => Ok(name),
        _ => Err(missing),
    }
}

fn plain_uri<'a>(read: Option<Read<'a>>) -> Result<Cow<'a, str>, &'static str> {
    match read {
        Some(Read::Text(uri)) if uri::is_plain(&uri) => Ok(uri),
        Some(Read::Text(_)) => Err("the URI of the resource can be read in more than one way"),
        _ => Err("the request names no resource"),
    }
}
