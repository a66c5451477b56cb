//! One sidecar's stream, from its first frame to its end.
//!
//! Plane: control. The stream remembers only how far it has got and pulls from the index, so a slow one costs no
//! memory: what is pending merges, and when the log does not reach back any more it starts over with a snapshot.
//! INVARIANT: frames are in commit order; a bookmark's time was read before it was checked that nothing newer is in
//! the index. The stream ends when its credential expires or is revoked: it never outlives its right.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Status, Streaming};
use uuid::Uuid;

use super::auth::{Principal, Trust};
use super::frames::{Sealer, batches, next_chunk};
use super::{Shared, exhausted, unavailable};
use crate::control::fleet::{Connection, Point};
use crate::offload::offload;
use crate::wire::proto::{self, ClientFrame, Hello, ServerFrame, client_frame::Frame, payload::Body};
use crate::wire::{Epoch, Position, Revision};

/// How many commits are taken from the index at a time.
const LOG_BATCH: usize = 4096;
/// How long revisions with nothing in scope are gathered into one empty delta.
const LINGER: Duration = Duration::from_millis(100);
/// The longest text that is taken from a sidecar.
const MAX_TEXT: usize = 1024;

pub(super) type Outbound = mpsc::Sender<Result<ServerFrame, Status>>;

/// A stream.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) principal: Principal,
    pub(super) point: Arc<Point>,
    pub(super) out: Outbound,
}

/// The sending half, once the sidecar has said where it stands.
struct Writer<'a> {
    session: &'a Session,
    sealer: Sealer,
    trust: Arc<Trust>,
    /// The position the sidecar is at once it has read all that was sent.
    sent: &'a AtomicU64,
    /// How far the log was looked through: what lies between `sent` and here does not concern the sidecar.
    scanned: Revision,
}

// === impl Session ===

impl Session {
    /// Serves the stream to its end.
    pub(super) async fn run(self, mut inbound: Streaming<ClientFrame>) {
        let error = match self.serve(&mut inbound).await {
            Ok(()) => return,
            Err(status) => status,
        };
        tracing::info!(identity = %self.principal.identity, code = ?error.code(), reason = error.message(), "sync stream ended");
        let _ = tokio::time::timeout(Duration::from_secs(1), self.out.send(Err(error))).await;
    }

    async fn serve(&self, inbound: &mut Streaming<ClientFrame>) -> Result<(), Status> {
        let hello = tokio::time::timeout(self.shared.config.hello_timeout, read_hello(inbound))
            .await
            .map_err(|_elapsed| Status::deadline_exceeded("no hello in time"))??;
        let instance = Uuid::try_parse(&hello.instance)
            .map_err(|_not_a_uuid| Status::invalid_argument("hello: `instance` is not a UUID"))?
            .to_string();
        let connection = self
            .shared
            .fleet
            .connected(&self.principal.identity, &instance, &clip(&hello.version, 64))
            .map_err(|e| exhausted(&e.to_string(), self.shared.config.retry_after))?;
        tracing::info!(identity = %self.principal.identity, instance, "sync stream opened");
        let sent = AtomicU64::new(0);
        let epoch = self.shared.index.position().epoch;
        let ends_in = self.principal.expires_at.since(self.shared.clock.now().wall);
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => Err(unavailable("the control plane is shutting down", self.shared.config.retry_after)),
            () = tokio::time::sleep(ends_in) => Err(Status::unauthenticated("the credential of this stream has expired")),
            r = read(inbound, &connection, epoch, &sent, |said| self.said(&said)) => r,
            r = self.write(&hello, &sent) => r,
        }
    }

    fn said(&self, said: &Said) {
        match said {
            // How long the commit took to get here and back, while the log still knows when it was.
            Said::Acknowledged(revision) => {
                if let Some(at) = self.shared.index.committed_at(*revision) {
                    self.shared.metrics.fanned_out(self.shared.clock.now().wall.since(at));
                }
            }
            Said::KeyMissing(issuer) => self.shared.auth.key_is_missing(issuer),
        }
    }

    async fn write(&self, hello: &Hello, sent: &AtomicU64) -> Result<(), Status> {
        let index = &self.shared.index;
        let mut tip = index.subscribe();
        let epoch = index.position().epoch;
        // It may have been revoked since it was looked at: a confirmation or the hello may have taken its time.
        let trust = self.shared.auth.trust();
        trust.check(&self.principal)?;
        let mut writer = Writer {
            session: self,
            sealer: Sealer::new(Arc::clone(&self.shared.key), epoch, &self.point.scope),
            trust,
            sent,
            scanned: Revision(0),
        };
        tip.mark_unchanged();
        match self.resume_from(hello)? {
            Some(revision) => {
                writer.scanned = revision;
                sent.store(revision.0, Ordering::SeqCst);
            }
            None => writer.snapshot().await?,
        }
        let mut tick = tokio::time::interval(self.shared.config.bookmark_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut linger_until = None;
        loop {
            if writer.scanned.0 > sent.load(Ordering::SeqCst) {
                linger_until.get_or_insert_with(|| Instant::now() + LINGER);
            } else {
                linger_until = None;
            }
            tokio::select! {
                biased;
                // The first tick comes at once: a sidecar that has caught up gets its lease with no delay.
                _ = tick.tick() => writer.bookmark().await?,
                changed = tip.changed() => {
                    changed.map_err(|_closed| unavailable("the index is gone", self.shared.config.retry_after))?;
                    writer.pump().await?;
                }
                () = sleep_until(linger_until) => writer.flush().await?,
            }
        }
    }

    /// Where a delta can start, or `None` when a snapshot is needed.
    fn resume_from(&self, hello: &Hello) -> Result<Option<Revision>, Status> {
        let tip = self.shared.index.position();
        let Some(cursor) = &hello.cursor else { return Ok(None) };
        let epoch = Epoch::parse(&cursor.epoch).map_err(|e| Status::invalid_argument(format!("hello: {e}")))?;
        let at = Position { epoch, revision: Revision(cursor.revision) };
        if at > tip {
            // A snapshot would be refused by the sidecar, which never goes back.
            return Err(Status::failed_precondition(format!(
                "the sidecar is at `{at}`, ahead of this control plane at `{tip}`: \
                 was the store restored from an older copy without a new epoch?"
            )));
        }
        let delta = at.epoch == tip.epoch && at.revision >= self.shared.index.floor() && !hello.want_snapshot;
        Ok(delta.then_some(at.revision))
    }

    async fn send(&self, frame: ServerFrame) -> Result<(), Status> {
        match tokio::time::timeout(self.shared.config.send_timeout, self.out.send(Ok(frame))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_closed)) => Err(Status::cancelled("the sidecar has gone")),
            Err(_elapsed) => Err(Status::deadline_exceeded("the sidecar does not read")),
        }
    }
}

// === impl Writer ===

impl Writer<'_> {
    /// Sends what has been committed since. Revisions with nothing in scope wait to be gathered.
    async fn pump(&mut self) -> Result<(), Status> {
        let index = &self.session.shared.index;
        loop {
            self.check_credential()?;
            let Some(log) = index.since(self.scanned, LOG_BATCH) else {
                tracing::info!(identity = %self.session.principal.identity, "the log does not reach back to a slow stream");
                return self.snapshot().await;
            };
            if log.is_empty() {
                return Ok(());
            }
            for batch in batches(&log, &self.session.point.services) {
                self.scanned = batch.to;
                if !batch.objects.is_empty() {
                    self.delta(batch.objects).await?;
                }
            }
        }
    }

    /// Sends what has been gathered without anything in scope, as an empty delta.
    async fn flush(&mut self) -> Result<(), Status> {
        if self.scanned.0 > self.sent.load(Ordering::SeqCst) { self.delta(Vec::new()).await } else { Ok(()) }
    }

    async fn delta(&self, objects: Vec<proto::Object>) -> Result<(), Status> {
        let from = self.sent.load(Ordering::SeqCst);
        // Before sending: the acknowledgement may come back before `send` returns.
        self.sent.store(self.scanned.0, Ordering::SeqCst);
        self.session.send(self.sealer.seal(Body::Delta(proto::Delta { from, to: self.scanned.0, objects }))).await
    }

    async fn bookmark(&mut self) -> Result<(), Status> {
        // INVARIANT: the time is read before the tip; a commit after this time cannot hide behind the bookmark.
        let now = self.session.shared.clock.now().wall;
        self.pump().await?;
        self.flush().await?;
        let config = &self.session.shared.config;
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let bookmark = proto::Bookmark {
            revision: self.scanned.0,
            lease_ms: ms(config.lease),
            max_staleness_ms: ms(self.session.shared.fleet.max_staleness()),
            server_time_ms: now.as_millis(),
        };
        self.session.send(self.sealer.seal(Body::Bookmark(bookmark))).await
    }

    async fn snapshot(&mut self) -> Result<(), Status> {
        let shared = &self.session.shared;
        let Ok(_permit) = Arc::clone(&shared.snapshots).try_acquire_owned() else {
            return Err(exhausted("too many snapshots are being sent", shared.config.retry_after));
        };
        let (index, point) = (Arc::clone(&shared.index), Arc::clone(&self.session.point));
        let (position, objects) = offload(move || index.concerning(&point.services))
            .await
            .map_err(|_unfinished| Status::internal("the snapshot could not be gathered"))?;
        let (revision, count) = (position.revision.0, objects.len() as u64);
        let id = Uuid::new_v4().to_string();
        let begin = proto::SnapshotBegin { revision, id: id.clone(), objects: count };
        self.session.send(self.sealer.seal(Body::Begin(begin))).await?;
        let mut rest = objects.into_iter();
        let mut sequence = 0;
        loop {
            let objects = next_chunk(&mut rest);
            if objects.is_empty() {
                break;
            }
            self.check_credential()?;
            let chunk = proto::SnapshotChunk { id: id.clone(), sequence, objects };
            self.session.send(self.sealer.seal(Body::Chunk(chunk))).await?;
            sequence += 1;
        }
        self.scanned = position.revision;
        self.sent.store(revision, Ordering::SeqCst);
        let end = proto::SnapshotEnd { id, revision, chunks: sequence, objects: count };
        self.session.send(self.sealer.seal(Body::End(end))).await
    }

    /// Whether the credential still counts, after every commit.
    fn check_credential(&mut self) -> Result<(), Status> {
        let trust = self.session.shared.auth.trust();
        if !Arc::ptr_eq(&trust, &self.trust) {
            trust.check(&self.session.principal)?;
            self.trust = trust;
        }
        Ok(())
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

async fn read_hello(inbound: &mut Streaming<ClientFrame>) -> Result<Hello, Status> {
    match inbound.message().await?.and_then(|f| f.frame) {
        Some(Frame::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first frame must be a hello")),
    }
}

/// What a sidecar said that concerns others than its connection.
enum Said {
    Acknowledged(Revision),
    KeyMissing(String),
}

/// Takes in what the sidecar says until it ends the stream.
async fn read(
    inbound: &mut Streaming<ClientFrame>,
    connection: &Connection,
    epoch: Epoch,
    sent: &AtomicU64,
    tell: impl Fn(Said),
) -> Result<(), Status> {
    // A sidecar can only have applied what it was sent. Anything else would falsify receipts.
    let position = |revision: u64| {
        if revision > sent.load(Ordering::SeqCst) {
            return Err(Status::invalid_argument(format!("revision `{revision}` was never sent")));
        }
        Ok(Position { epoch, revision: Revision(revision) })
    };
    while let Some(frame) = inbound.message().await? {
        match frame.frame {
            Some(Frame::Ack(ack)) => {
                connection.acked(position(ack.revision)?);
                tell(Said::Acknowledged(Revision(ack.revision)));
            }
            Some(Frame::Nack(nack)) => {
                let object = format!("{}/{}", clip(&nack.kind, 64), clip(&nack.key, MAX_TEXT));
                tracing::warn!(object, error = clip(&nack.error, MAX_TEXT), "a sidecar cannot use an object");
                connection.nacked(position(nack.revision)?, object, clip(&nack.error, MAX_TEXT));
            }
            Some(Frame::KeyMissing(missing)) => tell(Said::KeyMissing(clip(&missing.issuer, MAX_TEXT))),
            Some(Frame::Hello(_)) => return Err(Status::invalid_argument("a second hello")),
            None => return Err(Status::invalid_argument("an unknown frame")),
        }
    }
    Ok(())
}

fn clip(text: &str, max: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(max).collect()
}
