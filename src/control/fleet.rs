//! The fleet: which enforcement points there are, what each of their instances has applied, and receipts.
//!
//! Plane: control. INVARIANT: a receipt calls an enforcement point applied only when every instance of it that could
//! still answer a check has acknowledged the revision. One that lost its stream could answer from its last state until
//! its staleness bound has passed, so it stays pending until then, also across a restart of the control plane (the
//! registry file remembers that it exists). Memory is bounded: instances are capped, and forgotten some time after they
//! can only deny.

mod instance;
mod receipt;
mod registry;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::instance::Slot;
pub use self::receipt::{Applied, Pending, Receipt};
use self::registry::Registry;
use crate::authz::MAX_CLOCK_SKEW;
use crate::clock::{SharedClock, Timestamp};
use crate::credential::SpiffeId;
use crate::wire::{Position, ScopeId};

/// How long an instance is still listed once it can only deny.
const REMEMBERED: Duration = Duration::from_secs(600);

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
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
    /// Only this stream's word counts here: another stream of the instance has a slot of its own.
    slot: Arc<Slot>,
}

/// Why a stream cannot be taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this identity has too many instances; the limit is {0}")]
pub struct TooManyInstances(usize);

type Key = (SpiffeId, Arc<str>);

#[derive(Debug)]
struct Inner {
    instances: Instances,
    registry: Option<Registry>,
    pruned_at: Timestamp,
}

/// What is known of each instance of each enforcement point; none of them is empty.
type Instances = BTreeMap<SpiffeId, BTreeMap<Arc<str>, Arc<Slot>>>;

// === impl Fleet ===

impl Fleet {
    /// A fleet of the configured enforcement points. An unreadable registry file is an error: it would be a receipt's
    /// silent gap.
    pub fn open(clock: SharedClock, config: FleetConfig) -> std::io::Result<Arc<Self>> {
        let now = clock.now().wall;
        let mut instances = Instances::new();
        let registry = match config.registry_file {
            Some(path) => {
                let (registry, known) = Registry::open(path)?;
                for (identity, instance) in known {
                    instances.entry(identity).or_default().insert(instance, Slot::new("", now, false, None));
                }
                Some(registry)
            }
            None => None,
        };
        let points = config.points.into_iter().map(|p| (p.identity.clone(), Arc::new(Point::new(p)))).collect();
        let inner = Inner { instances, registry, pruned_at: now };
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
        let mut inner = self.lock();
        self.prune(&mut inner, now);
        let Inner { instances, registry, .. } = &mut *inner;
        let (siblings, known) =
            instances.get(identity).map_or((0, None), |all| (all.len(), all.get(instance).map(Arc::clone)));
        if known.is_none() {
            if siblings >= self.max_instances {
                return Err(TooManyInstances(self.max_instances));
            }
            if let Some(registry) = registry {
                registry.add(identity, instance);
            }
        }
        let last_nack = known.and_then(|old| old.lock().last_nack.take());
        let slot = Slot::new(version, now, true, last_nack);
        instances.entry(identity.clone()).or_default().insert(Arc::from(instance), Arc::clone(&slot));
        drop(inner);
        self.wake();
        Ok(Connection { fleet: Arc::clone(self), slot })
    }

    /// Every instance, and every configured enforcement point that has none; `tip` is where the control plane stands.
    pub fn list(&self, tip: Position) -> Vec<EnforcementPoint> {
        let now = self.clock.now().wall;
        let mut inner = self.lock();
        self.prune(&mut inner, now);
        let services = |identity: &SpiffeId| {
            self.points.get(identity).map(|p| p.services.iter().map(ToString::to_string).collect()).unwrap_or_default()
        };
        let mut all: Vec<EnforcementPoint> = each(&inner.instances)
            .map(|(identity, instance, slot)| {
                let state = slot.lock();
                let last = state.last();
                let same_epoch = last.filter(|(p, _)| p.epoch == tip.epoch);
                EnforcementPoint {
                    identity: identity.to_string(),
                    instance: instance.to_string(),
                    services: services(identity),
                    version: state.version.to_string(),
                    connected: state.connected,
                    position: last.map(|(p, _)| p.to_string()),
                    behind: same_epoch.map(|(p, _)| tip.revision.0.saturating_sub(p.revision.0)),
                    last_ack_at: last.map(|(_, at)| at),
                    last_seen: Some(if state.connected { now } else { state.last_seen }),
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
        each(&self.lock().instances).filter(|(_, _, slot)| slot.lock().connected).count()
    }

    /// Configured enforcement points of which no instance is known.
    fn unseen<'a>(&'a self, inner: &'a Inner) -> impl Iterator<Item = &'a SpiffeId> {
        self.points.keys().filter(|id| !inner.instances.contains_key(*id))
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
        let Inner { instances, registry, .. } = inner;
        let count = |instances: &Instances| instances.values().map(BTreeMap::len).sum::<usize>();
        let before = count(instances);
        for all in instances.values_mut() {
            all.retain(|_, slot| {
                let state = slot.lock();
                state.connected || now <= self.can_only_deny_after(state.last_seen).saturating_add(REMEMBERED)
            });
        }
        instances.retain(|_, all| !all.is_empty());
        if let Some(registry) = registry
            && count(instances) != before
        {
            registry.rewrite(each(instances).map(|(identity, instance, _)| (identity, &**instance)));
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

fn each(instances: &Instances) -> impl Iterator<Item = (&SpiffeId, &Arc<str>, &Arc<Slot>)> {
    instances.iter().flat_map(|(identity, all)| all.iter().map(move |(instance, slot)| (identity, instance, slot)))
}

// === impl Connection ===

impl Connection {
    /// The instance has applied `position`.
    pub fn acked(&self, position: Position) {
        let now = self.fleet.clock.now().wall;
        self.slot.lock().acked(position, now);
        self.fleet.wake();
    }

    /// The instance could not use an object.
    pub fn nacked(&self, position: Position, object: String, error: String) {
        let at = self.fleet.clock.now().wall;
        let mut instance = self.slot.lock();
        instance.last_seen = at;
        instance.last_nack = Some(NackReport { position: position.to_string(), object, error, at });
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let now = self.fleet.clock.now().wall;
        {
            let mut instance = self.slot.lock();
            instance.connected = false;
            instance.last_seen = now;
        }
        self.fleet.wake();
    }
}

#[cfg(test)]
mod tests;
