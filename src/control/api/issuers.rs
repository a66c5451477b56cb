//! Issuers: who may vouch for workloads.
//!
//! Plane: control. Keys that cannot be used are refused here, one issuer vouches for a trust domain, and deleting one
//! ends every token that it has issued.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use super::extract::{Caller, Document, Name, Params, Precondition};
use super::problem::Problem;
use super::respond::{Page, PageQuery, document, json};
use super::{Api, named};
use crate::control::keys::KeyStatus;
use crate::control::rules;
use crate::control::store::Guard;
use crate::object::{Issuer, Jwks, Kind, Object};

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
    Document(issuer): Document<Issuer>,
) -> Result<Response, Problem> {
    named::same_name("name", &name, &issuer.name)?;
    Object::Issuer(Box::new(issuer.clone())).check()?;
    named::put_made(&api, &caller, "issuer.put", &precondition, (Kind::Issuer, &name), |index, stored| {
        let since = index.position().revision;
        let issuer = with_held_keys(issuer.clone(), stored.and_then(rules::as_issuer));
        rules::issuer(index, &issuer)?;
        Ok((Object::Issuer(Box::new(issuer)), vec![Guard::KindUnchanged { kind: Kind::Issuer, since }]))
    })
    .await
}

/// A document with `keys_from` and no keys leaves the keys to their source: those that were fetched from it stay, so that
/// putting the same document again does not revoke the issuer until the next fetch. Keys of another source do not stay.
fn with_held_keys(mut new: Issuer, held: Option<&Issuer>) -> Issuer {
    if let Some(held) = held
        && new.keys_from.is_some()
        && new.keys_from == held.keys_from
        && new.jwks == Jwks::default()
    {
        new.jwks = held.jwks.clone();
    }
    new
}

/// How the keys stand.
#[derive(Debug, Serialize)]
struct KeysShown<'a> {
    issuer: &'a str,
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
    let shown = KeysShown { issuer: &name, keys: issuer.jwks.keys.len(), status: api.keys.status(&name) };
    Ok(json(StatusCode::OK, &shown))
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(name): Name,
    precondition: Precondition,
) -> Result<Response, Problem> {
    let which = (Kind::Issuer, name.as_str());
    named::delete(&api, &caller, "issuer.delete", &precondition, which, |_, _| Ok(Vec::new())).await
}
