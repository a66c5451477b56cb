//! Integration tests: one binary, a module per concern. Real sockets on port 0, the real binary, the real Envoy.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, as the tests themselves do"
)]

mod agreement;
mod authzen;
mod authzen_door;
mod bench;
mod caddy;
#[path = "../../src/testing/certificates.rs"]
mod certificates;
mod check_door;
mod cli;
mod cli_grants;
mod cli_site;
mod credentials;
mod cve_classes;
mod decisions;
mod deployment;
mod door;
mod dpop;
mod end_to_end;
mod envoy;
mod envoy_config;
mod envoy_http;
mod exchange;
mod failure_mode;
mod forward_auth;
mod http_door;
mod mcp;
mod metrics;
mod mtls;
mod nginx;
mod oidc_provider;
mod openapi_document;
mod operators;
mod oracle;
mod reverse_proxy;
mod reverse_proxy_answers;
mod reverse_proxy_bulk;
mod reverse_proxy_decisions;
mod reverse_proxy_edges;
mod reverse_proxy_frames;
mod reverse_proxy_live;
mod reverse_proxy_mcp;
mod reverse_proxy_mcp_listing;
mod reverse_proxy_raw;
mod reverse_proxy_records;
mod reverse_proxy_svid;
mod reverse_proxy_system;
mod reverse_proxy_tls;
mod reverse_proxy_upstream;
mod running;
mod token_verify;
mod traefik;
mod workload_api;
mod workload_life;
