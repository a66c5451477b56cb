//! Last-known-good state on disk: signed frames as they came, so that a restart needs no control plane.
//!
//! Plane: sync. A generation is a snapshot file and the journal of the deltas after it; the high-water mark says how
//! far state was durable. Order of a delta: put in force, journal, sync, note the mark, and only then acknowledge; of
//! a snapshot: temporary file, sync, empty journal, rename, sync the directory, raise the mark, drop what is below it.
//! INVARIANT: a crash at any step leaves the old or the new state, and a restart never comes back older than an
//! acknowledged revision. When the disk fails, the state on it is made void (by raising the mark in place, which needs
//! no space, or by removal) and checks go on from memory; if not even that works, nothing is acknowledged any more.
//! Long because the order of writes, which is the point of it, is read here in one place.

mod ahead;
mod fs;
mod load;
mod mark;
mod record;
mod seed;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::fs::{File, Fs, RealFs};
pub use self::load::LoadError;
use self::load::{Loaded, StoredBookmark, encode_bookmark, journal_name, load, snapshot_name};
use self::mark::{Mark, MarkState};
use self::record::{Chain, JOURNAL_MAGIC, SNAPSHOT_MAGIC, encode};
pub use self::seed::{SeedError, Seeder};
use super::apply::Built;
use super::frame::Opener;
use crate::authz::{Lease, Snapshot};
use crate::clock::{Monotonic, SharedClock};
use crate::wire::proto::{Bookmark, ServerFrame};
use crate::wire::{Position, ScopeId, VerifyKey};

const MARK_FILE: &str = "high-water-mark";
const BOOKMARK_FILE: &str = "bookmark";
const LOCK_FILE: &str = "lock";
const INSTANCE_FILE: &str = "instance";
/// After so many changes the mark is made durable, if no bookmark was kept before. Until then the journal alone, which is
/// durable, says how far the state was: were the machine to lose power and the disk some of what it had confirmed, a restart
/// could not tell.
const NOTED: u32 = 64;
/// A journal larger than this and than its snapshot asks for a new snapshot.
const JOURNAL_LIMIT: u64 = 64 * 1024 * 1024;

/// Why a state directory cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It cannot be made or written.
    #[error("state directory `{}`: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else uses it.
    #[error("state directory `{}` is in use by another process", .0.display())]
    Locked(PathBuf),
    /// It cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// What the directory held at start.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) built: Option<Built>,
    pub(super) bookmark: Option<(Bookmark, Monotonic)>,
    pub(super) problems: Vec<LoadError>,
}

/// State read without a running sidecar, for offline checks.
#[derive(Debug)]
pub struct Offline {
    /// The state, if there is a usable one.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Its lease, if it is dated.
    pub lease: Option<Lease>,
    /// What is wrong with what was not used.
    pub problems: Vec<LoadError>,
}

/// The writing side.
#[derive(Debug)]
pub(super) struct Disk {
    fs: Box<dyn Fs>,
    dir: PathBuf,
    boot: String,
    mark: Mark,
    mode: Mode,
    /// Generations on disk beside the current one.
    others: Vec<u64>,
    next_number: u64,
    arriving: Option<Arriving>,
    errors: u64,
    /// How often the mark was raised since it was made durable.
    noted: u32,
    /// Held for the life of the process.
    _lock: Option<std::fs::File>,
}

#[derive(Debug)]
enum Mode {
    /// Deltas are journaled.
    Active(Active),
    /// There is no state on disk.
    Void,
    /// There may be state on disk that is older than what is in force. A restart must not accept it, so the mark is
    /// raised with every change; where that fails, nothing is acknowledged.
    Behind,
}

#[derive(Debug)]
struct Active {
    number: u64,
    journal: Box<dyn File>,
    journal_bytes: u64,
    snapshot_bytes: u64,
    chain: Chain,
    position: Position,
    /// Empty deltas are written without syncing: a restart without them has the same content.
    unsynced: bool,
}

/// A snapshot that is being written.
#[derive(Debug)]
struct Arriving {
    number: u64,
    file: Box<dyn File>,
    bytes: u64,
    chain: Chain,
}

impl Disk {
    /// Opens (and makes) the directory, takes its lock and reads what it holds.
    pub(super) fn open(dir: &Path, opener: &Opener) -> Result<(Self, Restored), DirectoryError> {
        use std::os::unix::fs::DirBuilderExt;
        let failed = |source| DirectoryError::Io { path: dir.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let lock_file = dir.join(LOCK_FILE);
        let lock =
            std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(lock_file).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(DirectoryError::Locked(dir.to_owned())),
            Err(std::fs::TryLockError::Error(e)) => return Err(failed(e)),
        }
        let boot = boot_id();
        let (mut disk, restored) = Self::with_fs(Box::new(RealFs), dir, opener, boot)?;
        disk._lock = Some(lock);
        Ok((disk, restored))
    }

    fn with_fs(fs: Box<dyn Fs>, dir: &Path, opener: &Opener, boot: String) -> Result<(Self, Restored), DirectoryError> {
        let Loaded { generation, mark, numbers, problems, bookmark } = load(&*fs, dir, opener)?;
        let mut disk = Self {
            dir: dir.to_owned(),
            boot,
            mark: Mark::new(dir.join(MARK_FILE), mark),
            mode: if numbers.is_empty() && mark != MarkState::Corrupt { Mode::Void } else { Mode::Behind },
            others: numbers.clone(),
            next_number: numbers.first().map_or(1, |n| n.saturating_add(1)),
            arriving: None,
            errors: 0,
            noted: 0,
            fs,
            _lock: None,
        };
        let mut restored = Restored { built: None, bookmark: None, problems };
        if let Some(found) = generation {
            disk.others.retain(|n| *n != found.number);
            let position = found.built.snapshot.position();
            match disk.open_journal(found.number, found.journal_bytes, found.snapshot_chain) {
                Ok((journal, journal_bytes)) => {
                    disk.mode = Mode::Active(Active {
                        number: found.number,
                        journal,
                        journal_bytes,
                        snapshot_bytes: found.snapshot_bytes,
                        chain: found.chain,
                        position,
                        unsynced: false,
                    });
                    // What the journal holds beyond the mark is in force again from here on.
                    disk.try_raise(position);
                }
                Err(e) => disk.failed("opening the journal", &e),
            }
            restored.built = Some(found.built);
            restored.bookmark = bookmark.map(|b| disk.date(b));
        }
        for name in disk.fs.list(dir).unwrap_or_default() {
            if name.ends_with(".tmp") {
                let _ = disk.fs.remove(&dir.join(name));
            }
        }
        Ok((disk, restored))
    }

    /// The latest position that was made durable.
    pub(super) const fn mark(&self) -> Option<Position> {
        self.mark.position()
    }

    /// How many writes have failed.
    pub(super) const fn errors(&self) -> u64 {
        self.errors
    }

    /// Whether a new snapshot would shorten the journal.
    pub(super) fn journal_is_long(&self) -> bool {
        matches!(&self.mode, Mode::Active(a) if a.journal_bytes > JOURNAL_LIMIT.max(a.snapshot_bytes))
    }

    /// Whether a restart would find a state.
    pub(super) const fn is_active(&self) -> bool {
        matches!(self.mode, Mode::Active(_))
    }

    /// The id of this instance, the same over restarts: whoever holds the directory's lock is its only process.
    pub(super) fn instance(&self) -> String {
        let path = self.dir.join(INSTANCE_FILE);
        let mut text = String::new();
        if let Ok(mut file) = self.fs.open(&path) {
            let _ = io::Read::read_to_string(&mut file, &mut text);
        }
        if let Ok(id) = uuid::Uuid::try_parse(text.trim()) {
            return id.to_string();
        }
        let id = uuid::Uuid::new_v4().to_string();
        if let Err(e) = self.write_whole(INSTANCE_FILE, id.as_bytes()) {
            tracing::warn!(error = %e, "the instance id could not be kept; a restart counts as another instance");
        }
        id
    }

    /// Appends a delta that brought the state to `position`. Returns whether the position may be acknowledged.
    /// `changes` says whether it holds any object.
    pub(super) fn append(&mut self, frame: &ServerFrame, position: Position, changes: bool) -> bool {
        let Mode::Active(active) = &mut self.mode else { return self.secure(position) };
        let (record, chain) = encode(active.chain, frame);
        let mut written = active.journal.write(&record);
        if written.is_ok() && changes {
            written = active.journal.sync();
        }
        if let Err(e) = written {
            self.failed("writing the journal", &e);
            // Also when only the sync failed: what is on disk now is unknown, and a second sync may lie.
            self.mode = Mode::Behind;
            return self.secure(position);
        }
        active.chain = chain;
        active.journal_bytes += record.len() as u64;
        active.position = position;
        active.unsynced = !changes;
        if changes {
            self.note(position);
        }
        true
    }

    /// Makes sure that no restart comes back with less than `position`: for when state is in force that is not on
    /// disk. Returns whether that is so.
    pub(super) fn secure(&mut self, position: Position) -> bool {
        match &self.mode {
            Mode::Void => return true,
            Mode::Active(active) if active.position >= position => return true,
            Mode::Active(_) | Mode::Behind => self.mode = Mode::Behind,
        }
        // What is on disk at this very position, if anything, is the state in force; what is below is refused.
        let Err(e) = self.mark.raise(&*self.fs, position) else { return true };
        self.failed("voiding the state on disk", &e);
        match self.remove_everything() {
            Ok(()) => {
                self.mode = Mode::Void;
                true
            }
            Err(e) => {
                self.failed("removing the state on disk", &e);
                false
            }
        }
    }

    /// Starts writing a snapshot. Failures show when it ends.
    pub(super) fn begin(&mut self, frame: &ServerFrame) {
        self.abandon();
        let number = self.next_number;
        let started = self.fs.create(&self.temporary(number)).and_then(|mut file| {
            file.write(SNAPSHOT_MAGIC)?;
            Ok(Arriving { number, file, bytes: SNAPSHOT_MAGIC.len() as u64, chain: Chain::start() })
        });
        match started {
            Ok(arriving) => self.arriving = Some(arriving),
            Err(e) => self.failed("starting a snapshot", &e),
        }
        self.chunk(frame);
    }

    /// Writes on.
    pub(super) fn chunk(&mut self, frame: &ServerFrame) {
        let Some(arriving) = &mut self.arriving else { return };
        let (record, chain) = encode(arriving.chain, frame);
        match arriving.file.write(&record) {
            Ok(()) => (arriving.chain, arriving.bytes) = (chain, arriving.bytes + record.len() as u64),
            Err(e) => {
                self.failed("writing a snapshot", &e);
                self.abandon();
            }
        }
    }

    /// Completes a snapshot, which is in force at `position`. Returns whether that may be acknowledged.
    pub(super) fn end(&mut self, frame: &ServerFrame, position: Position) -> bool {
        self.chunk(frame);
        let Some(arriving) = self.arriving.take() else { return self.secure(position) };
        let number = arriving.number;
        match self.complete(arriving, position) {
            Ok(active) => {
                if let Mode::Active(old) = std::mem::replace(&mut self.mode, Mode::Active(active)) {
                    self.others.push(old.number);
                }
                self.next_number = number.saturating_add(1);
                if self.try_raise(position) {
                    self.remove_others();
                    return true;
                }
                // Until the mark is up a restart could fall back to the generation before, if this one were damaged.
                self.remove_others_durably()
            }
            Err(e) => {
                self.failed("completing a snapshot", &e);
                let _ = self.fs.remove(&self.temporary(number));
                self.next_number = number.saturating_add(1);
                self.others.push(number);
                // When the new name is there it stands above the generation that deltas go to: neither can be relied on.
                let name = snapshot_name(number);
                if self.fs.list(&self.dir).map_or(true, |names| names.contains(&name)) {
                    self.mode = Mode::Behind;
                }
                self.secure(position)
            }
        }
    }

    /// Gives up a snapshot that did not end.
    pub(super) fn abandon(&mut self) {
        if let Some(arriving) = self.arriving.take() {
            let _ = self.fs.remove(&self.temporary(arriving.number));
        }
    }

    /// Keeps the bookmark that dates the state. Its failure costs freshness after a restart, nothing else.
    pub(super) fn bookmark(&mut self, frame: &ServerFrame, received: Monotonic) {
        // A bookmark for more than what the journal durably holds would date nothing.
        if let Mode::Active(active) = &mut self.mode
            && active.unsynced
        {
            match active.journal.sync() {
                Ok(()) => active.unsynced = false,
                Err(e) => {
                    self.failed("writing the journal", &e);
                    self.mode = Mode::Behind;
                }
            }
        }
        if let Mode::Active(active) = &self.mode
            && self.noted > 0
        {
            self.try_raise(active.position);
        }
        if self.is_active()
            && let Err(e) = self.write_whole(BOOKMARK_FILE, &encode_bookmark(&self.boot, received, frame))
        {
            self.failed("writing the bookmark", &e);
        }
    }

    fn complete(&mut self, mut arriving: Arriving, position: Position) -> io::Result<Active> {
        arriving.file.sync()?;
        let (journal, journal_bytes) = self.create_journal(arriving.number, arriving.chain)?;
        self.fs.rename(&self.temporary(arriving.number), &self.dir.join(snapshot_name(arriving.number)))?;
        self.fs.sync_dir(&self.dir)?;
        Ok(Active {
            number: arriving.number,
            journal,
            journal_bytes,
            snapshot_bytes: arriving.bytes,
            chain: arriving.chain,
            position,
            unsynced: false,
        })
    }

    fn create_journal(&self, number: u64, chain: Chain) -> io::Result<(Box<dyn File>, u64)> {
        let mut journal = self.fs.create(&self.dir.join(journal_name(number)))?;
        journal.write(JOURNAL_MAGIC)?;
        journal.write(&chain.0)?;
        journal.sync()?;
        Ok((journal, (JOURNAL_MAGIC.len() + chain.0.len()) as u64))
    }

    /// Opens the journal of a loaded generation for writing, without what was torn at its end.
    fn open_journal(&self, number: u64, usable: u64, snapshot_chain: Chain) -> io::Result<(Box<dyn File>, u64)> {
        if usable == 0 {
            let created = self.create_journal(number, snapshot_chain)?;
            self.fs.sync_dir(&self.dir)?;
            return Ok(created);
        }
        let mut journal = self.fs.append(&self.dir.join(journal_name(number)), usable)?;
        // What was read back may still be only in the page cache of before.
        journal.sync()?;
        Ok((journal, usable))
    }

    /// Raises the mark after the journal or the generation is durable. Then its failure is no danger to anybody.
    fn note(&mut self, position: Position) {
        self.noted = self.noted.saturating_add(1);
        if self.noted >= NOTED {
            self.try_raise(position);
        } else if let Err(e) = self.mark.note(&*self.fs, position) {
            self.failed("noting the high-water mark", &e);
        }
    }

    fn try_raise(&mut self, position: Position) -> bool {
        match self.mark.raise(&*self.fs, position) {
            Ok(()) => {
                self.noted = 0;
                true
            }
            Err(e) => {
                self.failed("raising the high-water mark", &e);
                false
            }
        }
    }

    fn remove_others(&mut self) {
        for number in std::mem::take(&mut self.others) {
            // The snapshot first: a journal alone is nothing.
            let _ = self.fs.remove(&self.dir.join(snapshot_name(number)));
            let _ = self.fs.remove(&self.dir.join(journal_name(number)));
        }
    }

    fn remove_others_durably(&mut self) -> bool {
        self.remove_others();
        match self.fs.sync_dir(&self.dir) {
            Ok(()) => true,
            Err(e) => {
                self.failed("removing an old generation", &e);
                false
            }
        }
    }

    fn remove_everything(&mut self) -> io::Result<()> {
        for name in self.fs.list(&self.dir)? {
            if name.starts_with("snapshot-") {
                self.fs.remove(&self.dir.join(name))?;
            }
        }
        self.fs.sync_dir(&self.dir)
    }

    fn write_whole(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.dir.join(format!("{name}.tmp"));
        let mut file = self.fs.create(&temporary)?;
        file.write(bytes)?;
        file.sync()?;
        self.fs.rename(&temporary, &self.dir.join(name))?;
        self.fs.sync_dir(&self.dir)
    }

    fn temporary(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{}.tmp", snapshot_name(number)))
    }

    /// When the bookmark arrived, by the monotonic clock if that has counted since, else as if it arrived now: then
    /// the wall clock tells its age.
    fn date(&self, stored: StoredBookmark) -> (Bookmark, Monotonic) {
        let received = if stored.boot == self.boot { stored.received } else { Monotonic::from_nanos(u64::MAX) };
        (stored.bookmark, received)
    }

    fn failed(&mut self, doing: &'static str, error: &io::Error) {
        self.errors += 1;
        // Once per bout: a full disk fails at every delta.
        if self.errors.is_power_of_two() {
            tracing::error!(
                directory = %self.dir.display(), %error, doing, failures = self.errors,
                "state cannot be kept on disk; checks go on from memory, but a restart may have to wait for the control plane"
            );
        }
    }
}

/// Reads a state directory without changing or locking it. `scope` is checked when it is given.
pub fn load_offline(
    dir: &Path,
    key: VerifyKey,
    scope: Option<ScopeId>,
    clock: &SharedClock,
) -> Result<Offline, LoadError> {
    let loaded = load(&RealFs, dir, &Opener { key, scope })?;
    let boot = boot_id();
    let lease = loaded.bookmark.map(|b| {
        let received = (b.boot == boot).then_some(b.received);
        restored_lease(&b.bookmark, received.unwrap_or(Monotonic::from_nanos(u64::MAX)), None, clock)
    });
    let snapshot = loaded.generation.map(|g| Arc::new(g.built.snapshot));
    Ok(Offline { snapshot, lease, problems: loaded.problems })
}

/// The position of a state directory that holds one snapshot file.
#[cfg(any(test, feature = "testing"))]
pub(super) fn load_one(snapshot: bytes::Bytes, opener: &Opener) -> Option<Position> {
    let loaded = load(&fs::OneFile(snapshot), Path::new(""), opener).ok()?;
    loaded.generation.map(|g| g.built.snapshot.position())
}

/// The lease of a state from disk. Its signed time has passed, whatever the wall clock says.
pub(super) fn restored_lease(
    bookmark: &Bookmark,
    received: Monotonic,
    local_bound: Option<std::time::Duration>,
    clock: &SharedClock,
) -> Lease {
    let lease = super::apply::lease(bookmark, received, local_bound);
    clock.raise_floor(lease.server_time);
    Lease { received: lease.received.min(clock.now().mono), ..lease }
}

/// Which boot of the machine this is: the monotonic clock counts from it.
fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let id = id.trim();
    // Without one, no two processes are of the same boot.
    if id.is_empty() { uuid::Uuid::new_v4().to_string() } else { id.to_owned() }
}

#[cfg(test)]
mod tests;
