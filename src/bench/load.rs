//! One turn of load on one target: at a fixed rate, or as much as it takes.
//!
//! Plane: composition. At a fixed rate the loop is open: requests are due at times that no answer moves, and count from
//! then; one that finds every stream busy waits, and its wait counts. Saturated, the loop is closed: every stream sends as
//! soon as it has its answer, and latency counts from then, so that it says little.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::CreationError;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::pace::{Schedule, Timer};
use super::prepare::{Cursor, Plan};
use super::tally::{Due, Failure, Tally};
use super::target::{Lane, Target};

/// How load is put on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// So many requests a second.
    Rate(f64),
    /// As many as it takes.
    Saturate,
}

/// A turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) pace: Pace,
    pub(super) lasts: Duration,
    /// After so long a request is given up.
    pub(super) timeout: Duration,
}

/// A target with its connections.
#[derive(Debug)]
pub(super) struct Client {
    lanes: Vec<Lane>,
    cursor: Arc<Mutex<Cursor>>,
}

/// What the lanes of a turn share.
struct Shared {
    turn: Turn,
    end: Instant,
    cursor: Arc<Mutex<Cursor>>,
    tally: Mutex<Tally>,
    due: Mutex<VecDeque<Instant>>,
    /// As many permits as there are in `due`; closed when no more will come.
    ready: Semaphore,
}

/// Why a turn could not be taken at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum TurnError {
    #[error("{0}")]
    Histogram(#[from] CreationError),
    #[error("a timer: {0}")]
    Timer(#[from] std::io::Error),
}

// === impl Client ===

impl Client {
    /// Connects every lane.
    pub(super) async fn connect(
        target: &Target,
        plan: &Arc<Plan>,
        (connections, streams): (usize, usize),
    ) -> Result<Self, String> {
        let mut lanes = target.place.lanes(connections, streams);
        for lane in &mut lanes {
            lane.connect().await?;
        }
        Ok(Self { lanes, cursor: Arc::new(Mutex::new(plan.cursor())) })
    }

    /// Takes a turn. Requests that were due are all counted when it returns.
    pub(super) async fn take(&mut self, turn: Turn) -> Result<Tally, TurnError> {
        let timer = Timer::new()?;
        let start = Instant::now();
        let shared = Arc::new(Shared {
            turn,
            end: start + turn.lasts,
            cursor: Arc::clone(&self.cursor),
            tally: Mutex::new(Tally::new()?),
            due: Mutex::new(VecDeque::new()),
            ready: Semaphore::new(0),
        });
        let mut lanes = JoinSet::new();
        for lane in self.lanes.drain(..) {
            let shared = Arc::clone(&shared);
            lanes.spawn(async move {
                match turn.pace {
                    Pace::Rate(_) => shared.open(lane).await,
                    Pace::Saturate => shared.closed(lane).await,
                }
            });
        }
        if let Pace::Rate(rate) = turn.pace {
            let paced = shared.keep_pace(&timer, Schedule::new(start, rate)).await;
            shared.ready.close();
            paced?;
        }
        while let Some(lane) = lanes.join_next().await {
            // A lane that panicked is gone; what it had under way is missing from no count but its own.
            self.lanes.extend(lane);
        }
        let mut tally = std::mem::replace(&mut *lock(&shared.tally), Tally::new()?);
        tally.elapsed = match turn.pace {
            Pace::Rate(_) => turn.lasts,
            Pace::Saturate => start.elapsed(),
        };
        Ok(tally)
    }
}

// === impl Shared ===

impl Shared {
    /// Puts up requests when they are due, until the end.
    async fn keep_pace(&self, timer: &Timer, schedule: Schedule) -> std::io::Result<()> {
        for n in 0.. {
            let due = schedule.due(n);
            if due >= self.end || lock(&self.tally).exhausted {
                break;
            }
            timer.until(due).await?;
            lock(&self.due).push_back(due);
            self.ready.add_permits(1);
            // Also when it is late, answers have to be read.
            if n.is_multiple_of(16) {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Sends what is due, until nothing will be any more.
    async fn open(&self, mut lane: Lane) -> Lane {
        loop {
            // An error says that no more will come; what is there is still sent.
            if let Ok(permit) = self.ready.acquire().await {
                permit.forget();
            }
            let Some(due) = lock(&self.due).pop_front() else {
                if self.ready.is_closed() {
                    return lane;
                }
                continue;
            };
            if Instant::now() >= self.end + self.turn.timeout {
                self.count(Due { at: due, sent: None }, Err((Failure::Unsent, None)), None);
                continue;
            }
            if !self.send(&mut lane, Some(due)).await {
                return lane;
            }
        }
    }

    /// Sends one after the other, until the end.
    async fn closed(&self, mut lane: Lane) -> Lane {
        while Instant::now() < self.end && !lock(&self.tally).exhausted {
            if !self.send(&mut lane, None).await {
                break;
            }
        }
        lane
    }

    /// Sends the next request; `false` when there is none.
    async fn send(&self, lane: &mut Lane, due: Option<Instant>) -> bool {
        let Some(request) = lock(&self.cursor).next() else {
            lock(&self.tally).exhausted = true;
            return false;
        };
        let sent = Instant::now();
        let due = Due { at: due.unwrap_or(sent), sent: Some(sent) };
        let outcome = match tokio::time::timeout(self.turn.timeout, lane.ask(&request)).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => {
                lane.give_up();
                Err((Failure::Timeout, None))
            }
        };
        if matches!(outcome, Err((Failure::Unreachable | Failure::Closed, _))) {
            // Nobody gains from asking a server that is gone as fast as it can refuse.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.count(due, outcome, Some((request.template, request.expect)));
        true
    }

    fn count(
        &self,
        due: Due,
        outcome: Result<super::tally::Answer, (Failure, Option<String>)>,
        request: Option<(usize, super::expect::Expect)>,
    ) {
        let mut tally = lock(&self.tally);
        let outcome = outcome.map_err(|(failure, text)| {
            tally.trouble = tally.trouble.take().or(text);
            failure
        });
        tally.count(due, outcome, request.unwrap_or_default(), self.turn.timeout);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
