//! Crashes, damage and rollback, on a file system that forgets what was not synced, and on real files.

mod memory;

use std::fs as files;
use std::sync::OnceLock;

use self::memory::{Crash, MemFs};
use super::*;
use crate::authz::{Builder, Change};
use crate::clock::{ManualClock, Timestamp};
use crate::object::Kind;
use crate::sync::tests::frames::Frames;
use crate::testing::Estate;
use crate::wire::Revision;

/// One step of a history.
enum Step {
    Snapshot(u64, Vec<ServerFrame>),
    Delta(u64, ServerFrame, bool),
    Bookmark(ServerFrame),
}

/// A snapshot at 1, deltas to 4, an empty one to 5, a new snapshot at 6, a delta to 7; bookmarks between.
struct History {
    frames: Frames,
    steps: Vec<Step>,
    /// The digest of the state at each revision.
    digests: Vec<String>,
}

/// How far a run got before it crashed.
#[derive(Debug, Default, Clone, Copy)]
struct Reached {
    acknowledged: u64,
    attempted: u64,
}

/// Objects that compile in no time: these tests load a state thousands of times.
fn objects(estate: &Estate) -> Vec<Change> {
    let light = |kind| matches!(kind, Kind::Workload | Kind::Grant | Kind::Revocation);
    estate.changes().into_iter().filter(|c| light(c.kind)).collect()
}

fn digest(estate: &Estate) -> String {
    let mut builder = Builder::empty();
    objects(estate).into_iter().for_each(|c| builder.apply(c));
    builder.finish(estate.position()).0.digest()
}

/// Signing is done once for all tests.
fn history() -> &'static History {
    static ONCE: OnceLock<History> = OnceLock::new();
    ONCE.get_or_init(|| {
        let (frames, mut estate) = (Frames::new(), Estate::new());
        let (mut steps, mut digests) = (Vec::new(), vec![String::new()]);
        let bookmark = |r: u64| Step::Bookmark(frames.bookmark(r, Timestamp::from_secs(1_700_000_000 + r)));
        steps.push(Step::Snapshot(1, frames.snapshot(1, &objects(&estate))));
        digests.push(digest(&estate));
        steps.push(bookmark(1));
        for revision in 2..=4 {
            let (_, change) = estate.grant("agent", "payments/refunds", &["write"], None, 60 * revision);
            steps.push(Step::Delta(revision, frames.delta(revision - 1, revision, &[change]), true));
            digests.push(digest(&estate));
        }
        steps.push(Step::Delta(5, frames.delta(4, 5, &[]), false));
        digests.push(digest(&estate));
        steps.push(bookmark(5));
        estate.delete(Kind::Workload, &Estate::id("ci"));
        steps.push(Step::Snapshot(6, frames.snapshot(6, &objects(&estate))));
        digests.push(digest(&estate));
        let change = estate.delete(Kind::Workload, &Estate::id("storefront"));
        steps.push(Step::Delta(7, frames.delta(6, 7, &[change]), true));
        digests.push(digest(&estate));
        steps.push(bookmark(7));
        History { frames, steps, digests }
    })
}

impl History {
    fn at(&self, revision: u64) -> Position {
        Position { epoch: self.frames.epoch, revision: Revision(revision) }
    }

    /// Plays the first `steps` steps.
    fn play(&self, disk: &mut Disk, steps: usize, mut crashed: impl FnMut() -> bool) -> Reached {
        let mut reached = Reached::default();
        for step in self.steps.iter().take(steps) {
            let (revision, ok) = match step {
                Step::Snapshot(revision, frames) => {
                    reached.attempted = *revision;
                    disk.begin(&frames[0]);
                    frames[1..frames.len() - 1].iter().for_each(|f| disk.chunk(f));
                    (*revision, disk.end(&frames[frames.len() - 1], self.at(*revision)))
                }
                Step::Delta(revision, frame, changes) => {
                    reached.attempted = *revision;
                    (*revision, disk.append(frame, self.at(*revision), *changes))
                }
                Step::Bookmark(frame) => {
                    disk.bookmark(frame, Monotonic::from_nanos(1));
                    continue;
                }
            };
            // A process that has crashed acknowledges nothing any more.
            if crashed() {
                break;
            }
            if ok {
                reached.acknowledged = revision;
            }
        }
        reached
    }

    fn open_mem(&self, fs: &MemFs) -> (Disk, Restored) {
        let boot = "boot".to_owned();
        Disk::with_fs(Box::new(fs.clone()), Path::new("/state"), &self.frames.opener(), boot).unwrap()
    }

    /// A real directory after `steps` steps.
    fn directory(&self, steps: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (mut disk, restored) = Disk::open(dir.path(), &self.frames.opener()).unwrap();
        assert!(restored.built.is_none() && restored.problems.is_empty());
        self.play(&mut disk, steps, || false);
        dir
    }

    fn reopen(&self, dir: &Path) -> Restored {
        Disk::open(dir, &self.frames.opener()).unwrap().1
    }

    /// Checks that what was restored is a state that was once in force, and returns its revision.
    fn check(&self, restored: &Restored) -> Option<u64> {
        let snapshot = &restored.built.as_ref()?.snapshot;
        let revision = snapshot.position().revision.0;
        assert_eq!(snapshot.digest(), self.digests[usize::try_from(revision).unwrap()], "content of {revision}");
        Some(revision)
    }
}

/// Every crash point: during every operation, with what was not synced lost, kept, or cut anywhere.
#[test]
fn invariant_10_crash_at_any_disk_write() {
    let h = history();
    let total = {
        let fs = MemFs::new();
        let (mut disk, _) = h.open_mem(&fs);
        assert_eq!(h.play(&mut disk, usize::MAX, || false).acknowledged, 7);
        fs.operations()
    };
    assert!(total > 40, "{total} operations");
    let mut outcomes = std::collections::BTreeSet::new();
    for point in 0..total {
        for crash in [
            Crash::LoseUnsynced,
            Crash::KeepUnsynced,
            Crash::KeepHalf,
            Crash::Tear(1),
            Crash::Tear(40),
            Crash::ContentOnly,
        ] {
            let fs = MemFs::new();
            let (mut disk, _) = h.open_mem(&fs);
            fs.crash_at(point, crash);
            let reached = h.play(&mut disk, usize::MAX, || fs.has_crashed());
            drop(disk);
            let after = fs.after_crash();
            let (mut again, restored) = h.open_mem(&after);
            let revision = h.check(&restored);
            let context = format!("crash {crash:?} at operation {point}: {reached:?}, {:?}", restored.problems);
            // An empty delta is acknowledged without being synced: the state before it has the same content.
            let least = if reached.acknowledged == 5 { 4 } else { reached.acknowledged };
            assert!(revision.unwrap_or(0) >= least, "{context}: an acknowledged state is lost");
            assert!(revision.unwrap_or(0) <= reached.attempted, "{context}");
            outcomes.insert(revision);
            // And it can go on from there.
            let last = h.steps.len() - 3;
            if let Some(Step::Snapshot(6, frames)) = h.steps.get(last)
                && revision.unwrap_or(0) <= 6
            {
                again.begin(&frames[0]);
                frames[1..frames.len() - 1].iter().for_each(|f| again.chunk(f));
                assert!(again.end(&frames[frames.len() - 1], h.at(6)), "{context}");
                drop(again);
                assert_eq!(h.check(&h.open_mem(&after).1), Some(6), "{context}");
            }
        }
    }
    assert_eq!(outcomes.len(), 8, "every state was come back to at some point: {outcomes:?}");
}

/// A disk that fails without a crash: whatever was acknowledged, a restart does not come back older.
#[test]
fn a_failing_disk_never_brings_back_less_than_was_acknowledged() {
    let h = history();
    for kinds in [memory::Fail::Everything, memory::Fail::Growth] {
        for point in 0..60 {
            for length in [1, 3, usize::MAX] {
                let fs = MemFs::new();
                let (mut disk, _) = h.open_mem(&fs);
                fs.fail_from(point, length, kinds);
                let reached = h.play(&mut disk, usize::MAX, || false);
                drop(disk);
                fs.heal();
                let (_, restored) = h.open_mem(&fs);
                let revision = h.check(&restored);
                // Nothing at all is safe: it waits for the control plane.
                assert!(
                    revision.is_none_or(|r| r >= reached.acknowledged),
                    "{kinds:?} from {point} for {length}: {revision:?} after {reached:?}"
                );
                if kinds == memory::Fail::Growth {
                    assert_eq!(reached.acknowledged, 7, "a full disk keeps no receipt waiting ({point}, {length})");
                }
            }
        }
    }
}

#[test]
fn a_restart_finds_the_last_state_and_its_date() {
    let h = history();
    let dir = h.directory(usize::MAX);
    let restored = h.reopen(dir.path());
    assert_eq!(h.check(&restored), Some(7));
    assert!(restored.problems.is_empty(), "{:?}", restored.problems);
    let (bookmark, received) = restored.bookmark.unwrap();
    assert_eq!((bookmark.revision, received.as_nanos()), (7, 1));
    let left: Vec<_> = files::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().contains("00000001")), "the old generation is gone: {left:?}");
    // After another boot the monotonic clock has started over: the wall clock tells the age.
    let clock: SharedClock = Arc::new(ManualClock::new(Timestamp::from_secs(1_600_000_000)));
    let lease = restored_lease(&bookmark, Monotonic::from_nanos(u64::MAX), None, &clock);
    assert_eq!(clock.now().wall, lease.server_time, "a signed time has passed, whatever the clock says");
    assert_eq!(lease.received, clock.now().mono);
}

#[test]
fn two_processes_do_not_share_a_directory() {
    let h = history();
    let dir = h.directory(1);
    let held = Disk::open(dir.path(), &h.frames.opener()).unwrap();
    let e = Disk::open(dir.path(), &h.frames.opener()).unwrap_err();
    assert!(e.to_string().contains("in use by another process"), "{e}");
    let id = held.0.instance();
    drop(held);
    assert_eq!(Disk::open(dir.path(), &h.frames.opener()).unwrap().0.instance(), id, "a restart is the same instance");
}

#[test]
fn a_journal_cut_anywhere_gives_an_old_state_or_none_but_never_less_than_the_mark() {
    let h = history();
    let dir = h.directory(6);
    let journal = dir.path().join(journal_name(1));
    let whole = files::read(&journal).unwrap();
    let mark = files::read(dir.path().join(MARK_FILE)).unwrap();
    for length in (0..=whole.len()).filter(|n| n % 3 == 0 || whole.len() - n < 300 || *n < 100) {
        // With the mark in place only the unsynced empty delta may be missing.
        files::write(&journal, &whole[..length]).unwrap();
        files::write(dir.path().join(MARK_FILE), &mark).unwrap();
        let restored = h.reopen(dir.path());
        match h.check(&restored) {
            Some(revision) => assert!(revision >= 4, "cut at {length}: {revision} is below the mark"),
            None => {
                let text = restored.problems[0].to_string();
                assert!(text.contains("journal-00000001"), "cut at {length}: {text}");
            }
        }
        // Without a mark every prefix is some state that was in force.
        files::write(&journal, &whole[..length]).unwrap();
        files::remove_file(dir.path().join(MARK_FILE)).unwrap();
        assert!(h.check(&h.reopen(dir.path())).is_some_and(|r| (1..=5).contains(&r)), "cut at {length}");
    }
}

#[test]
fn a_damaged_file_is_named_and_not_used() {
    let h = history();
    let dir = h.directory(1);
    let snapshot = dir.path().join(snapshot_name(1));
    let whole = files::read(&snapshot).unwrap();
    for at in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        files::write(&snapshot, &bytes).unwrap();
        let restored = h.reopen(dir.path());
        assert!(restored.built.is_none(), "byte {at}");
        let text = restored.problems[0].to_string();
        assert!(text.contains("snapshot-00000001` is damaged at byte"), "{text}");
    }
    for length in (0..whole.len()).step_by(101) {
        files::write(&snapshot, &whole[..length]).unwrap();
        assert!(h.reopen(dir.path()).built.is_none(), "cut at {length}");
    }
    files::write(&snapshot, [&whole[..], b"more"].concat()).unwrap();
    assert!(h.reopen(dir.path()).problems[0].to_string().contains("something follows"));
    files::write(&snapshot, &whole).unwrap();
    assert_eq!(h.check(&h.reopen(dir.path())), Some(1));
}

#[test]
fn an_older_snapshot_is_never_accepted_after_a_newer_one() {
    let h = history();
    let old = h.directory(6);
    let new = h.directory(usize::MAX);
    // Somebody restores yesterday's files into today's directory.
    for name in [snapshot_name(1), journal_name(1)] {
        files::copy(old.path().join(&name), new.path().join(&name)).unwrap();
    }
    files::remove_file(new.path().join(snapshot_name(2))).unwrap();
    let restored = h.reopen(new.path());
    assert!(restored.built.is_none());
    let text = restored.problems[0].to_string();
    assert!(
        text.contains("older than") && text.contains("snapshot-00000001") || text.contains("journal-00000001"),
        "{text}"
    );
    // A mark that cannot be read accepts nothing.
    files::write(new.path().join(MARK_FILE), b"garbage").unwrap();
    let restored = h.reopen(new.path());
    assert!(restored.built.is_none());
    assert!(restored.problems[0].to_string().contains("high-water-mark"), "{:?}", restored.problems);
}

#[test]
fn foreign_state_is_refused() {
    let h = history();
    let dir = h.directory(3);
    let other = Frames::new();
    let open = |opener| Disk::open(dir.path(), &opener).unwrap().1;
    let restored = open(other.opener());
    assert!(restored.built.is_none());
    assert!(restored.problems[0].to_string().contains("the signature does not verify"), "{:?}", restored.problems);
    let mut opener = h.frames.opener();
    opener.scope = Some(ScopeId::new(&crate::sync::tests::frames::identity(), ["catalog"]));
    assert!(open(opener).problems[0].to_string().contains("the payload is for scope"));
    // A genuine delta in the wrong place, with a chain that somebody made to fit.
    let journal = dir.path().join(journal_name(1));
    let bytes = files::read(&journal).unwrap();
    let chain = Chain(bytes[bytes.len() - 32..].try_into().unwrap());
    let (record, _) = encode(chain, &h.frames.delta(9, 10, &[]));
    files::write(&journal, [bytes, record].concat()).unwrap();
    let restored = h.reopen(dir.path());
    assert!(restored.problems[0].to_string().contains("does not continue"), "{:?}", restored.problems);
}

#[test]
fn a_bookmark_for_a_later_revision_dates_nothing() {
    let h = history();
    let dir = h.directory(2);
    let frame = h.frames.bookmark(2, Timestamp::from_secs(1_700_000_100));
    files::write(dir.path().join(BOOKMARK_FILE), encode_bookmark("boot", Monotonic::default(), &frame)).unwrap();
    let restored = h.reopen(dir.path());
    assert!(restored.bookmark.is_none() && h.check(&restored) == Some(1));
    assert!(restored.problems[0].to_string().contains("bookmark"), "{:?}", restored.problems);
}

#[test]
fn reading_offline_changes_nothing() {
    let h = history();
    let dir = h.directory(6);
    let list = || {
        let mut all: Vec<_> = files::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        all.sort();
        all.iter().map(|p| (p.clone(), files::read(p).unwrap())).collect::<Vec<_>>()
    };
    let before = list();
    let clock: SharedClock = Arc::new(ManualClock::new(Timestamp::from_secs(1_700_000_050)));
    let found = load_offline(dir.path(), h.frames.key.verify_key(), None, &clock).unwrap();
    assert_eq!(found.snapshot.unwrap().digest(), h.digests[5]);
    assert_eq!(found.lease.unwrap().server_time, Timestamp::from_secs(1_700_000_001));
    assert_eq!(list(), before);
}
