//! `loopback --proxy`: CPU of a proxied request: Portcullis as a reverse proxy, a plain hyper proxy that looks at nothing, and
//! Envoy with `static-allow` behind it, in turn.
//!
//! Budget B11. All three forward to the same upstream, HTTP/1.1 on both sides, over connections that are kept, one worker
//! thread each; what Envoy costs is both its processes. The plain proxy lives here and nowhere else: one upstream connection
//! for each of the client's, the body passed on, no header touched.

use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use portcullis::bench::{Comparison, Pace, Settings, Target};
use portcullis::cache::Gate;
use portcullis::door::{self, Checks};
use portcullis::drain;
use portcullis::proxy::{self, Config, Limits, Listener, Protocol, Timeouts, UpstreamConfig};
use portcullis::telemetry::Telemetry;
use tokio::net::{TcpListener, TcpStream};

use super::saturated::{defaults, measure, ratio, warm};
use super::through_envoy::envoy::Envoy;
use super::{Server, through_envoy};

pub(crate) fn run(grants: &str, rounds: usize, seconds: u64) {
    let upstream = Server::start("upstream", grants);
    let to = ["--to", upstream.address.as_str()];
    let ours = Server::spawn("proxy", grants, &to);
    let plain = Server::spawn("plain-proxy", grants, &to);
    let allows = Server::start("static-allow", grants);
    let envoy = Envoy::start(&through_envoy::configuration(&upstream, &allows));
    let of =
        |server: &Server| format!("{}=http://{}", server.name, server.address).parse::<Target>().expect("a target");
    let in_front = format!("envoy+static-allow=http://{}", envoy.address).parse::<Target>().expect("a target");
    let settings = Settings {
        targets: vec![of(&ours), of(&plain), in_front],
        pids: vec![
            (ours.name.to_owned(), ours.child.id()),
            (plain.name.to_owned(), plain.child.id()),
            ("envoy+static-allow".to_owned(), envoy.pid()),
            ("envoy+static-allow".to_owned(), allows.child.id()),
        ],
        // One request at a time on a connection.
        connections: 16,
        streams: 1,
        rounds,
        duration: Duration::from_secs(seconds),
        ..defaults(Pace::Saturate)
    };
    let report = measure(&warm(&ours.token), &settings);
    for target in &report.targets {
        for (n, round) in target.rounds.iter().enumerate() {
            let cpu = round.cpu_us.expect("its CPU");
            println!("round {}  {:<20} {cpu:7.2} us CPU a request  {:8.0} requests/s", n + 1, target.name, round.rate);
        }
    }
    let [ours, plain, envoy] = report.targets.as_slice() else { panic!("three targets") };
    for (name, other) in [("a plain hyper proxy", plain), ("Envoy + static-allow", envoy)] {
        let of = Comparison::of(ours, other);
        println!(
            "median    B11: the reverse proxy against {name:<20} {}",
            ratio(of.ratios.get("cpu").expect("their CPU"))
        );
    }
}

/// The reverse proxy, before everything that is asked for.
pub(crate) async fn serve(listener: TcpListener, gate: Arc<Gate>, telemetry: Arc<Telemetry>, to: String) {
    let upstream = UpstreamConfig {
        service: "catalog".to_owned(),
        addresses: vec![to],
        protocol: Protocol::Http1,
        tls: None,
        timeouts: Timeouts::default(),
        retries: 1,
        max_requests: 1024,
        health: None,
    };
    let config = Config {
        listener: Listener::default(),
        upstreams: vec![upstream],
        trusted_forwarders: Vec::new(),
        upgrades: Vec::new(),
        limits: Limits::default(),
    };
    let checks = Checks::new(gate, telemetry, &door::Config::default()).expect("threads");
    let (_drain, signal) = drain::channel();
    let bound = proxy::Bound::new(listener, config).expect("no certificates");
    proxy::serve(bound, checks, signal).await.expect("serving");
}

/// A proxy that looks at nothing.
pub(crate) async fn plain(listener: TcpListener, to: String) {
    println!("{}\n-\n-", listener.local_addr().expect("an address"));
    let to: Arc<str> = to.into();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let to = Arc::clone(&to);
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let upstream = TcpStream::connect(&*to).await.expect("the upstream");
            let _ = upstream.set_nodelay(true);
            let (sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(upstream)).await.expect("a connection");
            tokio::spawn(connection);
            let sender = Arc::new(tokio::sync::Mutex::new(sender));
            let service = service_fn(move |request| {
                let sender = Arc::clone(&sender);
                async move {
                    let mut sender = sender.lock().await;
                    sender.ready().await?;
                    sender.send_request(request).await
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
