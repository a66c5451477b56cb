//! PLACEHOLDER with the signatures of the sync server's fleet; replaced when that is merged.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::clock::{SharedClock, Timestamp};
use crate::credential::SpiffeId;
use crate::wire::Position;

/// An enforcement point as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointConfig {
    /// Its SPIFFE ID.
    pub identity: SpiffeId,
    /// Its services.
    pub services: Vec<String>,
}

/// Settings of the fleet.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// The enforcement points.
    pub points: Vec<PointConfig>,
    /// The staleness bound.
    pub max_staleness: Duration,
    /// Registry.
    pub registry_file: Option<PathBuf>,
    /// Limit.
    pub max_instances: usize,
}

/// The enforcement points.
#[derive(Debug)]
pub struct Fleet {
    clock: SharedClock,
    max_staleness: Duration,
}

/// Listed.
#[derive(Debug, Serialize)]
pub struct EnforcementPoint {
    /// SPIFFE ID.
    pub identity: String,
}

/// What has become of a revision.
#[derive(Debug, Serialize)]
pub struct Receipt {
    /// The revision.
    pub revision: String,
    /// When it was committed.
    pub committed_at: Timestamp,
    /// Until when the rest may answer.
    pub deny_after: Timestamp,
    /// Whether nothing is pending.
    pub complete: bool,
}

impl Fleet {
    /// Opens it.
    pub fn open(clock: SharedClock, config: FleetConfig) -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self { clock, max_staleness: config.max_staleness }))
    }

    /// Lists it.
    pub fn list(&self, _tip: Position) -> Vec<EnforcementPoint> {
        Vec::new()
    }

    /// The receipt of `position`.
    pub async fn receipt(&self, position: Position, committed_at: Timestamp, _wait: Duration) -> Receipt {
        let deny_after = self.clock.now().wall.saturating_add(self.max_staleness);
        Receipt { revision: position.to_string(), committed_at, deny_after, complete: true }
    }
}
