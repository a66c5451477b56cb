//! A snapshot that is arriving, put together on a thread of its own while the next frames come in.
//!
//! Plane: sync. Chunks go through in order, each into the assembly and then onto the disk, so that nobody holds more of a
//! snapshot than a few frames beside what it becomes. While checks are answered from an older state the thread gives way
//! to them. INVARIANT: what it builds is handed over whole at its end, or not at all; once it was given up, it touches the
//! disk no more. On a runtime with one thread the work is done in place, so that a simulation can be repeated exactly.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::apply::{ApplyError, Assembly, Built};
use crate::offload::has_other_threads;
use crate::wire::Epoch;
use crate::wire::proto::{ServerFrame, SnapshotChunk, SnapshotEnd};

/// How many frames may wait.
const WAITING: usize = 4;
/// How much lower the priority is while there are checks to answer: they get the processor at once, and the snapshot a
/// quarter of it when they want all of it, so that it arrives before the state in force is too old.
const GIVE_WAY: i32 = 5;

/// The work.
#[derive(Debug)]
pub(super) enum Bootstrap {
    Here(Arc<Shared>, Box<Assembly>),
    There { steps: mpsc::Sender<Step>, built: oneshot::Receiver<Ended> },
}

#[derive(Debug)]
pub(super) enum Step {
    Chunk(Epoch, SnapshotChunk, ServerFrame),
    End(Epoch, SnapshotEnd),
}

/// What came of it; `None` when it was given up.
type Ended = Result<Option<Built>, ApplyError>;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub(super) enum BootstrapError {
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("no thread could be started: {0}")]
    Thread(#[from] std::io::Error),
    #[error("the thread that built it is gone")]
    Gone,
}

impl Bootstrap {
    /// Starts.
    pub(super) fn start(assembly: Assembly, shared: &Arc<Shared>) -> Result<Self, BootstrapError> {
        let shared = Arc::clone(shared);
        if !has_other_threads() {
            return Ok(Self::Here(shared, Box::new(assembly)));
        }
        let (steps, todo) = mpsc::channel(WAITING);
        let (tell, built) = oneshot::channel();
        std::thread::Builder::new().name("bootstrap".to_owned()).spawn(move || {
            if shared.state.load().snapshot.is_some() {
                // On Linux this is about the calling thread. When it fails, checks are slower for a while.
                let _ = rustix::process::nice(GIVE_WAY);
            }
            let _ = tell.send(build(assembly, &shared, todo));
        })?;
        Ok(Self::There { steps, built })
    }

    /// Takes in the next chunk.
    pub(super) async fn chunk(
        &mut self,
        epoch: Epoch,
        chunk: SnapshotChunk,
        frame: ServerFrame,
    ) -> Result<(), BootstrapError> {
        match self {
            Self::Here(shared, assembly) => Ok(put(assembly, shared, epoch, chunk, &frame)?),
            Self::There { steps, built } => match steps.send(Step::Chunk(epoch, chunk, frame)).await {
                Ok(()) => Ok(()),
                // It has stopped, and says why.
                Err(_closed) => Err(built.await.map_or(BootstrapError::Gone, |ended| match ended {
                    Err(e) => e.into(),
                    Ok(_) => BootstrapError::Gone,
                })),
            },
        }
    }

    /// Completes the snapshot.
    pub(super) async fn end(self, epoch: Epoch, end: SnapshotEnd) -> Result<Built, BootstrapError> {
        match self {
            Self::Here(_, assembly) => Ok(assembly.end(epoch, &end)?),
            Self::There { steps, built } => {
                let _ = steps.send(Step::End(epoch, end)).await;
                drop(steps);
                match built.await {
                    Ok(ended) => ended?.ok_or(BootstrapError::Gone),
                    Err(_closed) => Err(BootstrapError::Gone),
                }
            }
        }
    }

    /// Gives it up, and waits until nothing of it is under way.
    pub(super) async fn give_up(self) {
        if let Self::There { steps, built } = self {
            drop(steps);
            let _ = built.await;
        }
    }
}

fn build(mut assembly: Assembly, shared: &Shared, mut todo: mpsc::Receiver<Step>) -> Ended {
    while let Some(step) = todo.blocking_recv() {
        match step {
            Step::Chunk(epoch, chunk, frame) => put(&mut assembly, shared, epoch, chunk, &frame)?,
            Step::End(epoch, end) => return assembly.end(epoch, &end).map(Some),
        }
    }
    Ok(None)
}

fn put(
    assembly: &mut Assembly,
    shared: &Shared,
    epoch: Epoch,
    chunk: SnapshotChunk,
    frame: &ServerFrame,
) -> Result<(), ApplyError> {
    assembly.chunk(epoch, chunk.into())?;
    shared.with_disk(|d| d.chunk(frame));
    Ok(())
}
