//! `POST /v1/token`: token exchange (RFC 8693) over HTTP.
//!
//! Plane: control. Anybody may ask: who asks is said by the tokens in the form. Errors are those of OAuth (RFC 6749, section
//! 5.2) and not problem documents, because clients of OAuth read them. Nothing of an answer may be kept.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use super::Api;
use super::extract::RequestId;
use super::operation::FORM;
use super::problem::Problem;
use super::respond::{insert, json};
use crate::control::exchange::{Asked, Issued, Refused, Shown};
use crate::object::GrantId;

/// What is asked for (RFC 8693, section 2.1), as a form.
#[derive(Debug, schemars::JsonSchema)]
#[expect(dead_code, reason = "it describes what `Asked` reads")]
pub(super) struct TokenForm {
    /// `urn:ietf:params:oauth:grant-type:token-exchange`
    grant_type: String,
    /// The workload's own token.
    subject_token: String,
    /// `urn:ietf:params:oauth:token-type:jwt`
    subject_token_type: String,
    /// The token of the workload that is to act for it.
    actor_token: Option<String>,
    /// As `subject_token_type`.
    actor_token_type: Option<String>,
    /// The service that the token is to be for, by name; this or `resource`.
    audience: Option<String>,
    /// The service, by a URL that it is reached at.
    resource: Option<String>,
    /// Actions with spaces between them. Without it, all that the grant gives.
    scope: Option<String>,
    /// The grant to use. Without it, the longest-lasting that covers this.
    grant_id: Option<GrantId>,
    /// `urn:ietf:params:oauth:token-type:access_token`, or `…:jwt`.
    requested_token_type: Option<String>,
}

/// A token that was issued (RFC 8693, section 2.2.1).
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub(super) struct TokenAnswer {
    /// The token.
    access_token: String,
    /// The type that was asked for.
    issued_token_type: String,
    /// `DPoP` when it is bound to the key of the request's DPoP proof, else `Bearer`.
    token_type: String,
    /// How long it is good, in seconds: 300 at most.
    expires_in: u64,
    /// The actions that it is for, with spaces between them.
    scope: String,
    /// The grant that it is tied to.
    grant_id: GrantId,
}

/// Why no token was issued (RFC 6749, section 5.2).
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub(super) struct TokenRefused {
    /// `invalid_request`, `invalid_target`, `invalid_scope`, `invalid_dpop_proof`, `unsupported_grant_type`,
    /// `access_denied`, `authorization_pending`, `slow_down` or `temporarily_unavailable`.
    error: String,
    /// One sentence about it.
    error_description: String,
    /// The reason code; only its family for who has not shown a good token.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The grant or request that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    grant_id: Option<GrantId>,
    /// A request for the grant that is missing: post it as it stands where `submit_to` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    grant_request: Option<Value>,
}

pub(super) async fn exchange(
    State(api): State<Arc<Api>>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let exchange = api.config.tokens.as_ref().ok_or_else(|| Problem::not_found(super::signing_keys::NONE))?;
    let answer = match ask(&headers, body, request_id) {
        Ok((asked, shown)) => exchange.exchange(asked, shown).await,
        Err(refused) => Err(refused),
    };
    Ok(match answer {
        Ok(issued) => {
            let mut response = json(StatusCode::OK, &TokenAnswer::from(&issued));
            // Whoever is told this by the client knows the grant.
            let position = api.core.index().position().to_string();
            insert(response.headers_mut(), header::HeaderName::from_static("x-portcullis-position"), &position);
            response
        }
        Err(refused) => refusal(refused, exchange.keys().issuer()),
    })
}

fn ask(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    request_id: Arc<str>,
) -> Result<(Asked, Shown), Refused> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let media_type = text(header::CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case(FORM) {
        return Err(Refused::request(format!("the body is not `{FORM}`")));
    }
    let body = body.map_err(|_too_large_or_cut| Refused::request("the body is too large, or was cut off"))?;
    let mut proofs = headers.get_all("dpop").iter();
    let dpop = proofs.next().map(|value| value.to_str().map(str::to_owned));
    let dpop = dpop.transpose().map_err(|_not_text| Refused::request("`DPoP` is not text"))?;
    if proofs.next().is_some() {
        return Err(Refused::request("there are two `DPoP` headers"));
    }
    Ok((Asked::parse(&body)?, Shown { dpop, certificate: None, request_id }))
}

fn refusal(refused: Refused, issuer: &str) -> Response {
    let status = StatusCode::from_u16(refused.status).unwrap_or(StatusCode::BAD_REQUEST);
    let grant_request = refused.grant_request.and_then(|request| {
        let mut request = serde_json::to_value(request).ok()?;
        request.as_object_mut()?.insert("submit_to".to_owned(), format!("{issuer}/v1/grant-requests").into());
        Some(request)
    });
    let body = TokenRefused {
        error: refused.error.to_owned(),
        error_description: refused.description,
        reason: refused.reason.map(str::to_owned),
        grant_id: refused.grant,
        grant_request,
    };
    let mut response = json(status, &body);
    if let Some(wait) = refused.retry_after {
        insert(response.headers_mut(), header::RETRY_AFTER, &wait.as_secs().max(1).to_string());
    }
    response
}

impl From<&Issued> for TokenAnswer {
    fn from(issued: &Issued) -> Self {
        Self {
            access_token: issued.token.reveal().to_owned(),
            issued_token_type: issued.issued_token_type.to_owned(),
            token_type: issued.token_type.to_owned(),
            expires_in: issued.expires_in,
            scope: issued.scope.clone(),
            grant_id: issued.grant,
        }
    }
}
