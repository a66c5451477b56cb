//! A state directory made without a control plane to follow: for benchmarks, from frames that the caller signed.
//!
//! Plane: sync. Writes through the same [`Disk`] that a sidecar does, so that there is one format and one order of writes.
//! The bookmark is that of an unknown boot: its age is told by the wall clock. Fails as a whole: what could not be
//! written durably is no state.

use std::path::{Path, PathBuf};

use super::{DirectoryError, Disk, Opener};
use crate::clock::Monotonic;
use crate::wire::proto::ServerFrame;
use crate::wire::{Position, ScopeId, VerifyKey};

/// Stands for a boot that is not this one.
const NO_BOOT: &str = "-";

/// Writes one snapshot into an empty state directory.
#[derive(Debug)]
pub struct Seeder {
    disk: Disk,
    directory: PathBuf,
}

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// There is a state already.
    #[error("`{}` holds a state already", .0.display())]
    Taken(PathBuf),
    /// It could not be written; the log says why.
    #[error("the state in `{}` could not be written", .0.display())]
    Write(PathBuf),
}

impl Seeder {
    /// Starts in `directory`, which is made, with the first frame of a snapshot of `scope`, signed for `key`.
    pub fn begin(directory: &Path, key: VerifyKey, scope: ScopeId, begin: &ServerFrame) -> Result<Self, SeedError> {
        let (mut disk, restored) = Disk::open(directory, &Opener { key, scope: Some(scope) })?;
        if restored.built.is_some() || !restored.problems.is_empty() || disk.mark().is_some() {
            return Err(SeedError::Taken(directory.to_owned()));
        }
        NO_BOOT.clone_into(&mut disk.boot);
        disk.begin(begin);
        Ok(Self { disk, directory: directory.to_owned() })
    }

    /// Adds a chunk.
    pub fn chunk(&mut self, chunk: &ServerFrame) {
        self.disk.chunk(chunk);
    }

    /// Completes the snapshot, which is at `position`, and dates it.
    pub fn end(mut self, end: &ServerFrame, position: Position, bookmark: &ServerFrame) -> Result<(), SeedError> {
        self.disk.end(end, position);
        self.disk.bookmark(bookmark, Monotonic::from_nanos(0));
        if self.disk.errors() > 0 || !self.disk.is_active() {
            return Err(SeedError::Write(self.directory));
        }
        Ok(())
    }
}
