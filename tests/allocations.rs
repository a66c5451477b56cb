//! How often a warm check allocates, counted: from its message to its answer, and in the whole server beside
//! `static-allow`. A bound that grows is a regression on the hot path; one that shrinks is written down here.
#![cfg(test)]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests and their client fail by panicking"
)]

#[path = "../benches/floor.rs"]
mod floor;
#[path = "../benches/gate/wire.rs"]
mod wire;

mod counted {
    use std::sync::Arc;

    use allocation_counter::measure;
    use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
    use envoy_types::pb::envoy::service::auth::v3::authorization_server::AuthorizationServer;
    use portcullis::telemetry::Output;
    use portcullis::testing::WarmDoor;
    use prost::Message;
    use tokio::runtime::Runtime;

    use super::floor::{StaticAllow, check_request};
    use super::wire::{Client, Seen, Wire};

    /// The answer's buffer, and what counts who holds it.
    const WARM_CHECK: u64 = 2;
    /// Of the server, with HTTP/2.
    const SERVER: f64 = 19.5;
    const CHECKS: u64 = 1_000;

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn message(token: &str) -> Vec<u8> {
        check_request(token, 0).encode_to_vec()
    }

    #[test]
    fn a_warm_check_allocates_its_answer_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.jsonl");
        let file = Output::File { path, max_bytes: 1 << 30, keep: 1 };
        for (output, allowed) in [(Output::Off, WARM_CHECK), (file, WARM_CHECK)] {
            let recorded = output != Output::Off;
            let WarmDoor { door, token } = runtime().block_on(WarmDoor::new(output));
            let message = message(&token);
            (0..1_000).for_each(|_| drop(door.answer(&message).unwrap()));
            let counted = measure(|| (0..CHECKS).for_each(|_| drop(door.answer(&message).unwrap())));
            // The caches keep house now and then, and a chunk of records is allocated for 512 of them.
            let most = allowed * CHECKS + CHECKS / 20;
            println!("recorded: {recorded}, {CHECKS} checks: {counted:?}");
            assert!(counted.count_total <= most, "recorded: {recorded}, {CHECKS} checks: {counted:?}");
            assert!(counted.count_total >= CHECKS, "an answer is allocated, or this counts nothing: {counted:?}");
        }
    }

    /// How often a server allocates for a check, and how often it writes.
    fn server<S>(start: impl FnOnce(Wire) -> S, in_flight: usize, token: &str) -> (f64, f64)
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let runtime = runtime();
        let (client, wire) = Client::new(&[message(token)], in_flight);
        let serving = runtime.spawn(start(wire));
        runtime.block_on(client.run(1_000));
        let mut seen = None;
        let counted = measure(|| seen = Some(runtime.block_on(client.run(CHECKS as usize))));
        let answer = CheckResponse::decode(&*client.last_answer()).unwrap();
        assert_eq!(answer.status.unwrap().code, 0, "the answer must be an allow");
        client.close();
        runtime.block_on(serving).unwrap();
        let Seen { reads, writes, bytes } = seen.unwrap();
        println!("{CHECKS} checks, {in_flight} in flight: {counted:?}, {reads} reads, {writes} writes, {bytes} bytes");
        (counted.count_total as f64 / CHECKS as f64, writes as f64 / CHECKS as f64)
    }

    #[test]
    fn the_server_allocates_less_than_static_allow_and_writes_once() {
        let WarmDoor { door, token } = runtime().block_on(WarmDoor::new(Output::Off));
        let door = Arc::new(door);
        for in_flight in [1, 16] {
            let static_allow = |wire| async move {
                let incoming = tokio_stream::once(std::io::Result::Ok(wire));
                let service = AuthorizationServer::new(StaticAllow);
                let mut server = tonic::transport::Server::builder();
                server.add_service(service).serve_with_incoming(incoming).await.unwrap();
            };
            let (floor, _) = server(static_allow, in_flight, &token);
            let door = Arc::clone(&door);
            let (ours, writes) = server(|wire| async move { door.serve(wire).await }, in_flight, &token);
            assert!(ours <= SERVER, "{in_flight} in flight: {ours} allocations a check");
            assert!(ours < floor, "{in_flight} in flight: {ours} allocations a check, static-allow {floor}");
            let most = 1.0 / in_flight as f64 + 0.01;
            assert!(writes <= most, "{in_flight} in flight: {writes} writes a check, where {most} would do");
        }
    }
}
