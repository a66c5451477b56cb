//! `examples/traefik/` on the real Traefik: `forwardAuth` in front of a service.

use std::time::{Duration, Instant};

use crate::envoy::exchange;
use crate::envoy_config::echo_service;
use crate::forward_auth::{Door, Proxy, Traits, binary, example, put, tell};
use crate::running::address_to_keep;

#[tokio::test(flavor = "multi_thread")]
async fn traefik_asks_and_does_as_it_is_told() {
    let (door, service) = (Door::open().await, echo_service().await);
    let told = tokio::task::spawn_blocking(move || {
        let address = address_to_keep();
        let fixed = put(&example("traefik/traefik.yaml"), "127.0.0.1:8080", &address);
        let fixed = put(&fixed, "examples/traefik/dynamic.yaml", "dynamic.yaml");
        let dynamic = put(&example("traefik/dynamic.yaml"), "127.0.0.1:9192", &door.address.to_string());
        let dynamic = put(&dynamic, "127.0.0.1:9190", &service.to_string());
        let files = [("traefik.yaml", fixed), ("dynamic.yaml", dynamic)];
        let args = ["--configFile=traefik.yaml"];
        let traefik = Proxy::start(&binary("traefik"), &files, &args, address.parse().unwrap());
        // It listens before it knows its routes.
        let deadline = Instant::now() + Duration::from_secs(30);
        let ask = b"GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n";
        while exchange(traefik.address, ask).is_ok_and(|answer| answer.status == 404) {
            assert!(Instant::now() < deadline, "{}", traefik.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        let traits =
            Traits { unavailable: 503, silent: &[500, 502, 503], passes_forwarded: false, passes_min_revision: true };
        tell(&door, traefik.address, &traits);
    });
    told.await.unwrap();
}
