//! Keeps issuers' key sets up to date from where their issuers publish them.
//!
//! Plane: control. Only the control plane fetches; a sidecar gets keys in its snapshot and never a reason to fetch. A
//! changed set is an ordinary commit, so it is audited, ordered and shipped like any change. Sets are never merged, and
//! each issuer has a task of its own. Fails closed and apart: without an allow-list nothing is fetched, a source that
//! fails leaves the keys that are held, and only a well-formed empty set revokes.

mod error;
pub(super) mod http;
mod install;
mod keeper;
mod provider;
mod schedule;
mod source;
mod spiffe_tls;
mod status;
mod supervise;
mod vet;
mod workload_api;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};

use self::http::Http;
use self::install::Spec;
use self::keeper::Watched;
use self::source::Sources;
use self::workload_api::Hub;
use super::core::Core;
use super::index::Index;
use super::rules::as_issuer;
use crate::object::Kind;
use crate::telemetry::{ControlMetrics, KeyFetch};
use crate::wire::Revision;

pub use self::error::FetchError;
pub use self::install::AUTHOR;
pub use self::provider::Provider;
pub use self::status::{KeyError, KeyStatus};
pub use self::vet::{Allowed, HostPattern};

/// Settings of key fetching.
#[derive(Debug, Clone)]
pub struct KeysConfig {
    /// Which hosts may be asked, and which networks beside the public ones may be connected to.
    pub allowed: Allowed,
    /// PEM file with the CA certificates that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The key directory.
    pub directory: Option<PathBuf>,
    /// Socket of the SPIFFE Workload API.
    pub workload_api: Option<PathBuf>,
    /// How often a source is asked.
    pub refresh_interval: Duration,
    /// How often a file is looked at.
    pub file_interval: Duration,
    /// An unknown key id has an issuer's source asked at most once in this time.
    pub unknown_kid_cooldown: Duration,
    /// How long a fetch may take, all in all.
    pub timeout: Duration,
    /// The largest answer or file.
    pub max_bytes: usize,
}

/// The keeper of the keys.
#[derive(Debug)]
pub struct Keys {
    config: KeysConfig,
    core: Arc<Core>,
    metrics: Arc<ControlMetrics>,
    sources: Sources,
    watched: RwLock<HashMap<Arc<str>, Arc<Watched>>>,
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self {
            allowed: Allowed::default(),
            ca_file: None,
            directory: None,
            workload_api: None,
            refresh_interval: Duration::from_secs(300),
            file_interval: Duration::from_secs(5),
            unknown_kid_cooldown: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            max_bytes: 256 << 10,
        }
    }
}

// === impl Keys ===

impl Keys {
    /// Ready to run.
    pub fn new(core: Arc<Core>, metrics: Arc<ControlMetrics>, config: KeysConfig) -> Arc<Self> {
        crate::tls::install_provider();
        let http = Http {
            allowed: config.allowed.clone(),
            ca_file: config.ca_file.clone(),
            timeout: config.timeout,
            max_bytes: config.max_bytes,
        };
        let workload_api = config.workload_api.clone().map(Hub::new);
        let sources = Sources { http, directory: config.directory.clone(), workload_api };
        Arc::new(Self { config, core, metrics, sources, watched: RwLock::default() })
    }

    /// Follows the issuers and keeps their keys up to date, until it is dropped.
    pub async fn run(self: Arc<Self>) {
        supervise::run("the keeper of keys", || Arc::clone(&self).follow_issuers(), || {}).await;
        tracing::error!("the keys of issuers are not kept up to date any more: there is nobody to follow");
    }

    async fn follow_issuers(self: Arc<Self>) {
        let index = Arc::clone(self.core.index());
        let mut tip = index.subscribe();
        let mut tasks = JoinSet::new();
        if let Some(hub) = &self.sources.workload_api {
            let hub = Arc::clone(hub);
            tasks.spawn(supervise::run("the client of the Workload API", move || Arc::clone(&hub).run(), || {}));
        }
        let mut running: HashMap<Arc<str>, AbortHandle> = HashMap::new();
        let mut seen = None;
        loop {
            tip.mark_unchanged();
            let changes = Changes::since(&index, &mut seen);
            if !changes.are_none() {
                self.follow(&index, &changes, &mut running, &mut tasks);
            }
            // Those that were stopped. One that panics starts over by itself.
            while tasks.try_join_next().is_some() {}
            if tip.changed().await.is_err() {
                return;
            }
        }
    }

    /// A sidecar has met a key id that an issuer's set does not have. Names of no issuer are ignored.
    pub fn key_is_missing(&self, issuer: &str) {
        let watched = self.watched.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(watched) = watched.get(issuer) {
            watched.unknown_key.notify_one();
        }
    }

    /// Looks after the keys of a provider until it is dropped, or the task is aborted.
    pub fn keep_provider(self: Arc<Self>, provider: &Arc<Provider>) -> tokio::task::JoinHandle<()> {
        tokio::spawn(provider::keep(self, Arc::downgrade(provider)))
    }

    /// How the keys of an issuer stand; none for one whose keys an operator puts.
    pub fn status(&self, issuer: &str) -> Option<KeyStatus> {
        let watched = self.watched.read().unwrap_or_else(PoisonError::into_inner);
        watched.get(issuer).map(|w| w.status())
    }

    /// Starts and stops tasks until there is one for each issuer with a source, and has those look at once whose issuer
    /// somebody else has written: it may have been deleted and made anew.
    fn follow(
        self: &Arc<Self>,
        index: &Index,
        changes: &Changes,
        running: &mut HashMap<Arc<str>, AbortHandle>,
        tasks: &mut JoinSet<()>,
    ) {
        let wanted: HashMap<Arc<str>, Spec> = index
            .list(Kind::Issuer)
            .iter()
            .filter_map(|stored| Spec::of(as_issuer(stored)?))
            .map(|spec| (Arc::clone(&spec.name), spec))
            .collect();
        let mut watched = self.watched.write().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|name, w| {
            let is_alive = running.get(name).is_some_and(|task| !task.is_finished());
            let stays = is_alive && wanted.get(name) == Some(&w.spec);
            if !stays && let Some(task) = running.remove(name) {
                task.abort();
            }
            if stays && changes.have(name) {
                w.rewritten.notify_one();
            }
            stays
        });
        for (name, spec) in wanted {
            if let Entry::Vacant(free) = watched.entry(name) {
                let one = Arc::new(Watched::new(spec));
                let (keys, again) = ((Arc::clone(self), Arc::clone(&one)), (Arc::clone(self), Arc::clone(&one)));
                let keep = move || keeper::keep(Arc::clone(&keys.0), Arc::clone(&keys.1));
                let task = tasks.spawn(supervise::run("a keeper of keys", keep, move || again.1.has_failed(&again.0)));
                running.insert(Arc::clone(free.key()), task);
                free.insert(one);
            }
        }
    }

    fn count(&self, spec: &Spec, result: KeyFetch) {
        self.metrics.keys_fetched(&spec.source, result);
    }
}

/// Which issuers others than the keepers have written.
#[derive(Debug)]
enum Changes {
    /// The log does not say any more.
    Any,
    These(HashSet<Arc<str>>),
}

// === impl Changes ===

impl Changes {
    /// Since the revision that was `seen`.
    fn since(index: &Index, seen: &mut Option<Revision>) -> Self {
        let at = index.position().revision;
        let before = seen.replace(at);
        let Some(log) = before.and_then(|before| index.since(before, usize::MAX)) else { return Self::Any };
        let by_others = log.iter().filter(|logged| &*logged.commit.author != AUTHOR);
        let changed = by_others.flat_map(|logged| &logged.changes).filter(|change| change.stored.kind == Kind::Issuer);
        Self::These(changed.map(|change| Arc::clone(&change.stored.key)).collect())
    }

    fn are_none(&self) -> bool {
        matches!(self, Self::These(names) if names.is_empty())
    }

    fn have(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(names) => names.contains(name),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
