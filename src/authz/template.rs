//! Envoy URI templates.
//!
//! STUB to be filled.

use super::path::CanonicalPath;

/// A compiled URI template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
}

/// What is wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It does not start with a slash.
    #[error("a template starts with `/`")]
    NotAbsolute,
}

/// How the paths of two templates relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// No path matches both.
    Disjoint,
    /// The same paths match both.
    Same,
    /// Every path of the first matches the second, which matches more.
    Narrower,
    /// Every path of the second matches the first, which matches more.
    Wider,
    /// Some paths match both, and each matches some that the other does not.
    Overlap,
}

impl Template {
    /// Parses a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Ok(Self { text: text.into() })
    }

    /// Whether `path` matches.
    pub fn matches(&self, path: &CanonicalPath<'_>) -> bool {
        let _ = path;
        false
    }

    /// How the paths of `self` relate to those of `other`.
    pub fn relation(&self, other: &Self) -> Relation {
        let _ = other;
        Relation::Disjoint
    }

    /// The one path it matches, when it has no variables.
    pub fn literal(&self) -> Option<&str> {
        None
    }

    /// The text it was parsed from.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}
