//! The grants of a sidecar, found by workload and resource.
//!
//! Pure. A look-up bisects the grants of one shard for those of one workload on one resource, so its cost does not follow
//! the number of grants. Besides the grants that cover a request it tells what else is known, so that a denial can say that
//! a grant is pending, revoked or over. INVARIANT: of grants that policies cannot tell apart one stands for all, and every
//! other is put to policy: none is ever crowded out, so that removing one cannot bring another into view.
//! Holds what enforcement needs and nothing else: under 100 bytes a grant, and the text of its path.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::leaf::{Entry, Ids, Leaf, Phase};
use super::shards::{Shard, Shards, WorkloadKey};
use crate::authz::{CanonicalPath, Template};
use crate::clock::Timestamp;
use crate::object::{Grant, GrantId, GrantState};
use crate::policy::GrantFacts;

/// How many grants that do not cover a request are looked at to find out what to say about them.
const EXPLAIN_AT_MOST: usize = 16;

/// The index.
#[derive(Debug, Clone)]
pub struct GrantIndex {
    by_workload: Shards<Leaf>,
    by_id: Shards<Ids>,
    len: usize,
    names: Arc<Names>,
    /// Whether grants are only put in their order when all of them are there.
    filling: bool,
}

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
    /// The active grants that cover it, ordinary ones before break-glass, then the longest-lasting first; of those that policies cannot tell apart, the first.
    pub active: SmallVec<[Active; 2]>,
    /// The most telling thing about the others.
    pub standing: Standing,
}

/// An active grant that covers a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Active {
    /// Its id.
    pub id: GrantId,
    /// When it ends.
    pub not_after: Timestamp,
    /// Whether it is break-glass.
    pub break_glass: bool,
    actions: u32,
    duration_seconds: u64,
}

/// What can be said about grants that do not cover a request. The later, the more telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// There is none.
    None,
    /// An active one covers other actions or paths of the resource.
    Scope(GrantId),
    /// One is over; of several, the one that ended last.
    Over(Ended),
    /// One waits for approval.
    Pending(GrantId),
    /// One starts later.
    NotYetValid(GrantId),
}

/// How a grant ended. Ordered by time; a revocation tells more than an expiry at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ended {
    /// When.
    pub at: Timestamp,
    /// By a revocation, not by its own end.
    pub revoked: bool,
    /// Which grant.
    pub id: GrantId,
}

/// What is looked for among the grants of a leaf.
struct Look<'a, R> {
    names: &'a Names,
    leaf: &'a Leaf,
    action: &'a str,
    path: &'a CanonicalPath<'a>,
    now: Timestamp,
    apart: Apart,
    is_revoked: R,
}

/// Names that entries refer to by number; there are few of them.
#[derive(Debug, Clone, Default)]
struct Names {
    resources: HashMap<Box<str>, u32, RandomState>,
    resource_names: Vec<Box<str>>,
    action_sets: HashMap<Arc<[Box<str>]>, u32, RandomState>,
    action_set_names: Vec<Arc<[Box<str>]>>,
}

// === impl GrantIndex ===

impl GrantIndex {
    /// An empty index, all of whose shards are of `version`.
    pub fn new(version: u64) -> Self {
        Self {
            by_workload: Shards::new(version),
            by_id: Shards::new(version),
            len: 0,
            names: Arc::new(Names::default()),
            filling: false,
        }
    }

    /// An empty index to be filled and then [settled](Self::settle). Until then it finds nothing.
    pub fn filling(version: u64) -> Self {
        Self { filling: true, ..Self::new(version) }
    }

    /// Ends the filling.
    pub fn settle(&mut self) {
        if std::mem::take(&mut self.filling) {
            self.by_workload.rearrange(|leaf| !leaf.entries().is_empty(), Leaf::settle);
        }
    }

    /// Number of grants.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no grants.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// When anything about the grants of this workload (or one that shares its shard) last changed.
    pub fn version(&self, workload: &WorkloadKey) -> u64 {
        self.by_workload.version(Shard::of(&workload.0))
    }

    /// Marks the shard of a workload as changed.
    pub fn touch(&mut self, workload: &WorkloadKey, version: u64) {
        self.by_workload.edit(Shard::of(&workload.0), version);
    }

    /// Puts a grant in place of its earlier version. One that was never granted and no longer can be is left out.
    pub fn put(&mut self, grant: &Grant, version: u64) {
        self.remove(grant.id, version);
        let Some((phase, not_before, not_after)) = phase(grant) else { return };
        // A template that does not parse never gets this far; if it did, the grant would cover nothing.
        let path = match grant.path.as_deref().map(Template::parse) {
            None => None,
            Some(Ok(template)) => Some(template),
            Some(Err(_)) => return,
        };
        let (resources, actions) = self.numbers(grant);
        let workload = WorkloadKey::of(grant.workload.as_str());
        let id = *grant.id.0.as_bytes();
        let shard = Shard::of(&workload.0);
        let Some(ids) = self.by_id.edit(Shard::of(&id), version) else { return };
        ids.insert(id, shard);
        self.len += 1;
        let Some(leaf) = self.by_workload.edit(shard, version) else { return };
        let entry = Entry::new(workload.0, id, [not_before, not_after], phase);
        for resource in resources {
            match self.filling {
                true => leaf.append(entry.on(resource, actions), path.as_ref()),
                false => leaf.insert(entry.on(resource, actions), path.as_ref()),
            }
        }
    }

    /// Takes a grant out.
    pub fn remove(&mut self, id: GrantId, version: u64) {
        let id = *id.0.as_bytes();
        let Some(shard) = self.by_id.get(Shard::of(&id)).and_then(|ids| ids.find(&id)) else { return };
        if let Some(ids) = self.by_id.edit(Shard::of(&id), version) {
            ids.remove(&id);
            self.len -= 1;
        }
        if let Some(leaf) = self.by_workload.edit(shard, version) {
            leaf.remove(&id);
        }
    }

    /// What is known of the grants of `workload` for `action` on `path` of a resource, which is known by its own name
    /// and its service's.
    #[expect(clippy::too_many_arguments, reason = "a question has as many parts")]
    pub fn find(
        &self,
        workload: &WorkloadKey,
        [route, service]: [&str; 2],
        action: &str,
        path: &CanonicalPath<'_>,
        now: Timestamp,
        apart: Apart,
        is_revoked: impl Fn(GrantId) -> bool,
    ) -> Covering {
        let mut found = Covering { active: SmallVec::new(), standing: Standing::None };
        let leaf = self.by_workload.get(Shard::of(&workload.0));
        let Some(leaf) = leaf.filter(|_| !self.filling) else { return found };
        let look = Look { names: &self.names, leaf, action, path, now, apart, is_revoked };
        for resource in [route, service] {
            let Some(&resource) = self.names.resources.get(resource) else { continue };
            let [general, matching, exact] = leaf.find(&workload.0, resource, path.as_str());
            for run in [general, matching] {
                let mut over = 0;
                for entry in run {
                    over += usize::from(entry.not_after <= now);
                    if over > EXPLAIN_AT_MOST {
                        break; // ended ones sort last: only more of them follow
                    }
                    look.consider(entry, &mut found);
                }
            }
            // Grants for other exact paths of this resource matter only to what is said.
            if found.active.is_empty() && found.standing < Standing::Scope(GrantId(uuid::Uuid::nil())) {
                for entry in exact.iter().take(EXPLAIN_AT_MOST) {
                    look.consider(entry, &mut found);
                }
            }
        }
        found.keep_one_of_each(apart);
        found
    }

    /// What policies may know of an active grant.
    pub fn facts(&self, active: &Active) -> GrantFacts {
        let actions = self.names.action_set(active.actions);
        GrantFacts { id: active.id, actions, duration_seconds: active.duration_seconds }
    }

    /// One line per grant and resource, sorted: equal content gives equal lines, however it was reached.
    pub fn canonical(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for leaf in self.by_workload.iter() {
            lines.extend(leaf.entries().iter().map(|e| {
                let resource = self.names.resource_names.get(e.resource as usize).map_or("", |n| n);
                let actions = self.names.action_set(e.actions);
                let (workload, path) = (WorkloadKey(e.workload), leaf.text(e));
                let Entry { id, phase, not_before, not_after, .. } = e;
                format!("{id:?} {workload:?} {resource} {actions:?} {path} {phase:?} {not_before:?} {not_after:?}")
            }));
        }
        lines.sort_unstable();
        lines
    }

    /// The numbers of a grant's resources and action set; the table is copied only when a name is new.
    fn numbers(&mut self, grant: &Grant) -> (Vec<u32>, u32) {
        let mut resources: Vec<String> = grant.resources.iter().map(ToString::to_string).collect();
        resources.sort_unstable();
        resources.dedup();
        let mut actions: Vec<Box<str>> = grant.actions.iter().map(|a| a.as_str().into()).collect();
        actions.sort_unstable();
        actions.dedup();
        if let Some(numbers) = self.names.numbers(&resources, &actions) {
            return numbers;
        }
        let names = Arc::make_mut(&mut self.names);
        names.learn(&resources, &actions);
        names.numbers(&resources, &actions).unwrap_or_default()
    }
}

// === impl Look ===

impl<R: Fn(GrantId) -> bool> Look<'_, R> {
    /// Takes a grant in: as one that covers the request, or for what can be said about it.
    fn consider(&self, entry: &Entry, found: &mut Covering) {
        let now = self.now;
        let id = GrantId(uuid::Uuid::from_bytes(entry.id));
        let in_scope =
            self.names.action_sets_have(entry.actions, self.action) && self.leaf.covers_path(entry, self.path);
        let revoked = entry.phase == Phase::Revoked || (self.is_revoked)(id);
        let standing = match entry.phase {
            _ if !in_scope && !revoked && entry.covers(now) => Standing::Scope(id),
            _ if !in_scope => Standing::None,
            _ if revoked => Standing::Over(Ended { at: entry.not_after.min(now), revoked, id }),
            Phase::Pending => Standing::Pending(id),
            _ if now < entry.not_before => Standing::NotYetValid(id),
            _ if now >= entry.not_after => Standing::Over(Ended { at: entry.not_after, revoked, id }),
            Phase::Scheduled => Standing::NotYetValid(id),
            _ => {
                let active = Active {
                    id,
                    not_after: entry.not_after,
                    break_glass: entry.phase == Phase::BreakGlass,
                    actions: entry.actions,
                    duration_seconds: entry.not_after.since(entry.not_before).as_secs(),
                };
                match found.active.first_mut() {
                    Some(first) if self.apart == Apart::Nothing => {
                        if active.rank() < first.rank() {
                            *first = active;
                        }
                    }
                    _ => found.active.push(active),
                }
                return;
            }
        };
        found.standing = found.standing.max(standing);
    }
}

// === impl Covering ===

impl Covering {
    /// Of grants that policies cannot tell apart, keeps the first by rank. Sorts.
    fn keep_one_of_each(&mut self, apart: Apart) {
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
    /// Ordinary ones before break-glass, so that an emergency is only named where it was needed; then the longest-lasting
    /// first.
    const fn rank(&self) -> (bool, Reverse<Timestamp>, GrantId) {
        (self.break_glass, Reverse(self.not_after), self.id)
    }
}

/// Phase, start and end of a grant; `None` when it never was and never will be in force.
fn phase(grant: &Grant) -> Option<(Phase, Timestamp, Timestamp)> {
    let start = grant.not_before.unwrap_or(grant.requested_at);
    let granted = if grant.break_glass { Phase::BreakGlass } else { Phase::Granted };
    let ended = |at: Timestamp| grant.not_after.map_or(at, |end| end.min(at));
    match grant.state {
        GrantState::Pending => Some((Phase::Pending, start, Timestamp::MAX)),
        // What nobody judges yet must not be ignored.
        _ if grant.is_limited() => None,
        GrantState::Scheduled => Some((Phase::Scheduled, grant.not_before?, grant.not_after?)),
        GrantState::Active => Some((granted, grant.not_before?, grant.not_after?)),
        GrantState::Ended | GrantState::Exhausted => {
            Some((granted, grant.not_before?, ended(grant.ended.as_ref()?.at)))
        }
        GrantState::Revoked => Some((Phase::Revoked, start, ended(grant.ended.as_ref()?.at))),
        GrantState::Denied | GrantState::Withdrawn | GrantState::ExpiredUnapproved => None,
    }
}

// === impl Names ===

impl Names {
    fn action_set(&self, number: u32) -> Arc<[Box<str>]> {
        self.action_set_names.get(number as usize).cloned().unwrap_or_else(|| Arc::from([]))
    }

    /// Whether an action is in a set.
    fn action_sets_have(&self, number: u32, action: &str) -> bool {
        self.action_set_names.get(number as usize).is_some_and(|set| set.iter().any(|a| **a == *action))
    }

    /// The numbers of a grant's resources and action set, if all are known.
    fn numbers(&self, resources: &[String], actions: &[Box<str>]) -> Option<(Vec<u32>, u32)> {
        let resources: Option<Vec<u32>> = resources.iter().map(|r| self.resources.get(r.as_str()).copied()).collect();
        Some((resources?, *self.action_sets.get(actions)?))
    }

    fn learn(&mut self, resources: &[String], actions: &[Box<str>]) {
        for resource in resources {
            let next = u32::try_from(self.resource_names.len()).unwrap_or(u32::MAX);
            if !self.resources.contains_key(resource.as_str()) {
                self.resources.insert(resource.as_str().into(), next);
                self.resource_names.push(resource.as_str().into());
            }
        }
        if !self.action_sets.contains_key(actions) {
            let next = u32::try_from(self.action_set_names.len()).unwrap_or(u32::MAX);
            let set: Arc<[Box<str>]> = Arc::from(actions);
            self.action_sets.insert(Arc::clone(&set), next);
            self.action_set_names.push(set);
        }
    }
}

#[cfg(test)]
mod tests;
