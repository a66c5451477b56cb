//! Issuers: who may vouch for workloads.
//!
//! Plane: control. Keys that cannot be used are refused here, one issuer vouches for a trust domain, and deleting one
//! ends every token that it has issued. INVARIANT: keys that were fetched are replaced by their source only, so that an
//! old document does not put a revoked key back in force.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::extract::{Both, Caller, Name, Params, Precondition};
use super::problem::Problem;
use super::respond::{Page, PageQuery, document, json};
use super::{Api, named};
use crate::control::keys::KeyStatus;
use crate::control::rules;
use crate::control::store::Guard;
use crate::object::{FieldError, Issuer, Jwks, Kind, Object};

/// Whether a document has keys. An empty set is one, and says something else than none.
#[derive(Debug, Deserialize)]
pub(super) struct Given {
    jwks: Option<IgnoredAny>,
}

pub(super) async fn list(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Result<Response, Problem> {
    Ok(Page::try_from(query)?.list(&api, Kind::Issuer, |_| true).await)
}

pub(super) async fn show(State(api): State<Arc<Api>>, Name(name): Name) -> Result<Response, Problem> {
    let stored = api.core.index().get(Kind::Issuer, &name);
    Ok(document(&api, &*stored.ok_or_else(|| Problem::not_found(format_args!("issuer `{name}`")))?))
}

pub(super) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(name): Name,
    precondition: Precondition,
    Both(issuer, given): Both<Issuer, Given>,
) -> Result<Response, Problem> {
    named::same_name("name", &name, &issuer.name)?;
    not_our_own(&api, &name)?;
    Object::Issuer(Box::new(issuer.clone())).check()?;
    named::put_made(&api, &caller, "issuer.put", &precondition, (Kind::Issuer, &name), |index, stored| {
        let since = index.position().revision;
        let issuer = with_held_keys(issuer.clone(), given.jwks.is_some(), stored.and_then(rules::as_issuer))?;
        rules::issuer(index, &issuer)?;
        Ok((Object::Issuer(Box::new(issuer)), vec![Guard::KindUnchanged { kind: Kind::Issuer, since }]))
    })
    .await
}

/// The control plane's own issuer is kept by its keys.
fn not_our_own(api: &Api, name: &str) -> Result<(), Problem> {
    match &api.config.tokens {
        Some(tokens) if tokens.keys().name() == name => {
            let why = format!("`{name}` is this control plane itself; see `portcullis credential keys`");
            Err(Problem::conflict(why))
        }
        _ => Ok(()),
    }
}

/// A document with `keys_from` leaves the keys to their source. Those that were fetched from it stay, so that putting the
/// same document again changes nothing; keys of another source do not stay. Keys that the document has count until the
/// first fetch, and are refused when they are other than what was fetched: they would be older.
fn with_held_keys(mut new: Issuer, has_keys: bool, held: Option<&Issuer>) -> Result<Issuer, FieldError> {
    let same_source = held.filter(|held| new.keys_from.is_some() && new.keys_from == held.keys_from);
    new.keys_fetched = same_source.is_some_and(|held| held.keys_fetched);
    if new.keys_from.is_none() {
        return Ok(new);
    }
    let as_held = held.is_some_and(|held| new.jwks.says_the_same(&held.jwks, new.kind));
    if has_keys && !as_held {
        if new.jwks.keys.is_empty() {
            let why = "the keys come from `keys_from`, so an empty set would not stay; leave `jwks` out, and end the issuer \
                       with `portcullis revoke issuer`";
            return Err(FieldError::new("jwks", why));
        }
        if new.keys_fetched {
            let why = "is not the set that is held, and the keys come from `keys_from`; leave `jwks` out";
            return Err(FieldError::new("jwks", why));
        }
        return Ok(new);
    }
    match same_source {
        Some(held) => new.jwks = held.jwks.clone(),
        None if !has_keys => new.jwks = Jwks::default(),
        None => {}
    }
    Ok(new)
}

/// How the keys stand.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct KeysShown {
    /// The issuer's name.
    issuer: String,
    /// How many keys the set in force has, those of certificates included.
    keys: usize,
    /// Absent when an operator puts them.
    #[serde(flatten)]
    status: Option<KeyStatus>,
}

pub(super) async fn keys(State(api): State<Arc<Api>>, Name(name): Name) -> Result<Response, Problem> {
    let stored = api.core.index().get(Kind::Issuer, &name);
    let issuer = stored.as_deref().and_then(rules::as_issuer);
    let issuer = issuer.ok_or_else(|| Problem::not_found(format_args!("issuer `{name}`")))?;
    let shown = KeysShown { keys: issuer.jwks.keys.len(), status: api.keys.status(&name), issuer: name };
    Ok(json(StatusCode::OK, &shown))
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(name): Name,
    precondition: Precondition,
) -> Result<Response, Problem> {
    not_our_own(&api, &name)?;
    let which = (Kind::Issuer, name.as_str());
    named::delete(&api, &caller, "issuer.delete", &precondition, which, |_, _| Ok(Vec::new())).await
}
