//! The keys that the control plane signs tokens with: listing, rotating, revoking them; and the published key set.
//!
//! Plane: control. What is published is read by anybody, and is exactly what enforcement points are sent. Private halves
//! are not here.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;

use super::Api;
use super::extract::{Caller, Name, Optional, Params};
use super::problem::Problem;
use super::respond::{Page, PageQuery, WaitQuery, Written, insert, json};
use crate::control::store::Committed;
use crate::control::token_keys::{Published, TokenKeyError, TokenKeys};
use crate::object::{Kind, SigningKey};
use crate::wire::Revision;

/// What there is not where the configuration has no `tokens`.
pub(super) const NONE: &str = "issuer of tokens here: `tokens` is not configured";

/// How a key is to be followed by the next.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyRotation {
    /// Now, although not everybody may have heard of the next key yet: those deny its tokens until they have.
    #[serde(default)]
    at_once: bool,
}

/// Why a key is revoked.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyRevocation {
    #[serde(default)]
    reason: String,
}

pub(super) async fn list(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Result<Response, Problem> {
    Ok(Page::try_from(query)?.list(&api, Kind::SigningKey, |_| true).await)
}

pub(super) async fn rotate(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Params(query): Params<WaitQuery>,
    Optional(KeyRotation { at_once }): Optional<KeyRotation>,
) -> Result<Response, Problem> {
    let changed = keys(&api)?.rotate(&caller.intent("signing_key.rotate"), at_once).await?;
    answer(&api, changed, &query).await
}

pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(kid): Name,
    Params(query): Params<WaitQuery>,
    Optional(KeyRevocation { reason }): Optional<KeyRevocation>,
) -> Result<Response, Problem> {
    crate::object::check_text("reason", &reason, 1000)?;
    let changed = keys(&api)?.revoke(&caller.intent("signing_key.revoke"), &kid, &reason).await?;
    answer(&api, changed, &query).await
}

async fn answer(
    api: &Api,
    (committed, key): (Option<Committed>, SigningKey),
    query: &WaitQuery,
) -> Result<Response, Problem> {
    let wait = query.duration()?;
    let written = Written::new(api, committed, Revision(0), Some(key));
    let written = match committed {
        Some(c) => written.wait(api, c.position, c.at, wait).await,
        None => written,
    };
    Ok(written.respond(StatusCode::OK))
}

/// The key set (RFC 7517), for whoever verifies tokens without an enforcement point.
pub(super) async fn jwks(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let published = keys(&api)?.published();
    Ok(public(&published, &published.jwks()))
}

/// The same as a SPIFFE trust bundle.
pub(super) async fn spiffe_bundle(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let published = keys(&api)?.published();
    Ok(public(&published, &published.spiffe_bundle()))
}

fn public(published: &Published, body: &Value) -> Response {
    let mut response = json(StatusCode::OK, body);
    let cache = format!("public, max-age={}", published.cache.as_secs());
    insert(response.headers_mut(), header::CACHE_CONTROL, &cache);
    response
}

/// The keys, if this control plane issues tokens.
fn keys(api: &Api) -> Result<&TokenKeys, Problem> {
    api.config.tokens.as_ref().map(|exchange| &**exchange.keys()).ok_or_else(|| Problem::not_found(NONE))
}

impl From<TokenKeyError> for Problem {
    fn from(error: TokenKeyError) -> Self {
        let detail = error.to_string();
        match error {
            TokenKeyError::Unknown(kid) => Self::not_found(format_args!("signing key `{kid}` in use")),
            TokenKeyError::NoSuccessor | TokenKeyError::Taken(_) => Self::conflict(detail),
            TokenKeyError::Vault(error) => {
                tracing::error!(%error, "a private key could not be written");
                Self::unavailable("a private key could not be written")
            }
            TokenKeyError::Commit(error) => error.into(),
        }
    }
}
