//! One sidecar's stream, from its first frame to its end.
//!
//! Plane: control. The stream remembers only how far it has got and pulls from its scope's feed, so a slow one costs no
//! memory: what is pending merges, and when the log does not reach back any more it starts over with a snapshot.
//! INVARIANT: frames are in commit order; a bookmark's time was read before the feed checked that nothing newer is in
//! the index. The stream ends when its credential expires or is revoked: it never outlives its right.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Status, Streaming};
use uuid::Uuid;

use super::auth::Principal;
use super::door::Outbound;
use super::feed::{Feed, Made, Next, Terms};
use super::frames::PREFIX;
use super::uses::Reports;
use super::{MAX_FRAME_BYTES, Shared, exhausted};
use crate::control::fleet::{Connection, Point};
use crate::control::workload_identity::Trust;
use crate::wire::proto::{ClientFrame, Hello, client_frame::Frame};
use crate::wire::{Epoch, Position, Revision};

/// For how long a bookmark is good enough for the other streams of its scope.
const BOOKMARK_SHARED: Duration = Duration::from_millis(500);
/// The longest text that is taken from a sidecar.
const MAX_TEXT: usize = 1024;
/// Who reads a snapshot more slowly than so many bytes a second is turned away: slow links pass, idle readers do not.
const SLOWEST_SNAPSHOT: usize = 256 * 1024;

/// A stream.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) principal: Principal,
    pub(super) point: Arc<Point>,
    pub(super) out: mpsc::Sender<Outbound>,
}

/// The sending half, once the sidecar has said where it stands.
struct Writer<'a> {
    session: &'a Session,
    feed: Arc<Feed>,
    trust: Arc<Trust>,
    /// The position the sidecar is at once it has read all that was sent.
    sent: &'a AtomicU64,
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
        let _ = tokio::time::timeout(Duration::from_secs(1), self.out.send(Outbound::End(Box::new(error)))).await;
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
            .map_err(|e| exhausted(&e.to_string(), self.shared.returns.hint(Duration::ZERO)))?;
        tracing::info!(identity = %self.principal.identity, instance, "sync stream opened");
        let sent = AtomicU64::new(0);
        let epoch = self.shared.index.position().epoch;
        let ends_in = self.principal.expires_at.since(self.shared.clock.now().wall);
        let reports = Reports::of(self);
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => Err(self.shared.unavailable("the control plane is shutting down")),
            () = tokio::time::sleep(ends_in) => Err(Status::unauthenticated("the credential of this stream has expired")),
            r = read(inbound, &connection, epoch, &sent, |said| self.said(&said), &reports) => r,
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
        // It may have been revoked since it was looked at: a confirmation or the hello may have taken its time.
        let trust = self.shared.auth.trust();
        self.principal.check(&trust)?;
        let feed = self.shared.feed(&self.point);
        let mut head = feed.subscribe();
        let mut writer = Writer { session: self, feed, trust, sent };
        match self.resume_from(hello)? {
            Some(revision) => sent.store(revision.0, Ordering::SeqCst),
            None => Box::pin(writer.snapshot()).await?,
        }
        head.mark_changed();
        let mut tick = tokio::time::interval(self.shared.config.bookmark_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                // The first tick comes at once: a sidecar that has caught up gets its lease with no delay.
                _ = tick.tick() => writer.bookmark().await?,
                changed = head.changed() => {
                    changed.map_err(|_closed| self.shared.unavailable("the index is gone"))?;
                    writer.pump().await?;
                }
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

    async fn send(&self, message: Bytes) -> Result<(), Status> {
        if message.len() > MAX_FRAME_BYTES + PREFIX {
            return Err(Status::out_of_range(format!("a frame of {} bytes is larger than allowed", message.len())));
        }
        match tokio::time::timeout(self.shared.config.send_timeout, self.out.send(Outbound::Message(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_closed)) => Err(Status::cancelled("the sidecar has gone")),
            Err(_elapsed) => Err(Status::deadline_exceeded("the sidecar does not read")),
        }
    }
}

// === impl Writer ===

impl Writer<'_> {
    /// Sends what the feed has.
    async fn pump(&mut self) -> Result<(), Status> {
        loop {
            self.check_credential()?;
            match self.feed.next(self.at()) {
                Next::Delta(made) => self.delta(made).await?,
                Next::Nothing => return Ok(()),
                Next::Snapshot => {
                    tracing::info!(identity = %self.session.principal.identity, "the log does not reach back to a slow stream");
                    Box::pin(self.snapshot()).await?;
                }
            }
        }
    }

    async fn delta(&self, made: Made) -> Result<(), Status> {
        // Before sending: the acknowledgement may come back before `send` returns.
        self.sent.store(made.to.0, Ordering::SeqCst);
        self.session.send(made.message).await
    }

    async fn bookmark(&mut self) -> Result<(), Status> {
        self.pump().await?;
        let shared = &self.session.shared;
        let config = &shared.config;
        let terms = Terms {
            lease: config.lease,
            max_staleness: shared.fleet.max_staleness(),
            shared_for: (config.bookmark_interval / 4).min(BOOKMARK_SHARED),
        };
        // INVARIANT: the time is read before the feed looks at the index.
        let now = shared.clock.now();
        let Some(marked) = self.feed.bookmark(self.at(), now, terms) else {
            // The next tick brings one, once there is a snapshot to speak of.
            return Box::pin(self.snapshot()).await;
        };
        for made in marked.before {
            self.delta(made).await?;
        }
        self.session.send(marked.message).await
    }

    async fn snapshot(&mut self) -> Result<(), Status> {
        let (session, feed) = (self.session, Arc::clone(&self.feed));
        let shared = &session.shared;
        let turned_away = |room| exhausted("too many snapshots are being sent", shared.returns.hint(room));
        let _place = shared.snapshots.place(feed.expected_bytes()).await.map_err(turned_away)?;
        let Some((snapshot, revision)) = feed.snapshot().await else {
            return Err(Status::internal("the snapshot could not be gathered"));
        };
        // Others wait in line for its place.
        let time = Duration::from_secs((snapshot.bytes() / SLOWEST_SNAPSHOT) as u64)
            .saturating_add(shared.config.send_timeout);
        let deadline = Instant::now() + time;
        session.send(snapshot.begin(feed.sealer(), revision)).await?;
        let mut sequence = 0;
        loop {
            self.check_credential()?;
            if Instant::now() > deadline {
                return Err(Status::deadline_exceeded("the snapshot is read too slowly"));
            }
            let Some(chunk) = snapshot.chunk(feed.sealer(), sequence) else { break };
            session.send(chunk).await?;
            sequence += 1;
        }
        self.sent.store(revision.0, Ordering::SeqCst);
        session.send(snapshot.end(feed.sealer(), revision)).await
    }

    fn at(&self) -> Revision {
        Revision(self.sent.load(Ordering::SeqCst))
    }

    /// Whether the credential still counts, after every commit.
    fn check_credential(&mut self) -> Result<(), Status> {
        let trust = self.session.shared.auth.trust();
        if !Arc::ptr_eq(&trust, &self.trust) {
            self.session.principal.check(&trust)?;
            self.trust = trust;
        }
        Ok(())
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
    reports: &Reports<'_>,
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
            Some(Frame::Uses(said)) => reports.report(said).await,
            Some(Frame::Hello(_)) => return Err(Status::invalid_argument("a second hello")),
            None => return Err(Status::invalid_argument("an unknown frame")),
        }
    }
    Ok(())
}

fn clip(text: &str, max: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(max).collect()
}
