//! Canonical request paths.
//!
//! STUB to be filled.

/// A path that has exactly one reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalPath<'a>(std::borrow::Cow<'a, str>);

/// Why a path has more than one reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmbiguousPath {
    /// It does not start with a slash.
    #[error("the path does not start with `/`")]
    NotAbsolute,
}

impl<'a> CanonicalPath<'a> {
    /// Canonicalises a request target (path, and query after `?`, which is cut off).
    pub fn parse(target: &'a str) -> Result<Self, AmbiguousPath> {
        let _ = target;
        Err(AmbiguousPath::NotAbsolute)
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
