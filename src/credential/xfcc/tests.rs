//! The grammar of `x-forwarded-client-cert`, and who can say what in it.

use proptest::prelude::*;

use super::*;

fn last(value: &str) -> Result<ForwardedCertificate<'_>, &'static str> {
    last_forwarded_certificate(value.as_bytes()).map_err(|rejection| {
        assert_eq!(rejection.reason, CredentialReason::Malformed);
        rejection.detail
    })
}

fn of<'a>(cert: Option<&'a str>, hash: Option<&'a str>, uri: Option<&'a str>) -> ForwardedCertificate<'a> {
    ForwardedCertificate { cert: cert.map(Cow::Borrowed), hash: hash.map(Cow::Borrowed), uri: uri.map(Cow::Borrowed) }
}

#[test]
fn the_last_element_counts() {
    let cases = [
        ("Cert=a", of(Some("a"), None, None)),
        ("Cert=a,Cert=b", of(Some("b"), None, None)),
        ("Cert=a , Cert=b ", of(Some("b"), None, None)),
        ("Cert=a;Hash=h,By=x", of(None, None, None)),
        (
            "By=x;Hash=h;Cert=\"c\";Subject=\"\";URI=spiffe://a/b;DNS=d;DNS=e",
            of(Some("c"), Some("h"), Some("spiffe://a/b")),
        ),
        ("CERT=a;hAsH=h;uri=u", of(Some("a"), Some("h"), Some("u"))),
        // What is quoted is not grammar.
        ("Subject=\"O=a, Inc;Cert=evil,Cert=evil\";Cert=good", of(Some("good"), None, None)),
        ("Subject=\"a\\\",Cert=evil\\\"\";Cert=good", of(Some("good"), None, None)),
        ("Cert=good;Subject=\"a\\\\\"", of(Some("good"), None, None)),
        ("Subject=\"a\\\\\",Cert=good", of(Some("good"), None, None)),
        ("Cert=\"a\\\"b\\\\c\"", of(Some("a\"b\\c"), None, None)),
        ("Cert=a=b==", of(Some("a=b=="), None, None)),
        ("Cert=", of(Some(""), None, None)),
    ];
    for (value, expected) in cases {
        assert_eq!(last(value), Ok(expected), "{value}");
    }
}

#[test]
fn what_does_not_fit_the_grammar_refuses_the_header() {
    let cases = [
        ("", "without `=`"),
        ("Cert=a,", "without `=`"),
        (",Cert=a", "not a word"),
        ("Cert=a,,Cert=b", "not a word"),
        ("Cert=a;", "without `=`"),
        ("Cert=a;;Hash=h", "not a word"),
        ("=a", "not a word"),
        ("Ce rt=a", "not a word"),
        ("Cert =a", "not a word"),
        ("Cert=a;Cert=a", "a key twice"),
        ("Cert=a;cERT=b", "a key twice"),
        ("URI=spiffe://a/b;URI=spiffe://a/c;Cert=a", "a key twice"),
        ("By=a;By=b;Cert=a", "a key twice"),
        // Also of an element that does not count: it may be somebody's attempt.
        ("Cert=a;Cert=b,Cert=c", "a key twice"),
        ("Cert=\"a", "does not end"),
        ("Cert=\"a\\\"", "does not end"),
        ("Cert=\"a\\", "escape"),
        ("Cert=\"a\"b", "goes on"),
        ("Cert=\"a\"\"b\"", "goes on"),
        ("Cert=a\"b\"", "plain value"),
        ("Cert=a\\,b", "plain value"),
        // A quote that an earlier hop leaves open ends at the first quote of the next, and there the grammar breaks.
        ("Subject=\"x,By=p;Cert=\"real\";URI=u", "goes on"),
        ("Subject=\"x,By=p;Subject=\"\";Cert=real", "goes on"),
    ];
    for (value, detail) in cases {
        let refused = last(value).expect_err(value);
        assert!(refused.contains(detail), "{value}: {refused}");
    }
    assert!(last_forwarded_certificate(b"Cert=\xff").is_err());
    let long = format!("Cert={}", "a".repeat(MAX_XFCC));
    assert!(last(&long).unwrap_err().contains("64 KiB"));
    let many: Vec<_> = (0..200).map(|n| format!("k{n}=v")).collect();
    assert!(last(&many.join(";")).unwrap_err().contains("too many"));
}

/// Text that is made of what matters to the grammar.
fn grammatical() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => prop::sample::select(vec!["\"", "\\", ",", ";", "=", " ", "Cert=", "Hash=", "URI=", "Subject=\"", "\\\""]).prop_map(str::to_owned),
        1 => "[a-zA-Z0-9%:/.-]{0,4}",
    ];
    proptest::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(value: Vec<u8>) {
        let _ = last_forwarded_certificate(&value);
    }

    /// Whatever an earlier hop sent, the word of the last one stands, or the header is refused.
    #[test]
    fn what_is_appended_wins_over_everything_before(before in grammatical(), subject in "[ -~]{0,12}") {
        // As Envoy quotes a name, which is escaped already.
        let subject = subject.replace('\\', "\\\\").replace('"', "\\\"");
        let own = format!("By=spiffe://a/gateway;Hash=h;Cert=\"real\";Subject=\"{subject}\";URI=spiffe://a/real");
        let alone = last(&own).unwrap();
        prop_assert_eq!(alone.cert.as_deref(), Some("real"));
        for joint in [",", ", "] {
            let joined = format!("{before}{joint}{own}");
            if let Ok(element) = last(&joined) {
                prop_assert_eq!(&element, &alone, "{}", joined);
            }
        }
        if last(&before).is_ok() {
            prop_assert!(last(&format!("{before},{own}")).is_ok(), "what fits the grammar does not stand in the way");
        }
    }
}
