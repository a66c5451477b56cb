//! Workloads: registering them, and retiring them with everything that they hold.
//!
//! Plane: control. INVARIANT: retiring ends the workload, its grants and its requests in one revision, and its id is
//! never registered again.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use uuid::Uuid;

use super::extract::{self, Caller, Document, Name, Params, Precondition};
use super::problem::Problem;
use super::respond::{Page, PageQuery, Written, document};
use super::{Api, named};
use crate::control::core::Plan;
use crate::control::index::{Index, Stored};
use crate::control::rules;
use crate::control::store::{Expect, Guard, Write};
use crate::grant;
use crate::object::{FieldError, GrantId, Kind, Object, Revocation, Target, Workload};
use crate::wire::Revision;

/// Query of a retirement.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RetireQuery {
    /// For the record.
    #[schemars(length(max = 1000))]
    reason: Option<String>,
    /// How long to wait for the receipt, `1s` to `60s`; without it there is none.
    wait: Option<String>,
}

pub(super) async fn list(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Result<Response, Problem> {
    Ok(Page::try_from(query)?.list(&api, Kind::Workload, |_| true).await)
}

pub(super) async fn show(State(api): State<Arc<Api>>, Name(id): Name) -> Result<Response, Problem> {
    let stored = api.core.index().get(Kind::Workload, &id);
    Ok(document(&api, &*stored.ok_or_else(|| Problem::not_found(format_args!("workload `{id}`")))?))
}

pub(super) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(id): Name,
    precondition: Precondition,
    Document(workload): Document<Workload>,
) -> Result<Response, Problem> {
    named::same_name("id", &id, workload.id.as_str())?;
    let object = Object::Workload(workload.clone());
    named::put(&api, &caller, "workload.put", &precondition, object, |index, stored| {
        if stored.is_none() && rules::is_retired(index, &workload.id) {
            let message = format!("`{id}` has been retired; ids of workloads are not used again");
            return Err(Problem::conflict(message));
        }
        let since = index.position().revision;
        rules::mappings(index, &workload)?;
        let by_issuers = !workload.credentials.is_empty();
        Ok(by_issuers.then_some(Guard::KindUnchanged { kind: Kind::Issuer, since }).into_iter().collect())
    })
    .await
}

pub(super) async fn retire(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(id): Name,
    precondition: Precondition,
    Params(query): Params<RetireQuery>,
) -> Result<Response, Problem> {
    let wait = extract::wait(query.wait.as_deref())?;
    let reason = query.reason.unwrap_or_else(|| "retired".to_owned());
    let (committed, revoked) = api
        .core
        .transact(&caller.intent("workload.retire"), |index| {
            let missing = || Problem::not_found(format_args!("workload `{id}`"));
            let stored = index.get(Kind::Workload, &id).ok_or_else(missing)?;
            precondition.check(Some(&stored))?;
            retirement(&api, index, &caller, &stored, &reason)
        })
        .await?;
    let nothing: Option<()> = None;
    let written = Written::new(&api, committed, Revision(0), nothing).with("revoked_grants", revoked);
    let written = match committed {
        Some(c) => written.wait(&api, c.position, c.at, wait).await,
        None => written,
    };
    Ok(written.respond(StatusCode::OK))
}

/// Everything that ends with a workload, in one unit.
fn retirement(
    api: &Api,
    index: &Index,
    caller: &Caller,
    stored: &Stored,
    reason: &str,
) -> Result<Plan<Vec<GrantId>>, Problem> {
    let now = api.core.clock().now().wall;
    // Before the grants are read: one that comes in meanwhile makes the plan void.
    let since = index.position().revision;
    let Some(workload) = rules::as_workload(stored) else { return Err(Problem::internal()) };
    let revocation = Revocation {
        id: Uuid::new_v4(),
        target: Target::Workload { workload: workload.id.clone() },
        reason: reason.to_owned(),
        created_by: caller.name().to_owned(),
        created_at: now,
    };
    let revocation = Object::Revocation(revocation);
    revocation.check().map_err(|e| Problem::malformed(FieldError::new("reason", e.message)))?;
    let mut plan = Plan::new(Vec::new())
        .guard(Guard::KindUnchanged { kind: Kind::Grant, since })
        .write(Write::put(&revocation, Expect::Absent))
        .write(Write::delete(Kind::Workload, &*stored.key, Expect::Revision(stored.revision)));
    for held in rules::live_grants_of(index, &workload.id) {
        let Some(grant) = rules::as_grant(&held) else { continue };
        let next = grant::revoke(grant, caller.name(), reason, now)?;
        plan.answer.push(next.id);
        plan.changes.push(Write::put(&Object::Grant(Box::new(next)), Expect::Revision(held.revision)));
    }
    Ok(plan)
}
