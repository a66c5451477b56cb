//! The socket of a client as the HTTP library sees it: every byte has been looked at before, and none is waited for too long.
//!
//! Plane: hot path. INVARIANT: after something that is refused, the library is given a byte that no head and no chunk may
//! hold, and then the end, so that it answers 400 in its turn, behind the answers to the requests before, and closes; within a body it is given an
//! error instead, because there the byte would be one of the body. After
//! a head that asks to leave HTTP nothing is read until the answer is known. Slow: a head that does not end in time, a body
//! that stops, a connection that rests, each end the connection; one with a request under way is not resting.
//! Long because what is waited for, and for how long, hangs on where in the bytes the client is.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

use super::head::{Follower, Refusal, Seen};

/// No method, header or chunk size has the first byte. The rest ends a head, before which the library does not look again.
const POISON: &[u8] = b"\0\r\n\r\n";
/// Read at once; more in a body, where more is to come.
const BUFFER: usize = 8 << 10;
const BODY_BUFFER: usize = 64 << 10;

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// From the first byte of a head to its last.
    pub(super) head: Duration,
    /// Between two pieces of a body, and between two requests.
    pub(super) idle: Duration,
}

/// What the service tells the guard of its connection, and what it is told.
#[derive(Debug, Default)]
pub(super) struct Tie {
    /// Requests whose answers have not ended.
    under_way: AtomicUsize,
    /// How a head that asks to leave HTTP was answered.
    leaves: AtomicU8,
    waker: AtomicWaker,
    refused: AtomicBool,
    /// Told when nothing is under way any more.
    idle: Notify,
}

const UNDECIDED: u8 = 0;
const STAYS: u8 = 1;
const LEFT: u8 = 2;

/// A request under way, until it is dropped.
#[derive(Debug)]
pub(super) struct UnderWay(std::sync::Arc<Tie>);

/// The socket.
pub(super) struct Guarded<S> {
    io: TokioIo<S>,
    tie: std::sync::Arc<Tie>,
    /// Absent for HTTP/2, and after HTTP has been left.
    follower: Option<Box<Follower>>,
    /// Read, and looked at up to `looked`; handed over up to `from`.
    buffer: Vec<u8>,
    from: usize,
    looked: usize,
    filled: usize,
    state: State,
    pace: Pace,
    /// Since when it is in this phase, and until when it may be.
    phase: Option<(Phase, Instant)>,
    /// Set anew only when it has run down: most phases end before.
    timer: Option<Pin<Box<Sleep>>>,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reads,
    /// Until the answer is known.
    Held,
    Refused,
    /// Refused within a body.
    Broken,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Rests,
    Head,
    Body,
}

// === impl Tie ===

impl Tie {
    /// Counts a request, which is under way until what is returned is dropped.
    pub(super) fn begin(self: &std::sync::Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::AcqRel);
        UnderWay(std::sync::Arc::clone(self))
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.under_way.load(Ordering::Acquire) == 0
    }

    /// Until what has left HTTP is over, if anything has.
    pub(super) async fn has_left(&self) {
        if self.leaves.load(Ordering::Acquire) != LEFT {
            return;
        }
        let mut idle = std::pin::pin!(self.idle.notified());
        loop {
            idle.as_mut().enable();
            if self.is_idle() {
                return;
            }
            idle.as_mut().await;
            idle.set(self.idle.notified());
        }
    }

    /// Whether the client was refused for how it wrote.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }

    /// Tells how a head that asked to leave HTTP is answered.
    pub(super) fn answer(&self, leaves: bool) {
        self.leaves.store(if leaves { LEFT } else { STAYS }, Ordering::Release);
        self.waker.wake();
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

// === impl Guarded ===

impl<S> Guarded<S> {
    /// For HTTP/1; `begun` has been read already.
    pub(super) fn http1(io: S, begun: &[u8], follower: Follower, tie: std::sync::Arc<Tie>, pace: Pace) -> Self {
        Self { follower: Some(Box::new(follower)), ..Self::http2(io, begun, tie, pace) }
    }

    /// For HTTP/2, whose frames leave nothing to be read in two ways.
    pub(super) fn http2(io: S, begun: &[u8], tie: std::sync::Arc<Tie>, pace: Pace) -> Self {
        Self {
            io: TokioIo::new(io),
            tie,
            follower: None,
            buffer: begun.to_vec(),
            from: 0,
            looked: 0,
            filled: begun.len(),
            state: State::Reads,
            pace,
            phase: None,
            timer: None,
            stalled: None,
        }
    }

    /// Looks at what has been read and not looked at.
    fn look(&mut self) {
        let Some(follower) = &mut self.follower else {
            self.looked = self.filled;
            return;
        };
        let in_body = !follower.is_between() && !follower.is_in_head();
        let unseen = self.buffer.get(self.looked..self.filled).unwrap_or_default();
        match follower.follow(unseen) {
            Ok(Seen::All) => self.looked = self.filled,
            Ok(Seen::UpTo(n)) => {
                self.looked += n;
                self.tie.leaves.store(UNDECIDED, Ordering::Release);
                self.state = State::Held;
            }
            Err(refusal) => self.refuse(refusal, in_body),
        }
    }

    /// `in_body` says that the library waits for the rest of a body.
    fn refuse(&mut self, refusal: Refusal, in_body: bool) {
        tracing::debug!(%refusal, "a client is refused for how it writes HTTP");
        self.tie.refused.store(true, Ordering::Release);
        if in_body {
            // Whatever it were given would be of that body.
            (self.from, self.looked, self.filled) = (0, 0, 0);
            self.state = State::Broken;
            return;
        }
        // Requests that came whole in the same piece are not answered either: it was one client who wrote all of it.
        self.buffer.clear();
        self.buffer.extend_from_slice(POISON);
        (self.from, self.looked, self.filled) = (0, POISON.len(), POISON.len());
        self.state = State::Refused;
    }

    /// Hands over what has been looked at. Whether there was any.
    fn hand_over(&mut self, cursor: &mut ReadBufCursor<'_>) -> bool {
        let ready = self.buffer.get(self.from..self.looked).unwrap_or_default();
        let now = ready.len().min(cursor.remaining());
        let Some(piece) = ready.get(..now).filter(|piece| !piece.is_empty()) else { return false };
        cursor.put_slice(piece);
        self.from += now;
        if self.from == self.filled {
            (self.from, self.looked, self.filled) = (0, 0, 0);
        }
        true
    }

    /// Whether the answer to a head that asked to leave HTTP is known.
    fn is_released(&mut self, cx: &Context<'_>) -> bool {
        self.tie.waker.register(cx.waker());
        match self.tie.leaves.load(Ordering::Acquire) {
            UNDECIDED => return false,
            LEFT => self.follower = None,
            _ => {}
        }
        self.state = State::Reads;
        self.look();
        true
    }

    /// An error once the client has taken too long.
    fn poll_pace(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(follower) = &self.follower else { return Ok(()) };
        let phase = match (follower.is_between(), follower.is_in_head()) {
            (true, _) if !self.tie.is_idle() => {
                self.phase = None;
                return Ok(());
            }
            (true, _) => Phase::Rests,
            (false, true) => Phase::Head,
            (false, false) => Phase::Body,
        };
        let until = match self.phase {
            Some((known, until)) if known == phase => until,
            _ => {
                let allowed = if phase == Phase::Head { self.pace.head } else { self.pace.idle };
                let until = Instant::now() + allowed;
                self.phase = Some((phase, until));
                until
            }
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client took too long"));
            }
            timer.as_mut().reset(until);
        }
        Ok(())
    }

    /// Gives a client up that takes nothing of what is written.
    fn pace_write(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let until = self.pace.idle;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + until)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }

    /// How much is read at once.
    fn room(&self) -> usize {
        let in_body = self.follower.as_ref().is_some_and(|f| !f.is_between() && !f.is_in_head());
        if in_body { BODY_BUFFER } else { BUFFER }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Read for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.looked < this.filled && this.state == State::Reads {
                this.look();
            }
            if this.hand_over(&mut cursor) {
                return Poll::Ready(Ok(()));
            }
            match this.state {
                State::Reads => {}
                State::Held => {
                    if this.is_released(cx) {
                        continue;
                    }
                    return Poll::Pending;
                }
                State::Broken => {
                    this.state = State::Ended;
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the body is malformed")));
                }
                State::Refused => {
                    this.state = State::Ended;
                    return Poll::Ready(Ok(()));
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
            if this.follower.is_none() {
                return Pin::new(&mut this.io).poll_read(cx, cursor);
            }
            let room = this.room();
            if this.buffer.len() != room {
                this.buffer.resize(room, 0);
                this.buffer.shrink_to(room);
            }
            let mut read = ReadBuf::new(&mut this.buffer);
            match Pin::new(this.io.inner_mut()).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if read.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {
                    this.filled = read.filled().len();
                    // A body that goes on has its time anew.
                    if matches!(this.phase, Some((Phase::Body, _))) {
                        this.phase = None;
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    return this.poll_pace(cx).map_or_else(|slow| Poll::Ready(Err(slow)), |()| Poll::Pending);
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Write for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.pace_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.pace_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        Write::is_write_vectored(&self.io)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Reads until it is clear whether a client speaks HTTP/2, at most so many bytes as its preface has.
pub(super) async fn preface<S: AsyncRead + Unpin>(io: &mut S, begun: &mut Vec<u8>) -> io::Result<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    loop {
        if begun.len() >= PREFACE.len() || !PREFACE.starts_with(begun) {
            return Ok(begun.starts_with(PREFACE));
        }
        let mut piece = [0; PREFACE.len()];
        let wanted = PREFACE.len() - begun.len();
        let mut read = ReadBuf::new(piece.get_mut(..wanted).unwrap_or_default());
        ready_read(io, &mut read).await?;
        if read.filled().is_empty() {
            return Ok(false);
        }
        begun.extend_from_slice(read.filled());
    }
}

async fn ready_read<S: AsyncRead + Unpin>(io: &mut S, read: &mut ReadBuf<'_>) -> io::Result<()> {
    std::future::poll_fn(|cx| {
        ready!(Pin::new(&mut *io).poll_read(cx, read))?;
        Poll::Ready(Ok(()))
    })
    .await
}
