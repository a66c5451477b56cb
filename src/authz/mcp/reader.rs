//! The pass over a message's bytes: which members are kept, and what no member may be.
//!
//! Pure. One `serde` seed for each object that is looked into; all others are walked through and forgotten. INVARIANT: whatever
//! is walked through is held to the same rules: no member twice, bounded depth and width, text that is UTF-8. What is wrong
//! with an argument is noted and not an error yet, because it matters only where a tool is called.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::message::{Arguments, Message, Read, Reference};
use super::terms::{Branch, Member, Node, is_variant};
use crate::credential::{Members, Skip};
use crate::object::ArgumentType;
use crate::policy::McpValue;

/// How deep a member of the message may nest, and how many members an object may have.
const LIMITS: Skip = Skip::within(32, 1024);
/// The largest integer that every parser keeps: the safe integers of JavaScript.
const MAX_INTEGER: i64 = (1 << 53) - 1;

const ENVELOPE: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];
const PARAMS: [&str; 6] = ["name", "uri", "arguments", "ref", "_meta", "taskId"];
const REFERENCE: [&str; 3] = ["type", "name", "uri"];
const META: [&str; 1] = ["io.modelcontextprotocol/protocolVersion"];

/// Reads a message into `message`, and of the arguments of a tool those on `branch`.
pub(super) fn read<'de, D: Deserializer<'de>>(
    json: D,
    message: &mut Message<'de>,
    branch: &'de Branch,
) -> Result<(), D::Error> {
    Envelope { message, branch }.deserialize(json)
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
