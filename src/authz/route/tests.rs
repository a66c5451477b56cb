//! The route table against a linear scan that picks the narrowest, and the claims its header makes.

use proptest::prelude::*;

use super::*;
use crate::object::GrantTerms;

fn route(name: &str, methods: &[&str], path: &str) -> Route {
    Route {
        name: name.to_owned(),
        methods: methods.iter().map(|m| Method::parse(m).unwrap()).collect(),
        path: path.to_owned(),
        action: None,
        authentication: None,
        freshness: Freshness::Bounded,
        grants: GrantTerms::default(),
        pass_token: None,
        mcp: None,
    }
}

fn service(name: &str, hosts: &[&str], routes: Vec<Route>) -> Service {
    Service {
        name: name.to_owned(),
        hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
        origins: Vec::new(),
        authentication: Authentication::Token,
        routes,
    }
}

fn find<'t>(table: &'t RouteTable, host: &str, method: &str, path: &str) -> Option<&'t str> {
    table.find(host, method, &CanonicalPath::parse(path).unwrap()).map(|m| &*m.resource)
}

fn conflict(services: &[Service]) -> RouteConflict {
    match RouteTable::compile(services) {
        Err(RouteTableError::Conflict(conflict)) => conflict,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_narrowest_template_wins() {
    let table = RouteTable::compile(&[service(
        "s",
        &[],
        vec![
            route("all", &[], "/{**}"),
            route("one", &["GET"], "/a/{*}"),
            route("b", &["GET"], "/a/b"),
            route("meta", &["GET"], "/a/{**}/meta"),
            route("deep", &["GET"], "/a/{*}/{**}"),
            route("mpd", &["GET"], "/a/{*}.mpd"),
            route("dir", &["GET"], "/a/b/"),
        ],
    )])
    .unwrap();
    for (path, expected) in [
        ("/", "s/all"),
        ("/a", "s/all"),
        ("/a/x", "s/one"),
        ("/a/b", "s/b"),
        ("/a/b/", "s/dir"),
        ("/a/x/", "s/deep"),
        ("/a/x/meta", "s/meta"),
        ("/a/x/y/meta", "s/meta"),
        ("/a/x/y/other", "s/deep"),
        ("/a/x.mpd", "s/mpd"),
        ("/a/.mpd", "s/one"),
    ] {
        assert_eq!(find(&table, "h", "GET", path), Some(expected), "{path}");
    }
    assert_eq!(find(&table, "h", "POST", "/a/b"), Some("s/all"));
}

#[test]
fn action_follows_the_method() {
    let mut explicit = route("x", &[], "/x");
    explicit.action = Some("approve".to_owned());
    let table = RouteTable::compile(&[service(
        "s",
        &[],
        vec![route("a", &[], "/a"), route("b", &["GET", "POST"], "/b"), route("c", &["DELETE"], "/b"), explicit],
    )])
    .unwrap();
    let action = |method: &str, path: &str| {
        table.find("", method, &CanonicalPath::parse(path).unwrap()).map(|m| (m.index, m.action.to_string()))
    };
    assert_eq!(action("GET", "/a"), Some((0, "read".to_owned())));
    assert_eq!(action("HEAD", "/a"), Some((0, "read".to_owned())));
    assert_eq!(action("DELETE", "/a"), Some((0, "delete".to_owned())));
    assert_eq!(action("PURGE", "/a"), Some((0, "write".to_owned())), "a route without methods covers every method");
    assert_eq!(action("POST", "/b"), Some((1, "write".to_owned())));
    assert_eq!(action("GET", "/b"), Some((1, "read".to_owned())));
    assert_eq!(action("DELETE", "/b"), Some((2, "delete".to_owned())));
    assert_eq!(action("HEAD", "/b"), None, "a route covers only the methods it names");
    assert_eq!(action("DELETE", "/x"), Some((3, "approve".to_owned())));
    for bad in ["get", "Get", "", "GET ", "GE\0T", "POST,GET"] {
        assert_eq!(action(bad, "/a"), None, "`{bad}`");
    }
    assert_eq!(table.len(), 4);
}

#[test]
fn the_host_is_chosen_first() {
    let table = RouteTable::compile(&[
        service("shop", &["shop.example", "www.shop.example"], vec![route("r", &[], "/only-shop")]),
        service("pay", &["pay.example", "shop.example"], vec![route("r", &[], "/pay")]),
        service("rest", &[], vec![route("r", &[], "/{**}")]),
    ])
    .unwrap();
    for (host, path, expected) in [
        ("shop.example", "/only-shop", Some("shop/r")),
        ("shop.example", "/pay", Some("pay/r")),
        ("www.shop.example", "/pay", None),
        ("SHOP.Example.:8443", "/pay", Some("pay/r")),
        ("shop.example.", "/only-shop", Some("shop/r")),
        ("shop.example:", "/only-shop", Some("shop/r")),
        ("shop.example", "/other", None),
        ("pay.example", "/pay", Some("pay/r")),
        ("pay.example", "/only-shop", None),
        ("elsewhere.example", "/pay", Some("rest/r")),
        ("", "/pay", Some("rest/r")),
        ("[::1]:80", "/pay", Some("rest/r")),
        ("127.0.0.1:10000", "/pay", Some("rest/r")),
        // Not a host: nobody's.
        ("shop.example..", "/pay", None),
        ("shop.example:80:80", "/pay", None),
        ("shop.example:x", "/pay", None),
        ("shop.example:999999", "/pay", None),
        ("user@shop.example", "/pay", None),
        ("shop.example/x", "/pay", None),
        ("shop%2eexample", "/pay", None),
        ("sh\u{f6}p.example", "/pay", None),
        ("shop.example shop.example", "/pay", None),
        (".", "/pay", None),
        (":80", "/pay", None),
        ("[::1", "/pay", None),
        ("[::1]x", "/pay", None),
        ("[]", "/pay", None),
    ] {
        assert_eq!(find(&table, host, "GET", path), expected, "`{host}` {path}");
    }
    let named = RouteTable::compile(&[service("s", &["a.example"], vec![route("r", &[], "/{**}")])]).unwrap();
    assert_eq!(find(&named, "", "GET", "/"), None, "no host is not every host");
    assert_eq!(find(&named, "b.example", "GET", "/"), None);
    assert_eq!(find(&RouteTable::default(), "", "GET", "/"), None);
}

#[test]
fn overlapping_templates_are_refused_and_both_named() {
    let c = conflict(&[service("s", &[], vec![route("a", &["GET"], "/a/{*}"), route("b", &[], "/{*}/b")])]);
    assert_eq!(c.to_string(), "routes `s/a` (/a/{*}) and `s/b` (/{*}/b) match the same requests");
    // The same, in all the places that it can hide.
    for (first, second) in [
        (("GET", "/a"), ("GET", "/a")),
        (("GET", "/a/{*}"), ("GET", "/a/{id}")),
        (("GET", "/a/{**}"), ("GET", "/{**}/b")),
        (("GET", "/{**}/b"), ("GET", "/a/{**}")),
        (("GET", "/a/{*}/c"), ("GET", "/{*}/{*}.x")),
        (("GET", "/{*}.x"), ("GET", "/{**}.x")),
        (("GET", "/a/{**}.x"), ("GET", "/a/{*}/{**}")),
        (("GET", "/{*}/{*}.x"), ("GET", "/a/{*}")),
    ] {
        let related = Template::parse(first.1).unwrap().relation(&Template::parse(second.1).unwrap());
        let services = [service("s", &[], vec![route("a", &[first.0], first.1), route("b", &[second.0], second.1)])];
        let result = RouteTable::compile(&services);
        assert_eq!(result.is_err(), matches!(related, Relation::Same | Relation::Overlap), "{first:?} {second:?}");
    }
    // Across services that share a host, not across those that do not.
    let a = |hosts: &[&str]| service("a", hosts, vec![route("r", &[], "/x")]);
    let b = |hosts: &[&str]| service("b", hosts, vec![route("r", &[], "/x")]);
    assert_eq!(conflict(&[a(&[]), b(&[])]).second, "b/r");
    assert_eq!(conflict(&[a(&["h.example", "i.example"]), b(&["i.example."])]).first, "a/r");
    RouteTable::compile(&[a(&["h.example"]), b(&["i.example"])]).unwrap();
    RouteTable::compile(&[a(&["h.example"]), b(&[])]).unwrap();
    // Disjoint methods do not conflict, one in common does.
    let methods = |m: &[&str], n: &[&str]| [service("s", &[], vec![route("a", m, "/x"), route("b", n, "/x")])];
    RouteTable::compile(&methods(&["GET", "HEAD"], &["POST"])).unwrap();
    conflict(&methods(&["GET", "HEAD"], &["POST", "HEAD"]));
    conflict(&methods(&["GET"], &[]));
}

#[test]
fn a_template_that_does_not_parse_is_an_error_not_a_missing_route() {
    let error = RouteTable::compile(&[service("s", &[], vec![route("a", &[], "/{**}"), route("b", &[], "/b//")])])
        .unwrap_err()
        .to_string();
    assert_eq!(error, "route `s/b` (/b//): a template has no empty segment (`//`)");
}

#[test]
fn ten_thousand_routes_compile_and_are_found() {
    // Worst for the conflict check: half of the templates meet a wildcard where the other half have literals.
    let routes = (0..5_000)
        .flat_map(|i| {
            [
                route(&format!("a{i}"), &[], &format!("/api/{{*}}/x{i}")),
                route(&format!("b{i}"), &[], &format!("/api/y{i}/{{*}}/z")),
            ]
        })
        .collect();
    let table = RouteTable::compile(&[service("s", &[], routes)]).unwrap();
    assert_eq!(table.len(), 10_000);
    assert_eq!(find(&table, "h", "GET", "/api/q/x4999"), Some("s/a4999"));
    assert_eq!(find(&table, "h", "GET", "/api/y4321/q/z"), Some("s/b4321"));
    assert_eq!(find(&table, "h", "GET", "/api/y5000/q/z"), None);
}

/// The rule as the header says it, without a trie.
fn scan<'s>(services: &'s [Service], host: &str, method: &str, path: &CanonicalPath<'_>) -> Option<(&'s str, &'s str)> {
    let named = services.iter().any(|s| s.hosts.iter().any(|h| h == host));
    let mut best: Option<(Template, &str, &str)> = None;
    for s in services.iter().filter(|s| if named { s.hosts.iter().any(|h| h == host) } else { s.hosts.is_empty() }) {
        for r in &s.routes {
            let template = Template::parse(&r.path).unwrap();
            let covered = r.methods.is_empty() || r.methods.iter().any(|m| m.as_str() == method);
            if !covered || !template.matches(path) {
                continue;
            }
            match best.as_ref().map(|(b, ..)| template.relation(b)) {
                None | Some(Relation::Narrower) => best = Some((template, &s.name, &r.name)),
                Some(Relation::Wider) => {}
                Some(other) => panic!("{other:?}: compiling must have refused this"),
            }
        }
    }
    best.map(|(_, s, r)| (s, r))
}

fn routes() -> impl Strategy<Value = Vec<(Vec<&'static str>, String)>> {
    let segment = proptest::sample::select(vec!["/a", "/b", "/ab", "/{*}"]);
    let end = proptest::sample::select(vec!["", "/", "/{*}b", "/{**}", "/{**}b", "/{**}/b", "/{**}/", "/a"]);
    let path = (proptest::collection::vec(segment, 0..3), end)
        .prop_map(|(s, end)| format!("{}{end}", s.concat()))
        .prop_map(|p| if p.is_empty() { "/".to_owned() } else { p });
    let methods = proptest::sample::select(vec![vec![], vec!["GET"], vec!["POST"], vec!["GET", "POST"]]);
    proptest::collection::vec((methods, path), 0..7)
}

fn worlds() -> impl Strategy<Value = Vec<Service>> {
    let hosts = proptest::sample::select(vec![vec![], vec!["h"], vec!["i"], vec!["h", "i"]]);
    proptest::collection::vec((hosts, routes()), 1..4).prop_map(|services| {
        services
            .iter()
            .enumerate()
            .map(|(i, (hosts, routes))| {
                let routes = routes.iter().enumerate().map(|(j, (m, p))| route(&format!("r{j}"), m, p)).collect();
                service(&format!("s{i}"), hosts, routes)
            })
            .collect()
    })
}

/// Whether any two routes conflict, pair by pair.
fn any_conflict(services: &[Service]) -> bool {
    let all: Vec<_> = services.iter().flat_map(|s| s.routes.iter().map(move |r| (s, r))).collect();
    let hosts_meet = |a: &Service, b: &Service| {
        (a.hosts.is_empty() && b.hosts.is_empty()) || a.hosts.iter().any(|h| b.hosts.contains(h))
    };
    let methods_meet = |a: &Route, b: &Route| {
        a.methods.is_empty() || b.methods.is_empty() || a.methods.iter().any(|m| b.methods.contains(m))
    };
    all.iter().enumerate().any(|(i, (s, r))| {
        all.iter().skip(i + 1).any(|(t, q)| {
            let relation = Template::parse(&r.path).unwrap().relation(&Template::parse(&q.path).unwrap());
            hosts_meet(s, t) && methods_meet(r, q) && matches!(relation, Relation::Same | Relation::Overlap)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn find_equals_a_linear_scan(
        services in worlds(),
        paths in proptest::collection::vec("(/(a|b|ab|c|cb)){0,4}/?", 12),
    ) {
        let compiled = RouteTable::compile(&services);
        prop_assert_eq!(compiled.is_err(), any_conflict(&services), "{:?}", services);
        let Ok(table) = compiled else { return Ok(()) };
        for path in paths {
            let path = if path.is_empty() { "/".to_owned() } else { path };
            let path = CanonicalPath::parse(&path).unwrap();
            for host in ["h", "i", "j"] {
                for method in ["GET", "POST", "PUT"] {
                    let found = table.find(host, method, &path);
                    let expected = scan(&services, host, method, &path).map(|(s, r)| format!("{s}/{r}"));
                    prop_assert_eq!(
                        found.map(|m| &*m.resource), expected.as_deref(),
                        "{} {} {} in {:?}", host, method, path.as_str(), services);
                    if let Some(found) = found {
                        prop_assert_eq!(&*found.action, if method == "GET" { "read" } else { "write" });
                    }
                }
            }
        }
    }
}

#[test]
fn of_several_conflicts_the_same_one_is_always_told() {
    let service: Service = serde_json::from_value(serde_json::json!({"name": "s", "routes": [
        {"name": "c", "path": "/c/{*}"}, {"name": "a", "path": "/a/{*}"}, {"name": "b", "path": "/b/{*}"},
        {"name": "wide", "path": "/{*}/7"},
    ]}))
    .unwrap();
    // Each compilation hashes with keys of its own.
    for _ in 0..20 {
        let RouteTableError::Conflict(conflict) = RouteTable::compile([&service]).unwrap_err() else {
            panic!("not a conflict")
        };
        assert_eq!((conflict.first.as_str(), conflict.second.as_str()), ("s/a", "s/wide"));
    }
}
