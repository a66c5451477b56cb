//! `/snapshot`: which state checks are answered from, and how fresh it is. Plane: cross-cutting. Reads only.
//!
//! Built on demand, off the request path: the digest walks the whole state. Holds no token and no grant's reason.
//! Before the first sync it says so instead of showing an empty state.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Sidecar;
use crate::clock::Timestamp;
use crate::wire::Position;

/// What `/snapshot` answers.
#[derive(Debug, Serialize)]
struct Shown {
    /// `EPOCH.REV`; null before the first sync.
    revision: Option<String>,
    /// Over every object; equal for equal content.
    digest: Option<String>,
    /// Objects of each kind.
    objects: BTreeMap<&'static str, usize>,
    /// Why every request is denied, when the state demands that.
    denies_everything: Option<String>,
    lease: Option<ShownLease>,
}

#[derive(Debug, Serialize)]
struct ShownLease {
    /// The control plane's clock when it last confirmed the state.
    confirmed_at: Timestamp,
    age_ms: u64,
    /// When `strict` routes stop answering.
    strict_until: Timestamp,
    /// When every route stops answering.
    good_until: Timestamp,
}

pub(super) async fn show(State(sidecar): State<Sidecar>) -> Response {
    // A digest over a large snapshot takes a while.
    let shown = tokio::task::spawn_blocking(move || {
        let now = sidecar.gate.clock().now();
        let world = sidecar.gate.state().load();
        Shown {
            revision: world.snapshot.as_ref().map(|s| Position::to_string(&s.position())),
            digest: world.snapshot.as_ref().map(|s| s.digest()),
            objects: world.snapshot.iter().flat_map(|s| s.counts()).map(|(kind, count)| (kind.name(), count)).collect(),
            denies_everything: world.snapshot.as_ref().and_then(|s| s.denies_everything().map(str::to_owned)),
            lease: world.lease.map(|lease| ShownLease {
                confirmed_at: lease.server_time,
                age_ms: u64::try_from(lease.age(now).as_millis()).unwrap_or(u64::MAX),
                strict_until: lease.good_until(now, true),
                good_until: lease.good_until(now, false),
            }),
        }
    });
    match shown.await {
        Ok(shown) => Json(shown).into_response(),
        Err(_panicked) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
