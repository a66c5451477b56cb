//! The enforcement point as a whole: gate, doors, sync, admin.
//!
//! Plane: composition. All doors share one gate, one admission and one verification pool. Ready once its state is dated and
//! young enough to answer from: after the first sync, or at once with valid state from disk. While draining, revocations still
//! arrive: sync ends only after the doors have. Long because every door is built and ended here, in one order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::admin::Admin;
use super::in_line::{self, InLine};
use super::pinned::Pinned;
use super::{BuildError, Deps, RunError, listen};
use crate::admin;
use crate::authz::Settings;
use crate::authzen;
use crate::cache::{CacheSizes, Gate, VerificationLimits};
use crate::clock::SharedClock;
use crate::config::{Credential, Records as RecordSettings, SidecarConfig, Transport};
use crate::door::{self, Checks};
use crate::drain::Signal;
use crate::ext_authz::{self, Listeners, UnixSocket};
use crate::forward_auth;
use crate::proxy;
use crate::readiness::{Blocker, Readiness};
use crate::state::State;
use crate::svid::Source;
use crate::sync::{self, BackoffConfig, SyncClient, SyncClientConfig};
use crate::telemetry::{Output, Records, RecordsConfig, SidecarMetrics, Telemetry};

/// Connecting to the control plane may take this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A stream without a frame for this long is dead; bookmarks come at least every ten seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// What is waited for without an SVID.
const AN_SVID: &str = "SVID from the Workload API";
/// Records that are still queued at the end get this long.
const RECORDS_FLUSH: Duration = Duration::from_secs(2);

/// A sidecar whose listeners are bound.
#[derive(Debug)]
pub struct Bound {
    deps: Deps,
    checks: Checks,
    door: Door,
    forward_auth: Option<ForwardAuth>,
    proxy: Option<InLine>,
    client: SyncClient,
    admin: Admin,
    common: admin::Common,
    router: axum::Router,
    telemetry: Arc<Telemetry>,
    state: Arc<State>,
    readiness: Readiness,
    blockers: Blockers,
    /// The SVIDs that are waited for, each with what keeps this from being ready.
    svids: Vec<(Arc<Source>, Blocker)>,
}

#[derive(Debug)]
struct Door {
    listeners: Listeners,
    tcp: Option<SocketAddr>,
    unix: Option<PathBuf>,
    config: ext_authz::Config,
    pinned: Pinned,
}

#[derive(Debug)]
struct ForwardAuth {
    listener: TcpListener,
    address: SocketAddr,
    config: forward_auth::Config,
    authzen: Option<authzen::Config>,
}

#[derive(Debug)]
struct Blockers {
    listeners: Blocker,
    state: Blocker,
}

/// Puts a sidecar together. Blocks on the disk while it reads its last-known-good state.
pub fn build(config: SidecarConfig, deps: &Deps) -> Result<Bound, BuildError> {
    let readiness = Readiness::new();
    let blockers =
        Blockers { listeners: readiness.block("listeners"), state: readiness.block("state from the control plane") };
    let metrics_error = |e: &dyn ToString| BuildError::Metrics(e.to_string());
    let metrics = Arc::new(SidecarMetrics::new().map_err(|e| metrics_error(&e))?);
    let records = records(&config.records, &metrics)?;
    let telemetry = Telemetry::new(metrics, records, deps.tracer.clone(), Arc::clone(&deps.clock));

    let state = Arc::new(State::new());
    let client = SyncClient::open(sync_config(&config), Arc::clone(&state), Arc::clone(&deps.clock))?;
    let metrics = Arc::clone(telemetry.metrics());
    client.stats().on_revocation(move |took| metrics.revocation_applied(took));
    let sizes = CacheSizes { tokens: config.cache.tokens, decisions: config.cache.decisions };
    let gate = Gate::new(Arc::clone(&state), Arc::clone(&deps.clock), sizes);
    let settings = Settings { trusted_proxies: config.trusted_proxies.clone() };
    let gate = gate.with_settings(settings).with_proofs(config.cache.proofs, config.nonces.clone());
    let gate = Arc::new(gate);
    telemetry.metrics().watch(Arc::clone(&gate)).map_err(|e| metrics_error(&e))?;

    let threads = config.listeners.ext_authz_pinned_threads;
    let pinned = Pinned::start(threads).map_err(|source| BuildError::Threads { threads, source })?;
    let mut listeners = Listeners { workers: pinned.handles(), ..Listeners::default() };
    let mut tcp = None;
    if let Some(address) = config.listeners.ext_authz_tcp {
        let (listener, bound) = listen::bind(&*deps.binder, &deps.hot, "listeners.ext_authz.tcp", address.0)?;
        (listeners.tcp, tcp) = (Some(listener), Some(bound));
    }
    if let Some(path) = &config.listeners.ext_authz_unix {
        let _context = deps.hot.enter();
        let socket = UnixSocket::bind(path, config.listeners.ext_authz_unix_mode).map_err(|source| {
            BuildError::Listen { key: "listeners.ext_authz.unix", address: path.display().to_string(), source }
        })?;
        listeners.unix = Some(socket);
    }
    let forward_auth = match config.listeners.forward_auth {
        Some(address) => {
            let (listener, address) = listen::bind(&*deps.binder, &deps.hot, "listeners.forward_auth", address.0)?;
            let authzen = authzen_door(&config);
            Some(ForwardAuth { listener, address, config: forward_auth_door(&config), authzen })
        }
        None => None,
    };
    let proxy = in_line::bind(&config, deps)?;
    let svids = proxy.iter().flat_map(|(bound, _)| bound.svids()).map(|source| (source, readiness.block(AN_SVID)));
    let svids = svids.collect();
    let admin = Admin::bind(deps, config.listeners.admin, config.listeners.probes)?;

    let grant_request_url = config.control_plane.grant_request_url.clone();
    let common = admin::Common {
        readiness: readiness.clone(),
        exposition: telemetry.metrics().exposition().clone(),
        level: deps.level.clone(),
    };
    let router =
        admin::sidecar_router(common.clone(), Arc::clone(&gate), Arc::clone(&telemetry), grant_request_url.clone());
    let unix = config.listeners.ext_authz_unix.clone();
    let shared = shared(&config);
    let checks = Checks::new(gate, Arc::clone(&telemetry), &shared).map_err(BuildError::VerificationThreads)?;
    let door = Door { listeners, tcp, unix, config: ext_authz_door(&config, &shared), pinned };
    let deps = deps.clone();
    Ok(Bound {
        deps,
        checks,
        door,
        forward_auth,
        proxy,
        client,
        admin,
        common,
        router,
        telemetry,
        state,
        readiness,
        blockers,
        svids,
    })
}

fn records(config: &RecordSettings, metrics: &SidecarMetrics) -> Result<Records, BuildError> {
    let (output, queue) = match config {
        RecordSettings::Off => (Output::Off, 1),
        RecordSettings::Stdout { queue } => (Output::Stdout, *queue),
        RecordSettings::File { path, max_bytes, keep, queue } => {
            (Output::File { path: path.clone(), max_bytes: *max_bytes, keep: *keep }, *queue)
        }
    };
    let failed_at = match &output {
        Output::File { path, .. } => path.clone(),
        Output::Off | Output::Stdout => PathBuf::from("records"),
    };
    let config = RecordsConfig { output, queue: queue as usize };
    Records::start(config, metrics.records_dropped().clone())
        .map_err(|e| BuildError::File { path: failed_at, reason: format!("decision records cannot be written: {e}") })
}

fn sync_config(config: &SidecarConfig) -> SyncClientConfig {
    let from = &config.control_plane;
    let (ca_file, insecure_loopback) = match &from.transport {
        Transport::Tls { ca_file } => (Some(ca_file.clone()), false),
        Transport::LoopbackPlainText => (None, true),
    };
    let (token_file, identity_files) = match &from.credential {
        Credential::Token { file } => (Some(file.clone()), None),
        Credential::Certificate { cert_file, key_file } => (None, Some((cert_file.clone(), key_file.clone()))),
    };
    SyncClientConfig {
        control_plane: sync::ControlPlane {
            url: from.url.as_uri().clone(),
            insecure_loopback,
            ca_file,
            identity_files,
            token_file,
            connect_timeout: CONNECT_TIMEOUT,
            dial: Arc::new(sync::SystemDial),
        },
        verify_key: from.verify_key.clone(),
        identity: config.scope.identity.clone(),
        services: config.scope.services.clone(),
        directory: Some(config.state.directory.clone()),
        max_staleness: Some(config.state.max_staleness),
        backoff: BackoffConfig::default(),
        idle_timeout: IDLE_TIMEOUT,
    }
}

/// What all doors share.
fn shared(config: &SidecarConfig) -> door::Config {
    let limits = &config.limits;
    let verification = VerificationLimits::default();
    door::Config {
        max_concurrent_checks: limits.max_concurrent_checks as usize,
        adaptive: config.overload.map(|overload| overload.checks),
        verification: VerificationLimits {
            threads: limits.verification_threads.map_or(verification.threads, |n| n as usize),
            queue: limits.verification_queue as usize,
            wait: config.overload.map(|overload| overload.verification_wait),
            ..verification
        },
        max_headers: limits.max_headers as usize,
        max_header_bytes: limits.max_header_bytes as usize,
        grant_request_url: config.control_plane.grant_request_url.clone(),
    }
}

fn ext_authz_door(config: &SidecarConfig, shared: &door::Config) -> ext_authz::Config {
    let limits = &config.limits;
    ext_authz::Config {
        max_message_bytes: limits.max_message_bytes as usize,
        max_headers: shared.max_headers,
        max_header_bytes: shared.max_header_bytes,
        max_concurrent_checks: shared.max_concurrent_checks,
        adaptive: shared.adaptive,
        max_concurrent_streams: limits.max_concurrent_streams,
        max_connections: limits.max_connections as usize,
        max_http2_header_list_bytes: limits.max_http2_header_list_bytes,
        verification: shared.verification,
        grant_request_url: shared.grant_request_url.clone(),
        ..ext_authz::Config::default()
    }
}

fn forward_auth_door(config: &SidecarConfig) -> forward_auth::Config {
    let (limits, own) = (&config.limits, &config.forward_auth);
    forward_auth::Config {
        trusted_peers: own.trusted_peers.clone(),
        dialects: own.dialects.clone(),
        max_body_bytes: limits.max_message_bytes as usize,
        max_headers: limits.max_headers as usize,
        max_head_bytes: limits.max_header_bytes as usize,
        max_connections: limits.max_connections as usize,
        read_timeout: own.read_timeout,
        idle_timeout: own.idle_timeout,
        ..forward_auth::Config::default()
    }
}

/// The AuthZEN API, if anybody may ask.
fn authzen_door(config: &SidecarConfig) -> Option<authzen::Config> {
    let own = &config.authzen;
    (!own.callers.is_empty()).then(|| authzen::Config {
        callers: own.callers.clone(),
        subject_types: own.subject_types.clone(),
        resource_types: own.resource_types.clone(),
        url: own.url.clone(),
        max_body_bytes: (config.limits.max_message_bytes as usize).min(authzen::MAX_BODY),
        max_evaluations: own.max_evaluations,
        read_timeout: config.forward_auth.read_timeout,
    })
}

fn mount(service: authzen::Service) -> forward_auth::Mount {
    let serve = move |request, peer| -> forward_auth::Answering {
        let service = service.clone();
        Box::pin(async move { service.answer(request, peer).await })
    };
    forward_auth::Mount { is_for: authzen::is_for, serve: Arc::new(serve) }
}

// === impl Bound ===

impl Bound {
    /// Where ext_authz is served over TCP.
    pub const fn ext_authz_tcp(&self) -> Option<SocketAddr> {
        self.door.tcp
    }

    /// Where ext_authz is served over a Unix socket.
    pub fn ext_authz_unix(&self) -> Option<&Path> {
        self.door.unix.as_deref()
    }

    /// Where forward-auth is served.
    pub fn forward_auth(&self) -> Option<SocketAddr> {
        self.forward_auth.as_ref().map(|door| door.address)
    }

    /// Where the reverse proxy is served.
    pub fn proxy(&self) -> Option<SocketAddr> {
        self.proxy.as_ref().map(|(_, address)| *address)
    }

    /// Where admin is served.
    pub const fn admin(&self) -> SocketAddr {
        self.admin.address
    }

    /// Where probes are answered, if anywhere but there.
    pub fn probes(&self) -> Option<SocketAddr> {
        self.admin.probes()
    }

    /// What it waits for before it can be sent checks.
    pub const fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Serves until drained.
    pub async fn run(self, drain: Signal) -> Result<(), RunError> {
        let Self { deps, checks, door, forward_auth, proxy, client, admin, common, router, telemetry, state, .. } =
            self;
        let (readiness, blockers, svids) = (self.readiness, self.blockers, self.svids);
        let stop = CancellationToken::new();
        let _also_when_dropped = stop.clone().drop_guard();
        tracing::info!(
            ext_authz = door.tcp.map(tracing::field::display),
            unix = door.unix.as_deref().map(|p| tracing::field::display(p.display())),
            forward_auth = forward_auth.as_ref().map(|door| tracing::field::display(door.address)),
            proxy = proxy.as_ref().map(|(_, address)| tracing::field::display(*address)),
            admin = %admin.address,
            probes = admin.probes().map(tracing::field::display),
            "sidecar is listening"
        );
        let clock = Arc::clone(&deps.clock);
        deps.support.spawn(stop.clone().run_until_cancelled_owned(announce(state, clock, blockers.state)));
        for (source, blocker) in svids {
            let told = identified(source, readiness.clone(), blocker);
            deps.support.spawn(stop.clone().run_until_cancelled_owned(told));
        }
        let mut doors = JoinSet::new();
        if door.tcp.is_some() || door.unix.is_some() {
            let (checks, drain) = (checks.clone(), drain.clone());
            let serve = async move {
                ext_authz::serve_checks(door.listeners, &checks, readiness, door.config, drain)
                    .await
                    .map_err(|error| ("ext_authz", error))
            };
            doors.spawn_on(serve, &deps.hot);
        }
        if let Some(ForwardAuth { listener, config, authzen, .. }) = forward_auth {
            let (checks, drain) = (checks.clone(), drain.clone());
            let mounts = authzen.map(|config| mount(authzen::Service::new(checks.clone(), config)));
            let mounts = mounts.into_iter().collect();
            let serve = async move {
                forward_auth::serve(listener, checks, mounts, config, drain)
                    .await
                    .map_err(|error| ("forward_auth", error))
            };
            doors.spawn_on(serve, &deps.hot);
        }
        if let Some((bound, _)) = proxy {
            let (checks, drain) = (checks.clone(), drain.clone());
            let serve = async move { proxy::serve(bound, checks, drain).await.map_err(|error| ("proxy", error)) };
            doors.spawn_on(serve, &deps.hot);
        }
        // Whoever waits for the drain waits for the doors, not for this.
        drop((checks, drain));
        let admin = deps.support.spawn(admin.serve(router, common, stop.clone()));
        drop(blockers.listeners);
        let sync = deps.support.spawn(client.run(stop.clone()));
        let ended = all(doors).await;
        drop(door.pinned);
        stop.cancel();
        if sync.await.is_err() {
            tracing::error!("sync has failed");
        }
        if admin.await.is_err() {
            tracing::error!("admin has failed");
        }
        let flushed = tokio::task::spawn_blocking(move || telemetry.records().shutdown(RECORDS_FLUSH)).await;
        if !matches!(flushed, Ok(true)) {
            tracing::warn!("some decision records could not be written in time");
        }
        ended
    }
}

/// Waits until every door has ended, or one has failed: without it the others are no sidecar, and end too.
async fn all(mut doors: JoinSet<Result<(), (&'static str, std::io::Error)>>) -> Result<(), RunError> {
    while let Some(ended) = doors.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err((server, error))) => return Err(RunError::Ended { server, reason: error.to_string() }),
            Err(error) => return Err(RunError::Ended { server: "a door", reason: error.to_string() }),
        }
    }
    Ok(())
}

/// Holds a blocker as long as there is no SVID in time.
async fn identified(source: Arc<Source>, readiness: Readiness, mut blocker: Blocker) {
    loop {
        source.present().await;
        drop(blocker);
        source.lapsed().await;
        tracing::error!("the SVID has ended and no other has come: where it is used nothing is served or forwarded");
        blocker = readiness.block(AN_SVID);
    }
}

/// Holds the blocker until there is a state that may be answered from.
async fn announce(state: Arc<State>, clock: SharedClock, blocker: Blocker) {
    let mut look = tokio::time::interval(Duration::from_millis(20));
    loop {
        look.tick().await;
        let world = state.load();
        if world.snapshot.is_some() && world.lease.as_ref().is_some_and(|l| l.age(clock.now()) < l.max_staleness) {
            break;
        }
    }
    tracing::info!("ready");
    drop(blocker);
}
