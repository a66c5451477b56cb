//! Policy sets: validated whole, published whole.
//!
//! Plane: control. A text that does not validate changes nothing; its errors say line and column. What is published
//! carries the actions that it was validated with, so that every sidecar validates it against the same schema.

use std::collections::BTreeMap;
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
use crate::control::rules;
use crate::control::store::{Expect, Write};
use crate::object::{ArgumentType, Kind, Object, POLICY_SET_KEY, PolicySet};
use crate::policy;
use crate::wire::Position;

/// A policy set to validate and publish.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPolicySet {
    /// Cedar source text. Every policy has an `@id`.
    text: String,
    /// Only validate.
    #[serde(default)]
    dry_run: bool,
}

/// What a policy set is known by.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PolicySummary {
    /// Lower-case hex SHA-256 of the text.
    digest: String,
    /// Who published it.
    author: String,
    /// The actions of services that it was validated with.
    actions: Vec<String>,
    /// The arguments of MCP tools that it was validated with, and their types.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    arguments: BTreeMap<String, ArgumentType>,
}

/// A policy set that is valid.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PolicyPublished {
    /// Whether it was only validated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    /// Where the change is in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<String>,
    /// When it was committed; absent when nothing needed to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    committed_at: Option<Timestamp>,
    object: PolicySummary,
    report: policy::Report,
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
    let arguments = rules::arguments_of_tools(api.core.index());
    let author = caller.name().to_owned();
    // Validating ten thousand policies takes a while; other requests go on meanwhile.
    let dry_run = new.dry_run;
    let validated = tokio::task::spawn_blocking(move || {
        let report = policy::validate(&new.text, policy::Names { actions: &actions, arguments: &arguments })?;
        let set = PolicySet::new(new.text, author, actions).with_arguments(arguments);
        Ok::<_, policy::PolicyErrors>((set, report))
    });
    let (set, report) = validated.await.map_err(|error| {
        tracing::error!(%error, "policy validation failed");
        Problem::internal()
    })??;
    let summary = PolicySummary {
        digest: set.digest.clone(),
        author: set.author.clone(),
        actions: set.actions.clone(),
        arguments: set.arguments.clone(),
    };
    let mut published = PolicyPublished { dry_run, position: None, committed_at: None, object: summary, report };
    if dry_run {
        return Ok(respond::json(StatusCode::OK, &published));
    }
    let digest = set.digest.clone();
    let names = (set.actions.clone(), set.arguments.clone());
    let object = Object::PolicySet(set);
    object.check()?;
    let (committed, stored) = api
        .core
        .transact(&caller.intent("policy.publish"), |index| {
            let stored = index.get(Kind::PolicySet, POLICY_SET_KEY);
            precondition.check(stored.as_deref())?;
            let same = |s: &Object| matches!(s, Object::PolicySet(p) if p.digest == digest && (&p.actions, &p.arguments) == (&names.0, &names.1));
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
    let epoch = api.core.index().position().epoch;
    published.position = Some(Position { epoch, revision }.to_string());
    published.committed_at = committed.map(|c| c.at);
    let mut response = respond::json(status, &published);
    insert(response.headers_mut(), header::ETAG, &etag(revision));
    Ok(response)
}
