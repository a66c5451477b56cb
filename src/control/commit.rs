//! The committer: takes queued units, commits them in groups, and feeds the index in commit order.
//!
//! Plane: control. One task owns the order. INVARIANT: a unit is answered with success only when it is durable and in
//! the index, so who was answered reads its own write. When the store fails, the outcome of a group is unknown: it is
//! answered as such, and the log is read back before anything else is committed.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::agenda::Agenda;
use super::index::{Commit, Index, Stored};
use super::restore;
use super::store::{Committed, Conflict, Store, StoreError, Unit};
use crate::clock::SharedClock;
use crate::object::{FieldError, Kind, Object};
use crate::wire::Revision;

/// How many commits are read back at once.
const CATCH_UP: usize = 1024;

/// Why a unit was not committed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// An expectation did not hold.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// A document is not what its kind and key say.
    #[error("{kind} `{key}`: {error}")]
    Invalid {
        /// Kind of the object.
        kind: Kind,
        /// Key of the object.
        key: String,
        /// What is wrong.
        error: FieldError,
    },
    /// The unit changes nothing, or one object twice.
    #[error("a unit changes at least one object, and each only once")]
    Malformed,
    /// The store failed. The unit may have been committed or not.
    #[error("the store is not available: {0}")]
    Unavailable(Arc<str>),
    /// The control plane is shutting down.
    #[error("the control plane is shutting down")]
    Closed,
}

/// A unit on its way, with its documents parsed.
#[derive(Debug)]
pub(super) struct Job {
    unit: Unit,
    objects: Vec<Option<Object>>,
    answer: oneshot::Sender<Result<Committed, CommitError>>,
}

/// The task that owns the order.
#[derive(Debug)]
pub(super) struct Committer {
    pub(super) store: Arc<dyn Store>,
    pub(super) index: Arc<Index>,
    pub(super) agenda: Arc<Agenda>,
    pub(super) clock: SharedClock,
    pub(super) queue: mpsc::Receiver<Job>,
    pub(super) max_batch: usize,
    /// How many revisions the log keeps.
    pub(super) log_capacity: u64,
    pub(super) floor: Revision,
    /// Whether the store may be ahead of the index.
    pub(super) behind: bool,
}

// === impl Job ===

impl Job {
    /// Parses the documents of `unit`; what does not parse never reaches the log.
    pub(super) fn new(unit: Unit) -> Result<(Self, oneshot::Receiver<Result<Committed, CommitError>>), CommitError> {
        let mut seen = std::collections::HashSet::new();
        if unit.changes.is_empty() || !unit.changes.iter().all(|c| seen.insert((c.kind, c.key.as_str()))) {
            return Err(CommitError::Malformed);
        }
        let objects = unit.changes.iter().map(|change| {
            let Some(body) = &change.body else { return Ok(None) };
            let invalid = |error| CommitError::Invalid { kind: change.kind, key: change.key.clone(), error };
            let object = Object::parse(change.kind, body).map_err(invalid)?;
            if object.key() != change.key {
                return Err(invalid(FieldError::new("", format!("its key is `{}`", object.key()))));
            }
            Ok(Some(object))
        });
        let objects = objects.collect::<Result<Vec<_>, _>>()?;
        let (answer, result) = oneshot::channel();
        Ok((Self { unit, objects, answer }, result))
    }
}

// === impl Committer ===

impl Committer {
    /// Runs until the queue is closed and empty, then closes the store.
    pub(super) async fn run(mut self) {
        let mut jobs = Vec::with_capacity(self.max_batch);
        while self.queue.recv_many(&mut jobs, self.max_batch).await > 0 {
            self.commit(std::mem::take(&mut jobs)).await;
            self.trim().await;
        }
        self.store.close().await;
    }

    async fn commit(&mut self, jobs: Vec<Job>) {
        let (units, rest): (Vec<Unit>, Vec<_>) = jobs.into_iter().map(|j| (j.unit, (j.objects, j.answer))).unzip();
        let outcomes = match self.write(&units).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                tracing::error!(%error, units = units.len(), "the store failed; the outcome of these units is unknown");
                self.behind = true;
                let error = CommitError::Unavailable(Arc::from(error.to_string()));
                for (_, answer) in rest {
                    let _ = answer.send(Err(error.clone()));
                }
                return;
            }
        };
        let mut answers = Vec::with_capacity(rest.len());
        for ((unit, (objects, answer)), outcome) in units.into_iter().zip(rest).zip(outcomes) {
            if let Ok(committed) = &outcome
                && !self.behind
            {
                self.publish(Arc::new(assemble(unit, objects, committed)));
            }
            answers.push((answer, outcome));
        }
        let lost = if self.behind { self.catch_up().await.err() } else { None };
        for (answer, outcome) in answers {
            let result = match (&lost, outcome) {
                (_, Err(conflict)) => Err(CommitError::Conflict(conflict)),
                (None, Ok(committed)) => Ok(committed),
                (Some(error), Ok(_)) => Err(CommitError::Unavailable(Arc::from(error.to_string()))),
            };
            // Nobody may be waiting any more; what is committed stays committed.
            let _ = answer.send(result);
        }
    }

    async fn write(&mut self, units: &[Unit]) -> Result<Vec<Result<Committed, Conflict>>, StoreError> {
        if self.behind {
            self.catch_up().await?;
        }
        self.store.commit(units, self.clock.now().wall).await
    }

    fn publish(&mut self, commit: Arc<Commit>) {
        match self.index.apply(Arc::clone(&commit)) {
            Ok(()) => commit.changes.iter().for_each(|stored| self.agenda.note(stored)),
            Err(error) => {
                tracing::warn!(%error, "the index is behind the store");
                self.behind = true;
            }
        }
    }

    /// Reads back what the store has and the index has not.
    async fn catch_up(&mut self) -> Result<(), StoreError> {
        self.behind = false;
        loop {
            let after = self.index.position().revision;
            let commits = match self.store.log_since(after, CATCH_UP).await {
                Ok(commits) => commits,
                Err(error) => {
                    self.behind = true;
                    return Err(error);
                }
            };
            let count = commits.len();
            for raw in commits {
                match restore::commit(raw) {
                    Ok(commit) => self.publish(Arc::new(commit)),
                    Err(detail) => {
                        self.behind = true;
                        return Err(StoreError::corrupt("the log", detail));
                    }
                }
            }
            if self.behind {
                return Err(StoreError::corrupt("the log", format!("it does not continue after revision {after}")));
            }
            if count < CATCH_UP {
                return Ok(());
            }
        }
    }

    /// Trims the log, in steps large enough that it costs little.
    async fn trim(&mut self) {
        let keep_from = self.index.position().revision.0.saturating_sub(self.log_capacity);
        if keep_from < self.floor.0.saturating_add((self.log_capacity / 16).max(1)) {
            return;
        }
        match self.store.trim(Revision(keep_from)).await {
            Ok(()) => self.floor = Revision(keep_from),
            Err(error) => tracing::warn!(%error, "the log could not be trimmed"),
        }
    }
}

fn assemble(unit: Unit, objects: Vec<Option<Object>>, committed: &Committed) -> Commit {
    let revision = committed.position.revision;
    let changes = unit.changes.into_iter().zip(objects).map(|(change, object)| {
        Arc::new(match change.body {
            Some(body) => Stored::new(change.kind, Arc::from(change.key), revision, body, object),
            None => restore::tombstone(change.kind, &change.key, revision),
        })
    });
    Commit { revision, at: committed.at, author: unit.author.name, changes: changes.collect() }
}
