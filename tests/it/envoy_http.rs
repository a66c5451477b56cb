//! `envoy/sidecar-http.yaml` on the real Envoy: ext_authz over plain HTTP. It differs from the file for gRPC in the question
//! only, and not even `failure_mode_allow` lets pass what the sidecar denies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis::object::Kind;
use serde_json::json;

use crate::envoy::Envoy;
use crate::envoy_config::{echo_service, file};
use crate::forward_auth::{Door, Traits, put, tell};

fn configuration(door: SocketAddr, service: SocketAddr) -> String {
    let file = crate::door::on_free_ports("sidecar-http.yaml", service);
    put(&file, "port_value: 9192", &format!("port_value: {}", door.port()))
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_asks_over_http_and_does_as_it_is_told() {
    let (door, service) = (Door::open().await, echo_service().await);
    let told = tokio::task::spawn_blocking(move || {
        let envoy = Envoy::start(&configuration(door.address, service));
        let traits = Traits { unavailable: 503, silent: &[503], passes_forwarded: true, passes_min_revision: true };
        tell(&door, envoy.address, &traits);
        // The access log joins the records; Envoy writes it a little later.
        let deadline = Instant::now() + Duration::from_secs(20);
        let said = ["\"reason\":\"allow.policy\"", "\"reason\":\"entitlement.no_grant\""];
        while !said.iter().all(|text| envoy.log().contains(text)) {
            assert!(Instant::now() < deadline, "{}", envoy.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    told.await.unwrap();
}

/// Invariant 9 once more, over HTTP: what Envoy takes for a failure opens the gate here, and no denial is one.
#[tokio::test(flavor = "multi_thread")]
async fn invariant_09_no_denial_over_http_opens_an_envoy_that_allows_on_failure() {
    let (door, service) = (Door::open().await, echo_service().await);
    let told = tokio::task::spawn_blocking(move || {
        let configuration = configuration(door.address, service);
        let configuration = put(&configuration, "failure_mode_allow: false", "failure_mode_allow: true");
        let envoy = Envoy::start(&configuration);
        let storefront = door.bearer("storefront");
        assert_eq!(envoy.get("/catalog/1", &[&storefront]).status, 200);
        door.go_stale();
        let stale = envoy.get("/catalog/1", &[&storefront]);
        assert_eq!(stale.status, 503, "{stale:?}");
        assert!(stale.body.contains("\"reason\":\"system\""), "{stale:?}");
        // More headers that begin as ours do than the sidecar names in an answer.
        let many: Vec<String> = (0..60).map(|n| format!("x-portcullis-{n}: forged")).collect();
        let mut sent: Vec<&str> = many.iter().map(String::as_str).collect();
        sent.push(&storefront);
        let refused = envoy.get("/catalog/1", &sent);
        assert_eq!(refused.status, 400, "{refused:?}");
    });
    told.await.unwrap();
}

/// What docs/forward-auth.md says of Envoy: it does as the route says, and the file lets it.
#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_the_route_keeps_back_does_not_reach_the_service() {
    let (mut door, service) = (Door::open().await, echo_service().await);
    let kept = json!({"name": "kept", "routes": [
        {"name": "items", "methods": ["GET"], "path": "/kept/{*}", "pass_token": false},
        {"name": "tools", "path": "/tools", "mcp": {}},
    ]});
    door.estate.put(Kind::Service, &kept);
    let policies = r#"@id("all") permit(principal in Role::"storefront", action, resource);"#;
    door.estate.put_policies(policies);
    let _retired = door.state.publish(Arc::new(door.estate.snapshot()));
    let told = tokio::task::spawn_blocking(move || {
        let envoy = Envoy::start(&configuration(door.address, service));
        let storefront = door.bearer("storefront");
        let token = storefront.rsplit(' ').next().unwrap();
        let accept = "accept: text/event-stream";
        let version = "mcp-protocol-version: 2025-11-25";
        // Cold, then from the caches.
        for (path, reaches) in [("/catalog/1", true), ("/kept/1", false), ("/kept/1", false), ("/tools", false)] {
            let allowed = envoy.get(path, &[&storefront, accept, version]);
            assert_eq!(allowed.status, 200, "{path}: {allowed:?}");
            let received = allowed.body.to_lowercase();
            assert!(received.contains("x-portcullis-workload: spiffe://test.example/storefront"), "{path}: {received}");
            assert_eq!(received.contains("\r\nauthorization:"), reaches, "{path}: {received}");
            assert_eq!(allowed.body.contains(token), reaches, "{path}: {received}");
        }
        // A denial is one also there, and says nothing more.
        assert_eq!(envoy.get("/kept/1", &[&door.bearer("agent")]).status, 403);
    });
    told.await.unwrap();
}

/// Everything but the question is as in the file for gRPC.
#[test]
fn http_differs_from_grpc_in_the_question_only() {
    let lines = |name: &str| -> Vec<String> {
        let text = file(name);
        let lines = text.lines().map(|line| line.split(" # ").next().unwrap().trim_end());
        lines.filter(|line| !line.trim_start().starts_with('#') && !line.is_empty()).map(str::to_owned).collect()
    };
    let (http, grpc) = (lines("sidecar-http.yaml"), lines("sidecar-grpc-tcp.yaml"));
    let only_grpc: Vec<&str> = grpc.iter().filter(|line| !http.contains(line)).map(|line| line.trim()).collect();
    let expected = [
        "decision_id: \"%DYNAMIC_METADATA(envoy.filters.http.ext_authz:decision_id)%\"",
        "reason: \"%DYNAMIC_METADATA(envoy.filters.http.ext_authz:reason)%\"",
        "workload: \"%DYNAMIC_METADATA(envoy.filters.http.ext_authz:workload)%\"",
        "grant_id: \"%DYNAMIC_METADATA(envoy.filters.http.ext_authz:grant_id)%\"",
        "revision: \"%DYNAMIC_METADATA(envoy.filters.http.ext_authz:revision)%\"",
        "cached: \"%DYNAMIC_METADATA(envoy.filters.http.ext_authz:cached)%\"",
        "grpc_service:",
        "envoy_grpc: { cluster_name: portcullis }",
        "timeout: 0.2s",
        "encode_raw_headers: true",
        "include_peer_certificate: true",
        "typed_extension_protocol_options:",
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions:",
        "\"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config:",
        "http2_protocol_options:",
        "connection_keepalive: { interval: 5s, timeout: 1s }",
        "- endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 9191 } } }",
    ];
    assert_eq!(only_grpc, expected);
    assert!(http.iter().any(|line| line.contains("timeout: 0.2s, ") || line.contains("timeout: 0.2s }")));
}
