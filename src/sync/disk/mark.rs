//! The high-water mark: the latest position that was made durable, below which nothing on disk is accepted again.
//!
//! Plane: sync. Two slots, written in turn and in place, each with its own checksum: a write that is cut short loses
//! that slot only, and needs no free space. Between two writes that are made durable only one slot is written, so that the
//! other stays good whatever becomes of it. Raising the mark is also how a state on disk is made void. Fails closed:
//! when neither slot is readable, nothing on disk is accepted.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};

use super::fs::{File, Fs};
use crate::wire::{Epoch, Position, Revision};

/// The slots lie in different sectors.
const SLOT_DISTANCE: usize = 4096;
const EPOCH_TEXT: usize = 36;
const BODY: usize = 8 + 8 + EPOCH_TEXT;
const SLOT: usize = BODY + 32;

/// The file.
#[derive(Debug)]
pub(super) struct Mark {
    path: PathBuf,
    file: Option<Box<dyn File>>,
    /// The number of the last write that was made durable.
    sequence: u64,
    /// The latest that was written, and the latest that was made durable.
    position: Option<Position>,
    durable: Option<Position>,
}

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MarkState {
    /// There is none.
    Absent,
    /// The mark and the number of its write.
    At(Position, u64),
    /// There is one that cannot be read.
    Corrupt,
}

/// Reads the mark in `path`.
pub(super) fn read(fs: &dyn Fs, path: &Path) -> io::Result<MarkState> {
    let mut bytes = Vec::new();
    match fs.open(path) {
        Ok(file) => file.take(64 * 1024).read_to_end(&mut bytes)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(MarkState::Absent),
        Err(e) => return Err(e),
    };
    let slot = |i: usize| bytes.get(i * SLOT_DISTANCE..).and_then(decode);
    let newest = slot(0).into_iter().chain(slot(1)).max_by_key(|(_, sequence)| *sequence);
    Ok(newest.map_or(MarkState::Corrupt, |(position, sequence)| MarkState::At(position, sequence)))
}

impl Mark {
    /// A mark to be raised, as it was read. It may have been noted by an earlier process and be on no disk yet, so that the
    /// first thing that is written is made durable, as a whole.
    pub(super) const fn new(path: PathBuf, state: MarkState) -> Self {
        let (position, sequence) = match state {
            MarkState::At(position, sequence) => (Some(position), sequence),
            MarkState::Absent | MarkState::Corrupt => (None, 0),
        };
        Self { path, file: None, sequence, position, durable: None }
    }

    /// Where it stands.
    pub(super) const fn position(&self) -> Option<Position> {
        self.position
    }

    /// Raises the mark, durably. It never falls.
    pub(super) fn raise(&mut self, fs: &dyn Fs, position: Position) -> io::Result<()> {
        if self.durable.is_some_and(|p| p >= position) {
            return Ok(());
        }
        let position = self.position.map_or(position, |noted| noted.max(position));
        let sequence = self.sequence + 1;
        let slot = encode(position, sequence);
        let written = self.write(fs, &slot, sequence, true);
        if written.is_err() {
            // What the slot holds is unknown; the next write opens the file anew and uses the same slot.
            self.file = None;
            return written;
        }
        (self.sequence, self.position, self.durable) = (sequence, Some(position), Some(position));
        Ok(())
    }

    /// Raises the mark without waiting for the disk: it outlives the process, and the machine once something else has had
    /// it made durable.
    pub(super) fn note(&mut self, fs: &dyn Fs, position: Position) -> io::Result<()> {
        if self.durable.is_none() {
            return self.raise(fs, position);
        }
        if self.position.is_some_and(|p| p >= position) {
            return Ok(());
        }
        let sequence = self.sequence + 1;
        let written = self.write(fs, &encode(position, sequence), sequence, false);
        match written {
            Ok(()) => self.position = Some(position),
            Err(_) => self.file = None,
        }
        written
    }

    fn write(&mut self, fs: &dyn Fs, slot: &[u8; SLOT], sequence: u64, durably: bool) -> io::Result<()> {
        if self.durable.is_none() {
            // The first mark, or one in place of a corrupt one: the whole file, by rename.
            let temporary = self.path.with_extension("tmp");
            let mut file = fs.create(&temporary)?;
            let mut bytes = vec![0; 2 * SLOT_DISTANCE];
            let at = slot_offset(sequence);
            if let Some(place) = bytes.get_mut(at..at + SLOT) {
                place.copy_from_slice(slot);
            }
            file.write(&bytes)?;
            file.sync()?;
            fs.rename(&temporary, &self.path)?;
            if let Some(dir) = self.path.parent() {
                fs.sync_dir(dir)?;
            }
            self.file = Some(file);
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(fs.append(&self.path, u64::MAX)?),
        };
        file.write_at(slot_offset(sequence) as u64, slot)?;
        if durably { file.sync() } else { Ok(()) }
    }
}

const fn slot_offset(sequence: u64) -> usize {
    if sequence.is_multiple_of(2) { 0 } else { SLOT_DISTANCE }
}

fn encode(position: Position, sequence: u64) -> [u8; SLOT] {
    let mut bytes = Vec::with_capacity(SLOT);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&position.revision.0.to_le_bytes());
    bytes.extend_from_slice(position.epoch.to_string().as_bytes());
    bytes.extend_from_slice(digest(&SHA256, &bytes).as_ref());
    let mut slot = [0; SLOT];
    for (to, from) in slot.iter_mut().zip(bytes) {
        *to = from;
    }
    slot
}

fn decode(bytes: &[u8]) -> Option<(Position, u64)> {
    let body = bytes.get(..BODY)?;
    if bytes.get(BODY..SLOT)? != digest(&SHA256, body).as_ref() {
        return None;
    }
    let number = |at: usize| body.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let epoch = Epoch::parse(std::str::from_utf8(body.get(16..)?).ok()?).ok()?;
    Some((Position { epoch, revision: Revision(number(8)?) }, number(0)?))
}
