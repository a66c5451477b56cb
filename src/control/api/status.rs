//! Where the control plane stands, and who has followed it how far.
//!
//! Plane: control. Reads only.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use super::Api;
use super::respond;

pub(super) async fn show(State(api): State<Arc<Api>>) -> Response {
    let position = api.core.index().position();
    let now = api.core.clock().now().wall;
    let body = json!({
        "position": position.to_string(),
        "epoch": position.epoch,
        "revision": position.revision,
        "version": env!("CARGO_PKG_VERSION"),
        "started_at": api.started,
        "uptime_seconds": now.since(api.started).as_secs(),
        "time": now,
    });
    respond::json(StatusCode::OK, &body)
}

pub(super) async fn enforcement_points(State(api): State<Arc<Api>>) -> Response {
    let tip = api.core.index().position();
    let body = json!({ "items": api.fleet.list(tip), "position": tip.to_string() });
    respond::json(StatusCode::OK, &body)
}
