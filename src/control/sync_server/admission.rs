//! Who may have a snapshot now, who waits, and when those who are turned away come back.
//!
//! Plane: control. A connection that waits costs little, one that is turned away costs another handshake: so newcomers
//! wait in line for a snapshot, first come first served, as long as their turn is near. Those beyond are told when there
//! will be room, each a time of its own, so that ten thousand do not come back in the same second. Streams that resume
//! never stand in this line. A small snapshot takes a small part of a place, so that a fleet of small scopes does not wait
//! as if each had a million grants. Bounded: the line holds streams that are counted already.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How long a newcomer may stand in line. Less than a sidecar waits for a first word.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// How many that are turned away may come back in a second.
const RETURNS_A_SECOND: u32 = 500;
/// The longest that anybody is asked to wait; sidecars heed no more.
const MAX_HINT: Duration = Duration::from_secs(60);
/// What a snapshot is thought to take until one was sent.
const FIRST_GUESS_MICROS: u64 = 20_000;
/// What a place is divided into, and how many bytes that is: together about what is held for a large one.
const PARTS: u32 = 1024;
const PART_BYTES: usize = 1024;

/// The line for snapshots.
#[derive(Debug)]
pub(super) struct Line {
    places: Arc<Semaphore>,
    /// In parts, as is `waiting`.
    size: usize,
    waiting: AtomicUsize,
    /// How long the last ones took, smoothed.
    took_micros: AtomicU64,
}

/// A place at the head of the line. How long it is held is how long a snapshot takes.
#[derive(Debug)]
pub(super) struct Place<'a> {
    line: &'a Line,
    since: Instant,
    _permit: OwnedSemaphorePermit,
}

/// When those who are turned away come back.
#[derive(Debug)]
pub(super) struct Returns {
    least: Duration,
    next: Mutex<Option<Instant>>,
}

struct Waiting<'a> {
    all: &'a AtomicUsize,
    own: usize,
}

// === impl Line ===

impl Line {
    /// So many large snapshots at a time.
    pub(super) fn new(places: usize) -> Self {
        let size = places.saturating_mul(PARTS as usize).min(Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(size)),
            size,
            waiting: AtomicUsize::new(0),
            took_micros: AtomicU64::new(FIRST_GUESS_MICROS),
        }
    }

    /// A place for a snapshot of so many bytes, as soon as there is one; or how long it would take, when that is too long.
    pub(super) async fn place(&self, bytes: usize) -> Result<Place<'_>, Duration> {
        if self.size == 0 {
            return Err(Duration::ZERO);
        }
        let parts = u32::try_from(bytes / PART_BYTES).unwrap_or(u32::MAX).clamp(1, PARTS);
        let waiting = Waiting::join(&self.waiting, parts as usize);
        let wait = self.wait(waiting.ahead());
        if wait > MAX_WAIT {
            return Err(wait);
        }
        let permit = tokio::time::timeout(MAX_WAIT, Arc::clone(&self.places).acquire_many_owned(parts)).await;
        match permit {
            Ok(Ok(permit)) => Ok(Place { line: self, since: Instant::now(), _permit: permit }),
            // Closed never happens; slower than thought does.
            Ok(Err(_)) | Err(_) => Err(self.wait(waiting.ahead()).max(MAX_WAIT)),
        }
    }

    /// How long somebody with so many parts ahead has to wait.
    fn wait(&self, ahead: usize) -> Duration {
        let rounds = u64::try_from(ahead / self.size.max(1)).unwrap_or(u64::MAX);
        Duration::from_micros(self.took_micros.load(Ordering::Relaxed).saturating_mul(rounds))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let took = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let smoothed = |old: u64| Some(old.saturating_mul(7).saturating_add(took) / 8);
        let _ = self.line.took_micros.fetch_update(Ordering::Relaxed, Ordering::Relaxed, smoothed);
    }
}

// === impl Waiting ===

impl<'a> Waiting<'a> {
    fn join(all: &'a AtomicUsize, own: usize) -> Self {
        all.fetch_add(own, Ordering::Relaxed);
        Self { all, own }
    }

    fn ahead(&self) -> usize {
        self.all.load(Ordering::Relaxed).saturating_sub(self.own)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Ordering::Relaxed);
    }
}

// === impl Returns ===

impl Returns {
    /// Nobody comes back before `least`.
    pub(super) const fn new(least: Duration) -> Self {
        Self { least, next: Mutex::new(None) }
    }

    /// When one more may come back: each a little after the one before, and not before `room`.
    pub(super) fn hint(&self, room: Duration) -> Duration {
        let now = Instant::now();
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = next.map_or(now, |n| n.max(now));
        // Nobody is asked to wait longer than `MAX_HINT`, so the queue need not be longer either.
        *next = Some((mine + Duration::from_secs(1) / RETURNS_A_SECOND).min(now + MAX_HINT));
        let queue = mine.saturating_duration_since(now);
        self.least.max(room.min(MAX_HINT)).saturating_add(queue).min(MAX_HINT.max(self.least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_that_is_turned_away_is_given_a_later_time() {
        let least = Duration::from_secs(1);
        let returns = Returns::new(least);
        let hints: Vec<_> = (0..10_000).map(|_| returns.hint(Duration::ZERO)).collect();
        assert!(hints.windows(2).all(|w| w[0] < w[1]), "no two at the same time");
        assert!(hints[0] >= least && hints[9_999] >= Duration::from_secs(20) && hints[9_999] <= MAX_HINT);
        assert!(hints.iter().filter(|h| **h < Duration::from_secs(2)).count() <= 501, "so many in the first second");
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(returns.hint(Duration::ZERO), least, "once they are back, nobody waits for them");
        assert!(returns.hint(Duration::MAX) <= MAX_HINT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_waits_its_turn_and_only_when_it_is_near() {
        const LARGE: usize = usize::MAX;
        let line = Arc::new(Line::new(2));
        let (first, second) = (line.place(LARGE).await.unwrap(), line.place(LARGE).await.unwrap());
        let third = tokio::spawn({
            let line = Arc::clone(&line);
            async move { line.place(LARGE).await.map(drop) }
        });
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!third.is_finished(), "no place yet");
        drop(first);
        third.await.unwrap().unwrap();
        // Snapshots that take a second each: so many in line are too many.
        line.took_micros.store(1_000_000, Ordering::Relaxed);
        line.waiting.store(100 * PARTS as usize, Ordering::Relaxed);
        let wait = line.place(LARGE).await.unwrap_err();
        assert_eq!(wait, Duration::from_secs(50), "half of them a second each");
        line.waiting.store(0, Ordering::Relaxed);
        drop(second);
        assert!(line.took_micros.load(Ordering::Relaxed) > 1_000_000, "it has learnt how long one takes");
        let mut small = Vec::new();
        for _ in 0..1_000 {
            small.push(line.place(1_500).await.unwrap());
        }
        assert!(Line::new(0).place(1).await.is_err(), "no place at all");
    }
}
