//! The grants of a sidecar, found by workload and resource.
//!
//! Pure. A look-up bisects the grants of one shard for those of one workload on one resource, so its cost does not follow
//! the number of grants. Besides the grants that cover a request it tells what else is known, so that a denial can say that
//! a grant is pending, revoked or over. INVARIANT: of grants that policies cannot tell apart one stands for all, and every
//! other is put to policy: none is ever crowded out, so that removing one cannot bring another into view.
//! Holds what enforcement needs and nothing else: under 100 bytes a grant, and the text of its path.
//! Long because what is found is judged where it is found.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::compact::CompactGrant;
use super::covering::{Active, Apart, Covering, End, Ended, Sought, Standing};
use super::leaf::{Entry, Ids, Leaf, Phase};
use super::limits::Limits;
use super::shards::{FANOUT, Shard, Shards, WorkloadKey};
use crate::clock::Timestamp;
use crate::object::{GrantId, GrantState};
use crate::policy::GrantFacts;

/// How many grants that do not cover a request are looked at to find out what to say about them.
const EXPLAIN_AT_MOST: usize = 16;

/// How many leaves are complete before all grants are there: two for each there is, for a few may come in pieces.
const MOST_CLOSED: usize = 2 * FANOUT * FANOUT;
/// How many names are kept from one snapshot to the next.
const KEPT_NAMES: usize = 16_384;

/// The index.
#[derive(Debug, Clone)]
pub struct GrantIndex {
    by_workload: Shards<Leaf>,
    by_id: Shards<Ids>,
    len: usize,
    names: Arc<Names>,
    filling: Option<Filling>,
}

/// Grants are only put in their order when a leaf is complete, or all of them are there.
#[derive(Debug, Clone, Default)]
struct Filling {
    /// What this is to take the place of: a leaf that has become the same is shared with it.
    beside: Option<(Shards<Leaf>, Shards<Ids>)>,
    /// The leaf of the last grant. A whole snapshot comes leaf by leaf, so that when it goes on to the next, this one is
    /// complete.
    open: Option<Shard>,
    /// How many leaves were taken to be complete. In another order than that they would be, again and again.
    closed: usize,
}

/// What is looked for among the grants of a leaf.
struct Look<'a, R> {
    names: &'a Names,
    leaf: &'a Leaf,
    sought: &'a Sought<'a>,
    apart: Apart,
    is_revoked: R,
}

/// The numbers of a grant's resources.
type Numbers = SmallVec<[u32; 4]>;

/// Names that entries refer to by number; there are few of them.
#[derive(Debug, Clone, Default)]
struct Names {
    resources: HashMap<Box<str>, u32, RandomState>,
    resource_names: Vec<Box<str>>,
    /// By the names as [`CompactGrant`] has them.
    action_sets: HashMap<Box<[u8]>, u32, RandomState>,
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
            filling: None,
        }
    }

    /// An empty index to be filled and then [settled](Self::settle). Until then it finds nothing.
    pub fn filling(version: u64) -> Self {
        Self { filling: Some(Filling::default()), ..Self::new(version) }
    }

    /// The same, in place of `other`, with which it shares what comes out the same: so that two of a million grants each
    /// are not there at once. Leaves that are shared keep their version; INVARIANT: whoever compares versions compares
    /// that of the snapshot too.
    pub fn filling_in_place_of(other: &Self, version: u64) -> Self {
        let beside = Some((other.by_workload.clone(), other.by_id.clone()));
        // Names of grants that are gone stay, unless they have become many.
        let names = if other.names.are_few() { Arc::clone(&other.names) } else { Arc::default() };
        let beside = beside.filter(|_| other.names.are_few());
        Self { filling: Some(Filling { beside, ..Filling::default() }), names, ..Self::new(version) }
    }

    /// Ends the filling.
    pub fn settle(&mut self) {
        let Some(filling) = self.filling.take() else { return };
        self.by_workload.rearrange(Leaf::is_unsettled, Leaf::settle);
        if let Some((leaves, ids)) = &filling.beside {
            self.by_workload.share(leaves, Leaf::is_same);
            self.by_id.share(ids, Ids::is_same);
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
    pub fn put(&mut self, grant: &CompactGrant<'_>, version: u64) {
        let Some((phase, not_before, not_after)) = phase(grant) else { return self.remove(grant.id, version) };
        let limits = match phase.has_limits().then(|| Limits::of(grant)) {
            // What is over is told of nevertheless.
            Some(None) if phase == Phase::Exhausted => None,
            Some(None) => return self.remove(grant.id, version),
            Some(Some(limits)) => Some(Arc::new(limits)),
            None => None,
        };
        let (resources, actions) = self.numbers(grant);
        let workload = grant.workload;
        let id = *grant.id.0.as_bytes();
        let shard = Shard::of(&workload.0);
        let Some(ids) = self.by_id.edit(Shard::of(&id), version) else { return };
        match ids.put(id, shard) {
            None => self.len += 1,
            Some(before) => _ = self.by_workload.edit(before, version).map(|leaf| leaf.remove(&id)),
        }
        self.open(shard, version);
        let Some(leaf) = self.by_workload.edit(shard, version) else { return };
        if let Some(limits) = limits {
            leaf.limit(id, limits);
        }
        let entry = Entry::new(workload.0, id, [not_before, not_after], phase);
        for resource in resources {
            match self.filling.is_some() {
                true => leaf.append(entry.on(resource, actions), grant.path),
                false => leaf.insert(entry.on(resource, actions), grant.path),
            }
        }
    }

    /// While it is filled: goes on to this leaf.
    fn open(&mut self, shard: Shard, version: u64) {
        let Some(filling) = self.filling.as_mut().filter(|f| f.open != Some(shard)) else { return };
        let Some(complete) = filling.open.replace(shard) else { return };
        filling.closed += 1;
        if filling.closed > MOST_CLOSED {
            return;
        }
        if let Some(leaf) = self.by_workload.edit(complete, version) {
            leaf.settle();
        }
        if let Some((leaves, _)) = &filling.beside {
            self.by_workload.share_one(complete, leaves, Leaf::is_same);
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

    /// What is known of the grants of `workload` for what is `sought`.
    pub fn find(
        &self,
        workload: &WorkloadKey,
        sought: &Sought<'_>,
        apart: Apart,
        is_revoked: impl Fn(GrantId) -> bool,
    ) -> Covering {
        let mut found = Covering { active: SmallVec::new(), counted: Vec::new(), standing: Standing::None };
        let leaf = self.by_workload.get(Shard::of(&workload.0));
        let Some(leaf) = leaf.filter(|_| self.filling.is_none()) else { return found };
        let look = Look { names: &self.names, leaf, sought, apart, is_revoked };
        for resource in sought.resource {
            let Some(&resource) = self.names.resources.get(resource) else { continue };
            let [general, matching, exact] = leaf.find(&workload.0, resource, sought.exact_path());
            for run in [general, matching] {
                let mut over = 0;
                for entry in run {
                    over += usize::from(entry.not_after <= sought.now);
                    if over > EXPLAIN_AT_MOST && sought.request.spent.is_none() {
                        break; // ended ones sort last: only more of them follow
                    }
                    look.consider(entry, &mut found);
                }
            }
            // Grants for other exact paths of this resource matter only to what is said.
            if found.active.is_empty()
                && found.counted.is_empty()
                && found.standing < Standing::Scope(GrantId(uuid::Uuid::nil()))
            {
                for entry in exact.iter().take(EXPLAIN_AT_MOST) {
                    look.consider(entry, &mut found);
                }
            }
        }
        found.keep_one_of_each(apart);
        found
    }

    /// Whether a grant may be in force, and its uses are counted.
    pub fn is_counted(&self, id: GrantId) -> bool {
        let id = *id.0.as_bytes();
        let leaf = self.by_id.get(Shard::of(&id)).and_then(|ids| ids.find(&id));
        let leaf = leaf.and_then(|shard| self.by_workload.get(shard));
        leaf.and_then(|leaf| leaf.limits(&id))
            .is_some_and(|limits| limits.uses().is_some() && limits.spent_until().is_none())
    }

    /// What is known of one grant of `workload` for what is `sought`, whatever other grants there are.
    pub fn find_one(
        &self,
        id: GrantId,
        workload: &WorkloadKey,
        sought: &Sought<'_>,
        is_revoked: impl Fn(GrantId) -> bool,
    ) -> Covering {
        let mut found = Covering { active: SmallVec::new(), counted: Vec::new(), standing: Standing::None };
        let leaf = self.by_workload.get(Shard::of(&workload.0));
        let Some(leaf) = leaf.filter(|_| self.filling.is_none()) else { return found };
        let look = Look { names: &self.names, leaf, sought, apart: Apart::Id, is_revoked };
        // What can cover the request stands together; only a denial looks at the rest.
        for resource in sought.resource {
            let Some(&resource) = self.names.resources.get(resource) else { continue };
            let [general, matching, _] = leaf.find(&workload.0, resource, sought.exact_path());
            let here = general.iter().chain(matching);
            here.filter(|entry| entry.id == *id.0.as_bytes()).for_each(|entry| look.consider(entry, &mut found));
            if !found.active.is_empty() || !found.counted.is_empty() {
                found.keep_one_of_each(Apart::Id);
                return found;
            }
        }
        for entry in leaf.of(&workload.0).iter().filter(|entry| entry.id == *id.0.as_bytes()) {
            found.standing = found.standing.max(look.standing(entry));
        }
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
                let limits = leaf.limits(id);
                format!(
                    "{id:?} {workload:?} {resource} {actions:?} {path} {phase:?} {not_before:?} {not_after:?} {limits:?}"
                )
            }));
        }
        lines.sort_unstable();
        lines
    }

    /// The numbers of a grant's resources and action set; the table is copied only when a name is new.
    fn numbers(&mut self, grant: &CompactGrant<'_>) -> (Numbers, u32) {
        if let Some(numbers) = self.names.numbers(grant) {
            return numbers;
        }
        let names = Arc::make_mut(&mut self.names);
        names.learn(grant);
        names.numbers(grant).unwrap_or_default()
    }
}

// === impl Look ===

impl<R: Fn(GrantId) -> bool> Look<'_, R> {
    /// Takes a grant in: as one that covers the request, or for what can be said about it.
    fn consider(&self, entry: &Entry, found: &mut Covering) {
        let Sought { action, path, now, .. } = *self.sought;
        let id = GrantId(uuid::Uuid::from_bytes(entry.id));
        let in_scope = self.names.action_sets_have(entry.actions, action) && self.leaf.covers_path(entry, path);
        let revoked = entry.phase == Phase::Revoked || (self.is_revoked)(id);
        let over = |at, by| Standing::Over(Ended { at, by, id });
        let standing = match entry.phase {
            _ if !in_scope && !revoked && entry.covers(now) => Standing::Scope(id),
            _ if !in_scope => Standing::None,
            _ if revoked => over(entry.not_after.min(now), End::Revoked),
            Phase::Pending => Standing::Pending(id),
            // INVARIANT: what has ended is over, whatever a clock says that is behind.
            Phase::Over => over(entry.not_after.min(now), End::Expired),
            Phase::Exhausted if self.sought.request.spent == Some(id) => match self.spent(entry) {
                Ok(active) => return found.take_in(active, true, self.apart),
                Err(standing) => standing,
            },
            Phase::Exhausted => over(entry.not_after.min(now), End::Exhausted),
            _ if now < entry.not_before => Standing::NotYetValid(id),
            _ if now >= entry.not_after => over(entry.not_after, End::Expired),
            Phase::Scheduled => Standing::NotYetValid(id),
            Phase::Limited | Phase::LimitedBreakGlass => match self.limited(entry) {
                Ok((active, counted)) => return found.take_in(active, counted, self.apart),
                Err(standing) => standing,
            },
            _ => return found.take_in(Active::of(entry, Timestamp::MAX), false, self.apart),
        };
        found.standing = found.standing.max(standing);
    }

    /// What can be said about a grant that does not cover the request, whatever resource it is on.
    fn standing(&self, entry: &Entry) -> Standing {
        let now = self.sought.now;
        let id = GrantId(uuid::Uuid::from_bytes(entry.id));
        let over = |at, by| Standing::Over(Ended { at, by, id });
        match entry.phase {
            _ if entry.phase == Phase::Revoked || (self.is_revoked)(id) => over(entry.not_after.min(now), End::Revoked),
            Phase::Pending => Standing::Pending(id),
            Phase::Exhausted => over(entry.not_after.min(now), End::Exhausted),
            _ if now < entry.not_before => Standing::NotYetValid(id),
            _ if now >= entry.not_after => over(entry.not_after, End::Expired),
            _ => Standing::Scope(id),
        }
    }

    /// A grant whose last use the request itself may have spent, if it would cover it otherwise. INVARIANT: that excuses the
    /// use alone: its end, its conditions and its call hold as before.
    #[inline(never)]
    fn spent(&self, entry: &Entry) -> Result<Active, Standing> {
        let now = self.sought.now;
        let id = GrantId(uuid::Uuid::from_bytes(entry.id));
        let over = |at, by| Standing::Over(Ended { at, by, id });
        let until = self.leaf.limits(&entry.id).and_then(Limits::spent_until);
        let until = until.ok_or(over(entry.not_after.min(now), End::Exhausted))?;
        if now >= until {
            return Err(over(until, End::Expired));
        }
        self.limited(&entry.until(until)).map(|(active, _counted)| active)
    }

    /// A grant with limits, if they let it cover the request, and whether its uses are counted.
    #[inline(never)]
    fn limited(&self, entry: &Entry) -> Result<(Active, bool), Standing> {
        let Sought { environment, request, now, .. } = *self.sought;
        let id = GrantId(uuid::Uuid::from_bytes(entry.id));
        // INVARIANT: one without its limits would be wider than what was approved.
        let limits = self.leaf.limits(&entry.id).ok_or(Standing::None)?;
        if !limits.is_for(request) {
            return Err(Standing::Scope(id));
        }
        let until = limits.judge(request, environment, now).map_err(|unmet| Standing::Unmet(unmet, id))?;
        Ok((Active::of(entry, until), limits.uses().is_some()))
    }
}

/// Phase, start and end of a grant; `None` when it never was and never will be in force.
fn phase(grant: &CompactGrant<'_>) -> Option<(Phase, Timestamp, Timestamp)> {
    let start = grant.not_before.unwrap_or_default();
    let ended = |at: Timestamp| grant.not_after.map_or(at, |end| end.min(at));
    let granted = Phase::granted(grant.is_limited(), grant.break_glass);
    match grant.state {
        GrantState::Pending => Some((Phase::Pending, start, Timestamp::MAX)),
        GrantState::Scheduled => Some((Phase::Scheduled, grant.not_before?, grant.not_after?)),
        GrantState::Active => Some((granted, grant.not_before?, grant.not_after?)),
        GrantState::Ended => Some((Phase::Over, grant.not_before?, ended(grant.ended_at?))),
        GrantState::Exhausted => Some((Phase::Exhausted, start, ended(grant.ended_at?))),
        GrantState::Revoked => Some((Phase::Revoked, start, ended(grant.ended_at?))),
        GrantState::Denied | GrantState::Withdrawn | GrantState::ExpiredUnapproved => None,
    }
}

// === impl Names ===

impl Names {
    fn are_few(&self) -> bool {
        self.resource_names.len() <= KEPT_NAMES && self.action_set_names.len() <= KEPT_NAMES
    }

    fn action_set(&self, number: u32) -> Arc<[Box<str>]> {
        self.action_set_names.get(number as usize).cloned().unwrap_or_else(|| Arc::from([]))
    }

    /// Whether an action is in a set.
    fn action_sets_have(&self, number: u32, action: &str) -> bool {
        self.action_set_names.get(number as usize).is_some_and(|set| set.iter().any(|a| **a == *action))
    }

    /// The numbers of a grant's resources and action set, if all are known.
    fn numbers(&self, grant: &CompactGrant<'_>) -> Option<(Numbers, u32)> {
        let resources: Option<Numbers> = grant.resources.iter().map(|r| self.resources.get(r).copied()).collect();
        Some((resources?, *self.action_sets.get(grant.actions.as_bytes())?))
    }

    fn learn(&mut self, grant: &CompactGrant<'_>) {
        for resource in grant.resources.iter() {
            let next = u32::try_from(self.resource_names.len()).unwrap_or(u32::MAX);
            if !self.resources.contains_key(resource) {
                self.resources.insert(resource.into(), next);
                self.resource_names.push(resource.into());
            }
        }
        let actions = grant.actions.as_bytes();
        if !self.action_sets.contains_key(actions) {
            let next = u32::try_from(self.action_set_names.len()).unwrap_or(u32::MAX);
            self.action_sets.insert(actions.into(), next);
            self.action_set_names.push(grant.actions.iter().map(Box::from).collect());
        }
    }
}

#[cfg(test)]
mod tests;
