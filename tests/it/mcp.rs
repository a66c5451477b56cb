//! MCP routes on the real Envoy 1.40, which sends bodies to the check (`with_request_body`): the files of `examples/mcp/`, tool
//! by tool, and what must not get through. Also grants for one exact body, which take the same configuration.
//!
//! The server behind Envoy echoes what it received, so that each test sees what was forwarded, byte for byte.

use std::net::SocketAddr;
use std::sync::Arc;

use portcullis::clock::{Clock, SystemClock};
use portcullis::drain::Drain;
use portcullis::ext_authz;
use portcullis::object::{ExactCall, GrantConditions, GrantId, Kind};
use portcullis::telemetry::Output;
use portcullis::testing::Estate;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::door;
use crate::envoy::{Answer, Envoy, root, validate};

pub(crate) fn example(name: &str) -> String {
    let path = root().join("examples/mcp").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The service and the policies of the example; `helper` is in the role, `agent` has a grant for one tool.
pub(crate) fn estate(clock: &SystemClock) -> (Estate, GrantId) {
    let mut estate = Estate::new_at(clock.now().wall);
    let document: Value = serde_yaml_ng::from_str(&example("services.yaml")).unwrap();
    estate.put(Kind::Service, &document["service"]);
    let mut helper: Value = serde_yaml_ng::from_str(&example("workloads.yaml")).unwrap();
    helper["workload"]["id"] = json!(Estate::id("helper"));
    estate.put(Kind::Workload, &helper["workload"]);
    let passing = r#"@id("grants-elsewhere") permit(principal, action, resource in Service::"payments") when { context has grant };"#;
    estate.put_policies(&format!("{}\n{passing}", example("policies.cedar")));
    let mut asked = estate.ask("agent", "desk/mcp", &["write"], None, 3600);
    asked.conditions = GrantConditions { tools: vec!["close_account".to_owned()], ..GrantConditions::default() };
    let (grant, _) = estate.grant_as(asked, |_| {});
    (estate, grant.id)
}

/// Answers every request with what it received, head and body.
async fn echo() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut received = Vec::new();
                while !is_whole(&received) {
                    let mut buffer = [0; 4096];
                    match stream.read(&mut buffer).await {
                        Ok(0) | Err(_) => return,
                        Ok(n) => received.extend_from_slice(&buffer[..n]),
                    }
                }
                let head =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", received.len());
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&received).await;
            });
        }
    });
    address
}

pub(crate) fn is_whole(received: &[u8]) -> bool {
    let text = String::from_utf8_lossy(received);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    match value("content-length:") {
        Some(length) => body.len() >= length.parse::<usize>().unwrap(),
        None => value("transfer-encoding:").is_none() || body.ends_with("0\r\n\r\n"),
    }
}

struct Stack {
    envoy: Envoy,
    estate: Estate,
    _drain: Drain,
}

impl Stack {
    async fn start(estate: Estate, clock: &Arc<SystemClock>, configuration: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listeners = ext_authz::Listeners { tcp: Some(listener), ..Default::default() };
        let gate = door::gate(&door::state(&estate, clock), clock);
        let (_, drain) = door::serve(gate, listeners, ext_authz::Config::default(), Output::Off);
        let configuration = configuration
            .replace("port_value: 10000", "port_value: 0")
            .replace("port_value: 9901", "port_value: 0")
            .replace("port_value: 9190", &format!("port_value: {}", echo().await.port()))
            .replace("port_value: 9191", &format!("port_value: {}", address.port()));
        let envoy = tokio::task::spawn_blocking(move || Envoy::start(&configuration)).await.unwrap();
        Self { envoy, estate, _drain: drain }
    }

    fn send(&self, workload: &str, request: &str, headers: &[&str], body: &str) -> Answer {
        let token = format!("Authorization: Bearer {}", self.estate.token(workload));
        let headers: String = headers.iter().chain([&&*token]).map(|h| format!("{h}\r\n")).collect();
        let length = body.len();
        let head =
            format!("{request} HTTP/1.1\r\nHost: mcp.example.com\r\nConnection: close\r\nContent-Length: {length}");
        self.envoy.send(format!("{head}\r\n{headers}\r\n{body}").as_bytes())
    }

    /// A message of 2025-11-25.
    fn post(&self, workload: &str, body: &str) -> Answer {
        self.send(workload, "POST /mcp", &LEGACY, body)
    }

    fn call(&self, workload: &str, tool: &str, arguments: &Value) -> Answer {
        let params = json!({"name": tool, "arguments": arguments});
        self.post(workload, &json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string())
    }
}

const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
const LEGACY: [&str; 2] = ["Content-Type: application/json", "MCP-Protocol-Version: 2025-11-25"];

fn reason(answer: &Answer) -> String {
    let problem: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    format!("{} {}", answer.status, problem["reason"].as_str().unwrap_or("none"))
}

#[test]
fn the_example_is_the_usual_configuration_and_one_route() {
    let documents = ["examples/mcp/envoy.yaml", "envoy/sidecar-grpc-tcp.yaml"]
        .map(|file| serde_yaml_ng::from_str::<Value>(&std::fs::read_to_string(root().join(file)).unwrap()).unwrap());
    validate(&root().join("examples/mcp/envoy.yaml")).unwrap();
    let [mut mcp, usual] = documents;
    let routes = &format!("{MANAGER}/route_config/virtual_hosts/0/routes");
    let routes = mcp.pointer_mut(routes).unwrap().as_array_mut().unwrap();
    assert_eq!(routes.remove(0)["match"], json!({"path": "/mcp"}));
    let settings = routes[0].as_object_mut().unwrap().remove("typed_per_filter_config").unwrap();
    assert_eq!(
        settings["envoy.filters.http.ext_authz"]["check_settings"],
        json!({"disable_request_body_buffering": true})
    );
    let filter = mcp.pointer_mut(&format!("{MANAGER}/http_filters/1/typed_config")).unwrap();
    let body = filter.as_object_mut().unwrap().remove("with_request_body").unwrap();
    assert_eq!(body, json!({"max_request_bytes": 262_144, "allow_partial_message": false, "pack_as_bytes": true}));
    assert_eq!(mcp, usual);
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_allowed_and_denied_one_by_one() {
    let clock = Arc::new(SystemClock::new());
    let stack = Stack::start(estate(&clock).0, &clock, &example("envoy.yaml")).await;

    let body = "{ \"jsonrpc\":\"2.0\", \"id\": 7.0e0 }";
    assert_eq!(reason(&stack.post("helper", body)), "400 input.malformed");
    let body =
        r#"{ "jsonrpc":"2.0", "id": 7,"method":"tools/call",  "params":{"name":"search","arguments":{"q":"été"}}}"#;
    let searched = stack.post("helper", body);
    assert_eq!(searched.status, 200, "{}", searched.body);
    assert!(searched.body.ends_with(body), "what was read is what is forwarded: {}", searched.body);
    assert!(searched.body.contains("x-portcullis-workload: spiffe://test.example/helper"), "{}", searched.body);
    assert!(!searched.body.to_lowercase().contains("authorization"), "no token reaches the server: {}", searched.body);

    assert_eq!(reason(&stack.post("agent", body)), "403 entitlement.scope", "policy gives it to the role");
    let refund = |amount: i64| stack.call("helper", "refund", &json!({"order": {"amount": amount}}));
    assert_eq!(refund(100).status, 200);
    let denied = refund(5000);
    assert_eq!(reason(&denied), "403 entitlement.no_grant");
    let challenge = denied.head.lines().find_map(|l| l.strip_prefix("www-authenticate: ")).unwrap();
    assert_eq!(
        challenge,
        "Bearer realm=\"portcullis\", error=\"insufficient_scope\", scope=\"desk:use desk:refund\", \
         resource_metadata=\"https://mcp.example.com/.well-known/oauth-protected-resource/mcp\""
    );
    let problem: Value = serde_json::from_str(&denied.body).unwrap();
    let asked = &problem["grant_request"];
    assert_eq!((&asked["resources"], &asked["conditions"]), (&json!(["desk/mcp"]), &json!({"tools": ["refund"]})));
    assert_eq!(stack.call("agent", "close_account", &json!({"order": {"amount": 5000}})).status, 200, "by its grant");
    assert_eq!(reason(&stack.call("agent", "delete", &json!({}))), "403 entitlement.scope");
    assert_eq!(reason(&stack.call("agent", "close_account", &json!({"force": true}))), "403 policy.explicit_deny");

    let stream =
        stack.send("helper", "GET /mcp", &["MCP-Protocol-Version: 2025-06-18", "Accept: text/event-stream"], "");
    assert_eq!(stream.status, 200, "{}", stream.body);
    let newest = ["Content-Type: application/json", "MCP-Protocol-Version: 2026-07-28", "Mcp-Method: tools/call"];
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28"});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "search", "_meta": meta}});
    let named = |name: &str| stack.send("helper", "POST /mcp", &[&newest[..], &[name]].concat(), &body.to_string());
    assert_eq!(named("Mcp-Name: search").status, 200);
    assert_eq!(named("Mcp-Name: =?base64?c2VhcmNo?=").status, 200);
    assert_eq!(reason(&named("Mcp-Name: delete")), "400 input.header_mismatch");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_be_read_in_two_ways_does_not_get_through() {
    let clock = Arc::new(SystemClock::new());
    let stack = Stack::start(estate(&clock).0, &clock, &example("envoy.yaml")).await;
    let good = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search"}}"#;
    for bad in [
        format!("[{good}]"),
        format!("{good}{good}"),
        good.replace(r#""name":"search""#, r#""name":"search","name":"delete""#),
        good.replace(r#""name":"search""#, r#""name":"search","Name":"delete""#),
        good.replace("tools/call", "Tools/Call"),
        good.replace("2.0", "1.0"),
        String::new(),
    ] {
        assert_eq!(reason(&stack.post("helper", &bad)), "400 input.malformed", "{bad}");
    }
    // Little more than Envoy holds, so that all of it is read before the connection ends.
    let large = good.replace("search", &"x".repeat(262_144));
    let refused = stack.post("helper", &large);
    assert_eq!(refused.status, 413, "by Envoy: {}", refused.body);
    let wide = good.replace("{\"name\"", &format!("{{\"x\":\"{}\",\"name\"", "x".repeat(200_000)));
    assert_eq!(stack.post("helper", &wide).status, 200, "larger than the buffers of a connection");

    // In pieces, as a client may send it: Envoy asks when it has all of them.
    let token = stack.estate.token("helper");
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: mcp.example.com\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n{}\r\n{}\r\n\
         Authorization: Bearer {token}\r\n\r\n",
        LEGACY[0], LEGACY[1]
    );
    let chunked = |body: &str| {
        let (first, second) = body.split_at(30);
        let chunks = [first, second].map(|c| format!("{:x}\r\n{c}\r\n", c.len())).concat();
        stack.envoy.send(format!("{head}{chunks}0\r\n\r\n").as_bytes())
    };
    assert_eq!(chunked(good).status, 200);
    let denied = chunked(&good.replace("search", "delete"));
    assert_eq!(reason(&denied), "403 entitlement.no_grant");

    // Compressed, or in another encoding.
    for header in ["Content-Encoding: deflate", "Content-Type: application/json; charset=utf-16"] {
        let plain = if header.starts_with("Content-Type") { "X-Plain: 1" } else { LEGACY[0] };
        let headers = [header, plain, LEGACY[1]];
        assert_eq!(reason(&stack.send("helper", "POST /mcp", &headers, good)), "400 input.malformed", "{header}");
    }

    // Behind an Envoy that sends no bodies, nothing is decided without one.
    let usual = crate::envoy_config::file("sidecar-grpc-tcp.yaml");
    let blind = Stack::start(estate(&clock).0, &clock, &usual).await;
    assert_eq!(reason(&blind.post("helper", good)), "400 input.body_truncated");
    // And one that may not take the token out does not forward it.
    let rule = "x[-_]portcullis[-_].*|authorization|dpop|workload[-_](identity|proof)[-_]token";
    let configuration = example("envoy.yaml");
    assert!(configuration.contains(rule));
    let strict = Stack::start(estate(&clock).0, &clock, &configuration.replace(rule, "x[-_]portcullis[-_].*")).await;
    assert_eq!(strict.post("helper", good).status, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_token_learns_where_to_get_one() {
    let clock = Arc::new(SystemClock::new());
    let stack = Stack::start(estate(&clock).0, &clock, &example("envoy.yaml")).await;
    let get = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: mcp.example.com\r\nConnection: close\r\n\r\n");
        stack.envoy.send(request.as_bytes())
    };
    let unknown = get("/mcp");
    assert_eq!(reason(&unknown), "401 credential");
    let part = "www-authenticate: Bearer realm=\"portcullis\", scope=\"desk:use\", resource_metadata=\"https://mcp.example.com";
    assert!(unknown.head.contains(part), "{}", unknown.head);
    let metadata = get("/.well-known/oauth-protected-resource/mcp");
    assert_eq!(metadata.status, 200, "{}", metadata.body);
    assert!(metadata.head.contains("content-type: application/json\r\n"), "{}", metadata.head);
    let document: Value = serde_json::from_str(&metadata.body).unwrap_or_else(|e| panic!("{e}: {}", metadata.body));
    let expected = json!({
        "resource": "https://mcp.example.com/mcp", "authorization_servers": ["https://idp.example.com"],
        "scopes_supported": ["desk:use"], "bearer_methods_supported": ["header"], "resource_name": "desk",
    });
    assert_eq!(document, expected, "and nothing of the server, which was not asked");
    assert_eq!(reason(&get("/.well-known/oauth-protected-resource")), "401 credential");
    assert_eq!(reason(&get("/.well-known/oauth-protected-resource/mcp/x")), "401 credential");
}

/// Grants for one exact call, down to the digest of its body, where Envoy sends bodies along.
#[tokio::test(flavor = "multi_thread")]
async fn a_grant_for_one_body_is_for_no_other() {
    let clock = Arc::new(SystemClock::new());
    let (mut estate, _) = estate(&clock);
    let mut asked = estate.ask("ci", "payments/refunds", &["write"], None, 3600);
    let digest = "a8b88b82fe90a16048eb8851fe382405395cd395dafaa7ca9be90ec00f82a72b".to_owned();
    let method = serde_json::from_value(json!("PUT")).unwrap();
    asked.call = Some(ExactCall { method, path: "/refunds/7".to_owned(), body_sha256: Some(digest) });
    estate.grant_as(asked, |_| {});
    let only_mcp = "disable_request_body_buffering: true";
    let everywhere = example("envoy.yaml");
    assert!(everywhere.contains(only_mcp));
    let everywhere = everywhere.replace(only_mcp, "disable_request_body_buffering: false");
    let stack = Stack::start(estate, &clock, &everywhere).await;
    let put = |body: &str| stack.send("ci", "PUT /refunds/7", &[], body);
    let done = put(r#"{"amount":10}"#);
    assert_eq!(done.status, 200, "{}", done.body);
    assert!(done.body.ends_with(r#"{"amount":10}"#));
    assert!(done.body.contains("authorization: Bearer "), "a route that says nothing passes the token on");
    assert_eq!(reason(&put(r#"{"amount":100}"#)), "403 entitlement.condition");
    assert_eq!(reason(&put(r#"{"amount": 10}"#)), "403 entitlement.condition");
    assert_eq!(reason(&put("")), "403 entitlement.condition");
    assert_eq!(put(&"x".repeat(262_200)).status, 413);
}
