//! Operators: who may use the REST API, by bearer token.
//!
//! Plane: control. A token is 256 random bits; the store holds its SHA-256 only, and comparing looks at every operator
//! in constant time. The first start makes the operator `bootstrap`, whose token goes to a file of mode 0600 and
//! nowhere else. Names are never reused, because votes and log entries refer to them. Fails closed: unknown is nobody.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

use super::audit::Event;
use super::core::Intent;
use super::principal::{OperatorKind, Principal, Via};
use super::store::{OperatorRow, Store, StoreError};
use crate::clock::{SharedClock, Timestamp};

/// Name of the operator that the first start makes.
pub const BOOTSTRAP: &str = "bootstrap";
/// What the control plane itself is called in the log; no operator may be.
pub const SYSTEM: &str = "system";
/// What every token starts with, so that scanners for leaked secrets can know it.
const PREFIX: &str = "ptc_op_";

/// Who may use the API.
#[derive(Debug)]
pub struct Operators {
    store: Arc<dyn Store>,
    clock: SharedClock,
    active: RwLock<Vec<Active>>,
    /// Names of those that were revoked.
    left: RwLock<HashSet<String>>,
    /// Held while the store is changed and read back, so that an older list never replaces a newer one.
    changes: tokio::sync::Mutex<()>,
    /// How often the list has changed.
    changed: tokio::sync::watch::Sender<u64>,
}

#[derive(Debug)]
struct Active {
    name: Arc<str>,
    kind: OperatorKind,
    token_sha256: [u8; 32],
}

/// An operator, as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Operator {
    /// Unique name.
    pub name: String,
    /// Whether it is a human.
    #[serde(default)]
    pub kind: OperatorKind,
    /// When it was created.
    pub created_at: Timestamp,
    /// Who created it.
    pub created_by: String,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// Who revoked it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_by: Option<String>,
}

/// Why an operator cannot be created, revoked or bootstrapped.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The name is not one.
    #[error(
        "`{0}` is not a name: 1 to 63 characters of a-z, 0-9, `.`, `_`, `-`, first a letter or digit, not `system`"
    )]
    Name(String),
    /// The name has been used before.
    #[error("`{0}` exists or has existed; names of operators are not reused")]
    Taken(String),
    /// There is no active operator of that name.
    #[error("there is no operator `{0}`")]
    Unknown(String),
    /// Nobody could use the API any more.
    #[error("`{0}` is the last operator; create another one first")]
    Last(String),
    /// The system has no randomness.
    #[error("the system's random source failed")]
    Random,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

// === impl Operators ===

impl Operators {
    /// Reads the operators. When there has never been one, makes `bootstrap` and writes its token to `token_file`.
    pub async fn open(
        store: Arc<dyn Store>,
        clock: SharedClock,
        token_file: &Path,
    ) -> Result<Arc<Self>, OperatorError> {
        let (active, left, changes) = (RwLock::default(), RwLock::default(), tokio::sync::Mutex::default());
        let this = Self { store, clock, active, left, changes, changed: tokio::sync::watch::Sender::default() };
        if this.store.operators().await?.is_empty() {
            // The file first: after a crash in between, the next start takes the token from it.
            let token = bootstrap_token(token_file)?;
            this.add(BOOTSTRAP, OperatorKind::Person, &Intent::system(SYSTEM, "operator.create"), &token).await?;
            tracing::warn!(file = %token_file.display(), "first start: the token of the operator `bootstrap` is in this file");
        }
        this.reload().await?;
        Ok(Arc::new(this))
    }

    /// The operator whose token this is.
    pub fn authenticate(&self, token: &str) -> Option<Principal> {
        let given = hash(token);
        let active = self.active.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = u64::MAX;
        for (i, operator) in (0_u64..).zip(active.iter()) {
            let same: Choice = operator.token_sha256.ct_eq(&given);
            found.conditional_assign(&i, same);
        }
        let operator = active.get(usize::try_from(found).ok()?)?;
        Some(Principal::new(Arc::clone(&operator.name), operator.kind.into(), Via::Token))
    }

    /// Whether this was an operator and is none any more. Whom a provider vouches for is not known here.
    pub fn has_left(&self, name: &str) -> bool {
        self.left.read().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// The operator of this name, if it is active, by another proof than its token.
    pub fn named(&self, name: &str, via: Via) -> Option<Principal> {
        let active = self.active.read().unwrap_or_else(PoisonError::into_inner);
        let operator = active.iter().find(|operator| &*operator.name == name)?;
        Some(Principal::new(Arc::clone(&operator.name), operator.kind.into(), via))
    }

    /// Changes whenever the operators have.
    pub fn changed(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Every operator, revoked ones included, by name.
    pub async fn list(&self) -> Result<Vec<Operator>, OperatorError> {
        Ok(self.store.operators().await?.into_iter().map(Operator::from).collect())
    }

    /// Creates an operator; the token is not stored and cannot be had again.
    pub async fn create(
        &self,
        name: &str,
        kind: OperatorKind,
        by: &Intent,
    ) -> Result<(Operator, Zeroizing<String>), OperatorError> {
        if name == SYSTEM || crate::object::check_name("name", name).is_err() {
            return Err(OperatorError::Name(name.to_owned()));
        }
        let _one_at_a_time = self.changes.lock().await;
        let token = new_token()?;
        let operator = self.add(name, kind, by, &token).await?;
        self.reload().await?;
        Ok((operator, token))
    }

    /// Revokes an operator: its token stops working with this call.
    pub async fn revoke(&self, name: &str, by: &Intent) -> Result<(), OperatorError> {
        let _one_at_a_time = self.changes.lock().await;
        let done = self.store.revoke_operator(name, &event(by, name), self.clock.now().wall).await?;
        if done {
            // Whatever becomes of the rest: from here on it does not count.
            self.active.write().unwrap_or_else(PoisonError::into_inner).retain(|operator| *operator.name != *name);
            self.changed.send_modify(|times| *times += 1);
        }
        self.reload().await?;
        if done {
            return Ok(());
        }
        let active = self.active.read().unwrap_or_else(PoisonError::into_inner);
        Err(if active.iter().any(|o| &*o.name == name) {
            OperatorError::Last(name.to_owned())
        } else {
            OperatorError::Unknown(name.to_owned())
        })
    }

    async fn add(&self, name: &str, kind: OperatorKind, by: &Intent, token: &str) -> Result<Operator, OperatorError> {
        let row = OperatorRow {
            name: name.to_owned(),
            kind,
            token_sha256: hash(token),
            created_at: self.clock.now().wall,
            created_by: by.author.name.to_string(),
            revoked: None,
        };
        if !self.store.add_operator(&row, &event(by, name)).await? {
            return Err(OperatorError::Taken(name.to_owned()));
        }
        Ok(row.into())
    }

    async fn reload(&self) -> Result<(), OperatorError> {
        let (active, left): (Vec<_>, Vec<_>) =
            self.store.operators().await?.into_iter().partition(|row| row.revoked.is_none());
        *self.left.write().unwrap_or_else(PoisonError::into_inner) = left.into_iter().map(|row| row.name).collect();
        let active = active
            .into_iter()
            .map(|row| Active { name: Arc::from(row.name), kind: row.kind, token_sha256: row.token_sha256 })
            .collect();
        *self.active.write().unwrap_or_else(PoisonError::into_inner) = active;
        self.changed.send_modify(|times| *times += 1);
        Ok(())
    }
}

// === impl Operator ===

impl From<OperatorRow> for Operator {
    fn from(row: OperatorRow) -> Self {
        let (revoked_at, revoked_by) = row.revoked.unzip();
        Self {
            name: row.name,
            kind: row.kind,
            created_at: row.created_at,
            created_by: row.created_by,
            revoked_at,
            revoked_by,
        }
    }
}

/// What the audit trail says of it.
fn event(by: &Intent, name: &str) -> Event {
    Event::done(by.author.clone(), by.action, &format!("operator/{name}"), &by.request_id)
}

/// Whether a token looks like one of the control plane's own making.
pub fn is_operator_token(token: &str) -> bool {
    token.starts_with(PREFIX)
}

fn hash(token: &str) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(digest(&SHA256, token.as_bytes()).as_ref()) {
        *to = *from;
    }
    out
}

fn new_token() -> Result<Zeroizing<String>, OperatorError> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    SystemRandom::new().fill(bytes.as_mut_slice()).map_err(|_opaque| OperatorError::Random)?;
    let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice()));
    Ok(Zeroizing::new(format!("{PREFIX}{}", *encoded)))
}

/// A new token in a new file; or the one in the file, when an earlier start got no further than writing it.
fn bootstrap_token(path: &Path) -> Result<Zeroizing<String>, OperatorError> {
    let failed = |e| OperatorError::Store(StoreError::io(path, e));
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match created {
        Ok(mut file) => {
            let token = new_token()?;
            file.write_all(token.as_bytes()).and_then(|()| file.write_all(b"\n")).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            Ok(token)
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => left_over(path).map_err(failed),
        Err(e) => Err(failed(e)),
    }
}

fn left_over(path: &Path) -> std::io::Result<Zeroizing<String>> {
    let bad = |detail: &str| std::io::Error::other(detail.to_owned());
    let file = std::fs::File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        return Err(bad("others can read this left-over token; delete the file to have a new one made"));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(4096).read_to_string(&mut text)?;
    let token = Zeroizing::new(text.trim().to_owned());
    let secret = token.strip_prefix(PREFIX).and_then(|t| URL_SAFE_NO_PAD.decode(t).ok()).map(Zeroizing::new);
    if secret.is_none_or(|s| s.len() != 32) {
        return Err(bad("this left-over file holds no token; delete it to have a new one made"));
    }
    Ok(token)
}

#[cfg(test)]
mod tests;
