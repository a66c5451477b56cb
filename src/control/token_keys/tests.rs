//! Tests of the keeper of signing keys over the real store: first start, restarts, the issuer in the log, revocation.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::clock::{Clock as _, ManualClock, SharedClock};
use crate::control::CoreConfig;
use crate::control::store::SqliteStore;
use crate::credential::{IssuerSet, parse_key_set, verify};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

struct Site {
    directory: TempDir,
    clock: Arc<ManualClock>,
    core: Arc<Core>,
    keys: Arc<TokenKeys>,
}

impl Site {
    async fn new() -> Self {
        Self::at(TempDir::new().unwrap(), Arc::new(ManualClock::new(NOW))).await
    }

    async fn at(directory: TempDir, clock: Arc<ManualClock>) -> Self {
        let shared = Arc::clone(&clock) as SharedClock;
        let store = Arc::new(SqliteStore::open(directory.path(), NOW).await.unwrap());
        let core = Core::open(store, shared, CoreConfig::default()).await.unwrap();
        let config = TokenKeysConfig {
            name: "portcullis".to_owned(),
            issuer: "https://control.example".to_owned(),
            rotate_every: 30 * DAY,
            cache: Duration::from_secs(300),
            max_staleness: Duration::from_secs(300),
        };
        let keys = TokenKeys::open(Arc::clone(&core), directory.path(), config).await.unwrap();
        Self { directory, clock, core, keys }
    }

    async fn restart(self) -> Self {
        let Self { directory, clock, core, keys } = self;
        core.close().await;
        drop((core, keys));
        Self::at(directory, clock).await
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        self.keys.tend().await.unwrap();
    }

    fn kids(&self) -> Vec<String> {
        self.keys.published().keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    }

    fn token(&self) -> String {
        let now = self.clock.now().wall.as_secs();
        self.keys.signer().unwrap().sign_access_token(&claims(now)).unwrap()
    }

    /// What an enforcement point that is up to date says of a token.
    fn judge(&self, token: &str) -> &'static str {
        let issuers = self.core.index().list(Kind::Issuer);
        let (set, bad) = IssuerSet::compile(issuers.iter().filter_map(|s| as_issuer(s)));
        assert_eq!(bad, []);
        verify(token, &set, self.clock.now().wall).map_or_else(|e| e.reason.code(), |_| "ok")
    }
}

fn claims(now: u64) -> Value {
    json!({
        "iss": "https://control.example", "sub": "spiffe://a.example/w", "client_id": "spiffe://a.example/w",
        "aud": "payments", "scope": "write", "grant_id": Uuid::new_v4(), "iat": now, "exp": now + 300, "jti": "1",
    })
}

fn intent() -> Intent {
    Intent::system("alice", "test")
}

#[tokio::test]
async fn the_first_start_makes_a_key_that_signs_and_the_next_and_a_restart_makes_none() {
    let site = Site::new().await;
    let kids = site.kids();
    assert_eq!(kids.len(), 2);
    let signs = site.keys.signer().unwrap();
    assert!(kids.iter().any(|kid| kid == signs.kid()));
    let token = site.token();
    assert_eq!(site.judge(&token), "ok");
    let site = site.restart().await;
    assert_eq!(site.kids(), kids);
    assert_eq!(site.keys.signer().unwrap().kid(), signs.kid());
    assert_eq!(site.judge(&token), "ok");
    let log = site.core.index().position().revision;
    site.pass(Duration::from_secs(1)).await;
    assert_eq!(site.core.index().position().revision, log, "nothing is due, and nothing is written");
}

#[tokio::test]
async fn a_rotation_keeps_the_tokens_of_the_old_key_until_they_are_over() {
    let site = Site::new().await;
    let first = site.keys.signer().unwrap();
    site.pass(30 * DAY).await;
    let token = first.sign_access_token(&claims(site.clock.now().wall.as_secs())).unwrap();
    assert_ne!(site.keys.signer().unwrap().kid(), first.kid());
    assert_eq!((site.judge(&token), site.judge(&site.token())), ("ok", "ok"));
    assert_eq!(site.kids().len(), 3, "the old one, the one that signs, and the next");
    site.pass(Duration::from_secs(299)).await;
    assert_eq!(site.judge(&token), "ok");
    site.pass(Duration::from_secs(61)).await;
    assert!(!site.kids().contains(&first.kid().to_owned()));
    assert!(!site.directory.path().join(format!("token-keys/{}.pem", first.kid())).exists(), "destroyed");
}

#[tokio::test]
async fn a_revoked_key_is_out_of_the_set_and_what_it_signed_is_nobodys() {
    let site = Site::new().await;
    let token = site.token();
    let kid = site.keys.signer().unwrap().kid().to_owned();
    let (committed, key) = site.keys.revoke(&intent(), &kid, "leaked").await.unwrap();
    assert_eq!(key.revoked.unwrap().by, "alice");
    assert_eq!(site.judge(&token), "credential.kid_unknown");
    assert!(site.keys.signer().is_none(), "the next one is not known long enough");
    let revoked = site.core.index().list(Kind::Revocation);
    assert!(
        matches!(&revoked.first().unwrap().object, Some(Object::Revocation(r)) if r.created_by == "alice"),
        "{revoked:?}"
    );
    assert_eq!(revoked.first().unwrap().revision, committed.unwrap().position.revision, "in one revision");
    assert!(matches!(site.keys.revoke(&intent(), &kid, "").await, Err(TokenKeyError::Unknown(_))));
    site.pass(Duration::from_secs(600)).await;
    assert_eq!(site.judge(&site.token()), "ok");
    assert_eq!(site.judge(&token), "credential.kid_unknown");
}

#[tokio::test]
async fn a_private_key_that_is_lost_is_followed_by_one_that_is_announced_first() {
    let site = Site::new().await;
    let token = site.token();
    let site = {
        std::fs::remove_dir_all(site.directory.path().join("token-keys")).unwrap();
        site.restart().await
    };
    assert!(site.keys.signer().is_none(), "not the new one, which nobody knows yet");
    assert_eq!(site.judge(&token), "ok", "still published");
    site.pass(Duration::from_secs(599)).await;
    assert!(site.keys.signer().is_none());
    site.pass(Duration::from_secs(1)).await;
    assert_eq!(site.judge(&site.token()), "ok");
}

#[tokio::test]
async fn what_is_served_is_what_enforcement_points_are_sent() {
    let site = Site::new().await;
    let published = site.keys.published();
    let jwks = parse_key_set(published.jwks().to_string().as_bytes()).unwrap();
    assert!(jwks.keys.iter().all(|key| key["use"] == "sig" && key["alg"] == "ES256" && key.get("d").is_none()));
    let bundle = published.spiffe_bundle();
    assert_eq!((bundle["spiffe_sequence"].as_u64(), bundle["spiffe_refresh_hint"].as_u64()), (Some(1), Some(300)));
    assert!(bundle["keys"].as_array().unwrap().iter().all(|key| key["use"] == "jwt-svid"));
    site.keys.rotate(&intent(), true).await.unwrap();
    let later = site.keys.published();
    assert!(later.sequence > published.sequence);
    assert_eq!(later.keys.len(), 3);
}

#[tokio::test]
async fn another_issuer_of_the_same_tokens_is_not_overwritten() {
    let directory = TempDir::new().unwrap();
    let store = Arc::new(SqliteStore::open(directory.path(), NOW).await.unwrap());
    let core = Core::open(store, Arc::new(ManualClock::new(NOW)), CoreConfig::default()).await.unwrap();
    let other = json!({"name": "other", "kind": "portcullis", "issuer": "https://control.example"});
    let other = Object::parse(Kind::Issuer, other.to_string().as_bytes()).unwrap();
    let plan = || Plan::new(()).write(Write::put(&other, Expect::Absent));
    core.transact(&intent(), |_| Ok::<_, CommitError>(plan())).await.unwrap();
    let config = TokenKeysConfig {
        name: "portcullis".to_owned(),
        issuer: "https://control.example".to_owned(),
        rotate_every: 30 * DAY,
        cache: Duration::from_secs(300),
        max_staleness: Duration::from_secs(300),
    };
    let opened = TokenKeys::open(core, directory.path(), config).await;
    assert!(matches!(opened, Err(TokenKeyError::Taken(name)) if name == "other"));
}
