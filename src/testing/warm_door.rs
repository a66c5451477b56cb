//! The ext_authz door on a small estate, with both caches warm for one token: what counts of instructions and allocations
//! are taken on.
//!
//! Feature `testing`. Panics when it cannot be set up. Its clock stands still; nothing is cached that was not asked.
#![allow(clippy::expect_used, reason = "test support: a broken fixture should stop the test")]

use std::sync::Arc;

use super::{Estate, Size, request};
use crate::cache::{CacheSizes, Gate};
use crate::ext_authz::{Bare, Config};
use crate::telemetry::{Output, Records, RecordsConfig, SidecarMetrics, Telemetry};

/// A door, and a token that it knows: of `storefront`, which may `GET /catalog/1` by policy and `POST /refunds/7` by a
/// grant.
#[derive(Debug)]
pub struct WarmDoor {
    /// The door.
    pub door: Bare,
    /// The token.
    pub token: String,
}

// === impl WarmDoor ===

impl WarmDoor {
    /// With 1,000 grants, 100 policies, 1,000 workloads, metrics, and records that go to `output`.
    pub async fn new(output: Output) -> Self {
        let estate = Estate::sized(Size { grants: 1_000, policies: 100, workloads: 1_000 });
        let clock = Arc::clone(&estate.clock);
        let sizes = CacheSizes { tokens: 100_000, decisions: 100_000 };
        let gate = Gate::new(estate.state(), Arc::clone(&clock) as _, sizes);
        let metrics = Arc::new(SidecarMetrics::new().expect("metrics"));
        let config = RecordsConfig { output, queue: 65_536 };
        let records = Records::start(config, metrics.records_dropped().clone()).expect("records");
        let telemetry = Telemetry::new(metrics, records, None, clock);
        let token = estate.token("storefront");
        let headers = [("authorization", format!("Bearer {token}"))];
        // Here the signature is verified and policy is asked; from then on both are known.
        for asked in [request("GET", "/catalog/1", &headers), request("POST", "/refunds/7", &headers)] {
            let decision = gate.check(&asked);
            assert!(decision.permit().is_some(), "{}", decision.reason);
        }
        let door = Bare::new(Arc::new(gate), telemetry, Config::default()).await.expect("a door");
        Self { door, token }
    }
}
