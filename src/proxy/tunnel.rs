//! What is no HTTP any more: bytes both ways after an upgrade, until one side ends or it is not allowed any longer.
//!
//! Plane: hot path. INVARIANT: once it is cut, nothing more of the client reaches the upstream; the client of a WebSocket is
//! told with close code 1008, between two frames; every other connection is closed. At the end of a drain it is closed too.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use super::body::Held;
use super::websocket::{self, Frames};
use crate::authz::problem;
use crate::drain;

const BUFFER: usize = 16 << 10;
/// For the frame that has begun, and for the close frame.
const LAST_MOMENT: Duration = Duration::from_millis(100);

/// Both ends, once they have left HTTP, and what is held until it is over.
pub(super) struct Tunnel {
    pub(super) client: OnUpgrade,
    pub(super) upstream: OnUpgrade,
    pub(super) is_websocket: bool,
    pub(super) held: Arc<Held>,
    pub(super) drain: drain::Signal,
}

type Io = TokioIo<Upgraded>;

/// From the upstream to the client.
struct Down {
    from: ReadHalf<Io>,
    to: WriteHalf<Io>,
    buffer: Vec<u8>,
    /// What has been read and not written.
    pending: std::ops::Range<usize>,
    frames: Option<Frames>,
}

// === impl Tunnel ===

impl Tunnel {
    /// Until it is over.
    pub(super) async fn run(self) {
        let (client, upstream) = match tokio::try_join!(self.client, self.upstream) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "an upgrade came to nothing");
                return;
            }
        };
        let (mut from_client, to_client) = tokio::io::split(TokioIo::new(client));
        let (from_upstream, mut to_upstream) = tokio::io::split(TokioIo::new(upstream));
        let frames = self.is_websocket.then(Frames::default);
        let mut down = Down { from: from_upstream, to: to_client, buffer: vec![0; BUFFER], pending: 0..0, frames };
        let up = async {
            tokio::io::copy(&mut from_client, &mut to_upstream).await?;
            to_upstream.shutdown().await
        };
        let reason = tokio::select! {
            biased;
            denial = self.held.stream.cut() => problem::disclosed_reason(denial),
            ended = async { tokio::try_join!(up, down.run()) } => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection that had been upgraded broke");
                }
                return;
            }
            () = self.drain.expired() => return,
        };
        let _late = tokio::time::timeout(LAST_MOMENT, down.finish_frame()).await;
        if down.frames.as_ref().is_some_and(Frames::is_between) {
            let _late = tokio::time::timeout(LAST_MOMENT, down.close(reason)).await;
        }
    }
}

// === impl Down ===

impl Down {
    async fn run(&mut self) -> io::Result<()> {
        loop {
            if self.pending.is_empty() && !self.read().await? {
                return self.to.shutdown().await;
            }
            self.write(self.pending.len()).await?;
        }
    }

    /// Reads more. Whether there is any.
    async fn read(&mut self) -> io::Result<bool> {
        let read = self.from.read(&mut self.buffer).await?;
        self.pending = 0..read;
        Ok(read > 0)
    }

    /// Writes some of the next `most` bytes. Safe to drop: what was written has been counted.
    async fn write(&mut self, most: usize) -> io::Result<()> {
        let end = self.pending.end.min(self.pending.start.saturating_add(most));
        let piece = self.buffer.get(self.pending.start..end).unwrap_or_default();
        let written = self.to.write(piece).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        if let Some(frames) = &mut self.frames {
            frames.passed(piece.get(..written).unwrap_or_default());
        }
        self.pending.start += written;
        if self.pending.is_empty() {
            self.to.flush().await?;
        }
        Ok(())
    }

    /// Passes on what is left of a frame that has begun.
    async fn finish_frame(&mut self) -> io::Result<()> {
        while let Some(frames) = self.frames.as_ref().filter(|frames| !frames.is_between()) {
            let pending = self.buffer.get(self.pending.clone()).unwrap_or_default();
            let rest = frames.rest_of_frame(pending);
            if rest > 0 {
                self.write(rest).await?;
            } else if !self.read().await? {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn close(&mut self, reason: &str) -> io::Result<()> {
        self.to.write_all(&websocket::close(reason)).await?;
        self.to.flush().await?;
        self.to.shutdown().await
    }
}
