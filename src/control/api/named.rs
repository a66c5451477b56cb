//! Writing one named object: create, replace, or find it as wanted already; and deleting one.
//!
//! Plane: control. Shared by issuers, workloads and services.

use axum::http::{StatusCode, header};
use axum::response::Response;
use serde_json::value::RawValue;

use super::Api;
use super::extract::{Caller, Precondition, etag};
use super::problem::Problem;
use super::respond::{Written, insert};
use crate::control::core::Plan;
use crate::control::index::{Index, Stored};
use crate::control::store::{Expect, Guard, Write};
use crate::object::{Kind, Object};

/// Writes `object`. `check` sees the index and the stored version, and answers what its verdict rests on.
pub(super) async fn put(
    api: &Api,
    caller: &Caller,
    action: &'static str,
    precondition: &Precondition,
    object: Object,
    check: impl Fn(&Index, Option<&Stored>) -> Result<Vec<Guard>, Problem> + Send + Sync,
) -> Result<Response, Problem> {
    object.check()?;
    put_made(api, caller, action, precondition, (object.kind(), &object.key()), |index, stored| {
        Ok((object.clone(), check(index, stored)?))
    })
    .await
}

/// Writes the object that `make` makes of the index and the stored version, with what its verdict rests on.
pub(super) async fn put_made(
    api: &Api,
    caller: &Caller,
    action: &'static str,
    precondition: &Precondition,
    (kind, key): (Kind, &str),
    make: impl Fn(&Index, Option<&Stored>) -> Result<(Object, Vec<Guard>), Problem> + Send + Sync,
) -> Result<Response, Problem> {
    let (committed, (stored, object)) = api
        .core
        .transact(&caller.intent(action), |index| {
            let stored = index.get(kind, key);
            precondition.check(stored.as_deref())?;
            let (object, guards) = make(index, stored.as_deref())?;
            let expect = stored.as_ref().map_or(Expect::Absent, |s| Expect::Revision(s.revision));
            let unchanged = stored.as_ref().is_some_and(|s| s.object.as_ref() == Some(&object));
            let changes = if unchanged { Vec::new() } else { vec![Write::put(&object, expect)] };
            Ok::<_, Problem>(Plan { guards, changes, answer: (stored, object) })
        })
        .await?;
    let unchanged = stored.as_ref().map_or(crate::wire::Revision(0), |s| s.revision);
    let revision = committed.map_or(unchanged, |c| c.position.revision);
    let document: Option<Box<RawValue>> = serde_json::from_slice(&object.to_json()).ok();
    let status = if stored.is_some() { StatusCode::OK } else { StatusCode::CREATED };
    let mut response = Written::new(api, committed, unchanged, document).respond(status);
    insert(response.headers_mut(), header::ETAG, &etag(revision));
    Ok(response)
}

/// Deletes an object. `check` sees the index and the stored version, and answers what its verdict rests on.
pub(super) async fn delete(
    api: &Api,
    caller: &Caller,
    action: &'static str,
    precondition: &Precondition,
    (kind, key): (Kind, &str),
    check: impl Fn(&Index, &Stored) -> Result<Vec<Guard>, Problem> + Send + Sync,
) -> Result<Response, Problem> {
    let (committed, ()) = api
        .core
        .transact(&caller.intent(action), |index| {
            let stored = index.get(kind, key).ok_or_else(|| Problem::not_found(format_args!("{kind} `{key}`")))?;
            precondition.check(Some(&stored))?;
            let guards = check(index, &stored)?;
            let changes = vec![Write::delete(kind, key, Expect::Revision(stored.revision))];
            Ok::<_, Problem>(Plan { guards, changes, answer: () })
        })
        .await?;
    let nothing: Option<()> = None;
    Ok(Written::new(api, committed, crate::wire::Revision(0), nothing).respond(StatusCode::OK))
}

/// Refuses a document whose name is not that of its path.
pub(super) fn same_name(field: &str, path: &str, document: &str) -> Result<(), Problem> {
    if path == document {
        return Ok(());
    }
    let message = format!("is `{document}`, the path says `{path}`");
    Err(Problem::invalid(crate::object::FieldError::new(field, message)))
}
