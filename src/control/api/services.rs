//! Services and their routes.
//!
//! Plane: control. Routes that claim the same request are refused, also across the services of one enforcement point.
//! What a live grant names cannot be taken away from under it: put back with a wider path, it would widen the grant.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::extract::{Caller, Document, Name, Params, Precondition};
use super::problem::Problem;
use super::respond::{Page, PageQuery, document};
use super::{Api, named};
use crate::control::index::Stored;
use crate::control::rules;
use crate::control::store::Guard;
use crate::object::{Kind, Object, Service};

pub(super) async fn list(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Result<Response, Problem> {
    Ok(Page::try_from(query)?.list(&api, Kind::Service, |_| true).await)
}

pub(super) async fn show(State(api): State<Arc<Api>>, Name(name): Name) -> Result<Response, Problem> {
    let stored = api.core.index().get(Kind::Service, &name);
    Ok(document(&api, &*stored.ok_or_else(|| Problem::not_found(format_args!("service `{name}`")))?))
}

pub(super) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(name): Name,
    precondition: Precondition,
    Document(service): Document<Service>,
) -> Result<Response, Problem> {
    named::same_name("name", &name, &service.name)?;
    let object = Object::Service(service.clone());
    named::put(&api, &caller, "service.put", &precondition, object, |index, stored| {
        let since = index.position().revision;
        rules::service(index, &api.config.points, &service)?;
        let mut guards = vec![Guard::KindUnchanged { kind: Kind::Service, since }];
        let kept: BTreeSet<&str> = service.routes.iter().map(|r| r.name.as_str()).collect();
        let old = stored.and_then(rules::as_service).map_or(&[][..], |s| s.routes.as_slice());
        let gone: BTreeSet<&str> = old.iter().map(|r| r.name.as_str()).filter(|n| !kept.contains(n)).collect();
        if !gone.is_empty() {
            refuse_if_held(&rules::live_grants_on(index, &name, Some(&gone)), "a route that it removes")?;
            guards.push(Guard::KindUnchanged { kind: Kind::Grant, since });
        }
        Ok(guards)
    })
    .await
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(name): Name,
    precondition: Precondition,
) -> Result<Response, Problem> {
    let which = (Kind::Service, name.as_str());
    named::delete(&api, &caller, "service.delete", &precondition, which, |index, _| {
        let since = index.position().revision;
        refuse_if_held(&rules::live_grants_on(index, &name, None), "this service")?;
        Ok(vec![Guard::KindUnchanged { kind: Kind::Grant, since }])
    })
    .await
}

fn refuse_if_held(grants: &[Arc<Stored>], what: &str) -> Result<(), Problem> {
    if grants.is_empty() {
        return Ok(());
    }
    let named: Vec<&str> = grants.iter().take(10).map(|g| &*g.key).collect();
    let more = grants.len().saturating_sub(named.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(Problem::conflict(format!("{what} has live grants or requests: {}{more}; revoke them first", named.join(", "))))
}
