//! What is asked of the grants of a workload for one request, and what is found.
//!
//! Pure. Grants that cover it, and the most telling thing about those that do not. INVARIANT: a grant whose uses are counted
//! never stands for another, because it may have none left; of others that policies cannot tell apart, one does.

use std::cmp::Reverse;

use smallvec::SmallVec;

use super::leaf::Entry;
use super::limits::{Circumstances, Unmet};
use crate::authz::CanonicalPath;
use crate::clock::Timestamp;
use crate::object::GrantId;

/// What policies can tell grants apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apart {
    /// Nothing: they only ask whether there is one.
    Nothing,
    /// Actions and duration.
    Terms,
    /// Everything, the id included.
    Id,
}

/// What is known of a workload's grants for one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Covering {
    /// The active grants that cover it, ordinary ones before break-glass, then the longest-lasting first; of those that
    /// policies cannot tell apart, the first.
    pub active: SmallVec<[Active; 2]>,
    /// Those that a use has to be spent of, the longest-lasting first: all of them, because any may have none left.
    pub counted: Vec<Active>,
    /// The most telling thing about the others.
    pub standing: Standing,
}

/// An active grant that covers a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Active {
    /// Its id.
    pub id: GrantId,
    /// When it ends, or the time of the week that it is for.
    pub not_after: Timestamp,
    /// Whether it is break-glass.
    pub break_glass: bool,
    pub(super) actions: u32,
    pub(super) duration_seconds: u64,
}

/// What can be said about grants that do not cover a request. The later, the more telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// There is none.
    None,
    /// An active one covers other actions, paths or calls of the resource.
    Scope(GrantId),
    /// One is over; of several, the one that ended last.
    Over(Ended),
    /// One waits for approval.
    Pending(GrantId),
    /// One starts later.
    NotYetValid(GrantId),
    /// One is in force and would cover it, but for a condition.
    Unmet(Unmet, GrantId),
}

/// When and how a grant ended. Ordered by time; a revocation tells more than an expiry at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ended {
    /// When.
    pub at: Timestamp,
    /// How.
    pub by: End,
    /// Which grant.
    pub id: GrantId,
}

/// How a grant ended. The later, the more telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// By its own time, or dropped.
    Expired,
    /// By its last use.
    Exhausted,
    /// By a revocation.
    Revoked,
}

/// What a grant is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Sought<'a> {
    /// The name of the resource, and that of its service.
    pub resource: [&'a str; 2],
    /// The action.
    pub action: &'a str,
    /// The path. Without one, no grant covers the request that is for some paths only.
    pub path: Option<&'a CanonicalPath<'a>>,
    /// Where the workload runs.
    pub environment: &'a str,
    /// The rest of the request.
    pub request: &'a Circumstances<'a>,
    /// The time.
    pub now: Timestamp,
}

// === impl Sought ===

impl Sought<'_> {
    /// The path as grants for one exact path have it, which always starts with a slash.
    pub(super) fn exact_path(&self) -> &str {
        self.path.map_or("", CanonicalPath::as_str)
    }
}

// === impl Covering ===

impl Covering {
    /// Adds a grant that covers the request.
    pub(super) fn take_in(&mut self, active: Active, counted: bool, apart: Apart) {
        if counted {
            self.counted.push(active);
            return;
        }
        match self.active.first_mut() {
            Some(first) if apart == Apart::Nothing => {
                if active.rank() < first.rank() {
                    *first = active;
                }
            }
            _ => self.active.push(active),
        }
    }

    /// Of grants that policies cannot tell apart, keeps the first by rank. Sorts.
    pub(super) fn keep_one_of_each(&mut self, apart: Apart) {
        self.counted.sort_unstable_by_key(Active::rank);
        self.counted.dedup_by_key(|a| a.id);
        if self.active.len() < 2 {
            return;
        }
        let id = |a: &Active| (apart == Apart::Id).then_some(a.id);
        self.active.sort_unstable_by_key(|a| (a.actions, a.duration_seconds, id(a), a.rank()));
        self.active.dedup_by(|a, b| (a.actions, a.duration_seconds, id(a)) == (b.actions, b.duration_seconds, id(b)));
        self.active.sort_unstable_by_key(Active::rank);
    }
}

// === impl Active ===

impl Active {
    /// One that covers a request, until its end or `until`.
    pub(super) fn of(entry: &Entry, until: Timestamp) -> Self {
        Self {
            id: GrantId(uuid::Uuid::from_bytes(entry.id)),
            not_after: entry.not_after.min(until),
            break_glass: entry.phase.is_break_glass(),
            actions: entry.actions,
            duration_seconds: entry.not_after.since(entry.not_before).as_secs(),
        }
    }

    /// Whether policies that tell grants apart by so much take this one for another.
    pub fn is_like(&self, other: &Self, apart: Apart) -> bool {
        match apart {
            Apart::Nothing => true,
            Apart::Terms => (self.actions, self.duration_seconds) == (other.actions, other.duration_seconds),
            Apart::Id => self.id == other.id,
        }
    }

    /// Ordinary ones before break-glass, so that an emergency is only named where it was needed; then the longest-lasting
    /// first.
    const fn rank(&self) -> (bool, Reverse<Timestamp>, GrantId) {
        (self.break_glass, Reverse(self.not_after), self.id)
    }
}
