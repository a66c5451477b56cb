//! The few file operations that last-known-good state needs, as a trait, so that a crash at any of them can be played.
//!
//! Plane: sync. Nothing here decides anything. Files are made for their owner only.

use std::fmt::Debug;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// A file system.
pub(super) trait Fs: Debug + Send + Sync {
    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>>;
    /// The names of the files in a directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes an empty file, replacing one of that name.
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Opens a file for writing at its end after cutting it to `len`.
    fn append(&self, path: &Path, len: u64) -> io::Result<Box<dyn File>>;
    /// Gives a file another name, replacing one of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file.
pub(super) trait File: Debug + Send {
    /// Writes at the end.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Writes in place.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes the content durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// The operating system's.
#[derive(Debug)]
pub(super) struct RealFs;

impl Fs for RealFs {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::BufReader::with_capacity(1 << 20, fs::File::open(path)?)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Box::new(file))
    }

    fn append(&self, path: &Path, len: u64) -> io::Result<Box<dyn File>> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        if file.metadata()?.len() > len {
            file.set_len(len)?;
        }
        file.seek(SeekFrom::End(0))?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }
}

impl File for fs::File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// A directory that holds the snapshot of the first generation, and that nobody can write to.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug)]
pub(in crate::sync) struct OneFile(pub(in crate::sync) bytes::Bytes);

#[cfg(any(test, feature = "testing"))]
impl Fs for OneFile {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        if path != Path::new(&super::load::snapshot_name(1)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Box::new(io::Cursor::new(self.0.clone())))
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        Ok(vec![super::load::snapshot_name(1)])
    }

    fn create(&self, _: &Path) -> io::Result<Box<dyn File>> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn append(&self, _: &Path, _: u64) -> io::Result<Box<dyn File>> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}
