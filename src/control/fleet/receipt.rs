//! Receipts: which enforcement points have applied a revision, which have not, and when even those must deny.
//!
//! Plane: control. INVARIANT: no allow from before a revision leaves an enforcement point that its receipt calls
//! applied. `deny_after` counts from when the receipt was asked for, not from the commit: a bookmark may have been
//! made in between, and it renews the old state once more.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Fleet, Inner};
use crate::clock::Timestamp;
use crate::credential::SpiffeId;
use crate::wire::Position;

/// The least time between two looks at a large fleet while acknowledgements come in.
const SETTLE: Duration = Duration::from_millis(2);

/// What has become of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The revision, `EPOCH.REV`.
    pub revision: String,
    /// When it was committed.
    pub committed_at: Timestamp,
    /// Instances of enforcement points all of whose instances have applied it.
    pub applied: Vec<Applied>,
    /// Instances that have not, and those that have but belong to an enforcement point with one that has not.
    pub pending: Vec<Pending>,
    /// Configured enforcement points that have never connected. They hold no state, so they answer nothing.
    pub never_connected: Vec<String>,
    /// From this time on even the pending ones deny, unless they have applied it by then.
    pub deny_after: Timestamp,
    /// Whether nothing is pending.
    pub complete: bool,
}

/// An instance that has applied the revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// SPIFFE ID of the enforcement point.
    pub enforcement_point: String,
    /// Which of its instances.
    pub instance: String,
    /// When its acknowledgement arrived.
    pub applied_at: Timestamp,
    /// How long after the commit that was.
    pub elapsed_ms: u64,
}

/// An instance that may still answer from an older state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// SPIFFE ID of the enforcement point.
    pub enforcement_point: String,
    /// Which of its instances.
    pub instance: String,
    /// What it has acknowledged last.
    pub position: Option<String>,
    /// When it was last known to be there.
    pub last_seen: Timestamp,
}

impl Fleet {
    /// The receipt of `position`, as soon as it is complete, at the latest after `wait`. Call it once the revision is
    /// in the index: it counts the staleness bound from now.
    pub async fn receipt(&self, position: Position, committed_at: Timestamp, wait: Duration) -> Receipt {
        let asked_at = self.clock.now().wall.max(committed_at);
        let deny_after = self.can_only_deny_after(asked_at);
        let mut changed = self.changed.subscribe();
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            changed.mark_unchanged();
            let receipt = self.receipt_now(position, committed_at, deny_after);
            if receipt.complete {
                return receipt;
            }
            // One that has gone becomes unable to answer by time alone: look again then.
            let look_again = tokio::time::sleep(Duration::from_secs(1));
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline) => return receipt,
                _ = changed.changed() => tokio::time::sleep(SETTLE.min(wait)).await,
                () = look_again => {}
            }
        }
    }

    fn receipt_now(&self, position: Position, committed_at: Timestamp, deny_after: Timestamp) -> Receipt {
        let now = self.clock.now().wall;
        let inner = self.lock();
        let behind = self.behind(&inner, position, now);
        let (mut applied, mut pending) = (Vec::new(), Vec::new());
        for ((identity, instance), state) in &inner.instances {
            let live = state.connection.is_some() || now <= self.can_only_deny_after(state.last_seen);
            match state.applied_at(position) {
                Some(at) if !behind.contains(identity) => applied.push(Applied {
                    enforcement_point: identity.to_string(),
                    instance: instance.to_string(),
                    applied_at: at,
                    elapsed_ms: u64::try_from(at.since(committed_at).as_millis()).unwrap_or(u64::MAX),
                }),
                _ if live => pending.push(Pending {
                    enforcement_point: identity.to_string(),
                    instance: instance.to_string(),
                    position: state.acks.back().map(|(p, _)| p.to_string()),
                    last_seen: if state.connection.is_some() { now } else { state.last_seen },
                }),
                // It can only deny: neither applied nor pending.
                _ => {}
            }
        }
        let never_connected = self.unseen(&inner).map(ToString::to_string).collect();
        let complete = pending.is_empty();
        let revision = position.to_string();
        Receipt { revision, committed_at, applied, pending, never_connected, deny_after, complete }
    }

    /// Enforcement points with an instance that has not applied `position` and could still answer.
    fn behind<'a>(&self, inner: &'a Inner, position: Position, now: Timestamp) -> BTreeSet<&'a SpiffeId> {
        let late = inner.instances.iter().filter(|(_, state)| {
            let live = state.connection.is_some() || now <= self.can_only_deny_after(state.last_seen);
            live && state.applied_at(position).is_none()
        });
        late.map(|((identity, _), _)| identity).collect()
    }
}
