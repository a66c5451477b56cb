//! `static-allow`, a tonic server that answers OK without looking: the floor of any ext_authz server in Rust; and the
//! request that it and Portcullis are compared on. It lives in `benches/` and nowhere else.
//! Decides nothing, so it is never linked into anything that does.

use std::collections::HashMap;

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request as AttributeRequest};
use envoy_types::pb::envoy::service::auth::v3::authorization_server::Authorization;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse, OkHttpResponse};
use envoy_types::pb::google::rpc;

/// What an ordinary client sends, beside its token.
pub(crate) const ORDINARY_HEADERS: [(&str, &str); 13] = [
    ("accept", "application/json"),
    ("accept-encoding", "gzip, br"),
    ("accept-language", "en"),
    ("cache-control", "no-cache"),
    ("content-type", "application/json"),
    ("user-agent", "storefront/1.7 (linux)"),
    ("x-b3-traceid", "80f198ee56343ba864fe8b2a57d3eff7"),
    ("x-b3-spanid", "e457b5a2e4d86bd1"),
    ("x-envoy-attempt-count", "1"),
    ("x-envoy-internal", "true"),
    ("x-forwarded-for", "10.1.2.3"),
    ("x-forwarded-proto", "https"),
    ("x-tenant", "acme"),
];

pub(crate) struct StaticAllow;

#[tonic::async_trait]
impl Authorization for StaticAllow {
    async fn check(&self, _: tonic::Request<CheckRequest>) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        Ok(tonic::Response::new(CheckResponse {
            status: Some(rpc::Status::default()),
            http_response: Some(HttpResponse::OkResponse(OkHttpResponse::default())),
            ..CheckResponse::default()
        }))
    }
}

/// What Envoy sends for a browser-like request: about twenty headers.
pub(crate) fn check_request(token: &str, n: usize) -> CheckRequest {
    let id = format!("{n:08x}-4be1-4d3a-9d2b-000000000000");
    let mut headers: HashMap<String, String> =
        [(":authority", "shop.example"), (":method", "GET"), (":path", "/catalog/1"), (":scheme", "https")]
            .into_iter()
            .chain(ORDINARY_HEADERS)
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
    headers.insert("authorization".to_owned(), format!("Bearer {token}"));
    headers.insert("x-request-id".to_owned(), id);
    let http = HttpRequest {
        method: "GET".to_owned(),
        path: "/catalog/1".to_owned(),
        host: "shop.example".to_owned(),
        scheme: "https".to_owned(),
        protocol: "HTTP/2".to_owned(),
        headers,
        ..HttpRequest::default()
    };
    let request = AttributeRequest { http: Some(http), ..AttributeRequest::default() };
    CheckRequest { attributes: Some(AttributeContext { request: Some(request), ..AttributeContext::default() }) }
}
