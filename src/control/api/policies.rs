//! Policy sets: validated whole, published whole.
//!
//! Plane: control. A text that does not validate changes nothing; its errors say line and column. What is published
//! carries the actions that it was validated with, so that every sidecar validates it against the same schema.

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
use crate::control::rules;
use crate::control::store::{Expect, Write};
use crate::object::{Kind, Object, POLICY_SET_KEY, PolicySet};
use crate::policy;

/// A policy set to validate and publish.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPolicySet {
    text: String,
    /// Only validate.
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn current(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let stored = api.core.index().get(Kind::PolicySet, POLICY_SET_KEY);
    Ok(document(&api, &*stored.ok_or_else(|| Problem::not_found("policy set yet"))?))
}

pub(super) async fn publish(
    State(api): State<Arc<Api>>,
    caller: Caller,
    precondition: Precondition,
    Document(new): Document<NewPolicySet>,
) -> Result<Response, Problem> {
    let actions = rules::custom_actions(api.core.index());
    let author = caller.name().to_owned();
    // Validating ten thousand policies takes a while; other requests go on meanwhile.
    let dry_run = new.dry_run;
    let validated = tokio::task::spawn_blocking(move || {
        let report = policy::validate(&new.text, &actions)?;
        Ok::<_, policy::PolicyErrors>((PolicySet::new(new.text, author, actions), report))
    });
    let (set, report) = validated.await.map_err(|error| {
        tracing::error!(%error, "policy validation failed");
        Problem::internal()
    })??;
    let summary = json!({ "digest": set.digest, "author": set.author, "actions": set.actions });
    if dry_run {
        return Ok(respond::json(StatusCode::OK, &json!({ "dry_run": true, "object": summary, "report": report })));
    }
    let digest = set.digest.clone();
    let actions = set.actions.clone();
    let object = Object::PolicySet(set);
    object.check()?;
    let (committed, stored) = api
        .core
        .transact(&caller.intent("policy.publish"), |index| {
            let stored = index.get(Kind::PolicySet, POLICY_SET_KEY);
            precondition.check(stored.as_deref())?;
            let same = |s: &Object| matches!(s, Object::PolicySet(p) if p.digest == digest && p.actions == actions);
            let unchanged = stored.as_ref().and_then(|s| s.object.as_ref()).is_some_and(same);
            let expect = stored.as_ref().map_or(Expect::Absent, |s| Expect::Revision(s.revision));
            let mut plan = Plan::new(stored);
            if !unchanged {
                plan = plan.write(Write::put(&object, expect));
            }
            Ok::<_, Problem>(plan)
        })
        .await?;
    let unchanged = stored.as_ref().map_or(crate::wire::Revision(0), |s| s.revision);
    let revision = committed.map_or(unchanged, |c| c.position.revision);
    let status = if committed.is_some() { StatusCode::CREATED } else { StatusCode::OK };
    let written = Written::new(&api, committed, unchanged, Some(summary)).with("report", report);
    let mut response = written.respond(status);
    insert(response.headers_mut(), header::ETAG, &etag(revision));
    Ok(response)
}
