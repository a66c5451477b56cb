//! The door without a listener: a message in, an answer out, or one connection over whatever carries bytes.
//!
//! Feature `testing`. Plane: tests and benches, which count instructions and allocations of exactly what a connection
//! runs. Adds nothing of its own: what it answers is what the door answers, so a count here is a count there.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Config;
use super::connection::connection;
use super::health::Health;
use super::service::Door;
use crate::cache::Gate;
use crate::door::Checks;
use crate::drain;
use crate::telemetry::Telemetry;

/// A door that nobody can connect to.
#[derive(Debug)]
pub struct Bare {
    door: Arc<Door>,
    _drain: drain::Drain,
    signal: drain::Signal,
}

// === impl Bare ===

impl Bare {
    /// With its verification threads, which are an error when they cannot be started.
    pub async fn new(gate: Arc<Gate>, telemetry: Arc<Telemetry>, config: Config) -> io::Result<Self> {
        let checks = Checks::new(gate, telemetry, &config.checks())?;
        let health = Health::new().await;
        let door = Door::new(Arc::clone(checks.desk()), config, health.service());
        let (drain, signal) = drain::channel();
        Ok(Self { door: Arc::new(door), _drain: drain, signal })
    }

    /// Answers a `CheckRequest` on this thread, length prefix of gRPC included in the answer but not in the message.
    /// `None` when that takes the verification of a signature, which is not waited for.
    pub fn answer(&self, message: &[u8]) -> Option<Bytes> {
        self.door.answer_now(message)
    }

    /// Serves one connection to its end.
    pub async fn serve<IO>(&self, io: IO)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        connection(io, Arc::clone(&self.door), self.signal.clone()).await;
    }
}
