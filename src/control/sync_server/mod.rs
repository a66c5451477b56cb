//! The sync server: keeps sidecars in step with the log (`portcullis.sync.v1`).
//!
//! Plane: control. A sidecar's scope follows from its authenticated identity and the configuration, never from what
//! it says. INVARIANT: no byte of an out-of-scope grant is sent, its id included. Streams that resume and streams
//! that need a snapshot are admitted separately, so that a crowd of newcomers does not keep the others from their
//! revocations. Without TLS it serves loopback only. Fails closed: what is not authenticated gets nothing.

mod admission;
mod auth;
mod door;
mod feed;
mod frames;
mod session;
mod snapshot;
mod uses;

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status, Streaming};

use self::admission::{Line, Returns};
use self::auth::Authenticator;
use self::door::{Door, Outbound};
use self::feed::{Feed, Pace};
use self::frames::Sealer;
use self::session::Session;
use super::fleet::{Fleet, Point};
use super::index::Index;
use super::keys::Keys;
use super::token_review::TokenReviewSettings;
use super::uses::Uses;
use super::workload_identity::{Vouchers, WorkloadIdentity};
use crate::clock::SharedClock;
use crate::telemetry::ControlMetrics;
use crate::tls::{AcceptLimits, Listen, PeerInfo};
use crate::wire::proto::ClientFrame;
use crate::wire::{RETRY_AFTER, ScopeId, SigningKey};

/// The largest frame that is sent. One revision is one frame, so the API keeps a revision below this.
pub const MAX_FRAME_BYTES: usize = 64 * 1024 * 1024;

/// How many handshakes may be computing at a time. Fewer keep a revocation from waiting, more let a fleet back in sooner:
/// so many take about ten milliseconds of one core, which is what a wake-up then waits at most.
const HANDSHAKES_COMPUTING: usize = 24;
/// What a sidecar may send on a stream before it is read.
const INBOUND_WINDOW: u32 = 64 * 1024;
/// How long revisions with nothing in scope are gathered into one empty delta: for each stream, at least and at most.
const LINGER_EACH: Duration = Duration::from_micros(50);
const LINGER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));
/// How long after a delta the next one is gathered: for each stream, and at most. About what it takes to tell them.
const GATHER_EACH: Duration = Duration::from_micros(10);
const MAX_GATHER: Duration = Duration::from_millis(100);

/// Settings of the server.
#[derive(Debug, Clone)]
pub struct SyncServerConfig {
    /// TLS; without it only a loopback listener is served.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// The audience that a sidecar's token must name.
    pub audience: String,
    /// Names of the issuers that may vouch for sidecars.
    pub trusted_issuers: Vec<String>,
    /// Which tokens an API server has to confirm.
    pub token_review: TokenReviewSettings,
    /// How long a `strict` route may rely on a bookmark.
    pub lease: Duration,
    /// How often bookmarks are sent.
    pub bookmark_interval: Duration,
    /// How many streams are served.
    pub max_streams: usize,
    /// How many of them may be receiving a snapshot.
    pub max_snapshots: usize,
    /// How long a sidecar that was turned away is asked to wait.
    pub retry_after: Duration,
    /// How long a frame may wait for a sidecar to read it.
    pub send_timeout: Duration,
    /// How long a sidecar may take to say where it stands.
    pub hello_timeout: Duration,
}

/// What the server works on.
#[derive(Debug, Clone)]
pub struct SyncServerDeps {
    /// The log.
    pub index: Arc<Index>,
    /// The enforcement points.
    pub fleet: Arc<Fleet>,
    /// Signs payloads.
    pub key: Arc<SigningKey>,
    /// The time.
    pub clock: SharedClock,
    /// Told how long each commit took to be acknowledged.
    pub metrics: Arc<ControlMetrics>,
    /// Told of keys that tokens name and issuers do not have.
    pub keys: Option<Arc<Keys>>,
    /// Hands out the uses of grants. Without it, none are.
    pub uses: Option<Arc<Uses>>,
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Without TLS, other machines could read everything.
    #[error("refusing to serve sync on `{0}` without TLS: only a loopback address may go without")]
    NotLoopback(std::net::SocketAddr),
    /// The listener's address cannot be read.
    #[error("the listener has no address: {0}")]
    Listener(#[from] std::io::Error),
    /// The transport failed.
    #[error("sync transport: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// What all streams share.
struct Shared {
    index: Arc<Index>,
    fleet: Arc<Fleet>,
    key: Arc<SigningKey>,
    clock: SharedClock,
    metrics: Arc<ControlMetrics>,
    uses: Option<Arc<Uses>>,
    config: SyncServerConfig,
    auth: Authenticator,
    streams: Arc<Semaphore>,
    snapshots: Line,
    returns: Returns,
    pace: Arc<ByStreams>,
    /// The feed of each scope that has a stream; no more entries than there are enforcement points.
    feeds: Mutex<HashMap<ScopeId, Weak<Feed>>>,
    /// How many bytes of messages the feeds keep.
    kept: Arc<AtomicUsize>,
    stop: CancellationToken,
}

/// Paces by how many streams there are: more of them take longer to be told.
struct ByStreams {
    places: Arc<Semaphore>,
    most: usize,
}

impl Default for SyncServerConfig {
    fn default() -> Self {
        Self {
            tls: None,
            audience: "portcullis-control".to_owned(),
            trusted_issuers: Vec::new(),
            token_review: TokenReviewSettings::default(),
            lease: Duration::from_secs(10),
            bookmark_interval: Duration::from_secs(2),
            max_streams: 12_000,
            max_snapshots: 16,
            retry_after: Duration::from_secs(1),
            send_timeout: Duration::from_secs(30),
            hello_timeout: Duration::from_secs(10),
        }
    }
}

/// Serves `listener` until `stop`; open streams end with it.
pub async fn serve<L: Listen>(
    listener: L,
    deps: SyncServerDeps,
    config: SyncServerConfig,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let address = listener.address()?;
    if config.tls.is_none() && !address.ip().is_loopback() {
        return Err(ServeError::NotLoopback(address));
    }
    // A few more than streams, for those that are on their way out or in.
    let connections = config.max_streams.saturating_add(256);
    let limits = AcceptLimits {
        handshake: Duration::from_secs(10),
        pending: connections,
        computing: HANDSHAKES_COMPUTING,
        connections,
    };
    let accepted = crate::tls::accept(listener, config.tls.as_ref().map(without_resumption), limits, stop.clone());
    let incoming = ReceiverStream::new(accepted).map(Ok::<_, std::io::Error>);
    let tokens = WorkloadIdentity::new(
        Arc::clone(&deps.index),
        Vouchers::Named(config.trusted_issuers.clone()),
        deps.keys.clone(),
        config.token_review.clone(),
    );
    let auth = Authenticator { tokens, audience: config.audience.clone() };
    let streams = Arc::new(Semaphore::new(config.max_streams));
    let shared = Arc::new(Shared {
        index: deps.index,
        fleet: deps.fleet,
        key: deps.key,
        clock: deps.clock,
        metrics: deps.metrics,
        uses: deps.uses,
        auth,
        pace: Arc::new(ByStreams { places: Arc::clone(&streams), most: config.max_streams }),
        streams,
        snapshots: Line::new(config.max_snapshots),
        returns: Returns::new(config.retry_after),
        feeds: Mutex::default(),
        kept: Arc::default(),
        config,
        stop: stop.clone(),
    });
    // A sidecar needs one stream; a few more let a new one start before the old one is noticed to be dead.
    tonic::transport::Server::builder()
        .max_concurrent_streams(8)
        .concurrency_limit_per_connection(8)
        .http2_max_pending_accept_reset_streams(Some(20))
        .http2_max_local_error_reset_streams(Some(20))
        .http2_max_header_list_size(32 * 1024)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        // What a sidecar may send before it is read. It sends little, and there are many.
        .initial_stream_window_size(INBOUND_WINDOW)
        .initial_connection_window_size(2 * INBOUND_WINDOW)
        .add_service(Door(shared))
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await?;
    Ok(())
}

/// A sidecar makes a new TLS client for each connection and never resumes, so nothing is kept or sent for it to do so.
fn without_resumption(tls: &Arc<rustls::ServerConfig>) -> Arc<rustls::ServerConfig> {
    let mut tls = rustls::ServerConfig::clone(tls);
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Arc::new(tls)
}

// === impl Shared ===

impl Shared {
    /// Opens a stream: what it sends arrives on the channel.
    async fn watch(
        self: &Arc<Self>,
        peer: Option<PeerInfo>,
        metadata: MetadataMap,
        inbound: Streaming<ClientFrame>,
    ) -> Result<mpsc::Receiver<Outbound>, Status> {
        let Ok(permit) = Arc::clone(&self.streams).try_acquire_owned() else {
            return Err(exhausted("too many streams", self.returns.hint(Duration::ZERO)));
        };
        let peer = peer.as_ref();
        let refused = |e: &Status| {
            tracing::warn!(peer = ?peer.and_then(|p| p.address), reason = e.message(), "a sync stream was refused");
        };
        let principal = self.auth.authenticate(peer, &metadata, self.clock.now().wall).inspect_err(refused)?;
        let Some(point) = self.fleet.point(&principal.identity) else {
            tracing::warn!(identity = %principal.identity, "a sync stream was refused: not an enforcement point");
            return Err(Status::permission_denied(format!(
                "`{}` is not configured as an enforcement point",
                principal.identity
            )));
        };
        // Last: nobody but an enforcement point makes us ask an API server.
        self.auth.confirm(&principal, &metadata).await.inspect_err(refused)?;
        // Two frames at most wait here; flow control does the rest.
        let (out, frames) = mpsc::channel(2);
        let session = Session { shared: Arc::clone(self), principal, point, out };
        tokio::spawn(async move {
            session.run(inbound).await;
            drop(permit);
        });
        Ok(frames)
    }

    /// The feed of an enforcement point's scope.
    fn feed(&self, point: &Point) -> Arc<Feed> {
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feed) = feeds.get(&point.scope).and_then(Weak::upgrade) {
            return feed;
        }
        let sealer = Sealer::new(Arc::clone(&self.key), self.index.position().epoch, &point.scope);
        let feed = Feed::start(Arc::clone(&self.index), sealer, point, Arc::clone(&self.pace), &self.kept);
        feeds.insert(point.scope.clone(), Arc::downgrade(&feed));
        feed
    }

    fn unavailable(&self, message: &str) -> Status {
        with_retry(Code::Unavailable, message, self.returns.hint(Duration::ZERO))
    }
}

// === impl ByStreams ===

impl ByStreams {
    fn times(&self, each: Duration) -> Duration {
        let streams = self.most.saturating_sub(self.places.available_permits());
        each.saturating_mul(u32::try_from(streams).unwrap_or(u32::MAX))
    }
}

impl Pace for ByStreams {
    fn linger(&self) -> Duration {
        self.times(LINGER_EACH).clamp(LINGER.0, LINGER.1)
    }

    fn gather(&self) -> Duration {
        // Below what a timer can tell apart there is nothing to gather.
        Some(self.times(GATHER_EACH)).filter(|d| *d >= Duration::from_millis(1)).unwrap_or_default().min(MAX_GATHER)
    }
}

fn exhausted(message: &str, retry_after: Duration) -> Status {
    with_retry(Code::ResourceExhausted, message, retry_after)
}

fn with_retry(code: Code, message: &str, retry_after: Duration) -> Status {
    let mut status = Status::new(code, message);
    let ms = retry_after.as_millis().to_string();
    if let Ok(value) = ms.parse() {
        status.metadata_mut().insert(RETRY_AFTER, value);
    }
    status
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}
