//! The threads on which signatures are verified: few, with a short queue, apart from those that answer warm checks.
//!
//! Plane: shared. Threads of their own, so that no runtime is assumed and a flood of tokens that have to be verified
//! takes no more of the machine than these threads do. What finds the queue full is turned away at once, and what has
//! waited too long is told so when its turn comes, without a verification. A job that panics ends alone. Whatever is
//! turned away, late or lost is for the caller to deny: nothing here ever allows.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much verification there may be at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerificationLimits {
    /// Threads.
    pub threads: usize,
    /// Jobs that may wait for one.
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

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many tokens wait to be verified")]
pub struct QueueFull;

struct Shared {
    limits: VerificationLimits,
    queue: Mutex<Queue>,
    changed: Condvar,
}

struct Queue {
    waiting: VecDeque<Job>,
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
        let queue = Mutex::new(Queue { waiting: VecDeque::with_capacity(limits.queue), closed: false });
        let pool = Self(Arc::new(Shared { limits, queue, changed: Condvar::new() }));
        for n in 0..limits.threads.max(1) {
            let shared = Arc::clone(&pool.0);
            std::thread::Builder::new().name(format!("verify-{n}")).spawn(move || shared.work())?;
        }
        Ok(pool)
    }

    /// Queues a job. One that is never run, because the pool ended, is dropped.
    pub fn submit(&self, job: impl FnOnce(Turn) + Send + 'static) -> Result<(), QueueFull> {
        let mut queue = self.0.lock();
        if queue.waiting.len() >= self.0.limits.queue {
            return Err(QueueFull);
        }
        queue.waiting.push_back(Job { since: Instant::now(), run: Box::new(job) });
        drop(queue);
        self.0.changed.notify_one();
        Ok(())
    }
}

impl Drop for VerificationPool {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.closed = true;
        let unheard = std::mem::take(&mut queue.waiting);
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
        while let Some(job) = self.next() {
            let turn = if job.since.elapsed() >= self.limits.max_wait { Turn::TooLate } else { Turn::Now };
            // Whoever waits for the job sees that it ended without a word.
            let _panicked = catch_unwind(AssertUnwindSafe(|| (job.run)(turn)));
        }
    }

    /// The job that has waited longest; `None` at the end.
    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(job) = queue.waiting.pop_front() {
                return Some(job);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
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
        pool.submit(move |_| {
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
            pool.submit(move |turn| told.send((n, turn)).unwrap()).unwrap();
        }
        assert_eq!(pool.submit(|_| {}), Err(QueueFull));
        drop(release);
        assert_eq!([heard.recv().unwrap(), heard.recv().unwrap()], [(1, Turn::Now), (2, Turn::Now)]);
        assert_eq!(pool.submit(|_| {}), Ok(()), "there is room again");
    }

    #[test]
    fn what_waits_too_long_is_told_so() {
        let pool = pool(1, Duration::ZERO);
        let (told, heard) = mpsc::channel();
        pool.submit(move |turn| told.send(turn).unwrap()).unwrap();
        assert_eq!(heard.recv().unwrap(), Turn::TooLate);
    }

    #[test]
    fn a_job_that_panics_ends_alone() {
        let pool = pool(2, LONG);
        let (told, heard) = mpsc::channel();
        let lost = told.clone();
        pool.submit(move |_| {
            let _lost = lost;
            panic!("as a bug would");
        })
        .unwrap();
        pool.submit(move |turn| told.send(turn).unwrap()).unwrap();
        assert_eq!(heard.iter().collect::<Vec<_>>(), [Turn::Now]);
    }

    #[test]
    fn what_still_waits_at_the_end_is_dropped() {
        let pool = pool(1, LONG);
        let release = occupy(&pool);
        let (told, heard) = mpsc::channel();
        pool.submit(move |turn| told.send(turn).unwrap()).unwrap();
        drop(pool);
        assert_eq!(heard.recv().ok(), None, "dropped, not run");
        drop(release);
    }
}
