//! The bodies that go through: from the client to the upstream, and back.
//!
//! Plane: hot path. Nothing is gathered: a piece is passed on before the next is taken, so that memory does not grow with a
//! body. INVARIANT: once a request is cut, no piece follows in either direction, also when its answer has ended before its
//! body; and a client never takes a cut answer for a whole one: gRPC ends with `PERMISSION_DENIED`, everything else is
//! reset. Trailers cannot bring in what headers may not.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::forwarded;
use super::guard::UnderWay;
use super::listing::Listed;
use super::live;
use super::message::{Carried, Full, Room};
use super::upstream::{Lease, Place};
use crate::authz::{Unfilterable, problem};
use crate::door;

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the body is larger than the limit")]
    TooLarge,
    #[error("the request is not allowed any more")]
    Cut,
    #[error(transparent)]
    Unlisted(#[from] Unfilterable),
    #[error(transparent)]
    Full(#[from] Full),
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// A client's body on its way upstream.
#[derive(Debug)]
pub(super) struct Sent(Option<Sending>);

#[derive(Debug)]
struct Sending {
    from: Source,
    /// How much more there may be.
    left: u64,
    held: Arc<Held>,
}

/// Where its pieces come from.
#[derive(Debug)]
enum Source {
    Client(Incoming),
    /// It was read for the decision.
    Read(Bytes),
}

/// What a request holds until its body and its answer have both ended, whichever is later.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) stream: live::Stream,
    pub(super) place: Place,
    pub(super) _under_way: UnderWay,
    /// Of the body that was read for the decision, which is kept to be decided on again.
    pub(super) _room: Option<Room>,
}

/// An answer to a client.
#[derive(Debug)]
pub(super) enum Reply {
    /// Of the proxy itself.
    Own(Option<Bytes>),
    /// Of the upstream.
    Upstream(Box<Streamed>),
    /// Of the upstream, but for the tools that the caller may not use.
    Listed(Box<Listed>),
}

/// An upstream's answer on its way to the client, and what is held until it has ended.
#[derive(Debug)]
pub(super) struct Streamed {
    pub(super) incoming: Incoming,
    pub(super) held: Arc<Held>,
    pub(super) lease: Lease,
    pub(super) is_grpc: bool,
    pub(super) is_cut: bool,
}

// === impl Sent ===

impl Sent {
    pub(super) fn nothing() -> Self {
        Self(None)
    }

    pub(super) fn new(carried: Carried, limit: Option<u64>, held: &Arc<Held>) -> Self {
        if carried.is_nothing() {
            return Self(None);
        }
        let from = match carried {
            Carried::Streamed(incoming) => Source::Client(incoming),
            Carried::Read(bytes) => Source::Read(bytes),
        };
        Self(Some(Sending { from, left: limit.unwrap_or(u64::MAX), held: Arc::clone(held) }))
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.0.is_none()
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Some(sending) = &mut self.0 else { return Poll::Ready(None) };
        if sending.held.stream.poll_sending_cut(cx).is_ready() {
            return Poll::Ready(Some(Err(Broken::Cut)));
        }
        let mut frame = match &mut sending.from {
            Source::Client(incoming) => match ready!(Pin::new(incoming).poll_frame(cx)) {
                Some(frame) => frame?,
                None => return Poll::Ready(None),
            },
            Source::Read(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Source::Read(bytes) => Frame::data(std::mem::take(bytes)),
        };
        if let Some(data) = frame.data_ref() {
            match sending.left.checked_sub(data.len() as u64) {
                Some(left) => sending.left = left,
                None => return Poll::Ready(Some(Err(Broken::TooLarge))),
            }
        }
        if let Some(trailers) = frame.trailers_mut() {
            only_trailers(trailers);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|sending| sending.from.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |sending| sending.from.size_hint())
    }
}

// === impl Source ===

impl Source {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Client(incoming) => incoming.is_end_stream(),
            Self::Read(bytes) => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Client(incoming) => incoming.size_hint(),
            Self::Read(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

/// Takes out of trailers what a server that merges them with the headers would take for one (RFC 9110, section 6.5.1).
fn only_trailers(trailers: &mut HeaderMap) {
    let is_barred = |name: &HeaderName| {
        let name = name.as_str();
        door::is_alias(name.as_bytes())
            || name.contains('_')
            || forwarded::is_ours(name)
            || name.starts_with("content-")
            || matches!(
                name,
                "authorization"
                    | "connection"
                    | "cookie"
                    | "dpop"
                    | "host"
                    | "te"
                    | "trailer"
                    | "transfer-encoding"
                    | "upgrade"
                    | "txn-token"
                    | "workload-identity-token"
                    | "workload-proof-token"
            )
    };
    let barred: Vec<HeaderName> = trailers.keys().filter(|name| is_barred(name)).cloned().collect();
    barred.iter().for_each(|name| drop(trailers.remove(name)));
}

// === impl Reply ===

impl From<Bytes> for Reply {
    fn from(body: Bytes) -> Self {
        Self::Own(Some(body).filter(|body| !body.is_empty()))
    }
}

impl Reply {
    /// What an answer of the upstream holds.
    pub(super) fn held(&self) -> Option<&Arc<Held>> {
        match self {
            Self::Own(_) => None,
            Self::Upstream(streamed) => Some(&streamed.held),
            Self::Listed(listed) => Some(listed.held()),
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Own(body) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            Self::Upstream(streamed) => streamed.poll_frame(cx),
            Self::Listed(listed) => listed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_none(),
            Self::Upstream(streamed) => streamed.is_cut || streamed.incoming.is_end_stream(),
            Self::Listed(listed) => listed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            Self::Upstream(streamed) => streamed.incoming.size_hint(),
            Self::Listed(listed) => listed.size_hint(),
        }
    }
}

// === impl Streamed ===

impl Streamed {
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.is_cut {
            return Poll::Ready(None);
        }
        if let Poll::Ready(decision) = self.held.stream.poll_cut(cx) {
            self.is_cut = true;
            if self.is_grpc {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("7"));
                trailers.insert("grpc-message", HeaderValue::from_static(problem::disclosed_reason(decision)));
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            return Poll::Ready(Some(Err(Broken::Cut)));
        }
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || (polled.is_ready() && self.incoming.is_end_stream()) {
            self.lease.give_back();
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(Broken::Http)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_bring_in_no_header() {
        let mut trailers = HeaderMap::new();
        for name in [
            "x-portcullis-workload",
            "x_portcullis_workload",
            "authorization",
            "content-length",
            "host",
            "forwarded",
            "x-forwarded-for",
            "x-real-ip",
            "via",
            "client-cert",
            "grpc-status",
            "x-sum",
        ] {
            trailers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        only_trailers(&mut trailers);
        let mut left: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["grpc-status", "x-sum"]);
    }
}
