//! A control plane's core with a keeper of keys, and waiting for what it does.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::endpoint::Ca;
use crate::clock::{SystemClock, Timestamp};
use crate::control::keys::{Allowed, KeyStatus, Keys, KeysConfig};
use crate::control::rules::as_issuer;
use crate::control::store::{Expect, SqliteStore, Unit, Write};
use crate::control::{Core, CoreConfig};
use crate::credential::TokenSigner;
use crate::object::{Issuer, Kind, Object};
use crate::telemetry::ControlMetrics;

pub(super) struct Site {
    _dir: tempfile::TempDir,
    pub(super) core: Arc<Core>,
    pub(super) keys: Arc<Keys>,
    pub(super) metrics: Arc<ControlMetrics>,
    running: JoinHandle<()>,
}

/// Loopback may be asked, and `ca` vouches for it.
pub(super) fn config(ca: &Ca) -> KeysConfig {
    KeysConfig {
        allowed: Allowed { hosts: vec!["127.0.0.1".parse().unwrap()], networks: vec!["127.0.0.0/8".parse().unwrap()] },
        ca_file: Some(ca.file()),
        refresh_interval: Duration::from_millis(50),
        file_interval: Duration::from_millis(20),
        unknown_kid_cooldown: Duration::from_millis(50),
        timeout: Duration::from_secs(5),
        ..KeysConfig::default()
    }
}

/// A key set with these keys, for tokens of any kind of issuer but SPIFFE.
pub(super) fn jwks(kids: &[&str]) -> Value {
    let keys: Vec<Value> = kids.iter().map(|kid| jwk(kid, "sig")).collect();
    json!({ "keys": keys })
}

/// A bundle with these keys.
pub(super) fn bundle(kids: &[&str], sequence: u64) -> Value {
    let keys: Vec<Value> = kids.iter().map(|kid| jwk(kid, "jwt-svid")).collect();
    json!({ "keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": 10 })
}

pub(super) fn jwk(kid: &str, of_use: &str) -> Value {
    let mut jwk = TokenSigner::generate_es256(kid).unwrap().public_jwk();
    jwk["use"] = json!(of_use);
    jwk
}

pub(super) fn oidc(name: &str, keys_from: &Value) -> Value {
    let issuer = format!("https://{name}.example");
    json!({ "name": name, "kind": "oidc", "issuer": issuer, "audiences": ["us"], "keys_from": keys_from })
}

pub(super) fn spiffe(name: &str, keys_from: &Value) -> Value {
    let domain = format!("{name}.example");
    json!({ "name": name, "kind": "spiffe", "trust_domain": domain, "audiences": ["us"], "keys_from": keys_from })
}

impl Site {
    pub(super) async fn new(config: KeysConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(dir.path(), Timestamp::from_secs(1_700_000_000)).await.unwrap());
        let core = Core::open(store, Arc::new(SystemClock::new()), CoreConfig::default()).await.unwrap();
        let metrics = Arc::new(ControlMetrics::new().unwrap());
        let keys = Keys::new(Arc::clone(&core), Arc::clone(&metrics), config);
        let running = tokio::spawn(Arc::clone(&keys).run());
        Self { _dir: dir, core, keys, metrics, running }
    }

    pub(super) async fn put(&self, issuer: &Value) {
        let issuer: Issuer = serde_json::from_value(issuer.clone()).unwrap();
        let write = Write::put(&Object::Issuer(Box::new(issuer)), Expect::Any);
        self.core.commit(Unit::new("operator", "issuer.put", "").with(write)).await.unwrap();
    }

    pub(super) async fn delete(&self, name: &str) {
        let write = Write::delete(Kind::Issuer, name, Expect::Any);
        self.core.commit(Unit::new("operator", "issuer.delete", "").with(write)).await.unwrap();
    }

    pub(super) fn issuer(&self, name: &str) -> Option<Issuer> {
        self.core.index().get(Kind::Issuer, name).as_deref().and_then(as_issuer).cloned()
    }

    /// The key ids in force.
    pub(super) fn kids(&self, name: &str) -> Vec<String> {
        let keys = self.issuer(name).map(|i| i.jwks.keys).unwrap_or_default();
        keys.iter().filter_map(|k| Some(k.get("kid")?.as_str()?.to_owned())).collect()
    }

    pub(super) async fn comes_to_kids(&self, name: &str, kids: &[&str]) {
        eventually(&format!("keys {kids:?} of {name}"), || self.kids(name) == kids).await;
    }

    pub(super) fn status(&self, name: &str) -> KeyStatus {
        self.keys.status(name).expect("it is looked after")
    }

    /// Waits for the next failure whose message contains `part`.
    pub(super) async fn fails_with(&self, name: &str, result: &str, part: &str) {
        let failed = || {
            let error = self.keys.status(name).and_then(|s| s.last_error);
            error.is_some_and(|e| e.result == result && e.message.contains(part))
        };
        let what = format!("failure of {name} with {part:?}, not {:?}", self.keys.status(name));
        eventually(&what, failed).await;
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// Looks until it is so.
pub(super) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let mut look = tokio::time::interval(Duration::from_millis(5));
    let waiting = async {
        while !is_so() {
            look.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("never came: {what}"));
}
