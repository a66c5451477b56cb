//! The heart of the control plane: one index, one queue of units, one committer.
//!
//! Plane: control. Whoever changes anything goes through here. Rules that span objects are checked against the index
//! and hold at commit, because the unit names what they rested on (guards); when that has moved, the plan is made
//! again on the new state. A plan that keeps losing is made with all other writers of this process held back.

use std::sync::Arc;

use tokio::sync::{RwLock, mpsc};

use super::agenda::{Agenda, Retention};
use super::audit::{Author, Recorder};
use super::commit::{CommitError, Committer, Job};
use super::index::Index;
use super::key_book::Full;
use super::restore::{Restored, restore};
use super::store::{Committed, Guard, Store, StoreError, Unit, Write};
use crate::clock::SharedClock;
use crate::object::Kind;

/// How often a plan is made before other writers are held back, and how often after that.
const ATTEMPTS: (usize, usize) = (4, 4);

/// Settings of the core.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// How many commits are kept, on disk and in memory, for sidecars that come back.
    pub log_capacity: usize,
    /// How many units may wait for the committer.
    pub queue: usize,
    /// How many units share a transaction at most.
    pub max_batch: usize,
    /// How long grants are kept.
    pub retention: Retention,
}

/// The heart of the control plane.
#[derive(Debug)]
pub struct Core {
    index: Arc<Index>,
    store: Arc<dyn Store>,
    clock: SharedClock,
    agenda: Arc<Agenda>,
    recorder: Recorder,
    queue: std::sync::Mutex<Option<mpsc::Sender<Job>>>,
    /// Taken shared by writers, and exclusively by one whose plans keep losing.
    writers: RwLock<()>,
    committer: std::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
}

/// What a plan comes to: what must hold, what to write, and what to answer.
#[derive(Debug)]
pub struct Plan<T> {
    /// What must still hold at commit.
    pub guards: Vec<Guard>,
    /// What to write. Nothing: the state is as wanted already.
    pub changes: Vec<Write>,
    /// What to answer.
    pub answer: T,
}

/// Who does what, for the log.
#[derive(Debug, Clone)]
pub struct Intent {
    /// Who.
    pub author: Author,
    /// As in `grant.approve`.
    pub action: &'static str,
    /// The request that asked for it.
    pub request_id: Arc<str>,
}

// === impl Core ===

impl Core {
    /// Loads what the store holds and starts the committer, which runs until [`Core::close`] or the last handle goes.
    pub async fn open(store: Arc<dyn Store>, clock: SharedClock, config: CoreConfig) -> Result<Arc<Self>, StoreError> {
        let loaded = store.load().await?;
        let floor = loaded.floor;
        // The log proves that this time has passed: a clock that was set back must not lengthen a grant.
        clock.raise_floor(loaded.at);
        let refused = |detail| StoreError::corrupt("the control plane's log", detail);
        let (index, agenda) = tokio::task::spawn_blocking({
            let (epoch, capacity, retention) = (store.epoch(), config.log_capacity, config.retention);
            move || -> Result<_, String> {
                let Restored { objects, log } = restore(loaded)?;
                let index = Index::new(epoch, floor, objects, capacity);
                for commit in log {
                    index.apply(commit).map_err(|e| e.to_string())?;
                }
                let agenda = Agenda::new(retention);
                for kind in [Kind::Grant, Kind::Idempotency] {
                    index.list(kind).iter().for_each(|stored| agenda.note(stored));
                }
                Ok((Arc::new(index), Arc::new(agenda)))
            }
        })
        .await
        .map_err(|e| refused(e.to_string()))?
        .map_err(refused)?;
        let (sender, queue) = mpsc::channel(config.queue.max(1));
        let committer = Committer {
            store: Arc::clone(&store),
            index: Arc::clone(&index),
            agenda: Arc::clone(&agenda),
            clock: Arc::clone(&clock),
            queue,
            max_batch: config.max_batch.max(1),
            log_capacity: config.log_capacity as u64,
            floor,
            behind: false,
        };
        let recorder = Recorder::start(Arc::clone(&store), Arc::clone(&clock));
        let task = tokio::spawn(committer.run());
        Ok(Arc::new(Self {
            index,
            store,
            clock,
            agenda,
            recorder,
            queue: std::sync::Mutex::new(Some(sender)),
            writers: RwLock::new(()),
            committer: std::sync::Mutex::new(Some(task)),
        }))
    }

    /// The view of the log.
    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// The clock.
    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// The store, for what is not in the log.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Takes audit records of what no unit is about.
    pub const fn audit(&self) -> &Recorder {
        &self.recorder
    }

    /// Whether `caller` can use one more idempotency key.
    pub(super) fn check_keys(&self, caller: &str) -> Result<(), Full> {
        self.agenda.keys().check(caller)
    }

    pub(super) fn agenda(&self) -> &Agenda {
        &self.agenda
    }

    /// Commits a unit. Waits while the queue is full; a caller that stops waiting leaves its unit in the queue.
    pub async fn commit(&self, unit: Unit) -> Result<Committed, CommitError> {
        let _shared = self.writers.read().await;
        self.enqueue(unit).await
    }

    /// Makes a plan on the current state and commits it, again when the state has moved meanwhile.
    pub async fn transact<T, E>(
        &self,
        intent: &Intent,
        mut plan: impl FnMut(&Index) -> Result<Plan<T>, E> + Send,
    ) -> Result<(Option<Committed>, T), E>
    where
        T: Send,
        E: From<CommitError> + Send,
    {
        let mut last = None;
        for attempt in 0..ATTEMPTS.0 + ATTEMPTS.1 {
            let (_shared, _exclusive);
            if attempt < ATTEMPTS.0 {
                _shared = self.writers.read().await;
            } else {
                _exclusive = self.writers.write().await;
            }
            let Plan { guards, changes, answer } = plan(&self.index)?;
            if changes.is_empty() {
                return Ok((None, answer));
            }
            let mut unit = Unit::new(intent.author.clone(), intent.action, &*intent.request_id);
            (unit.guards, unit.changes) = (guards, changes);
            match self.enqueue(unit).await {
                Ok(committed) => return Ok((Some(committed), answer)),
                Err(CommitError::Conflict(conflict)) => last = Some(conflict),
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.map_or(CommitError::Closed, CommitError::Conflict).into())
    }

    /// Commits what is queued, takes nothing more, and closes the store.
    pub async fn close(&self) {
        // First, because the committer closes the store.
        self.recorder.close().await;
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let task = self.committer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the committer has failed");
        }
    }

    async fn enqueue(&self, unit: Unit) -> Result<Committed, CommitError> {
        let (job, result) = Job::new(unit)?;
        let queue = self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let queue = queue.ok_or(CommitError::Closed)?;
        queue.send(job).await.map_err(|_closed| CommitError::Closed)?;
        drop(queue);
        result.await.map_err(|_gone| CommitError::Closed)?
    }
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self { log_capacity: 65_536, queue: 4096, max_batch: 256, retention: Retention::default() }
    }
}

// === impl Intent ===

impl Intent {
    /// Of the control plane itself, or of the part of it that `author` names.
    pub fn system(author: &str, action: &'static str) -> Self {
        Self { author: Author::system(author), action, request_id: Arc::from("") }
    }
}

// === impl Plan ===

impl<T> Plan<T> {
    /// A plan that writes nothing yet.
    pub const fn new(answer: T) -> Self {
        Self { guards: Vec::new(), changes: Vec::new(), answer }
    }

    /// With one more change.
    #[must_use]
    pub fn write(mut self, change: Write) -> Self {
        self.changes.push(change);
        self
    }

    /// With one more guard.
    #[must_use]
    pub fn guard(mut self, guard: Guard) -> Self {
        self.guards.push(guard);
        self
    }
}

#[cfg(test)]
mod tests;
