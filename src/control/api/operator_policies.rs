//! Policies for operators: validated whole, published whole, and never so that nobody could publish the next.
//!
//! Plane: control. What is published counts from the next call on. A set under which whoever publishes it could not
//! publish another one is refused; see [`crate::control::operator_policy`] for who cannot be locked out at all.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Api;
use super::extract::{Caller, Document, Precondition, etag};
use super::problem::Problem;
use super::respond::{self, insert};
use crate::clock::Timestamp;
use crate::control::core::Plan;
use crate::control::operator_policy::{OperatorPolicies, default_text, schema_text};
use crate::control::store::{Expect, Write};
use crate::object::{FieldError, Kind, Object, OperatorPolicySet};
use crate::wire::{Position, Revision};

/// A set of policies for operators to validate and publish.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewOperatorPolicies {
    /// Cedar source text. Every policy has an `@id`.
    text: String,
    /// Only validate.
    #[serde(default)]
    dry_run: bool,
}

/// A set that is valid.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct OperatorPoliciesPublished {
    /// Whether it was only validated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    /// Where the change is in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<String>,
    /// When it was committed; absent when nothing needed to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    committed_at: Option<Timestamp>,
    /// Lower-case hex SHA-256 of the text.
    digest: String,
    /// The policies' ids, in the order of the text.
    ids: Vec<String>,
}

/// The policies in force.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct OperatorPoliciesShown {
    /// Cedar source text.
    text: String,
    /// Lower-case hex SHA-256 of the text.
    digest: String,
    /// Who published it; absent as long as nobody has, and the default counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<String>,
    /// The Cedar schema that sets are validated against.
    schema: String,
}

pub(super) async fn current(State(api): State<Arc<Api>>) -> Response {
    let stored = api.core.index().get(Kind::OperatorPolicySet, OperatorPolicySet::KEY);
    let actions = api.policies.actions();
    let (set, author) = match stored.as_ref().and_then(|stored| stored.object.as_ref()) {
        Some(Object::OperatorPolicySet(set)) => (set.clone(), Some(set.author.clone())),
        _ => (OperatorPolicySet::new(default_text(actions), String::new()), None),
    };
    let shown = OperatorPoliciesShown { text: set.text, digest: set.digest, author, schema: schema_text(actions) };
    let mut response = respond::json(StatusCode::OK, &shown);
    if let Some(stored) = stored {
        insert(response.headers_mut(), header::ETAG, &etag(stored.revision));
    }
    response
}

pub(super) async fn publish(
    State(api): State<Arc<Api>>,
    caller: Caller,
    precondition: Precondition,
    Document(new): Document<NewOperatorPolicies>,
) -> Result<Response, Problem> {
    let set = OperatorPolicySet::new(new.text, caller.name().to_owned());
    let object = Object::OperatorPolicySet(set.clone());
    object.check()?;
    let compile = {
        let (api, set) = (Arc::clone(&api), set.clone());
        move || OperatorPolicies::compile(&set.text, api.policies.actions())
    };
    let compiled = tokio::task::spawn_blocking(compile).await.map_err(|error| {
        tracing::error!(%error, "operator policies could not be validated");
        Problem::internal()
    })??;
    if !api.policies.may_publish_again(&compiled, &caller.principal) {
        let message = format!("under these policies `{}` could not publish the next ones", caller.name());
        return Err(Problem::invalid(FieldError::new("text", message)));
    }
    let mut published = OperatorPoliciesPublished {
        dry_run: new.dry_run,
        position: None,
        committed_at: None,
        digest: set.digest.clone(),
        ids: compiled.ids,
    };
    if new.dry_run {
        return Ok(respond::json(StatusCode::OK, &published));
    }
    let (committed, unchanged) = api
        .core
        .transact(&caller.intent("operator_policy.publish"), |index| {
            let stored = index.get(Kind::OperatorPolicySet, OperatorPolicySet::KEY);
            precondition.check(stored.as_deref())?;
            let same = |s: &Object| matches!(s, Object::OperatorPolicySet(p) if p.digest == set.digest);
            let expect = stored.as_ref().map_or(Expect::Absent, |s| Expect::Revision(s.revision));
            let plan = Plan::new(stored.as_ref().map_or(Revision(0), |s| s.revision));
            let unchanged = stored.as_ref().and_then(|s| s.object.as_ref()).is_some_and(same);
            Ok::<_, Problem>(if unchanged { plan } else { plan.write(Write::put(&object, expect)) })
        })
        .await?;
    let epoch = api.core.index().position().epoch;
    let position = committed.map_or(Position { epoch, revision: unchanged }, |c| c.position);
    (published.position, published.committed_at) = (Some(position.to_string()), committed.map(|c| c.at));
    let status = if committed.is_some() { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = respond::json(status, &published);
    insert(response.headers_mut(), header::ETAG, &etag(position.revision));
    Ok(response)
}
