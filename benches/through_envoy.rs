//! `loopback --envoy`: latency through the real Envoy, Portcullis behind it and `static-allow` behind another of the same
//! configuration, in turn.
//!
//! Budget B4. Envoy is started twice on `envoy/sidecar-grpc-tcp.yaml`, one worker each, with the same upstream; the load is
//! HTTP/1.1 at a fixed rate, free of coordinated omission. Whose turn it is not is idle.

use std::time::Duration;

use portcullis::bench::{Pace, Settings, Target};
use tokio::net::TcpListener;

use self::envoy::Envoy;
use super::Server;
use super::saturated::{defaults, measure, ratio, warm};

#[path = "../tests/it/envoy.rs"]
#[allow(dead_code, reason = "the tests' Envoy can more than is needed here")]
pub(crate) mod envoy;

/// What is asked for.
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) seconds: u64,
    /// Requests a second.
    pub(crate) rates: Vec<u64>,
}

pub(crate) fn run(grants: &str, plan: &Plan) {
    let upstream = Server::start("upstream", grants);
    let servers = [Server::start("static-allow", grants), Server::start("portcullis", grants)];
    let envoys = servers.each_ref().map(|server| Envoy::start(&configuration(&upstream, server)));
    let mix = warm(&servers[1].token);
    let targets = servers.iter().zip(&envoys);
    let targets = targets.map(|(server, envoy)| format!("{}=http://{}", server.name, envoy.address).parse::<Target>());
    let targets: Vec<_> = targets.collect::<Result<_, _>>().expect("targets");
    for rate in &plan.rates {
        let report = measure(
            &mix,
            &Settings {
                targets: targets.clone(),
                pids: servers.iter().map(|server| (server.name.to_owned(), server.child.id())).collect(),
                rounds: plan.rounds,
                duration: Duration::from_secs(plan.seconds),
                streams: 4,
                ..defaults(Pace::Rate(*rate as f64))
            },
        );
        for target in &report.targets {
            let [p50, p99] = ["p50", "p99"].map(|name| target.latency_us.get(name));
            println!("{:<20} p50 {p50:7.0} us  p99 {p99:7.0} us", target.name);
        }
        let comparison = report.comparisons.first().expect("two targets");
        for name in ["p50", "p99"] {
            let of = comparison.ratios.get(name).expect("a ratio");
            println!("median    B4: {name} at {rate}/s through Envoy, against static-allow  {}", ratio(of));
        }
    }
}

/// Envoy's configuration, with `server` behind it and `upstream` to forward to.
pub(crate) fn configuration(upstream: &Server, server: &Server) -> String {
    let port = |address: &str| address.rsplit_once(':').expect("a port").1.to_owned();
    let configuration = std::fs::read_to_string(envoy::root().join("envoy/sidecar-grpc-tcp.yaml"));
    configuration
        .expect("the example")
        .replace("port_value: 10000", "port_value: 0")
        .replace("port_value: 9901", "port_value: 0")
        .replace("port_value: 9190", &format!("port_value: {}", port(&upstream.address)))
        .replace("port_value: 9191", &format!("port_value: {}", port(&server.address)))
}

/// What Envoy forwards to.
pub(crate) async fn upstream(listener: TcpListener) {
    println!("{}\n-\n-", listener.local_addr().expect("an address"));
    axum::serve(listener, axum::Router::new().fallback(|| async { "ok" })).await.expect("serving");
}
