//! Grant requests: asking, approving, denying, taking back.
//!
//! Plane: control. The rules of a grant's life are `grant::rules`; this adds what they cannot see: the workload is
//! registered, the resources exist and may be had for that long, both when it is asked for and when it is approved.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Api;
use super::extract::{Caller, Document, Name, Optional, Params};
use super::grants::{GrantQuery, list_grants, one};
use super::idempotency::{Keyed, Made};
use super::problem::Problem;
use super::respond::Written;
use crate::control::core::Plan;
use crate::control::index::{Index, Stored};
use crate::control::rules;
use crate::control::store::{Expect, Guard, Write};
use crate::grant::{self, NewGrantRequest};
use crate::object::{Grant, Kind, Object, VoteKind};
use crate::wire::Revision;

/// A vote for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Approval {
    /// The digest of the request, to say which one was read.
    digest: String,
}

/// A vote against.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Denial {
    /// The digest of the request, to say which one was read.
    digest: String,
    /// For the record.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    reason: String,
}

/// Nothing, or an empty object.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// What never became a grant: requests that wait, were denied, withdrawn or never approved.
pub(super) async fn list(State(api): State<Arc<Api>>, Params(query): Params<GrantQuery>) -> Result<Response, Problem> {
    list_grants(&api, query, |grant| grant.not_before.is_none()).await
}

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Keyed(key, new): Keyed<NewGrantRequest>,
) -> Result<Response, Problem> {
    let asked = grant::new_request(new, caller.name(), api.core.clock().now().wall)?;
    if caller.principal.workload().is_some_and(|id| *id != asked.workload) {
        return Err(Problem::forbidden("a workload asks for itself only"));
    }
    let object = Object::Grant(Box::new(asked.clone()));
    let made = key
        .make(&api, &caller.intent("grant.request"), |index| {
            let guards = supported(index, &asked)?;
            let answer = Made::created(format!("/v1/grant-requests/{}", asked.id), asked.clone());
            Ok(Plan { guards, changes: vec![Write::put(&object, Expect::Absent)], answer })
        })
        .await?;
    Ok(made.respond(&api, None).await)
}

pub(super) async fn approve(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(id): Name,
    Document(vote): Document<Approval>,
) -> Result<Response, Problem> {
    step(&api, &caller, "grant.approve", &id, |index, grant| {
        let now = api.core.clock().now().wall;
        let next = grant::vote(grant, caller.name(), VoteKind::Approve, &vote.digest, now)?;
        let guards = supported(index, grant)?;
        // The owner of a workload speaks for it; nobody approves what they ask for themselves.
        let owner = index.get(Kind::Workload, grant.workload.as_str());
        if owner.as_deref().and_then(rules::as_workload).is_some_and(|w| *w.owner == *caller.name()) {
            return Err(Problem::forbidden(format!("`{}` owns the workload that this is for", caller.name())));
        }
        Ok((next, guards))
    })
    .await
}

pub(super) async fn deny(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(id): Name,
    Document(vote): Document<Denial>,
) -> Result<Response, Problem> {
    crate::object::check_text("reason", &vote.reason, 1000)?;
    step(&api, &caller, "grant.deny", &id, |_, grant| {
        let now = api.core.clock().now().wall;
        let mut next = grant::vote(grant, caller.name(), VoteKind::Deny, &vote.digest, now)?;
        if let Some(ended) = &mut next.ended {
            ended.reason.clone_from(&vote.reason);
        }
        Ok((next, Vec::new()))
    })
    .await
}

pub(super) async fn withdraw(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(id): Name,
    Optional(Nothing {}): Optional<Nothing>,
) -> Result<Response, Problem> {
    step(&api, &caller, "grant.withdraw", &id, |_, grant| {
        Ok((grant::withdraw(grant, caller.name(), api.core.clock().now().wall)?, Vec::new()))
    })
    .await
}

/// One step in the life of a grant.
async fn step(
    api: &Api,
    caller: &Caller,
    action: &'static str,
    id: &str,
    next: impl Fn(&Index, &Grant) -> Result<(Grant, Vec<Guard>), Problem> + Send + Sync,
) -> Result<Response, Problem> {
    let (committed, grant) = api
        .core
        .transact(&caller.intent(action), |index| {
            let stored = one(index, id)?;
            let grant = rules::as_grant(&stored).ok_or_else(Problem::internal)?;
            let (next, guards) = next(index, grant)?;
            let object = Object::Grant(Box::new(next.clone()));
            let changes = vec![Write::put(&object, Expect::Revision(stored.revision))];
            Ok::<_, Problem>(Plan { guards, changes, answer: next })
        })
        .await?;
    Ok(Written::new(api, committed, Revision(0), Some(grant)).respond(StatusCode::OK))
}

/// The workload is in service, and what is asked for may be had. Answers what that rests on.
fn supported(index: &Index, grant: &Grant) -> Result<Vec<Guard>, Problem> {
    let workload = rules::in_service(index, &grant.workload)?;
    let services = rules::grantable(index, grant)?;
    let guard = |stored: &Stored| Guard::Object {
        kind: stored.kind,
        key: stored.key.to_string(),
        expect: Expect::Revision(stored.revision),
    };
    Ok(std::iter::once(&workload).chain(&services).map(|s| guard(s)).collect())
}
