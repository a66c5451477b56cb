//! A fleet in one process: as many sidecars as a control plane is to be measured with, without the engine.
//!
//! Plane: composition; a client of the control plane, part of none. Each sidecar is what a real one is on the wire: its
//! own TCP connection and TLS handshake, its own credential, hello, frames in order, acknowledgements, full-jitter
//! backoff with the server's hint. What it leaves out is said here: it applies nothing, so an acknowledgement costs no
//! compilation, and only one in `verify_every` checks signatures, so that the fleet's own cost does not hide the control
//! plane's. Every frame is decoded and checked for scope and order; one that does not fit ends the stream and is counted.

mod api;
mod drive;
mod identities;
mod io;
mod measure;
mod process;
mod report;
mod sidecar;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Uri;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use self::api::{Api, ApiError};
pub use self::drive::{Bench, DriveError, Plan};
pub use self::identities::{Credential, Identities, IdentitiesError, MANIFEST};
pub use self::measure::{Burst, Rounds, bursts, revocations};
pub use self::process::{Process, Usage, max_descriptors};
pub use self::report::{Joined, Percentiles, Report, Spread};
use self::sidecar::Sidecar;
use crate::sync::BackoffConfig;
use crate::wire::{Revision, VerifyKey};

/// Descriptors beside those of the sidecars.
const SPARE_DESCRIPTORS: u64 = 128;
/// Into how many parts what sidecars note is split, so that they do not wait for each other.
const SHARDS: usize = 16;

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Options {
    /// The control plane's sync address.
    pub control: Uri,
    /// The CA certificates of the control plane; without it, `http://` to loopback only.
    pub ca_file: Option<std::path::PathBuf>,
    /// The control plane's public key.
    pub verify_key: VerifyKey,
    /// How many sidecars.
    pub sidecars: usize,
    /// One sidecar in so many verifies signatures; 1 is all, 0 none.
    pub verify_every: usize,
    /// How long connecting may take, and how long the control plane may be silent.
    pub timeout: Duration,
    /// Waits between attempts.
    pub backoff: BackoffConfig,
}

/// The running fleet.
#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

/// What went over and went wrong so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Sidecars that have a stream and the lease that says that they are current.
    pub current: usize,
    /// Connections tried.
    pub attempts: u64,
    /// Attempts that were refused, and streams that ended.
    pub failures: u64,
    /// Of those, refusals with a hint when to come back.
    pub turned_away: u64,
    /// Frames that broke the protocol: a bad signature, another scope, a gap. Has to be 0.
    pub violations: u64,
    /// Frames taken.
    pub frames: u64,
    /// Signatures that were verified.
    pub verified: u64,
    /// Snapshots taken.
    pub snapshots: u64,
    /// Bytes received, TLS included.
    pub received: u64,
    /// Bytes sent, TLS included.
    pub sent: u64,
}

/// Why there is no fleet.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// Too few descriptors.
    #[error("{0} sidecars need {1} file descriptors, and this process may have {2}: raise `ulimit -n`")]
    Descriptors(usize, u64, u64),
    /// No credentials.
    #[error(transparent)]
    Identities(#[from] IdentitiesError),
    /// The settings do not fit.
    #[error(transparent)]
    Connect(#[from] crate::sync::ConnectError),
}

/// That a sidecar has applied every revision after `from`, up to and including `to`.
#[derive(Debug, Clone, Copy)]
struct Step {
    from: Revision,
    to: Revision,
    at: Instant,
}

#[derive(Debug, Clone, Copy, Default)]
struct Command {
    /// Streams of an earlier generation end, and their sidecars come back at once.
    generation: u64,
    /// Without what they had.
    forget: bool,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    command: watch::Sender<Command>,
    steps: Box<[Mutex<Vec<Step>>]>,
    noting: std::sync::atomic::AtomicBool,
    current: AtomicUsize,
    attempts: AtomicU64,
    failures: AtomicU64,
    turned_away: AtomicU64,
    violations: AtomicU64,
    frames: AtomicU64,
    verified: AtomicU64,
    snapshots: AtomicU64,
    traffic: Arc<io::Traffic>,
    last_failure: Mutex<Option<String>>,
}

impl Fleet {
    /// Starts the sidecars, all at once. Call it within a runtime.
    pub fn start(options: Options, identities: &Identities) -> Result<Self, FleetError> {
        let (needed, allowed) = (options.sidecars as u64 + SPARE_DESCRIPTORS, max_descriptors());
        if needed > allowed {
            return Err(FleetError::Descriptors(options.sidecars, needed, allowed));
        }
        let count = options.sidecars;
        let shared = Arc::new(Shared {
            options,
            command: watch::Sender::default(),
            steps: (0..SHARDS).map(|_| Mutex::default()).collect(),
            noting: false.into(),
            current: AtomicUsize::new(0),
            attempts: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            violations: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            verified: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
            traffic: Arc::default(),
            last_failure: Mutex::new(None),
        });
        let mut tasks = JoinSet::new();
        let members = identities.take(count)?.into_iter().enumerate();
        let members: Vec<_> = members.map(|(n, c)| Sidecar::new(Arc::clone(&shared), n, c)).collect();
        if let Some(first) = members.first() {
            first.check()?;
        }
        for sidecar in members {
            // Boxed: the future of a connection that is being made is much larger than that of a stream.
            tasks.spawn(Box::pin(sidecar.run()));
        }
        Ok(Self { shared, tasks })
    }

    /// How many sidecars there are.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Ends every stream; the sidecars come back at once, and without what they had if they are to `forget` it.
    pub fn reconnect(&self, forget: bool) {
        self.shared.command.send_modify(|c| *c = Command { generation: c.generation + 1, forget });
    }

    /// Waits until every sidecar is current, for `limit` at most. Tells how long it took; `None` if it did not happen.
    pub async fn all_current(&self, limit: Duration) -> Option<Duration> {
        let start = Instant::now();
        while self.counts().current < self.len() {
            if start.elapsed() >= limit {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Some(start.elapsed())
    }

    /// What went over and went wrong so far.
    pub fn counts(&self) -> Counts {
        let s = &self.shared;
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Counts {
            current: s.current.load(Ordering::Relaxed),
            attempts: read(&s.attempts),
            failures: read(&s.failures),
            turned_away: read(&s.turned_away),
            violations: read(&s.violations),
            frames: read(&s.frames),
            verified: read(&s.verified),
            snapshots: read(&s.snapshots),
            received: s.traffic.received(),
            sent: s.traffic.sent(),
        }
    }

    /// Why a stream ended last.
    pub fn last_failure(&self) -> Option<String> {
        self.shared.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins to note when revisions are applied, and forgets what was noted.
    fn note(&self) {
        self.take_steps();
        self.shared.noting.store(true, Ordering::SeqCst);
    }

    /// Waits until every sidecar has noted `revision`, for `limit` at most.
    async fn reached(&self, revision: Revision, limit: Duration) {
        let start = Instant::now();
        let count = |shard: &Mutex<Vec<Step>>| {
            let steps = shard.lock().unwrap_or_else(PoisonError::into_inner);
            steps.iter().filter(|s| s.from < revision && revision <= s.to).count()
        };
        while self.shared.steps.iter().map(count).sum::<usize>() < self.len() && start.elapsed() < limit {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What was noted.
    fn take_steps(&self) -> Vec<Step> {
        let take =
            |shard: &Mutex<Vec<Step>>| std::mem::take(&mut *shard.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.steps.iter().flat_map(take).collect()
    }
}

// === impl Shared ===

impl Shared {
    fn applied(&self, sidecar: usize, from: Revision, to: Revision, at: Instant) {
        if self.noting.load(Ordering::Relaxed)
            && let Some(shard) = self.steps.get(sidecar % SHARDS)
        {
            shard.lock().unwrap_or_else(PoisonError::into_inner).push(Step { from, to, at });
        }
    }
}

#[cfg(test)]
mod tests;
