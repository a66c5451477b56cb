//! The threads on which signatures are verified: few, with a short queue, apart from those that answer warm checks.
//!
//! Plane: shared. Threads of their own, so that no runtime is assumed and a flood of tokens that have to be verified
//! takes no more of the machine than these threads do. What finds the queue full is turned away at once, and what has
//! waited too long is told so when its turn comes, without a verification. A job that panics ends alone. Whatever is
//! turned away, late or lost is for the caller to deny: nothing here ever allows.
//! INVARIANT: what anybody can send (tokens) takes no place of what only the holder of a good token can (proofs), and
//! neither keeps the other waiting for ever.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::authz::Deferred;

/// How many proofs in a row may go before a token that waits.
const PROOFS_IN_A_ROW: usize = 4;

/// How much verification there may be at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerificationLimits {
    /// Threads.
    pub threads: usize,
    /// Jobs of a kind that may wait for one.
    pub queue: usize,
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
}

/// The queue of this kind is full.
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
    tokens: VecDeque<Job>,
    proofs: VecDeque<Job>,
    /// Proofs that went before a token that waited, since a token last had its turn.
    proofs_in_a_row: usize,
    closed: bool,
}

struct Job {
    since: Instant,
    run: Box<dyn FnOnce(Turn) + Send>,
}

// === impl VerificationLimits ===

impl Default for VerificationLimits {
    /// Half of the processors, so that the other half is left for what needs no verification.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { threads: (processors / 2).max(1), queue: 256, max_wait: Duration::from_millis(100) }
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

    /// Queues a job. One that is never run, because the pool ended, is dropped.
    pub fn submit(&self, what: Deferred, job: impl FnOnce(Turn) + Send + 'static) -> Result<(), QueueFull> {
        let mut queue = self.0.lock();
        let waiting = match what {
            Deferred::Token => &mut queue.tokens,
            Deferred::Proof => &mut queue.proofs,
        };
        if waiting.len() >= self.0.limits.queue {
            return Err(QueueFull);
        }
        waiting.push_back(Job { since: Instant::now(), run: Box::new(job) });
        drop(queue);
        self.0.changed.notify_one();
        Ok(())
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
        while let Some((job, turn)) = self.next() {
            // Whoever waits for the job sees that it ended without a word.
            let _panicked = catch_unwind(AssertUnwindSafe(|| (job.run)(turn)));
        }
    }

    /// The job whose turn it is; `None` at the end.
    fn next(&self) -> Option<(Job, Turn)> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(next) = queue.pop(self.limits.max_wait) {
                return Some(next);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

// === impl Queue ===

impl Queue {
    /// A proof, or a token once enough proofs have gone before one; of a kind, the one that has waited longest.
    fn pop(&mut self, max_wait: Duration) -> Option<(Job, Turn)> {
        let is_turn_of_token = self.proofs_in_a_row >= PROOFS_IN_A_ROW && !self.tokens.is_empty();
        let proof = if is_turn_of_token { None } else { self.proofs.pop_front() };
        if let Some(proof) = proof {
            self.proofs_in_a_row = if self.tokens.is_empty() { 0 } else { self.proofs_in_a_row.saturating_add(1) };
            let turn = proof.turn(max_wait);
            return Some((proof, turn));
        }
        let token = self.tokens.pop_front()?;
        let turn = token.turn(max_wait);
        // One that is too late verifies nothing: the turn is for the next, or a flood would use all of them up.
        if turn == Turn::Now {
            self.proofs_in_a_row = 0;
        }
        Some((token, turn))
    }
}

// === impl Job ===

impl Job {
    fn turn(&self, max_wait: Duration) -> Turn {
        if self.since.elapsed() >= max_wait { Turn::TooLate } else { Turn::Now }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn pool(queue: usize, max_wait: Duration) -> VerificationPool {
        VerificationPool::start(VerificationLimits { threads: 1, queue, max_wait }).unwrap()
    }

    /// Occupies the only thread until the sender is dropped.
    fn occupy(pool: &VerificationPool) -> mpsc::Sender<()> {
        let (entered, is_in) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        pool.submit(Deferred::Token, move |_| {
            entered.send(()).unwrap();
            let _ = released.recv();
        })
        .unwrap();
        is_in.recv().unwrap();
        release
    }

    #[test]
    fn a_full_queue_turns_away_at_once_and_serves_in_order() {
        let pool = pool(2, LONG);
        let release = occupy(&pool);
        let (told, heard) = mpsc::channel();
        for n in [1, 2] {
            let told = told.clone();
            pool.submit(Deferred::Token, move |turn| told.send((n, turn)).unwrap()).unwrap();
        }
        assert_eq!(pool.submit(Deferred::Token, |_| {}), Err(QueueFull));
        drop(release);
        assert_eq!([heard.recv().unwrap(), heard.recv().unwrap()], [(1, Turn::Now), (2, Turn::Now)]);
        assert_eq!(pool.submit(Deferred::Token, |_| {}), Ok(()), "there is room again");
    }

    /// Who is served, in order, of a token and proofs that wait for the only thread.
    fn served(tokens: usize, proofs: usize, queue: usize) -> Vec<Deferred> {
        let pool = pool(queue, LONG);
        let release = occupy(&pool);
        let (told, heard) = mpsc::channel();
        for (what, count) in [(Deferred::Token, tokens), (Deferred::Proof, proofs)] {
            for _ in 0..count {
                let told = told.clone();
                pool.submit(what, move |_| told.send(what).unwrap()).unwrap();
            }
        }
        drop((release, told));
        heard.iter().collect()
    }

    #[test]
    fn proofs_have_room_of_their_own_and_go_before_tokens() {
        let pool = pool(2, LONG);
        let release = occupy(&pool);
        for what in [Deferred::Token, Deferred::Proof] {
            assert_eq!([0; 3].map(|_| pool.submit(what, |_| {})), [Ok(()), Ok(()), Err(QueueFull)], "{what:?}");
        }
        drop(release);
        use Deferred::{Proof, Token};
        assert_eq!(served(2, 2, 2), [Proof, Proof, Token, Token]);
    }

    #[test]
    fn a_token_gets_its_turn_under_a_flood_of_proofs() {
        use Deferred::{Proof, Token};
        let four_then_one = [Proof, Proof, Proof, Proof, Token];
        assert_eq!(served(3, 20, 100)[..15], four_then_one.repeat(3));
        // Proofs with no token behind them keep none waiting.
        assert_eq!(served(0, 20, 100), [Proof; 20]);
    }

    #[test]
    fn a_token_that_is_too_late_uses_up_no_turn() {
        let since = Instant::now();
        let job = || Job { since, run: Box::new(|_| {}) };
        let mut queue = Queue {
            tokens: [job(), job()].into(),
            proofs: [job()].into(),
            proofs_in_a_row: PROOFS_IN_A_ROW,
            closed: false,
        };
        let mut pop = |max_wait| queue.pop(max_wait).map(|(_, turn)| (turn, queue.tokens.len(), queue.proofs.len()));
        assert_eq!(pop(Duration::ZERO), Some((Turn::TooLate, 1, 1)));
        assert_eq!(pop(LONG), Some((Turn::Now, 0, 1)), "the next token, before any proof");
        assert_eq!(pop(LONG), Some((Turn::Now, 0, 0)));
        assert_eq!(pop(LONG), None);
    }

    #[test]
    fn what_waits_too_long_is_told_so() {
        let pool = pool(1, Duration::ZERO);
        let (told, heard) = mpsc::channel();
        pool.submit(Deferred::Token, move |turn| told.send(turn).unwrap()).unwrap();
        assert_eq!(heard.recv().unwrap(), Turn::TooLate);
    }

    #[test]
    fn a_job_that_panics_ends_alone() {
        let pool = pool(2, LONG);
        let (told, heard) = mpsc::channel();
        let lost = told.clone();
        pool.submit(Deferred::Token, move |_| {
            let _lost = lost;
            panic!("as a bug would");
        })
        .unwrap();
        pool.submit(Deferred::Token, move |turn| told.send(turn).unwrap()).unwrap();
        assert_eq!(heard.iter().collect::<Vec<_>>(), [Turn::Now]);
    }

    #[test]
    fn what_still_waits_at_the_end_is_dropped() {
        let pool = pool(1, LONG);
        let release = occupy(&pool);
        let (told, heard) = mpsc::channel();
        pool.submit(Deferred::Token, move |turn| told.send(turn).unwrap()).unwrap();
        drop(pool);
        assert_eq!(heard.recv().ok(), None, "dropped, not run");
        drop(release);
    }
}
