//! Strict reading of JSON objects from strangers: no duplicate member at any depth, bounded depth and width.
//!
//! Pure. Two parsers that pick different duplicates read two different tokens (RFC 8725, section 2.6), so duplicates
//! are refused where RFC 7515 would let the last one win; names are compared after unescaping. Borrows from the
//! input where it can. Fails closed: whatever is not understood is an error. Its own errors tell no text of the input.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use smallvec::SmallVec;

/// How deep objects and arrays may nest below a member of the outermost object.
pub(super) const MAX_DEPTH: u8 = 16;
/// How many members an object may have.
pub(super) const MAX_MEMBERS: usize = 128;
/// Up to so many members are compared one by one.
const FEW: usize = 16;

/// A string, borrowed unless it has escapes.
#[derive(Debug)]
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

/// The names of an object's members so far.
#[derive(Debug)]
pub(crate) struct Members<'a> {
    seen: SmallVec<[Cow<'a, str>; FEW]>,
    /// Those beyond [`FEW`], so that a wide object costs no more than its length.
    more: HashSet<Cow<'a, str>>,
    last: Option<Cow<'a, str>>,
    max: usize,
}

/// Reads any value and forgets it, with the same strictness as what is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Skip {
    depth: u8,
    members: usize,
}

/// Reads any value and keeps it, with the strictness of [`Skip`].
#[derive(Debug, Clone, Copy)]
pub(super) struct StrictValue(Skip);

// === impl Text ===

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;

        impl<'de> Visitor<'de> for V {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, v: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(v)))
            }

            fn visit_str<E: Error>(self, v: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(v.to_owned())))
            }
        }

        d.deserialize_str(V)
    }
}

// === impl Members ===

impl Default for Members<'_> {
    fn default() -> Self {
        Self::at_most(MAX_MEMBERS)
    }
}

impl<'de> Members<'de> {
    /// Of an object that may have so many.
    pub(crate) fn at_most(max: usize) -> Self {
        Self { seen: SmallVec::new(), more: HashSet::new(), last: None, max }
    }

    /// The name of the next member, if there is one and it is new.
    pub(crate) fn next<A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<Option<&str>, A::Error> {
        let Some(Text(name)) = map.next_key()? else { return Ok(None) };
        if let Some(last) = self.last.take() {
            self.more.insert(last);
        }
        if self.seen.contains(&name) || self.more.contains(&name) {
            return Err(A::Error::custom("duplicate member"));
        }
        if self.seen.len() + self.more.len() >= self.max {
            return Err(A::Error::custom("too many members"));
        }
        if self.seen.len() < FEW {
            self.seen.push(name);
            return Ok(self.seen.last().map(|name| &**name));
        }
        Ok(Some(&**self.last.insert(name)))
    }
}

// === impl Skip ===

impl Skip {
    /// Skips the value of a member of the outermost object.
    pub(super) const fn member() -> Self {
        Self::within(MAX_DEPTH, MAX_MEMBERS)
    }

    /// Skips a value that nests no deeper, and whose objects are no wider.
    pub(crate) const fn within(depth: u8, members: usize) -> Self {
        Self { depth, members }
    }

    /// How many members an object may have.
    pub(crate) const fn members(self) -> usize {
        self.members
    }

    /// What is left for the values in an object or array; an error when nothing is.
    pub(crate) fn deeper<E: Error>(self) -> Result<Self, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Self { depth, ..self }),
            None => Err(E::custom("nested too deep")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Skip {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Skip {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while seq.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let mut members = Members::at_most(self.members);
        while members.next(&mut map)?.is_some() {
            map.next_value_seed(inner)?;
        }
        Ok(())
    }
}

// === impl StrictValue ===

impl StrictValue {
    /// Reads the value of a member of the outermost object.
    pub(super) const fn member() -> Self {
        Self(Skip::member())
    }

    /// Reads a whole document.
    pub(super) fn parse(json: &[u8]) -> Result<Value, serde_json::Error> {
        let mut de = serde_json::Deserializer::from_slice(json);
        let value = Self(Skip::within(MAX_DEPTH + 1, MAX_MEMBERS)).deserialize(&mut de)?;
        de.end().map(|()| value)
    }
}

impl<'de> DeserializeSeed<'de> for StrictValue {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = Self(self.0.deeper()?);
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = Self(self.0.deeper()?);
        let mut members = Members::at_most(self.0.members);
        let mut object = Map::new();
        while let Some(name) = members.next(&mut map)?.map(str::to_owned) {
            object.insert(name, map.next_value_seed(inner)?);
        }
        Ok(Value::Object(object))
    }
}
