//! `examples/caddy/Caddyfile` on the real Caddy: `forward_auth` in front of a service.

use crate::envoy_config::echo_service;
use crate::forward_auth::{Door, Proxy, Traits, binary, example, put, tell};
use crate::running::address_to_keep;

#[tokio::test(flavor = "multi_thread")]
async fn caddy_asks_and_does_as_it_is_told() {
    let (door, service) = (Door::open().await, echo_service().await);
    let told = tokio::task::spawn_blocking(move || {
        let address = address_to_keep();
        let port = address.rsplit(':').next().unwrap();
        let file = put(&example("caddy/Caddyfile"), "\n:8080 {", &format!("\n:{port} {{"));
        let file = put(&file, "forward_auth 127.0.0.1:9192", &format!("forward_auth {}", door.address));
        let file = put(&file, "reverse_proxy 127.0.0.1:9190", &format!("reverse_proxy {service}"));
        let files = [("Caddyfile", file)];
        let args = ["run", "--config", "Caddyfile"];
        let caddy = Proxy::start(&binary("caddy"), &files, &args, address.parse().unwrap());
        let traits =
            Traits { unavailable: 503, silent: &[502, 503, 504], passes_forwarded: false, passes_min_revision: false };
        tell(&door, caddy.address, &traits);
    });
    told.await.unwrap();
}
