//! Grant policies: validated whole, published whole, shown as published.
//!
//! Plane: control. A text that does not validate changes nothing; its errors say line and column. What is published
//! stays as it is until the next publication, a revision of its own: requests remember which policies permitted them,
//! and are put to those in force again before they become a grant.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Api;
use super::extract::{Caller, Document, Precondition, etag};
use super::problem::Problem;
use super::respond::{self, document, insert};
use crate::clock::Timestamp;
use crate::control::core::Plan;
use crate::control::store::{Expect, Write};
use crate::grant::policy::{GrantPolicies, GrantPolicyReport};
use crate::object::{GrantPolicySet, Kind, Object};
use crate::wire::{Position, Revision};

/// Grant policies to validate and publish.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewGrantPolicySet {
    /// Cedar source text, against the schema of grant policies. Every policy has an `@id`.
    text: String,
    /// Only validate.
    #[serde(default)]
    dry_run: bool,
}

/// What a set of grant policies is known by.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct GrantPolicySummary {
    /// Lower-case hex SHA-256 of the text.
    digest: String,
    /// Who published it.
    author: String,
}

/// Grant policies that are valid.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct GrantPoliciesPublished {
    /// Whether they were only validated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    /// Where the change is in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<String>,
    /// When it was committed; absent when nothing needed to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    committed_at: Option<Timestamp>,
    object: GrantPolicySummary,
    report: GrantPolicyReport,
}

pub(super) async fn current(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let stored = api.core.index().get(Kind::GrantPolicySet, GrantPolicySet::KEY);
    Ok(document(&api, &*stored.ok_or_else(|| Problem::not_found("set of grant policies yet"))?))
}

pub(super) async fn publish(
    State(api): State<Arc<Api>>,
    caller: Caller,
    precondition: Precondition,
    Document(NewGrantPolicySet { text, dry_run }): Document<NewGrantPolicySet>,
) -> Result<Response, Problem> {
    let set = GrantPolicySet::new(text, caller.name().to_owned());
    let object = Object::GrantPolicySet(set.clone());
    object.check()?;
    // Validating a large text takes a while; other requests go on meanwhile.
    let validated = tokio::task::spawn_blocking({
        let text = set.text.clone();
        move || GrantPolicies::compile_with_report(&text).map(|(_policies, report)| report)
    });
    let report = validated.await.map_err(|error| {
        tracing::error!(%error, "validation of grant policies failed");
        Problem::internal()
    })??;
    let summary = GrantPolicySummary { digest: set.digest.clone(), author: set.author.clone() };
    let mut published = GrantPoliciesPublished { dry_run, position: None, committed_at: None, object: summary, report };
    if dry_run {
        return Ok(respond::json(StatusCode::OK, &published));
    }
    let (committed, stored) = api
        .core
        .transact(&caller.intent("grant_policy.publish"), |index| {
            let stored = index.get(Kind::GrantPolicySet, GrantPolicySet::KEY);
            precondition.check(stored.as_deref())?;
            let same = |s: &Object| matches!(s, Object::GrantPolicySet(p) if p.digest == set.digest);
            let unchanged = stored.as_ref().and_then(|s| s.object.as_ref()).is_some_and(same);
            let expect = stored.as_ref().map_or(Expect::Absent, |s| Expect::Revision(s.revision));
            let mut plan = Plan::new(stored);
            if !unchanged {
                plan = plan.write(Write::put(&object, expect));
            }
            Ok::<_, Problem>(plan)
        })
        .await?;
    let unchanged = stored.as_ref().map_or(Revision(0), |s| s.revision);
    let revision = committed.map_or(unchanged, |c| c.position.revision);
    published.position = Some(Position { epoch: api.core.index().position().epoch, revision }.to_string());
    published.committed_at = committed.map(|c| c.at);
    let status = if committed.is_some() { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = respond::json(status, &published);
    insert(response.headers_mut(), header::ETAG, &etag(revision));
    Ok(response)
}
