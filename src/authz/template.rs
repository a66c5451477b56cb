//! Envoy URI templates (`envoy.extensions.path.match.uri_template.v3`), in Envoy's and in Istio's spelling.
//!
//! Pure. `*`, `{*}`, `{name}`, `{name=*}` match one non-empty segment; `**`, `{**}`, `{name=**}` match any text, also
//! none, after the slash before it: `/files/{**}` matches `/files/` and `/files/a/b`, not `/files`. `**` is the last
//! operator, literals may follow. A literal may be stuck only to the last operator, as in `/media/{**}.mpd`.
//! Beyond Envoy, operators also match `*` and `=`. INVARIANT: matching is on a [`CanonicalPath`] and literals are
//! canonical themselves, else the template is refused: a route that can never match would leave its requests to a
//! wider one. [`Template::relation`] is exact.

use super::path::{AmbiguousPath, CanonicalPath};

mod parse;
mod pattern;
#[cfg(test)]
mod tests;

pub use self::pattern::matches as matches_pattern;

/// The longest template, in bytes.
pub const MAX_TEMPLATE: usize = 1024;
/// The most segments a template can have.
pub const MAX_SEGMENTS: usize = 64;

/// A compiled URI template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
    /// See [`Template::pattern`].
    pattern: Box<str>,
    /// What the first segments must be.
    head: Box<[Segment]>,
    /// What follows them; without it the path ends there.
    rest: Option<Rest>,
    /// Whether there are no operators, so that only one path matches: the pattern.
    is_literal: bool,
}

/// What one segment must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    /// This text. Empty only as the last segment of a path that ends with a slash.
    Literal(Box<str>),
    /// One or more characters, then this text, which may be empty.
    Before(Box<str>),
    /// Any text that ends with this one, which may be empty. Only the last segment of a rest.
    Ends(Box<str>),
}

/// `**` and what comes after it: any non-empty segments, then the tail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rest {
    /// At least one segment.
    tail: Box<[Segment]>,
    /// What the path must end with. In a canonical path this says the same as `tail`, since a rest that is only
    /// `/x` would need an empty segment before it.
    suffix: Box<str>,
}

/// What is wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It does not start with a slash.
    #[error("a template starts with `/`")]
    NotAbsolute,
    /// More than [`MAX_TEMPLATE`] bytes or [`MAX_SEGMENTS`] segments.
    #[error("a template has at most 1024 bytes and 64 segments")]
    TooLong,
    /// `//`.
    #[error("a template has no empty segment (`//`)")]
    EmptySegment,
    /// An operator that is only part of a segment, or a brace where none belongs.
    #[error("`{0}`: an operator is a whole segment; only the last one can have a literal after it")]
    PartialSegment(String),
    /// A brace that is not closed.
    #[error("`{0}`: the brace is not closed")]
    Unclosed(String),
    /// Envoy's rule for names.
    #[error("`{0}` is not a variable name: 1 to 16 letters, digits and `_`, first a letter")]
    VariableName(String),
    /// A name that occurs twice.
    #[error("the variable `{0}` occurs twice")]
    RepeatedVariable(String),
    /// More than Envoy allows.
    #[error("a template has at most 5 named variables")]
    TooManyVariables,
    /// An operator after `**`.
    #[error("`**` is the last operator of a template")]
    OperatorAfterRest,
    /// A literal that no canonical path has.
    #[error("`{literal}` never occurs in a canonical path; write `{canonical}`")]
    NotCanonical {
        /// As written.
        literal: String,
        /// As it should be.
        canonical: String,
    },
    /// A literal that is refused in every request.
    #[error("`{literal}` is refused in every request: {why}")]
    Refused {
        /// As written.
        literal: String,
        /// Why it is.
        why: AmbiguousPath,
    },
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

/// A number for each template such that of two templates of which one is narrower, the narrower has the larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Specificity {
    exact_length: bool,
    shortest: usize,
    weight: usize,
}

// === impl Template ===

impl Template {
    /// Parses a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        parse::parse(text)
    }

    /// Whether `path` matches.
    pub fn matches(&self, path: &CanonicalPath<'_>) -> bool {
        if self.is_literal { *self.pattern == *path.as_str() } else { matches_pattern(&self.pattern, path) }
    }

    /// How the paths of `self` relate to those of `other`.
    pub fn relation(&self, other: &Self) -> Relation {
        match (other.includes(self), self.includes(other)) {
            (true, true) => Relation::Same,
            (true, false) => Relation::Narrower,
            (false, true) => Relation::Wider,
            (false, false) if self.intersects(other) => Relation::Overlap,
            (false, false) => Relation::Disjoint,
        }
    }

    /// The one path it matches, when it has no operators.
    pub fn literal(&self) -> Option<&str> {
        self.is_literal.then_some(&*self.pattern)
    }

    /// Its text without names: `*` for one segment, `**` for any rest, literals as they are. Equal patterns match equal
    /// paths, and a pattern is all that [`matches_pattern`] needs.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// The text it was parsed from.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The segments before `**`; all of them, without one.
    pub(super) fn head(&self) -> &[Segment] {
        &self.head
    }

    /// What the path must end with after the head and a slash, when the template has a `**`.
    pub(super) fn rest_suffix(&self) -> Option<&str> {
        self.rest.as_ref().map(|r| &*r.suffix)
    }

    /// What every path that matches ends with. Two templates with a path in common: one ending ends with the other.
    pub(super) fn ending(&self) -> String {
        if let Some(rest) = &self.rest {
            return rest.suffix.to_string();
        }
        let mut reversed = Vec::new();
        for segment in self.head.iter().rev() {
            match segment {
                Segment::Literal(text) => reversed.extend([&**text, "/"]),
                Segment::Before(text) | Segment::Ends(text) => {
                    reversed.push(text);
                    break;
                }
            }
        }
        reversed.into_iter().rev().collect()
    }

    pub(super) fn specificity(&self) -> Specificity {
        let weight = self.head.iter().chain(self.tail()).map(Segment::weight).sum();
        Specificity { exact_length: self.rest.is_none(), shortest: self.shortest(), weight }
    }

    fn tail(&self) -> &[Segment] {
        self.rest.as_ref().map_or(&[], |r| &r.tail)
    }

    /// The number of segments of its shortest path.
    pub(super) fn shortest(&self) -> usize {
        self.head.len() + self.tail().len()
    }

    /// Whether every path of `other` matches `self`.
    fn includes(&self, other: &Self) -> bool {
        if self.rest.is_none() {
            return other.rest.is_none()
                && self.head.len() == other.head.len()
                && self.head.iter().zip(&other.head).all(|(a, b)| a.includes(b));
        }
        // `other` has a path of each length from its shortest on, if it has a rest; else only of that.
        if other.shortest() < self.shortest() {
            return false;
        }
        let from_start = self.head.iter().zip(other.head.iter());
        if other.rest.is_none() {
            let from_end = self.tail().iter().rev().zip(other.head.iter().rev());
            return from_start.chain(from_end).all(|(a, b)| a.includes(b));
        }
        // In a long path of `other`, what is between its head and its tail is any non-empty segment.
        let from_end = self.tail().iter().rev().zip(other.tail().iter().rev());
        from_start.chain(from_end).all(|(a, b)| a.includes(b))
            && self.head.iter().skip(other.head.len()).all(Segment::is_any)
            && self.tail().iter().rev().skip(other.tail().len()).all(Segment::is_any)
    }

    /// Whether some path matches both.
    fn intersects(&self, other: &Self) -> bool {
        let agree = |a: &[Segment], b: &[Segment]| a.iter().zip(b).all(|(a, b)| a.intersects(b));
        let agree_at_end =
            |a: &[Segment], b: &[Segment]| a.iter().rev().zip(b.iter().rev()).all(|(a, b)| a.intersects(b));
        match (&self.rest, &other.rest) {
            (None, None) => self.head.len() == other.head.len() && agree(&self.head, &other.head),
            (Some(_), None) => {
                other.head.len() >= self.shortest()
                    && agree(&self.head, &other.head)
                    && agree_at_end(self.tail(), &other.head)
            }
            (None, Some(_)) => other.intersects(self),
            // A path that is long enough keeps the two heads apart from the two tails.
            (Some(a), Some(b)) => agree(&self.head, &other.head) && agree_at_end(&a.tail, &b.tail),
        }
    }
}

impl std::fmt::Display for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

// === impl Segment ===

impl Segment {
    fn matches(&self, segment: &str) -> bool {
        match self {
            Self::Literal(text) => **text == *segment,
            Self::Before(text) => segment.len() > text.len() && segment.ends_with(&**text),
            Self::Ends(text) => segment.ends_with(&**text),
        }
    }

    fn includes(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Literal(b)) => self.matches(b),
            (Self::Literal(_), _) => false,
            (Self::Before(a), Self::Ends(b)) => b.len() > a.len() && b.ends_with(&**a),
            (Self::Before(a) | Self::Ends(a), Self::Before(b) | Self::Ends(b)) => b.ends_with(&**a),
        }
    }

    fn intersects(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Literal(b)) => self.matches(b),
            (Self::Literal(a), _) => other.matches(a),
            (Self::Before(a) | Self::Ends(a), Self::Before(b) | Self::Ends(b)) => {
                a.ends_with(&**b) || b.ends_with(&**a)
            }
        }
    }

    /// Whether every non-empty segment matches.
    fn is_any(&self) -> bool {
        matches!(self, Self::Before(text) | Self::Ends(text) if text.is_empty())
    }

    /// Larger for a segment that includes less.
    fn weight(&self) -> usize {
        match self {
            Self::Ends(text) => 2 * text.len(),
            Self::Before(text) => 2 * text.len() + 1,
            Self::Literal(text) => 2 * text.len() + 2,
        }
    }
}

/// The first segment, and what follows the slash after it; nothing when there is none.
pub(super) fn split_segment(text: &str) -> (&str, Option<&str>) {
    match text.split_once('/') {
        Some((segment, after)) => (segment, Some(after)),
        None => (text, None),
    }
}
