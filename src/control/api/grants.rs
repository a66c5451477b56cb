//! Grants: listing them, looking at one, ending one before its time.
//!
//! Plane: control. INVARIANT: a revoked grant and its revocation are in one revision. A grant is dropped by who asked for
//! it or whose it is, and revoked by operators. Ending what has ended that way already succeeds with the position at
//! which it did: who lost the first answer gets the same receipt by asking again.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Api;
use super::extract::{Caller, Name, Optional, Params};
use super::problem::Problem;
use super::respond::{self, Page, Taken, WaitQuery, Written};
use super::watch::{self, Manner, WatchQuery};
use crate::clock::Timestamp;
use crate::control::core::Plan;
use crate::control::index::{Index, Stored};
use crate::control::rules;
use crate::control::store::{Expect, Write};
use crate::credential::SpiffeId;
use crate::grant;
use crate::object::{Allotments, Grant, GrantState, Kind, Object, Revocation, Target, UseCounts};

/// Query of the lists of grants and requests.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GrantQuery {
    /// Only those of this workload.
    workload: Option<SpiffeId>,
    /// Only those in this state.
    state: Option<GrantState>,
    /// How many at most; 100 unless given.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
}

/// A grant as it is shown: the document, and what has become of its uses.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ShownGrant {
    #[serde(flatten)]
    grant: Grant,
    /// Of a grant with a number of uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    use_counts: Option<UseCounts>,
}

/// Why a grant is ended.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reason {
    /// For the record.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    reason: String,
}

/// A grant that has been revoked, now or before.
#[derive(Debug)]
pub(super) struct Revoked {
    pub(super) grant: Grant,
    /// `None` when it was revoked before.
    pub(super) revocation: Option<Revocation>,
    /// The revision of the stored grant, and when it ended: what counts when it was revoked before.
    pub(super) before: Taken,
}

/// Grants and requests alike: a request is the first part of a grant's life.
pub(super) async fn list(State(api): State<Arc<Api>>, Params(query): Params<GrantQuery>) -> Result<Response, Problem> {
    list_grants(&api, query, |_| true).await
}

pub(super) async fn list_grants(
    api: &Api,
    query: GrantQuery,
    also: impl Fn(&Grant) -> bool + Send + Sync,
) -> Result<Response, Problem> {
    let GrantQuery { workload, state, limit, after } = query;
    let page = Page::new(limit, after)?;
    let wanted = |stored: &Stored| {
        rules::as_grant(stored).is_some_and(|g| {
            workload.as_ref().is_none_or(|w| g.workload == *w) && state.is_none_or(|s| g.state == s) && also(g)
        })
    };
    Ok(page.list(api, Kind::Grant, wanted).await)
}

pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Name(id): Name,
    Params(query): Params<WatchQuery>,
    manner: Manner,
) -> Result<Response, Problem> {
    watch::show(api, &id, query, manner).await
}

/// The answer with a grant: the document as it is stored, with what has become of its uses, if it has a number of them.
pub(super) fn shown(api: &Api, stored: &Stored) -> Response {
    let counted = rules::as_grant(stored).and_then(|grant| Some((grant, grant.uses?)));
    let Some((grant, uses)) = counted else { return respond::document(api, stored) };
    let book = api.core.index().get(Kind::Allotment, &stored.key);
    let book = match book.as_ref().and_then(|stored| stored.object.as_ref()) {
        Some(Object::Allotment(book)) => Allotments::clone(book),
        // Nobody has asked for one yet.
        _ => Allotments::new(grant.id, uses),
    };
    let shown = ShownGrant { grant: grant.clone(), use_counts: Some(book.counts()) };
    respond::document_of(api, stored, &shown)
}

/// The grant or request of this id.
pub(super) fn one(index: &Index, id: &str) -> Result<Arc<Stored>, Problem> {
    index.get(Kind::Grant, id).ok_or_else(|| Problem::not_found(format_args!("grant or request `{id}`")))
}

pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(id): Name,
    Params(query): Params<WaitQuery>,
    Optional(Reason { reason }): Optional<Reason>,
) -> Result<Response, Problem> {
    let wait = query.duration()?;
    let (committed, revoked) = api
        .core
        .transact(&caller.intent("grant.revoke"), |index| {
            revocation(index, &id, &caller, &reason, api.core.clock().now().wall)
        })
        .await?;
    let written = Written::step(&api, committed, revoked.before, Some(revoked.grant), wait).await;
    Ok(written.respond(StatusCode::OK))
}

pub(super) async fn drop_early(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(id): Name,
    Params(query): Params<WaitQuery>,
    Optional(Reason { reason }): Optional<Reason>,
) -> Result<Response, Problem> {
    let wait = query.duration()?;
    let (committed, (grant, before)) = api
        .core
        .transact(&caller.intent("grant.drop"), |index| {
            dropping(index, &id, &caller, &reason, api.core.clock().now().wall)
        })
        .await?;
    Ok(Written::step(&api, committed, before, Some(grant), wait).await.respond(StatusCode::OK))
}

/// The plan that ends a grant early, for who asked for it and for whose it is.
pub(super) fn dropping(
    index: &Index,
    id: &str,
    caller: &Caller,
    reason: &str,
    now: Timestamp,
) -> Result<Plan<(Grant, Taken)>, Problem> {
    crate::object::check_text("reason", reason, 1000)?;
    let stored = one(index, id)?;
    let grant = rules::as_grant(&stored).ok_or_else(Problem::internal)?;
    if *grant.requested_by != *caller.name() && caller.principal.workload() != Some(&grant.workload) {
        let message = format!("only `{}`, who asked for it, and its workload drop a grant", grant.requested_by);
        return Err(Problem::forbidden(message));
    }
    let before = (stored.revision, grant.ended.as_ref().map_or(now, |e| e.at));
    if grant.state == GrantState::Ended {
        return Ok(Plan::new((grant.clone(), before)));
    }
    let next = grant::drop_early(grant, caller.name(), reason, now)?;
    let change = Write::put(&Object::Grant(Box::new(next.clone())), Expect::Revision(stored.revision));
    Ok(Plan::new((next, before)).write(change))
}

/// The plan that revokes a grant.
pub(super) fn revocation(
    index: &Index,
    id: &str,
    caller: &Caller,
    reason: &str,
    now: Timestamp,
) -> Result<Plan<Revoked>, Problem> {
    crate::object::check_text("reason", reason, 1000)?;
    let stored = one(index, id)?;
    let grant = rules::as_grant(&stored).ok_or_else(Problem::internal)?;
    let before = (stored.revision, grant.ended.as_ref().map_or(now, |e| e.at));
    if grant.state == GrantState::Revoked {
        return Ok(Plan::new(Revoked { grant: grant.clone(), revocation: None, before }));
    }
    let next = grant::revoke(grant, caller.name(), reason, now)?;
    let revocation = Revocation {
        id: Uuid::new_v4(),
        target: Target::Grant { grant: next.id },
        reason: reason.to_owned(),
        created_by: caller.name().to_owned(),
        created_at: now,
    };
    let writes = [
        Write::put(&Object::Revocation(revocation.clone()), Expect::Absent),
        Write::put(&Object::Grant(Box::new(next.clone())), Expect::Revision(stored.revision)),
    ];
    let mut plan = Plan::new(Revoked { grant: next, revocation: Some(revocation), before });
    plan.changes.extend(writes);
    Ok(plan)
}
