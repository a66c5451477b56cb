//! A sidecar's ext_authz door in this process, with the system's clock, and the files of `envoy/` on free ports: for the
//! tests that put the real Envoy in front of it.

use std::net::SocketAddr;
use std::sync::Arc;

use portcullis::authz::Lease;
use portcullis::cache::{CacheSizes, Gate};
use portcullis::clock::{Clock, SystemClock};
use portcullis::drain::{self, Drain};
use portcullis::ext_authz::{self, Config, Listeners};
use portcullis::readiness::Readiness;
use portcullis::state::State;
use portcullis::telemetry::{Output, Records, RecordsConfig, SidecarMetrics, Telemetry};
use portcullis::testing::Estate;

use crate::envoy_config::file;

/// A gate on `state`, which may be empty.
pub(crate) fn gate(state: &Arc<State>, clock: &Arc<SystemClock>) -> Gate {
    Gate::new(Arc::clone(state), clock.clone() as _, CacheSizes { tokens: 100, decisions: 100 })
}

/// A state that holds the estate, confirmed just now.
pub(crate) fn state(estate: &Estate, clock: &SystemClock) -> Arc<State> {
    let (now, state) = (clock.now(), Arc::new(State::new()));
    let lease = Lease { server_time: now.wall, received: now.mono, ..estate.lease() };
    state.restore(Arc::new(estate.snapshot()), lease);
    state
}

/// Serves until the drain is dropped.
pub(crate) fn serve(gate: Gate, listeners: Listeners, config: Config, records: Output) -> (Arc<Telemetry>, Drain) {
    let metrics = Arc::new(SidecarMetrics::new().unwrap());
    let records = RecordsConfig { output: records, queue: 100 };
    let records = Records::start(records, metrics.records_dropped().clone()).unwrap();
    let telemetry = Telemetry::new(metrics, records, None, Arc::clone(gate.clock()));
    let (drain, signal) = drain::channel();
    let (gate, told) = (Arc::new(gate), Arc::clone(&telemetry));
    tokio::spawn(ext_authz::serve(listeners, gate, told, Readiness::new(), config, signal));
    (telemetry, drain)
}

/// A file of `envoy/` on free ports, with `service` behind it.
pub(crate) fn on_free_ports(name: &str, service: SocketAddr) -> String {
    file(name)
        .replace("port_value: 10000", "port_value: 0")
        .replace("port_value: 9901", "port_value: 0")
        .replace("port_value: 9190", &format!("port_value: {}", service.port()))
}
