//! Drain: the way a process ends. Plane: cross-cutting.
//!
//! A door keeps answering while it drains, until its peers' connections are gone or the deadline passes: a check that
//! is cut off is an error at Envoy, and an error opens the gate under `failure_mode_allow`. INVARIANT: a drain, once
//! begun, never stops, and its deadline only moves nearer. A [`Drain`] that is dropped counts as an expired one, so
//! that nothing outlives the composition that made it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::readiness::Readiness;

/// Begins the drain. Held by the composition root.
#[derive(Debug)]
pub struct Drain(watch::Sender<Option<Instant>>);

/// Tells of the drain. Held by everything that serves; dropped when it has ended.
#[derive(Debug, Clone)]
pub struct Signal(watch::Receiver<Option<Instant>>);

/// A drain that has not begun, and the signal that tells of it.
pub fn channel() -> (Drain, Signal) {
    let (sender, receiver) = watch::channel(None);
    (Drain(sender), Signal(receiver))
}

/// Waits for SIGTERM or SIGINT, then stops advertising readiness and begins the drain. A second signal ends it at
/// once. Returns only when every [`Signal`] has been dropped.
pub async fn on_termination(drain: &Drain, readiness: &Readiness, deadline: Duration) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut next = async || {
        tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        }
    };
    let name = next().await;
    tracing::info!(signal = name, deadline_s = deadline.as_secs(), "draining");
    let _draining = readiness.block("draining");
    drain.begin(deadline);
    tokio::select! {
        () = drain.ended() => {}
        name = next() => {
            tracing::warn!(signal = name, "second signal: ending at once");
            drain.begin(Duration::ZERO);
            drain.ended().await;
        }
    }
    Ok(())
}

// === impl Drain ===

impl Drain {
    /// Begins the drain, to end `within` this time; in one that has begun, only brings the end nearer.
    pub fn begin(&self, within: Duration) {
        let until = Instant::now() + within;
        self.0.send_if_modified(|deadline| {
            let nearer = deadline.is_none_or(|d| until < d);
            if nearer {
                *deadline = Some(until);
            }
            nearer
        });
    }

    /// Waits until every [`Signal`] has been dropped.
    pub async fn ended(&self) {
        self.0.closed().await;
    }
}

// === impl Signal ===

impl Signal {
    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.0.borrow().is_some() || self.0.has_changed().is_err()
    }

    /// Waits until the drain begins.
    pub async fn draining(&self) {
        let mut receiver = self.0.clone();
        // An error means that the drain was dropped, which counts as expired.
        let _ = receiver.wait_for(Option::is_some).await;
    }

    /// Waits until the deadline has passed.
    pub async fn expired(&self) {
        let mut receiver = self.0.clone();
        loop {
            let deadline = match receiver.wait_for(Option::is_some).await {
                Ok(deadline) => *deadline,
                Err(_dropped) => return,
            };
            let Some(deadline) = deadline else { return };
            receiver.mark_unchanged();
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return,
                changed = receiver.changed() => if changed.is_err() { return },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn deadline_only_moves_nearer() {
        let (drain, signal) = channel();
        assert!(!signal.is_draining());
        let start = Instant::now();
        drain.begin(Duration::from_secs(30));
        assert!(signal.is_draining());
        signal.draining().await;
        drain.begin(Duration::from_secs(300));
        drain.begin(Duration::from_secs(10));
        signal.expired().await;
        assert_eq!(start.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_nearer_deadline_reaches_those_who_wait() {
        let (drain, signal) = channel();
        drain.begin(Duration::from_secs(30));
        let start = Instant::now();
        let waiting = tokio::spawn(async move { signal.expired().await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        drain.begin(Duration::ZERO);
        waiting.await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        drain.ended().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_drain_has_expired() {
        let (drain, signal) = channel();
        drop(drain);
        signal.draining().await;
        signal.expired().await;
        assert!(signal.is_draining());
    }
}
