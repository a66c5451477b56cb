//! Doors cannot disagree: any request, told by Envoy over gRPC, by each dialect of forward-auth, and by an application over
//! AuthZEN, gets one decision.
//!
//! On what each door reads, without sockets, so that thousands of requests are asked about. What one door cannot read no
//! other lets pass. An application has no headers and no body to show: it is asked about the request without them.

use bytes::Bytes;
use portcullis::authz::{Asker, Decision, Inputs, Reason, Settings, Snapshot};
use portcullis::authzen::{self, decide_all};
use portcullis::cache::{CacheSizes, Gate};
use portcullis::clock::Clock;
use portcullis::ext_authz;
use portcullis::forward_auth::{Dialect, read_question};
use portcullis::object::WorkloadPattern;
use portcullis::testing::Estate;
use proptest::prelude::*;
use prost::Message as _;
use serde_json::{Value, json};

use crate::decisions::ask;

#[derive(Debug, Clone)]
struct Told {
    method: String,
    path: String,
    host: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

/// What has to be the same.
type Essence = (Reason, Option<String>, Option<String>, Option<String>, Option<String>);

fn essence(decision: &Decision) -> Essence {
    let text = |value: &Option<std::sync::Arc<str>>| value.as_deref().map(str::to_owned);
    let grant = decision.grant.map(|grant| grant.to_string());
    (decision.reason, text(&decision.workload), text(&decision.resource), text(&decision.action), grant)
}

fn path() -> impl Strategy<Value = String> {
    let good =
        prop::sample::select(vec!["/catalog/1", "/catalog/1?a=b", "/catalog/a%40b", "/refunds/7", "/refunds/7?x"]);
    prop_oneof![good.prop_map(str::to_owned), any_path()]
}

fn any_path() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec!["catalog", "refunds", "1", "7", "a%40b", "items"]),
        1 => prop::sample::select(vec!["", ".", "..", "%2f", "%2e%2e", ";x", "a b", "%zz", "%00", "\\", "#f", "%252f", "*", "~"]),
    ];
    let query = prop::option::weighted(0.3, prop::sample::select(vec!["", "a=b", "next=/../refunds/7", "x#y"]));
    (prop::collection::vec(piece, 0..4), query, prop::bool::weighted(0.95)).prop_map(|(pieces, query, rooted)| {
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        format!("{}{}{query}", if rooted { "/" } else { "" }, pieces.join("/"))
    })
}

fn told(tokens: Vec<String>) -> impl Strategy<Value = Told> {
    let one_of = prop::sample::select(tokens);
    let credentials = prop_oneof![
        3 => one_of.clone().prop_map(|token| vec![token]),
        1 => prop::collection::vec(one_of, 0..3),
    ];
    let header = prop::sample::select(vec![
        ("x-change", "CHG-1"),
        ("X-Change", "CHG-2"),
        ("x_portcullis_workload", "spiffe://test.example/agent"),
        ("x-portcullis-actor", "somebody"),
        ("x-portcullis-min-revision", "not one"),
        ("x-envoy-auth-partial-body", "true"),
        ("dpop", "a.b.c"),
        ("Client-Cert", ":AAAA:"),
        ("content-type", "application/grpc"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ]);
    let headers = prop::collection::vec(header, 0..3);
    let method = prop::sample::select(vec!["GET", "POST", "PUT", "DELETE", "get", "PURGE"]);
    let host =
        prop::sample::select(vec!["shop.example", "SHOP.example:443", "other.example", "", "[::1]:80", "a,b", "a/b"]);
    let body = prop::option::of(prop::sample::select(vec![&b"{}"[..], b"\xff\x00", b"{\"amount\":10}"]));
    (method, path(), host, credentials, headers, body).prop_map(|(method, path, host, credentials, more, body)| {
        let mut headers: Vec<(String, String)> =
            credentials.into_iter().map(|token| ("authorization".to_owned(), format!("Bearer {token}"))).collect();
        headers.extend(more.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
        Told { method: method.to_owned(), path, host: host.to_owned(), headers, body: body.map(<[u8]>::to_vec) }
    })
}

fn over_grpc(gate: &Gate, told: &Told) -> Decision {
    let mut check = ask(&told.method, &told.path, &told.host, &told.headers);
    let http = check.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
    http.raw_body = told.body.clone().unwrap_or_default();
    let message = check.encode_to_vec();
    gate.explain(&ext_authz::read_check(&message).expect("Envoy's own message")).0
}

/// The decision, or why the question cannot be read.
fn over_http(gate: &Gate, told: &Told, dialect: Dialect) -> Result<Decision, Reason> {
    let family = match dialect {
        Dialect::Envoy => None,
        Dialect::Traefik | Dialect::Caddy => Some("x-forwarded"),
        Dialect::Nginx => Some("x-original"),
    };
    let mut request = http::Request::builder().method(if family.is_none() { &*told.method } else { "GET" }).uri("/");
    for (name, value) in &told.headers {
        request = request.header(name, value);
    }
    request = match family {
        None => request.header("host", &told.host).header("x-forwarded-proto", "https"),
        Some(family) => {
            let said = [("method", &*told.method), ("uri", &*told.path), ("host", &*told.host), ("proto", "https")];
            said.into_iter().fold(request, |request, (name, value)| request.header(format!("{family}-{name}"), value))
        }
    };
    let own = if family.is_none() { told.path.as_str() } else { "" };
    let head = request.body(()).unwrap().into_parts().0;
    let asked = read_question(dialect, own, head, told.body.clone().map(Bytes::from))?;
    Ok(gate.explain(&asked.lend()).0)
}

#[test]
fn a_request_gets_one_decision_at_every_door() {
    let mut estate = Estate::new();
    estate.grant("agent", "payments/refunds", &["write"], None, 600);
    let gate = Gate::new(estate.state(), estate.clock.clone(), CacheSizes { tokens: 10, decisions: 10 });
    let tokens = vec![estate.token("storefront"), estate.token("agent"), estate.token("ci"), "not.a.token".to_owned()];
    let mut reasons = std::collections::BTreeSet::new();
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 1500, ..ProptestConfig::default() });
    let seen = std::cell::RefCell::new(&mut reasons);
    let ran = runner.run(&told(tokens), |told| {
        let expected = essence(&over_grpc(&gate, &told));
        seen.borrow_mut().insert(expected.0);
        for dialect in Dialect::ALL {
            match over_http(&gate, &told, dialect) {
                Ok(decision) => prop_assert_eq!(&essence(&decision), &expected, "{:?}", dialect),
                Err(unread) => prop_assert!(!expected.0.is_allow(), "{:?} cannot read it: {}", dialect, unread),
            }
        }
        Ok(())
    });
    ran.unwrap_or_else(|e| panic!("{e}"));
    let met = ["allow.policy", "allow.grant", "credential.missing", "input.ambiguous_path", "input.duplicate_header"];
    for reason in met {
        assert!(reasons.iter().any(|met| met.code() == reason), "`{reason}` was never met: {reasons:?}");
    }
}

/// Who is asked about, and how an application comes to speak of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whom<'a> {
    /// The workload whose token this is.
    Proven(&'a str, &'a str),
    /// One that it vouches for.
    Vouched(&'a str),
}

/// What an application asks: about whom, on which resource, which action, and by which request, if by one.
type Asked<'a> = (Whom<'a>, (&'a str, &'a str), &'a str, Option<&'a Told>);

fn over_authzen(estate: &Estate, snapshot: &Snapshot, (whom, (kind, id), action, told): Asked<'_>) -> Decision {
    let (name, token) = match whom {
        Whom::Proven(name, token) => (name, Some(token)),
        Whom::Vouched(name) => (name, None),
    };
    let mut body = json!({
        "subject": {"type": "workload", "id": Estate::id(name)},
        "action": {"name": action},
        "resource": {"type": kind, "id": id},
    });
    if let Some(token) = token {
        body["subject"]["properties"] = json!({ "token": token });
    }
    if let Some(told) = told {
        body["action"]["properties"] = json!({ "method": told.method });
        body["resource"]["properties"] = json!({ "path": told.path, "host": told.host });
    }
    let may_assert = match whom {
        Whom::Proven(..) => vec![],
        Whom::Vouched(_) => vec![WorkloadPattern("spiffe://test.example/*".to_owned())],
    };
    let application = Estate::id("application").into();
    let settings = Settings::default();
    let inputs = Inputs {
        snapshot: Some(snapshot),
        lease: Some(estate.lease()),
        now: estate.clock.now(),
        proofs: None,
        settings: &settings,
        uses: None,
    };
    let asker = Asker { id: &application, may_assert: &may_assert };
    let mut all = decide_all(body.to_string().as_bytes(), &authzen::Config::default(), asker, inputs).expect("one");
    assert_eq!(all.len(), 1, "{body}");
    all.remove(0)
}

/// The workload that a token of the estate is of; `storefront` for what is no token.
fn owner(token: &str) -> String {
    let claims = token.split('.').nth(1).and_then(|claims| {
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, claims).ok()?;
        serde_json::from_slice::<Value>(&bytes).ok()
    });
    let sub = claims.and_then(|claims| Some(claims["sub"].as_str()?.rsplit_once('/')?.1.to_owned()));
    sub.unwrap_or_else(|| "storefront".to_owned())
}

#[test]
fn an_application_that_asks_is_told_what_the_request_would_be() {
    let mut estate = Estate::new();
    estate.grant("agent", "payments/refunds", &["write"], None, 600);
    estate.grant("ci", "payments/refunds", &["read", "write"], Some("/refunds/7"), 600);
    let gate = Gate::new(estate.state(), estate.clock.clone(), CacheSizes { tokens: 10, decisions: 10 });
    let snapshot = estate.snapshot();
    let tokens = vec![estate.token("storefront"), estate.token("agent"), estate.token("ci"), "not.a.token".to_owned()];
    let met = std::cell::RefCell::new(std::collections::BTreeMap::<&str, usize>::new());
    let count = |what| *met.borrow_mut().entry(what).or_default() += 1;
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 1500, ..ProptestConfig::default() });
    let anything = prop::sample::select(vec![
        (("route", "catalog/items"), "read"),
        (("route", "payments/refunds"), "write"),
        (("service", "payments"), "read"),
        (("service", "nowhere"), "read"),
        (("account", "payments/refunds"), "write"),
    ]);
    // Half of them are about something that is there.
    let known = [("GET", "/catalog/1"), ("PUT", "/catalog/1?a=b"), ("POST", "/refunds/7"), ("GET", "/refunds/7")];
    let known = prop::option::of(prop::sample::select(known.to_vec()));
    let ran = runner.run(&(told(tokens), known, anything), |(mut told, known, (other, other_action))| {
        if let Some((method, path)) = known {
            (told.method, told.path, told.host) = (method.to_owned(), path.to_owned(), "shop.example".to_owned());
        }
        (told.body, told.headers) =
            (None, told.headers.into_iter().filter(|(name, _)| name == "authorization").collect());
        told.headers.truncate(1);
        let plain = over_grpc(&gate, &told);
        let expected = essence(&plain);
        count(expected.0.code());
        let token = told.headers.first().map(|(_, value)| value.strip_prefix("Bearer ").unwrap());
        let name = token.map_or("storefront".to_owned(), owner);
        let (found, action) = match (plain.resource.as_deref(), plain.action.as_deref()) {
            (Some(route), Some(action)) => (("route", route), action),
            _ => (other, other_action),
        };
        let ask = |whom, what, action, told| over_authzen(&estate, &snapshot, (whom, what, action, told));
        let Some(token) = token else {
            // Nobody vouches for it, so nobody has shown who it is.
            let stranger = ask(Whom::Proven(&name, ""), found, action, Some(&told));
            prop_assert!(!stranger.reason.is_allow() && !expected.0.is_allow());
            return Ok(());
        };
        let proven = Whom::Proven(&name, token);
        prop_assert_eq!(&essence(&ask(proven, found, action, Some(&told))), &expected, "of {:?}", found);
        if plain.workload.is_some() {
            let vouched = ask(Whom::Vouched(&name), found, action, Some(&told));
            prop_assert_eq!(&essence(&vouched), &expected, "vouched for");
            count("vouched for");
        }
        // By its service it is the same request; and it is a request to nothing else.
        if let (Some((service, _)), ("route", route)) =
            (plain.resource.as_deref().and_then(|r| r.split_once('/')), found)
        {
            let by_service = ask(proven, ("service", service), action, Some(&told));
            prop_assert_eq!(&essence(&by_service), &expected, "by the service");
            if (other.1, other_action) != (route, action) && other != ("service", service) {
                let elsewhere = ask(proven, other, other_action, Some(&told));
                prop_assert!(!elsewhere.reason.is_allow(), "{:?} {} by {:?}", other, other_action, told);
                count("another route");
            }
            // What may be done on the route, whatever the request, may be done by this one.
            if ask(proven, found, action, None).reason.is_allow() {
                prop_assert!(expected.0.is_allow(), "{:?} is allowed by its name alone", found);
                count("by name");
            } else if expected.0.is_allow() {
                count("not by name");
            }
        }
        // Nobody is anybody else.
        let other_name = if name == "agent" { "ci" } else { "agent" };
        prop_assert!(!ask(Whom::Proven(other_name, token), found, action, Some(&told)).reason.is_allow());
        Ok(())
    });
    ran.unwrap_or_else(|e| panic!("{e}"));
    let met = met.into_inner();
    for what in [
        "allow.policy",
        "allow.grant",
        "credential.missing",
        "credential.malformed",
        "entitlement.scope",
        "input.ambiguous_path",
        "input.malformed",
        "policy.no_match",
        "vouched for",
        "another route",
        "by name",
        "not by name",
    ] {
        assert!(met.get(what).is_some_and(|times| *times > 4), "`{what}` was met too seldom: {met:?}");
    }
}
