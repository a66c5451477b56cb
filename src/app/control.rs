//! The control plane as a whole: store, core, operators, fleet, REST, sync server, admin.
//!
//! Plane: composition. Everything is opened and bound before anything is served. On shutdown nothing new is accepted,
//! requests that have begun get their answers within a bound, and what is queued is committed before the store closes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::admin::Admin;
use super::{BuildError, Deps, RunError, files, keys, listen};
use crate::admin;
use crate::config::{ControlConfig, SyncConfig, TlsFiles};
use crate::control::api::{self, ApiConfig, ServeLimits};
use crate::control::audit::Tip;
use crate::control::exchange::{Exchange, ExchangeConfig};
use crate::control::fleet::{Fleet, FleetConfig, PointConfig};
use crate::control::keys::Keys;
use crate::control::operators::Operators;
use crate::control::store::{SqliteStore, Store};
use crate::control::sync_server::{self, SyncServerConfig, SyncServerDeps};
use crate::control::token_keys::TokenKeys;
use crate::control::token_review::TokenReviewSettings;
use crate::control::uses::{self, Uses};
use crate::control::{Core, CoreConfig, sweep};
use crate::drain::Signal;
use crate::readiness::{Blocker, Readiness};
use crate::telemetry::ControlMetrics;
use crate::tls::{self, ServerFiles};

/// The first operator's token.
pub const BOOTSTRAP_TOKEN: &str = "bootstrap-token";
/// Which instances of enforcement points exist, across restarts.
const REGISTRY: &str = "enforcement-points";
/// Instances of one enforcement point.
const MAX_INSTANCES: usize = 12_000;
/// Requests that have begun get this long at shutdown, or what is left of the drain.
const LAST_REQUESTS: Duration = Duration::from_secs(10);

/// A control plane whose listeners are bound.
#[derive(Debug)]
pub struct Bound {
    deps: Deps,
    core: Arc<Core>,
    fleet: Arc<Fleet>,
    operators: Arc<Operators>,
    keys: Arc<Keys>,
    uses: Arc<Uses>,
    tokens: Option<Arc<Exchange>>,
    metrics: Arc<ControlMetrics>,
    api: (TcpListener, SocketAddr),
    api_tls: Option<Arc<rustls::ServerConfig>>,
    api_router: axum::Router,
    sync: (TcpListener, SocketAddr),
    sync_config: SyncServerConfig,
    sync_deps: SyncServerDeps,
    admin: Admin,
    common: admin::Common,
    readiness: Readiness,
    blocker: Blocker,
}

/// Puts a control plane together: opens the store, makes keys and the bootstrap token at first start, binds.
pub async fn build(config: ControlConfig, deps: &Deps) -> Result<Bound, BuildError> {
    let readiness = Readiness::new();
    let blocker = readiness.block("listeners");
    let metrics = Arc::new(ControlMetrics::new().map_err(|e| BuildError::Metrics(e.to_string()))?);
    let directory = config.data_directory.clone();
    let in_directory = |e: std::io::Error| BuildError::File { path: directory.clone(), reason: e.to_string() };
    files::private_directory(&directory).map_err(in_directory)?;

    // Listeners first: a second control plane on one directory is told about its port before its store.
    let bind = |key, address| listen::bind(&*deps.binder, &deps.support, key, address);
    let api = bind("listeners.api", config.listeners.api.0)?;
    let sync = bind("listeners.sync", config.listeners.sync.0)?;
    let admin = Admin::bind(deps, config.listeners.admin, config.listeners.probes)?;
    let operators_ca = config.operators.client_ca_file.clone();
    let api_tls = server_tls(config.tls.as_ref(), operators_ca, tls::TLS12_UP, &[tls::ALPN_H2, tls::ALPN_HTTP1])?;
    let sidecars_ca = config.tls.as_ref().and_then(|files| files.client_ca_file.clone());
    let sync_tls = server_tls(config.tls.as_ref(), sidecars_ca, tls::TLS13, &[tls::ALPN_H2])?;

    let now = deps.clock.now().wall;
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&directory, now).await?);
    let signing_key = Arc::new(keys::signing_key(&directory)?);
    let core_config = CoreConfig { log_capacity: config.sync.log_capacity, ..CoreConfig::default() };
    let core = Core::open(Arc::clone(&store), Arc::clone(&deps.clock), core_config).await?;
    let token_file = directory.join(BOOTSTRAP_TOKEN);
    let operators = Operators::open(store, Arc::clone(&deps.clock), &token_file).await?;
    let registry = directory.join(REGISTRY);
    let fleet = Fleet::open(Arc::clone(&deps.clock), fleet_config(&config.sync, registry.clone()))
        .map_err(|e| BuildError::File { path: registry, reason: e.to_string() })?;

    let keys = Keys::new(Arc::clone(&core), Arc::clone(&metrics), config.keys.clone());
    let tokens = match config.tokens.clone() {
        Some(tokens) => {
            let signing = TokenKeys::open(Arc::clone(&core), &directory, tokens.keys).await?;
            let config = ExchangeConfig {
                audiences: tokens.audiences,
                per_minute: tokens.per_minute,
                reviews: reviews(&config.sync),
            };
            Some(Exchange::new(Arc::clone(&core), signing, Arc::clone(&keys), config))
        }
        None => None,
    };
    let api_config = ApiConfig {
        points: points(&config.sync),
        callers: config.operators.callers.clone(),
        tokens: tokens.clone(),
        grants_per_resource: config.grants.max_per_resource,
        ..ApiConfig::default()
    };
    let api_router =
        api::router(Arc::clone(&core), Arc::clone(&fleet), Arc::clone(&operators), Arc::clone(&keys), api_config);
    let sync_config = SyncServerConfig {
        tls: sync_tls,
        audience: config.sync.audience.clone(),
        trusted_issuers: config.sync.trust.clone(),
        token_review: reviews(&config.sync),
        lease: config.sync.lease,
        bookmark_interval: config.sync.bookmark_interval,
        max_streams: config.sync.max_streams,
        max_snapshots: config.sync.max_snapshots,
        ..SyncServerConfig::default()
    };
    let uses = Uses::new(Arc::clone(&core), uses::LEASE, Arc::clone(&metrics));
    let sync_deps = SyncServerDeps {
        index: Arc::clone(core.index()),
        fleet: Arc::clone(&fleet),
        key: signing_key,
        clock: Arc::clone(&deps.clock),
        metrics: Arc::clone(&metrics),
        keys: Some(Arc::clone(&keys)),
        uses: Some(Arc::clone(&uses)),
    };
    let common = admin::Common {
        readiness: readiness.clone(),
        exposition: metrics.exposition().clone(),
        level: deps.level.clone(),
    };
    Ok(Bound {
        deps: deps.clone(),
        core,
        fleet,
        operators,
        keys,
        uses,
        tokens,
        metrics,
        api,
        api_tls,
        api_router,
        sync,
        sync_config,
        sync_deps,
        admin,
        common,
        readiness,
        blocker,
    })
}

fn server_tls(
    files: Option<&TlsFiles>,
    client_ca_file: Option<std::path::PathBuf>,
    versions: &[&'static rustls::SupportedProtocolVersion],
    alpn: &[&[u8]],
) -> Result<Option<Arc<rustls::ServerConfig>>, BuildError> {
    let Some(files) = files else { return Ok(None) };
    let files = ServerFiles { cert_file: files.cert_file.clone(), key_file: files.key_file.clone(), client_ca_file };
    Ok(Some(tls::server_config(&files, versions, alpn)?))
}

/// Which tokens an API server has to confirm, whoever brings them.
fn reviews(config: &SyncConfig) -> TokenReviewSettings {
    TokenReviewSettings { servers: config.token_review.clone(), ..TokenReviewSettings::default() }
}

/// The enforcement points, for the fleet and for the rule that their routes must not overlap.
fn points(config: &SyncConfig) -> Vec<PointConfig> {
    let points = config.enforcement_points.iter();
    points.map(|p| PointConfig { identity: p.identity.clone(), services: p.services.clone() }).collect()
}

fn fleet_config(config: &SyncConfig, registry: std::path::PathBuf) -> FleetConfig {
    FleetConfig {
        points: points(config),
        max_staleness: config.max_staleness,
        registry_file: Some(registry),
        max_instances: MAX_INSTANCES,
    }
}

// === impl Bound ===

impl Bound {
    /// Where REST is served.
    pub const fn api(&self) -> SocketAddr {
        self.api.1
    }

    /// Where sync is served.
    pub const fn sync(&self) -> SocketAddr {
        self.sync.1
    }

    /// Where admin is served.
    pub const fn admin(&self) -> SocketAddr {
        self.admin.address
    }

    /// Where probes are answered, if anywhere but there.
    pub fn probes(&self) -> Option<SocketAddr> {
        self.admin.probes()
    }

    /// What it waits for.
    pub const fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Serves until drained.
    pub async fn run(self, drain: Signal) -> Result<(), RunError> {
        tracing::info!(api = %self.api.1, sync = %self.sync.1, admin = %self.admin.address,
            probes = self.admin.probes().map(tracing::field::display),
            verify_key = %self.sync_deps.key.verify_key(), "control plane is listening");
        let spawn = &self.deps.support;
        let (stop, stop_admin) = (CancellationToken::new(), CancellationToken::new());
        let _also_when_dropped = (stop.clone().drop_guard(), stop_admin.clone().drop_guard());
        let tls = self.api_tls.map(TlsAcceptor::from);
        let api = api::serve(self.api.0, tls, self.api_router, ServeLimits::default(), stop.clone());
        let mut api = spawn.spawn(api);
        let sync = sync_server::serve(self.sync.0, self.sync_deps, self.sync_config, stop.clone());
        let mut sync = spawn.spawn(sync);
        let admin = spawn.spawn(self.admin.serve(admin::router(self.common.clone()), self.common, stop_admin.clone()));
        spawn.spawn(stop.clone().run_until_cancelled_owned(sweep::run(Arc::clone(&self.core), self.operators)));
        spawn.spawn(stop.clone().run_until_cancelled_owned(self.uses.run()));
        spawn.spawn(stop.clone().run_until_cancelled_owned(self.keys.run()));
        if let Some(tokens) = self.tokens {
            spawn.spawn(stop.clone().run_until_cancelled_owned(Arc::clone(tokens.keys()).run()));
        }
        spawn.spawn(stop.clone().run_until_cancelled_owned(measure(Arc::clone(&self.core), self.fleet, self.metrics)));
        spawn.spawn(stop.clone().run_until_cancelled_owned(tell_checkpoints(Arc::clone(&self.core))));
        drop(self.blocker);

        let ended = |server, reason: &dyn ToString| Err(RunError::Ended { server, reason: reason.to_string() });
        let result = tokio::select! {
            () = drain.draining() => Ok(()),
            result = &mut api => match result {
                Ok(()) => ended("REST", &"it stopped accepting"),
                Err(error) => ended("REST", &error),
            },
            result = &mut sync => match result {
                Ok(Ok(())) => ended("sync", &"it stopped accepting"),
                Ok(Err(error)) => ended("sync", &error),
                Err(error) => ended("sync", &error),
            },
        };
        stop.cancel();
        if result.is_ok() {
            let both = async { tokio::join!(&mut api, &mut sync) };
            tokio::select! {
                _ = both => {}
                () = drain.expired() => tracing::warn!("requests were cut off at the end of the drain"),
                () = tokio::time::sleep(LAST_REQUESTS) => tracing::warn!("requests were cut off after ten seconds"),
            }
        }
        api.abort();
        sync.abort();
        self.core.audit().close().await;
        tell_checkpoint(&self.core, &mut None).await;
        self.core.close().await;
        stop_admin.cancel();
        if admin.await.is_err() {
            tracing::error!("admin has failed");
        }
        result
    }
}

/// Keeps current what is counted: streams, open reviews, break-glass grants in force.
async fn measure(core: Arc<Core>, fleet: Arc<Fleet>, metrics: Arc<ControlMetrics>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        metrics.streams().set(i64::try_from(fleet.streams()).unwrap_or(i64::MAX));
        let (open_reviews, in_force) = core.index().emergencies();
        metrics.emergencies(open_reviews, in_force);
    }
}

/// Logs how far the audit trail has come, so that a log which is kept elsewhere shows later that its end was cut off.
async fn tell_checkpoints(core: Arc<Core>) {
    let (mut ticks, mut last) = (tokio::time::interval(Duration::from_secs(600)), None);
    loop {
        ticks.tick().await;
        tell_checkpoint(&core, &mut last).await;
    }
}

async fn tell_checkpoint(core: &Core, last: &mut Option<Tip>) {
    match core.store().audit_tip().await {
        Ok(tip) if *last == Some(tip) => {}
        Ok(tip) => {
            tracing::info!(checkpoint = %tip, "audit checkpoint");
            *last = Some(tip);
        }
        Err(error) => tracing::warn!(%error, "the audit trail could not be read"),
    }
}
