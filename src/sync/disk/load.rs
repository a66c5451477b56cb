//! Reading last-known-good state back: every signature, every link of the chain, and never older than the mark.
//!
//! Plane: sync. Changes nothing on disk. Fails closed: a generation that is damaged, foreign or older than the
//! high-water mark is refused with an error that names file and offset, and then there is no state rather than a wider
//! one. The one thing that is forgiven is a torn end of the journal above the mark: that was never acknowledged.

use std::io::Read;
use std::path::{Path, PathBuf};

use prost::Message;

use super::ahead::{self, Found, Ready, ReadyBody, Step};
use super::fs::Fs;
use super::mark::{self, MarkState};
use super::record::{Chain, JOURNAL_MAGIC, Reader, SNAPSHOT_MAGIC, fill};
use super::{BOOKMARK_FILE, MARK_FILE};
use crate::clock::Monotonic;
use crate::sync::apply::{Assembly, Built, Replay};
use crate::sync::frame::Opener;
use crate::wire::Position;
use crate::wire::proto::{Bookmark, ServerFrame, payload::Body};

/// What is wrong with the state on disk.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file could not be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not hold what was written to it.
    #[error("`{}` is damaged at byte {offset}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the part that cannot be used starts.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A state is genuine and whole, but older than one that was in force before.
    #[error("`{}` ends at `{position}`, older than `{mark}`, which was in force before", path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// Its position.
        position: Position,
        /// The high-water mark.
        mark: Position,
    },
}

/// What was found.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) generation: Option<Generation>,
    pub(super) mark: MarkState,
    /// Numbers of all generations there are, also of refused ones.
    pub(super) numbers: Vec<u64>,
    pub(super) problems: Vec<LoadError>,
    pub(super) bookmark: Option<StoredBookmark>,
}

/// A usable generation.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) built: Built,
    pub(super) snapshot_bytes: u64,
    /// Length of the journal's usable part; 0 when there is none.
    pub(super) journal_bytes: u64,
    pub(super) snapshot_chain: Chain,
    pub(super) chain: Chain,
}

/// The last bookmark, and when it arrived.
#[derive(Debug)]
pub(super) struct StoredBookmark {
    pub(super) bookmark: Bookmark,
    /// The boot in which it arrived, and the monotonic time then.
    pub(super) boot: String,
    pub(super) received: Monotonic,
}

/// The name of a generation's snapshot file.
pub(super) fn snapshot_name(number: u64) -> String {
    format!("snapshot-{number:08}")
}

/// The name of a generation's journal file.
pub(super) fn journal_name(number: u64) -> String {
    format!("journal-{number:08}")
}

/// Reads the directory: the newest generation that may be used.
pub(super) fn load(fs: &dyn Fs, dir: &Path, opener: &Opener) -> Result<Loaded, LoadError> {
    let names = fs.list(dir).map_err(|source| LoadError::Read { path: dir.to_owned(), source })?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|n| n.strip_prefix("snapshot-")?.parse().ok()).collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    let mut problems = Vec::new();
    let mark_file = dir.join(MARK_FILE);
    let mark = mark::read(fs, &mark_file).unwrap_or_else(|source| {
        problems.push(LoadError::Read { path: mark_file.clone(), source });
        MarkState::Corrupt
    });
    if mark == MarkState::Corrupt {
        problems.push(LoadError::Damaged { path: mark_file, offset: 0, reason: "no usable slot".to_owned() });
        return Ok(Loaded { generation: None, mark, numbers, problems, bookmark: None });
    }
    let mut generation = None;
    for number in &numbers {
        match load_generation(fs, dir, *number, mark, opener) {
            Ok(found) => {
                generation = Some(found);
                break;
            }
            Err(e) => problems.push(e),
        }
    }
    let bookmark = generation.as_ref().and_then(|g| {
        let position = g.built.snapshot.position();
        load_bookmark(fs, &dir.join(BOOKMARK_FILE), position, opener).unwrap_or_else(|e| {
            problems.push(e);
            None
        })
    });
    Ok(Loaded { generation, mark, numbers, problems, bookmark })
}

fn load_generation(
    fs: &dyn Fs,
    dir: &Path,
    number: u64,
    mark: MarkState,
    opener: &Opener,
) -> Result<Generation, LoadError> {
    let path = dir.join(snapshot_name(number));
    let (mut built, snapshot_chain, snapshot_bytes) = load_snapshot(fs, &path, opener)?;
    let journal = dir.join(journal_name(number));
    let (chain, journal_bytes, broken) = replay(fs, &journal, snapshot_chain, opener, &mut built)?;
    let position = built.snapshot.position();
    if let MarkState::At(mark, _) = mark
        && position < mark
    {
        // Above the mark a broken end was never acknowledged; below it, something that counted is missing.
        return Err(match broken {
            Some(reason) => LoadError::Damaged { path: journal, offset: journal_bytes, reason: reason.to_owned() },
            None => LoadError::Older { path: if journal_bytes > 0 { journal } else { path }, position, mark },
        });
    }
    Ok(Generation { number, built, snapshot_bytes, journal_bytes, snapshot_chain, chain })
}

fn load_snapshot(fs: &dyn Fs, path: &Path, opener: &Opener) -> Result<(Built, Chain, u64), LoadError> {
    let read = |source| LoadError::Read { path: path.to_owned(), source };
    let mut file = fs.open(path).map_err(read)?;
    let mut magic = [0; SNAPSHOT_MAGIC.len()];
    let damaged =
        |offset, reason: &str| LoadError::Damaged { path: path.to_owned(), offset, reason: reason.to_owned() };
    if fill(&mut file, &mut magic).map_err(read)? < magic.len() || magic != *SNAPSHOT_MAGIC {
        let reason = match magic.starts_with(b"portcullis-snap") {
            true => "it was written by another version, in a form that is not read here",
            false => "this is not a snapshot file",
        };
        return Err(damaged(0, reason));
    }
    let reader = Reader::new(file, Chain::start(), magic.len() as u64);
    ahead::read(reader, opener, |steps| {
        let mut assembly: Option<Assembly> = None;
        for Step { offset, end, chain, found } in &mut *steps {
            let bad = |e: &dyn std::fmt::Display| damaged(offset, &e.to_string());
            let Ready { epoch, body } = match found.map_err(read)? {
                Found::Record(record) => record.map_err(|e| bad(&e))?,
                Found::End => return Err(damaged(offset, "the snapshot has no end")),
                Found::Broken(reason) => return Err(damaged(offset, reason)),
            };
            match (body, assembly.as_mut()) {
                (ReadyBody::Other(Body::Begin(begin)), None) => {
                    assembly = Some(Assembly::begin(epoch, begin, None, None).map_err(|e| bad(&e))?);
                }
                (ReadyBody::Chunk(chunk), Some(a)) => a.chunk(epoch, chunk).map_err(|e| bad(&e))?,
                (ReadyBody::Other(Body::End(last)), Some(_)) => {
                    let whole = assembly.take().map(|a| a.end(epoch, &last));
                    let built = whole.ok_or_else(|| bad(&"it ends twice"))?.map_err(|e| bad(&e))?;
                    return match steps.next().map(|step| step.found).transpose().map_err(read)? {
                        Some(Found::End) => Ok((built, chain, end)),
                        _ => Err(damaged(end, "something follows the end of the snapshot")),
                    };
                }
                _ => return Err(bad(&"a frame of another kind was due")),
            }
        }
        Err(damaged(0, "it could not be read to its end"))
    })
    .map_err(read)?
}

/// Replays a journal. Returns the chain, the length of its usable part, and what ended it early.
fn replay(
    fs: &dyn Fs,
    path: &Path,
    chain: Chain,
    opener: &Opener,
    built: &mut Built,
) -> Result<(Chain, u64, Option<&'static str>), LoadError> {
    let read = |source| LoadError::Read { path: path.to_owned(), source };
    let mut file = match fs.open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((chain, 0, Some("the journal is missing"))),
        Err(e) => return Err(read(e)),
    };
    let mut header = [0; JOURNAL_MAGIC.len() + 32];
    let whole = fill(&mut file, &mut header).map_err(read)? == header.len();
    if !whole || header.split_at_checked(JOURNAL_MAGIC.len()) != Some((JOURNAL_MAGIC.as_slice(), chain.0.as_slice())) {
        return Ok((chain, 0, Some("this is not the journal of its snapshot")));
    }
    let reader = Reader::new(file, chain, header.len() as u64);
    let mut replay = Replay::on(&built.snapshot);
    let usable = ahead::read(reader, opener, |steps| {
        for Step { offset, end, chain, found } in steps {
            let record = match found.map_err(read)? {
                Found::Record(record) => record,
                Found::End => return Ok((chain, end, None)),
                Found::Broken(reason) => return Ok((chain, end, Some(reason))),
            };
            // From here on the record is what was written: what is wrong with it is not a torn write.
            let damaged =
                |e: &dyn std::fmt::Display| LoadError::Damaged { path: path.to_owned(), offset, reason: e.to_string() };
            let Ready { epoch, body } = record.map_err(|e| damaged(&e))?;
            let ReadyBody::Delta(changes) = body else { return Err(damaged(&"this is not a delta")) };
            replay.delta(epoch, changes).map_err(|e| damaged(&e))?;
        }
        Err(read(std::io::Error::other("it could not be read to its end")))
    })
    .map_err(read)??;
    let replayed = replay.finish();
    built.snapshot = replayed.snapshot;
    built.unusable.extend(replayed.unusable);
    Ok(usable)
}

/// Reads the bookmark that dates the state. One for a later revision says nothing about this state.
fn load_bookmark(
    fs: &dyn Fs,
    path: &Path,
    position: Position,
    opener: &Opener,
) -> Result<Option<StoredBookmark>, LoadError> {
    let mut bytes = Vec::new();
    match fs.open(path) {
        Ok(file) => file.take(64 * 1024).read_to_end(&mut bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => Err(e),
    }
    .map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    let damaged = |reason: String| LoadError::Damaged { path: path.to_owned(), offset: 0, reason };
    let (boot, received, frame) = decode_bookmark(&bytes).ok_or_else(|| damaged("it is cut off".to_owned()))?;
    let opened = opener.open(&frame).map_err(|e| damaged(e.to_string()))?;
    let Body::Bookmark(bookmark) = opened.body else { return Err(damaged("it is not a bookmark".to_owned())) };
    if opened.epoch != position.epoch || bookmark.revision > position.revision.0 {
        return Err(damaged(format!(
            "it is for `{}.{}`, the state is at `{position}`",
            opened.epoch, bookmark.revision
        )));
    }
    Ok(Some(StoredBookmark { bookmark, boot, received }))
}

/// The bookmark file: the boot, the monotonic time of arrival, and the frame.
pub(super) fn encode_bookmark(boot: &str, received: Monotonic, frame: &ServerFrame) -> Vec<u8> {
    let mut bytes = format!("{boot} {}\n", received.as_nanos()).into_bytes();
    bytes.extend_from_slice(&frame.encode_to_vec());
    bytes
}

fn decode_bookmark(bytes: &[u8]) -> Option<(String, Monotonic, ServerFrame)> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let line = std::str::from_utf8(bytes.get(..end)?).ok()?;
    let (boot, ns) = line.split_once(' ')?;
    let frame = ServerFrame::decode(bytes.get(end + 1..)?).ok()?;
    Some((boot.to_owned(), Monotonic::from_nanos(ns.parse().ok()?), frame))
}
