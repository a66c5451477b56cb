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
use super::respond;
use crate::clock::Timestamp;
use crate::control::fleet::EnforcementPoint;
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

/// Every instance of an enforcement point.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PointList {
    items: Vec<EnforcementPoint>,
    /// Where the log ends, `EPOCH.REVISION`.
    position: String,
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

pub(super) async fn enforcement_points(State(api): State<Arc<Api>>) -> Response {
    let tip = api.core.index().position();
    let body = PointList { items: api.fleet.list(tip), position: tip.to_string() };
    respond::json(StatusCode::OK, &body)
}
