//! Templates against Envoy's documented cases, a naive glob matcher, and brute force over a small world of paths.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

fn template(text: &str) -> Template {
    Template::parse(text).unwrap_or_else(|e| panic!("`{text}`: {e}"))
}

fn matches(text: &str, path: &str) -> bool {
    template(text).matches(&CanonicalPath::parse(path).unwrap())
}

#[test]
fn matches_what_envoy_matches() {
    for (text, yes, no) in [
        ("/", vec!["/"], vec!["/a"]),
        ("/refunds", vec!["/refunds", "/refunds?x"], vec!["/refunds/", "/refund", "/refunds/7", "/REFUNDS"]),
        ("/refunds/{*}", vec!["/refunds/7"], vec!["/refunds", "/refunds/", "/refunds/7/", "/refunds/7/8", "/x/7"]),
        ("/refunds/*", vec!["/refunds/7"], vec!["/refunds/7/8"]),
        ("/refunds/{id}/items/{item=*}", vec!["/refunds/7/items/a"], vec!["/refunds/7/items/", "/refunds/items/a"]),
        ("/refunds/{*}/", vec!["/refunds/7/"], vec!["/refunds/7", "/refunds//"]),
        ("/files/{**}", vec!["/files/", "/files/a", "/files/a/b/", "/files/a/b"], vec!["/files", "/filesystem"]),
        ("/{**}", vec!["/", "/a", "/a/b/"], vec![]),
        ("/{path=**}.m3u8", vec!["/media/1234/manifest.m3u8", "/.m3u8", "/a/.m3u8"], vec!["/m3u8", "/a.m3u8/b"]),
        ("/media/{*}.mpd", vec!["/media/a.mpd"], vec!["/media/.mpd", "/media/a/b.mpd", "/media/a.mpd/"]),
        (
            "/files/{**}/meta",
            vec!["/files/a/meta", "/files/a/b/meta"],
            vec!["/files/meta", "/files/a/xmeta", "/files/a/meta/"],
        ),
        ("/files/{**}/", vec!["/files/a/", "/files/a/b/"], vec!["/files/", "/files/a"]),
        ("/{version=api/*}/x", vec!["/api/v1/x"], vec!["/api/x", "/v1/api/x"]),
        ("/{v=a/*/c}.txt", vec!["/a/b/c.txt"], vec!["/a/b/c"]),
        ("/caf%C3%A9/@me", vec!["/caf%c3%a9/%40me"], vec!["/cafe/@me"]),
    ] {
        for path in yes {
            assert!(matches(text, path), "`{text}` must match `{path}`");
        }
        for path in no.into_iter().filter(|p| CanonicalPath::parse(p).is_ok()) {
            assert!(!matches(text, path), "`{text}` must not match `{path}`");
        }
    }
}

#[test]
fn accepts_and_refuses_what_envoy_does() {
    for text in [
        "/**.m3u8",
        "/*_suf",
        "/{path=**}.m3u8",
        "/{foo}/**.ts",
        "/media/{contentId=*}/**",
        "/api/*/*/**",
        "/api/*/v1/*",
        "/{version=api/*}/*",
        "/api/*/*/",
        "/api/*/{resource=*}/{method=**}",
        "/{foo=*}/{bar=*}/{fo=*}/{fum=*}/*",
        "/api/{VERSION}/{version}/{verSION}",
        "/media/abcd/%20%20/{v1=*/%20}_suffix",
    ] {
        template(text);
    }
    for text in [
        "/api/v*/1234",
        "/api/{version=v*}/1234",
        "/api/v{versionNum=*}/1234",
        "/api/{version=*beta}/1234",
        "/media/ll-sd-out.{ext}",
        "/media/ll-sd-out.**",
        "/media/{country=**}/{lang=*}/**",
        "/media/**/*/**",
        "/link/{id=*}/asset*",
        "/media/{id=/*}/*",
        "/media/{contentId=/**}",
        "/api/{version}/{version}",
        "/api/{version.major}/x",
        "/media/***",
        "/media/*{*}*",
        "/media/*/index?a=2",
        "media",
        "",
        "/*(/**",
        "/**/{var}",
        "/{a}/{b}/{c}/{d}/{e}/{f}",
        "/{=*}",
        "/{var12345678901234=*}",
        "/{var",
        "/{1v}",
        "/{v=}",
        "/{}",
        "/a//b",
        "//",
        "/**.a/b",
        "/a}b",
    ] {
        assert!(Template::parse(text).is_err(), "`{text}` must be refused");
    }
}

#[test]
fn a_literal_that_no_request_can_have_is_an_error_that_says_what_to_write() {
    let error = |text: &str| Template::parse(text).unwrap_err().to_string();
    assert_eq!(error("/users/%40me"), "`%40me` never occurs in a canonical path; write `@me`");
    assert_eq!(error("/caf%c3%a9"), "`caf%c3%a9` never occurs in a canonical path; write `caf%C3%A9`");
    assert_eq!(error("/a/.."), "`..` is refused in every request: the path has a `.` or `..` segment");
    assert_eq!(error("/a;b"), "`a;b` is refused in every request: the path has a `;` parameter");
    assert!(error("/a%2fb").contains("is refused in every request"));
    assert!(error("/{*}%2e").contains("is refused in every request"));
    assert!(error("/{x=%25}41").contains("encoded twice"));
    assert!(error("/caf\u{e9}").contains("not ASCII"));
    assert!(error(&format!("/{}", "a".repeat(MAX_TEMPLATE))).contains("1024"));
    assert!(error(&"/a".repeat(MAX_SEGMENTS + 1)).contains("64 segments"));
}

#[test]
fn literal_is_the_only_path() {
    assert_eq!(template("/a/b").literal(), Some("/a/b"));
    assert_eq!(template("/{v=a/b}.c").literal(), Some("/a/b.c"));
    assert_eq!(template("/").literal(), Some("/"));
    assert_eq!(template("/a/").literal(), Some("/a/"));
    assert_eq!(template("/a/{*}").literal(), None);
    assert_eq!(template("/a/**").literal(), None);
}

#[test]
fn relations_by_name() {
    use Relation::*;
    for (a, b, expected) in [
        ("/a", "/a", Same),
        ("/a/{*}", "/a/{id}", Same),
        ("/a/{**}", "/{x=a/**}", Same),
        ("/a/b", "/a/{*}", Narrower),
        ("/a/{*}", "/a/{**}", Narrower),
        ("/a/{**}", "/a/", Wider),
        ("/a/{*}", "/a/", Disjoint),
        ("/a/{*}", "/{*}/b", Overlap),
        ("/a/{**}", "/{**}/b", Overlap),
        ("/a/{**}/z", "/a/{*}/{**}", Narrower),
        ("/a/{*}/{**}/z", "/a/{**}/z", Narrower),
        ("/a/{**}.mpd", "/a/{**}", Narrower),
        ("/a/{*}.mpd", "/a/{**}.mpd", Narrower),
        ("/a/{*}.mpd", "/a/{*}.ts", Disjoint),
        ("/a/{*}pd", "/a/{*}.mpd", Wider),
        ("/a/{*}.mpd", "/a/b.mpd", Wider),
        ("/a/{*}.mpd", "/a/.mpd", Disjoint),
        ("/a/{**}/", "/a/{*}", Disjoint),
    ] {
        assert_eq!(template(a).relation(&template(b)), expected, "`{a}` against `{b}`");
    }
}

/// Every path of up to 5 segments over a few words, with and without a trailing slash.
static WORLD: LazyLock<Vec<CanonicalPath<'static>>> = LazyLock::new(|| {
    let words = ["a", "b", "c", "ba", "cba", "ca"];
    let mut level = vec![String::new()];
    let mut all = vec!["/".to_owned()];
    for depth in 0..5 {
        level = level.iter().flat_map(|p| words.iter().map(move |w| format!("{p}/{w}"))).collect();
        all.extend(level.iter().cloned());
        if depth < 4 {
            all.extend(level.iter().map(|p| format!("{p}/")));
        }
    }
    all.into_iter().map(|p| CanonicalPath::parse(p.leak()).unwrap()).collect()
});

/// Templates over the same words, short enough for [`WORLD`] to hold a witness of every relation.
fn templates() -> impl Strategy<Value = String> {
    let head = || proptest::collection::vec(proptest::sample::select(vec!["a", "b", "ba", "{*}", "*"]), 0..=2);
    let stuck = || proptest::sample::select(vec!["", "", "", "a", "ba"]);
    let tail = proptest::sample::select(vec!["", "", "/", "/a", "/b", "/ba", "a", "ba"]);
    let join = |head: Vec<&str>| head.iter().map(|s| format!("/{s}")).collect::<String>();
    prop_oneof![
        (head(), any::<bool>()).prop_map(move |(h, slash)| format!(
            "{}{}",
            join(h.clone()),
            if slash || h.is_empty() { "/" } else { "" }
        )),
        (head(), stuck()).prop_map(move |(h, s)| format!("{}/*{s}", join(h))),
        (head(), tail).prop_map(move |(h, t)| format!("{}/{{**}}{t}", join(h))),
    ]
}

/// `*` and `**` over characters, the way Envoy's regular expressions read, with none of our structure.
fn naive(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', left @ ..] => (0..=path.len()).any(|n| naive(left, &path[n..])),
        [b'*', left @ ..] => (1..=path.len()).take_while(|&n| path[n - 1] != b'/').any(|n| naive(left, &path[n..])),
        [c, left @ ..] => path.first() == Some(c) && naive(left, &path[1..]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn relation_equals_brute_force(a in templates(), b in templates()) {
        let (ta, tb) = (template(&a), template(&b));
        let (mut both, mut only_a, mut only_b) = (false, false, false);
        for path in WORLD.iter() {
            match (ta.matches(path), tb.matches(path)) {
                (true, true) => both = true,
                (true, false) => only_a = true,
                (false, true) => only_b = true,
                (false, false) => {}
            }
        }
        let expected = match (both, only_a, only_b) {
            (false, ..) => Relation::Disjoint,
            (true, false, false) => Relation::Same,
            (true, false, true) => Relation::Narrower,
            (true, true, false) => Relation::Wider,
            (true, true, true) => Relation::Overlap,
        };
        prop_assert_eq!(ta.relation(&tb), expected, "`{}` against `{}`", a, b);
        if expected == Relation::Narrower {
            prop_assert!(ta.specificity() > tb.specificity(), "`{}` against `{}`", a, b);
        }
    }

    #[test]
    fn matching_equals_a_naive_matcher(text in templates()) {
        let compiled = template(&text);
        let pattern = text.replace(['{', '}'], "");
        for path in WORLD.iter() {
            prop_assert_eq!(
                compiled.matches(path), naive(pattern.as_bytes(), path.as_str().as_bytes()), "`{}` {}", text, path.as_str());
        }
        if let Some(only) = compiled.literal() {
            prop_assert!(compiled.matches(&CanonicalPath::parse(only).unwrap()));
            prop_assert!(WORLD.iter().filter(|p| compiled.matches(p)).count() <= 1);
        }
    }

    #[test]
    fn any_text_is_answered(text in "[/a.%{}*=;x0-9]{0,24}") {
        if let Ok(t) = Template::parse(&text) {
            prop_assert_eq!(t.relation(&t), Relation::Same);
        }
    }
}
