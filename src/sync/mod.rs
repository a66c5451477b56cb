//! The sidecar's side of sync: ordered apply, lease, last-known-good state on disk, reconnection.
//!
//! Plane: sync; the only writer of `state`. INVARIANT: a revision is acknowledged only when no check uses an older
//! state any more and a restart could not bring one back; the applied position never falls. Fails closed: what does
//! not verify or does not fit ends the stream, the state in force stays as it is and ages, and past its bound every
//! answer is a denial.
//!
//! A cursor advances by deltas only, empty ones included: a bookmark has no start to check against the local revision,
//! so one that does not match it means that a frame was lost, and is refused.

mod apply;
mod backoff;
mod bootstrap;
mod connect;
pub mod disk;
mod frame;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
mod session;
mod stats;
mod uses;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub(crate) use self::backoff::Backoff;
pub use self::backoff::BackoffConfig;
pub(crate) use self::connect::reasons;
pub use self::connect::{ConnectError, ControlPlane, Dial, Dialled, Io, SystemDial};
use self::disk::{DirectoryError, Disk, LoadError};
pub(crate) use self::frame::MAX_FRAME_BYTES;
use self::frame::Opener;
use self::session::{End, Session};
pub use self::stats::{SyncReading, SyncStats};
use crate::clock::SharedClock;
use crate::credential::SpiffeId;
use crate::state::State;
use crate::wire::{Position, ScopeId, VerifyKey};

/// A stream that lasted this long was a good one.
const HEALTHY: Duration = Duration::from_secs(10);
/// How long to wait between attempts to get state back onto a disk that failed.
const DISK_RETRY: Duration = Duration::from_secs(300);

/// Settings of the client.
#[derive(Debug, Clone)]
pub struct SyncClientConfig {
    /// Where to and with which credentials.
    pub control_plane: ControlPlane,
    /// The control plane's public key.
    pub verify_key: VerifyKey,
    /// This enforcement point's identity.
    pub identity: SpiffeId,
    /// The services it protects. Must be those that the control plane has for the identity.
    pub services: Vec<String>,
    /// Where last-known-good state is kept; without it a restart has to wait for the control plane.
    pub directory: Option<PathBuf>,
    /// Shortens how long state may be relied on without word from the control plane.
    pub max_staleness: Option<Duration>,
    /// Waits between attempts.
    pub backoff: BackoffConfig,
    /// A stream that is silent for this long is given up. Bookmarks come every few seconds.
    pub idle_timeout: Duration,
}

/// The client, after it has restored what was on disk.
#[derive(Debug)]
pub struct SyncClient {
    shared: Arc<Shared>,
    restored: RestoredState,
}

/// What the state directory held at start.
#[derive(Debug, Default)]
pub struct RestoredState {
    /// The position that is in force from disk.
    pub position: Option<Position>,
    /// Whether the state is dated, without which it answers nothing until the control plane has been reached.
    pub dated: bool,
    /// Files that were refused, and why.
    pub problems: Vec<LoadError>,
}

/// Why the client cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The control plane's settings.
    #[error(transparent)]
    ControlPlane(#[from] ConnectError),
    /// The state directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// What the client's parts share.
#[derive(Debug)]
struct Shared {
    config: SyncClientConfig,
    state: Arc<State>,
    clock: SharedClock,
    stats: Arc<SyncStats>,
    opener: Opener,
    disk: Option<Mutex<Disk>>,
    instance: String,
}

impl SyncClient {
    /// Checks the settings, locks the state directory and puts what it holds in force. Blocks on the disk.
    pub fn open(config: SyncClientConfig, state: Arc<State>, clock: SharedClock) -> Result<Self, OpenError> {
        config.control_plane.check()?;
        let scope = ScopeId::new(&config.identity, config.services.iter().map(String::as_str));
        let opener = Opener { key: config.verify_key.clone(), scope: Some(scope) };
        let stats = Arc::new(SyncStats::default());
        let mut restored = RestoredState::default();
        let mut disk = None;
        if let Some(directory) = &config.directory {
            let (opened, found) = Disk::open(directory, &opener)?;
            for problem in &found.problems {
                tracing::error!(error = %problem, "state on disk was refused");
            }
            if let Some(built) = found.built {
                let position = built.snapshot.position();
                for bad in &built.unusable {
                    tracing::warn!(object = %format_args!("{}/{}", bad.kind, bad.key), error = bad.error, "an object from disk cannot be used");
                }
                let snapshot = Arc::new(built.snapshot);
                match found.bookmark {
                    Some((bookmark, received)) => {
                        let lease = disk::restored_lease(&bookmark, received, config.max_staleness, &clock);
                        tracing::info!(%position, as_of = %lease.server_time, "state restored from disk");
                        state.restore(snapshot, lease);
                        restored.dated = true;
                    }
                    // Without a date nobody knows how old it is: it is only a base for deltas.
                    None => drop(state.publish(snapshot)),
                }
                stats.restored(position.revision.0);
                restored.position = Some(position);
            }
            restored.problems = found.problems;
            disk = Some(opened);
        }
        let instance = disk.as_ref().map_or_else(|| uuid::Uuid::new_v4().to_string(), Disk::instance);
        let shared = Shared { config, state, clock, stats, opener, disk: disk.map(Mutex::new), instance };
        Ok(Self { shared: Arc::new(shared), restored })
    }

    /// What the state directory held.
    pub const fn restored(&self) -> &RestoredState {
        &self.restored
    }

    /// Numbers for telemetry.
    pub fn stats(&self) -> Arc<SyncStats> {
        Arc::clone(&self.shared.stats)
    }

    /// Keeps the state in step until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let shared = self.shared;
        let mut backoff = Backoff::new(shared.config.backoff);
        let mut session = Session::new(Arc::clone(&shared), self.restored.position);
        let mut want_snapshot = false;
        let mut last_disk_retry = tokio::time::Instant::now();
        loop {
            let started = tokio::time::Instant::now();
            let end = session.run(want_snapshot, &stop).await;
            shared.stats.connected(false);
            want_snapshot = false;
            if started.elapsed() >= HEALTHY {
                backoff.reset();
            }
            let wait = match end {
                End::Stopped => break,
                End::WantSnapshot => {
                    tracing::info!("asking for a new snapshot to start a new generation on disk");
                    want_snapshot = true;
                    backoff.next(None)
                }
                End::Failed { error, retry_after } => {
                    shared.stats.failed();
                    let wait = backoff.next(retry_after);
                    tracing::warn!(%error, retry_in_ms = wait.as_millis(), "the stream from the control plane ended");
                    wait
                }
            };
            if session.position().is_some() && !shared.disk_is_active() && last_disk_retry.elapsed() >= DISK_RETRY {
                last_disk_retry = tokio::time::Instant::now();
                want_snapshot = true;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => break,
            }
        }
        session.keep_bookmark().await;
        tracing::info!("sync stopped");
    }
}

/// Restores state from disk and keeps it in step until `stop`.
pub async fn run(
    config: SyncClientConfig,
    state: Arc<State>,
    clock: SharedClock,
    stop: CancellationToken,
) -> Result<(), OpenError> {
    SyncClient::open(config, state, clock)?.run(stop).await;
    Ok(())
}

// === impl Shared ===

impl Shared {
    /// Runs `work` on the disk, if there is one.
    fn with_disk<T>(&self, work: impl FnOnce(&mut Disk) -> T) -> Option<T> {
        let mut disk = self.disk.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut disk);
        self.stats.disk_errors(disk.errors());
        Some(result)
    }

    fn disk_is_active(&self) -> bool {
        self.with_disk(|d| d.is_active()).unwrap_or(true)
    }
}

#[cfg(test)]
pub(super) mod tests;
