//! What an application says beside a question that it asks by itself: its word, which policies may read as `context.asked`.
//!
//! Pure. Nothing of it was verified here, and none of it can pass for what was: it has a place of its own in the context, so
//! that no grant, time, token or peer can be made up by it. Properties are tags, whose names no schema has to know; a text
//! is itself, every other value its JSON text: nothing that was said is left out, for a policy may forbid by what is there.

use std::collections::{BTreeMap, HashMap, HashSet};

use cedar_policy::{Entity, EntityUid, RestrictedExpression};
use serde_json::{Map, Value};

use super::eval::uid;

/// What the application says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AskedFacts {
    /// The type and the id of whom it asks about, in its words.
    pub subject: [String; 2],
    /// The type and the id of the resource, in its words.
    pub resource: [String; 2],
    /// More about the subject.
    pub subject_properties: Properties,
    /// More about the action.
    pub action_properties: Properties,
    /// More about the resource.
    pub resource_properties: Properties,
    /// More about the circumstances.
    pub context: Properties,
    /// How much it tells of a request. A policy that needs what is not told fails.
    pub told: Told,
}

/// What is told of the request that a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Told {
    /// Method, path and host.
    #[default]
    All,
    /// Method and path.
    NoHost,
    /// Nothing: a route is named instead.
    ByName,
}

/// Names and texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

/// The type of the entities that carry properties. INVARIANT: no policy names one; `context.asked` alone leads to them.
pub(super) const PROPERTIES: &str = "Properties";

/// The declarations of [`AskedFacts`] in the schema.
pub(super) const SCHEMA: &str = r#"
entity Properties tags String;

type Asked = {
  subject_type: String,
  subject_id: String,
  resource_type: String,
  resource_id: String,
  // what was said about each; a text is itself, any other value its JSON text
  subject: Properties,
  action: Properties,
  resource: Properties,
  context: Properties,
};
"#;

// === impl Properties ===

impl Properties {
    /// Those of a JSON object.
    pub fn of(object: Map<String, Value>) -> Self {
        let text = |value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        Self(object.into_iter().map(|(name, value)| (name, text(value))).collect())
    }

    /// The text of one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Takes one out: it is not for policies.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    fn entity(&self, uid: EntityUid) -> Option<Entity> {
        let tags = self.0.iter().map(|(name, text)| (name.clone(), RestrictedExpression::new_string(text.clone())));
        Entity::new_with_tags(uid, HashMap::<String, RestrictedExpression>::new(), HashSet::new(), tags).ok()
    }
}

// === impl Told ===

impl Told {
    /// Whether method and path are there to be read.
    pub(super) const fn request(self) -> bool {
        !matches!(self, Self::ByName)
    }

    /// Whether the host is.
    pub(super) const fn host(self) -> bool {
        matches!(self, Self::All)
    }

    /// One of each, for what is remembered.
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "by request",
            Self::NoHost => "by request without a host",
            Self::ByName => "by name",
        }
    }
}

// === impl AskedFacts ===

impl AskedFacts {
    fn parts(&self) -> [(&'static str, &Properties); 4] {
        [
            ("subject", &self.subject_properties),
            ("action", &self.action_properties),
            ("resource", &self.resource_properties),
            ("context", &self.context),
        ]
    }

    /// The entities that carry the properties.
    pub(super) fn entities(&self) -> Option<Vec<Entity>> {
        self.parts().into_iter().map(|(name, properties)| properties.entity(uid(PROPERTIES, name)?)).collect()
    }

    /// As `context.asked`.
    pub(super) fn expression(&self) -> Option<RestrictedExpression> {
        let [[subject_type, subject_id], [resource_type, resource_id]] = [&self.subject, &self.resource];
        let texts = [
            ("subject_type", subject_type),
            ("subject_id", subject_id),
            ("resource_type", resource_type),
            ("resource_id", resource_id),
        ];
        let text =
            |(name, text): (&str, &String)| Some((name.to_owned(), RestrictedExpression::new_string(text.clone())));
        let part = |(name, _): (&'static str, &Properties)| {
            Some((name.to_owned(), RestrictedExpression::new_entity_uid(uid(PROPERTIES, name)?)))
        };
        let members = texts.into_iter().map(text).chain(self.parts().into_iter().map(part));
        RestrictedExpression::new_record(members.collect::<Option<Vec<_>>>()?).ok()
    }

    /// SHA-256 over all of it, typed and length-prefixed: it may be long, and is part of the key of an answer.
    pub fn digest(&self) -> [u8; 32] {
        let mut ctx = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        let mut put = |text: &str| {
            ctx.update(&(text.len() as u64).to_be_bytes());
            ctx.update(text.as_bytes());
        };
        self.subject.iter().chain(&self.resource).for_each(|text| put(text));
        for (name, Properties(all)) in self.parts() {
            put(name);
            put(&all.len().to_string());
            for (name, text) in all {
                put(name);
                put(text);
            }
        }
        put(self.told.name());
        let mut digest = [0; 32];
        digest.copy_from_slice(ctx.finish().as_ref());
        digest
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn properties(value: &Value) -> Properties {
        Properties::of(value.as_object().unwrap().clone())
    }

    #[test]
    fn every_value_is_there_as_text() {
        let all = properties(&json!({"a": "x", "b": true, "c": 7, "d": ["x", 1], "e": {"f": null}, "g": null}));
        for (name, text) in
            [("a", "x"), ("b", "true"), ("c", "7"), ("d", r#"["x",1]"#), ("e", r#"{"f":null}"#), ("g", "null")]
        {
            assert_eq!(all.get(name), Some(text), "{name}");
        }
    }

    #[test]
    fn whatever_differs_has_another_digest() {
        let one = AskedFacts { resource: ["todo".to_owned(), "1".to_owned()], ..AskedFacts::default() };
        let with = |change: fn(&mut AskedFacts)| {
            let mut other = one.clone();
            change(&mut other);
            other.digest()
        };
        let x = || properties(&json!({"x": "1"}));
        let all = [
            one.digest(),
            with(|a| a.subject = a.resource.clone()),
            with(|a| a.resource = ["tod".to_owned(), "o1".to_owned()]),
            with(|a| a.told = Told::ByName),
            with(|a| a.told = Told::NoHost),
            with(|a| a.subject_properties = properties(&json!({"x": "1"}))),
            with(|a| a.action_properties = properties(&json!({"x": "1"}))),
            with(|a| a.resource_properties = properties(&json!({"x": "1"}))),
            with(|a| a.context = properties(&json!({"x": "1"}))),
            with(|a| a.context = properties(&json!({"x": "1", "y": "2"}))),
            with(|a| a.context = properties(&json!({"x": "1y2"}))),
        ];
        let different: HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(x(), x());
        assert_eq!(one.digest(), one.clone().digest());
    }
}
