//! The queue of records that no commit writes: refusals, failures, reads of the audit trail, credentials issued.
//!
//! Plane: control. One task writes them in groups, so that a flood of refusals costs few transactions. The queue is
//! bounded and nobody who is refused waits for it; what does not fit is counted, and the count becomes a record. Who
//! has to know that a record is durable asks for [`Recorder::record`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Author, Event};
use crate::clock::{SharedClock, Timestamp};
use crate::control::store::Store;

/// How many records wait at most.
const QUEUE: usize = 4096;
/// How many share a transaction at most.
const BATCH: usize = 512;
/// What was left out becomes a record after this long, also when nothing else does.
const OWN_UP: Duration = Duration::from_secs(5);
/// How long the first of a group waits for others. A crash loses no more than this of what nobody waits for.
const LINGER: Duration = Duration::from_millis(100);

/// The record could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit record could not be written")]
pub struct Unrecorded;

/// Takes records for the chain.
#[derive(Debug)]
pub struct Recorder {
    clock: SharedClock,
    queue: std::sync::Mutex<Option<mpsc::Sender<Note>>>,
    task: std::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Note {
    at: Timestamp,
    event: Event,
    written: Option<oneshot::Sender<()>>,
}

// === impl Recorder ===

impl Recorder {
    /// Starts the task that writes.
    pub fn start(store: Arc<dyn Store>, clock: SharedClock) -> Self {
        let (sender, queue) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(write(store, Arc::clone(&clock), queue, Arc::clone(&lost)));
        Self { clock, queue: std::sync::Mutex::new(Some(sender)), task: std::sync::Mutex::new(Some(task)), lost }
    }

    /// Takes a record if there is room; never waits.
    pub fn note(&self, event: Event) {
        let note = Note { at: self.clock.now().wall, event, written: None };
        if self.sender().is_none_or(|queue| queue.try_send(note).is_err()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts one record that is left out.
    pub fn omit(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a record, and answers when it is durable.
    pub async fn record(&self, event: Event) -> Result<(), Unrecorded> {
        let (written, done) = oneshot::channel();
        let note = Note { at: self.clock.now().wall, event, written: Some(written) };
        let queue = self.sender().ok_or(Unrecorded)?;
        queue.send(note).await.map_err(|_closed| Unrecorded)?;
        drop(queue);
        done.await.map_err(|_gone| Unrecorded)
    }

    /// Writes what is queued and takes nothing more.
    pub async fn close(&self) {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let task = self.task.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the recorder has failed");
        }
    }

    fn sender(&self) -> Option<mpsc::Sender<Note>> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

async fn write(store: Arc<dyn Store>, clock: SharedClock, mut queue: mpsc::Receiver<Note>, lost: Arc<AtomicU64>) {
    let mut notes = Vec::with_capacity(BATCH);
    let mut own_up = tokio::time::interval(OWN_UP);
    own_up.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let more = tokio::select! {
            biased;
            received = queue.recv_many(&mut notes, BATCH) => received > 0,
            _ = own_up.tick() => true,
        };
        let until = Instant::now() + LINGER;
        while !notes.is_empty() && notes.len() < BATCH && notes.iter().all(|note| note.written.is_none()) {
            let room = BATCH.saturating_sub(notes.len());
            match tokio::time::timeout_at(until, queue.recv_many(&mut notes, room)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        write_batch(&*store, &clock, &mut notes, &lost).await;
        if !more {
            break;
        }
    }
    let left = lost.load(Ordering::Relaxed);
    if left > 0 {
        tracing::error!(records = left, "audit records are lost, and the trail does not say so");
    }
}

/// Writes the notes, and how many others were left out.
async fn write_batch(store: &dyn Store, clock: &SharedClock, notes: &mut Vec<Note>, lost: &AtomicU64) {
    let mut waiting = Vec::new();
    let mut events: Vec<(Timestamp, Event)> = Vec::with_capacity(notes.len() + 1);
    for note in notes.drain(..) {
        waiting.extend(note.written);
        events.push((note.at, note.event));
    }
    let missed = lost.swap(0, Ordering::Relaxed);
    let written = events.len() as u64;
    if missed > 0 {
        let object = format!("{missed} records");
        events.push((clock.now().wall, Event::done(Author::system("system"), "audit.lost", &object, "")));
    }
    if events.is_empty() {
        return;
    }
    match store.audit(&events).await {
        Ok(()) => {
            for written in waiting {
                // Whoever waited may have gone.
                let _ = written.send(());
            }
        }
        Err(error) => {
            // Whoever waits is told by the channel that goes.
            lost.fetch_add(missed.saturating_add(written), Ordering::Relaxed);
            tracing::error!(%error, records = written, "audit records could not be written");
        }
    }
}
