//! Suspending, resuming and retiring workloads.
//!
//! Plane: control. A suspension is a revocation of the workload, so that it beats every allow and every cache entry as
//! any other does; resuming lifts it. INVARIANT: the document and the revocation change in one revision. Retiring ends
//! the workload, its grants and its requests in one revision, and nothing takes that back. Each step, asked for again,
//! succeeds with the position at which it was taken.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use uuid::Uuid;

use super::Api;
use super::extract::{self, Caller, Document, Name, Optional, Params, Precondition, etag};
use super::problem::Problem;
use super::respond::{Taken, WaitQuery, Written, insert};
use super::{lifts, revocations};
use crate::clock::Timestamp;
use crate::control::core::Plan;
use crate::control::index::{Index, Stored};
use crate::control::rules;
use crate::control::store::{Expect, Guard, Write};
use crate::grant;
use crate::object::{FieldError, GrantId, Kind, Object, Revocation, Suspension, Target, Workload, check_text};
use crate::wire::Revision;

/// Why a workload is suspended.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SuspendBody {
    /// Why.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    reason: String,
}

/// Why a workload is resumed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResumeBody {
    /// Why: for the record of the lifted revocation.
    #[schemars(length(min = 1, max = 1000))]
    reason: String,
}

/// Query of a retirement.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RetireQuery {
    /// For the record.
    #[schemars(length(max = 1000))]
    reason: Option<String>,
    /// How long to wait for the receipt, `1s` to `60s`; without it there is none.
    #[schemars(regex(pattern = extract::WAIT))]
    wait: Option<String>,
}

/// What a step comes to.
#[derive(Debug)]
struct Stepped {
    workload: Workload,
    /// The revision that wrote the document before this step.
    revision: Revision,
    /// Where and when it was taken, if it had been before.
    before: Taken,
    /// Revocations that still end the workload, after it was resumed.
    left: Vec<String>,
}

pub(super) async fn suspend(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(id): Name,
    precondition: Precondition,
    Params(query): Params<WaitQuery>,
    Optional(SuspendBody { reason }): Optional<SuspendBody>,
) -> Result<Response, Problem> {
    let wait = query.duration()?;
    check_text("reason", &reason, 1000)?;
    let (committed, stepped) = api
        .core
        .transact(&caller.intent("workload.suspend"), |index| {
            let stored = registered(index, &id, &precondition)?;
            suspension(&api, index, &caller, &stored, &reason)
        })
        .await?;
    let Stepped { workload, revision, before, .. } = stepped;
    let written = Written::step(&api, committed, before, Some(workload), wait).await;
    Ok(tagged(written.respond(StatusCode::OK), committed.map_or(revision, |c| c.position.revision)))
}

pub(super) async fn resume(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(id): Name,
    precondition: Precondition,
    Params(query): Params<WaitQuery>,
    Document(ResumeBody { reason }): Document<ResumeBody>,
) -> Result<Response, Problem> {
    let wait = query.duration()?;
    let (committed, stepped) = api
        .core
        .transact(&caller.intent("workload.resume"), |index| {
            let stored = registered(index, &id, &precondition)?;
            resumption(&api, index, &caller, &stored, &reason)
        })
        .await?;
    let Stepped { workload, revision, before, left } = stepped;
    let written = Written::step(&api, committed, before, Some(workload), wait).await;
    let written = if left.is_empty() { written } else { written.with("still_revoked_by", left) };
    Ok(tagged(written.respond(StatusCode::OK), committed.map_or(revision, |c| c.position.revision)))
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
    let (committed, (revoked, before)) = api
        .core
        .transact(&caller.intent("workload.retire"), |index| {
            if let Some(before) = retired_before(index, &id) {
                return Ok(Plan::new((Vec::new(), before)));
            }
            let stored = registered(index, &id, &precondition)?;
            retirement(&api, index, &caller, &stored, &reason)
        })
        .await?;
    let nothing: Option<()> = None;
    let written = Written::step(&api, committed, before, nothing, wait).await.with("revoked_grants", revoked);
    Ok(written.respond(StatusCode::OK))
}

/// With the entity tag of the workload.
fn tagged(mut response: Response, revision: Revision) -> Response {
    insert(response.headers_mut(), header::ETAG, &etag(revision));
    response
}

/// The workload of this id, as the caller means it.
fn registered(index: &Index, id: &str, precondition: &Precondition) -> Result<Arc<Stored>, Problem> {
    if rules::is_retired(index, id) {
        return Err(Problem::conflict(format!("`{id}` has been retired, and stays so")));
    }
    let stored = index.get(Kind::Workload, id).ok_or_else(|| Problem::not_found(format_args!("workload `{id}`")))?;
    precondition.check(Some(&stored))?;
    Ok(stored)
}

/// The plan that suspends a workload.
fn suspension(
    api: &Api,
    index: &Index,
    caller: &Caller,
    stored: &Stored,
    reason: &str,
) -> Result<Plan<Stepped>, Problem> {
    let Some(workload) = rules::as_workload(stored) else { return Err(Problem::internal()) };
    let revision = stored.revision;
    if let Some(suspended) = &workload.suspended {
        let by = index.get(Kind::Revocation, &suspended.revocation.to_string());
        let before = (by.map_or(revision, |by| by.revision), suspended.at);
        return Ok(Plan::new(Stepped { workload: workload.clone(), revision, before, left: Vec::new() }));
    }
    let now = api.core.clock().now().wall;
    let revocation = ending(workload, caller, reason, now);
    let suspended =
        Suspension { revocation: revocation.id, by: caller.name().to_owned(), at: now, reason: reason.to_owned() };
    let workload = Workload { suspended: Some(suspended), ..workload.clone() };
    let writes = [
        Write::put(&Object::Revocation(revocation), Expect::Absent),
        Write::put(&Object::Workload(workload.clone()), Expect::Revision(stored.revision)),
    ];
    let mut plan = Plan::new(Stepped { workload, revision, before: (revision, now), left: Vec::new() });
    plan.changes.extend(writes);
    Ok(plan)
}

/// The plan that resumes a workload: its suspension is lifted, and no other revocation.
fn resumption(
    api: &Api,
    index: &Index,
    caller: &Caller,
    stored: &Stored,
    reason: &str,
) -> Result<Plan<Stepped>, Problem> {
    let Some(workload) = rules::as_workload(stored) else { return Err(Problem::internal()) };
    let now = api.core.clock().now().wall;
    let by = workload.suspended.as_ref().map(|suspended| suspended.revocation.to_string());
    let others = index.revocations_of(workload.id.as_str());
    let left = others.iter().filter(|other| by.as_deref() != Some(&*other.key)).map(|r| r.key.to_string()).collect();
    let revision = stored.revision;
    let before = (revision, index.committed_at(revision).unwrap_or(now));
    let resumed = Workload { suspended: None, ..workload.clone() };
    let mut plan = Plan::new(Stepped { workload: resumed.clone(), revision, before, left });
    let Some(by) = by else { return Ok(plan) };
    if let Some(revocation) = index.get(Kind::Revocation, &by) {
        plan.changes.extend(lifts::lifting(&revocation, caller, reason, now)?.1);
    }
    plan.changes.push(Write::put(&Object::Workload(resumed), Expect::Revision(stored.revision)));
    Ok(plan)
}

/// Where and when a workload was retired, if it was.
fn retired_before(index: &Index, id: &str) -> Option<Taken> {
    let target = Target::Workload { workload: id.parse().ok()? };
    let (revocation, revision) = revocations::retirement(index, &target)?;
    Some((revision, revocation.created_at))
}

/// Everything that ends with a workload, in one unit.
fn retirement(
    api: &Api,
    index: &Index,
    caller: &Caller,
    stored: &Stored,
    reason: &str,
) -> Result<Plan<(Vec<GrantId>, Taken)>, Problem> {
    let now = api.core.clock().now().wall;
    // Before the grants are read: one that comes in meanwhile makes the plan void.
    let since = index.position().revision;
    let Some(workload) = rules::as_workload(stored) else { return Err(Problem::internal()) };
    let revocation = Object::Revocation(ending(workload, caller, reason, now));
    revocation.check().map_err(|e| Problem::malformed(FieldError::new("reason", e.message)))?;
    let mut plan = Plan::new((Vec::new(), (stored.revision, now)))
        .guard(Guard::KindUnchanged { kind: Kind::Grant, since })
        .write(Write::put(&revocation, Expect::Absent))
        .write(Write::delete(Kind::Workload, &*stored.key, Expect::Revision(stored.revision)));
    for held in rules::ending_with(index, &workload.id) {
        let Some(grant) = rules::as_grant(&held) else { continue };
        let next = grant::revoke(grant, caller.name(), reason, now)?;
        plan.answer.0.push(next.id);
        plan.changes.push(Write::put(&Object::Grant(Box::new(next)), Expect::Revision(held.revision)));
    }
    Ok(plan)
}

/// The revocation that ends a workload.
fn ending(workload: &Workload, caller: &Caller, reason: &str, now: Timestamp) -> Revocation {
    Revocation {
        id: Uuid::new_v4(),
        target: Target::Workload { workload: workload.id.clone() },
        reason: reason.to_owned(),
        created_by: caller.name().to_owned(),
        created_at: now,
    }
}
