//! Canonical request paths (RFC 3986, sections 3.3 and 6.2.2): one text for one decoded path, or a refusal.
//!
//! Pure; hot path: a clean path is borrowed after one pass. The upstream gets the path as the client sent it, so what
//! two servers could read differently is refused, never repaired. That includes every dot segment, also one that stays
//! inside the root, and every escape that stands for a delimiter: `%2F %5C %2E %3B %3F %23`, and `%25` before two hex
//! digits. INVARIANT: two targets have the same canonical text exactly when they decode to the same octets, so a route
//! cannot be dodged by writing `@` as `%40`; and canonicalising is idempotent. Never resolves, case-folds or trims.

use std::borrow::Cow;

#[cfg(test)]
mod tests;

/// The longest path, in bytes, without its query.
pub const MAX_PATH: usize = 8192;

/// A path that has exactly one reading. Starts with `/`; only its last segment can be empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CanonicalPath<'a>(Cow<'a, str>);

/// Why a path has more than one reading, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AmbiguousPath {
    /// Empty, `*`, an authority or an absolute URI.
    #[error("the path does not start with `/`")]
    NotAbsolute,
    /// Longer than [`MAX_PATH`].
    #[error("the path is longer than 8192 bytes")]
    TooLong,
    /// `//`: some servers merge slashes.
    #[error("the path has an empty segment (`//`)")]
    EmptySegment,
    /// `.` or `..`: some servers resolve them, some do not.
    #[error("the path has a `.` or `..` segment")]
    DotSegment,
    /// Some servers take a backslash for a slash.
    #[error("the path has a backslash")]
    Backslash,
    /// Some servers cut path parameters off.
    #[error("the path has a `;` parameter")]
    Parameter,
    /// A request target has no fragment; some servers cut it off.
    #[error("the request target has a `#` fragment")]
    Fragment,
    /// Raw NUL, control character or space.
    #[error("the request target has a control character or a space")]
    Control,
    /// Raw byte above 0x7f.
    #[error("the path has a byte that is not ASCII")]
    NonAscii,
    /// An ASCII character that RFC 3986 does not allow in a path.
    #[error("the path has a character that must be percent-encoded")]
    Illegal,
    /// `%` without two hex digits.
    #[error("the path has an invalid percent escape")]
    InvalidEscape,
    /// An escaped slash, backslash, dot, semicolon, question mark or number sign.
    #[error("the path has an escaped `/`, `\\`, `.`, `;`, `?` or `#`")]
    EscapedDelimiter,
    /// An escaped NUL or control character.
    #[error("the path has an escaped control character")]
    EscapedControl,
    /// `%25` before two hex digits: decodes twice.
    #[error("the path is percent-encoded twice")]
    DoubleEncoding,
    /// Escapes that do not decode to UTF-8; overlong forms among them.
    #[error("the path does not decode to UTF-8")]
    InvalidUtf8,
}

/// What one raw byte of a path is.
enum Byte {
    Plain,
    Slash,
    Percent,
    Refused(AmbiguousPath),
}

// === impl CanonicalPath ===

impl<'a> CanonicalPath<'a> {
    /// Canonicalises a request target: a path, and perhaps a query after the first `?`, which is cut off.
    pub fn parse(target: &'a str) -> Result<Self, AmbiguousPath> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, query),
            None => (target, ""),
        };
        if path.len() > MAX_PATH {
            return Err(AmbiguousPath::TooLong);
        }
        let Some(segments) = path.strip_prefix('/') else {
            return Err(AmbiguousPath::NotAbsolute);
        };
        // The query decides nothing, but what is illegal in it may make a server end the path elsewhere.
        if let Some(b) = query.bytes().find(|&b| b <= b' ' || b == b'#' || b == 0x7f) {
            return Err(if b == b'#' { AmbiguousPath::Fragment } else { AmbiguousPath::Control });
        }
        if check(segments.as_bytes())? {
            return Ok(Self(Cow::Owned(recode(path)?)));
        }
        Ok(Self(Cow::Borrowed(path)))
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for CanonicalPath<'_> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Checks everything that shows in the raw bytes after the leading slash; tells whether there are escapes to decode.
fn check(bytes: &[u8]) -> Result<bool, AmbiguousPath> {
    let mut escapes = false;
    let mut length = 0_usize;
    let mut dots = 0_usize;
    for &b in bytes {
        match classify(b) {
            Byte::Plain => {
                length += 1;
                dots += usize::from(b == b'.');
            }
            Byte::Slash => {
                if length == 0 {
                    return Err(AmbiguousPath::EmptySegment);
                }
                end_of_segment(length, dots)?;
                length = 0;
                dots = 0;
            }
            Byte::Percent => {
                escapes = true;
                length += 1;
            }
            Byte::Refused(why) => return Err(why),
        }
    }
    end_of_segment(length, dots)?;
    Ok(escapes)
}

const fn end_of_segment(length: usize, dots: usize) -> Result<(), AmbiguousPath> {
    // An escaped dot is refused on its own, so raw bytes are enough to see `.` and `..`.
    if length == dots && (length == 1 || length == 2) {
        return Err(AmbiguousPath::DotSegment);
    }
    Ok(())
}

const fn classify(b: u8) -> Byte {
    match b {
        b'/' => Byte::Slash,
        b'%' => Byte::Percent,
        b if is_plain(b) => Byte::Plain,
        b'\\' => Byte::Refused(AmbiguousPath::Backslash),
        b';' => Byte::Refused(AmbiguousPath::Parameter),
        b'#' => Byte::Refused(AmbiguousPath::Fragment),
        0..=b' ' | 0x7f => Byte::Refused(AmbiguousPath::Control),
        0x80.. => Byte::Refused(AmbiguousPath::NonAscii),
        _ => Byte::Refused(AmbiguousPath::Illegal),
    }
}

/// `pchar` of RFC 3986 without percent escapes and `;`.
const fn is_plain(b: u8) -> bool {
    matches!(b,
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~'
        | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@')
}

/// Decodes a checked path and writes it again in the one way that stands for those octets: as itself what may stand
/// as itself, everything else as an escape with upper-case digits.
fn recode(path: &str) -> Result<String, AmbiguousPath> {
    let decoded = decode(path.as_bytes())?;
    let text = std::str::from_utf8(&decoded).map_err(|_position| AmbiguousPath::InvalidUtf8)?;
    if text.chars().any(char::is_control) {
        return Err(AmbiguousPath::EscapedControl);
    }
    if decoded.windows(3).any(|w| matches!(w, [b'%', a, b] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())) {
        return Err(AmbiguousPath::DoubleEncoding);
    }
    let mut canonical = String::with_capacity(path.len());
    for &b in &decoded {
        if b == b'/' || is_plain(b) {
            canonical.push(char::from(b));
        } else {
            canonical.push('%');
            canonical.push(upper_hex(b >> 4));
            canonical.push(upper_hex(b & 0xf));
        }
    }
    Ok(canonical)
}

fn decode(path: &[u8]) -> Result<Vec<u8>, AmbiguousPath> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.iter();
    while let Some(&b) = rest.next() {
        if b != b'%' {
            decoded.push(b);
            continue;
        }
        let high = rest.next().and_then(|&d| char::from(d).to_digit(16));
        let low = rest.next().and_then(|&d| char::from(d).to_digit(16));
        let (Some(high), Some(low)) = (high, low) else {
            return Err(AmbiguousPath::InvalidEscape);
        };
        let octet = u8::try_from(high * 16 + low).map_err(|_two_digits_fit| AmbiguousPath::InvalidEscape)?;
        match octet {
            b'/' | b'\\' | b'.' | b';' | b'?' | b'#' => return Err(AmbiguousPath::EscapedDelimiter),
            0..=0x1f | 0x7f => return Err(AmbiguousPath::EscapedControl),
            _ => decoded.push(octet),
        }
    }
    Ok(decoded)
}

fn upper_hex(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).map_or('0', |c| c.to_ascii_uppercase())
}
