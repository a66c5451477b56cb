//! Whom a connection is made to: the address that was vetted, no proxy, and who is trusted without a CA file.

use std::process::Command;

use rcgen::SanType;
use serde_json::json;

use super::endpoint::Ca;
use super::harness::{Site, config, jwks, oidc};
use crate::control::keys::KeysConfig;
use crate::control::keys::http::{Http, Peer};
use crate::control::keys::vet::Vetted;

/// Names below `invalid` resolve to nothing (RFC 6761), so that a second look-up would fail.
#[tokio::test]
async fn a_name_is_not_looked_up_again_after_its_addresses_were_vetted() {
    let ca = Ca::new();
    let endpoint = ca.endpoint_as(vec![SanType::DnsName("rebound.invalid".try_into().unwrap())]).await;
    endpoint.serve_json("/keys", &jwks(&["one"]));
    let KeysConfig { allowed, ca_file, timeout, max_bytes, .. } = config(&ca);
    crate::tls::install_provider();
    let http = Http { allowed, ca_file, timeout, max_bytes };
    let vetted = Vetted { host: "rebound.invalid".to_owned(), addresses: vec![endpoint.address] };
    let client = http.client(vetted, Peer::WebPki).await.unwrap();
    let get = async |host: &str| client.get(format!("https://{host}:{}/keys", endpoint.address.port())).send().await;
    assert_eq!(get("rebound.invalid").await.unwrap().status(), 200);
    get("other.invalid").await.unwrap_err();
    assert_eq!(endpoint.times_asked(), 1);
}

/// The environment is a process's, so the test of an ordinary fetch is run again as one that has a proxy in it.
#[test]
fn the_environments_proxy_is_not_used() {
    let test = "control::keys::tests::web::a_key_set_is_fetched_rotated_and_emptied";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test]).env_remove("NO_PROXY").env_remove("no_proxy");
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(name, "http://127.0.0.1:1");
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn without_a_ca_file_the_systems_roots_count_and_no_private_ca_does() {
    let ca = Ca::new();
    let endpoint = ca.endpoint().await;
    endpoint.serve_json("/keys", &jwks(&["one"]));
    let site = Site::new(KeysConfig { ca_file: None, ..config(&ca) }).await;
    site.put(&oidc("idp", &json!({ "type": "jwks_uri", "url": endpoint.url("/keys") }))).await;
    site.fails_with("idp", "unreachable", "certificate").await;
    assert_eq!(site.kids("idp"), [""; 0]);
    assert_eq!(endpoint.times_asked(), 0);
}
