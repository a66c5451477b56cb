//! Where the control plane stands, and who has followed it how far.
//!
//! Plane: control. Reads only.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use super::Api;
use super::extract::Params;
use super::problem::Problem;
use super::respond::{self, Page, PageQuery};
use crate::clock::Timestamp;
use crate::wire::{Epoch, Revision};

/// Where the control plane stands.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Status {
    /// Where its log ends, `EPOCH.REVISION`.
    position: String,
    epoch: Epoch,
    revision: Revision,
    /// Of the software.
    version: &'static str,
    started_at: Timestamp,
    uptime_seconds: u64,
    time: Timestamp,
}

pub(super) async fn show(State(api): State<Arc<Api>>) -> Response {
    let position = api.core.index().position();
    let now = api.core.clock().now().wall;
    let body = Status {
        position: position.to_string(),
        epoch: position.epoch,
        revision: position.revision,
        version: env!("CARGO_PKG_VERSION"),
        started_at: api.started,
        uptime_seconds: now.since(api.started).as_secs(),
        time: now,
    };
    respond::json(StatusCode::OK, &body)
}

pub(super) async fn enforcement_points(
    State(api): State<Arc<Api>>,
    Params(query): Params<PageQuery>,
) -> Result<Response, Problem> {
    let all = api.fleet.list(api.core.index().position());
    // No name of an identity has a `#`.
    Ok(Page::try_from(query)?.of(&api, all, |point| format!("{}#{}", point.identity, point.instance)))
}
