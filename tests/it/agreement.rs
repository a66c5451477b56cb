//! Doors cannot disagree: any request, told by Envoy over gRPC and by each dialect of forward-auth, gets one decision.
//!
//! On what each door reads, without sockets, so that thousands of requests are asked about. What one door cannot read no
//! other lets pass.

use bytes::Bytes;
use portcullis::authz::{Decision, Reason};
use portcullis::cache::{CacheSizes, Gate};
use portcullis::ext_authz;
use portcullis::forward_auth::{Dialect, read_question};
use portcullis::testing::Estate;
use proptest::prelude::*;
use prost::Message as _;

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
