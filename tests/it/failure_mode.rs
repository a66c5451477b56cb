//! Invariant 9 on the real Envoy, told to let requests pass when authorization fails: a sidecar that is unsynced, stale
//! or overloaded still keeps them out, because its denials are answers and not failures.

use std::sync::Arc;
use std::time::Duration;

use portcullis::authz::Lease;
use portcullis::clock::{Clock, SystemClock};
use portcullis::state::State;
use portcullis::telemetry::Output;
use portcullis::testing::Estate;
use portcullis::{drain, ext_authz};

use crate::door;
use crate::envoy::Envoy;
use crate::envoy_config::echo_service;

#[tokio::test(flavor = "multi_thread")]
async fn invariant_09_no_failure_of_ours_opens_an_envoy_that_allows_on_failure() {
    let clock = Arc::new(SystemClock::new());
    let estate = Estate::new_at(clock.now().wall);
    let token = format!("authorization: Bearer {}", estate.token("storefront"));
    let headers = [token.as_str()];
    let state = Arc::new(State::new());
    let now = clock.now();
    let lease = |age: u64| Lease {
        server_time: now.wall.saturating_sub(Duration::from_secs(age)),
        received: now.mono,
        lease: Duration::from_secs(10),
        max_staleness: Duration::from_secs(300),
    };

    let (envoy, _drain) = stack(&state, clock.clone(), 100).await;
    let unsynced = envoy.get("/catalog/1", &headers);
    assert_eq!(unsynced.status, 503, "unsynced: {}", unsynced.body);
    assert!(unsynced.body.contains("\"reason\":\"system\""), "{}", unsynced.body);
    state.restore(Arc::new(estate.snapshot()), lease(301));
    let stale = envoy.get("/catalog/1", &headers);
    assert_eq!(stale.status, 503, "stale: {}", stale.body);
    state.renew(lease(0));
    assert_eq!(envoy.get("/catalog/1", &headers).status, 200, "and it does answer when it can");

    let (overloaded, _drain) = stack(&state, clock, 0).await;
    let shed = overloaded.get("/catalog/1", &headers);
    assert_eq!(shed.status, 503, "overloaded: {}", shed.body);
    assert!(shed.body.contains("\"reason\":\"system\""), "{}", shed.body);
}

async fn stack(state: &Arc<State>, clock: Arc<SystemClock>, checks: usize) -> (Envoy, drain::Drain) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = ext_authz::Config { max_concurrent_checks: checks, ..ext_authz::Config::default() };
    let listeners = ext_authz::Listeners { tcp: Some(listener), ..Default::default() };
    let (_, drain) = door::serve(door::gate(state, &clock), listeners, config, Output::Off);
    let configuration = door::on_free_ports("sidecar-grpc-tcp.yaml", echo_service().await);
    assert!(configuration.contains("failure_mode_allow: false"));
    let configuration = configuration
        .replace("failure_mode_allow: false", "failure_mode_allow: true")
        .replace("port_value: 9191", &format!("port_value: {}", address.port()));
    let envoy = tokio::task::spawn_blocking(move || Envoy::start(&configuration)).await.unwrap();
    (envoy, drain)
}
