//! Strict reading of JSON objects from strangers: no duplicate member at any depth, bounded depth and width.
//!
//! Pure. Two parsers that pick different duplicates read two different tokens (RFC 8725, section 2.6), so duplicates
//! are refused where RFC 7515 would let the last one win; names are compared after unescaping. Borrows from the
//! input where it can. Fails closed: whatever is not understood is an error.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use smallvec::SmallVec;

/// How deep objects and arrays may nest below a member of the outermost object.
pub(super) const MAX_DEPTH: u8 = 16;
/// How many members an object may have.
pub(super) const MAX_MEMBERS: usize = 128;

/// A string, borrowed unless it has escapes.
#[derive(Debug)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

/// The names of an object's members so far.
#[derive(Debug, Default)]
pub(super) struct Members<'a> {
    seen: SmallVec<[Cow<'a, str>; 16]>,
}

/// Reads any value and forgets it, with the same strictness as what is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Skip {
    depth: u8,
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

impl<'de> Members<'de> {
    /// The name of the next member, if there is one and it is new.
    pub(super) fn next<A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<Option<&str>, A::Error> {
        let Some(Text(name)) = map.next_key()? else { return Ok(None) };
        if self.seen.contains(&name) {
            return Err(A::Error::custom("duplicate member"));
        }
        if self.seen.len() == MAX_MEMBERS {
            return Err(A::Error::custom("too many members"));
        }
        self.seen.push(name);
        Ok(self.seen.last().map(|name| &**name))
    }
}

// === impl Skip ===

impl Skip {
    /// Skips the value of a member of the outermost object.
    pub(super) const fn member() -> Self {
        Self { depth: MAX_DEPTH }
    }

    fn deeper<E: Error>(self) -> Result<Self, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Self { depth }),
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
        let mut members = Members::default();
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
        let value = Self(Skip { depth: MAX_DEPTH + 1 }).deserialize(&mut de)?;
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
        let mut members = Members::default();
        let mut object = Map::new();
        while let Some(name) = members.next(&mut map)?.map(str::to_owned) {
            object.insert(name, map.next_value_seed(inner)?);
        }
        Ok(Value::Object(object))
    }
}
