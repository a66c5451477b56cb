//! Reading ahead: records are read, verified and parsed by threads of their own while those before them are applied.
//!
//! Plane: sync. Records come out in the order of the file. One thread follows the hash chain, the others share the
//! signatures and the documents. Bounded: a few records a thread. Fails closed, as the reader does: what does not verify
//! comes out as the error it is, in its place, and nothing after it is looked at.

use std::io::{self, Read};
use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::record::{Chain, Next, Reader};
use crate::sync::apply::{PreparedChunk, PreparedDelta};
use crate::sync::frame::{FrameError, Opener};
use crate::wire::Epoch;
use crate::wire::proto::{ServerFrame, payload::Body};

/// The most threads that verify and parse.
const THREADS: usize = 4;
/// How many records may wait for each of them, and how many of its own may wait.
const WAITING: usize = 2;

/// What stands at one place of a file.
#[derive(Debug)]
pub(super) struct Step {
    /// Where it starts.
    pub(super) offset: u64,
    /// Where the last whole record ends, this one included.
    pub(super) end: u64,
    /// The chain up to there.
    pub(super) chain: Chain,
    pub(super) found: io::Result<Found>,
}

/// See [`Next`].
#[derive(Debug)]
pub(super) enum Found {
    Record(Result<Ready, FrameError>),
    End,
    Broken(&'static str),
}

/// A genuine record, ready to be applied.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) epoch: Epoch,
    pub(super) body: ReadyBody,
}

#[derive(Debug)]
pub(super) enum ReadyBody {
    Chunk(PreparedChunk),
    Delta(PreparedDelta),
    Other(Body),
}

/// A step whose record is as it was read.
struct Raw {
    offset: u64,
    end: u64,
    chain: Chain,
    next: io::Result<Next>,
}

/// Has `consume` look at the records one after the other, to the first that is none.
pub(super) fn read<T>(
    reader: Reader<impl Read + Send>,
    opener: &Opener,
    consume: impl FnOnce(&mut dyn Iterator<Item = Step>) -> T,
) -> io::Result<T> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    if threads == 1 {
        return Ok(consume(&mut raws(reader).map(|raw| raw.open(opener))));
    }
    thread::scope(|scope| {
        let (mut workers, mut results) = (Vec::new(), Vec::new());
        for _ in 0..threads.min(THREADS) {
            let (give, work): (SyncSender<Raw>, _) = sync_channel(WAITING);
            let (tell, result) = sync_channel(WAITING);
            thread::Builder::new().spawn_scoped(scope, move || {
                // To the end of the file, or until nobody wants more.
                work.into_iter().map(|raw| raw.open(opener)).all(|step| tell.send(step).is_ok())
            })?;
            workers.push(give);
            results.push(result);
        }
        thread::Builder::new().spawn_scoped(scope, move || {
            raws(reader).zip(workers.iter().cycle()).try_for_each(|(raw, worker)| worker.send(raw))
        })?;
        // In turn, as they were given out. Dropped before the scope ends, which stops whoever is still at work.
        let mut steps = results.iter().cycle().map_while(|result: &Receiver<Step>| result.recv().ok());
        Ok(consume(&mut steps))
    })
}

/// Every record, and what ends them.
fn raws(mut reader: Reader<impl Read>) -> impl Iterator<Item = Raw> {
    let mut over = false;
    std::iter::from_fn(move || {
        if over {
            return None;
        }
        let offset = reader.offset();
        let next = reader.next();
        over = !matches!(next, Ok(Next::Frame(_)));
        Some(Raw { offset, end: reader.offset(), chain: reader.chain(), next })
    })
}

impl Raw {
    fn open(self, opener: &Opener) -> Step {
        let Self { offset, end, chain, next } = self;
        let found = next.map(|next| match next {
            Next::Frame(frame) => Found::Record(Ready::of(&frame, opener)),
            Next::End => Found::End,
            Next::Broken(reason) => Found::Broken(reason),
        });
        Step { offset, end, chain, found }
    }
}

impl Ready {
    fn of(frame: &ServerFrame, opener: &Opener) -> Result<Self, FrameError> {
        let opened = opener.open(frame)?;
        let body = match opened.body {
            Body::Chunk(chunk) => ReadyBody::Chunk(chunk.into()),
            Body::Delta(delta) => ReadyBody::Delta(delta.into()),
            other => ReadyBody::Other(other),
        };
        Ok(Self { epoch: opened.epoch, body })
    }
}
