//! One stream from the control plane: hello, frames in order, acknowledgements.
//!
//! Plane: sync. Order for every revision: verify, build off the runtime's threads, put in force, make durable, wait
//! until no check uses the state before it, acknowledge. Putting in force comes first because a revocation should not
//! wait for a disk; acknowledging comes last because a receipt promises that no allow from before leaves this
//! enforcement point any more, not even after a restart. Waiting for checks does not hold up the next revision.
//! Long because that order, which is the point of it, is read here in one place.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, Streaming};

use super::Shared;
use super::apply::{self, Assembly, Built, Unusable};
use super::bootstrap::{Arrived, Bootstrap, BootstrapError, Ended};
use super::connect::reasons;
use super::frame::MAX_FRAME_BYTES;
use super::uses;
use crate::clock::Monotonic;
use crate::offload::offload;
use crate::state::Retired;
use crate::wire::proto::sync_client::SyncClient;
use crate::wire::proto::{self, Kind};
use crate::wire::proto::{
    Ack, Bookmark, ClientFrame, Cursor, Delta, Hello, KeyMissing, Nack, ServerFrame, client_frame::Frame, payload::Body,
};
use crate::wire::{Epoch, Position, RETRY_AFTER};

/// How long a frame of ours may wait for the control plane to read it.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the control plane may take to read what is given back.
const GIVING_BACK: Duration = Duration::from_secs(1);
/// How many messages of uses are sent between two frames that are read, how much room they leave for others, and when it is
/// looked again for some.
const USES_AT_ONCE: usize = 64;
const KEPT_FREE: usize = 32;
const NO_ROOM: Duration = Duration::from_millis(5);
/// How many objects a small delta has.
const SMALL: usize = 4;
/// How many unusable objects of one revision are reported one by one.
const MAX_NACKS: usize = 64;
/// How often it is looked for issuers with a missing key, and how often one is reported at most.
const MISSING_KEYS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// How a stream ended.
#[derive(Debug)]
pub(super) enum End {
    Stopped,
    /// A new snapshot is wanted, to start a new generation on disk.
    WantSnapshot,
    Failed {
        error: String,
        retry_after: Option<Duration>,
    },
}

/// The stream, and what was applied from this one and those before it.
pub(super) struct Session {
    shared: Arc<Shared>,
    /// The position in force.
    position: Option<Position>,
    /// Whether everything in force survives a restart, or nothing older does.
    durable: bool,
    /// What was put in force and is not acknowledged yet, with the state that it replaced, and whether it was replaced
    /// as a whole.
    unacknowledged: VecDeque<(Retired, Position, bool)>,
    bookmark_kept: Option<(Epoch, Instant)>,
    /// The last bookmark, while it is not on disk.
    bookmark_to_keep: Option<(ServerFrame, Monotonic)>,
    /// Issuers that were reported for a missing key a short while ago.
    reported: HashMap<Arc<str>, Instant>,
    stream: Stream,
}

/// What belongs to one stream only.
#[derive(Default)]
struct Stream {
    /// A snapshot that is arriving.
    assembly: Option<Bootstrap>,
    /// Whether something on this stream has fitted the position in force. Before that an acknowledgement could be
    /// taken for one of another epoch.
    confirmed: bool,
    acknowledged: Option<Position>,
    out: Option<mpsc::Sender<ClientFrame>>,
}

type Outcome<T> = Result<T, End>;

impl Session {
    pub(super) fn new(shared: Arc<Shared>, position: Option<Position>) -> Self {
        Self {
            shared,
            position,
            durable: false,
            unacknowledged: VecDeque::new(),
            bookmark_kept: None,
            bookmark_to_keep: None,
            reported: HashMap::new(),
            stream: Stream::default(),
        }
    }

    /// The position in force.
    pub(super) const fn position(&self) -> Option<Position> {
        self.position
    }

    /// Opens a stream and runs it to its end, or until `stop`. Never leaves work on the disk under way.
    pub(super) async fn run(&mut self, want_snapshot: bool, stop: &CancellationToken) -> End {
        self.stream = Stream::default();
        let end = match self.serve(want_snapshot, stop).await {
            Err(end) => end,
            Ok(()) => failed("the control plane ended the stream"),
        };
        if let Some(bootstrap) = self.stream.assembly.take() {
            bootstrap.give_up().await;
            self.shared.with_disk(super::disk::Disk::abandon);
        }
        end
    }

    /// Puts the last bookmark on disk, which dates the state at the next start.
    pub(super) async fn keep_bookmark(&mut self) {
        if let Some((frame, received)) = self.bookmark_to_keep.take() {
            // Whatever becomes of it, the one before it is still there.
            let _ = self.on_disk(move |d| d.bookmark(&frame, received)).await;
        }
    }

    async fn serve(&mut self, want_snapshot: bool, stop: &CancellationToken) -> Outcome<()> {
        let mut inbound = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(End::Stopped),
            inbound = self.open(want_snapshot) => inbound?,
        };
        self.shared.stats.connected(true);
        let mut silent_until = Instant::now() + self.shared.config.idle_timeout;
        let mut look_for_missing_keys = tokio::time::interval(MISSING_KEYS.0);
        look_for_missing_keys.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let shared = Arc::clone(&self.shared);
        let purse = shared.state.purse();
        purse.reconnected(shared.clock.now().mono);
        loop {
            let seen = purse.news().seen();
            let due = self.tell_of_uses();
            let waiting = self.stream.confirmed && !self.unacknowledged.is_empty();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(self.give_back_uses(inbound).await),
                frame = inbound.message() => {
                    match frame.map_err(|status| refused(&status))? {
                        Some(frame) => self.arrived((frame, Instant::now())).await?,
                        None => return Ok(()),
                    }
                    silent_until = Instant::now() + self.shared.config.idle_timeout;
                }
                ended = ended(&mut self.stream.assembly) => self.snapshot_ended(ended).await?,
                () = tokio::time::sleep_until(silent_until) => {
                    return Err(failed("the control plane has been silent for too long"));
                }
                () = tokio::time::sleep(Duration::from_millis(1)), if waiting => {}
                () = purse.news().after(seen) => {}
                () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => {}
                _ = look_for_missing_keys.tick() => self.report_missing_keys().await?,
            }
            self.acknowledge().await?;
        }
    }

    async fn open(&mut self, want_snapshot: bool) -> Outcome<Streaming<ServerFrame>> {
        let control = &self.shared.config.control_plane;
        let authorization = control.authorization().map_err(|e| failed(&reasons(&e)))?;
        let channel = control.connect().await.map_err(|e| failed(&reasons(&e)))?;
        let hello = Hello {
            cursor: self.position.map(|p| Cursor { epoch: p.epoch.to_string(), revision: p.revision.0 }),
            instance: self.shared.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            want_snapshot,
        };
        let (out, frames) = mpsc::channel(128);
        let _ = out.try_send(ClientFrame { frame: Some(Frame::Hello(hello)) });
        let mut request = Request::new(ReceiverStream::new(frames));
        if let Some(value) = authorization {
            request.metadata_mut().insert("authorization", value);
        }
        let mut client = SyncClient::new(channel).max_decoding_message_size(MAX_FRAME_BYTES + 1024);
        let opened = tokio::time::timeout(self.shared.config.idle_timeout, client.watch(request)).await;
        let response = opened.map_err(|_elapsed| failed("the control plane does not answer"))?;
        self.stream.out = Some(out);
        Ok(response.map_err(|status| refused(&status))?.into_inner())
    }

    /// Takes the next frame, here or where a snapshot is put together.
    async fn arrived(&mut self, arrived: Arrived) -> Outcome<()> {
        let Some(bootstrap) = self.stream.assembly.as_mut().filter(|b| b.is_elsewhere()) else {
            return self.frame(arrived).await;
        };
        match bootstrap.give(arrived).await {
            Ok(None) => Ok(()),
            Ok(Some((later, ended))) => {
                self.snapshot_ended(Ok(ended)).await?;
                Box::pin(self.arrived(later)).await
            }
            Err(e) => self.snapshot_ended(Err(e)).await,
        }
    }

    /// Puts the snapshot in force that was put together elsewhere, and goes on with the frames after it.
    async fn snapshot_ended(&mut self, ended: Result<Ended, BootstrapError>) -> Outcome<()> {
        // It has ended by itself, and there is nothing to wait for.
        self.stream.assembly = None;
        let Ended { built, last, mut rest } = match ended {
            Ok(ended) => ended,
            Err(e) => {
                self.shared.with_disk(super::disk::Disk::abandon);
                return Err(no_snapshot(e));
            }
        };
        match built {
            Some(built) => self.snapshot(built, last).await?,
            None => self.frame(last).await?,
        }
        while let Ok(later) = rest.try_recv() {
            Box::pin(self.arrived(later)).await?;
        }
        Ok(())
    }

    async fn snapshot(&mut self, built: Built, (frame, arrived): Arrived) -> Outcome<()> {
        let position = built.snapshot.position();
        let unusable = self.put_in_force(built, arrived, true);
        self.stream.confirmed = true;
        self.durable = self.on_disk(move |d| d.end(&frame, position)).await?.unwrap_or(true);
        self.report(position, unusable).await
    }

    async fn frame(&mut self, (frame, arrived): Arrived) -> Outcome<()> {
        let opened = self.shared.opener.open(&frame).map_err(|e| failed(&format!("a frame was refused: {e}")))?;
        match opened.body {
            Body::Allotment(given) => {
                uses::take_in(self.shared.state.purse(), &given, self.shared.clock.now().mono);
                Ok(())
            }
            Body::Delta(delta) => self.delta(&frame, opened.epoch, delta, arrived).await,
            Body::Bookmark(bookmark) => self.bookmark(frame, opened.epoch, &bookmark).await,
            Body::Begin(begin) => {
                // Not below what was ever in force, in this process or one before.
                let floor = self.shared.with_disk(|d| d.mark()).flatten().max(self.position);
                let current = self.shared.state.load().snapshot.clone();
                let assembly = Assembly::begin(opened.epoch, begin, floor, current.as_deref());
                // Not held any longer: what is in force is to be seen to go out of use.
                drop(current);
                let assembly = assembly.map_err(|e| failed(&e.to_string()))?;
                if let Some(unfinished) = self.stream.assembly.take() {
                    // Before the file of the new one is begun: nothing of the old one may get into it.
                    unfinished.give_up().await;
                }
                self.on_disk(move |d| d.begin(&frame)).await?;
                self.stream.assembly = Some(Bootstrap::start(assembly, &self.shared).map_err(no_snapshot)?);
                Ok(())
            }
            Body::Chunk(chunk) => {
                let Some(bootstrap) = &mut self.stream.assembly else {
                    return Err(failed("a chunk without a snapshot"));
                };
                bootstrap.chunk(opened.epoch, chunk, &frame).map_err(no_snapshot)
            }
            Body::End(end) => {
                let Some(bootstrap) = self.stream.assembly.take() else {
                    return Err(failed("an end without a snapshot"));
                };
                let built = bootstrap.end(opened.epoch, &end).map_err(no_snapshot)?;
                self.snapshot(built, (frame, arrived)).await
            }
        }
    }

    async fn delta(&mut self, frame: &ServerFrame, epoch: Epoch, delta: Delta, arrived: Instant) -> Outcome<()> {
        if self.stream.assembly.is_some() {
            return Err(failed("a delta in the middle of a snapshot"));
        }
        let changes = !delta.objects.is_empty();
        let revokes = delta.objects.iter().any(|o| o.kind() == Kind::Revocation);
        let current = self.shared.state.load().snapshot.clone();
        let Some(current) = current else { return Err(failed("a delta without a state to apply it to")) };
        // The closure owns and drops its reference to the state that is about to be replaced.
        let is_small = is_small(&delta);
        let work = move || apply::delta(&current, epoch, delta);
        let built = if is_small { work().map_err(|e| failed(&e.to_string()))? } else { blocking(work).await? };
        let position = built.snapshot.position();
        self.stream.confirmed = true;
        let unusable = self.put_in_force(built, arrived, false);
        if revokes {
            self.shared.stats.revoked(arrived.elapsed());
        }
        let frame = frame.clone();
        self.durable = self.on_disk(move |d| d.append(&frame, position, changes)).await?.unwrap_or(true);
        self.report(position, unusable).await?;
        self.ask_for_snapshot_if_needed()
    }

    async fn bookmark(&mut self, frame: ServerFrame, epoch: Epoch, bookmark: &Bookmark) -> Outcome<()> {
        let at = Position { epoch, revision: crate::wire::Revision(bookmark.revision) };
        let Some(local) = self.position.filter(|local| *local == at && self.stream.assembly.is_none()) else {
            let text = self.position.map_or_else(|| "no state".to_owned(), |p| p.to_string());
            return Err(failed(&format!("a bookmark for `{at}` came at `{text}`")));
        };
        self.stream.confirmed = true;
        let now = self.shared.clock.now();
        let lease = apply::lease(bookmark, now.mono, self.shared.config.max_staleness);
        if lease.is_from_the_future(now) {
            tracing::error!(
                server_time = %lease.server_time, local_time = %now.wall,
                "a bookmark from the future was refused: the clocks of sidecar and control plane differ too much"
            );
            return Ok(());
        }
        self.shared.state.renew(lease);
        if !self.durable {
            // After a disk failure, or for a state that came from disk: nothing older may come back.
            self.durable = self.on_disk(move |d| d.secure(local)).await?.unwrap_or(true);
        }
        // The first word of a stream after which the state is known to be right: it counts even without a change.
        if self.durable && self.unacknowledged.is_empty() && self.stream.acknowledged != Some(local) {
            self.send(Frame::Ack(Ack { revision: local.revision.0 })).await?;
            self.stream.acknowledged = Some(local);
        }
        let due = bookmark_interval(lease.max_staleness);
        self.bookmark_to_keep = Some((frame, now.mono));
        if self.bookmark_kept.is_none_or(|(kept, at)| kept != epoch || at.elapsed() >= due) {
            self.bookmark_kept = Some((epoch, Instant::now()));
            self.keep_bookmark().await;
        }
        Ok(())
    }

    /// Swaps the state, and remembers the one before until no check uses it.
    fn put_in_force(&mut self, built: Built, arrived: Instant, snapshot: bool) -> Vec<Unusable> {
        let position = built.snapshot.position();
        // INVARIANT: the applied position never falls; `Assembly` and `Replay` have made sure of it.
        let retired = self.shared.state.publish(Arc::new(built.snapshot));
        self.position = Some(position);
        let purse = self.shared.state.purse();
        if !purse.is_empty() {
            let world = self.shared.state.load();
            purse.retain(self.shared.clock.now().mono, |grant| {
                world.snapshot.as_ref().is_some_and(|s| s.counts_uses_of(grant))
            });
        }
        self.unacknowledged.push_back((retired, position, snapshot));
        self.shared.stats.applied(position.revision.0, arrived.elapsed(), snapshot, built.unusable.len());
        built.unusable
    }

    /// Reports what could not be used.
    async fn report(&mut self, position: Position, unusable: Vec<Unusable>) -> Outcome<()> {
        for bad in unusable.into_iter().take(MAX_NACKS) {
            tracing::error!(object = %format_args!("{}/{}", bad.kind, bad.key), error = bad.error, "an object cannot be used");
            let revision = position.revision.0;
            self.send(Frame::Nack(Nack { revision, kind: bad.kind, key: bad.key, error: bad.error })).await?;
        }
        Ok(())
    }

    /// Reports issuers whose tokens named an unknown key, each once in a while: the control plane may know more.
    async fn report_missing_keys(&mut self) -> Outcome<()> {
        let waiting = self.shared.state.missing_keys().take();
        if waiting.is_empty() {
            return Ok(());
        }
        self.reported.retain(|_, at| at.elapsed() < MISSING_KEYS.1);
        for issuer in waiting {
            if !self.reported.contains_key(&issuer) {
                self.send(Frame::KeyMissing(KeyMissing { issuer: issuer.to_string() })).await?;
                self.reported.insert(issuer, Instant::now());
            }
        }
        Ok(())
    }

    /// Tells what was spent, what is given back and what is wanted of the uses of grants: so much at a time, and only as
    /// far as there is room, so that reading goes on meanwhile. When there will be more to tell.
    fn tell_of_uses(&self) -> Option<Duration> {
        let (purse, now) = (self.shared.state.purse(), self.shared.clock.now().mono);
        let out = self.stream.out.as_ref()?;
        let room = out.capacity().saturating_sub(KEPT_FREE).min(USES_AT_ONCE);
        for message in purse.messages(now, room) {
            // There is room, and nobody else sends. What is lost with the stream is said again on the next.
            let _gone = out.try_send(ClientFrame { frame: Some(Frame::Uses(uses::told(&message))) });
        }
        let due = purse.due(now)?;
        Some(if room == 0 { due.max(NO_ROOM) } else { due })
    }

    /// The end of the process: nothing is spent any more, and what is left is given back.
    async fn give_back_uses(&mut self, mut inbound: Streaming<ServerFrame>) -> End {
        let purse = self.shared.state.purse();
        if purse.is_empty() {
            return End::Stopped;
        }
        let now = || self.shared.clock.now().mono;
        purse.close(now());
        let until = Instant::now() + GIVING_BACK;
        while purse.due(now()).is_some_and(|due| due.is_zero()) && Instant::now() < until {
            self.tell_of_uses();
            // Answers are read, so that the control plane goes on reading.
            let _read = tokio::time::timeout(Duration::from_millis(1), inbound.message()).await;
        }
        // The end of what we say; the control plane ends the stream once it has read that far.
        self.stream.out = None;
        let read = async { while let Ok(Some(_)) = inbound.message().await {} };
        let _late = tokio::time::timeout_at(until, read).await;
        End::Stopped
    }

    /// Acknowledges as far as no check uses anything older. Never before: an acknowledgement says that no answer from
    /// an older state leaves this enforcement point any more, and `revoke --wait` passes that on.
    async fn acknowledge(&mut self) -> Outcome<()> {
        if self.unacknowledged.is_empty() || !self.stream.confirmed {
            return Ok(());
        }
        let mut reached = None;
        let mut spent = Vec::new();
        for attempt in 0..8 {
            if attempt > 0 {
                tokio::task::yield_now().await;
            }
            while let Some((retired, position, whole)) = self.unacknowledged.pop_front() {
                if !retired.is_drained() {
                    self.unacknowledged.push_front((retired, position, whole));
                    break;
                }
                reached = Some(position);
                spent.extend(whole.then_some(retired));
            }
            if self.unacknowledged.is_empty() {
                break;
            }
        }
        if let Some(position) = reached.filter(|_| self.durable) {
            self.send(Frame::Ack(Ack { revision: position.revision.0 })).await?;
            self.stream.acknowledged = Some(position);
        }
        if !spent.is_empty() {
            // A state that shares nothing with the next takes a while to free.
            let _ = offload(move || drop(spent)).await;
        }
        Ok(())
    }

    fn ask_for_snapshot_if_needed(&self) -> Outcome<()> {
        match self.shared.with_disk(|d| d.journal_is_long()) {
            Some(true) if self.unacknowledged.is_empty() => Err(End::WantSnapshot),
            _ => Ok(()),
        }
    }

    async fn send(&self, frame: Frame) -> Outcome<()> {
        let Some(out) = &self.stream.out else { return Ok(()) };
        match tokio::time::timeout(SEND_TIMEOUT, out.send(ClientFrame { frame: Some(frame) })).await {
            Ok(Ok(())) => Ok(()),
            // The inbound side tells why.
            Ok(Err(_closed)) => Ok(()),
            Err(_elapsed) => Err(failed("the control plane does not read")),
        }
    }

    /// Runs `work` on the disk, off the runtime's threads.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut super::disk::Disk) -> T + Send + 'static,
    ) -> Outcome<Option<T>> {
        if self.shared.disk.is_none() {
            return Ok(None);
        }
        let shared = Arc::clone(&self.shared);
        blocking(move || Ok(shared.with_disk(work))).await
    }
}

/// Whether a delta is applied in less time than it takes to have another thread do it: a few objects, none of which has
/// anything compiled.
fn is_small(delta: &Delta) -> bool {
    let light = |o: &proto::Object| matches!(o.kind(), Kind::Grant | Kind::Revocation | Kind::Workload);
    delta.objects.len() <= SMALL && delta.objects.iter().all(light)
}

/// Waits until a snapshot that is put together elsewhere has ended; for ever when there is none.
async fn ended(bootstrap: &mut Option<Bootstrap>) -> Result<Ended, BootstrapError> {
    match bootstrap {
        Some(bootstrap) => bootstrap.ended().await,
        None => std::future::pending().await,
    }
}

/// How often the bookmark on disk is renewed: rarely enough for the disk, often enough that a restart loses little.
fn bookmark_interval(max_staleness: Duration) -> Duration {
    (max_staleness / 30).clamp(Duration::from_millis(500), Duration::from_secs(10))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, apply::ApplyError> + Send + 'static,
) -> Outcome<T> {
    match offload(work).await {
        Ok(result) => result.map_err(|e| failed(&e.to_string())),
        Err(e) => Err(failed(&format!("applying failed: {e}"))),
    }
}

fn no_snapshot(error: BootstrapError) -> End {
    failed(&error.to_string())
}

fn failed(error: &str) -> End {
    End::Failed { error: error.to_owned(), retry_after: None }
}

fn refused(status: &Status) -> End {
    // A hint is only a hint: a minute at most.
    let hint = status.metadata().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
    let retry_after = hint.map(|ms| Duration::from_millis(ms).min(Duration::from_secs(60)));
    End::Failed { error: format!("{:?}: {}", status.code(), status.message()), retry_after }
}
