//! MCP routes as a whole, through the gate: which tools a caller gets to see, that the cache keeps tools apart, and what
//! becomes of tokens and of denials.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::authz::{Decision, Reason, is_credential_header, problem};
use crate::cache::{CacheSizes, Gate};
use crate::object::{ExactCall, GrantConditions, Kind};
use crate::testing::{Estate, request};

const POLICIES: &str = r#"
@id("list") permit(principal, action, resource) when { context has mcp.method && context.mcp.method == "tools/list" };
@id("search") permit(principal, action, resource) when { context has mcp.tool && context.mcp.tool == "search" };
@id("small") permit(principal, action, resource) when { context has mcp.tool && context.mcp.tool == "refund" &&
    (context.mcp.message == "listing" || (context.mcp.arguments has amount && context.mcp.arguments.amount < 100)) };
@id("blind") permit(principal, action, resource) when { context has mcp.tool && context.mcp.tool == "blind" &&
    context.mcp.arguments has amount };
@id("grants") permit(principal, action, resource) when { context has grant };
@id("never") forbid(principal, action, resource) when { context has mcp.tool && context.mcp.tool == "wipe" };
"#;

struct Desk {
    estate: Estate,
    gate: Gate,
}

impl Desk {
    fn new(policies: &str) -> Self {
        let mut estate = Estate::new();
        let mcp = json!({"arguments": {"amount": {"type": "long"}}, "resource": "https://mcp.example/mcp", "tool_scopes": {"a": ["x", "y"]}});
        let routes = json!([
            {"name": "mcp", "path": "/mcp", "mcp": mcp},
            {"name": "passes", "path": "/passes", "mcp": {}, "pass_token": true},
            {"name": "removes", "path": "/removes", "pass_token": false},
        ]);
        estate.put(Kind::Service, &json!({"name": "desk", "routes": routes}));
        estate.put_policies(policies);
        let mut asked = estate.ask("agent", "desk/mcp", &["write"], None, 600);
        asked.conditions =
            GrantConditions { tools: vec!["close".to_owned(), "wipe".to_owned()], ..GrantConditions::default() };
        estate.grant_as(asked, |grant| grant.uses = Some(1));
        let sizes = CacheSizes { tokens: 100, decisions: 100 };
        let gate = Gate::new(estate.state(), Arc::clone(&estate.clock) as _, sizes);
        Self { estate, gate }
    }

    fn headers(&self, workload: &str) -> [(&'static str, String); 3] {
        [
            ("authorization", format!("Bearer {}", self.estate.token(workload))),
            ("content-type", "application/json".to_owned()),
            ("mcp-protocol-version", "2025-11-25".to_owned()),
        ]
    }

    fn post(&self, workload: &str, path: &str, message: &Value) -> Decision {
        let (headers, body) = (self.headers(workload), message.to_string());
        let mut request = request("POST", path, &headers);
        request.body = Some(body.as_bytes());
        self.gate.check(&request)
    }

    fn call(&self, workload: &str, tool: &str, arguments: &Value) -> Decision {
        let params = json!({"name": tool, "arguments": arguments});
        self.post(workload, "/mcp", &json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}))
    }

    fn shown(&self, workload: &str, tools: &[&str]) -> Vec<bool> {
        let headers = self.headers(workload);
        let list = br#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        let mut request = request("POST", "/mcp", &headers);
        request.body = Some(list);
        assert!(self.gate.check(&request).permit().is_some());
        self.gate.allowed_tools(&request, tools)
    }
}

#[test]
fn a_caller_sees_the_tools_that_it_may_use() {
    let desk = Desk::new(POLICIES);
    let tools = ["search", "refund", "blind", "close", "wipe", "other"];
    assert_eq!(desk.shown("ci", &tools), [true, true, false, false, false, false]);
    // A grant of one use shows its tool, and looking spends nothing.
    for _ in 0..3 {
        assert_eq!(desk.shown("agent", &tools), [true, true, false, true, false, false]);
    }
    let many = vec!["search"; 1200];
    assert_eq!(desk.shown("ci", &many).len(), crate::authz::MAX_LISTED_TOOLS);
    // Who is nobody here, or asks on another route, sees nothing.
    assert_eq!(desk.gate.allowed_tools(&request("POST", "/mcp", &[]), &tools), [false; 0]);
    let headers = desk.headers("ci");
    assert_eq!(desk.gate.allowed_tools(&request("GET", "/catalog/1", &headers), &tools), [false; 0]);
    // On a stream, whose request is of another action, they are the same.
    let headers = desk.headers("agent");
    let on_stream = desk.gate.allowed_tools(&request("GET", "/mcp", &headers), &tools);
    assert_eq!(on_stream, [true, true, false, true, false, false]);
}

#[test]
fn a_denial_says_whether_a_body_would_have_told_more() {
    let mut desk = Desk::new(POLICIES);
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    assert_eq!(desk.post("ci", "/mcp", &message).needs_body, None);
    assert_eq!(desk.call("ci", "other", &json!({})).needs_body, None, "it was there");
    let headers = desk.headers("ci");
    let without = |desk: &Desk, path: &str| desk.gate.check(&request("POST", path, &headers));
    let absent = without(&desk, "/mcp");
    assert_eq!(absent.reason, Reason::InputBodyTruncated);
    assert!(absent.needs_body.is_some_and(|needs| !needs.proof_is_used));
    assert_eq!(desk.gate.check(&request("POST", "/mcp", &headers[1..])).needs_body, None, "nobody asks for it");
    let headers = desk.headers("ci");
    let mut part = request("POST", "/mcp", &headers);
    part.partial_body = true;
    assert_eq!(desk.gate.check(&part).needs_body, None, "no more of it can be had");

    // Grants for one body: beside one that is over, one that policy does not take, and one that does.
    let exact = |desk: &mut Desk, path: &str, digest: &str| {
        let mut asked = desk.estate.ask("ci", "desk/removes", &["write"], None, 600);
        let method = serde_json::from_value(json!("POST")).unwrap();
        asked.call = Some(ExactCall { method, path: path.to_owned(), body_sha256: Some(digest.to_owned()) });
        desk.estate.grant_as(asked, |_| {});
        desk.gate =
            Gate::new(desk.estate.state(), Arc::clone(&desk.estate.clock) as _, CacheSizes { tokens: 9, decisions: 9 });
    };
    assert_eq!(without(&desk, "/removes").needs_body, None);
    exact(&mut desk, "/removes", &"0".repeat(64));
    for _ in 0..2 {
        let denied = without(&desk, "/removes");
        assert_eq!(denied.reason, Reason::InputBodyTruncated);
        assert!(denied.needs_body.is_some(), "from the cache too");
    }
    assert_eq!(without(&desk, "/removes?x").needs_body, None, "another call");
    desk.estate.put_policies(r#"@id("long") permit(principal, action, resource) when { context has grant && context.grant.duration_seconds > 500 };"#);
    desk.estate.grant("ci", "desk/removes", &["write"], None, 60);
    exact(&mut desk, "/removes", &"1".repeat(64));
    let denied = without(&desk, "/removes");
    assert!(denied.reason != Reason::InputBodyTruncated && denied.needs_body.is_some(), "{denied:?}");
    desk.estate.grant("ci", "desk/removes", &["write"], None, 590);
    exact(&mut desk, "/removes", &"2".repeat(64));
    let allowed = without(&desk, "/removes");
    assert!(allowed.permit().is_some() && allowed.needs_body.is_none(), "{allowed:?}");
}

#[test]
fn invariant_13_one_tool_s_answer_is_not_another_s() {
    let desk = Desk::new(POLICIES);
    for _ in 0..3 {
        assert_eq!(desk.call("ci", "search", &json!({})).reason, Reason::AllowPolicy);
        assert_eq!(desk.call("ci", "other", &json!({})).reason, Reason::EntitlementNoGrant);
        assert_eq!(desk.call("ci", "refund", &json!({"amount": 99})).reason, Reason::AllowPolicy);
        assert_eq!(desk.call("ci", "refund", &json!({"amount": 100})).reason, Reason::EntitlementNoGrant);
        assert_eq!(desk.call("ci", "refund", &json!({})).reason, Reason::EntitlementNoGrant);
        // What was asked for the list is no answer to a call.
        assert_eq!(desk.shown("ci", &["refund"]), [true]);
    }
    assert!(desk.call("ci", "search", &json!({})).cached);
    // Where no policy reads arguments, they make no entries.
    let desk = Desk::new(r#"@id("all") permit(principal, action, resource) when { context has mcp.tool };"#);
    assert!(!desk.call("ci", "search", &json!({"amount": 1})).cached);
    assert!(desk.call("ci", "search", &json!({"amount": 2})).cached);
}

#[test]
fn the_credential_goes_no_further_unless_the_route_says_so() {
    let desk = Desk::new(POLICIES);
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    assert!(desk.post("ci", "/mcp", &list).removes_token);
    assert!(!desk.post("ci", "/passes", &list).removes_token);
    assert!(desk.post("ci", "/removes", &list).removes_token);
    assert!(!desk.post("ci", "/catalog/1", &list).removes_token);
    for name in ["Authorization", "dpop", "Workload_Identity-Token", "workload-proof-token"] {
        assert!(is_credential_header(name.as_bytes()), "{name}");
    }
    assert!(!is_credential_header(b"txn-token") && !is_credential_header(b"authorization2"));
}

#[test]
fn a_denial_says_what_it_is_about() {
    let desk = Desk::new(POLICIES);
    let denied = desk.call("ci", "a", &json!({}));
    let challenge = problem::headers(&denied).into_iter().find(|(name, _)| *name == "www-authenticate").unwrap().1;
    assert_eq!(
        challenge,
        r#"Bearer realm="portcullis", error="insufficient_scope", scope="x y", resource_metadata="https://mcp.example/.well-known/oauth-protected-resource/mcp""#
    );
    let body: Value = serde_json::from_slice(&problem::body(&denied, None)).unwrap();
    assert_eq!(body["grant_request"]["conditions"], json!({"tools": ["a"]}));
    let told: Vec<_> = denied.mcp.as_ref().unwrap().fields().collect();
    assert_eq!(told, [("mcp_method", "tools/call"), ("mcp_tool", "a")]);
    // What is remembered of one tool says nothing of another.
    let other = desk.call("ci", "b", &json!({}));
    let body: Value = serde_json::from_slice(&problem::body(&other, None)).unwrap();
    assert_eq!(body["grant_request"]["conditions"], json!({"tools": ["b"]}));
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "logging/setLevel"});
    let body: Value = serde_json::from_slice(&problem::body(&desk.post("ci", "/mcp", &message), None)).unwrap();
    assert_eq!(body["grant_request"].get("conditions"), None);
    assert_eq!(
        (&body["reason"], body.get("grant_request")),
        (&json!("entitlement.no_grant"), None),
        "not for every tool"
    );
    let route = desk.post("ci", "/refunds/7", &message);
    assert!(route.mcp.is_none() && problem::headers(&route).iter().all(|(name, _)| *name != "www-authenticate"));
}
