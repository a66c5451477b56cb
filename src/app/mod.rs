//! Composition: from a validated configuration to a running process.
//!
//! Plane: composition. `sidecar::build` and `control::build` bind everything first, so that a port that is taken is an
//! error at start, and hand back what is bound with its addresses; `run` serves until drained. The clock, the binder
//! and the runtimes are passed in. INVARIANT: the request path has a runtime of its own; nothing that admin, sync or
//! telemetry does can take its threads. Start-up order: configuration, telemetry, state from disk, listeners, sync.

mod admin;
pub mod control;
pub mod descriptors;
pub mod files;
mod in_line;
mod keys;
mod listen;
mod pinned;
pub mod process;
pub mod sidecar;
pub mod upstream;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;

pub use self::listen::{Binder, SystemBinder};
use crate::clock::{SharedClock, SystemClock};
use crate::config;
use crate::telemetry::{self, CheckTracer, LevelHandle, LogConfig, Logging};

/// What a composition is given beside its configuration.
#[derive(Debug, Clone)]
pub struct Deps {
    /// The time.
    pub clock: SharedClock,
    /// Binds listeners.
    pub binder: Arc<dyn Binder>,
    /// Changes the log level.
    pub level: LevelHandle,
    /// Makes the spans of checks, when traces are exported.
    pub tracer: Option<CheckTracer>,
    /// The runtime of the request path.
    pub hot: Handle,
    /// The runtime of everything else.
    pub support: Handle,
}

/// Why a process cannot start. Names the key, the file or the address.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A listener cannot be bound.
    #[error("`{key}`: cannot listen on `{address}`: {source}{}", listen::hint(source))]
    Listen {
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Threads cannot be started.
    #[error("`listeners.ext_authz.pinned_threads`: {threads} threads cannot be started: {source}")]
    Threads {
        /// How many.
        threads: u16,
        /// Why not.
        source: std::io::Error,
    },
    /// The threads that verify signatures cannot be started.
    #[error("`limits.verification_threads`: they cannot be started: {0}")]
    VerificationThreads(std::io::Error),
    /// A file or directory cannot be used.
    #[error("`{}`: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Certificates or keys.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// The reverse proxy's certificates.
    #[error(transparent)]
    Proxy(#[from] crate::proxy::StartError),
    /// The control plane's store.
    #[error(transparent)]
    Store(#[from] crate::control::store::StoreError),
    /// The control plane's operators.
    #[error(transparent)]
    Operators(#[from] crate::control::operators::OperatorError),
    /// The keys that tokens are signed with.
    #[error("signing keys: {0}")]
    TokenKeys(#[from] crate::control::token_keys::TokenKeyError),
    /// The sidecar's side of sync.
    #[error(transparent)]
    Sync(#[from] crate::sync::OpenError),
    /// Two metrics have one name.
    #[error("metrics: {0}")]
    Metrics(String),
}

/// Why a running process ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A server failed.
    #[error("{server} ended: {reason}")]
    Ended {
        /// Which.
        server: &'static str,
        /// Why.
        reason: String,
    },
}

// === impl Deps ===

impl Deps {
    /// This machine's clock and sockets, and the runtimes that are passed in.
    pub fn system(logging: &Logging, hot: Handle, support: Handle) -> Self {
        Self {
            clock: Arc::new(SystemClock::new()),
            binder: Arc::new(SystemBinder),
            level: logging.level().clone(),
            tracer: logging.check_tracer(),
            hot,
            support,
        }
    }
}

/// Sets up the process's log as configured. Within a tokio runtime, which also carries the export of traces.
pub fn log(config: &config::Telemetry, service_name: &'static str) -> Result<Logging, telemetry::LogError> {
    let format = match config.log_format {
        config::LogFormat::Json => telemetry::LogFormat::Json,
        config::LogFormat::Text => telemetry::LogFormat::Text,
    };
    telemetry::init(&LogConfig {
        level: config.log_level.name().to_owned(),
        format,
        otlp_endpoint: config.otlp_endpoint.clone(),
        service_name,
    })
}
