//! Patterns: templates without names, one text each, which is all that matching needs.
//!
//! Pure; hot path: nothing is allocated. A pattern is made by [`Template::pattern`](super::Template::pattern) only; in it
//! `*` is always an operator, because no literal of a template has one. Any other text matches what it happens to match.

use super::split_segment;
use crate::authz::path::CanonicalPath;

/// Whether `path` matches `pattern`, the pattern of a template.
pub fn matches(pattern: &str, path: &CanonicalPath<'_>) -> bool {
    let (Some(mut wanted), Some(mut left)) = (pattern.strip_prefix('/'), path.as_str().strip_prefix('/')) else {
        return false;
    };
    loop {
        // In a canonical path what follows `**` is all that counts: a rest that is only `/x` would need an empty
        // segment before it.
        if let Some(ending) = wanted.strip_prefix("**") {
            return left.ends_with(ending);
        }
        let (segment_wanted, wanted_after) = split_segment(wanted);
        let (segment, left_after) = split_segment(left);
        let fits = match segment_wanted.strip_prefix('*') {
            Some(stuck) => segment.len() > stuck.len() && segment.ends_with(stuck),
            None => segment_wanted == segment,
        };
        if !fits {
            return false;
        }
        match (wanted_after, left_after) {
            (None, None) => return true,
            (Some(w), Some(l)) => (wanted, left) = (w, l),
            _ => return false,
        }
    }
}
