//! What a denial says: the RFC 9457 body and the response headers.
//!
//! Pure rendering; doors send it as it is, so that they cannot disagree. INVARIANT: a caller that was not
//! authenticated learns the family of the reason and nothing else, by [`disclosed_reason`], which is the only place
//! that decides this; records and metrics hold the full code. No byte of the client's request is in it, but the
//! name of the MCP tool in what an authenticated caller may ask for.

use std::borrow::Cow;

use serde::Serialize;
use smallvec::{SmallVec, smallvec};

use super::decision::{Decision, GrantHint};
use super::mcp::McpCall;
use super::proof::Challenge;
use super::reason::Reason;
use crate::credential::DPOP_ALGORITHMS;

#[cfg(test)]
mod tests;

/// The media type of [`body`].
pub const CONTENT_TYPE: &str = "application/problem+json";

const BEARER: &str = r#"Bearer realm="portcullis""#;

/// Seconds, the same for every reason of the family.
const RETRY_AFTER: &str = "1";

/// The response headers of a denial, names in lower case.
pub type DenyHeaders = SmallVec<[(&'static str, Cow<'static, str>); 6]>;

/// The reason that the caller may learn: the full code for an authenticated one, else its family.
pub fn disclosed_reason(decision: &Decision) -> &'static str {
    if decision.is_authenticated() { decision.reason.code() } else { decision.reason.family() }
}

/// What is said of a denial in one sentence.
pub fn title(decision: &Decision) -> &'static str {
    if decision.is_authenticated() { decision.reason.title() } else { family_title(disclosed_reason(decision)) }
}

/// The body of a denial. `grant_request_url` is where a grant can be asked for.
pub fn body(decision: &Decision, grant_request_url: Option<&str>) -> Vec<u8> {
    let authenticated = decision.is_authenticated();
    let reason = disclosed_reason(decision);
    let title = title(decision);
    // On an MCP route a grant is for tools: one without them would be for every tool, whatever was denied.
    let narrow = decision.mcp.as_ref().is_none_or(|call| call.tool().is_some());
    let told = authenticated && narrow && decision.reason.is_entitlement();
    let hint = decision.grant_request.as_deref().filter(|_| told);
    let problem = Problem {
        kind: format!("https://portcullis.dev/problems/{reason}"),
        title,
        status: decision.reason.http_status(),
        reason,
        decision_id: decision.id.to_string(),
        grant_request: hint.map(|hint| GrantRequest::new(decision, hint, grant_request_url)),
    };
    // Serialising plain structs cannot fail; a denial without a body would still be a denial.
    serde_json::to_vec(&problem).unwrap_or_default()
}

/// The response headers of a denial.
pub fn headers(decision: &Decision) -> DenyHeaders {
    let mut headers: DenyHeaders = smallvec![
        ("content-type", Cow::Borrowed(CONTENT_TYPE)),
        ("cache-control", Cow::Borrowed("no-store")),
        ("x-portcullis-reason", Cow::Borrowed(disclosed_reason(decision))),
        ("x-portcullis-decision-id", Cow::Owned(decision.id.to_string())),
    ];
    match (decision.reason.http_status(), &decision.mcp) {
        (401, _) => headers.push(("www-authenticate", challenge(decision))),
        (403, Some(call)) => headers.push(("www-authenticate", insufficient_scope(call, decision).into())),
        (503, _) => headers.push(("retry-after", Cow::Borrowed(RETRY_AFTER))),
        _ => {}
    }
    if let Some(nonce) = &decision.dpop_nonce {
        headers.push(("dpop-nonce", Cow::Owned(nonce.clone())));
    }
    headers
}

#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'a str,
    status: u16,
    reason: &'a str,
    decision_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant_request: Option<GrantRequest<'a>>,
}

/// A grant request that can be submitted as it stands.
#[derive(Serialize)]
struct GrantRequest<'a> {
    workload: &'a str,
    resources: [&'a str; 1],
    actions: Vec<&'a str>,
    duration_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    uses: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conditions: Option<Conditions<'a>>,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    submit_to: Option<&'a str>,
}

/// What the grant is to be limited to: the call that was denied, and none of another tool.
#[derive(Serialize)]
struct Conditions<'a> {
    tools: [&'a str; 1],
}

// === impl GrantRequest ===

impl<'a> GrantRequest<'a> {
    fn new(decision: &'a Decision, hint: &'a GrantHint, submit_to: Option<&'a str>) -> Self {
        let actions: Vec<&str> = hint.actions.iter().map(|a| &**a).collect();
        Self {
            workload: &hint.workload,
            resources: [&hint.resource],
            duration_seconds: hint.terms.max_duration_seconds,
            uses: hint.terms.max_uses,
            conditions: decision.mcp.as_ref().and_then(|call| call.tool()).map(|tool| Conditions { tools: [tool] }),
            reason: format!("denied {} on {}, decision {}", actions.join(", "), hint.resource, decision.id),
            actions,
            submit_to,
        }
    }
}

/// One sentence about a family of reasons.
fn family_title(family: &str) -> &'static str {
    match family {
        "credential" => "a valid workload credential is needed",
        "revoked" => "the credential or permission has been revoked",
        "entitlement" => "this needs a grant",
        "policy" => "policy does not permit this",
        "input" => "the request is not acceptable",
        _ => "the enforcement point cannot answer now",
    }
}

/// RFC 6750, section 3, and RFC 9449, section 7.1: no error code for a request without a credential. A bad proof is
/// `invalid_token` like a bad token, so that who found a token does not learn that it is good; only the need for a nonce
/// has to be told (RFC 9449, section 9).
fn challenge(decision: &Decision) -> Cow<'static, str> {
    let error = match (decision.challenge, decision.reason) {
        (Challenge::DpopNonce, _) => r#", error="use_dpop_nonce""#,
        (_, Reason::CredentialMissing) => "",
        _ => r#", error="invalid_token""#,
    };
    let error = &*match &decision.mcp {
        None => Cow::Borrowed(error),
        // Before the message has been read, no tool is known.
        Some(call) => Cow::Owned(format!("{error}{}", guidance(call, None))),
    };
    match decision.challenge {
        Challenge::Bearer => match error {
            "" => Cow::Borrowed(BEARER),
            error => Cow::Owned(format!("{BEARER}{error}")),
        },
        Challenge::Dpop | Challenge::DpopNonce => Cow::Owned(dpop(error)),
        Challenge::Either => Cow::Owned(format!("{}, {BEARER}{error}", dpop(error))),
        // The draft defines no parameters (draft-ietf-wimse-wpt-02, section 2.1).
        Challenge::Wpt => Cow::Borrowed("WPT"),
    }
}

/// What a client of an MCP server is told that is known and may not do this: which scopes to come back with, all of them at
/// once (RFC 6750, section 3.1; MCP, "Scope Challenge Handling").
fn insufficient_scope(call: &McpCall, decision: &Decision) -> String {
    let scheme = match decision.challenge {
        Challenge::Dpop | Challenge::DpopNonce => format!(r#"DPoP realm="portcullis", algs="{DPOP_ALGORITHMS}""#),
        _ => BEARER.to_owned(),
    };
    format!(r#"{scheme}, error="insufficient_scope"{}"#, guidance(call, decision.action.as_deref()))
}

/// The scopes that are needed, and where the server's metadata is (RFC 9728, section 5.1). None of it is the client's text,
/// and what routes say stands between quotes as it is.
fn guidance(call: &McpCall, action: Option<&str>) -> String {
    let scopes = call.terms.scopes(call.tool(), action);
    let scope = if scopes.is_empty() { String::new() } else { format!(r#", scope="{scopes}""#) };
    let metadata = call.terms.metadata_url().map(|url| format!(r#", resource_metadata="{url}""#));
    scope + &metadata.unwrap_or_default()
}

fn dpop(error: &str) -> String {
    format!(r#"DPoP realm="portcullis", algs="{DPOP_ALGORITHMS}"{error}"#)
}
