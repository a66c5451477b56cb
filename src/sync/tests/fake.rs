//! A server that speaks the protocol and sends whatever a test wants.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::wire::proto::sync_server::{Sync, SyncServer};
use crate::wire::proto::{ClientFrame, Hello, ServerFrame, client_frame::Frame};

/// The server. Each stream plays the next script and then stays open.
#[derive(Debug, Clone, Default)]
pub(super) struct Fake(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    scripts: VecDeque<Vec<ServerFrame>>,
    hellos: Vec<Hello>,
    /// On which stream, counted from 1, and of what.
    acks: Vec<(usize, u64)>,
    streams: usize,
    nacks: Vec<String>,
    missing: Vec<String>,
}

impl Fake {
    pub(super) async fn start(scripts: Vec<Vec<ServerFrame>>) -> (Self, SocketAddr) {
        let fake = Self::default();
        fake.0.lock().unwrap().scripts = scripts.into();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = SyncServer::new(fake.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (fake, address)
    }

    pub(super) fn add(&self, script: Vec<ServerFrame>) {
        self.0.lock().unwrap().scripts.push_back(script);
    }

    pub(super) fn hellos(&self) -> Vec<Hello> {
        self.0.lock().unwrap().hellos.clone()
    }

    pub(super) fn acks(&self) -> Vec<u64> {
        self.0.lock().unwrap().acks.iter().map(|(_, revision)| *revision).collect()
    }

    /// What was acknowledged on one stream, counted from 1. The last words of an earlier one may come late or never.
    pub(super) fn acks_on(&self, stream: usize) -> Vec<u64> {
        let inner = self.0.lock().unwrap();
        inner.acks.iter().filter(|(on, _)| *on == stream).map(|(_, revision)| *revision).collect()
    }

    /// Issuers that were reported for a missing key.
    pub(super) fn missing(&self) -> Vec<String> {
        self.0.lock().unwrap().missing.clone()
    }

    pub(super) fn nacks(&self) -> Vec<String> {
        self.0.lock().unwrap().nacks.clone()
    }
}

#[tonic::async_trait]
impl Sync for Fake {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<ServerFrame, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<ClientFrame>>) -> Result<Response<Self::WatchStream>, Status> {
        let (script, stream) = {
            let mut inner = self.0.lock().unwrap();
            let Some(script) = inner.scripts.pop_front() else {
                return Err(Status::unavailable("no script left"));
            };
            inner.streams += 1;
            (script, inner.streams)
        };
        let (out, frames) = tokio::sync::mpsc::channel(64);
        let mut inbound = request.into_inner();
        let fake = self.clone();
        tokio::spawn(async move {
            for frame in script {
                if out.send(Ok(frame)).await.is_err() {
                    return;
                }
            }
            // The stream stays open until the sidecar has enough of it.
            while let Some(Ok(frame)) = inbound.next().await {
                let mut inner = fake.0.lock().unwrap();
                match frame.frame.unwrap() {
                    Frame::Hello(hello) => inner.hellos.push(hello),
                    Frame::Ack(ack) => inner.acks.push((stream, ack.revision)),
                    Frame::Uses(_) => {}
                    Frame::KeyMissing(missing) => inner.missing.push(missing.issuer),
                    Frame::Nack(nack) => inner.nacks.push(format!("{}/{}: {}", nack.kind, nack.key, nack.error)),
                }
            }
            drop(out);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(frames))))
    }
}
