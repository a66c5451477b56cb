//! The threads on which signatures are verified: few, with a short queue, apart from those that answer warm checks.
//!
//! Plane: shared. Threads of their own, so that no runtime is assumed and a flood of tokens that have to be verified
//! takes no more of the machine than these threads do. As many may wait as can be verified in time, by what verifications
//! have taken of late; one more is turned away at once. Sources take turns, and when there is no room the one that has most
//! waiting gives way. A job that panics ends alone. Whatever is turned away, late or lost is for the caller to deny: nothing
//! here ever allows. INVARIANT: what anybody can send (tokens) takes no place of what only the holder of a good token can
//! (proofs), and neither keeps the other waiting for ever.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::turns::{Source, Turns};
use crate::authz::Deferred;

/// After this long without a break a queue is no burst any more.
const STANDING: Duration = Duration::from_millis(100);
/// How much lower the priority of these threads is: those that answer get a processor at once, also where there is only
/// one, and these a tenth of it when all want all of it.
const GIVE_WAY: i32 = 10;
/// How many proofs in a row may go before a token that waits.
const PROOFS_IN_A_ROW: usize = 4;

/// How much verification there may be at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerificationLimits {
    /// Threads.
    pub threads: usize,
    /// Jobs of a kind that may wait for one: never more.
    pub queue: usize,
    /// No more may wait than can be verified in this time, and of a queue that stands none longer than this. Without, only
    /// `queue` counts.
    pub wait: Option<Duration>,
    /// How long a job may wait before it is too late.
    pub max_wait: Duration,
}

/// Threads that verify, and the jobs that wait for them. The threads end when it is dropped.
pub struct VerificationPool(Arc<Shared>);

/// What a job is told when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It may verify.
    Now,
    /// It has waited too long.
    TooLate,
    /// It made room for one from a source that had fewer waiting.
    MadeRoom,
}

/// As many of this kind wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many checks wait for their verification")]
pub struct QueueFull;

struct Shared {
    limits: VerificationLimits,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    tokens: Turns<Job>,
    proofs: Turns<Job>,
    usual: UsualTime,
    /// Proofs that went before a token that waited, since a token last had its turn.
    proofs_in_a_row: usize,
    /// Since when something has waited without a break.
    standing: Option<Instant>,
    closed: bool,
}

/// What a verification has taken of late. Not what came after it: where cores are few, the next one waits for the answers
/// and the refusals of others, and if that counted, a queue that refuses more would grow shorter and refuse more still.
#[derive(Debug, Clone, Copy, Default)]
struct UsualTime(Duration);

struct Job {
    since: Instant,
    run: Box<dyn FnOnce(Turn) + Send>,
}

// === impl VerificationLimits ===

impl Default for VerificationLimits {
    /// Half of the processors, so that the other half is left for what needs no verification.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let wait = Some(Duration::from_millis(20));
        Self { threads: (processors / 2).max(1), queue: 256, wait, max_wait: Duration::from_millis(100) }
    }
}

// === impl VerificationPool ===

impl VerificationPool {
    /// Starts the threads.
    pub fn start(limits: VerificationLimits) -> io::Result<Self> {
        let pool = Self(Arc::new(Shared { limits, queue: Mutex::default(), changed: Condvar::new() }));
        for n in 0..limits.threads.max(1) {
            let shared = Arc::clone(&pool.0);
            std::thread::Builder::new().name(format!("verify-{n}")).spawn(move || shared.work())?;
        }
        Ok(pool)
    }

    /// Queues a job. One that is never run, because the pool ended, is dropped. How many may wait now, if it may.
    pub fn submit(
        &self,
        what: Deferred,
        source: Source,
        job: impl FnOnce(Turn) + Send + 'static,
    ) -> Result<usize, QueueFull> {
        let mut queue = self.0.lock();
        let room = queue.usual.room(&self.0.limits);
        let waiting = match what {
            Deferred::Token => &mut queue.tokens,
            Deferred::Proof => &mut queue.proofs,
        };
        let job = Job { since: Instant::now(), run: Box::new(job) };
        let since = job.since;
        let pushed = waiting.push(source, job, room);
        queue.standing.get_or_insert(since);
        drop(queue);
        let made_room = pushed.map_err(|_refused| QueueFull)?;
        self.0.changed.notify_one();
        if let Some(job) = made_room {
            job.run(Turn::MadeRoom);
        }
        Ok(room)
    }
}

impl Drop for VerificationPool {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.closed = true;
        let unheard = (std::mem::take(&mut queue.tokens), std::mem::take(&mut queue.proofs));
        drop(queue);
        self.0.changed.notify_all();
        drop(unheard);
    }
}

impl fmt::Debug for VerificationPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerificationPool").field("limits", &self.0.limits).finish_non_exhaustive()
    }
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics under the lock; if it did, the queue would still be a queue.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        // On Linux this is about the calling thread. When it fails, warm checks wait longer under load.
        let _ = rustix::process::nice(GIVE_WAY);
        let mut took = None;
        while let Some((job, turn)) = self.next(took) {
            let begun = Instant::now();
            job.run(turn);
            took = (turn == Turn::Now).then(|| begun.elapsed());
            // Where cores are few, a check that needs no verification waits for one at most, not for a time slice.
            std::thread::yield_now();
        }
    }

    /// The job whose turn it is; `None` at the end.
    fn next(&self, took: Option<Duration>) -> Option<(Job, Turn)> {
        let mut queue = self.lock();
        took.into_iter().for_each(|took| queue.usual.learn(took));
        loop {
            if queue.closed {
                return None;
            }
            let patience = queue.patience(&self.limits, Instant::now());
            let next = queue.pop(patience);
            if queue.tokens.is_empty() && queue.proofs.is_empty() {
                queue.standing = None;
            }
            if next.is_some() {
                return next;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

// === impl Queue ===

impl Queue {
    /// How long a job may have waited. Of a queue that stands, no longer than it should be: those that came first would
    /// all be too late soon, and so would everybody after them.
    fn patience(&self, limits: &VerificationLimits, now: Instant) -> Duration {
        match (self.standing, limits.wait) {
            (Some(since), Some(wait)) if now.saturating_duration_since(since) >= STANDING => wait.min(limits.max_wait),
            _ => limits.max_wait,
        }
    }

    /// A proof, or a token once enough proofs have gone before one; of a kind, sources take turns.
    fn pop(&mut self, max_wait: Duration) -> Option<(Job, Turn)> {
        let is_turn_of_token = self.proofs_in_a_row >= PROOFS_IN_A_ROW && !self.tokens.is_empty();
        let proof = if is_turn_of_token { None } else { self.proofs.pop() };
        if let Some(proof) = proof {
            self.proofs_in_a_row = if self.tokens.is_empty() { 0 } else { self.proofs_in_a_row.saturating_add(1) };
            let turn = proof.turn(max_wait);
            return Some((proof, turn));
        }
        let token = self.tokens.pop()?;
        let turn = token.turn(max_wait);
        // One that is too late verifies nothing: the turn is for the next, or a flood would use all of them up.
        if turn == Turn::Now {
            self.proofs_in_a_row = 0;
        }
        Some((token, turn))
    }
}

// === impl UsualTime ===

impl UsualTime {
    /// An average of the last ones. One that took far longer, as when the machine stood still, counts as four times the
    /// usual; if all do, the average is there after a dozen.
    fn learn(&mut self, took: Duration) {
        let usual = self.0.max(Duration::from_micros(10));
        self.0 = (usual.saturating_mul(15).saturating_add(took.min(usual.saturating_mul(4)))) / 16;
    }

    /// How many of a kind may wait. At least four for each thread, so that a slow one does not stop all.
    fn room(self, limits: &VerificationLimits) -> usize {
        let Some(wait) = limits.wait else { return limits.queue };
        let threads = limits.threads.max(1);
        let in_time = wait.as_nanos().saturating_mul(threads as u128).checked_div(self.0.as_nanos());
        let in_time = in_time.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        in_time.max(threads.saturating_mul(4)).min(limits.queue)
    }
}

// === impl Job ===

impl Job {
    /// Tells the job. Whoever waits for it sees that it ended without a word if it panics.
    fn run(self, turn: Turn) {
        let _panicked = catch_unwind(AssertUnwindSafe(|| (self.run)(turn)));
    }

    fn turn(&self, max_wait: Duration) -> Turn {
        if self.since.elapsed() >= max_wait { Turn::TooLate } else { Turn::Now }
    }
}

#[cfg(test)]
mod tests;
