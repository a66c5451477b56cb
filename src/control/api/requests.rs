//! Grant requests: asking, approving, denying, taking back.
//!
//! Plane: control. The rules of a grant's life are `grant::rules`, and what they cannot see is the desk's: who and what
//! exists, and what grant policies say, both when it is asked for and when it is approved. Here they are put to work.

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
use crate::control::desk::{self, Asked, Refusal};
use crate::control::index::Index;
use crate::control::rules;
use crate::control::store::{Expect, Write};
use crate::grant::{self, Ballot, NewGrantRequest};
use crate::object::{Grant, Object, VoteKind};
use crate::wire::Revision;

/// A vote for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Approval {
    /// The digest of the request, to say which one was read.
    digest: String,
    /// The step that it counts for; without it, the first that needs an approval and that the caller may give.
    #[serde(default)]
    step: Option<String>,
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
    let (reuse, now) = (new.reuse, api.core.clock().now().wall);
    let asked = grant::new_request_by(new, caller.name(), caller.principal.party(), now)?;
    let intent = caller.intent(if asked.break_glass { "grant.break_glass" } else { "grant.request" });
    let location = format!("/v1/grant-requests/{}", asked.id);
    api.desk.ready(api.core.index()).await;
    let made = key
        .make(&api, &intent, |index| {
            let Plan { guards, changes, answer } = api.desk.ask(index, &asked, reuse, now)?;
            let answer = match answer {
                Asked::New(grant) => Made::created(location.clone(), grant),
                Asked::Reused(grant, revision) => Made::found(format!("/v1/grants/{}", grant.id), grant, revision),
            };
            Ok(Plan { guards, changes, answer })
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
    let approval = desk::Approval {
        id: &id,
        approver: caller.name(),
        party: caller.principal.party(),
        digest: &vote.digest,
        step: vote.step.as_deref(),
    };
    api.desk.ready(api.core.index()).await;
    let (committed, grant) = api
        .core
        .transact(&caller.intent("grant.approve"), |index| {
            api.desk.approve(index, &approval, api.core.clock().now().wall)
        })
        .await
        .map_err(|refusal: Refusal| Problem::from(refusal))?;
    Ok(Written::new(&api, committed, Revision(0), Some(grant)).respond(StatusCode::OK))
}

pub(super) async fn deny(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(id): Name,
    Document(vote): Document<Denial>,
) -> Result<Response, Problem> {
    crate::object::check_text("reason", &vote.reason, 1000)?;
    step(&api, &caller, "grant.deny", &id, |grant| {
        let (approver, party) = (caller.name(), caller.principal.party());
        let ballot = Ballot { approver, party, vote: VoteKind::Deny, digest: &vote.digest, step: None };
        let mut next = grant::cast(grant, ballot, api.core.clock().now().wall)?;
        if let Some(ended) = &mut next.ended {
            ended.reason.clone_from(&vote.reason);
        }
        Ok(next)
    })
    .await
}

pub(super) async fn withdraw(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(id): Name,
    Optional(Nothing {}): Optional<Nothing>,
) -> Result<Response, Problem> {
    step(&api, &caller, "grant.withdraw", &id, |grant| {
        Ok(grant::withdraw(grant, caller.name(), api.core.clock().now().wall)?)
    })
    .await
}

/// One step in the life of a grant.
async fn step(
    api: &Api,
    caller: &Caller,
    action: &'static str,
    id: &str,
    next: impl Fn(&Grant) -> Result<Grant, Problem> + Send + Sync,
) -> Result<Response, Problem> {
    let (committed, grant) = api
        .core
        .transact(&caller.intent(action), |index: &Index| {
            let stored = one(index, id)?;
            let grant = rules::as_grant(&stored).ok_or_else(Problem::internal)?;
            let next = next(grant)?;
            let object = Object::Grant(Box::new(next.clone()));
            Ok::<_, Problem>(Plan::new(next).write(Write::put(&object, Expect::Revision(stored.revision))))
        })
        .await?;
    Ok(Written::new(api, committed, Revision(0), Some(grant)).respond(StatusCode::OK))
}
