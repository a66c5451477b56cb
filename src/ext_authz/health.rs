//! `grpc.health.v1`, tied to readiness. Plane: cross-cutting.
//!
//! Serving means ready and not draining. Before the first status is set everything is NOT_SERVING, so a door that is
//! listening early is not sent work. Health never decides a check: a door that is not ready still answers, with denials.

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use super::SERVICE;
use crate::drain;
use crate::readiness::Readiness;

/// Reports for the server as a whole and for the one service.
#[derive(Debug, Clone)]
pub(super) struct Health(HealthReporter);

// === impl Health ===

impl Health {
    /// NOT_SERVING, until [`Health::follow`] runs.
    pub(super) async fn new() -> Self {
        let health = Self(HealthReporter::new());
        health.set(false).await;
        health
    }

    /// The gRPC service.
    pub(super) fn service(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.0.clone()))
    }

    /// Follows readiness until the drain begins.
    pub(super) async fn follow(self, readiness: Readiness, drain: drain::Signal) {
        let mut watch = readiness.watch();
        loop {
            let ready = *watch.borrow_and_update();
            self.set(ready && !drain.is_draining()).await;
            tokio::select! {
                changed = watch.changed() => if changed.is_err() { break },
                () = drain.draining() => break,
            }
        }
        self.set(false).await;
    }

    async fn set(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.0.set_service_status("", status).await;
        self.0.set_service_status(SERVICE, status).await;
    }
}
