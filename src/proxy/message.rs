//! Bodies that a decision takes: read whole, decided on, kept for as long as the answer is open, and forwarded as they came.
//!
//! Plane: hot path, for MCP routes and grants for one exact call; every other body streams. INVARIANT: a body is read only for
//! a caller whose credential is good and whose decision asks for it; it is bounded in bytes and in time, and so is what is kept
//! of all of them together; what is decided on is byte for byte what is sent. Trailers of such a body are not decided on, so
//! they are not sent either.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::header::{CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Incoming};

use crate::authz::Reason;
use crate::door::{Asked, Checked, Checks, Unread};

/// The body of a request that was decided on.
#[derive(Debug)]
pub(super) enum Carried {
    /// Nobody has looked at it.
    Streamed(Incoming),
    /// It was decided on.
    Read(Bytes),
}

/// What may be kept of bodies, of all requests together.
#[derive(Debug)]
pub(super) struct Rooms {
    used: AtomicUsize,
    max: usize,
}

/// A share of that, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    rooms: Arc<Rooms>,
    taken: usize,
}

/// There is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much of bodies is kept already")]
pub(super) struct Full;

/// How bodies are read.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) rooms: Arc<Rooms>,
    /// The largest that is read.
    pub(super) max_bytes: usize,
    /// For all of it.
    pub(super) within: Duration,
}

// === impl Reader ===

impl Reader {
    /// Decides on a request; on its body too, if it takes that.
    pub(super) async fn decide(
        &self,
        checks: &Checks,
        asked: Asked,
        body: Incoming,
    ) -> (Checked, Carried, Option<Room>) {
        let mut carried = Carried::Streamed(body);
        let mut room = None;
        let checked = checks.check_reading(asked, |asked| self.read(asked, &mut carried, &mut room)).await;
        (checked, carried, room)
    }

    async fn read(
        &self,
        mut asked: Asked,
        carried: &mut Carried,
        room: &mut Option<Room>,
    ) -> (Asked, Result<(), Unread>) {
        let Carried::Streamed(body) = carried else { return (asked, Err(late("the body has been read"))) };
        let mut taken = self.rooms.none();
        let whole = self.whole(body, &mut taken);
        let whole = match tokio::time::timeout(self.within, whole).await {
            Ok(Ok(whole)) => Bytes::from(whole),
            Ok(Err(unread)) => return (asked, Err(unread)),
            Err(_elapsed) => return (asked, Err(late("the body did not arrive in time"))),
        };
        // Its length is known now, in whatever way it was said or not said before; its trailers are gone.
        asked.headers.insert(CONTENT_LENGTH, HeaderValue::from(whole.len()));
        [TRANSFER_ENCODING, TRAILER].iter().for_each(|name| drop(asked.headers.remove(name)));
        asked.body = Some(whole.clone());
        (*carried, *room) = (Carried::Read(whole), Some(taken));
        (asked, Ok(()))
    }

    /// All of a body, in memory that holds nothing else.
    async fn whole(&self, body: &mut Incoming, room: &mut Room) -> Result<Vec<u8>, Unread> {
        let too_large = late("the body is larger than what is read of one");
        let size = body.size_hint();
        if size.lower() > self.max_bytes as u64 {
            return Err(too_large);
        }
        let mut whole = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_broken| late("the body did not arrive whole"))?;
            let Some(data) = frame.data_ref() else { continue };
            if whole.len() + data.len() > self.max_bytes {
                return Err(too_large);
            }
            room.take(data.len())?;
            whole.extend_from_slice(data);
        }
        whole.shrink_to_fit();
        Ok(whole)
    }
}

/// A body that does not come along is the client's affair.
const fn late(detail: &'static str) -> Unread {
    Unread { reason: None, detail }
}

// === impl Carried ===

impl Carried {
    /// Whether there is no body.
    pub(super) fn is_nothing(&self) -> bool {
        match self {
            Self::Streamed(incoming) => incoming.is_end_stream(),
            Self::Read(bytes) => bytes.is_empty(),
        }
    }

    /// Whether there is one that was not decided on.
    pub(super) fn is_unread(&self) -> bool {
        matches!(self, Self::Streamed(incoming) if !incoming.is_end_stream())
    }
}

// === impl Rooms ===

impl Rooms {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    /// A share of nothing, to begin with.
    pub(super) fn none(self: &Arc<Self>) -> Room {
        Room { rooms: Arc::clone(self), taken: 0 }
    }
}

// === impl Room ===

impl Room {
    /// Takes so much more.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Full> {
        self.taken += bytes;
        let before = self.rooms.used.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) <= self.rooms.max { Ok(()) } else { Err(Full) }
    }

    /// Takes so much in all.
    pub(super) fn hold(&mut self, bytes: usize) -> Result<(), Full> {
        match bytes.checked_sub(self.taken) {
            Some(0) => Ok(()),
            Some(more) => self.take(more),
            None => {
                self.rooms.used.fetch_sub(self.taken - bytes, Ordering::Relaxed);
                self.taken = bytes;
                Ok(())
            }
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.rooms.used.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

// === impl Full ===

impl From<Full> for Unread {
    fn from(_full: Full) -> Self {
        Self { reason: Some(Reason::SystemOverload), detail: "too much of other bodies is kept" }
    }
}
