//! Answers over HTTP/2, taken piece by piece, and given up when their clients take none.
//!
//! Plane: hot path. A stream has a window of its own, which its client may never open: the connection goes on, and the answer
//! would hold its place at the upstream for ever. So each stream runs in a task that knows whether a piece has been offered
//! and not taken; when that is so for too long, or the request is not allowed any more, the stream is dropped, which resets
//! it. INVARIANT: what the upstream is slow with is no fault of the client, and is not counted. Pieces are small, so that a
//! slow client is seen to take some.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use tokio::time::{Instant, Sleep, sleep_until};

use super::body::{Broken, Held, Reply};

/// As large as a frame of HTTP/2 is unless its receiver wants larger ones.
const PIECE: usize = 16 << 10;

tokio::task_local! {
    static OFFERED: Offered;
}

/// What the body of a stream tells the task that it is in.
#[derive(Default)]
struct Offered {
    /// How many pieces have been asked for, and whether the last one waits for its client.
    pieces: Cell<(u64, bool)>,
    held: RefCell<Option<Arc<Held>>>,
}

/// Runs each stream of a connection in a task of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams {
    /// How long a client may take nothing.
    pub(super) patience: Duration,
}

/// An answer, in pieces that are told of.
#[derive(Debug)]
pub(super) struct Taken {
    reply: Reply,
    rest: Bytes,
}

// === impl Streams ===

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::spawn(OFFERED.scope(Offered::default(), until_given_up(stream, self.patience)));
    }
}

async fn until_given_up(stream: impl Future<Output = ()>, patience: Duration) {
    let mut stream = pin!(stream);
    let mut waits: Option<(u64, Instant)> = None;
    // Set anew only when it has run down: most pieces are taken at once.
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        ready_or(stream.as_mut().poll(cx), || {
            let (pieces, is_offered) = OFFERED.with(|offered| offered.pieces.get());
            if !is_offered {
                waits = None;
                return Poll::Pending;
            }
            if OFFERED.with(|offered| offered.is_cut(cx)) {
                return Poll::Ready(());
            }
            let until = match waits {
                Some((known, until)) if known == pieces => until,
                _ => Instant::now() + patience,
            };
            waits = Some((pieces, until));
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
            while timer.as_mut().poll(cx).is_ready() {
                if timer.deadline() >= until {
                    tracing::debug!("a client takes nothing of its answer");
                    return Poll::Ready(());
                }
                timer.as_mut().reset(until);
            }
            Poll::Pending
        })
    })
    .await;
}

fn ready_or(polled: Poll<()>, otherwise: impl FnOnce() -> Poll<()>) -> Poll<()> {
    if polled.is_ready() { polled } else { otherwise() }
}

// === impl Offered ===

impl Offered {
    fn is_asked(&self) {
        let (pieces, _) = self.pieces.get();
        self.pieces.set((pieces.wrapping_add(1), false));
    }

    fn is_given(&self) {
        let (pieces, _) = self.pieces.get();
        self.pieces.set((pieces, true));
    }

    /// Whether what is offered may not be taken any more.
    fn is_cut(&self, cx: &mut Context<'_>) -> bool {
        self.held.borrow().as_ref().is_some_and(|held| held.stream.poll_cut(cx).is_ready())
    }
}

// === impl Taken ===

impl Taken {
    /// In the task of its stream.
    pub(super) fn new(reply: Reply) -> Self {
        if let Some(held) = reply.held().cloned() {
            let _elsewhere = OFFERED.try_with(|offered| offered.held.replace(Some(held)));
        }
        Self { reply, rest: Bytes::new() }
    }

    fn is_cut(&self) -> bool {
        self.reply.held().is_some_and(|held| held.stream.entry().is_cut())
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        // INVARIANT: nothing of what was read before is given after a cut.
        if self.is_cut() {
            self.rest.clear();
        }
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.reply).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl Body for Taken {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let _elsewhere = OFFERED.try_with(Offered::is_asked);
        let piece = ready!(self.get_mut().poll_piece(cx));
        let _elsewhere = OFFERED.try_with(Offered::is_given);
        Poll::Ready(piece)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.reply.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, rest) = (self.reply.size_hint(), self.rest.len() as u64);
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower().saturating_add(rest));
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper.saturating_add(rest));
        }
        whole
    }
}
