//! A file system in memory that knows what has been made durable, and can crash or fail at any operation.
//!
//! Content and names are durable apart from each other, as on a real one: a synced file whose directory was not
//! synced may be gone, and a renamed file whose content was not synced may be empty.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::fs::{File, Fs};

/// What becomes of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    /// All of it is lost.
    LoseUnsynced,
    /// All of it had been written.
    KeepUnsynced,
    /// Of every file the first half of it had been written; names too.
    KeepHalf,
    /// Names had been written, and of every file all but the last bytes.
    Tear(usize),
    /// Content had been written, names had not.
    ContentOnly,
}

/// Which operations fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fail {
    Everything,
    /// Only what needs new space: the disk is full.
    Growth,
}

#[derive(Debug, Clone)]
pub(super) struct MemFs(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    nodes: Vec<Node>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    operations: usize,
    crash: Option<(usize, Crash)>,
    fail: Option<(usize, usize, Fail)>,
    crashed: bool,
}

#[derive(Debug, Default, Clone)]
struct Node {
    content: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Debug)]
struct Handle {
    fs: MemFs,
    node: usize,
}

impl MemFs {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    pub(super) fn operations(&self) -> usize {
        self.lock().operations
    }

    /// Crashes in the middle of the operation after `point` more.
    pub(super) fn crash_at(&self, point: usize, crash: Crash) {
        let mut inner = self.lock();
        inner.crash = Some((point, crash));
    }

    pub(super) fn has_crashed(&self) -> bool {
        self.lock().crashed
    }

    /// Fails `length` operations from `point` on.
    pub(super) fn fail_from(&self, point: usize, length: usize, fail: Fail) {
        self.lock().fail = Some((point, point.saturating_add(length), fail));
    }

    pub(super) fn heal(&self) {
        self.lock().fail = None;
    }

    /// What the next process finds.
    pub(super) fn after_crash(&self) -> Self {
        let inner = self.lock();
        let crash = inner.crash.map_or(Crash::KeepUnsynced, |(_, crash)| crash);
        let names = match crash {
            Crash::LoseUnsynced | Crash::ContentOnly => &inner.durable_names,
            Crash::KeepUnsynced | Crash::KeepHalf | Crash::Tear(_) => &inner.names,
        };
        let nodes = inner.nodes.iter().map(|n| {
            let kept = |unsynced: usize| {
                // In-place writes and appends alike: a prefix of the difference has been written.
                let same = n.content.iter().zip(&n.durable).take_while(|(a, b)| a == b).count();
                let differing = n.content.len().max(n.durable.len()) - same;
                let upto = same + unsynced.min(differing);
                let mut bytes = n.content[..upto.min(n.content.len())].to_vec();
                if n.durable.len() > bytes.len() && n.durable.len() <= n.content.len() {
                    bytes.extend_from_slice(&n.durable[bytes.len()..]);
                }
                bytes
            };
            let differing = n.content.len().abs_diff(n.durable.len());
            let content = match crash {
                Crash::LoseUnsynced => n.durable.clone(),
                Crash::KeepUnsynced | Crash::ContentOnly => n.content.clone(),
                Crash::KeepHalf => kept(differing / 2),
                Crash::Tear(bytes) => kept(differing.saturating_sub(bytes)),
            };
            Node { durable: content.clone(), content }
        });
        let inner =
            Inner { nodes: nodes.collect(), names: names.clone(), durable_names: names.clone(), ..Inner::default() };
        Self(Arc::new(Mutex::new(inner)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Counts an operation. `Ok(false)`: the process dies in the middle of it.
    fn operate(&self, grows: bool) -> io::Result<bool> {
        let mut inner = self.lock();
        if inner.crashed {
            return Err(io::Error::other("crashed"));
        }
        let n = inner.operations;
        inner.operations += 1;
        if let Some((from, to, fail)) = inner.fail
            && (from..to).contains(&n)
            && (grows || fail == Fail::Everything)
        {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        if inner.crash.is_some_and(|(point, _)| point == n) {
            inner.crashed = true;
            return Ok(false);
        }
        Ok(true)
    }
}

const CRASHED: &str = "crashed in the middle";

impl Fs for MemFs {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        let inner = self.lock();
        let node = *inner.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Cursor::new(inner.nodes[node].content.clone())))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.lock();
        let name = |p: &PathBuf| p.file_name().unwrap().to_string_lossy().into_owned();
        Ok(inner.names.keys().filter(|p| p.parent() == Some(dir)).map(name).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let whole = self.operate(true)?;
        let mut inner = self.lock();
        inner.nodes.push(Node::default());
        let node = inner.nodes.len() - 1;
        inner.names.insert(path.to_owned(), node);
        if whole { Ok(Box::new(Handle { fs: self.clone(), node })) } else { Err(io::Error::other(CRASHED)) }
    }

    fn append(&self, path: &Path, len: u64) -> io::Result<Box<dyn File>> {
        let whole = self.operate(false)?;
        let mut inner = self.lock();
        let node = *inner.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        inner.nodes[node].content.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        if whole { Ok(Box::new(Handle { fs: self.clone(), node })) } else { Err(io::Error::other(CRASHED)) }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let whole = self.operate(false)?;
        let mut inner = self.lock();
        let node = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.names.insert(to.to_owned(), node);
        if whole { Ok(()) } else { Err(io::Error::other(CRASHED)) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let whole = self.operate(false)?;
        self.lock().names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        if whole { Ok(()) } else { Err(io::Error::other(CRASHED)) }
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        // A sync that is cut short has made nothing durable.
        if !self.operate(false)? {
            return Err(io::Error::other(CRASHED));
        }
        let mut inner = self.lock();
        inner.durable_names = inner.names.clone();
        Ok(())
    }
}

impl Handle {
    fn change(&self, grows: bool, bytes: &[u8], at: Option<usize>) -> io::Result<()> {
        let result = self.fs.operate(grows);
        let mut inner = self.fs.lock();
        let content = &mut inner.nodes[self.node].content;
        // A failed or interrupted write may have written a part.
        let part = match &result {
            Ok(true) => bytes.len(),
            Ok(false) => bytes.len() / 2,
            Err(_) if grows => bytes.len() / 3,
            Err(_) => 0,
        };
        let at = at.unwrap_or(content.len());
        let end = at + part;
        if content.len() < end {
            content.resize(end, 0);
        }
        content[at..end].copy_from_slice(&bytes[..part]);
        match result {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::Error::other(CRASHED)),
            Err(e) => Err(e),
        }
    }
}

impl File for Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.change(true, bytes, None)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(false, bytes, Some(usize::try_from(offset).unwrap()))
    }

    fn sync(&mut self) -> io::Result<()> {
        if !self.fs.operate(false)? {
            return Err(io::Error::other(CRASHED));
        }
        let mut inner = self.fs.lock();
        let node = &mut inner.nodes[self.node];
        node.durable = node.content.clone();
        Ok(())
    }
}
