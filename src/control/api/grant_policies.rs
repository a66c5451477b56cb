//! Grant policies: validated whole, published whole, shown as published.
//!
//! Plane: control. A text that does not validate changes nothing; its errors say line and column. What is published
//! stays as it is until the next publication, a revision of its own: requests remember which policies permitted them,
//! and are put to those in force again before they become a grant.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::Api;
use super::extract::{Caller, Document, Precondition, etag};
use super::problem::Problem;
use super::respond::{self, Written, document, insert};
use crate::control::core::Plan;
use crate::control::store::{Expect, Write};
use crate::grant::policy::GrantPolicies;
use crate::object::{GrantPolicySet, Kind, Object};
use crate::wire::Revision;

/// Grant policies to validate and publish.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewGrantPolicySet {
    /// Cedar source text, against the schema of grant policies. Every policy has an `@id`.
    text: String,
    /// Only validate.
    #[serde(default)]
    dry_run: bool,
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
    let summary = json!({ "digest": set.digest, "author": set.author });
    if dry_run {
        return Ok(respond::json(StatusCode::OK, &json!({ "dry_run": true, "object": summary, "report": report })));
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
    let status = if committed.is_some() { StatusCode::CREATED } else { StatusCode::OK };
    let written = Written::new(&api, committed, unchanged, Some(summary)).with("report", report);
    let mut response = written.respond(status);
    insert(response.headers_mut(), header::ETAG, &etag(revision));
    Ok(response)
}
