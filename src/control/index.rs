//! The control plane's view of its own log: every live object, and the latest commits for deltas.
//!
//! Plane: control. Fed in commit order by the committer; sidecars and the API read it and never touch the store.
//! INVARIANT: revisions arrive dense and in order; a gap is refused, because a reader could miss a revocation.
//! Each logged change carries whom its versions before and after concern ([`Audience`]), so that the sync server can
//! tell a sidecar that something of its own went away without telling it of anything that was never its own.
//! Long because what is looked up together is under one lock.

mod by_workload;
mod revoked;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use tokio::sync::watch;

use self::by_workload::ByWorkload;
use self::revoked::RevokedWorkloads;
use crate::clock::Timestamp;
use crate::credential::SpiffeId;
use crate::grant::CompactGrant;
use crate::object::{Grant, GrantId, GrantState, Kind, Object, Target};
use crate::wire::{Epoch, Position, Revision};

/// One version of one object.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: Arc<str>,
    /// The revision that wrote it.
    pub revision: Revision,
    /// The document; empty when deleted.
    pub body: Bytes,
    /// The parsed document; `None` when deleted.
    pub object: Option<Object>,
    /// Of a grant, what sidecars are sent: made once, for a snapshot of a million is otherwise mostly that.
    form: Box<[u8]>,
}

/// What one revision changed.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Its number.
    pub revision: Revision,
    /// When it was committed.
    pub at: Timestamp,
    /// Who asked for it.
    pub author: Arc<str>,
    /// The changed objects.
    pub changes: Vec<Arc<Stored>>,
}

/// Which sidecars have any business with a version of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// Every sidecar.
    Everyone,
    /// Those that protect one of these services.
    Services(Box<[Box<str>]>),
    /// None.
    Nobody,
}

/// One change of a commit, with its audiences.
#[derive(Debug, Clone)]
pub struct Change {
    /// The new version.
    pub stored: Arc<Stored>,
    /// Whom it concerns; nobody when deleted.
    pub audience: Audience,
    /// Whom the version that it replaced concerned; nobody when there was none.
    pub before: Audience,
}

/// A commit as the log keeps it.
#[derive(Debug, Clone)]
pub struct Logged {
    /// The commit.
    pub commit: Arc<Commit>,
    /// Its changes, in the same order.
    pub changes: Vec<Change>,
}

/// The view.
#[derive(Debug)]
pub struct Index {
    epoch: Epoch,
    ring_capacity: usize,
    inner: RwLock<Inner>,
    tip: watch::Sender<Revision>,
}

#[derive(Debug)]
struct Inner {
    revision: Revision,
    live: Live,
    grants: ByService,
    workloads: ByWorkload,
    revoked: RevokedWorkloads,
    ring: VecDeque<Arc<Logged>>,
}

type Live = BTreeMap<(Kind, Arc<str>), Arc<Stored>>;

/// The live grants of each service, by key: a sidecar's own, without a walk over everybody's.
#[derive(Debug, Default)]
struct ByService {
    services: HashMap<Box<str>, BTreeMap<Arc<str>, Arc<Stored>>>,
    /// How many live grants there are.
    count: usize,
}

/// A commit that does not follow the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("commit {got} does not follow revision {have}")]
pub struct OutOfOrder {
    /// The revision of the view.
    pub have: Revision,
    /// The revision that was offered.
    pub got: Revision,
}

// === impl Stored ===

impl Stored {
    /// A version of an object, as it was committed.
    pub fn new(kind: Kind, key: Arc<str>, revision: Revision, body: Bytes, object: Option<Object>) -> Self {
        let form = match &object {
            Some(Object::Grant(grant)) => CompactGrant::encode(grant).into_boxed_slice(),
            _ => Box::default(),
        };
        Self { kind, key, revision, body, object, form }
    }

    /// Of a grant that is not deleted, its compact form.
    pub fn compact_grant(&self) -> Option<&[u8]> {
        matches!(self.object, Some(Object::Grant(_))).then_some(&*self.form)
    }
}

// === impl Audience ===

impl Audience {
    /// Whether a sidecar that protects `services` belongs to it.
    pub fn includes(&self, services: &[Box<str>]) -> bool {
        match self {
            Self::Everyone => true,
            Self::Services(names) => names.iter().any(|n| services.contains(n)),
            Self::Nobody => false,
        }
    }

    /// The audience of a live object. Grants, services and revocations of grants go only to the sidecars of their
    /// services; everything else concerns every sidecar. The revocation of a grant that does not exist concerns
    /// nobody: there is nothing to revoke, and its id may belong to somebody else.
    fn of(stored: &Stored, live: &Live) -> Self {
        let of_grant = |g: &Grant| Self::Services(g.resources.iter().map(|r| Box::from(&*r.service)).collect());
        match &stored.object {
            Some(Object::Grant(g)) => of_grant(g),
            Some(Object::Service(s)) => Self::Services(Box::from([Box::from(&*s.name)])),
            Some(Object::Revocation(r)) => match &r.target {
                Target::Grant { grant } => live_grant(live, grant).map_or(Self::Nobody, of_grant),
                _ => Self::Everyone,
            },
            Some(Object::Issuer(_) | Object::Workload(_) | Object::PolicySet(_)) => Self::Everyone,
            // INVARIANT: what is the control plane's alone concerns nobody else, whatever it is about.
            Some(_) | None => Self::Nobody,
        }
    }
}

/// [`Audience::of`] and [`Audience::includes`] in one, without building the audience: for walks over everything.
fn concerns(stored: &Stored, live: &Live, services: &[Box<str>]) -> bool {
    let ours = |name: &str| services.iter().any(|s| **s == *name);
    let grant_is_ours = |g: &Grant| g.resources.iter().any(|r| ours(&r.service));
    match &stored.object {
        Some(Object::Grant(g)) => grant_is_ours(g),
        Some(Object::Service(s)) => ours(&s.name),
        Some(Object::Revocation(r)) => match &r.target {
            Target::Grant { grant } => live_grant(live, grant).is_some_and(grant_is_ours),
            _ => true,
        },
        Some(Object::Issuer(_) | Object::Workload(_) | Object::PolicySet(_)) => true,
        Some(_) | None => false,
    }
}

fn live_grant<'a>(live: &'a Live, id: &GrantId) -> Option<&'a Grant> {
    match live.get(&(Kind::Grant, Arc::from(id.to_string())))?.object.as_ref() {
        Some(Object::Grant(g)) => Some(g),
        _ => None,
    }
}

// === impl ByService ===

impl ByService {
    fn add(&mut self, stored: &Arc<Stored>) {
        let Some(Object::Grant(grant)) = &stored.object else { return };
        self.count += 1;
        for resource in &grant.resources {
            match self.services.get_mut(&*resource.service) {
                Some(of_service) => of_service.insert(Arc::clone(&stored.key), Arc::clone(stored)),
                None => {
                    let one = BTreeMap::from([(Arc::clone(&stored.key), Arc::clone(stored))]);
                    self.services.insert(Box::from(&*resource.service), one);
                    None
                }
            };
        }
    }

    fn remove(&mut self, old: &Stored) {
        let Some(Object::Grant(grant)) = &old.object else { return };
        self.count = self.count.saturating_sub(1);
        for resource in &grant.resources {
            if let Some(of_service) = self.services.get_mut(&*resource.service) {
                of_service.remove(&old.key);
                if of_service.is_empty() {
                    self.services.remove(&*resource.service);
                }
            }
        }
    }

    /// The grants of these services, each once, by key.
    fn of(&self, services: &[Box<str>]) -> Vec<Arc<Stored>> {
        let mut all: Vec<_> =
            services.iter().filter_map(|s| self.services.get(s)).flat_map(BTreeMap::values).cloned().collect();
        if services.len() > 1 {
            all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            all.dedup_by(|a, b| a.key == b.key);
        }
        all
    }
}

// === impl Index ===

impl Index {
    /// A view of the log of `epoch`: the live objects at `revision`. Keeps the last `ring_capacity` commits.
    pub fn new(
        epoch: Epoch,
        revision: Revision,
        live: impl IntoIterator<Item = Arc<Stored>>,
        ring_capacity: usize,
    ) -> Self {
        let live: Live = live.into_iter().map(|s| ((s.kind, Arc::clone(&s.key)), s)).collect();
        let mut grants = ByService::default();
        let mut workloads = ByWorkload::default();
        let mut revoked = RevokedWorkloads::default();
        for stored in live.values() {
            grants.add(stored);
            workloads.add(stored);
            revoked.add(stored);
        }
        let (tip, _) = watch::channel(revision);
        let inner = RwLock::new(Inner { revision, live, grants, workloads, revoked, ring: VecDeque::new() });
        Self { epoch, ring_capacity, inner, tip }
    }

    /// Takes in the next commit and wakes who waits for it.
    pub fn apply(&self, commit: Arc<Commit>) -> Result<(), OutOfOrder> {
        let revision = commit.revision;
        {
            let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
            if revision != inner.revision.next() {
                return Err(OutOfOrder { have: inner.revision, got: revision });
            }
            // Audiences before are those of the state before the commit, audiences after those of the state after
            // it: a grant and its revocation may come in one commit, in any order.
            let mut before = Vec::with_capacity(commit.changes.len());
            for stored in &commit.changes {
                let key = (stored.kind, Arc::clone(&stored.key));
                before.push(inner.live.get(&key).map_or(Audience::Nobody, |old| Audience::of(old, &inner.live)));
            }
            for stored in &commit.changes {
                let key = (stored.kind, Arc::clone(&stored.key));
                let old = match &stored.object {
                    Some(_) => inner.live.insert(key, Arc::clone(stored)),
                    None => inner.live.remove(&key),
                };
                if let Some(old) = old {
                    inner.grants.remove(&old);
                    inner.workloads.remove(&old);
                    inner.revoked.remove(&old);
                }
                inner.grants.add(stored);
                inner.workloads.add(stored);
                inner.revoked.add(stored);
            }
            let changes = commit.changes.iter().zip(before).map(|(stored, before)| Change {
                stored: Arc::clone(stored),
                audience: Audience::of(stored, &inner.live),
                before,
            });
            let logged = Arc::new(Logged { changes: changes.collect(), commit: Arc::clone(&commit) });
            inner.revision = revision;
            inner.ring.push_back(logged);
            while inner.ring.len() > self.ring_capacity {
                inner.ring.pop_front();
            }
        }
        self.tip.send_replace(revision);
        Ok(())
    }

    /// Where the view stands.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, revision: self.read().revision }
    }

    /// Changes whenever a commit has been taken in.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.tip.subscribe()
    }

    /// The oldest revision that a delta can start from: what came after it is all held.
    pub fn floor(&self) -> Revision {
        let inner = self.read();
        Revision(inner.revision.0.saturating_sub(inner.ring.len() as u64))
    }

    /// The first commits after `after`, in order, at most `limit`; `None` when they are not all held any more (or
    /// `after` is in the future).
    pub fn since(&self, after: Revision, limit: usize) -> Option<Vec<Arc<Logged>>> {
        let inner = self.read();
        if after > inner.revision {
            return None;
        }
        let missing = usize::try_from(inner.revision.0 - after.0).unwrap_or(usize::MAX);
        let skip = inner.ring.len().checked_sub(missing)?;
        Some(inner.ring.iter().skip(skip).take(limit).cloned().collect())
    }

    /// The live objects that concern a sidecar of `services`, all at one position, in snapshot order.
    pub fn concerning(&self, services: &[Box<str>]) -> (Position, Vec<Arc<Stored>>) {
        let inner = self.read();
        // Grants come last, and there are many more of them than of everything else.
        let others = inner.live.range(..(Kind::Grant, Arc::from(""))).map(|(_, s)| s);
        let others = others.filter(|s| concerns(s, &inner.live, services));
        let grants = inner.grants.of(services);
        (Position { epoch: self.epoch, revision: inner.revision }, others.cloned().chain(grants).collect())
    }

    /// How many reviews are open, and how many break-glass grants are in force, which all have one.
    pub fn emergencies(&self) -> (usize, usize) {
        let inner = self.read();
        let reviews =
            inner.live.range((Kind::Review, Arc::from(""))..).take_while(|((kind, _), _)| *kind == Kind::Review);
        let open = reviews.filter_map(|(_, stored)| match &stored.object {
            Some(Object::Review(review)) => Some(review),
            _ => None,
        });
        let (mut all, mut in_force) = (0, 0);
        for review in open {
            all += usize::from(review.closed.is_none());
            let active = live_grant(&inner.live, &review.grant).is_some_and(|g| g.state == GrantState::Active);
            in_force += usize::from(active);
        }
        (all, in_force)
    }

    /// About how many live objects concern a sidecar of `services`; not fewer than do.
    pub fn count_concerning(&self, services: &[Box<str>]) -> usize {
        let inner = self.read();
        let of = |service| inner.grants.services.get(service).map_or(0, BTreeMap::len);
        let others = inner.live.len().saturating_sub(inner.grants.count);
        services.iter().map(of).sum::<usize>().saturating_add(others)
    }

    /// Every live object at one position, in snapshot order (by kind, then key).
    pub fn all(&self) -> (Position, Vec<Arc<Stored>>) {
        let inner = self.read();
        (Position { epoch: self.epoch, revision: inner.revision }, inner.live.values().cloned().collect())
    }

    /// When a revision was committed, while the log holds it.
    pub fn committed_at(&self, revision: Revision) -> Option<Timestamp> {
        let inner = self.read();
        let floor = inner.revision.0.saturating_sub(inner.ring.len() as u64);
        let place = revision.0.checked_sub(floor.saturating_add(1))?;
        inner.ring.get(usize::try_from(place).ok()?).map(|logged| logged.commit.at)
    }

    /// One live object.
    pub fn get(&self, kind: Kind, key: &str) -> Option<Arc<Stored>> {
        self.read().live.get(&(kind, Arc::from(key))).cloned()
    }

    /// The revocations that end a workload, in force now.
    pub fn revocations_of(&self, workload: &str) -> Vec<Arc<Stored>> {
        self.read().revoked.of(workload)
    }

    /// Up to `limit` live objects of one kind, by key, whose keys come after `after`.
    pub fn page(&self, kind: Kind, after: &str, limit: usize) -> Vec<Arc<Stored>> {
        let from = (Bound::Excluded((kind, Arc::from(after))), Bound::Unbounded);
        let inner = self.read();
        let page = inner.live.range(from).take_while(|((k, _), _)| *k == kind);
        page.take(limit).map(|(_, s)| Arc::clone(s)).collect()
    }

    /// The grants and requests of a workload that have not ended, by key.
    pub fn live_grants_of(&self, workload: &SpiffeId) -> Vec<Arc<Stored>> {
        let inner = self.read();
        let keys = inner.workloads.live(workload);
        keys.filter_map(|key| inner.live.get(&(Kind::Grant, Arc::clone(key)))).cloned().collect()
    }

    /// Up to `limit` of those that have.
    pub fn ended_grants_of(&self, workload: &SpiffeId, limit: usize) -> Vec<Arc<Stored>> {
        let inner = self.read();
        let keys = inner.workloads.ended(workload).take(limit);
        keys.filter_map(|key| inner.live.get(&(Kind::Grant, Arc::clone(key)))).cloned().collect()
    }

    /// The live objects of one kind, by key.
    pub fn list(&self, kind: Kind) -> Vec<Arc<Stored>> {
        let inner = self.read();
        let from = (kind, Arc::from(""));
        inner.live.range(from..).take_while(|((k, _), _)| *k == kind).map(|(_, s)| Arc::clone(s)).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
