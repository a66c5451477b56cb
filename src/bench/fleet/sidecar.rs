//! One simulated sidecar: connects, says hello, takes frames in order, acknowledges, comes back.
//!
//! Plane: composition. Connection, credential, frame limit and backoff are the real client's (`sync`). It holds a position
//! and no state, so that ten thousand fit into one process. INVARIANT: it acknowledges only what follows the position that
//! it had; whatever else comes ends the stream and counts as a violation.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use super::identities::Member;
use super::io::CountingDial;
use super::{Command, Shared};
use crate::sync::{Backoff, ConnectError, ControlPlane, MAX_FRAME_BYTES, reasons};
use crate::wire::proto::sync_client::SyncClient;
use crate::wire::proto::{Ack, ClientFrame, Cursor, Hello, Payload, ServerFrame, client_frame::Frame, payload::Body};
use crate::wire::{Epoch, Position, RETRY_AFTER, Revision, ScopeId};

/// A stream that lasted this long was a good one.
const HEALTHY: Duration = Duration::from_secs(10);

/// The sidecar.
pub(super) struct Sidecar {
    shared: Arc<Shared>,
    number: usize,
    instance: String,
    scope: ScopeId,
    control: ControlPlane,
    verifies: bool,
    position: Option<Position>,
    commands: watch::Receiver<Command>,
}

/// How a stream ended.
enum End {
    /// It was told to.
    Commanded,
    /// It failed.
    Failed(String, Option<Duration>),
    /// The server broke the protocol.
    Violation(String),
}

/// What belongs to one stream.
struct Stream {
    out: mpsc::Sender<ClientFrame>,
    /// The snapshot that is arriving: where it leads and how many chunks have come.
    arriving: Option<(Position, u64)>,
    /// Whether a lease has come, which makes it current.
    current: bool,
    acknowledged: Option<Revision>,
}

impl Sidecar {
    pub(super) fn new(shared: Arc<Shared>, number: usize, member: Member) -> Self {
        let options = &shared.options;
        let control = ControlPlane {
            url: options.control.clone(),
            insecure_loopback: options.ca_file.is_none(),
            ca_file: options.ca_file.clone(),
            identity_files: member.identity_files,
            token_file: member.token_file,
            connect_timeout: options.timeout,
            dial: Arc::new(CountingDial(Arc::clone(&shared.traffic))),
        };
        Self {
            number,
            instance: uuid::Uuid::new_v4().to_string(),
            scope: member.scope,
            control,
            verifies: options.verify_every > 0 && number.is_multiple_of(options.verify_every),
            position: None,
            commands: shared.command.subscribe(),
            shared,
        }
    }

    pub(super) fn check(&self) -> Result<(), ConnectError> {
        self.control.check()
    }

    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(self.shared.options.backoff);
        loop {
            let started = Instant::now();
            self.commands.mark_unchanged();
            let end = self.stream().await;
            let shared = &self.shared;
            if matches!(end, End::Commanded) {
                if self.commands.borrow().forget {
                    self.position = None;
                }
                backoff.reset();
                continue;
            }
            shared.failures.fetch_add(1, Ordering::Relaxed);
            if started.elapsed() >= HEALTHY {
                backoff.reset();
            }
            let (error, hint) = match end {
                End::Failed(error, hint) => (error, hint),
                End::Violation(error) => {
                    shared.violations.fetch_add(1, Ordering::Relaxed);
                    (error, None)
                }
                End::Commanded => continue,
            };
            if hint.is_some() {
                shared.turned_away.fetch_add(1, Ordering::Relaxed);
            }
            *shared.last_failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
            tokio::time::sleep(backoff.next(hint)).await;
        }
    }

    async fn stream(&mut self) -> End {
        self.shared.attempts.fetch_add(1, Ordering::Relaxed);
        let mut commands = self.commands.clone();
        // Boxed: it is large, and gone once the stream is open.
        let opened = Box::pin(self.open());
        let (mut inbound, out) = tokio::select! {
            biased;
            _ = commands.changed() => return End::Commanded,
            opened = opened => match opened {
                Ok(opened) => opened,
                Err(end) => return end,
            },
        };
        let mut stream = Stream { out, arriving: None, current: false, acknowledged: None };
        let end = self.follow(&mut inbound, &mut stream).await;
        if stream.current {
            self.shared.current.fetch_sub(1, Ordering::Relaxed);
        }
        end
    }

    async fn open(&self) -> Result<(Streaming<ServerFrame>, mpsc::Sender<ClientFrame>), End> {
        let failed = |e: ConnectError| End::Failed(reasons(&e), None);
        let authorization = self.control.authorization().map_err(failed)?;
        let channel = self.control.connect().await.map_err(failed)?;
        let hello = Hello {
            cursor: self.position.map(|p| Cursor { epoch: p.epoch.to_string(), revision: p.revision.0 }),
            instance: self.instance.clone(),
            version: concat!(env!("CARGO_PKG_VERSION"), " (simulated)").to_owned(),
            want_snapshot: false,
        };
        let (out, frames) = mpsc::channel(8);
        let _ = out.try_send(ClientFrame { frame: Some(Frame::Hello(hello)) });
        let mut request = Request::new(ReceiverStream::new(frames));
        if let Some(value) = authorization {
            request.metadata_mut().insert("authorization", value);
        }
        let mut client = SyncClient::new(channel).max_decoding_message_size(MAX_FRAME_BYTES + 1024);
        match tokio::time::timeout(self.shared.options.timeout, client.watch(request)).await {
            Ok(Ok(response)) => Ok((response.into_inner(), out)),
            Ok(Err(status)) => Err(refused(&status)),
            Err(_elapsed) => Err(End::Failed("the control plane does not answer".to_owned(), None)),
        }
    }

    async fn follow(&mut self, inbound: &mut Streaming<ServerFrame>, stream: &mut Stream) -> End {
        let mut commands = self.commands.clone();
        loop {
            let frame = tokio::select! {
                biased;
                _ = commands.changed() => return End::Commanded,
                frame = tokio::time::timeout(self.shared.options.timeout, inbound.message()) => frame,
            };
            let frame = match frame {
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None)) => return End::Failed("the control plane ended the stream".to_owned(), None),
                Ok(Err(status)) => return refused(&status),
                Err(_elapsed) => return End::Failed("the control plane has been silent for too long".to_owned(), None),
            };
            let before = stream.current;
            let acknowledge = match self.take(&frame, stream) {
                Ok(acknowledge) => acknowledge,
                Err(error) => return End::Violation(error),
            };
            if stream.current && !before {
                self.shared.current.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(revision) = acknowledge {
                stream.acknowledged = Some(revision);
                let ack = ClientFrame { frame: Some(Frame::Ack(Ack { revision: revision.0 })) };
                // Closed: the inbound side tells why.
                let _ = stream.out.send(ack).await;
            }
        }
    }

    /// Takes a frame in; what is to be acknowledged, if anything. Errors are violations.
    fn take(&mut self, frame: &ServerFrame, stream: &mut Stream) -> Result<Option<Revision>, String> {
        let shared = Arc::clone(&self.shared);
        shared.frames.fetch_add(1, Ordering::Relaxed);
        if self.verifies {
            shared.options.verify_key.verify(&frame.payload, &frame.signature).map_err(|e| e.to_string())?;
            shared.verified.fetch_add(1, Ordering::Relaxed);
        }
        let payload = Payload::decode(frame.payload.clone()).map_err(|_malformed| "a malformed payload".to_owned())?;
        if payload.scope != self.scope.as_str() {
            return Err(format!("a payload for scope `{}`, ours is `{}`", payload.scope, self.scope.as_str()));
        }
        let epoch = Epoch::parse(&payload.epoch).map_err(|e| e.to_string())?;
        let at = |revision| Position { epoch, revision: Revision(revision) };
        let have = || self.position.map_or_else(|| "no state".to_owned(), |p| p.to_string());
        match payload.body {
            Some(Body::Delta(delta)) => {
                if self.position != Some(at(delta.from)) || stream.arriving.is_some() || delta.to <= delta.from {
                    return Err(format!("a delta from `{}` to `{}` at `{}`", delta.from, delta.to, have()));
                }
                self.position = Some(at(delta.to));
                shared.applied(self.number, Revision(delta.from), Revision(delta.to), Instant::now());
                Ok(Some(Revision(delta.to)))
            }
            Some(Body::Bookmark(bookmark)) => {
                if self.position != Some(at(bookmark.revision)) || stream.arriving.is_some() {
                    return Err(format!("a bookmark for `{}` at `{}`", bookmark.revision, have()));
                }
                stream.current = true;
                let revision = Revision(bookmark.revision);
                Ok(stream.acknowledged.is_none().then_some(revision))
            }
            Some(Body::Begin(begin)) => {
                if self.position.is_some_and(|p| p > at(begin.revision)) {
                    return Err(format!("a snapshot at `{}` is older than `{}`", begin.revision, have()));
                }
                stream.arriving = Some((at(begin.revision), 0));
                Ok(None)
            }
            Some(Body::Chunk(chunk)) => match &mut stream.arriving {
                Some((_, next)) if *next == chunk.sequence => {
                    *next += 1;
                    Ok(None)
                }
                _ => Err(format!("chunk `{}` is out of order", chunk.sequence)),
            },
            Some(Body::End(end)) => match stream.arriving.take() {
                Some((position, chunks)) if position.revision.0 == end.revision && chunks == end.chunks => {
                    self.position = Some(position);
                    shared.snapshots.fetch_add(1, Ordering::Relaxed);
                    shared.applied(self.number, Revision(0), position.revision, Instant::now());
                    Ok(Some(position.revision))
                }
                _ => Err("an end that fits no snapshot".to_owned()),
            },
            // Nobody here asks for uses of grants.
            Some(Body::Allotment(_)) => Err("an answer to nothing".to_owned()),
            None => Err("an empty payload".to_owned()),
        }
    }
}

fn refused(status: &Status) -> End {
    let hint = status.metadata().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
    let retry_after = hint.map(|ms| Duration::from_millis(ms).min(Duration::from_secs(60)));
    End::Failed(format!("{:?}: {}", status.code(), status.message()), retry_after)
}
