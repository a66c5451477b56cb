//! `Sync.Watch` on the wire: gRPC messages that are ready to be sent, without a codec for each stream.
//!
//! Plane: control. tonic would encode every message once for every stream, into a buffer of the stream's own. Here a
//! message is made once, its gRPC prefix included, and every stream of its scope sends the same bytes. What is held for
//! a stream is what waits in its channel: two messages, by reference. Fails closed: what is not `Watch` is unimplemented,
//! and what is refused gets a status and nothing else.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use hyper::body::Frame;
use prost::Message;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Status, Streaming};

use super::Shared;
use crate::wire::proto::ClientFrame;

const SERVICE: &str = "portcullis.sync.v1.Sync";
const WATCH: &str = "/portcullis.sync.v1.Sync/Watch";
/// The largest message that a sidecar may send.
const MAX_INBOUND: usize = 64 * 1024;
/// What a sidecar says is a few dozen bytes long.
const INBOUND_BUFFER: usize = 256;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Door(pub(super) Arc<Shared>);

/// What a stream is given to send.
#[derive(Debug)]
pub(super) enum Outbound {
    /// A gRPC message with its prefix.
    Message(Bytes),
    /// The last word.
    End(Box<Status>),
}

/// The body of an answer.
struct Messages {
    waiting: mpsc::Receiver<Outbound>,
    ended: bool,
}

/// Decodes what sidecars say, with a buffer that fits it.
#[derive(Debug, Clone, Copy)]
struct FromSidecar;

// === impl Door ===

impl NamedService for Door {
    const NAME: &'static str = SERVICE;
}

impl tower::Service<http::Request<Body>> for Door {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            if request.uri().path() != WATCH {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let (parts, body) = request.into_parts();
            let inbound = Streaming::new_request(FromSidecar, body, None, Some(MAX_INBOUND));
            let peer = parts.extensions.get().cloned();
            let metadata = MetadataMap::from_headers(parts.headers);
            Ok(match shared.watch(peer, metadata, inbound).await {
                Ok(waiting) => {
                    let mut response = http::Response::new(Body::new(Messages { waiting, ended: false }));
                    let grpc = http::HeaderValue::from_static("application/grpc");
                    response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
                    response
                }
                Err(status) => status.into_http(),
            })
        })
    }
}

// === impl Messages ===

impl hyper::body::Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let status = match std::task::ready!(this.waiting.poll_recv(cx)) {
            Some(Outbound::Message(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Outbound::End(status)) => *status,
            None => Status::ok(""),
        };
        this.ended = true;
        let mut trailers = HeaderMap::new();
        let added = status.add_header(&mut trailers);
        Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

// === impl FromSidecar ===

impl Decoder for FromSidecar {
    type Item = ClientFrame;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<ClientFrame>, Status> {
        let frame = ClientFrame::decode(buffer);
        frame.map(Some).map_err(|_malformed| Status::invalid_argument("a frame is malformed"))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(INBOUND_BUFFER, MAX_INBOUND)
    }
}
