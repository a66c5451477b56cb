//! The task that keeps the keys of one issuer up to date.
//!
//! Plane: control. Each issuer has its own, so one whose source hangs or lies delays no other. On failure the keys that
//! are held stay, and the wait grows; a failure is a warning once and a detail after that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::error::FetchError;
use super::install::{self, Installed, Spec};
use super::status::KeyStatus;
use super::{Keys, schedule};
use crate::object::KeySource;
use crate::telemetry::KeyFetch;

/// How far away "when the source tells" is, for a timer.
const NEVER: std::time::Duration = std::time::Duration::from_secs(86_400 * 365);

/// An issuer whose keys are looked after.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) spec: Spec,
    /// Somebody has met a key id that is not in the set.
    pub(super) unknown_key: Notify,
    /// Somebody else has written the issuer.
    pub(super) rewritten: Notify,
    status: Mutex<KeyStatus>,
    /// Has its task panic at the next look.
    #[cfg(test)]
    pub(super) panics_next: std::sync::atomic::AtomicBool,
}

/// What a successful look at the source came to.
struct Refreshed {
    installed: Installed,
    hint_seconds: Option<u64>,
    sequence: Option<u64>,
}

// === impl Watched ===

impl Watched {
    pub(super) fn new(spec: Spec) -> Self {
        let status = Mutex::new(KeyStatus::new(spec.source.name()));
        Self {
            spec,
            unknown_key: Notify::new(),
            rewritten: Notify::new(),
            status,
            #[cfg(test)]
            panics_next: false.into(),
        }
    }

    /// How its keys stand.
    pub(super) fn status(&self) -> KeyStatus {
        self.lock().clone()
    }

    /// Its task has panicked.
    pub(super) fn has_failed(&self, keys: &Keys) {
        let error = FetchError::failed();
        keys.count(&self.spec, error.result);
        self.lock().failed(keys.core.clock().now().wall, &error);
    }

    fn lock(&self) -> MutexGuard<'_, KeyStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks after the keys of `watched` until it is dropped.
pub(super) async fn keep(keys: Arc<Keys>, watched: Arc<Watched>) {
    let is_told = watched.spec.source == KeySource::WorkloadApi {};
    let mut changes = keys.sources.workload_api.as_ref().filter(|_| is_told).map(|hub| hub.subscribe());
    let interval = match watched.spec.source {
        KeySource::File { .. } => keys.config.file_interval,
        _ => keys.config.refresh_interval,
    };
    let mut next = Instant::now();
    let mut last_attempt = None;
    let mut failures: u32 = 0;
    loop {
        let told = async {
            match &mut changes {
                Some(changes) => changes.changed().await.is_ok(),
                None => false,
            }
        };
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            true = told => {}
            () = watched.rewritten.notified() => {}
            () = watched.unknown_key.notified(), if !is_told => {
                let cooldown = keys.config.unknown_kid_cooldown;
                next = schedule::on_unknown_key(next, last_attempt, cooldown, Instant::now());
                show_next(&keys, &watched, Some(next));
                continue;
            }
        }
        last_attempt = Some(Instant::now());
        #[cfg(test)]
        assert!(!watched.panics_next.swap(false, std::sync::atomic::Ordering::Relaxed), "as the test asks");
        let result = refresh(&keys, &watched.spec).await;
        let now = keys.core.clock().now().wall;
        let wait = match result {
            // Whoever follows the issuers ends this task, or finds that nothing has changed after all.
            Ok(Refreshed { installed: Installed::Gone, .. }) => schedule::after_failure(interval, 1),
            Ok(Refreshed { installed, hint_seconds, sequence }) => {
                let changed = installed == Installed::Changed;
                keys.count(&watched.spec, if changed { KeyFetch::Changed } else { KeyFetch::Unchanged });
                if changed || failures > 0 {
                    tracing::info!(issuer = %watched.spec.name, source = watched.spec.source.name(), changed, sequence, "keys are up to date");
                }
                failures = 0;
                watched.lock().succeeded(now, changed, sequence);
                match watched.spec.source {
                    KeySource::File { .. } => interval,
                    KeySource::WorkloadApi {} => NEVER,
                    _ => schedule::after_success(interval, hint_seconds),
                }
            }
            Err(error) => {
                keys.count(&watched.spec, error.result);
                failures = failures.saturating_add(1);
                let wait = schedule::after_failure(interval, failures);
                report(&watched, &error, failures, wait);
                watched.lock().failed(now, &error);
                wait
            }
        };
        next = Instant::now() + wait;
        show_next(&keys, &watched, (wait < NEVER).then_some(next));
    }
}

async fn refresh(keys: &Keys, spec: &Spec) -> Result<Refreshed, FetchError> {
    let gone = Refreshed { installed: Installed::Gone, hint_seconds: None, sequence: None };
    let Some(issuer) = spec.find(keys.core.index()) else { return Ok(gone) };
    let fetch = keys.sources.fetch(&issuer, &spec.source);
    let fetched = match tokio::time::timeout(keys.config.timeout, fetch).await {
        Ok(fetched) => fetched?,
        Err(_elapsed) => {
            let limit = keys.config.timeout.as_secs_f64();
            return Err(FetchError::unreachable(format!("there was no whole answer within {limit} s")));
        }
    };
    let hint_seconds = install::refresh_hint(spec.kind, &fetched)?;
    let sequence = install::sequence(spec.kind, &fetched)?;
    let installed = install::install(&keys.core, spec, &fetched).await?;
    Ok(Refreshed { installed, hint_seconds, sequence })
}

fn report(watched: &Watched, error: &FetchError, failures: u32, wait: std::time::Duration) {
    let (issuer, source) = (&watched.spec.name, watched.spec.source.name());
    let (result, retry_in_ms) = (error.result.name(), wait.as_millis());
    if failures == 1 || error.result == KeyFetch::Rollback {
        tracing::warn!(%issuer, source, result, %error, retry_in_ms, "keys could not be brought up to date; those that are held stay");
    } else {
        tracing::debug!(%issuer, source, result, %error, failures, retry_in_ms, "keys could not be brought up to date");
    }
}

fn show_next(keys: &Keys, watched: &Watched, next: Option<Instant>) {
    let now = keys.core.clock().now().wall;
    let at = next.map(|next| now.saturating_add(next.saturating_duration_since(Instant::now())));
    watched.lock().next_refresh = at;
}
