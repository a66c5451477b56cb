//! The grants of a sidecar, found by workload and resource.
//!
//! Pure. A look-up hashes to one workload and bisects to one resource, so its cost does not follow the number of
//! grants. Within a resource, grants for exact paths are bisected again, and what has ended sorts behind what has not.
//! Besides the grants that cover a request it tells what else is known, so that a denial can say that a grant is
//! pending, revoked or over. Holds what enforcement needs and nothing else: about 100 bytes a grant.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::sharded::{Key, ShardedMap, WorkloadKey};
use crate::authz::{CanonicalPath, Template};
use crate::clock::Timestamp;
use crate::object::{Grant, GrantId, GrantState};
use crate::policy::GrantFacts;

/// How many grants that do not cover a request are looked at to find out what to say about them.
const EXPLAIN_AT_MOST: usize = 16;
/// How many grants are offered to policy for one request.
const OFFER_AT_MOST: usize = 8;

/// The index.
#[derive(Debug, Clone)]
pub struct GrantIndex {
    by_workload: ShardedMap<Vec<Entry>>,
    by_id: ShardedMap<WorkloadKey>,
    names: Arc<Names>,
}

/// What is known of a workload's grants for one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Covering {
    /// The active grants that cover it, the longest-lasting first.
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

/// One grant on one resource. Ordered by resource, exact path, end (latest first), id.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    resource: u32,
    path: Option<Arc<Template>>,
    not_before: Timestamp,
    /// When it ends or ended; [`Timestamp::MAX`] for a pending one.
    not_after: Timestamp,
    id: Key,
    actions: u32,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Pending,
    Granted,
    Revoked,
}

/// Names that entries refer to by number; there are few of them.
#[derive(Debug, Clone, Default)]
struct Names {
    resources: HashMap<Box<str>, u32>,
    resource_names: Vec<Box<str>>,
    action_sets: HashMap<Arc<[Box<str>]>, u32>,
    action_set_names: Vec<Arc<[Box<str>]>>,
}

// === impl GrantIndex ===

impl GrantIndex {
    /// An empty index, all of whose shards are of `version`.
    pub fn new(version: u64) -> Self {
        Self {
            by_workload: ShardedMap::new(version),
            by_id: ShardedMap::new(version),
            names: Arc::new(Names::default()),
        }
    }

    /// Number of grants.
    pub const fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are no grants.
    pub const fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// When anything about the grants of this workload (or one that shares its shard) last changed.
    pub fn version(&self, workload: &WorkloadKey) -> u64 {
        self.by_workload.version(&workload.0)
    }

    /// Marks the shard of a workload as changed.
    pub fn touch(&mut self, workload: &WorkloadKey, version: u64) {
        self.by_workload.touch(&workload.0, version);
    }

    /// Puts a grant in place of its earlier version. One that was never granted and no longer can be is left out.
    pub fn put(&mut self, grant: &Grant, version: u64) {
        self.remove(grant.id, version);
        let Some((phase, not_before, not_after)) = phase(grant) else { return };
        // A template that does not parse never gets this far; if it did, the grant would cover nothing.
        let path = match grant.path.as_deref().map(Template::parse) {
            None => None,
            Some(Ok(template)) => Some(Arc::new(template)),
            Some(Err(_)) => return,
        };
        let (resources, actions) = self.numbers(grant);
        let workload = WorkloadKey::of(grant.workload.as_str());
        let id = *grant.id.0.as_bytes();
        self.by_id.insert(id, workload, version);
        let entries = resources.into_iter().map(|resource| Entry {
            resource,
            path: path.clone(),
            not_before,
            not_after,
            id,
            actions,
            phase,
        });
        self.by_workload.update(
            workload.0,
            version,
            |list| {
                list.extend(entries);
                list.sort_unstable_by(|a, b| a.order().cmp(&b.order()));
                list.dedup();
                list.shrink_to_fit();
            },
            |list| !list.is_empty(),
        );
    }

    /// Takes a grant out.
    pub fn remove(&mut self, id: GrantId, version: u64) {
        let id = *id.0.as_bytes();
        if let Some(workload) = self.by_id.remove(&id, version) {
            self.by_workload.update(workload.0, version, |l| l.retain(|e| e.id != id), |l| !l.is_empty());
        }
    }

    /// What is known of the grants of `workload` for `action` on `path` of a resource, which is known by its own name
    /// and its service's.
    pub fn find(
        &self,
        workload: &WorkloadKey,
        [route, service]: [&str; 2],
        action: &str,
        path: &CanonicalPath<'_>,
        now: Timestamp,
        is_revoked: impl Fn(GrantId) -> bool,
    ) -> Covering {
        let mut found = Covering { active: SmallVec::new(), standing: Standing::None };
        let Some(list) = self.by_workload.get(&workload.0) else { return found };
        for resource in [route, service] {
            let Some(&resource) = self.names.resources.get(resource) else { continue };
            let from = list.partition_point(|e| e.resource < resource);
            let to = list.partition_point(|e| e.resource <= resource);
            let on_resource = list.get(from..to).unwrap_or_default();
            let general_end = on_resource.partition_point(|e| e.exact().is_none());
            let (general, exact) = on_resource.split_at_checked(general_end).unwrap_or((on_resource, &[]));
            let here = Some(path.as_str());
            let exact_from = exact.partition_point(|e| e.exact() < here);
            let exact_to = exact.partition_point(|e| e.exact() <= here);
            let matching = exact.get(exact_from..exact_to).unwrap_or_default();
            for run in [general, matching] {
                let mut over = 0;
                for entry in run {
                    over += usize::from(entry.not_after <= now);
                    if over > EXPLAIN_AT_MOST {
                        break; // ended ones sort last: only more of them follow
                    }
                    self.consider(entry, action, path, now, &is_revoked, &mut found);
                }
            }
            // Grants for other exact paths of this resource matter only to what is said.
            if found.active.is_empty() && found.standing < Standing::Scope(GrantId(uuid::Uuid::nil())) {
                for entry in exact.iter().take(EXPLAIN_AT_MOST) {
                    self.consider(entry, action, path, now, &is_revoked, &mut found);
                }
            }
        }
        found.active.sort_by_key(|a| (Reverse(a.not_after), a.id));
        found.active.truncate(OFFER_AT_MOST);
        found
    }

    /// What policies may know of an active grant.
    pub fn facts(&self, active: &Active) -> GrantFacts {
        let actions = self.names.action_set(active.actions);
        GrantFacts { id: active.id, actions, duration_seconds: active.duration_seconds }
    }

    /// One line per grant and resource, sorted: equal content gives equal lines, however it was reached.
    pub fn canonical(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .by_workload
            .iter()
            .flat_map(|(workload, list)| list.iter().map(move |e| (workload, e)))
            .map(|(workload, e)| {
                let resource = self.names.resource_names.get(e.resource as usize).map_or("", |n| n);
                let path = e.path.as_ref().map_or("", |t| t.as_str());
                format!(
                    "{:?} {workload:?} {resource} {:?} {path} {:?} {:?} {:?}",
                    e.id,
                    self.names.action_set(e.actions),
                    e.phase,
                    e.not_before,
                    e.not_after
                )
            })
            .collect();
        lines.sort_unstable();
        lines
    }

    /// The numbers of a grant's resources and action set; the table is copied only when a name is new.
    fn numbers(&mut self, grant: &Grant) -> (Vec<u32>, u32) {
        let resources: Vec<String> = grant.resources.iter().map(ToString::to_string).collect();
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

    fn consider(
        &self,
        entry: &Entry,
        action: &str,
        path: &CanonicalPath<'_>,
        now: Timestamp,
        is_revoked: &impl Fn(GrantId) -> bool,
        found: &mut Covering,
    ) {
        let id = GrantId(uuid::Uuid::from_bytes(entry.id));
        let in_scope = self.names.action_set(entry.actions).iter().any(|a| **a == *action)
            && entry.path.as_ref().is_none_or(|t| t.matches(path));
        let revoked = entry.phase == Phase::Revoked || is_revoked(id);
        let standing = match entry.phase {
            _ if !in_scope && !revoked && entry.phase == Phase::Granted && entry.covers(now) => Standing::Scope(id),
            _ if !in_scope => Standing::None,
            _ if revoked => Standing::Over(Ended { at: entry.not_after.min(now), revoked, id }),
            Phase::Pending => Standing::Pending(id),
            _ if now < entry.not_before => Standing::NotYetValid(id),
            _ if now >= entry.not_after => Standing::Over(Ended { at: entry.not_after, revoked, id }),
            _ => {
                found.active.push(Active {
                    id,
                    not_after: entry.not_after,
                    actions: entry.actions,
                    duration_seconds: entry.not_after.since(entry.not_before).as_secs(),
                });
                return;
            }
        };
        found.standing = found.standing.max(standing);
    }
}

/// Phase, start and end of a grant; `None` when it never was and never will be in force.
fn phase(grant: &Grant) -> Option<(Phase, Timestamp, Timestamp)> {
    let start = grant.not_before.unwrap_or(grant.requested_at);
    let ended = |at: Timestamp| grant.not_after.map_or(at, |end| end.min(at));
    match grant.state {
        GrantState::Pending => Some((Phase::Pending, start, Timestamp::MAX)),
        GrantState::Scheduled | GrantState::Active => Some((Phase::Granted, grant.not_before?, grant.not_after?)),
        GrantState::Ended => Some((Phase::Granted, grant.not_before?, ended(grant.ended.as_ref()?.at))),
        GrantState::Revoked => Some((Phase::Revoked, start, ended(grant.ended.as_ref()?.at))),
        GrantState::Denied | GrantState::Withdrawn | GrantState::ExpiredUnapproved => None,
    }
}

// === impl Entry ===

impl Entry {
    fn exact(&self) -> Option<&str> {
        self.path.as_ref().and_then(|t| t.literal())
    }

    fn covers(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }

    fn order(&self) -> (u32, Option<&str>, Reverse<Timestamp>, &Key) {
        (self.resource, self.exact(), Reverse(self.not_after), &self.id)
    }
}

// === impl Names ===

impl Names {
    fn action_set(&self, number: u32) -> Arc<[Box<str>]> {
        self.action_set_names.get(number as usize).cloned().unwrap_or_else(|| Arc::from([]))
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
