//! One instance of an enforcement point: whether it has a stream, and what it acknowledged when.
//!
//! Plane: control; no I/O. Each has a lock of its own, so that ten thousand that acknowledge one revision do not wait for
//! each other. INVARIANT: acknowledgements rise. Bounded: the latest few are remembered; for an older revision the oldest of
//! them counts, which is later than the truth and never earlier.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::NackReport;
use crate::clock::Timestamp;
use crate::wire::{Epoch, Position, Revision};

/// How many acknowledgements of an instance are remembered, to tell when it had applied which revision.
const ACKS_KEPT: usize = 64;

/// One instance, as the stream in force has it. Its acknowledgements need no lock but this one.
#[derive(Debug)]
pub(super) struct Slot(Mutex<Instance>);

#[derive(Debug)]
pub(super) struct Instance {
    pub(super) connected: bool,
    pub(super) version: Box<str>,
    /// The epoch of the acknowledgements.
    epoch: Option<Epoch>,
    /// Rising revisions and when each was acknowledged.
    acks: VecDeque<(Revision, Timestamp)>,
    pub(super) last_seen: Timestamp,
    pub(super) last_nack: Option<NackReport>,
}

// === impl Slot ===

impl Slot {
    pub(super) fn new(version: &str, now: Timestamp, connected: bool, last_nack: Option<NackReport>) -> Arc<Self> {
        let (version, acks) = (version.into(), VecDeque::new());
        Arc::new(Self(Mutex::new(Instance { connected, version, epoch: None, acks, last_seen: now, last_nack })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Instance> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Instance ===

impl Instance {
    /// What it acknowledged last, and when.
    pub(super) fn last(&self) -> Option<(Position, Timestamp)> {
        let (revision, at) = *self.acks.back()?;
        Some((Position { epoch: self.epoch?, revision }, at))
    }

    /// When it acknowledged `position` or a later one, as far back as is remembered.
    pub(super) fn applied_at(&self, position: Position) -> Option<Timestamp> {
        if self.epoch? < position.epoch {
            return None;
        }
        let reached = |revision: Revision| self.epoch > Some(position.epoch) || revision >= position.revision;
        self.acks.iter().find(|(revision, _)| reached(*revision)).map(|(_, at)| *at)
    }

    /// Whether it has acknowledged `position` or a later one.
    pub(super) fn has_applied(&self, position: Position) -> bool {
        self.last().is_some_and(|(last, _)| last >= position)
    }

    /// It has acknowledged `position`. One that is not later than the last says nothing new.
    pub(super) fn acked(&mut self, position: Position, now: Timestamp) {
        self.last_seen = now;
        if self.last().is_some_and(|(last, _)| position <= last) {
            return;
        }
        if self.epoch != Some(position.epoch) {
            self.acks.clear();
            self.epoch = Some(position.epoch);
        }
        if self.acks.len() >= ACKS_KEPT {
            self.acks.pop_front();
        }
        self.acks.push_back((position.revision, now));
    }
}
