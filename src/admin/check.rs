//! `POST /v1/check`: one decision, for `portcullis check` and for people. Plane: cross-cutting.
//!
//! Goes through the same gate as the doors, is counted and recorded as `door=check`, and with `explain` tells each
//! step. INVARIANT: it forwards nothing, so it holds no permit; the token it is given is neither logged nor echoed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::Sidecar;
use crate::authz::{Decision, Door, Header, Peer, Request};
use crate::cache::Step;

/// The request to decide on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckBody {
    /// As in `GET`.
    pub method: String,
    /// Path and query, as sent.
    pub path: String,
    /// `:authority` or `Host`.
    #[serde(default)]
    pub host: String,
    /// Headers; a list sends one several times.
    #[serde(default)]
    pub headers: BTreeMap<String, HeaderValues>,
    /// The client's certificate, as PEM, as if a proxy had verified its chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The identity in that certificate, where the proxy tells it apart: Envoy's `source.principal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// The address of who sends: what `trusted_proxies` may list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Whether the proxy has sent part of the body only.
    #[serde(default)]
    pub partial_body: bool,
    /// The whole body, when the proxy has sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Evaluate without the caches and tell each step.
    #[serde(default)]
    pub explain: bool,
}

/// One value of a header, or several.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HeaderValues {
    /// One.
    One(String),
    /// Several headers of one name.
    Many(Vec<String>),
}

/// The decision.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckAnswer {
    /// Its id.
    pub decision_id: String,
    /// Whether the request would go through.
    pub allowed: bool,
    /// Why, in code.
    pub reason: String,
    /// Why, in words.
    pub title: String,
    /// The HTTP status that the caller would get from a door, or 200.
    pub status: u16,
    /// The authenticated workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// The credential's subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Who acts, when it is not the subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// `service/route`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The grant it rests on or tells of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant_id: Option<String>,
    /// Ids of the policies that decided.
    pub policies: Vec<String>,
    /// `EPOCH.REV` of the state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// How long ago that state was confirmed current.
    pub behind_ms: u64,
    /// Whether the decision cache answered.
    pub cached: bool,
    /// More about the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The body that the caller would get from a door.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<serde_json::Value>,
    /// Each step, when asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<serde_json::Value>,
}

pub(super) async fn check(State(sidecar): State<Sidecar>, body: axum::body::Bytes) -> Response {
    let mut json = serde_json::Deserializer::from_slice(&body);
    let parsed: Result<CheckBody, _> = serde_path_to_error::deserialize(&mut json);
    let asked = match parsed.and_then(|asked| {
        json.end()
            .map(|()| asked)
            .map_err(|e| serde_path_to_error::Error::new(serde_path_to_error::Track::new().path(), e))
    }) {
        Ok(asked) => asked,
        Err(error) => return bad_request(&error),
    };
    // A cold check verifies a signature and may evaluate many policies: not on the threads that answer probes.
    match tokio::task::spawn_blocking(move || decide(&sidecar, &asked)).await {
        Ok(answer) => Json(answer).into_response(),
        Err(_panicked) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn decide(sidecar: &Sidecar, asked: &CheckBody) -> CheckAnswer {
    let request = request(asked);
    let mut outcome = sidecar.telemetry.begin(Door::Check);
    let (decision, steps) =
        if asked.explain { sidecar.gate.explain(&request) } else { (sidecar.gate.check(&request), Vec::new()) };
    let answer = CheckAnswer::new(&decision, &steps, sidecar.grant_request_url.as_deref());
    outcome.finish(decision, request.method, request.path);
    answer
}

fn request(asked: &CheckBody) -> Request<'_> {
    let headers = asked
        .headers
        .iter()
        .flat_map(|(name, values)| {
            values.as_slice().iter().map(move |value| Header { name: name.as_bytes(), value: value.as_bytes() })
        })
        .collect();
    let (method, path, host) = (&asked.method, &asked.path, &asked.host);
    let (principal, certificate) = (asked.principal.as_deref(), asked.certificate.as_deref());
    let peer = Peer { principal, certificate, address: asked.address };
    let (scheme, partial_body) = ("https", asked.partial_body);
    let body = asked.body.as_ref().map(String::as_bytes);
    Request { door: Door::Check, method, path, host, scheme, headers, partial_body, body, peer }
}

fn bad_request(error: &serde_path_to_error::Error<serde_json::Error>) -> Response {
    let body = serde_json::json!({
        "type": "https://portcullis.dev/problems/request.invalid", "title": "the check cannot be parsed", "status": 400,
        "errors": [{"field": error.path().to_string(), "message": error.inner().to_string()}],
    });
    let headers = [(header::CONTENT_TYPE, "application/problem+json")];
    (StatusCode::BAD_REQUEST, headers, body.to_string()).into_response()
}

// === impl CheckAnswer ===

impl CheckAnswer {
    /// Everything about a decision; also what an offline check prints.
    pub fn new(decision: &Decision, steps: &[Step], grant_request_url: Option<&str>) -> Self {
        let text = |value: &Option<std::sync::Arc<str>>| value.as_deref().map(str::to_owned);
        let problem = decision.permit().is_none().then(|| crate::authz::problem::body(decision, grant_request_url));
        Self {
            decision_id: decision.id.to_string(),
            allowed: decision.permit().is_some(),
            reason: decision.reason.code().to_owned(),
            title: decision.reason.title().to_owned(),
            status: decision.reason.http_status(),
            workload: text(&decision.workload),
            subject: text(&decision.subject),
            actor: text(&decision.actor),
            resource: text(&decision.resource),
            action: text(&decision.action),
            grant_id: decision.grant.map(|g| g.to_string()),
            policies: decision.policies.iter().map(ToString::to_string).collect(),
            revision: decision.position.map(|p| p.to_string()),
            behind_ms: decision.behind_ms,
            cached: decision.cached,
            detail: text(&decision.detail),
            problem: problem.and_then(|body| serde_json::from_slice(&body).ok()),
            steps: steps.iter().filter_map(|s| serde_json::to_value(s).ok()).collect(),
        }
    }
}

// === impl HeaderValues ===

impl HeaderValues {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

impl std::fmt::Debug for HeaderValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} value(s)", self.as_slice().len())
    }
}
