//! `examples/nginx/nginx.conf` on Debian's nginx: `auth_request` in front of a service.

use crate::envoy_config::echo_service;
use crate::forward_auth::{Door, Proxy, Traits, binary, example, put, tell};
use crate::running::address_to_keep;

#[tokio::test(flavor = "multi_thread")]
async fn nginx_asks_and_does_as_it_is_told() {
    let (door, service) = (Door::open().await, echo_service().await);
    let told = tokio::task::spawn_blocking(move || {
        let address = address_to_keep();
        let mut conf = example("nginx/nginx.conf");
        for (from, to) in [
            ("127.0.0.1:9192", door.address.to_string()),
            ("127.0.0.1:9190", service.to_string()),
            ("127.0.0.1:8080", address.clone()),
            ("/tmp/nginx-portcullis", "./nginx-portcullis".to_owned()),
            // One process: a worker would outlive a master that is killed. As root it would answer as nobody, who may not write here.
            ("worker_processes auto;", format!("worker_processes 1;\nmaster_process off;\n{}", as_this_user())),
        ] {
            conf = put(&conf, from, &to);
        }
        let files = [("nginx.conf", conf)];
        // Relative names in the file are relative to the prefix.
        let args = ["-p", ".", "-c", "nginx.conf"];
        let nginx = Proxy::start(&binary("nginx"), &files, &args, address.parse().unwrap());
        let traits = Traits { unavailable: 503, silent: &[503], passes_forwarded: false, passes_min_revision: true };
        tell(&door, nginx.address, &traits);
        // The access log has the decision that each line was.
        let log = nginx.log();
        assert!(log.contains("\"GET /catalog/1\" 200 ") && log.contains(" entitlement.no_grant"), "{log}");
    });
    told.await.unwrap();
}

fn as_this_user() -> &'static str {
    if rustix::process::getuid().is_root() { "user root;" } else { "" }
}
