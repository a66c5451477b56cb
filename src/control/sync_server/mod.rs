//! The sync server: keeps sidecars in step with the log (`portcullis.sync.v1`).
//!
//! Plane: control. A sidecar's scope follows from its authenticated identity and the configuration, never from what
//! it says. INVARIANT: no byte of an out-of-scope grant is sent, its id included. Streams that resume and streams
//! that need a snapshot are admitted separately, so that a crowd of newcomers does not keep the others from their
//! revocations. Without TLS it serves loopback only. Fails closed: what is not authenticated gets nothing.

mod auth;
mod frames;
mod session;

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};

use self::auth::Authenticator;
use self::session::Session;
use super::fleet::Fleet;
use super::index::Index;
use super::keys::Keys;
use super::token_review::{TokenReviewSettings, TokenReviews};
use crate::clock::SharedClock;
use crate::telemetry::ControlMetrics;
use crate::tls::{AcceptLimits, Listen, PeerInfo};
use crate::wire::proto::sync_server::{Sync, SyncServer};
use crate::wire::proto::{ClientFrame, ServerFrame};
use crate::wire::{RETRY_AFTER, SigningKey};

/// The largest frame that is sent. One revision is one frame, so the API keeps a revision below this.
pub const MAX_FRAME_BYTES: usize = 64 * 1024 * 1024;

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
    config: SyncServerConfig,
    auth: Authenticator,
    streams: Arc<Semaphore>,
    snapshots: Arc<Semaphore>,
    stop: CancellationToken,
}

struct Service(Arc<Shared>);

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
    let limits = AcceptLimits { handshake: Duration::from_secs(10), pending: 256, connections };
    let accepted = crate::tls::accept(listener, config.tls.clone(), limits, stop.clone());
    let incoming = ReceiverStream::new(accepted).map(Ok::<_, std::io::Error>);
    let auth = Authenticator {
        index: Arc::clone(&deps.index),
        trusted: config.trusted_issuers.clone(),
        audience: config.audience.clone(),
        cache: Mutex::new(None),
        keys: deps.keys.clone(),
        reviews: TokenReviews::new(config.token_review.clone()),
    };
    let shared = Arc::new(Shared {
        index: deps.index,
        fleet: deps.fleet,
        key: deps.key,
        clock: deps.clock,
        metrics: deps.metrics,
        auth,
        streams: Arc::new(Semaphore::new(config.max_streams)),
        snapshots: Arc::new(Semaphore::new(config.max_snapshots)),
        config,
        stop: stop.clone(),
    });
    let service = SyncServer::new(Service(shared))
        .max_decoding_message_size(64 * 1024)
        .max_encoding_message_size(MAX_FRAME_BYTES);
    // A sidecar needs one stream; a few more let a new one start before the old one is noticed to be dead.
    tonic::transport::Server::builder()
        .max_concurrent_streams(8)
        .concurrency_limit_per_connection(8)
        .http2_max_pending_accept_reset_streams(Some(20))
        .http2_max_local_error_reset_streams(Some(20))
        .http2_max_header_list_size(32 * 1024)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(2 * 1024 * 1024)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await?;
    Ok(())
}

#[tonic::async_trait]
impl Sync for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<ServerFrame, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<ClientFrame>>) -> Result<Response<Self::WatchStream>, Status> {
        let shared = &self.0;
        let Ok(permit) = Arc::clone(&shared.streams).try_acquire_owned() else {
            return Err(exhausted("too many streams", shared.config.retry_after));
        };
        let (metadata, extensions, inbound) = request.into_parts();
        let peer = extensions.get::<PeerInfo>();
        let refused = |e: &Status| {
            tracing::warn!(peer = ?peer.and_then(|p| p.address), reason = e.message(), "a sync stream was refused");
        };
        let principal = shared.auth.authenticate(peer, &metadata, shared.clock.now().wall).inspect_err(refused)?;
        let Some(point) = shared.fleet.point(&principal.identity) else {
            tracing::warn!(identity = %principal.identity, "a sync stream was refused: not an enforcement point");
            return Err(Status::permission_denied(format!(
                "`{}` is not configured as an enforcement point",
                principal.identity
            )));
        };
        // Last: nobody but an enforcement point makes us ask an API server.
        shared.auth.confirm(&principal, &metadata).await.inspect_err(refused)?;
        // Two frames at most wait here; flow control does the rest.
        let (out, frames) = mpsc::channel(2);
        let session = Session { shared: Arc::clone(shared), principal, point, out };
        tokio::spawn(async move {
            session.run(inbound).await;
            drop(permit);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }
}

fn exhausted(message: &str, retry_after: Duration) -> Status {
    with_retry(Code::ResourceExhausted, message, retry_after)
}

fn unavailable(message: &str, retry_after: Duration) -> Status {
    with_retry(Code::Unavailable, message, retry_after)
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
