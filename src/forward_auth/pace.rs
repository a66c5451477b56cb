//! A connection on which the head of a request, once begun, has to be there in time.
//!
//! Plane: hot path at its edge. Between requests a proxy's connection may rest for hours; a client that sends its head byte
//! by byte may not. What comes too late is an error of the connection, which ends it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

const RESTS: u8 = 0;
const READS_HEAD: u8 = 1;
const ANSWERS: u8 = 2;

/// What a connection is at.
#[derive(Debug, Clone, Default)]
pub(super) struct Phase(Arc<AtomicU8>);

/// The connection is at an answer, until this is dropped.
#[derive(Debug)]
pub(super) struct AtAnswer(Phase);

/// Reads with that bound.
#[derive(Debug)]
pub(super) struct Paced<IO> {
    io: IO,
    phase: Phase,
    within: Duration,
    until: Option<Pin<Box<Sleep>>>,
}

// === impl Phase ===

impl Phase {
    /// The head is there.
    pub(super) fn answer(&self) -> AtAnswer {
        self.0.store(ANSWERS, Ordering::Relaxed);
        AtAnswer(self.clone())
    }

    fn is(&self, phase: u8) -> bool {
        self.0.load(Ordering::Relaxed) == phase
    }
}

impl Drop for AtAnswer {
    fn drop(&mut self) {
        self.0.0.store(RESTS, Ordering::Relaxed);
    }
}

// === impl Paced ===

impl<IO> Paced<IO> {
    pub(super) fn new(io: IO, phase: Phase, within: Duration) -> Self {
        Self { io, phase, within, until: None }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Paced<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if polled.is_ready() {
            if buf.filled().len() > before && self.phase.is(RESTS) {
                self.phase.0.store(READS_HEAD, Ordering::Relaxed);
                self.until = Some(Box::pin(tokio::time::sleep(self.within)));
            }
            return polled;
        }
        if !self.phase.is(READS_HEAD) {
            self.until = None;
        }
        match self.until.as_mut().map(|until| until.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Some(Poll::Pending) | None => Poll::Pending,
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Paced<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_connection_may_rest_but_a_head_that_has_begun_has_to_come() {
        let (mut client, server) = tokio::io::duplex(64);
        let phase = Phase::default();
        let mut paced = Paced::new(server, phase.clone(), WITHIN);
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, paced.read_u8()).await.is_err(), "it rests");
        for byte in b"GET" {
            client.write_u8(*byte).await.unwrap();
            assert_eq!(paced.read_u8().await.unwrap(), *byte);
        }
        // The head is complete: while it is answered, and before the next, time does not count.
        let answer = phase.answer();
        assert!(tokio::time::timeout(hour, paced.read_u8()).await.is_err(), "it is answered");
        drop(answer);
        assert!(tokio::time::timeout(hour, paced.read_u8()).await.is_err(), "it rests again");

        let begun = Instant::now();
        client.write_u8(b'G').await.unwrap();
        assert_eq!(paced.read_u8().await.unwrap(), b'G');
        tokio::time::sleep(Duration::from_secs(3)).await;
        // Another byte gives no more time.
        client.write_u8(b'E').await.unwrap();
        assert_eq!(paced.read_u8().await.unwrap(), b'E');
        assert_eq!(paced.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), WITHIN);
    }
}
