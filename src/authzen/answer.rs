//! What is answered: decisions as the API has them, and errors with a status and a sentence.
//!
//! Pure; hot path. INVARIANT: `"decision":true` is written for a permit and for nothing else. Whoever asks is authenticated,
//! so it gets the full reason; whoever is not learns the family. No token is echoed.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::Config;
use super::body::{Part, Wanted};
use super::call::{Decisions, Made};
use super::names::{ROUTE, SERVICE, Subject};
use super::page::Page;
use crate::authz::{Decision, Found, problem};

/// One decision or a list of them.
pub(super) fn decisions(decisions: &Decisions, grant_request_url: Option<&str>) -> Response<Bytes> {
    let mut all = decisions.all.iter().map(|made| decision(made, grant_request_url));
    let body = match decisions.is_list {
        true => json!({ "evaluations": all.collect::<Vec<_>>() }),
        // Without any, which cannot be, nothing is permitted.
        false => all.next().unwrap_or_else(|| json!({ "decision": false })),
    };
    of_json(&body)
}

fn decision(made: &Made, grant_request_url: Option<&str>) -> Value {
    let Made { decision, unreadable, .. } = made;
    let mut context = Map::new();
    context.insert("reason".to_owned(), decision.reason.code().into());
    context.insert("decision_id".to_owned(), decision.id.to_string().into());
    let allowed = decision.permit().is_some();
    if !allowed {
        let why = decision.detail.as_deref().unwrap_or(decision.reason.title());
        context.insert("reason_admin".to_owned(), json!({ "en": why }));
        let problem: Option<Value> = serde_json::from_slice(&problem::body(decision, grant_request_url)).ok();
        if let Some(hint) = problem.and_then(|mut problem| problem.get_mut("grant_request").map(Value::take)) {
            context.insert("grant_request".to_owned(), hint);
        }
    }
    if let Some(why) = unreadable {
        context.insert("error".to_owned(), json!({ "status": 400, "message": why }));
    }
    json!({ "decision": allowed, "context": context })
}

/// A page of results.
pub(super) fn found(part: Part, wanted: &Wanted, found: &Found, page: &Page, config: &Config) -> Response<Bytes> {
    let entity = |kind: &str, id: &str| json!({ "type": kind, "id": id });
    let result = |name: &Arc<str>| match part {
        Part::Subject => {
            let prefix = Subject::prefix(wanted.subject_type(), config).unwrap_or_default();
            entity(wanted.subject_type(), name.strip_prefix(prefix).unwrap_or(name))
        }
        Part::Resource => entity(wanted.resource_type(), name),
        Part::Action => json!({ "name": &**name }),
    };
    let results: Vec<Value> = found.names.iter().map(result).collect();
    let page = json!({ "next_token": page.next(found.next.as_deref()), "count": results.len() });
    of_json(&json!({ "results": results, "page": page }))
}

/// Whether resources of this type can be listed: the state knows them all.
pub(super) fn can_list(kind: &str, config: &Config) -> bool {
    kind == ROUTE || kind == SERVICE || config.resource_types.iter().all(|known| known.name != kind)
}

/// An error about the whole call, from a decision: its status, its headers and a sentence.
pub(super) fn refusal(decision: &Decision) -> Response<Bytes> {
    let status = StatusCode::from_u16(decision.reason.http_status()).ok().filter(|status| !status.is_success());
    let mut response = error(status.unwrap_or(StatusCode::FORBIDDEN), problem::title(decision));
    for (name, value) in problem::headers(decision) {
        if name == CONTENT_TYPE {
            continue;
        }
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// The same, with what is wrong with its body.
pub(super) fn unreadable(decision: &Decision, why: &str) -> Response<Bytes> {
    let mut response = refusal(decision);
    *response.body_mut() = Bytes::from(why.to_owned());
    response
}

/// An error that no decision tells of.
pub(super) fn error(status: StatusCode, why: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(why.to_owned()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The metadata of this decision point (section 9 of the API).
pub(super) fn metadata(url: &str) -> Bytes {
    let at = |path: &str| format!("{url}/access/v1/{path}");
    let body = json!({
        "policy_decision_point": url,
        "access_evaluation_endpoint": at("evaluation"),
        "access_evaluations_endpoint": at("evaluations"),
        "search_subject_endpoint": at("search/subject"),
        "search_resource_endpoint": at("search/resource"),
        "search_action_endpoint": at("search/action"),
    });
    body.to_string().into()
}

fn of_json(body: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
