//! Revocations through the real API, and how long each took to reach every sidecar.
//!
//! Plane: composition. A latency counts from the moment the request was sent, so the API and the store are in it. A
//! sidecar that never got a revocation is counted as missing, not left out of the percentiles unsaid.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

use super::api::{Api, ApiError};
use super::report::{Percentiles, Spread};
use super::{Fleet, Process, Step};
use crate::control::fleet::Receipt;
use crate::wire::Position;

/// Single revocations.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    /// How many.
    pub revocations: usize,
    /// How long between the end of one and the next.
    pub pause: Duration,
    /// How long to wait for a receipt.
    pub wait: Duration,
    /// How long to wait for the fleet itself.
    pub limit: Duration,
}

/// Revocations that are sent together.
#[derive(Debug, Clone, Copy)]
pub struct Burst {
    /// How many.
    pub revocations: usize,
    /// How long to wait for their receipts.
    pub wait: Duration,
}

struct Sent {
    at: Instant,
    position: Position,
    receipt: Option<Receipt>,
    answered: Duration,
}

/// Revokes one token after the other.
pub async fn revocations(
    fleet: &Fleet,
    api: &Api,
    issuer: &str,
    rounds: Rounds,
    control: Option<Process>,
) -> Result<Spread, ApiError> {
    let mut meter = Meter::start(fleet, control);
    let mut sent = Vec::new();
    for _ in 0..rounds.revocations {
        // What idle streams cost meanwhile is no part of it.
        tokio::time::sleep(rounds.pause).await;
        meter.resume(fleet);
        let one = revoke(api, issuer, rounds.wait).await?;
        // A receipt may be complete before the fleet has noted it, and is none of those that keep coming.
        fleet.reached(one.position.revision, rounds.limit).await;
        sent.push(one);
        meter.pause(fleet);
    }
    Ok(meter.finish(fleet, &sent))
}

/// Revokes many tokens at once.
pub async fn bursts(
    fleet: &Fleet,
    api: &Api,
    issuer: &str,
    burst: Burst,
    control: Option<Process>,
) -> Result<Spread, ApiError> {
    let mut meter = Meter::start(fleet, control);
    meter.resume(fleet);
    let all = (0..burst.revocations).map(|_| revoke(api, issuer, burst.wait));
    let sent = try_join_all(all).await?;
    for one in &sent {
        fleet.reached(one.position.revision, burst.wait).await;
    }
    meter.pause(fleet);
    Ok(meter.finish(fleet, &sent))
}

async fn revoke(api: &Api, issuer: &str, wait: Duration) -> Result<Sent, ApiError> {
    let at = Instant::now();
    let (position, receipt) = api.revoke(issuer, Some(wait)).await?;
    Ok(Sent { at, position, receipt, answered: at.elapsed() })
}

/// Adds up what is used between `resume` and `pause`.
struct Meter {
    control: Option<Process>,
    cpu_seconds: f64,
    received: u64,
    since: (Option<f64>, u64),
}

impl Meter {
    fn start(fleet: &Fleet, control: Option<Process>) -> Self {
        fleet.note();
        Self { control: control.filter(|c| c.usage().is_some()), cpu_seconds: 0.0, received: 0, since: (None, 0) }
    }

    fn resume(&mut self, fleet: &Fleet) {
        self.since = (self.cpu(), fleet.counts().received);
    }

    fn pause(&mut self, fleet: &Fleet) {
        let (cpu, received) = self.since;
        self.cpu_seconds += self.cpu().zip(cpu).map_or(0.0, |(now, then)| now - then);
        self.received += fleet.counts().received.saturating_sub(received);
    }

    fn cpu(&self) -> Option<f64> {
        Some(self.control?.usage()?.cpu_seconds)
    }

    fn finish(self, fleet: &Fleet, sent: &[Sent]) -> Spread {
        let steps = fleet.take_steps();
        let count = sent.len();
        let mut applied = Vec::with_capacity(steps.len());
        let mut missing = 0;
        for one in sent {
            let before = applied.len();
            let reached = |s: &&Step| s.from < one.position.revision && one.position.revision <= s.to;
            applied.extend(steps.iter().filter(reached).map(|s| ms(s.at.saturating_duration_since(one.at))));
            missing += fleet.len().saturating_sub(applied.len() - before);
        }
        let receipts = || sent.iter().filter_map(|s| s.receipt.as_ref());
        #[allow(clippy::cast_precision_loss, reason = "milliseconds and counts that are far below 2^52")]
        let acknowledged = receipts().flat_map(|r| r.applied.iter().map(|a| a.elapsed_ms as f64)).collect();
        let complete = receipts().filter(|r| r.complete).count();
        #[allow(clippy::cast_precision_loss, reason = "as above")]
        let share = |total: f64, of: usize| total / of.max(1) as f64;
        #[allow(clippy::cast_precision_loss, reason = "as above")]
        let bytes = self.received as f64;
        let used = self.control.map(|_| self.cpu_seconds * 1000.0);
        Spread {
            revocations: count,
            request_to_applied_ms: Percentiles::of(applied),
            commit_to_acknowledged_ms: Percentiles::of(acknowledged),
            receipt_ms: Percentiles::of(sent.iter().map(|s| ms(s.answered)).collect()),
            incomplete: count - complete,
            missing,
            bytes_each: share(share(bytes, fleet.len()), count),
            cpu_ms: used.map(|u| share(u, count)),
        }
    }
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}
