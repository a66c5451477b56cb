//! A snapshot that is arriving, put together on a thread of its own while the next frames come in.
//!
//! Plane: sync. Frames go through in order, each verified, then taken into the assembly, then onto the disk, so that nobody
//! holds more of a snapshot than a few frames beside what it becomes. While checks are answered from an older state the
//! thread gives way to them. INVARIANT: what it builds is handed over whole at its end, or not at all; once it was given
//! up, it touches the disk no more; frames that came after its end are handed back. On a runtime with one thread the work
//! is done in place, so that a simulation can be repeated exactly.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Shared;
use super::apply::{ApplyError, Assembly, Built};
use super::frame::{FrameError, Opened};
use crate::offload::has_other_threads;
use crate::wire::Epoch;
use crate::wire::proto::{ServerFrame, SnapshotChunk, SnapshotEnd, payload::Body};

/// How many frames may wait.
const WAITING: usize = 4;
/// How much lower the priority is while there are checks to answer: they get the processor at once, and the snapshot a
/// quarter of it when they want all of it, so that it arrives before the state in force is too old.
const GIVE_WAY: i32 = 5;

/// The work.
#[derive(Debug)]
pub(super) enum Bootstrap {
    Here(Arc<Shared>, Box<Assembly>),
    There { frames: mpsc::Sender<Arrived>, ended: oneshot::Receiver<Outcome> },
}

/// A frame, and when it came.
pub(super) type Arrived = (ServerFrame, Instant);

/// What comes of it, with the frame that ended it, and those that came after.
#[derive(Debug)]
pub(super) struct Ended {
    /// Without one, the frame starts another snapshot.
    pub(super) built: Option<Built>,
    pub(super) last: Arrived,
    pub(super) rest: mpsc::Receiver<Arrived>,
}

type Outcome = Result<Ended, BootstrapError>;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub(super) enum BootstrapError {
    #[error("a frame was refused: {0}")]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("a frame of another kind came in the middle of a snapshot")]
    Kind,
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
        let (frames, todo) = mpsc::channel(WAITING);
        let (tell, ended) = oneshot::channel();
        std::thread::Builder::new().name("bootstrap".to_owned()).spawn(move || {
            if shared.state.load().snapshot.is_some() {
                // On Linux this is about the calling thread. When it fails, checks are slower for a while.
                let _ = rustix::process::nice(GIVE_WAY);
            }
            let _ = tell.send(build(assembly, &shared, todo));
        })?;
        Ok(Self::There { frames, ended })
    }

    /// Hands the next frame over as it came, to be verified there; `None` once it is. When it was too late for that, it
    /// comes back with how it ended. Whatever has ended is not to be asked again.
    pub(super) async fn give(&mut self, arrived: Arrived) -> Result<Option<(Arrived, Ended)>, BootstrapError> {
        let Self::There { frames, ended } = self else { return Err(BootstrapError::Gone) };
        let how = tokio::select! {
            biased;
            how = &mut *ended => how,
            place = frames.reserve() => match place {
                Ok(place) => {
                    place.send(arrived);
                    return Ok(None);
                }
                // It has stopped, and says why.
                Err(_closed) => ended.await,
            },
        };
        Ok(Some((arrived, how.unwrap_or(Err(BootstrapError::Gone))?)))
    }

    /// Waits until it has ended, which it does not by itself where the work is done in place.
    pub(super) async fn ended(&mut self) -> Outcome {
        match self {
            Self::Here(..) => std::future::pending().await,
            Self::There { ended, .. } => ended.await.unwrap_or(Err(BootstrapError::Gone)),
        }
    }

    /// Takes in the next chunk, where the work is done in place.
    pub(super) fn chunk(
        &mut self,
        epoch: Epoch,
        chunk: SnapshotChunk,
        frame: &ServerFrame,
    ) -> Result<(), BootstrapError> {
        match self {
            Self::Here(shared, assembly) => Ok(put(assembly, shared, epoch, chunk, frame)?),
            Self::There { .. } => Err(BootstrapError::Gone),
        }
    }

    /// Completes the snapshot, where the work is done in place.
    pub(super) fn end(self, epoch: Epoch, end: &SnapshotEnd) -> Result<Built, BootstrapError> {
        match self {
            Self::Here(_, assembly) => Ok(assembly.end(epoch, end)?),
            Self::There { .. } => Err(BootstrapError::Gone),
        }
    }

    /// Whether frames are to be [given](Self::give) to it.
    pub(super) const fn is_elsewhere(&self) -> bool {
        matches!(self, Self::There { .. })
    }

    /// Gives it up, and waits until nothing of it is under way.
    pub(super) async fn give_up(self) {
        if let Self::There { frames, ended } = self {
            drop(frames);
            let _ = ended.await;
        }
    }
}

fn build(mut assembly: Assembly, shared: &Shared, mut todo: mpsc::Receiver<Arrived>) -> Outcome {
    while let Some(last) = todo.blocking_recv() {
        let Opened { epoch, body } = shared.opener.open(&last.0)?;
        match body {
            Body::Chunk(chunk) => put(&mut assembly, shared, epoch, chunk, &last.0)?,
            Body::End(end) => return Ok(Ended { built: Some(assembly.end(epoch, &end)?), last, rest: todo }),
            Body::Begin(_) => return Ok(Ended { built: None, last, rest: todo }),
            // No part of the state, and wanted by checks that wait.
            Body::Allotment(given) => super::uses::take_in(shared.state.purse(), &given, shared.clock.now().mono),
            Body::Delta(_) | Body::Bookmark(_) => return Err(BootstrapError::Kind),
        }
    }
    Err(BootstrapError::Gone)
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
