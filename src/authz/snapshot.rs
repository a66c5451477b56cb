//! The snapshot: all that one sidecar needs at one revision, compiled, immutable, swapped whole.
//!
//! Pure. Built off the request path, from nothing or on top of another with which it shares what does not change.
//! A bad object fails alone: it counts as absent. Where absence could widen the gate (a revocation, the policy set, a
//! service), the snapshot denies everything until the object is replaced: what cannot be understood denies.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::change::{Change, Parsed, Prepared};
use super::mapping::Mappings;
use super::ready::{Registered, Routes};
use super::revocations::Revocations;
use super::route::RouteTable;
use crate::credential::IssuerSet;
use crate::grant::{CompactGrant, GrantIndex, ShardedMap, WorkloadKey, compact};
use crate::object::{FieldError, GrantId, Issuer, Kind, Object, PolicySet, Service};
use crate::policy::CompiledPolicies;
use crate::wire::Position;

/// A compiled state.
#[derive(Clone)]
pub struct Snapshot {
    position: Position,
    /// Changes with policies, routes and issuers; cached decisions and tokens of another version do not count.
    pub(super) global_version: u64,
    pub(super) issuers: Arc<IssuerSet>,
    pub(super) workloads: ShardedMap<Arc<Registered>>,
    pub(super) mappings: Mappings,
    pub(super) routes: Arc<Routes>,
    pub(super) policies: Arc<CompiledPolicies>,
    pub(super) grants: GrantIndex,
    pub(super) revocations: Revocations,
    /// Set when something could not be understood whose absence could widen the gate.
    pub(super) denies_everything: Option<Arc<str>>,
    /// What is wrong with routes or policies as a whole.
    problems: BTreeMap<Kind, Arc<str>>,
    sources: Arc<Sources>,
}

/// The objects that compile together rather than one by one.
#[derive(Debug, Clone, Default)]
struct Sources {
    issuers: BTreeMap<String, Issuer>,
    services: BTreeMap<String, Service>,
    policy_set: Option<PolicySet>,
    unreadable: BTreeSet<(Kind, String)>,
}

/// Builds a snapshot, from nothing or on top of another.
#[derive(Debug)]
pub struct Builder {
    next: Snapshot,
    version: u64,
    /// Kinds that have to be compiled again.
    stale: BTreeSet<Kind>,
    bad: Vec<BadObject>,
}

/// An object that could not be used, and why. It counts as absent, or as denying everything where absence would
/// widen the gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadObject {
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: String,
    /// What is wrong with it.
    pub error: String,
}

/// Versions are unique in a process, so that nothing cached for one state can pass for another's.
static NEXT_VERSION: AtomicU64 = AtomicU64::new(1);

// === impl Builder ===

impl Builder {
    /// Starts from nothing: for a full snapshot.
    pub fn empty() -> Self {
        let version = NEXT_VERSION.fetch_add(1, Ordering::Relaxed);
        let next = Snapshot {
            position: Position::NONE,
            global_version: version,
            issuers: Arc::default(),
            workloads: ShardedMap::new(version),
            mappings: Mappings::new(version),
            routes: Arc::default(),
            policies: Arc::default(),
            grants: GrantIndex::filling(version),
            revocations: Revocations::new(version),
            denies_everything: None,
            problems: BTreeMap::new(),
            sources: Arc::default(),
        };
        Self { next, version, stale: BTreeSet::new(), bad: Vec::new() }
    }

    /// Starts from nothing, for a full snapshot in place of `other`: grants that come out the same are shared.
    pub fn in_place_of(other: &Snapshot) -> Self {
        let mut builder = Self::empty();
        builder.next.grants = GrantIndex::filling_in_place_of(&other.grants, builder.version);
        builder
    }

    /// Starts from `snapshot`, sharing what does not change: for a delta.
    pub fn on(snapshot: &Snapshot) -> Self {
        let version = NEXT_VERSION.fetch_add(1, Ordering::Relaxed);
        Self { next: snapshot.clone(), version, stale: BTreeSet::new(), bad: Vec::new() }
    }

    /// Takes in a change. A bad object never blocks the others.
    pub fn apply(&mut self, change: Change) {
        self.take_in(change.into());
    }

    /// Takes in a change that has been read.
    pub fn take_in(&mut self, change: Prepared) {
        let Prepared { kind, key, parsed } = change;
        let place = (kind, key);
        match parsed {
            Ok(parsed) => {
                if self.next.sources.unreadable.contains(&place) {
                    Arc::make_mut(&mut self.next.sources).unreadable.remove(&place);
                    self.stale.insert(kind);
                }
                match parsed {
                    Parsed::Object(object) => self.put(*object),
                    Parsed::Grant(form) => _ = self.put_grant(&form),
                    Parsed::Gone => self.remove(kind, &place.1),
                }
            }
            Err(e) => {
                self.remove(kind, &place.1);
                self.refuse(kind, &place.1, e.to_string());
                if widens_when_absent(kind) {
                    Arc::make_mut(&mut self.next.sources).unreadable.insert(place);
                    self.stale.insert(kind);
                }
            }
        }
    }

    /// Takes in a batch of grants in their compact form, and tells how many there were. One that cannot be read fails
    /// alone; a batch that is cut off is an error.
    pub fn take_in_grants(&mut self, batch: &[u8]) -> Result<u64, FieldError> {
        let mut count = 0;
        for form in compact::split(batch) {
            let form = form?;
            count += 1;
            if let Err(e) = self.put_grant(form) {
                // Where the form has the id, if it has one.
                let id = form.get(4..20).and_then(|id| uuid::Uuid::from_slice(id).ok()).unwrap_or_default();
                self.remove(Kind::Grant, &id.to_string());
                self.refuse(Kind::Grant, &id.to_string(), e.to_string());
            }
        }
        Ok(count)
    }

    /// Compiles.
    pub fn finish(mut self, position: Position) -> (Snapshot, Vec<BadObject>) {
        self.next.position = position;
        self.next.grants.settle();
        let recompile = [Kind::Issuer, Kind::Service, Kind::PolicySet, Kind::Revocation];
        if recompile.iter().any(|k| self.stale.contains(k)) {
            self.next.global_version = self.version;
            self.compile();
        }
        (self.next, self.bad)
    }

    fn put(&mut self, object: Object) {
        let version = self.version;
        match object {
            Object::Revocation(r) => self.next.revocations.put(&r, version),
            Object::Workload(w) => {
                let key = WorkloadKey::of(w.id.as_str());
                let known = self.next.workloads.get(&key.0).cloned();
                let known = known.as_ref().map(|w| w.document());
                self.next.mappings.replace(known, Some(&w), version);
                let registered = Registered::new(w);
                self.next.workloads.insert(key.0, Arc::new(registered), version);
                self.next.grants.touch(&key, version);
            }
            Object::Issuer(i) => {
                self.stale.insert(Kind::Issuer);
                Arc::make_mut(&mut self.next.sources).issuers.insert(i.name.clone(), *i);
            }
            Object::Service(s) => {
                self.stale.insert(Kind::Service);
                Arc::make_mut(&mut self.next.sources).services.insert(s.name.clone(), s);
            }
            Object::PolicySet(p) => {
                self.stale.insert(Kind::PolicySet);
                Arc::make_mut(&mut self.next.sources).policy_set = Some(p);
            }
            // The control plane's own: nothing here is decided by it.
            Object::GrantPolicySet(_)
            | Object::OperatorPolicySet(_)
            | Object::Review(_)
            | Object::Allotment(_)
            | Object::SigningKey(_)
            | Object::Lift(_)
            | Object::Idempotency(_) => {}
            // Comes as a form.
            Object::Grant(_) => {}
        }
    }

    fn put_grant(&mut self, form: &[u8]) -> Result<(), FieldError> {
        let grant = CompactGrant::read(form)?;
        self.next.grants.put(&grant, self.version);
        Ok(())
    }

    fn remove(&mut self, kind: Kind, key: &str) {
        let version = self.version;
        match kind {
            Kind::Revocation => {
                if let Ok(id) = uuid::Uuid::try_parse(key) {
                    self.next.revocations.remove(id.as_bytes(), version);
                }
            }
            Kind::Grant => {
                if let Ok(id) = key.parse::<GrantId>() {
                    self.next.grants.remove(id, version);
                }
            }
            Kind::Workload => {
                let key = WorkloadKey::of(key);
                let known = self.next.workloads.remove(&key.0, version);
                self.next.mappings.replace(known.as_ref().map(|w| w.document()), None, version);
                self.next.grants.touch(&key, version);
            }
            Kind::Issuer => {
                self.stale.insert(kind);
                Arc::make_mut(&mut self.next.sources).issuers.remove(key);
            }
            Kind::Service => {
                self.stale.insert(kind);
                Arc::make_mut(&mut self.next.sources).services.remove(key);
            }
            Kind::PolicySet => {
                self.stale.insert(kind);
                Arc::make_mut(&mut self.next.sources).policy_set = None;
            }
            Kind::GrantPolicySet
            | Kind::OperatorPolicySet
            | Kind::Review
            | Kind::Allotment
            | Kind::SigningKey
            | Kind::Lift
            | Kind::Idempotency => {}
        }
    }

    /// Compiles what is stale. A problem with routes or policies stands until the next version of them compiles.
    fn compile(&mut self) {
        let sources = Arc::clone(&self.next.sources);
        if self.stale.contains(&Kind::Issuer) {
            let (issuers, bad) = IssuerSet::compile(sources.issuers.values());
            self.next.issuers = Arc::new(issuers);
            for (name, e) in bad {
                self.refuse(Kind::Issuer, &name, e.to_string());
            }
        }
        if self.stale.contains(&Kind::Service) {
            let routes = RouteTable::compile(sources.services.values());
            let routes =
                routes.map(|table| Routes::new(table, &sources.services)).map_err(|e| (e.service().to_owned(), e));
            self.next.routes = match routes {
                Ok(routes) => self.solved(Kind::Service, routes),
                Err((service, e)) => self.problem(Kind::Service, &service, e.to_string()),
            };
        }
        if self.stale.contains(&Kind::PolicySet) {
            let policies =
                sources.policy_set.as_ref().map_or_else(|| Ok(CompiledPolicies::default()), CompiledPolicies::compile);
            self.next.policies = match policies {
                Ok(policies) => self.solved(Kind::PolicySet, policies),
                Err(e) => {
                    let message = format!("the policy set does not validate: {e}");
                    self.problem(Kind::PolicySet, crate::object::POLICY_SET_KEY, message)
                }
            };
        }
        let unreadable = sources.unreadable.first();
        let unreadable =
            unreadable.map(|(kind, key)| format!("{kind} `{key}` cannot be read, so every request is denied"));
        self.next.denies_everything = unreadable.map(Arc::from).or_else(|| self.next.problems.values().next().cloned());
    }

    fn solved<T>(&mut self, kind: Kind, compiled: T) -> Arc<T> {
        self.next.problems.remove(&kind);
        Arc::new(compiled)
    }

    fn problem<T: Default>(&mut self, kind: Kind, key: &str, message: String) -> Arc<T> {
        self.next.problems.insert(kind, Arc::from(message.as_str()));
        self.refuse(kind, key, message);
        Arc::default()
    }

    fn refuse(&mut self, kind: Kind, key: &str, error: String) {
        self.bad.push(BadObject { kind, key: key.to_owned(), error });
    }
}

/// Whether leaving out an object of this kind could let something through that it would have stopped.
const fn widens_when_absent(kind: Kind) -> bool {
    matches!(kind, Kind::Revocation | Kind::PolicySet | Kind::Service)
}

// === impl Snapshot ===

impl Snapshot {
    /// Its position.
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Number of objects, by kind.
    pub fn counts(&self) -> [(Kind, usize); 6] {
        [
            (Kind::Revocation, self.revocations.len()),
            (Kind::Issuer, self.sources.issuers.len()),
            (Kind::Workload, self.workloads.len()),
            (Kind::Service, self.sources.services.len()),
            (Kind::PolicySet, usize::from(self.sources.policy_set.is_some())),
            (Kind::Grant, self.grants.len()),
        ]
    }

    /// Whether a grant may be in force here, and its uses are counted.
    pub fn counts_uses_of(&self, grant: GrantId) -> bool {
        self.grants.is_counted(grant) && !self.revocations.is_grant_revoked(grant)
    }

    /// What a client may know without a credential of the MCP server that it asks about (RFC 9728): the document, if the
    /// request is for one. Giving it out forwards nothing.
    pub fn resource_metadata(&self, method: &str, host: &str, path: &str) -> Option<Bytes> {
        self.routes.documents.find(method, host, path).cloned()
    }

    /// Why it denies everything, when it does.
    pub fn denies_everything(&self) -> Option<&str> {
        self.denies_everything.as_deref()
    }

    /// Lower-case hex SHA-256 over everything that decisions depend on; equal for equal content, however it was
    /// reached. Walks everything: not for the request path.
    pub fn digest(&self) -> String {
        use fmt::Write;
        let mut ctx = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        let mut workloads: Vec<String> = self.workloads.iter().map(|(_, w)| format!("{:?}", w.document())).collect();
        workloads.sort_unstable();
        let sources = format!("{:?}", self.sources);
        let problem = format!("{:?}", self.denies_everything);
        for part in [vec![sources, problem], workloads, self.revocations.canonical(), self.grants.canonical()] {
            for line in part {
                ctx.update(&(line.len() as u64).to_be_bytes());
                ctx.update(line.as_bytes());
            }
            ctx.update(b"|");
        }
        ctx.finish().as_ref().iter().fold(String::with_capacity(64), |mut hex, b| {
            let _ = write!(hex, "{b:02x}");
            hex
        })
    }

    pub(super) fn workload(&self, key: &WorkloadKey, id: &str) -> Option<&Arc<Registered>> {
        self.workloads.get(&key.0).filter(|w| *w.id == *id)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("position", &self.position).field("counts", &self.counts()).finish()
    }
}
