//! Issuers: who may vouch for workloads.
//!
//! Plane: control. Keys that cannot be used are refused here, one issuer vouches for a trust domain, and deleting one
//! ends every token that it has issued.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::extract::{Caller, Document, Name, Params, Precondition};
use super::problem::Problem;
use super::respond::{Page, PageQuery, document};
use super::{Api, named};
use crate::control::rules;
use crate::control::store::Guard;
use crate::object::{Issuer, Kind, Object};

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
    let object = Object::Issuer(Box::new(issuer.clone()));
    named::put(&api, &caller, "issuer.put", &precondition, object, |index, _| {
        let since = index.position().revision;
        rules::issuer(index, &issuer)?;
        Ok(vec![Guard::KindUnchanged { kind: Kind::Issuer, since }])
    })
    .await
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
