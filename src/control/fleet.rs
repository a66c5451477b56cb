//! The fleet: which enforcement points there are, what each of their instances has applied, and receipts.
//!
//! Plane: control. INVARIANT: a receipt calls an enforcement point applied only when every instance of it that could
//! still answer a check has acknowledged the revision. One that lost its stream could answer from its last state until
//! its staleness bound has passed, so it stays pending until then, also across a restart of the control plane (the
//! registry file remembers that it exists). Memory is bounded: instances are capped, and forgotten some time after they
//! can only deny.

mod receipt;
mod registry;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use self::receipt::{Applied, Pending, Receipt};
use self::registry::Registry;
use crate::authz::MAX_CLOCK_SKEW;
use crate::clock::{SharedClock, Timestamp};
use crate::credential::SpiffeId;
use crate::wire::{Position, ScopeId};

/// How long an instance is still listed once it can only deny.
const REMEMBERED: Duration = Duration::from_secs(600);
/// How many acknowledgements of an instance are remembered, to tell when it had applied which revision.
const ACKS_KEPT: usize = 128;

/// An enforcement point as configured: who it is and what it protects. The only source of a sidecar's scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointConfig {
    /// Its SPIFFE ID.
    pub identity: SpiffeId,
    /// The services whose grants and routes it receives.
    pub services: Vec<String>,
}

/// Settings of the fleet.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// The enforcement points.
    pub points: Vec<PointConfig>,
    /// The longest that a sidecar answers without word from the control plane.
    pub max_staleness: Duration,
    /// Where the instances that exist are remembered across restarts.
    pub registry_file: Option<PathBuf>,
    /// How many instances one identity may have.
    pub max_instances: usize,
}

/// The enforcement points and what they have applied.
#[derive(Debug)]
pub struct Fleet {
    clock: SharedClock,
    max_staleness: Duration,
    max_instances: usize,
    points: BTreeMap<SpiffeId, Arc<Point>>,
    inner: Mutex<Inner>,
    /// Counts acknowledgements and departures, to wake receipts.
    changed: watch::Sender<u64>,
}

/// A configured enforcement point, ready for use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Its SPIFFE ID.
    pub identity: SpiffeId,
    /// Its services, sorted.
    pub services: Box<[Box<str>]>,
    /// Their digest, as payloads carry it.
    pub scope: ScopeId,
}

/// One instance of an enforcement point, as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnforcementPoint {
    /// SPIFFE ID.
    pub identity: String,
    /// Which of its instances; empty for a configured one that has not been seen.
    pub instance: String,
    /// What it protects.
    pub services: Vec<String>,
    /// Version of its software.
    pub version: String,
    /// Whether it has a stream now.
    pub connected: bool,
    /// The position it acknowledged last.
    pub position: Option<String>,
    /// How many revisions it is behind; absent when it has acknowledged nothing of this epoch.
    pub behind: Option<u64>,
    /// When it acknowledged last.
    pub last_ack_at: Option<Timestamp>,
    /// When it was last known to be there.
    pub last_seen: Option<Timestamp>,
    /// The last object that it could not use.
    pub last_nack: Option<NackReport>,
}

/// An object that an instance could not use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NackReport {
    /// At which position.
    pub position: String,
    /// `kind/key`.
    pub object: String,
    /// What the instance says is wrong with it.
    pub error: String,
    /// When it said so.
    pub at: Timestamp,
}

/// A stream of one instance. Dropping it means that the stream has ended.
#[derive(Debug)]
pub struct Connection {
    fleet: Arc<Fleet>,
    key: Key,
    id: u64,
}

/// Why a stream cannot be taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this identity has too many instances; the limit is {0}")]
pub struct TooManyInstances(usize);

type Key = (SpiffeId, Arc<str>);

#[derive(Debug)]
struct Inner {
    instances: BTreeMap<Key, Instance>,
    registry: Option<Registry>,
    next_connection: u64,
    pruned_at: Timestamp,
}

#[derive(Debug)]
struct Instance {
    /// The stream in force; an older one of the same instance counts no more.
    connection: Option<u64>,
    version: String,
    /// Rising positions and when each was acknowledged.
    acks: VecDeque<(Position, Timestamp)>,
    last_seen: Timestamp,
    last_nack: Option<NackReport>,
}

// === impl Fleet ===

impl Fleet {
    /// A fleet of the configured enforcement points. An unreadable registry file is an error: it would be a receipt's
    /// silent gap.
    pub fn open(clock: SharedClock, config: FleetConfig) -> std::io::Result<Arc<Self>> {
        let now = clock.now().wall;
        let mut instances = BTreeMap::new();
        let registry = match config.registry_file {
            Some(path) => {
                let (registry, known) = Registry::open(path)?;
                for (identity, instance) in known {
                    instances.insert((identity, instance), Instance::new(String::new(), now));
                }
                Some(registry)
            }
            None => None,
        };
        let points = config.points.into_iter().map(|p| (p.identity.clone(), Arc::new(Point::new(p)))).collect();
        let inner = Inner { instances, registry, next_connection: 0, pruned_at: now };
        Ok(Arc::new(Self {
            clock,
            max_staleness: config.max_staleness,
            max_instances: config.max_instances,
            points,
            inner: Mutex::new(inner),
            changed: watch::channel(0).0,
        }))
    }

    /// The configured enforcement point with this identity.
    pub fn point(&self, identity: &SpiffeId) -> Option<Arc<Point>> {
        self.points.get(identity).cloned()
    }

    /// The longest that a sidecar answers without word from the control plane.
    pub const fn max_staleness(&self) -> Duration {
        self.max_staleness
    }

    /// Takes on a stream. What the instance acknowledged on an earlier stream does not count any more: it may have
    /// restarted since.
    pub fn connected(
        self: &Arc<Self>,
        identity: &SpiffeId,
        instance: &str,
        version: &str,
    ) -> Result<Connection, TooManyInstances> {
        let now = self.clock.now().wall;
        let key = (identity.clone(), Arc::from(instance));
        let mut inner = self.lock();
        self.prune(&mut inner, now);
        if !inner.instances.contains_key(&key) {
            let from = (identity.clone(), Arc::from(""));
            let siblings = inner.instances.range(from..).take_while(|((i, _), _)| i == identity).count();
            if siblings >= self.max_instances {
                return Err(TooManyInstances(self.max_instances));
            }
            if let Some(registry) = &mut inner.registry {
                registry.add(identity, instance);
            }
        }
        inner.next_connection += 1;
        let id = inner.next_connection;
        let mut fresh = Instance::new(version.to_owned(), now);
        fresh.connection = Some(id);
        fresh.last_nack = inner.instances.remove(&key).and_then(|old| old.last_nack);
        inner.instances.insert(key.clone(), fresh);
        drop(inner);
        self.wake();
        Ok(Connection { fleet: Arc::clone(self), key, id })
    }

    /// Every instance, and every configured enforcement point that has none; `tip` is where the control plane stands.
    pub fn list(&self, tip: Position) -> Vec<EnforcementPoint> {
        let now = self.clock.now().wall;
        let mut inner = self.lock();
        self.prune(&mut inner, now);
        let services = |identity: &SpiffeId| {
            self.points.get(identity).map(|p| p.services.iter().map(ToString::to_string).collect()).unwrap_or_default()
        };
        let mut all: Vec<EnforcementPoint> = inner
            .instances
            .iter()
            .map(|((identity, instance), state)| {
                let last = state.acks.back();
                let same_epoch = last.filter(|(p, _)| p.epoch == tip.epoch);
                EnforcementPoint {
                    identity: identity.to_string(),
                    instance: instance.to_string(),
                    services: services(identity),
                    version: state.version.clone(),
                    connected: state.connection.is_some(),
                    position: last.map(|(p, _)| p.to_string()),
                    behind: same_epoch.map(|(p, _)| tip.revision.0.saturating_sub(p.revision.0)),
                    last_ack_at: last.map(|(_, at)| *at),
                    last_seen: Some(if state.connection.is_some() { now } else { state.last_seen }),
                    last_nack: state.last_nack.clone(),
                }
            })
            .collect();
        for identity in self.unseen(&inner) {
            all.push(EnforcementPoint {
                identity: identity.to_string(),
                instance: String::new(),
                services: services(identity),
                version: String::new(),
                connected: false,
                position: None,
                behind: None,
                last_ack_at: None,
                last_seen: None,
                last_nack: None,
            });
        }
        all
    }

    /// How many instances have a stream.
    pub fn streams(&self) -> usize {
        self.lock().instances.values().filter(|i| i.connection.is_some()).count()
    }

    /// Configured enforcement points of which no instance is known.
    fn unseen<'a>(&'a self, inner: &'a Inner) -> impl Iterator<Item = &'a SpiffeId> {
        self.points.keys().filter(|id| {
            let from = ((*id).clone(), Arc::from(""));
            inner.instances.range(from..).next().is_none_or(|((found, _), _)| found != *id)
        })
    }

    /// The time from which an instance that was last there at `last_seen` can only deny.
    fn can_only_deny_after(&self, last_seen: Timestamp) -> Timestamp {
        last_seen.saturating_add(self.max_staleness).saturating_add(MAX_CLOCK_SKEW)
    }

    fn prune(&self, inner: &mut Inner, now: Timestamp) {
        if now.since(inner.pruned_at) < Duration::from_secs(30) {
            return;
        }
        inner.pruned_at = now;
        let before = inner.instances.len();
        inner.instances.retain(|_, i| {
            i.connection.is_some() || now <= self.can_only_deny_after(i.last_seen).saturating_add(REMEMBERED)
        });
        let Inner { instances, registry: Some(registry), .. } = inner else { return };
        if instances.len() != before {
            registry.rewrite(instances.keys());
        }
    }

    fn wake(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Point ===

impl Point {
    fn new(config: PointConfig) -> Self {
        let mut services: Vec<Box<str>> = config.services.into_iter().map(String::into_boxed_str).collect();
        services.sort_unstable();
        services.dedup();
        let scope = ScopeId::new(&config.identity, services.iter().map(|s| &**s));
        Self { identity: config.identity, services: services.into_boxed_slice(), scope }
    }
}

// === impl Instance ===

impl Instance {
    fn new(version: String, now: Timestamp) -> Self {
        Self { connection: None, version, acks: VecDeque::new(), last_seen: now, last_nack: None }
    }

    /// When it acknowledged `position` or a later one, as far back as is remembered.
    fn applied_at(&self, position: Position) -> Option<Timestamp> {
        self.acks.iter().find(|(p, _)| *p >= position).map(|(_, at)| *at)
    }
}

// === impl Connection ===

impl Connection {
    /// The instance has applied `position`.
    pub fn acked(&self, position: Position) {
        let now = self.fleet.clock.now().wall;
        self.update(|instance| {
            instance.last_seen = now;
            if instance.acks.back().is_none_or(|(last, _)| position > *last) {
                if instance.acks.len() >= ACKS_KEPT {
                    instance.acks.pop_front();
                }
                instance.acks.push_back((position, now));
            }
        });
        self.fleet.wake();
    }

    /// The instance could not use an object.
    pub fn nacked(&self, position: Position, object: String, error: String) {
        let at = self.fleet.clock.now().wall;
        self.update(|instance| {
            instance.last_seen = at;
            instance.last_nack = Some(NackReport { position: position.to_string(), object, error, at });
        });
    }

    fn update(&self, change: impl FnOnce(&mut Instance)) {
        let mut inner = self.fleet.lock();
        if let Some(instance) = inner.instances.get_mut(&self.key).filter(|i| i.connection == Some(self.id)) {
            change(instance);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let now = self.fleet.clock.now().wall;
        self.update(|instance| {
            instance.connection = None;
            instance.last_seen = now;
        });
        self.fleet.wake();
    }
}

#[cfg(test)]
mod tests;
