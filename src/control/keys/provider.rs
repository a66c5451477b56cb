//! The keys of a provider that vouches for people: fetched by the same rules as issuers' keys, held in memory only.
//!
//! Plane: control. A provider is configured and not in the log, so its keys are not either. Until they have been fetched
//! for the first time nobody is vouched for; a failed fetch leaves the keys that are held.

use std::sync::{Arc, PoisonError, RwLock, Weak};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::error::FetchError;
use super::{Keys, schedule};
use crate::credential::{IssuerSet, check_issuer};
use crate::object::{Issuer, Jwks, KeySource};
use crate::telemetry::KeyFetch;

/// A provider whose keys are looked after.
#[derive(Debug)]
pub struct Provider {
    /// As it is configured: without keys.
    issuer: Issuer,
    source: KeySource,
    set: RwLock<Arc<IssuerSet>>,
    unknown_key: Notify,
}

// === impl Provider ===

impl Provider {
    /// A provider whose keys come from `source`.
    pub fn new(issuer: Issuer, source: KeySource) -> Arc<Self> {
        let (set, _none) = IssuerSet::compile([&issuer]);
        Arc::new(Self { issuer, source, set: RwLock::new(Arc::new(set)), unknown_key: Notify::new() })
    }

    /// Its keys, as they are now.
    pub fn keys(&self) -> Arc<IssuerSet> {
        Arc::clone(&self.set.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Somebody has met a key id that is not in the set.
    pub fn key_is_missing(&self) {
        self.unknown_key.notify_one();
    }

    /// Takes a key set if it can be used; answers whether it is another one.
    fn take(&self, jwks: Jwks, held: &mut Option<Jwks>) -> Result<bool, FetchError> {
        if held.as_ref().is_some_and(|held| held.says_the_same(&jwks, self.issuer.kind)) {
            return Ok(false);
        }
        let issuer = Issuer { jwks: jwks.clone(), ..self.issuer.clone() };
        check_issuer(&issuer)?;
        let (set, _none) = IssuerSet::compile([&issuer]);
        *self.set.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
        *held = Some(jwks);
        Ok(true)
    }
}

/// Looks after a provider's keys until it is dropped.
pub(super) async fn keep(keys: Arc<Keys>, provider: Weak<Provider>) {
    let interval = keys.config.refresh_interval;
    let (mut next, mut last_attempt, mut failures, mut held) = (Instant::now(), None, 0_u32, None);
    loop {
        let Some(now) = provider.upgrade() else { return };
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = now.unknown_key.notified() => {
                next = schedule::on_unknown_key(next, last_attempt, keys.config.unknown_kid_cooldown, Instant::now());
                continue;
            }
        }
        last_attempt = Some(Instant::now());
        let fetch = keys.sources.fetch(&now.issuer, &now.source);
        let fetched = match tokio::time::timeout(keys.config.timeout, fetch).await {
            Ok(fetched) => fetched,
            Err(_elapsed) => Err(FetchError::unreachable("there was no whole answer in time")),
        };
        let wait = match fetched.and_then(|jwks| now.take(jwks, &mut held)) {
            Ok(changed) => {
                keys.metrics.keys_fetched(&now.source, if changed { KeyFetch::Changed } else { KeyFetch::Unchanged });
                if changed || failures > 0 {
                    tracing::info!(provider = %now.issuer.name, changed, "keys are up to date");
                }
                failures = 0;
                schedule::after_success(interval, None)
            }
            Err(error) => {
                keys.metrics.keys_fetched(&now.source, error.result);
                failures = failures.saturating_add(1);
                if failures == 1 {
                    tracing::warn!(provider = %now.issuer.name, %error, "keys could not be brought up to date; those that are held stay");
                }
                schedule::after_failure(interval, failures)
            }
        };
        next = Instant::now() + wait;
    }
}
