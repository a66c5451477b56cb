//! The admin servers: health, metrics, log level; for a sidecar also its snapshot and single checks.
//!
//! Plane: cross-cutting, on a runtime of its own so that a scrape cannot delay a check, nor a flood of checks a
//! liveness probe. INVARIANT: nothing here changes a decision; only the log level can be changed. It has no
//! authentication and belongs on loopback: what `/v1/check` answers, its caller could also ask Envoy.

mod check;
mod snapshot;

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;

pub use self::check::{CheckAnswer, CheckBody, HeaderValues};
use crate::cache::Gate;
use crate::readiness::Readiness;
use crate::telemetry::{Exposition, LevelHandle, Telemetry};

/// The largest request body: a check with as many headers as a door accepts.
const MAX_BODY_BYTES: usize = 256 * 1024;

/// What every process shows.
#[derive(Debug, Clone)]
pub struct Common {
    /// What it waits for.
    pub readiness: Readiness,
    /// Its metrics.
    pub exposition: Exposition,
    /// Its log level.
    pub level: LevelHandle,
}

#[derive(Debug, Clone)]
struct Sidecar {
    gate: Arc<Gate>,
    telemetry: Arc<Telemetry>,
    grant_request_url: Option<Arc<str>>,
}

/// `/livez`, `/readyz` and `/metrics`: what an orchestrator and a scraper on other machines need, and may see.
pub fn probes_router(common: Common) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(common)
}

/// [`probes_router`] and `/loglevel`: all that the control plane shows.
pub fn router(common: Common) -> Router {
    Router::new()
        .route("/loglevel", get(level).put(set_level))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(common.clone())
        .merge(probes_router(common))
}

/// [`router`], and `/snapshot` and `POST /v1/check`.
pub fn sidecar_router(
    common: Common,
    gate: Arc<Gate>,
    telemetry: Arc<Telemetry>,
    grant_request_url: Option<String>,
) -> Router {
    let sidecar = Sidecar { gate, telemetry, grant_request_url: grant_request_url.map(Arc::from) };
    let own = Router::new()
        .route("/snapshot", get(snapshot::show))
        .route("/v1/check", post(check::check))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(sidecar);
    router(common).merge(own)
}

/// Serves a router until `stop`. Pass what ends after the doors have: probes and scrapes are answered while draining.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (told, telling) = tokio::sync::oneshot::channel::<()>();
    let stop = async {
        stop.await;
        drop(told);
    };
    tokio::select! {
        served = axum::serve(listener, router).with_graceful_shutdown(stop).into_future() => served,
        // A client that keeps its connection open must not keep the process.
        () = async {
            let _ = telling.await;
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        } => Ok(()),
    }
}

async fn readyz(State(common): State<Common>) -> Response {
    if common.readiness.is_ready() {
        return "ready\n".into_response();
    }
    let waiting = common.readiness.waiting_for().join(", ");
    (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {waiting}\n")).into_response()
}

async fn metrics(State(common): State<Common>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], common.exposition.render()).into_response()
}

async fn level(State(common): State<Common>) -> Response {
    match common.level.level() {
        Ok(level) => format!("{level}\n").into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

async fn set_level(State(common): State<Common>, wanted: String) -> Response {
    match common.level.set(&wanted) {
        Ok(()) => {
            tracing::info!(level = wanted.trim(), "log level changed");
            level(State(common)).await
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests;
