//! What the streams of one scope are sent: deltas and bookmarks, each encoded and signed once and shared by reference.
//!
//! Plane: control. A feed belongs to one scope (identity and services) and lives as long as one of its streams. INVARIANT:
//! everything in it was made for that scope; streams of another scope never see it. Deltas join without a gap. Who stands
//! between two deltas, or behind the oldest that is kept, is given one made from the log, up to where the feed stands.
//! INVARIANT: a bookmark's time was read before it was checked that nothing newer is in the index, and it is given only
//! to a stream that has been sent everything up to its revision. Bounded: so many deltas and bytes, of all feeds together,
//! for so long; what is not kept is made again from the log, and what is older than that takes a snapshot.

mod log;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use self::log::{KEPT_BYTES, Kept, Log};
use super::frames::{Sealer, first_batch};
use super::snapshot::Snapshot;
use crate::clock::Now;
use crate::control::fleet::Point;
use crate::control::index::{Change, Index};
use crate::offload::offload;
use crate::wire::Revision;
use crate::wire::proto::{self, payload::Body};

/// How many commits are taken from the index at a time.
const LOG_BATCH: usize = 4096;
/// Who is more deltas behind than this gets them merged.
const MERGED_BEYOND: usize = 4;
/// How many merged deltas are kept for others in the same place.
const MERGED_KEPT: usize = 4;

/// About how many bytes an object has.
const USUAL_OBJECT: usize = 512;

/// The feed of a scope.
#[derive(Debug)]
pub(super) struct Feed {
    index: Arc<Index>,
    sealer: Sealer,
    services: Box<[Box<str>]>,
    kept_by_all: Arc<AtomicUsize>,
    log: Mutex<Log>,
    /// Where it stands, to wake the streams.
    head: watch::Sender<Revision>,
    snapshot: Mutex<Weak<Snapshot>>,
    /// How many bytes the last one was.
    snapshot_bytes: AtomicUsize,
    task: OnceLock<AbortOnDropHandle<()>>,
}

/// How a feed is paced: by how many streams there are to be served.
pub(super) trait Pace: Send + Sync + 'static {
    /// How long revisions with nothing in scope are gathered into one empty delta.
    fn linger(&self) -> Duration;
    /// How long after a delta the next one is gathered.
    fn gather(&self) -> Duration;
}

/// A delta.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub(super) from: Revision,
    pub(super) to: Revision,
    pub(super) message: Bytes,
}

/// What a stream is to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Send this.
    Delta(Made),
    /// Nothing: it has everything.
    Nothing,
    /// Start over: the log does not reach back to it.
    Snapshot,
}

/// A bookmark, and what has to be sent before it.
#[derive(Debug)]
pub(super) struct Marked {
    pub(super) before: Vec<Made>,
    pub(super) message: Bytes,
}

/// What a bookmark says beside its revision and its time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) lease: Duration,
    pub(super) max_staleness: Duration,
    /// For how long one is good enough for other streams.
    pub(super) shared_for: Duration,
}

// === impl Feed ===

impl Feed {
    /// A feed that begins where the index stands.
    pub(super) fn start(
        index: Arc<Index>,
        sealer: Sealer,
        point: &Point,
        pace: Arc<impl Pace>,
        kept_by_all: &Arc<AtomicUsize>,
    ) -> Arc<Self> {
        let tip = index.subscribe();
        let at = index.position().revision;
        let feed = Arc::new(Self {
            index,
            sealer,
            services: point.services.clone(),
            kept_by_all: Arc::clone(kept_by_all),
            log: Mutex::new(Log::at(at)),
            head: watch::channel(at).0,
            snapshot: Mutex::new(Weak::new()),
            snapshot_bytes: AtomicUsize::new(0),
            task: OnceLock::new(),
        });
        let task = tokio::spawn(follow(Arc::downgrade(&feed), tip, pace));
        let _ = feed.task.set(AbortOnDropHandle::new(task));
        feed
    }

    /// Changes whenever there is something to send.
    pub(super) fn subscribe(&self) -> watch::Receiver<Revision> {
        self.head.subscribe()
    }

    /// What a stream that has been sent everything up to `at` is sent next.
    pub(super) fn next(&self, at: Revision) -> Next {
        self.next_of(&mut self.lock(), at)
    }

    /// A bookmark for a stream at `at`, made at `now` or shortly before. `None` when the stream needs a snapshot.
    pub(super) fn bookmark(&self, at: Revision, now: Now, terms: Terms) -> Option<Marked> {
        let mut log = self.lock();
        log.forget_old();
        if at > log.sent {
            // It joined where the index stood, and the feed has not told of that yet.
            self.advance(&mut log, true);
        }
        let fresh =
            |made: &Now| now.mono.since(made.mono) <= terms.shared_for && now.wall.since(made.wall) <= terms.shared_for;
        let kept = log.bookmark.as_ref().filter(|(made, revision, _)| *revision == log.sent && fresh(made));
        let message = match kept {
            Some((_, _, message)) => message.clone(),
            None => {
                // INVARIANT: `now` was read before this looks at the index; a commit after that time cannot hide.
                self.advance(&mut log, true);
                let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
                let message = self.sealer.seal(Body::Bookmark(proto::Bookmark {
                    revision: log.sent.0,
                    lease_ms: ms(terms.lease),
                    max_staleness_ms: ms(terms.max_staleness),
                    server_time_ms: now.wall.as_millis(),
                }));
                log.bookmark = Some((now, log.sent, message.clone()));
                message
            }
        };
        let mut before: Vec<Made> = Vec::new();
        loop {
            match self.next_of(&mut log, before.last().map_or(at, |made| made.to)) {
                Next::Delta(made) => before.push(made),
                Next::Nothing => break,
                Next::Snapshot => return None,
            }
        }
        Some(Marked { before, message })
    }

    /// The snapshot that others of this scope are being sent, or a new one, and as of which revision it is true.
    pub(super) async fn snapshot(self: &Arc<Self>) -> Option<(Arc<Snapshot>, Revision)> {
        let shared = || self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let found = shared().upgrade();
        if let Some(found) = found
            && let Some(revision) = self.unchanged_until(found.revision())
        {
            return Some((found, revision));
        }
        let feed = Arc::clone(self);
        let made = offload(move || {
            let (position, objects) = feed.index.concerning(&feed.services);
            Snapshot::new(position.revision, objects)
        });
        let made = Arc::new(made.await.ok()?);
        *shared() = Arc::downgrade(&made);
        self.snapshot_bytes.store(made.bytes(), Ordering::Relaxed);
        let revision = made.revision();
        Some((made, revision))
    }

    /// About how many bytes a snapshot is, before it is gathered.
    pub(super) fn expected_bytes(&self) -> usize {
        let guess = self.index.count_concerning(&self.services).saturating_mul(USUAL_OBJECT);
        guess.max(self.snapshot_bytes.load(Ordering::Relaxed))
    }

    /// A message of this scope.
    pub(super) const fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// Up to which revision nothing in scope has happened since `revision`; `None` when something has.
    fn unchanged_until(&self, revision: Revision) -> Option<Revision> {
        let log = self.index.since(revision, LOG_BATCH)?;
        let concerns = |c: &Change| c.audience.includes(&self.services) || c.before.includes(&self.services);
        let changed = log.iter().flat_map(|l| &l.changes).any(concerns);
        (!changed).then(|| log.last().map_or(revision, |l| l.commit.revision))
    }

    fn next_of(&self, log: &mut Log, at: Revision) -> Next {
        if at > log.sent {
            // As in `bookmark`.
            self.advance(log, true);
        }
        if at >= log.sent {
            return Next::Nothing;
        }
        let place = log.deltas.binary_search_by_key(&at, |kept| kept.made.from).ok();
        if let Some(place) = place
            && log.deltas.len() - place <= MERGED_BEYOND
            && let Some(kept) = log.deltas.get(place)
        {
            return Next::Delta(kept.made.clone());
        }
        if let Some(kept) = log.merged.iter().find(|kept| kept.made.from == at && kept.made.to == log.sent) {
            return Next::Delta(kept.made.clone());
        }
        let missing = usize::try_from(log.sent.0 - at.0).unwrap_or(usize::MAX);
        let Some(commits) = self.index.since(at, missing.min(LOG_BATCH)) else { return Next::Snapshot };
        let Some(batch) = first_batch(&commits, &self.services) else { return Next::Snapshot };
        let made = self.make(at, batch.to, batch.objects);
        if log.merged.len() >= MERGED_KEPT {
            log.merged.pop_front();
        }
        if made.message.len() <= KEPT_BYTES / MERGED_KEPT {
            log.merged.extend(Kept::of(&made, &self.kept_by_all));
        }
        Next::Delta(made)
    }

    /// Takes in what has been committed. Revisions with nothing in scope are told of only when it is to `flush`.
    fn advance(&self, log: &mut Log, flush: bool) {
        let before = log.sent;
        loop {
            let Some(commits) = self.index.since(log.scanned, LOG_BATCH) else {
                // More than the log holds came at once; streams find out by themselves.
                *log = Log::at(self.index.position().revision);
                break;
            };
            let mut rest = commits.as_slice();
            while let Some(batch) = first_batch(rest, &self.services) {
                rest = rest.get(batch.commits..).unwrap_or_default();
                log.scanned = batch.to;
                if !batch.objects.is_empty() {
                    log.push(&self.make(log.sent, batch.to, batch.objects), &self.kept_by_all);
                }
            }
            if commits.len() < LOG_BATCH {
                break;
            }
        }
        if flush && log.scanned > log.sent {
            log.push(&self.make(log.sent, log.scanned, Vec::new()), &self.kept_by_all);
        }
        if log.sent != before {
            self.head.send_replace(log.sent);
        }
    }

    fn make(&self, from: Revision, to: Revision, objects: Vec<proto::Object>) -> Made {
        let message = self.sealer.seal(Body::Delta(proto::Delta { from: from.0, to: to.0, objects }));
        Made { from, to, message }
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a feed in step with the index, as long as somebody holds it.
async fn follow(feed: Weak<Feed>, mut tip: watch::Receiver<Revision>, pace: Arc<impl Pace>) {
    let mut linger_until: Option<Instant> = None;
    loop {
        let flush = tokio::select! {
            biased;
            changed = tip.changed() => match changed {
                Ok(()) => false,
                Err(_gone) => return,
            },
            () = sleep_until(linger_until) => true,
        };
        let Some(feed) = feed.upgrade() else { return };
        let (told, waiting) = {
            let mut log = feed.lock();
            let before = log.sent;
            feed.advance(&mut log, flush);
            (log.sent != before, log.scanned > log.sent)
        };
        drop(feed);
        linger_until =
            waiting.then(|| linger_until.filter(|_| !flush && !told).unwrap_or_else(|| Instant::now() + pace.linger()));
        let gather = pace.gather();
        if told && !flush && !gather.is_zero() {
            tokio::time::sleep(gather).await;
        }
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
