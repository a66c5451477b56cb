//! The lists of tools in the answers of an MCP server: each caller gets to see what it may use.
//!
//! Plane: hot path. The answer to `tools/list`, and every stream that a `GET` opens: a server may send what a broken stream did
//! not deliver again on one (MCP 2025-11-25, "Resumability and Redelivery"). INVARIANT: fails closed. What cannot be read, or
//! is too large, is answered 502, and a stream ends; no list goes on unfiltered. Bounded in bytes and, until there is a head to
//! answer with, in time. No protection: each call is decided on when it comes.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, TRAILER,
};
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use hyper::body::{Body as _, Frame, SizeHint};

use super::body::{Broken, Held, Reply, Streamed};
use super::message::{Room, Rooms};
use super::respond;
use super::upstream::SendError;
use crate::authz::{EventFilter, MAX_TOOLS_ANSWER, filter_tools};
use crate::door::{Checked, Checks};
use crate::offload::in_place;

/// Headers that describe the bytes that the server sent.
const OF_THE_BYTES: [HeaderName; 10] = [
    ACCEPT_RANGES,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    ETAG,
    TRAILER,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

/// A filtered answer on its way to the client.
#[derive(Debug)]
pub(super) struct Listed {
    streamed: Streamed,
    checks: Checks,
    form: Form,
    room: Room,
}

#[derive(Debug)]
enum Form {
    /// All of it, until it is given.
    Whole(Bytes),
    Events(EventFilter),
}

/// How an answer can list tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Not at all.
    None,
    Json,
    Events,
    /// In a way that is not read.
    Unreadable,
}

/// Whether the answer to what was decided on may list tools.
pub(super) fn may_list(checked: &Checked) -> bool {
    let Some(call) = &checked.decision.mcp else { return false };
    call.lists_tools() || (call.method.is_none() && checked.request.method == Method::GET.as_str())
}

/// The answer for the client, `within` this time if all of it has to come first.
pub(super) async fn listed(
    checks: &Checks,
    rooms: &Arc<Rooms>,
    within: Duration,
    (mut parts, mut streamed): (Parts, Streamed),
) -> Response<Reply> {
    let kind = if streamed.incoming.is_end_stream() { Kind::None } else { Kind::of(&parts) };
    let mut room = rooms.none();
    let form = match kind {
        Kind::None => return Response::from_parts(parts, Reply::Upstream(Box::new(streamed))),
        Kind::Unreadable => return unreadable(&streamed, &"it is compressed, or neither JSON nor events"),
        Kind::Events => Form::Events(EventFilter::default()),
        Kind::Json => {
            let whole = match tokio::time::timeout(within, whole(&mut streamed, &mut room)).await {
                Ok(Ok(whole)) => whole,
                Ok(Err(Broken::Cut)) => {
                    let entry = streamed.held.stream.entry();
                    let denial = streamed.held.stream.cut().await.clone();
                    return respond::denied(&entry.checked.instead(denial, entry.checked.request.clone()), true);
                }
                Ok(Err(error)) => return unreadable(&streamed, &error),
                Err(_elapsed) => return respond::failed(&SendError::TimedOut, false),
            };
            let request = &streamed.held.stream.entry().checked.request;
            let filter = || filter_tools(&whole, |tools| checks.allowed_tools(request, tools));
            match in_place(whole.len(), filter) {
                Ok(filtered) => Form::Whole(Bytes::from(filtered)),
                Err(error) => return unreadable(&streamed, &error),
            }
        }
    };
    OF_THE_BYTES.iter().for_each(|name| drop(parts.headers.remove(name)));
    if let Form::Whole(whole) = &form {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(whole.len()));
    }
    // It is for this caller.
    parts.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let listed = Listed { streamed, checks: checks.clone(), form, room };
    Response::from_parts(parts, Reply::Listed(Box::new(listed)))
}

/// All of an answer. Its trailers are not passed on.
async fn whole(streamed: &mut Streamed, room: &mut Room) -> Result<Vec<u8>, Broken> {
    let mut whole = Vec::new();
    while let Some(frame) = poll_fn(|cx| streamed.poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            if whole.len() + data.len() > MAX_TOOLS_ANSWER {
                return Err(Broken::TooLarge);
            }
            room.take(data.len())?;
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole)
}

fn unreadable(streamed: &Streamed, error: &dyn fmt::Display) -> Response<Reply> {
    tell(streamed, error);
    respond::unreadable()
}

/// The record has the status that the server answered with, and not that its answer was kept back.
fn tell(streamed: &Streamed, error: &dyn fmt::Display) {
    let decision = &streamed.held.stream.entry().checked.decision;
    tracing::warn!(%error, decision = %decision.id, "an answer that may list tools is not passed on");
}

// === impl Kind ===

impl Kind {
    fn of(parts: &Parts) -> Self {
        if parts.headers.get_all(CONTENT_ENCODING).iter().any(|v| !v.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Self::Unreadable;
        }
        match essence(&parts.headers) {
            Some(kind) if kind.eq_ignore_ascii_case(b"application/json") => Self::Json,
            Some(kind) if kind.eq_ignore_ascii_case(b"text/event-stream") => Self::Events,
            // To a client of MCP an error in another form is nothing but that.
            _ if !parts.status.is_success() => Self::None,
            _ => Self::Unreadable,
        }
    }
}

/// The one type that an answer says to be of.
fn essence(headers: &HeaderMap) -> Option<&[u8]> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(only), None) = (types.next(), types.next()) else { return None };
    only.as_bytes().split(|byte| *byte == b';').next().map(<[u8]>::trim_ascii)
}

// === impl Listed ===

impl Listed {
    pub(super) fn held(&self) -> &Arc<Held> {
        &self.streamed.held
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Self { streamed, checks, form, room } = self;
        let filter = match form {
            Form::Whole(whole) if whole.is_empty() || streamed.is_cut => return Poll::Ready(None),
            Form::Whole(whole) => {
                if streamed.held.stream.poll_cut(cx).is_ready() {
                    streamed.is_cut = true;
                    return Poll::Ready(Some(Err(Broken::Cut)));
                }
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(whole)))));
            }
            Form::Events(filter) => filter,
        };
        loop {
            let data = match ready!(streamed.poll_frame(cx)) {
                Some(Ok(frame)) => frame.into_data(),
                ended => return Poll::Ready(ended),
            };
            // What its trailers describe is not what goes on.
            let Ok(data) = data else { continue };
            let request = &streamed.held.stream.entry().checked.request;
            let held = filter.held() + data.len();
            let passed = in_place(held, || filter.push(&data, |tools| checks.allowed_tools(request, tools)));
            let passed = passed.map_err(Broken::from).and_then(|passed| {
                room.hold(filter.held())?;
                Ok(passed)
            });
            match passed {
                Ok(passed) if passed.is_empty() => {}
                Ok(passed) => return Poll::Ready(Some(Ok(Frame::data(Bytes::from(passed))))),
                Err(error) => {
                    tell(streamed, &error);
                    streamed.is_cut = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        match &self.form {
            Form::Whole(whole) => self.streamed.is_cut || whole.is_empty(),
            Form::Events(_) => self.streamed.is_cut || self.streamed.incoming.is_end_stream(),
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match &self.form {
            Form::Whole(whole) => SizeHint::with_exact(whole.len() as u64),
            Form::Events(_) => SizeHint::default(),
        }
    }
}
