//! Whether a URI of a resource can be read in one way only, so that a rule about its beginning means what it says.
//!
//! Pure. Refuses, never repairs: dot segments, in plain or encoded; encoded slashes and backslashes; blanks and control
//! characters. A rule about `file:///public/` would otherwise let `file:///public/../secret` through.

/// The longest URI, in bytes.
const MAX_URI: usize = 4096;

/// Whether the URI of a resource has one reading.
pub(super) fn is_plain(uri: &str) -> bool {
    if uri.is_empty() || uri.len() > MAX_URI || uri.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
        return false;
    }
    // What follows `?` or `#` is the server's own.
    let path = uri.split(['?', '#']).next().unwrap_or_default();
    path.split('/').all(|segment| !is_dots(segment)) && !has_encoded_separator(uri)
}

/// `.` or `..`, each dot as it is or as `%2e`.
fn is_dots(segment: &str) -> bool {
    let mut rest = segment;
    let mut dots = 0_u8;
    while !rest.is_empty() {
        let dot = rest.strip_prefix('.').or_else(|| rest.strip_prefix("%2e")).or_else(|| rest.strip_prefix("%2E"));
        match dot {
            Some(after) if dots < 2 => (rest, dots) = (after, dots + 1),
            _ => return false,
        }
    }
    dots > 0
}

/// `/`, `\`, a second `%` or a control character, encoded.
fn has_encoded_separator(uri: &str) -> bool {
    uri.split('%').skip(1).any(|after| {
        let code = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        // Not an escape at all: servers differ in what they make of that.
        code.is_none_or(|code| matches!(code, b'/' | b'\\' | b'%' | 0..=0x1f | 0x7f))
    })
}

#[cfg(test)]
mod tests {
    use super::is_plain;

    #[test]
    fn what_could_leave_its_directory_is_refused() {
        for good in [
            "file:///public/a.txt",
            "file:///public/..a/a..",
            "file:///public/.../x",
            "note://wiki/été",
            "https://api.example/a?next=../b#..",
            "git://repo/%20a",
            "urn:isbn:1",
        ] {
            assert!(is_plain(good), "{good}");
        }
        for bad in [
            "",
            "..",
            "file:///public/../secret",
            "file:///public/..",
            "file:///public/./a",
            "file:///public/%2e%2e/secret",
            "file:///public/.%2E/secret",
            "file:///public/..?x",
            "file:///public%2f..%2fsecret",
            "file:///public%5c..%5csecret",
            "file:///public\\..\\secret",
            "file:///a b",
            "file:///a%00",
            "file:///a%252e",
            "file:///a%",
            "file:///a%+1",
            "file:///a%zz",
            "file:///a\u{85}",
        ] {
            assert!(!is_plain(bad), "{bad}");
        }
        assert!(!is_plain(&format!("file:///{}", "a".repeat(5000))));
    }
}
