//! What a mix may say, and where its mistakes are.

use super::*;

fn parse(text: &str) -> Result<Mix, String> {
    Mix::parse(Path::new("dir/mix.yaml"), text, Shares::default()).map_err(|e| e.to_string())
}

#[test]
fn mistakes_are_told_with_their_place() {
    for (text, parts) in [
        ("requests:\n  - name: a\n    paths: [/]\n    wieght: 2\n", &["mix.yaml", "wieght", "line 4 column 5"][..]),
        ("requests:\n  - name: a\n    paths: [/]\n    expect: maybe\n", &["`maybe`", "line 4 column 13"]),
        ("requests:\n  - name: a\n    paths: [/]\n    expect: 99\n", &["`99`", "line 4"]),
        ("requests:\n  - {name: a}\n", &["paths", "line 2"]),
        ("requests: [\n", &["line"]),
        ("requests: []\n", &["no request"]),
        ("requests: [{name: a, paths: [x]}]", &["request `a`", "`x` is not a path"]),
        ("requests: [{name: a, paths: []}]", &["`paths` is empty"]),
        ("requests: [{name: a, paths: [/], weight: -1}]", &["`weight: -1`"]),
        ("requests: [{name: a, paths: [/], method: 'G T'}]", &["`G T` is not a method"]),
        ("requests: [{name: a, paths: [/], headers: {'a b': c}}]", &["`a b`"]),
        ("requests: [{name: a, paths: [/], token: {}}]", &["exactly one of"]),
        ("requests: [{name: a, paths: [/], token: {text: 'a b'}}]", &["one word"]),
        ("requests: [{name: a, paths: [/], token: {file: none.txt}}]", &["cannot read `dir/none.txt`"]),
        ("requests: [{name: a, paths: [/], token: {text: a}, headers: {Authorization: b}}]", &["both a token"]),
        ("shares: {denied: 0.5}\nrequests: [{name: a, paths: [/]}]", &["no such request"]),
        ("shares: {denied: 2}\nrequests: [{name: a, paths: [/], expect: deny}]", &["between 0 and 1"]),
        ("shares: {denied: 0.5}\nrequests: [{name: a, paths: [/], expect: deny}]", &["leave more"]),
    ] {
        let error = parse(text).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(!error.contains("a b'"), "a token is never shown: {error}");
    }
}

#[test]
fn shares_scale_the_weights_of_their_group() {
    let text = "requests:\n  - {name: a, weight: 3, paths: [/]}\n  - {name: b, weight: 1, paths: [/]}\n  \
                - {name: c, weight: 1, paths: [/], expect: deny}\n  - {name: d, weight: 3, paths: [/], expect: 403}\n";
    let weights = |shares| {
        let mix = Mix::parse(Path::new("mix.yaml"), text, shares).unwrap();
        mix.requests.iter().map(|r| r.weight.round() as u32).collect::<Vec<_>>()
    };
    assert_eq!(weights(Shares::default()), [3, 1, 1, 3]);
    assert_eq!(weights(Shares { denied: Some(0.2), never_seen: None }), [60, 20, 5, 15]);
    assert_eq!(weights(Shares { denied: Some(0.0), never_seen: Some(0.0) }), [75, 25, 0, 0]);
    assert_eq!(weights(Shares { denied: Some(1.0), never_seen: None }), [0, 0, 25, 75]);
}

#[test]
fn headers_of_the_mix_are_those_of_each_request() {
    let mix = parse("headers: {X-A: '1', x-b: '2'}\nrequests: [{name: a, paths: [/], headers: {x-b: '3'}}]").unwrap();
    let headers: Vec<_> = mix.requests[0].headers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(headers, [("x-a", "1"), ("x-b", "3")]);
}

#[test]
fn the_example_is_a_mix() {
    let dir = tempfile::tempdir().unwrap();
    let key = TokenSigner::generate_es256("bench").unwrap();
    std::fs::write(dir.path().join("issuer.key"), &*key.pkcs8_pem().unwrap()).unwrap();
    std::fs::write(dir.path().join("tokens.txt"), "one\n\n two \n").unwrap();
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/bench/mix.yaml")).unwrap();
    let mix = Mix::parse(&dir.path().join("mix.yaml"), &text, Shares::default()).unwrap();
    let denied: f64 = mix.requests.iter().filter(|r| r.group() == Group::Denied).map(|r| r.weight).sum();
    assert!((denied - 10.0).abs() < 1e-9, "{denied}");
    assert!(matches!(&mix.requests[0].tokens, Tokens::Pool(tokens) if tokens == &["one", "two"]));
    assert!(matches!(&mix.requests[3].tokens, Tokens::Mint(mint) if mint.lifetime == Some(Duration::from_secs(600))));
    // Tokens are not shown, whoever prints it.
    let shown = format!("{mix:?}");
    assert!(!shown.contains("\"one\"") && shown.contains("2 tokens"), "{shown}");
}
