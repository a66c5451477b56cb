//! Named attacks on path matching, and the properties of canonicalisation. Fails on any repair or second reading.

use proptest::prelude::*;

use super::*;

fn canonical(target: &str) -> Result<String, AmbiguousPath> {
    CanonicalPath::parse(target).map(|p| p.as_str().to_owned())
}

#[test]
fn attacks_are_refused_and_not_repaired() {
    use AmbiguousPath::*;
    let long = format!("/{}", "a".repeat(MAX_PATH));
    for (name, target, why) in [
        ("traversal through an encoded slash", "/catalog/..%2frefunds/7", EscapedDelimiter),
        ("encoded slash, upper case", "/catalog%2Frefunds/7", EscapedDelimiter),
        ("merged slashes", "//refunds/7", EmptySegment),
        ("merged slashes inside", "/catalog//refunds", EmptySegment),
        ("two trailing slashes", "/refunds//", EmptySegment),
        ("only slashes", "//", EmptySegment),
        ("path parameter", "/refunds;x/7", Parameter),
        ("path parameter that hides a traversal", "/catalog/..;/refunds/7", Parameter),
        ("encoded path parameter", "/refunds%3bx/7", EscapedDelimiter),
        ("dot segment above the root", "/../refunds/7", DotSegment),
        ("dot segment inside the root", "/catalog/../refunds/7", DotSegment),
        ("single dot", "/./refunds", DotSegment),
        ("trailing dots", "/refunds/..", DotSegment),
        ("trailing dot", "/refunds/.", DotSegment),
        ("encoded dots", "/catalog/%2e%2e/refunds", EscapedDelimiter),
        ("half-encoded dots", "/catalog/.%2E/refunds", EscapedDelimiter),
        ("encoded dot in a name", "/a%2Ejson", EscapedDelimiter),
        ("backslash", "/catalog\\..\\refunds", Backslash),
        ("encoded backslash", "/catalog/..%5crefunds", EscapedDelimiter),
        ("double encoding", "/catalog/..%252frefunds", DoubleEncoding),
        ("double encoding in two escapes", "/catalog/%25%32f", DoubleEncoding),
        ("triple encoding", "/catalog/%25252f", DoubleEncoding),
        ("overlong slash", "/catalog/..%c0%afrefunds", InvalidUtf8),
        ("overlong dot", "/%c0%ae%c0%ae/refunds", InvalidUtf8),
        ("lone continuation byte", "/%80", InvalidUtf8),
        ("surrogate", "/%ed%a0%80", InvalidUtf8),
        ("encoded NUL", "/refunds%00.png", EscapedControl),
        ("encoded CR LF", "/refunds%0d%0aX:1", EscapedControl),
        ("encoded DEL", "/refunds%7f", EscapedControl),
        ("encoded C1 control", "/refunds%c2%85", EscapedControl),
        ("raw NUL", "/refunds\0", Control),
        ("raw tab", "/ref\tunds", Control),
        ("raw space", "/refunds HTTP/1.1", Control),
        ("raw non-ASCII", "/caf\u{e9}", NonAscii),
        ("fullwidth slash", "/catalog\u{ff0f}refunds", NonAscii),
        ("truncated escape", "/refunds%2", InvalidEscape),
        ("bare percent", "/refunds%", InvalidEscape),
        ("escape that is no number", "/refunds%zz", InvalidEscape),
        ("escape with a sign", "/refunds%+f", InvalidEscape),
        ("IIS unicode escape", "/refunds%u002f", InvalidEscape),
        ("fragment", "/refunds#/catalog", Fragment),
        ("fragment after the query", "/refunds?a#b", Fragment),
        ("encoded question mark", "/refunds%3fx", EscapedDelimiter),
        ("encoded number sign", "/refunds%23x", EscapedDelimiter),
        ("control in the query", "/refunds?a\r\nb", Control),
        ("curly braces", "/{refunds}", Illegal),
        ("pipe", "/a|b", Illegal),
        ("quote", "/a\"b", Illegal),
        ("caret", "/a^b", Illegal),
        ("empty", "", NotAbsolute),
        ("only a query", "?a", NotAbsolute),
        ("OPTIONS *", "*", NotAbsolute),
        ("absolute form", "http://refunds.example/refunds/7", NotAbsolute),
        ("authority form", "refunds.example:443", NotAbsolute),
        ("relative", "refunds/7", NotAbsolute),
        ("too long", &long, TooLong),
    ] {
        assert_eq!(canonical(target), Err(why), "{name}: `{target}`");
    }
}

#[test]
fn one_reading_has_one_text() {
    for (target, expected) in [
        ("/", "/"),
        ("/refunds/7", "/refunds/7"),
        ("/refunds/7/", "/refunds/7/"),
        ("/refunds/7?x=/../y;z", "/refunds/7"),
        ("/?", "/"),
        ("/a?b?c", "/a"),
        ("/%41%7e%2d%5F", "/A~-_"),
        ("/users/%40admin", "/users/@admin"),
        ("/a%2bb%3Dc%3a", "/a+b=c:"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/a%20b", "/a%20b"),
        ("/%7bx%7d", "/%7Bx%7D"),
        ("/50%25", "/50%25"),
        ("/50%25%3E", "/50%25%3E"),
        ("/.well-known/x", "/.well-known/x"),
        ("/...", "/..."),
        ("/a..b/c.", "/a..b/c."),
        ("/~u/-/_/!$&'()*+,=:@", "/~u/-/_/!$&'()*+,=:@"),
    ] {
        assert_eq!(canonical(target).as_deref(), Ok(expected), "`{target}`");
    }
}

#[test]
fn a_clean_path_is_borrowed() {
    assert!(matches!(CanonicalPath::parse("/refunds/7?x=1").unwrap().0, Cow::Borrowed("/refunds/7")));
    let long = format!("/{}", "a".repeat(MAX_PATH - 1));
    assert_eq!(CanonicalPath::parse(&format!("{long}?{long}")).unwrap().as_str(), long, "the cap is on the path");
}

/// Texts dense in what matters here.
fn targets() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("/".to_owned()),
        proptest::sample::select(vec![
            ".", "..", ";", "\\", "%", "%2", "?", "#", "a", "B", "7", "f", "@", "*", "\u{e9}", "\0", " ", "%25", "%2f",
            "%2e", "%c3%a9", "%C3", "%41",
        ])
        .prop_map(str::to_owned),
        any::<u8>().prop_map(|b| format!("%{b:02x}")),
        any::<u8>().prop_map(|b| format!("%{b:02X}")),
        "[a-z0-9/]{0,4}",
    ];
    (any::<bool>(), proptest::collection::vec(piece, 0..8))
        .prop_map(|(slash, pieces)| format!("{}{}", if slash { "/" } else { "" }, pieces.concat()))
}

fn octets(target: &str) -> Vec<u8> {
    let path = target.split('?').next().unwrap().as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    while i < path.len() {
        if path[i] == b'%' {
            out.push(u8::from_str_radix(std::str::from_utf8(&path[i + 1..i + 3]).unwrap(), 16).unwrap());
            i += 3;
        } else {
            out.push(path[i]);
            i += 1;
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn canonicalising_is_idempotent(target in targets()) {
        if let Ok(path) = CanonicalPath::parse(&target) {
            let again = CanonicalPath::parse(path.as_str()).unwrap();
            prop_assert_eq!(again.as_str(), path.as_str());
            prop_assert!(matches!(again.0, Cow::Borrowed(_)) || path.as_str().contains('%'));
        }
    }

    #[test]
    fn canonical_text_has_no_refused_form(target in targets()) {
        if let Ok(path) = CanonicalPath::parse(&target) {
            let text = path.as_str();
            prop_assert!(text.starts_with('/') && text.is_ascii());
            let refused = ["//", ";", "\\", "?", "#", "%2F", "%5C", "%2E", "%3B", "%3F", "%23", "%0", "%1", "%7F", " "];
            prop_assert!(!refused.iter().any(|f| text.contains(f)), "{}", text);
            prop_assert!(!text.split('/').any(|s| s == "." || s == ".."), "{}", text);
            // What a server that decodes once more would see is not an escape.
            let once = octets(text);
            prop_assert!(!once.windows(3).any(|w| w[0] == b'%' && w[1].is_ascii_hexdigit() && w[2].is_ascii_hexdigit()));
        }
    }

    #[test]
    fn same_text_exactly_for_same_octets(a in targets(), b in targets(), digits in any::<bool>()) {
        if let Ok(path) = CanonicalPath::parse(&a) {
            prop_assert_eq!(octets(&a), octets(path.as_str()));
            if let Ok(other) = CanonicalPath::parse(&b) {
                prop_assert_eq!(octets(&a) == octets(&b), path == other);
            }
            // Escaping every letter and digit changes nothing.
            let escaped: String = octets(&a).iter().map(|&o| match o {
                b'/' | b'.' => char::from(o).to_string(),
                o if digits => format!("%{o:02x}"),
                o => format!("%{o:02X}"),
            }).collect();
            let again = canonical(&escaped);
            prop_assert_eq!(again.as_deref(), Ok(path.as_str()));
        }
    }

    #[test]
    fn any_text_is_answered(target in ".{0,64}") {
        let _ = CanonicalPath::parse(&target);
    }
}
