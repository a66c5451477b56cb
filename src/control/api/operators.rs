//! Operators: creating, listing, revoking them.
//!
//! Plane: control. A token is in exactly one answer, that of the request that made it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Api;
use super::extract::{Caller, Document, Name, Params};
use super::problem::Problem;
use super::respond::{self, Page, PageQuery};
use crate::control::operators::Operator;
use crate::control::principal::OperatorKind;

/// An operator to create.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewOperator {
    /// Unique name.
    name: String,
    /// Whether it is a human; some rules want one.
    #[serde(default)]
    kind: OperatorKind,
}

/// An operator that has been created.
#[derive(Serialize, JsonSchema)]
pub(super) struct OperatorCreated<'a> {
    object: Operator,
    /// Its bearer token. It is never shown again.
    token: &'a str,
}

pub(super) async fn list(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Result<Response, Problem> {
    let page = Page::try_from(query)?;
    Ok(page.of(&api, api.operators.list().await?, |operator| operator.name.clone()))
}

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Document(new): Document<NewOperator>,
) -> Result<Response, Problem> {
    let (operator, token) = api.operators.create(&new.name, new.kind, &caller.intent("operator.create")).await?;
    tracing::info!(operator = %operator.name, by = %caller.name(), request_id = %caller.request_id, "operator created");
    Ok(respond::json(StatusCode::CREATED, &OperatorCreated { object: operator, token: &token }))
}

pub(super) async fn revoke(State(api): State<Arc<Api>>, caller: Caller, Name(name): Name) -> Result<Response, Problem> {
    // In a task of its own: a client that goes away, or a limit of time, must not leave the token in force here that is
    // revoked in the store.
    let (operators, intent, revoked) = (Arc::clone(&api.operators), caller.intent("operator.revoke"), name.clone());
    let task = tokio::spawn(async move { operators.revoke(&revoked, &intent).await });
    task.await.map_err(|_unfinished| Problem::internal())??;
    tracing::info!(operator = %name, by = %caller.name(), request_id = %caller.request_id, "operator revoked");
    Ok(StatusCode::NO_CONTENT.into_response())
}
