//! A whole process: runtimes, log, panic hook, signals.
//!
//! Plane: composition. The request path has a runtime of its own, with a thread for each core; everything else shares
//! another. SIGTERM or SIGINT begins the drain, a second one ends it at once.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::{BuildError, Deps, RunError, control, descriptors, sidecar};
use crate::cache::coalesce;
use crate::config::{ControlConfig, SidecarConfig};
use crate::drain::{self, Drain};
use crate::readiness::Readiness;
use crate::telemetry::LogError;

/// Threads of the runtime for admin, sync and telemetry.
const SUPPORT_THREADS: usize = 2;
/// A control plane that is asked to stop has this long.
const CONTROL_DRAIN: Duration = Duration::from_secs(10);

/// Why a process failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not start.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// It ended unasked.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The log could not be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The operating system refused threads or signals.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// The two runtimes of a process.
#[derive(Debug)]
pub struct Runtimes {
    hot: Runtime,
    support: Runtime,
}

// === impl Runtimes ===

impl Runtimes {
    /// Starts both.
    pub fn start() -> io::Result<Self> {
        let mut hot = Builder::new_multi_thread();
        let hot = hot.enable_all().thread_name("checks").on_thread_park(coalesce::before_park).build()?;
        let support =
            Builder::new_multi_thread().worker_threads(SUPPORT_THREADS).enable_all().thread_name("support").build()?;
        Ok(Self { hot, support })
    }

    /// Runs `main` on the support runtime; gives it the handles of both.
    pub fn run<T>(self, main: impl AsyncFnOnce(tokio::runtime::Handle, tokio::runtime::Handle) -> T) -> T {
        let result = self.support.block_on(main(self.hot.handle().clone(), self.support.handle().clone()));
        self.hot.shutdown_timeout(Duration::from_secs(1));
        self.support.shutdown_timeout(Duration::from_secs(1));
        result
    }
}

/// Runs a sidecar until it is told to end.
pub fn sidecar(config: SidecarConfig) -> Result<(), ProcessError> {
    descriptors::raise();
    Runtimes::start()?.run(async |hot, support| {
        let logging = super::log(&config.telemetry, "portcullis-sidecar")?;
        log_panics();
        let deadline = config.drain_deadline;
        let bound = sidecar::build(config, &Deps::system(&logging, hot, support))?;
        let readiness = bound.readiness().clone();
        let (drain, signal) = drain::channel();
        until_told(bound.run(signal), &drain, &readiness, deadline).await
    })
}

/// Runs a control plane until it is told to end.
pub fn control(config: ControlConfig) -> Result<(), ProcessError> {
    let descriptors = descriptors::raise();
    Runtimes::start()?.run(async |hot, support| {
        let logging = super::log(&config.telemetry, "portcullis-control")?;
        log_panics();
        let wanted = config.sync.max_streams as u64;
        if descriptors < wanted {
            tracing::warn!(
                descriptors,
                wanted,
                "this process may have fewer connections open than it would serve sidecars"
            );
        }
        let bound = control::build(config, &Deps::system(&logging, hot, support)).await?;
        let readiness = bound.readiness().clone();
        let (drain, signal) = drain::channel();
        until_told(bound.run(signal), &drain, &readiness, CONTROL_DRAIN).await
    })
}

/// Runs `work`, and drains it when a signal says so.
pub async fn until_told(
    work: impl Future<Output = Result<(), RunError>>,
    drain: &Drain,
    readiness: &Readiness,
    deadline: Duration,
) -> Result<(), ProcessError> {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        result = &mut work => return Ok(result?),
        told = drain::on_termination(drain, readiness, deadline) => told?,
    }
    Ok(work.await?)
}

/// Panics become log lines; what panicked is answered for by who caught it.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("no message");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, message, "panic");
    }));
}
