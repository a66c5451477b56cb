//! What makes a commit, what wakes a keeper, and what cannot stop one.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::endpoint::Ca;
use super::harness::{Site, config, eventually, jwks, oidc};
use crate::control::keys::KeysConfig;
use crate::control::store::{Expect, Unit, Write};
use crate::object::{Issuer, Kind, Object};

const HOUR: Duration = Duration::from_secs(3600);

fn jwks_uri(url: &str) -> Value {
    json!({ "type": "jwks_uri", "url": url })
}

fn write(document: &Value) -> Write {
    let issuer: Issuer = serde_json::from_value(document.clone()).unwrap();
    Write::put(&Object::Issuer(Box::new(issuer)), Expect::Any)
}

#[tokio::test]
async fn a_publisher_that_reorders_its_keys_makes_no_commit() {
    let ca = Ca::new();
    let endpoint = ca.endpoint().await;
    let mut set = jwks(&["one", "two", "three"]);
    // In other key sets than those of SPIFFE this is a member like any.
    set["spiffe_sequence"] = json!("of its own");
    endpoint.serve_json("/keys", &set);
    let site = Site::new(config(&ca)).await;
    site.put(&oidc("idp", &jwks_uri(&endpoint.url("/keys")))).await;
    site.comes_to_kids("idp", &["one", "two", "three"]).await;
    let revision = site.core.index().position().revision;
    for turn in 0..4 {
        set["keys"].as_array_mut().unwrap().rotate_left(1);
        set["served_at"] = json!(turn);
        endpoint.serve_json("/keys", &set);
        // The first of two may have been on its way before.
        let asked = endpoint.times_asked();
        eventually("asked twice", || endpoint.times_asked() >= asked + 2).await;
    }
    assert_eq!(site.core.index().position().revision, revision);
    set["keys"].as_array_mut().unwrap().pop();
    endpoint.serve_json("/keys", &set);
    eventually("one less", || site.kids("idp").len() == 2).await;
}

#[tokio::test]
async fn whoever_writes_an_issuer_has_its_keys_fetched_anew() {
    let ca = Ca::new();
    let endpoint = ca.endpoint().await;
    endpoint.serve_json("/keys", &jwks(&["one"]));
    let site = Site::new(KeysConfig { refresh_interval: HOUR, unknown_kid_cooldown: HOUR, ..config(&ca) }).await;
    let issuer = oidc("idp", &jwks_uri(&endpoint.url("/keys")));
    site.put(&issuer).await;
    site.comes_to_kids("idp", &["one"]).await;

    // Old keys of the same source, around the API.
    let mut stale = issuer.clone();
    stale["jwks"] = jwks(&["revoked"]);
    site.put(&stale).await;
    site.comes_to_kids("idp", &["one"]).await;

    // Deleted and made anew before anybody has looked.
    let deleted = Unit::new("operator", "issuer.delete", "").with(Write::delete(Kind::Issuer, "idp", Expect::Any));
    let made = Unit::new("operator", "issuer.put", "").with(write(&issuer));
    let (deleted, made) = tokio::join!(site.core.commit(deleted), site.core.commit(made));
    for committed in [deleted, made] {
        committed.unwrap();
    }
    site.comes_to_kids("idp", &["one"]).await;
    assert_eq!(endpoint.times_asked(), 3, "and its own commits wake no keeper");
}

#[tokio::test]
async fn a_keeper_that_panics_starts_over() {
    let ca = Ca::new();
    let endpoint = ca.endpoint().await;
    endpoint.serve_json("/keys", &jwks(&["one"]));
    let site = Site::new(KeysConfig { refresh_interval: HOUR, ..config(&ca) }).await;
    site.put(&oidc("idp", &jwks_uri(&endpoint.url("/keys")))).await;
    site.comes_to_kids("idp", &["one"]).await;
    endpoint.serve_json("/keys", &jwks(&["two"]));
    let watched = site.keys.watched.read().unwrap_or_else(PoisonError::into_inner).get("idp").map(Arc::clone);
    watched.unwrap().panics_next.store(true, std::sync::atomic::Ordering::Relaxed);
    site.keys.key_is_missing("idp");
    site.fails_with("idp", "failed", "starts over").await;
    site.comes_to_kids("idp", &["two"]).await;
    eventually("good again", || site.status("idp").failures == 0).await;
}

/// A pipe whose reader goes on at the end, so that a test that fails does not wait for it.
struct Released(PathBuf);

impl Drop for Released {
    fn drop(&mut self) {
        let _both_ends = std::fs::File::options().read(true).write(true).open(&self.0);
    }
}

#[tokio::test]
async fn a_pipe_in_the_key_directory_holds_nobody_up() {
    let ca = Ca::new();
    let dir = tempfile::tempdir().unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("idp.json"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let _released = Released(dir.path().join("idp.json"));
    let site = Site::new(KeysConfig { directory: Some(dir.path().to_owned()), ..config(&ca) }).await;
    site.put(&oidc("idp", &json!({ "type": "file", "name": "idp.json" }))).await;
    site.fails_with("idp", "refused", "`idp.json` of the key directory is not a file").await;
}
