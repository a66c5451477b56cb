//! Receipts: which enforcement points have applied a revision, which have not, and when even those must deny.
//!
//! Plane: control. INVARIANT: no allow from before a revision leaves an enforcement point that its receipt calls
//! applied. `deny_after` counts from when the receipt was asked for, not from the commit: a bookmark may have been
//! made in between, and it renews the old state once more.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::instance::{Instance, Slot};
use super::{Fleet, Key, each};
use crate::clock::Timestamp;
use crate::credential::SpiffeId;
use crate::wire::Position;

/// The least time between two looks at a large fleet while acknowledgements come in.
const SETTLE: Duration = Duration::from_millis(2);

/// What has become of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
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
        let mut late = None;
        loop {
            changed.mark_unchanged();
            let over = tokio::time::Instant::now() >= deadline;
            if over || !self.is_late(position, &mut late) {
                let receipt = self.receipt_now(position, committed_at, deny_after);
                // An instance may have come back between the two looks.
                if over || receipt.complete {
                    return receipt;
                }
            }
            // One that has gone becomes unable to answer by time alone: look again then.
            let look_again = tokio::time::sleep(Duration::from_secs(1));
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline) => {}
                _ = changed.changed() => tokio::time::sleep(SETTLE.min(wait)).await,
                () = look_again => {}
            }
        }
    }

    /// Whether an instance that could still answer has not applied `position`. Remembers which, in `late`, and looks there
    /// first: while ten thousand acknowledge, most looks are at one.
    fn is_late(&self, position: Position, late: &mut Option<Key>) -> bool {
        let now = self.clock.now().wall;
        let inner = self.lock();
        if let Some((identity, instance)) = &*late {
            // From there on; those before it had applied it, unless they came back since.
            let rest = inner.instances.range(identity.clone()..).flat_map(|(found, all)| {
                let all = all.iter().skip_while(move |(name, _)| found == identity && **name < *instance);
                all.map(move |(instance, slot)| (found, instance, slot))
            });
            let found = self.first_late(rest, position, now);
            if found.is_some() {
                *late = found;
                return true;
            }
        }
        *late = self.first_late(each(&inner.instances), position, now);
        late.is_some()
    }

    fn first_late<'a>(
        &self,
        mut instances: impl Iterator<Item = (&'a SpiffeId, &'a Arc<str>, &'a Arc<Slot>)>,
        position: Position,
        now: Timestamp,
    ) -> Option<Key> {
        let late = |slot: &Slot| {
            let state = slot.lock();
            self.is_live(&state, now) && !state.has_applied(position)
        };
        let found = instances.find(|(_, _, slot)| late(slot));
        found.map(|(identity, instance, _)| (identity.clone(), Arc::clone(instance)))
    }

    /// Whether it could still answer a check.
    fn is_live(&self, state: &Instance, now: Timestamp) -> bool {
        state.connected || now <= self.can_only_deny_after(state.last_seen)
    }

    fn receipt_now(&self, position: Position, committed_at: Timestamp, deny_after: Timestamp) -> Receipt {
        let now = self.clock.now().wall;
        let inner = self.lock();
        let (mut applied, mut pending) = (Vec::new(), Vec::new());
        for (identity, all) in &inner.instances {
            // One look at each: an acknowledgement that comes meanwhile must not make a receipt of two minds.
            let look = |slot: &Slot| {
                let state = slot.lock();
                let last = state.last().map(|(p, _)| p.to_string());
                let last_seen = if state.connected { now } else { state.last_seen };
                (state.applied_at(position), self.is_live(&state, now), last, last_seen)
            };
            let states: Vec<_> = all.iter().map(|(instance, slot)| (instance, look(slot))).collect();
            let behind = states.iter().any(|(_, (applied_at, live, ..))| *live && applied_at.is_none());
            for (instance, (applied_at, live, last, last_seen)) in states {
                let (enforcement_point, instance) = (identity.to_string(), instance.to_string());
                match applied_at {
                    Some(at) if !behind => {
                        let elapsed_ms = u64::try_from(at.since(committed_at).as_millis()).unwrap_or(u64::MAX);
                        applied.push(Applied { enforcement_point, instance, applied_at: at, elapsed_ms });
                    }
                    _ if live => pending.push(Pending { enforcement_point, instance, position: last, last_seen }),
                    // It can only deny: neither applied nor pending.
                    _ => {}
                }
            }
        }
        let never_connected = self.unseen(&inner).map(ToString::to_string).collect();
        let complete = pending.is_empty();
        let revision = position.to_string();
        Receipt { revision, committed_at, applied, pending, never_connected, deny_after, complete }
    }
}
