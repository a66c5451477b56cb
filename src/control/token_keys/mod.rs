//! The keys that the control plane signs tokens with, and the issuer by which enforcement points know them.
//!
//! Plane: control. Keys are made, announced, used, retired and destroyed here, in the log: a change of a key and the key
//! set of the issuer that follows from it are one commit, so sidecars learn of both by sync and never by HTTP. Private
//! halves lie in files and nowhere else. Fails closed: without a key that may sign, nothing is signed.

mod life;
mod vault;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use self::life::Terms;
use self::vault::Vault;
use super::commit::CommitError;
use super::core::{Core, Intent, Plan};
use super::index::{Index, Stored};
use super::rules::as_issuer;
use super::store::{Committed, Expect, Guard, Write};
use crate::clock::Timestamp;
use crate::credential::{TokenSigner, same_tokens};
use crate::object::{
    Issuer, IssuerKind, Jwks, Kind, MAX_DELEGATION_DEPTH, Object, ProofPolicy, Revocation, SigningKey, SigningKeyState,
    Target, TokenType,
};

/// The longest life of a token.
pub const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(300);
/// What signatures that are being made, and clocks that differ, take beyond the life of a token.
const MARGIN: Duration = Duration::from_secs(60);
/// How long keys that are gone are remembered.
const REMEMBER: Duration = Duration::from_secs(90 * 86_400);
/// How often it looks.
const PERIOD: Duration = Duration::from_secs(1);
/// The author of what is done without being asked.
const AUTHOR: &str = "system";
/// Directory of the private halves, in the data directory.
const DIRECTORY: &str = "token-keys";

/// Settings of the control plane as an issuer.
#[derive(Debug, Clone)]
pub struct TokenKeysConfig {
    /// What it is called among the issuers.
    pub name: String,
    /// The value of `iss`.
    pub issuer: String,
    /// How long a key signs.
    pub rotate_every: Duration,
    /// How long verifiers may keep the key set that they were served.
    pub cache: Duration,
    /// How far enforcement points may be behind.
    pub max_staleness: Duration,
}

/// The keeper of the signing keys.
#[derive(Debug)]
pub struct TokenKeys {
    core: Arc<Core>,
    vault: Vault,
    config: TokenKeysConfig,
    /// One change at a time: a private half is on the disk before its key is in the log.
    turn: tokio::sync::Mutex<()>,
}

/// The key set as it is published.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// The public halves.
    pub keys: Vec<Value>,
    /// Grows with every change of the set.
    pub sequence: u64,
    /// How long it may be kept.
    pub cache: Duration,
}

/// Why a key cannot be changed as asked.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    /// There is no key with that id that is published.
    #[error("there is no signing key `{0}` that is in use")]
    Unknown(String),
    /// No key has been announced yet.
    #[error("there is no key that could take over yet; try again in a second")]
    NoSuccessor,
    /// Another issuer answers for the same tokens.
    #[error("issuer `{0}` answers for the tokens of this control plane already")]
    Taken(String),
    /// A private key could not be written.
    #[error("a private key could not be written: {0}")]
    Vault(#[from] std::io::Error),
    /// The log could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// What is to be done beside what is due.
#[derive(Debug, Clone, Copy)]
enum Ask<'a> {
    Nothing,
    Rotate { at_once: bool },
    Revoke { kid: &'a str, reason: &'a str },
}

// === impl TokenKeys ===

impl TokenKeys {
    /// Opens the keys in the data directory; makes the first at first start.
    pub async fn open(core: Arc<Core>, data: &Path, config: TokenKeysConfig) -> Result<Arc<Self>, TokenKeyError> {
        let keys = Arc::new(Self {
            core,
            vault: Vault::open(&Self::directory(data))?,
            config,
            turn: tokio::sync::Mutex::default(),
        });
        keys.tend().await?;
        Ok(keys)
    }

    fn directory(data: &Path) -> PathBuf {
        data.join(DIRECTORY)
    }

    /// Tends the keys until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failed = false;
        loop {
            ticks.tick().await;
            match self.tend().await {
                Ok(()) => failed = false,
                Err(error) => {
                    if !std::mem::replace(&mut failed, true) {
                        tracing::error!(%error, "signing keys could not be kept up to date; trying again");
                    }
                }
            }
        }
    }

    /// Does what is due, and destroys what is over.
    pub async fn tend(&self) -> Result<(), TokenKeyError> {
        let _one_at_a_time = self.turn.lock().await;
        let intent = Intent::system(AUTHOR, "signing_key.tend");
        self.change(&intent, Ask::Nothing).await?;
        let stored = self.core.index().list(Kind::SigningKey);
        let kept: Vec<&str> =
            stored.iter().filter_map(|s| as_key(s)).filter(|k| k.is_published()).map(|k| k.kid.as_str()).collect();
        self.vault.keep_only(&kept);
        Ok(())
    }

    /// Has the next key take over: as soon as everybody knows it, or at once.
    pub async fn rotate(
        &self,
        intent: &Intent,
        at_once: bool,
    ) -> Result<(Option<Committed>, SigningKey), TokenKeyError> {
        let _one_at_a_time = self.turn.lock().await;
        let (committed, key) = self.change(intent, Ask::Rotate { at_once }).await?;
        Ok((committed, key.ok_or(TokenKeyError::NoSuccessor)?))
    }

    /// Ends a key: enforcement points that have heard of it take none of its tokens any more.
    pub async fn revoke(
        &self,
        intent: &Intent,
        kid: &str,
        reason: &str,
    ) -> Result<(Option<Committed>, SigningKey), TokenKeyError> {
        let _one_at_a_time = self.turn.lock().await;
        let (committed, key) = self.change(intent, Ask::Revoke { kid, reason }).await?;
        Ok((committed, key.ok_or_else(|| TokenKeyError::Unknown(kid.to_owned()))?))
    }

    /// The key that signs now.
    pub fn signer(&self) -> Option<Arc<TokenSigner>> {
        let stored = self.core.index().list(Kind::SigningKey);
        let active = stored.iter().filter_map(|s| as_key(s)).find(|key| key.state == SigningKeyState::Active)?;
        self.vault.signer(&active.kid)
    }

    /// What is published: exactly the keys that enforcement points are sent.
    pub fn published(&self) -> Published {
        let stored = self.core.index().get(Kind::Issuer, &self.config.name);
        let keys = stored.as_deref().and_then(as_issuer).map(|issuer| issuer.jwks.keys.clone()).unwrap_or_default();
        let sequence = stored.map_or(0, |s| s.revision.0);
        Published { keys, sequence, cache: self.config.cache }
    }

    /// The name of the issuer.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The value of `iss`.
    pub fn issuer(&self) -> &str {
        &self.config.issuer
    }

    fn terms(&self) -> Terms {
        Terms {
            announce: self.config.max_staleness.saturating_add(self.config.cache),
            rotate_every: self.config.rotate_every,
            overlap: MAX_TOKEN_LIFETIME + MARGIN,
            remember: REMEMBER,
        }
    }

    async fn change(
        &self,
        intent: &Intent,
        ask: Ask<'_>,
    ) -> Result<(Option<Committed>, Option<SigningKey>), TokenKeyError> {
        self.core.transact(intent, |index| self.plan(index, intent, ask)).await
    }

    fn plan(&self, index: &Index, intent: &Intent, ask: Ask<'_>) -> Result<Plan<Option<SigningKey>>, TokenKeyError> {
        // The position is read first: what is guarded is at least as old as what was seen.
        let since = index.position().revision;
        let now = self.core.clock().now().wall;
        let by = &*intent.author.name;
        let stored = index.list(Kind::SigningKey);
        let before: Vec<SigningKey> = stored.iter().filter_map(|s| as_key(s)).cloned().collect();
        let mut next = life::due(&before, self.terms(), now, |kid| self.vault.signer(kid).is_some());
        let mut plan = Plan::new(None);
        match ask {
            Ask::Nothing => {}
            Ask::Rotate { at_once } => plan.answer = life::rotate(&mut next.keys, at_once, now),
            Ask::Revoke { kid, reason } => {
                if life::revoke(&mut next.keys, kid, by, reason, now) {
                    plan.answer = next.keys.iter().find(|key| key.kid == kid).cloned();
                    plan.changes.push(Write::put(&self.revocation(kid, by, reason, now), Expect::Absent));
                }
            }
        }
        // What was asked for may have made something else due.
        let mut after = life::due(&next.keys, self.terms(), now, |kid| self.vault.signer(kid).is_some());
        for usable_from in std::mem::take(&mut after.missing) {
            let signer = self.vault.make()?;
            after.keys.push(life::made(signer.kid(), public(&signer), by, now, usable_from));
        }
        let expect = |kid: &str| {
            let found = stored.iter().find(|s| *s.key == *kid);
            found.map_or(Expect::Absent, |s| Expect::Revision(s.revision))
        };
        for key in &after.keys {
            if !before.contains(key) {
                plan.changes.push(Write::put(&Object::SigningKey(Box::new(key.clone())), expect(&key.kid)));
            }
        }
        for kid in next.forgotten.iter().chain(&after.forgotten) {
            plan.changes.push(Write::delete(Kind::SigningKey, kid.as_str(), expect(kid)));
        }
        self.put_issuer(index, &after.keys, &mut plan)?;
        plan.guards.push(Guard::KindUnchanged { kind: Kind::SigningKey, since });
        Ok(plan)
    }

    /// Keeps the issuer's keys those that are published.
    fn put_issuer<T>(&self, index: &Index, keys: &[SigningKey], plan: &mut Plan<T>) -> Result<(), TokenKeyError> {
        let mut published: Vec<&SigningKey> = keys.iter().filter(|key| key.is_published()).collect();
        published.sort_by(|a, b| (a.created_at, &a.kid).cmp(&(b.created_at, &b.kid)));
        let issuer = Issuer {
            name: self.config.name.clone(),
            kind: IssuerKind::Portcullis,
            trust_domain: None,
            issuer: Some(self.config.issuer.clone()),
            token_type: TokenType::Jwt,
            audiences: Vec::new(),
            algorithms: None,
            max_lifetime_seconds: MAX_TOKEN_LIFETIME.as_secs(),
            max_delegation_depth: MAX_DELEGATION_DEPTH,
            proof: ProofPolicy::default(),
            keys_from: None,
            keys_fetched: false,
            jwks: Jwks { keys: published.iter().map(|key| key.jwk.clone()).collect(), other: serde_json::Map::new() },
        };
        let stored = index.get(Kind::Issuer, &issuer.name);
        let held = stored.as_deref().and_then(as_issuer);
        if held.is_some_and(|held| held.kind != IssuerKind::Portcullis) {
            return Err(TokenKeyError::Taken(issuer.name));
        }
        if held == Some(&issuer) {
            return Ok(());
        }
        let others = index.list(Kind::Issuer);
        let mut others = others.iter().filter_map(|s| as_issuer(s)).filter(|other| other.name != issuer.name);
        if let Some(other) = others.find(|other| same_tokens(other, &issuer)) {
            return Err(TokenKeyError::Taken(other.name.clone()));
        }
        let expect = stored.map_or(Expect::Absent, |s| Expect::Revision(s.revision));
        plan.changes.push(Write::put(&Object::Issuer(Box::new(issuer)), expect));
        Ok(())
    }

    fn revocation(&self, kid: &str, by: &str, reason: &str, now: Timestamp) -> Object {
        Object::Revocation(Revocation {
            id: Uuid::new_v4(),
            target: Target::Key { issuer: self.config.name.clone(), kid: kid.to_owned() },
            reason: reason.to_owned(),
            created_by: by.to_owned(),
            created_at: now,
        })
    }
}

/// A signing key, if `stored` is one.
fn as_key(stored: &Stored) -> Option<&SigningKey> {
    match &stored.object {
        Some(Object::SigningKey(key)) => Some(key),
        _ => None,
    }
}

/// The public half as a member of a plain key set.
fn public(signer: &TokenSigner) -> Value {
    let mut jwk = signer.public_jwk();
    if let Some(members) = jwk.as_object_mut() {
        members.insert("use".to_owned(), json!("sig"));
    }
    jwk
}

// === impl Published ===

impl Published {
    /// The key set (RFC 7517).
    pub fn jwks(&self) -> Value {
        json!({ "keys": self.keys })
    }

    /// The same as a SPIFFE trust bundle (SPIFFE Trust Domain and Bundle, section 4).
    pub fn spiffe_bundle(&self) -> Value {
        let mut keys = self.keys.clone();
        for key in keys.iter_mut().filter_map(Value::as_object_mut) {
            key.insert("use".to_owned(), json!("jwt-svid"));
        }
        json!({ "keys": keys, "spiffe_sequence": self.sequence, "spiffe_refresh_hint": self.cache.as_secs() })
    }
}

#[cfg(test)]
mod tests;
