//! Decision records: JSON lines, one for each decision, to stdout or a rotating file.
//!
//! Plane: cross-cutting, with one foot on the hot path. INVARIANT: a check never waits for a record: it moves the
//! decision into a bounded queue under a short lock, and a thread of its own serialises and writes in batches. What
//! does not fit or cannot be written is dropped and counted, never silently. The checks need not wake the writer, which
//! looks by itself every few milliseconds while there is work.

mod file;
mod record;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use prometheus::IntCounter;

use self::file::RotatingFile;
pub(super) use self::record::Record;
use self::record::Writer;

/// How often the writer looks while there is work.
const TICK: Duration = Duration::from_millis(5);
/// After so many looks in vain, it sleeps until it is woken.
const IDLE_TICKS: u32 = 200;
/// Records are queued in pieces of this many, so that a full queue never moves as a whole.
const CHUNK: usize = 512;
/// Bytes per write.
const BATCH_BYTES: usize = 256 * 1024;
/// A write error is logged at most so often.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Where decision records go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// A file that is rotated to `path.1`, `path.2` ….
    File {
        /// The file now written to.
        path: PathBuf,
        /// Rotated before it grows beyond this.
        max_bytes: u64,
        /// How many rotated files to keep.
        keep: u32,
    },
}

/// How decision records are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordsConfig {
    /// Where they go.
    pub output: Output,
    /// How many may wait to be written.
    pub queue: usize,
}

/// The queue of decision records and the thread that writes them. Dropping it writes what is queued.
#[derive(Debug)]
pub struct Records(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Signalled when everything queued has been dealt with, and when the writer has ended.
    settled: Condvar,
    capacity: usize,
    dropped: IntCounter,
    writer: Thread,
}

#[derive(Debug, Default)]
struct Queue {
    chunks: Vec<Vec<Record>>,
    len: usize,
    /// Taken by the writer and not yet written.
    in_hand: bool,
    asleep: bool,
    closing: bool,
    ended: bool,
}

enum Sink {
    Stdout(io::Stdout),
    File(RotatingFile),
    #[cfg(test)]
    Pipe(io::PipeWriter),
}

// === impl Records ===

impl Records {
    /// Opens the output and starts the writer. `dropped` counts what is lost.
    pub fn start(config: RecordsConfig, dropped: IntCounter) -> io::Result<Self> {
        let sink = match config.output {
            Output::Off => return Ok(Self(None)),
            Output::Stdout => Sink::Stdout(io::stdout()),
            Output::File { path, max_bytes, keep } => Sink::File(RotatingFile::open(path, max_bytes, keep)?),
        };
        let (hand_over, receive) = std::sync::mpsc::sync_channel::<Arc<Shared>>(1);
        let thread = thread::Builder::new().name("decision-records".to_owned()).spawn(move || {
            if let Ok(shared) = receive.recv() {
                run(&shared, sink);
            }
        })?;
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            settled: Condvar::new(),
            capacity: config.queue.max(1),
            dropped,
            writer: thread.thread().clone(),
        });
        hand_over.send(shared.clone()).map_err(|_gone| io::Error::other("the record writer did not start"))?;
        Ok(Self(Some(shared)))
    }

    /// Whether a record is worth making.
    pub(super) fn are_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Queues a record, or counts it as dropped. `make` runs only if records are kept.
    pub(super) fn push(&self, make: impl FnOnce() -> Record) {
        let Some(shared) = &self.0 else { return };
        let record = make();
        let wake = {
            let mut queue = shared.lock();
            if queue.closing || queue.len >= shared.capacity {
                drop(queue);
                shared.dropped.inc();
                return;
            }
            queue.push(record);
            std::mem::take(&mut queue.asleep)
        };
        if wake {
            shared.writer.unpark();
        }
    }

    /// Writes what is queued and ends the writer. False when that took longer than `within`, as when nobody reads
    /// standard output; what is left is lost then.
    pub fn shutdown(&self, within: Duration) -> bool {
        let Some(shared) = &self.0 else { return true };
        shared.lock().closing = true;
        shared.writer.unpark();
        shared.wait(within, |queue| queue.ended)
    }

    /// Waits until everything queued so far has been written or counted as dropped.
    pub fn flush(&self, within: Duration) -> bool {
        let Some(shared) = &self.0 else { return true };
        shared.writer.unpark();
        shared.wait(within, |queue| queue.ended || (queue.len == 0 && !queue.in_hand))
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        self.shutdown(Duration::from_secs(1));
    }
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, within: Duration, mut until: impl FnMut(&Queue) -> bool) -> bool {
        let queue = self.lock();
        let (queue, timeout) = self
            .settled
            .wait_timeout_while(queue, within, |queue| !until(queue))
            .unwrap_or_else(PoisonError::into_inner);
        drop(queue);
        !timeout.timed_out()
    }
}

// === impl Queue ===

impl Queue {
    fn push(&mut self, record: Record) {
        self.len += 1;
        match self.chunks.last_mut() {
            Some(chunk) if chunk.len() < CHUNK => chunk.push(record),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(record);
                self.chunks.push(chunk);
            }
        }
    }
}

// === the writer thread ===

fn run(shared: &Shared, mut sink: Sink) {
    let mut writer = Writer::default();
    let mut buffer = Vec::with_capacity(BATCH_BYTES + 4096);
    let mut quiet_until: Option<Instant> = None;
    let mut idle = 0_u32;
    loop {
        let (chunks, closing) = {
            let mut queue = shared.lock();
            queue.len = 0;
            let chunks = std::mem::take(&mut queue.chunks);
            queue.in_hand = !chunks.is_empty();
            if chunks.is_empty() {
                queue.ended = queue.closing;
                queue.asleep = idle >= IDLE_TICKS;
                shared.settled.notify_all();
            }
            (chunks, queue.closing)
        };
        if chunks.is_empty() {
            if closing {
                return;
            }
            if idle >= IDLE_TICKS {
                thread::park();
                idle = 0;
            } else {
                idle += 1;
                thread::park_timeout(TICK);
            }
            continue;
        }
        idle = 0;
        write_decision_records(chunks.into_iter().flatten(), &mut writer, &mut buffer, |buffer, records| {
            put(shared, &mut sink, buffer, records, &mut quiet_until);
        });
        if !closing {
            thread::park_timeout(TICK);
        }
    }
}

/// Serialises records and hands them to `put` in batches. A function of its own, because the gate counts what it takes.
#[inline(never)]
fn write_decision_records(
    records: impl Iterator<Item = Record>,
    writer: &mut Writer,
    buffer: &mut Vec<u8>,
    mut put: impl FnMut(&mut Vec<u8>, u64),
) {
    let mut batched = 0_u64;
    for record in records {
        writer.write(&record, buffer);
        batched += 1;
        if buffer.len() >= BATCH_BYTES {
            put(buffer, std::mem::take(&mut batched));
        }
    }
    put(buffer, batched);
}

/// Writes a batch, or counts its records as dropped.
fn put(shared: &Shared, sink: &mut Sink, buffer: &mut Vec<u8>, records: u64, quiet_until: &mut Option<Instant>) {
    if buffer.is_empty() {
        return;
    }
    let result = match sink {
        Sink::Stdout(out) => out.write_all(buffer).and_then(|()| out.flush()),
        Sink::File(file) => file.append(buffer),
        #[cfg(test)]
        Sink::Pipe(pipe) => pipe.write_all(buffer),
    };
    buffer.clear();
    if let Err(error) = result {
        shared.dropped.inc_by(records);
        let now = Instant::now();
        if quiet_until.is_none_or(|until| now >= until) {
            *quiet_until = Some(now + LOG_EVERY);
            tracing::error!(%error, records, "decision records cannot be written and are lost");
        }
    }
}

#[cfg(test)]
mod tests;
