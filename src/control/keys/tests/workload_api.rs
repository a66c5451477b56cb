//! The Workload API over a Unix socket, spoken for real: rotation, removal of a trust domain, restart.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::{Value, json};

use super::endpoint::Ca;
use super::harness::{Site, config, eventually, jwk, spiffe};
use crate::control::keys::KeysConfig;
use crate::testing::SpiffeAgent;

fn set_jwt(agent: &SpiffeAgent, domain: &str, set: &Value) {
    agent.jwt.send_modify(|all| drop(all.insert(format!("spiffe://{domain}"), set.to_string().into())));
}

/// As SPIRE sends them: without a use.
fn plain(kid: &str) -> Value {
    let mut key = jwk(kid, "");
    key.as_object_mut().unwrap().remove("use");
    key
}

fn workload_api(name: &str) -> Value {
    spiffe(name, &json!({ "type": "workload_api" }))
}

#[tokio::test]
async fn bundles_rotate_vanish_and_survive_a_restart() {
    let ca = Ca::new();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let mut agent = SpiffeAgent::default();
    set_jwt(&agent, "td.example", &json!({ "keys": [plain("one")] }));
    set_jwt(&agent, "other.example", &json!({ "keys": [plain("of-other")] }));
    let two_authorities = [ca.der(), Ca::new().der()].concat();
    agent.x509.send_modify(|all| drop(all.insert("spiffe://td.example".to_owned(), two_authorities.into())));
    let site = Site::new(KeysConfig { workload_api: Some(socket.clone()), ..config(&ca) }).await;
    site.put(&workload_api("td")).await;
    site.put(&workload_api("other")).await;
    site.fails_with("td", "unreachable", "no connection").await;
    agent.start(&socket);
    site.comes_to_kids("td", &["one"]).await;
    site.comes_to_kids("other", &["of-other"]).await;
    let keys = site.issuer("td").unwrap().jwks.keys;
    let uses: Vec<_> = keys.iter().map(|k| k["use"].as_str().unwrap()).collect();
    assert_eq!(uses, ["jwt-svid", "x509-svid", "x509-svid"]);
    assert_eq!(keys[1], ca.authority());
    assert_eq!(site.issuer("other").unwrap().jwks.keys.len(), 1, "never merged");

    // Rotation, and a bundle that cannot be used.
    set_jwt(&agent, "td.example", &json!({ "keys": [plain("one"), plain("two")] }));
    site.comes_to_kids("td", &["one", "two"]).await;
    agent.jwt.send_modify(|all| drop(all.insert("spiffe://td.example".to_owned(), Bytes::from_static(b"{"))));
    site.fails_with("td", "invalid", "strict JSON").await;
    assert_eq!(site.kids("td"), ["one", "two"]);
    set_jwt(&agent, "other.example", &json!({ "keys": [plain("of-other-2")] }));
    site.comes_to_kids("other", &["of-other-2"]).await;

    // Gone with the agent: what is held stays, also when a first message comes with half of it.
    agent.stop().await;
    site.fails_with("other", "unreachable", "the Workload API at").await;
    assert_eq!(site.kids("other"), ["of-other-2"]);
    set_jwt(&agent, "td.example", &json!({ "keys": [plain("three")] }));
    agent.start(&socket);
    site.comes_to_kids("td", &["three"]).await;
    eventually("authorities too", || site.issuer("td").unwrap().jwks.keys.len() == 3).await;

    // Absence unloads.
    agent.x509.send_modify(HashMap::clear);
    eventually("no authorities", || site.issuer("td").unwrap().jwks.keys.len() == 1).await;
    agent.jwt.send_modify(|all| drop(all.remove("spiffe://td.example")));
    site.comes_to_kids("td", &[]).await;
    assert_eq!(site.kids("other"), ["of-other-2"]);
}

#[tokio::test]
async fn without_a_socket_the_operator_is_told() {
    let ca = Ca::new();
    let site = Site::new(config(&ca)).await;
    site.put(&workload_api("td")).await;
    site.fails_with("td", "refused", "`keys.workload_api` is not configured").await;
}
