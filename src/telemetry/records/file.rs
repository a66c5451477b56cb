//! A file that is rotated by size: `records.jsonl`, `records.jsonl.1`, `records.jsonl.2` ….
//!
//! Plane: cross-cutting, off the hot path. Files are made with mode 0600. A file that exists is appended to; a last
//! line that a crash left half-written is ended, so that the next record starts on its own. After an error the file is
//! opened anew at the next write, also when somebody has moved or deleted it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct RotatingFile {
    path: PathBuf,
    max_bytes: u64,
    keep: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    len: u64,
    /// Device and inode, to notice that the path leads elsewhere.
    identity: (u64, u64),
}

// === impl RotatingFile ===

impl RotatingFile {
    /// Opens the file, so that a path that cannot be written is an error at start.
    pub(super) fn open(path: PathBuf, max_bytes: u64, keep: u32) -> io::Result<Self> {
        let open = Open::new(&path)?;
        Ok(Self { path, max_bytes: max_bytes.max(1), keep, open: Some(open) })
    }

    /// Appends whole lines.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let result = self.try_append(lines);
        if result.is_err() {
            self.open = None;
        }
        result
    }

    fn try_append(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut open = match self.open.take() {
            Some(open) if open.is_at(&self.path) => open,
            _ => Open::new(&self.path)?,
        };
        let added = lines.len() as u64;
        if open.len > 0 && open.len.saturating_add(added) > self.max_bytes {
            drop(open);
            self.rotate()?;
            open = Open::new(&self.path)?;
        }
        open.file.write_all(lines)?;
        open.len = open.len.saturating_add(added);
        self.open = Some(open);
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        if self.keep == 0 {
            return remove_if_there(&self.path);
        }
        for n in (1..self.keep).rev() {
            rename_if_there(&self.numbered(n), &self.numbered(n + 1))?;
        }
        rename_if_there(&self.path, &self.numbered(1))
    }

    fn numbered(&self, n: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{n}"));
        name.into()
    }
}

// === impl Open ===

impl Open {
    fn new(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other(format!("`{}` is not a regular file", path.display())));
        }
        let mut len = metadata.len();
        if len > 0 {
            let mut last = [0_u8];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                len += 1;
            }
        }
        Ok(Self { file, len, identity: (metadata.dev(), metadata.ino()) })
    }

    fn is_at(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity)
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    ignore_absence(std::fs::rename(from, to))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    ignore_absence(std::fs::remove_file(path))
}

fn ignore_absence(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotates_keeps_so_many_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.jsonl");
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).ok();
        let mut file = RotatingFile::open(path.clone(), 10, 2).unwrap();
        for line in ["one\n", "two\n", "three\n", "four\n", "five\n", "six\n", "seven\n", "eight\n"] {
            file.append(line.as_bytes()).unwrap();
        }
        assert_eq!(read("records.jsonl").as_deref(), Some("eight\n"));
        assert_eq!(read("records.jsonl.1").as_deref(), Some("six\nseven\n"));
        assert_eq!(read("records.jsonl.2").as_deref(), Some("four\nfive\n"));
        assert_eq!(read("records.jsonl.3"), None, "only as many as asked for");
        file.append(b"a line that is longer than the bound is still written whole\n").unwrap();
        assert_eq!(read("records.jsonl.1").as_deref(), Some("eight\n"));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn continues_after_a_crash_and_after_being_moved_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.jsonl");
        std::fs::write(&path, "{\"whole\":1}\n{\"hal").unwrap();
        let mut file = RotatingFile::open(path.clone(), 1000, 2).unwrap();
        file.append(b"{\"next\":1}\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"whole\":1}\n{\"hal\n{\"next\":1}\n");

        std::fs::rename(&path, dir.path().join("taken")).unwrap();
        file.append(b"after\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "after\n");

        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(file.append(b"lost\n").is_err(), "a directory in its place is an error");
        std::fs::remove_dir(&path).unwrap();
        file.append(b"again\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "again\n");
    }
}
