//! Lifting revocations: a new record that refers to what was revoked, by whom and why it is lifted.
//!
//! Plane: control. The revocation is taken out of force and kept, whole, in the record; both in one revision. What is
//! final cannot be lifted: a grant that was revoked is over, and a workload that was retired does not come back. A
//! suspension is lifted by resuming its workload, so that document and revocation never disagree.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;

use super::Api;
use super::extract::{Caller, Document, Name, Params};
use super::problem::Problem;
use super::respond::{Page, PageQuery, Taken, WaitQuery, Written, document};
use crate::clock::Timestamp;
use crate::control::core::Plan;
use crate::control::index::{Index, Stored};
use crate::control::rules;
use crate::control::store::{Expect, Guard, Write};
use crate::object::{FieldError, Kind, Lift, Object, Target, check_text};

/// Why a revocation is lifted.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LiftBody {
    /// Why.
    #[schemars(length(min = 1, max = 1000))]
    reason: String,
}

pub(super) async fn list(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Result<Response, Problem> {
    Ok(Page::try_from(query)?.list(&api, Kind::Lift, |_| true).await)
}

pub(super) async fn show(State(api): State<Arc<Api>>, Name(id): Name) -> Result<Response, Problem> {
    let stored = api.core.index().get(Kind::Lift, &id);
    Ok(document(&api, &*stored.ok_or_else(|| Problem::not_found(format_args!("lifted revocation `{id}`")))?))
}

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(id): Name,
    Params(query): Params<WaitQuery>,
    Document(LiftBody { reason }): Document<LiftBody>,
) -> Result<Response, Problem> {
    let wait = query.duration()?;
    // Whether it is well asked does not depend on whether there is something left to do.
    check_text("reason", &reason, 1000)?;
    if reason.trim().is_empty() {
        return Err(FieldError::new("reason", "a revocation is lifted for a reason").into());
    }
    let (committed, (lift, before)) = api
        .core
        .transact(&caller.intent("revocation.lift"), |index| {
            plan(index, &id, &caller, &reason, api.core.clock().now().wall)
        })
        .await?;
    Ok(Written::step(&api, committed, before, Some(lift), wait).await.respond(StatusCode::OK))
}

fn plan(
    index: &Index,
    id: &str,
    caller: &Caller,
    reason: &str,
    now: Timestamp,
) -> Result<Plan<(Lift, Taken)>, Problem> {
    if let Some(stored) = index.get(Kind::Lift, id)
        && let Some(Object::Lift(lift)) = &stored.object
    {
        return Ok(Plan::new(((**lift).clone(), (stored.revision, lift.lifted_at))));
    }
    let stored = index.get(Kind::Revocation, id);
    let stored = stored.ok_or_else(|| Problem::not_found(format_args!("revocation `{id}`")))?;
    let guards = may_be_lifted(index, &stored)?;
    let (lift, writes) = lifting(&stored, caller, reason, now)?;
    Ok(Plan { guards, changes: writes.into(), answer: (lift, (stored.revision, now)) })
}

/// Whether anything would be left open, or come back to life, without this revocation. Answers what that rests on.
fn may_be_lifted(index: &Index, stored: &Stored) -> Result<Vec<Guard>, Problem> {
    let revocation = rules::as_revocation(stored).ok_or_else(Problem::internal)?;
    match &revocation.target {
        Target::Grant { grant } => {
            Err(Problem::conflict(format!("grant `{grant}` is over and stays so: ask for a new one")))
        }
        Target::Workload { workload } => {
            let retired = || Problem::conflict(format!("`{workload}` has been retired, and stays so"));
            let registered = index.get(Kind::Workload, workload.as_str()).ok_or_else(retired)?;
            let document = rules::as_workload(&registered).ok_or_else(Problem::internal)?;
            if document.suspended.as_ref().is_some_and(|suspended| suspended.revocation == revocation.id) {
                return Err(Problem::conflict(format!(
                    "this is the suspension of `{workload}`: resume the workload instead"
                )));
            }
            // Retiring it in the same moment makes this revocation final.
            Ok(vec![Guard::Object {
                kind: Kind::Workload,
                key: registered.key.to_string(),
                expect: Expect::Revision(registered.revision),
            }])
        }
        _ => Ok(Vec::new()),
    }
}

/// What takes a revocation out of force: its record, and the two writes.
pub(super) fn lifting(
    stored: &Stored,
    caller: &Caller,
    reason: &str,
    now: Timestamp,
) -> Result<(Lift, [Write; 2]), Problem> {
    let lift = Lift {
        revocation: rules::as_revocation(stored).ok_or_else(Problem::internal)?.clone(),
        lifted_by: caller.name().to_owned(),
        lifted_at: now,
        reason: reason.to_owned(),
    };
    let record = Object::Lift(Box::new(lift.clone()));
    record.check()?;
    let writes = [
        Write::put(&record, Expect::Absent),
        Write::delete(Kind::Revocation, &*stored.key, Expect::Revision(stored.revision)),
    ];
    Ok((lift, writes))
}
