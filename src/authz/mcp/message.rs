//! A JSON-RPC message of a client, read strictly: what it is, and what it names.
//!
//! Pure. One pass that keeps only what rules are about. INVARIANT: no object in it has a member twice, at any depth; beside
//! a member that is looked at there is none that differs in case alone; depth and width are bounded; a batch, a second
//! message and anything that is not UTF-8 are refused. So every parser that accepts the body finds the same method and
//! name in it. Errors tell no text of the client.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::headers::Version;
use super::terms::{Branch, McpTerms, Member, Node, is_variant};
use super::{MAX_MCP_BODY, MAX_MCP_NAME, uri};
use crate::credential::{Members, Skip};
use crate::object::ArgumentType;
use crate::policy::{McpFacts, McpMessage, McpValue};

/// How deep a member of the message may nest, and how many members an object may have.
const LIMITS: Skip = Skip::within(32, 1024);
/// The longest method, in bytes.
const MAX_METHOD: usize = 128;
/// The largest integer that every parser keeps: the safe integers of JavaScript.
const MAX_INTEGER: i64 = (1 << 53) - 1;

/// Asks for a version, and so comes without one.
pub(super) const INITIALIZE: &str = "initialize";
/// Calls a tool.
pub(super) const CALL: &str = "tools/call";
const PROMPT: &str = "prompts/get";
const READ: &str = "resources/read";
const COMPLETE: &str = "completion/complete";
/// Methods whose meaning depends on their name alone.
const METHODS: [&str; 7] =
    [INITIALIZE, CALL, PROMPT, READ, "resources/subscribe", "resources/unsubscribe", COMPLETE];

const ENVELOPE: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];
const PARAMS: [&str; 6] = ["name", "uri", "arguments", "ref", "_meta", "taskId"];
const REFERENCE: [&str; 3] = ["type", "name", "uri"];
const META: [&str; 1] = ["io.modelcontextprotocol/protocolVersion"];

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
    is_json_rpc: bool,
    id: Option<Read<'a>>,
    pub(super) method: Option<Cow<'a, str>>,
    has_params: bool,
    has_result: bool,
    has_error: bool,
    name: Option<Read<'a>>,
    uri: Option<Read<'a>>,
    task: Option<Read<'a>>,
    reference: Reference<'a>,
    version: Option<Read<'a>>,
    arguments: Arguments<'a>,
}

/// `params.ref` of `completion/complete`.
#[derive(Debug, Default)]
struct Reference<'a> {
    kind: Option<Read<'a>>,
    name: Option<Read<'a>>,
    uri: Option<Read<'a>>,
}

/// The arguments that were found.
#[derive(Debug, Default)]
struct Arguments<'a> {
    found: Vec<(&'a str, McpValue<'a>)>,
    /// That matters only where a tool is called.
    wrong: Option<&'static str>,
}

/// A value, as far as it is told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Read<'a> {
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
        let read = Envelope { message: &mut message, branch: terms.arguments() }.deserialize(&mut json);
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

    /// What it names, for the header that repeats it.
    pub(super) fn named(&self) -> Option<&str> {
        [&self.name, &self.uri, &self.task].into_iter().find_map(|read| text(read))
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

/// Which of the members that are looked at `member` is; an error when it differs from one in case.
fn known<E: Error>(names: &[&'static str], member: &str) -> Result<Option<&'static str>, E> {
    let exact = names.iter().find(|name| **name == member);
    if exact.is_none() && names.iter().any(|name| is_variant(member, name)) {
        return Err(E::custom("a member in another case"));
    }
    Ok(exact.copied())
}

/// Implements the methods of a visitor for everything but an object, all of which refuse.
macro_rules! object_only {
    ($what:literal) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
            Err(A::Error::custom(concat!($what, " is an array")))
        }
    };
}

/// Reads the message itself.
struct Envelope<'m, 'a> {
    message: &'m mut Message<'a>,
    branch: &'a Branch,
}

impl<'de> DeserializeSeed<'de> for Envelope<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Envelope<'_, 'de> {
    type Value = ();

    object_only!("the body: a batch");

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { message, branch } = self;
        let mut members = Members::at_most(LIMITS.members());
        while let Some(member) = members.next(&mut map)? {
            match known(&ENVELOPE, member)? {
                Some("jsonrpc") => message.is_json_rpc = map.next_value_seed(Any(LIMITS))? == Read::Text("2.0".into()),
                Some("id") => message.id = Some(map.next_value_seed(Any(LIMITS))?),
                Some("method") => match map.next_value_seed(Any(LIMITS))? {
                    Read::Text(method) => message.method = Some(method),
                    _ => return Err(A::Error::custom("the method is not a string")),
                },
                Some("params") => {
                    message.has_params = true;
                    map.next_value_seed(Params { message: &mut *message, branch })?;
                }
                Some("result") => {
                    message.has_result = true;
                    map.next_value_seed(LIMITS)?;
                }
                Some("error") => {
                    message.has_error = true;
                    map.next_value_seed(LIMITS)?;
                }
                _ => return Err(A::Error::custom("a member that JSON-RPC does not have")),
            }
        }
        Ok(())
    }
}

/// Reads `params`.
struct Params<'m, 'a> {
    message: &'m mut Message<'a>,
    branch: &'a Branch,
}

impl<'de> DeserializeSeed<'de> for Params<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Params<'_, 'de> {
    type Value = ();

    object_only!("`params`");

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { message, branch } = self;
        let mut members = Members::at_most(LIMITS.members());
        while let Some(member) = members.next(&mut map)? {
            match known(&PARAMS, member)? {
                Some("name") => message.name = Some(map.next_value_seed(Any(LIMITS))?),
                Some("uri") => message.uri = Some(map.next_value_seed(Any(LIMITS))?),
                Some("taskId") => message.task = Some(map.next_value_seed(Any(LIMITS))?),
                Some("arguments") => {
                    map.next_value_seed(Selected { out: &mut message.arguments, branch, limits: LIMITS })?;
                }
                Some("ref") => {
                    let Reference { kind, name, uri } = &mut message.reference;
                    map.next_value_seed(Picked { names: &REFERENCE, out: &mut [kind, name, uri] })?;
                }
                Some("_meta") => {
                    map.next_value_seed(Picked { names: &META, out: &mut [&mut message.version] })?;
                }
                _ => map.next_value_seed(LIMITS)?,
            }
        }
        Ok(())
    }
}

/// Picks members of an object.
struct Picked<'m, 'o, 'a> {
    names: &'static [&'static str],
    out: &'m mut [&'o mut Option<Read<'a>>],
}

impl<'de> DeserializeSeed<'de> for Picked<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Picked<'_, '_, 'de> {
    type Value = ();

    object_only!("`ref` or `_meta`");

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut members = Members::at_most(LIMITS.members());
        while let Some(member) = members.next(&mut map)? {
            let name = known(self.names, member)?;
            match self.names.iter().zip(self.out.iter_mut()).find(|(known, _)| Some(**known) == name) {
                Some((_, out)) => **out = Some(map.next_value_seed(Any(LIMITS))?),
                None => map.next_value_seed(LIMITS)?,
            }
        }
        Ok(())
    }
}

/// Finds the arguments that the route selects.
struct Selected<'m, 'a> {
    out: &'m mut Arguments<'a>,
    branch: &'a Branch,
    limits: Skip,
}

impl<'de> DeserializeSeed<'de> for Selected<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl Selected<'_, '_> {
    /// Where an object has to be, there is something else. It may matter: it depends on the method.
    fn no_object(self) {
        self.out.wrong = Some("what is to hold an argument of the tool is not an object");
    }
}

impl<'de> Visitor<'de> for Selected<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        // As if it were not there.
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.no_object();
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.no_object();
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.no_object();
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.no_object();
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.no_object();
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        let limits = self.limits;
        self.no_object();
        limits.visit_seq(seq)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { out, branch, limits } = self;
        let limits = limits.deeper()?;
        let mut members = Members::at_most(limits.members());
        while let Some(member) = members.next(&mut map)? {
            match branch.member(member) {
                Member::Known(Node::Branch(branch)) => {
                    map.next_value_seed(Selected { out: &mut *out, branch, limits })?;
                }
                Member::Known(Node::Leaf(name, kind)) => {
                    let value = map.next_value_seed(Any(limits))?;
                    out.take(name, *kind, value);
                }
                Member::Variant => {
                    out.wrong = Some("an argument of the tool is in another case");
                    map.next_value_seed(limits)?;
                }
                Member::Other => map.next_value_seed(limits)?,
            }
        }
        Ok(())
    }
}

// === impl Arguments ===

impl<'a> Arguments<'a> {
    fn take(&mut self, name: &'a str, kind: ArgumentType, value: Read<'a>) {
        let value = match (kind, value) {
            (_, Read::Null) => return,
            (ArgumentType::String, Read::Text(text)) => McpValue::Text(text),
            (ArgumentType::Long, Read::Integer(long)) => McpValue::Long(long),
            (ArgumentType::Boolean, Read::Boolean(boolean)) => McpValue::Boolean(boolean),
            _ => {
                self.wrong = Some("an argument of the tool is of another type than it has to be");
                return;
            }
        };
        self.found.push((name, value));
    }
}

/// Reads any value.
#[derive(Clone, Copy)]
struct Any(Skip);

impl<'de> DeserializeSeed<'de> for Any {
    type Value = Read<'de>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Read<'de>, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Any {
    type Value = Read<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Read<'de>, E> {
        Ok(Read::Null)
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<Read<'de>, E> {
        Ok(Read::Boolean(v))
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<Read<'de>, E> {
        Ok(if (-MAX_INTEGER..=MAX_INTEGER).contains(&v) { Read::Integer(v) } else { Read::Wide })
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Read<'de>, E> {
        i64::try_from(v).map_or(Ok(Read::Wide), |v| self.visit_i64(v))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Read<'de>, E> {
        Ok(Read::Other)
    }

    fn visit_borrowed_str<E: Error>(self, v: &'de str) -> Result<Read<'de>, E> {
        Ok(Read::Text(Cow::Borrowed(v)))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Read<'de>, E> {
        Ok(Read::Text(Cow::Owned(v.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Read<'de>, A::Error> {
        self.0.visit_seq(seq).map(|()| Read::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Read<'de>, A::Error> {
        self.0.visit_map(map).map(|()| Read::Other)
    }
}
