//! gRPC's framing of one message, in and out.
//!
//! Plane: hot path. In: one message, at most so many bytes, within a time; usually one DATA frame that is there
//! already and is not copied. Whatever else arrives is a [`BadMessage`], which the service answers with a denial.
//! INVARIANT: what is buffered for a stream never exceeds the limit, nor what is buffered for all of them the budget;
//! the rest of a larger message is read and thrown away, so that the client sees an answer and not a reset. Out: the
//! message and an OK in the trailers.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use hyper::body::{Body, Frame, SizeHint};

/// Compression flag and length.
const PREFIX_LEN: usize = 5;
/// The longest piece of an answer. h2 copies what is shorter than 1,024 bytes behind what it has to write already; longer
/// data ends the write.
const PIECE: usize = 1_000;
/// A message this many times larger than the limit is not even read to be thrown away.
const DISCARD_FACTOR: usize = 16;

/// Why there is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadMessage {
    /// The stream ended or broke before the message did.
    #[error("the check's message was cut short")]
    CutShort,
    /// More than one message, or bytes after it.
    #[error("the check has more than one message")]
    Trailing,
    /// Compressed, which was never offered.
    #[error("the check's message is compressed")]
    Compressed,
    /// Over the limit.
    #[error("the check's message is larger than the limit allows")]
    TooLarge,
    /// Not there in time.
    #[error("the check's message did not arrive in time")]
    TooSlow,
    /// Too much of other checks' messages is there.
    #[error("too many large checks are under way")]
    NoRoom,
}

/// How much may be buffered of messages that arrive in pieces.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    max: usize,
}

/// A share of a [`Budget`], given back when it is dropped.
#[derive(Debug)]
struct Room<'a> {
    budget: &'a Budget,
    taken: usize,
}

/// A message, without its prefix.
#[derive(Debug)]
pub(super) struct Message<'a> {
    bytes: Bytes,
    _room: Room<'a>,
}

/// Reads the one message of a unary call.
pub(super) async fn read_message<B>(
    body: B,
    max_bytes: usize,
    within: Duration,
    budget: &Budget,
) -> Result<Message<'_>, BadMessage>
where
    B: Body<Data = Bytes>,
{
    let mut reading = pin!(read_all(body, max_bytes.saturating_add(PREFIX_LEN), budget));
    // Usually everything is there: no timer then.
    let first = std::future::poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await;
    let (mut all, room) = match first {
        Poll::Ready(all) => all?,
        Poll::Pending => tokio::time::timeout(within, reading).await.map_err(|_elapsed| BadMessage::TooSlow)??,
    };
    let Some((&[flag, a, b, c, d], _)) = all.split_first_chunk::<PREFIX_LEN>() else {
        return Err(BadMessage::CutShort);
    };
    if flag != 0 {
        return Err(BadMessage::Compressed);
    }
    let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(|_too_large| BadMessage::TooLarge)?;
    if len > max_bytes {
        return Err(BadMessage::TooLarge);
    }
    all.advance(PREFIX_LEN);
    match all.len().cmp(&len) {
        std::cmp::Ordering::Less => Err(BadMessage::CutShort),
        std::cmp::Ordering::Equal => Ok(Message { bytes: all, _room: room }),
        std::cmp::Ordering::Greater => Err(BadMessage::Trailing),
    }
}

/// Reads to the end of the stream.
async fn read_all<B>(body: B, max_bytes: usize, budget: &Budget) -> Result<(Bytes, Room<'_>), BadMessage>
where
    B: Body<Data = Bytes>,
{
    let mut body = pin!(body);
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    let mut total = 0_usize;
    let mut room = Room { budget, taken: 0 };
    let mut no_room = false;
    while !body.is_end_stream() {
        let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await else { break };
        let frame = frame.map_err(|_broken| BadMessage::CutShort)?;
        // Trailers say nothing that is of use.
        let Ok(data) = frame.into_data() else { continue };
        total = total.saturating_add(data.len());
        if total > max_bytes || no_room {
            (first, more) = (Bytes::new(), BytesMut::new());
            if total > max_bytes.saturating_mul(DISCARD_FACTOR) {
                break;
            }
        } else if first.is_empty() && more.is_empty() {
            first = data;
        } else if room.take(data.len()) {
            if more.is_empty() {
                more.extend_from_slice(&std::mem::take(&mut first));
            }
            more.extend_from_slice(&data);
        } else {
            no_room = true;
        }
    }
    if total > max_bytes {
        return Err(BadMessage::TooLarge);
    }
    if no_room {
        return Err(BadMessage::NoRoom);
    }
    Ok((if more.is_empty() { first } else { more.freeze() }, room))
}

// === impl Budget ===

impl Budget {
    pub(super) const fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }
}

// === impl Room ===

impl Room<'_> {
    fn take(&mut self, bytes: usize) -> bool {
        self.taken += bytes;
        let before = self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        before.saturating_add(bytes) <= self.budget.max
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if self.taken > 0 {
            self.budget.used.fetch_sub(self.taken, Ordering::Relaxed);
        }
    }
}

// === impl Message ===

impl Message<'_> {
    /// The same bytes, not copied, to hand to another thread. They count against the budget for as long as this does.
    pub(super) fn share(&self) -> Bytes {
        self.bytes.clone()
    }
}

impl std::ops::Deref for Message<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The body of a response.
#[derive(Debug)]
pub(super) enum Reply {
    /// A length-prefixed message still to be sent, then an OK.
    Message(Bytes),
    /// The OK still to be sent.
    Trailers,
    /// Everything has been sent, or there is nothing to send.
    Done,
    /// The health service's.
    Health(tonic::body::Body),
}

// === impl Reply ===

impl Body for Reply {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let (frame, next) = match std::mem::replace(this, Self::Done) {
            Self::Message(mut message) if message.len() > PIECE => {
                (Frame::data(message.split_to(PIECE)), Self::Message(message))
            }
            Self::Message(message) => (Frame::data(message), Self::Trailers),
            Self::Trailers => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
                (Frame::trailers(trailers), Self::Done)
            }
            Self::Done => return Poll::Ready(None),
            Self::Health(mut body) => {
                let polled = Pin::new(&mut body).poll_frame(cx);
                *this = Self::Health(body);
                return polled;
            }
        };
        *this = next;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Message(_) | Self::Trailers => false,
            Self::Done => true,
            Self::Health(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Message(message) => SizeHint::with_exact(message.len() as u64),
            Self::Trailers | Self::Done => SizeHint::with_exact(0),
            Self::Health(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Frames as they arrive; `None` at the end means that nothing more ever comes.
    struct Frames(VecDeque<Option<Result<Bytes, ()>>>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = ();

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ()>>> {
            if matches!(self.0.front(), Some(None)) {
                return Poll::Pending;
            }
            Poll::Ready(self.0.pop_front().flatten().map(|frame| frame.map(Frame::data)))
        }
    }

    fn frames(parts: &[&[u8]]) -> Frames {
        Frames(parts.iter().map(|p| Some(Ok(Bytes::copy_from_slice(p)))).collect())
    }

    async fn read(frames: Frames) -> Result<Bytes, BadMessage> {
        let budget = Budget::new(100);
        let message = read_message(frames, 10, Duration::from_secs(5), &budget).await.map(|m| m.bytes.clone());
        assert_eq!(budget.used.load(Ordering::Relaxed), 0, "given back");
        message
    }

    #[tokio::test]
    async fn the_budget_is_for_all() {
        let budget = Budget::new(5);
        let in_pieces = || frames(&[b"\0\0\0\0\x04", b"abcd"]);
        let read = async || read_message(in_pieces(), 10, Duration::from_secs(5), &budget).await;
        let first = read().await.unwrap();
        assert_eq!(read().await.unwrap_err(), BadMessage::NoRoom);
        let whole = read_message(frames(&[b"\0\0\0\0\x04abcd"]), 10, Duration::from_secs(5), &budget).await;
        assert_eq!(&*whole.unwrap(), b"abcd", "what arrives in one piece needs no buffer");
        drop(first);
        assert_eq!(&*read().await.unwrap(), b"abcd");
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_message_in_any_pieces() {
        assert_eq!(read(frames(&[b"\0\0\0\0\x03abc"])).await.unwrap(), "abc");
        assert_eq!(read(frames(&[b"\0\0\0", b"\0\x03a", b"", b"bc"])).await.unwrap(), "abc");
        assert_eq!(read(frames(&[b"\0\0\0\0\0"])).await.unwrap(), "");
        assert_eq!(read(frames(&[b"\0\0\0\0\x0a0123456789"])).await.unwrap(), "0123456789");
    }

    #[tokio::test(start_paused = true)]
    async fn anything_else_is_told_apart() {
        assert_eq!(read(frames(&[])).await, Err(BadMessage::CutShort));
        assert_eq!(read(frames(&[b"\0\0\0\0"])).await, Err(BadMessage::CutShort));
        assert_eq!(read(frames(&[b"\0\0\0\0\x04abc"])).await, Err(BadMessage::CutShort));
        assert_eq!(read(frames(&[b"\0\0\0\0\x02abc"])).await, Err(BadMessage::Trailing));
        assert_eq!(read(frames(&[b"\x01\0\0\0\x03abc"])).await, Err(BadMessage::Compressed));
        assert_eq!(read(frames(&[b"\0\0\0\0\x0b0123456789a"])).await, Err(BadMessage::TooLarge));
        assert_eq!(read(frames(&[b"\0\xff\xff\xff\xff", b"01"])).await, Err(BadMessage::TooLarge));
        assert_eq!(read(frames(&[b"\0\0\0\0\x30", &[b'a'; 48]])).await, Err(BadMessage::TooLarge));
        let mut broken = frames(&[b"\0\0\0\0\x03ab"]);
        broken.0.push_back(Some(Err(())));
        assert_eq!(read(broken).await, Err(BadMessage::CutShort));
        let mut stuck = frames(&[b"\0\0\0\0\x03ab"]);
        stuck.0.push_back(None);
        assert_eq!(read(stuck).await, Err(BadMessage::TooSlow));
        let endless = Frames((0..1000).map(|_| Some(Ok(Bytes::from_static(&[0; 10])))).collect());
        assert_eq!(read(endless).await, Err(BadMessage::TooLarge));
    }
}
