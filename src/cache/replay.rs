//! The proofs of possession that were used here and would still hold, so that none is used twice (RFC 9449, 11.1).
//!
//! Plane: shared, on the request path: short critical sections, none across a wait. Bounded. INVARIANTS: an entry stays
//! until its proof has ended; when there is no room, new proofs are refused rather than old ones forgotten. A key
//! gets no more entries than there is room left: one busy key half of it at most, the next half of the rest, and so on.
//! Each enforcement point has its own, in memory: after a restart the engine refuses proofs from before it.

use std::cmp::Reverse;
use std::collections::hash_map::{Entry, HashMap};
use std::collections::{BinaryHeap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::memo::CacheCounters;
use crate::authz::{Registered, Replay};
use crate::clock::Timestamp;
use crate::credential::Proven;

/// Parts with a lock of their own.
const SHARDS: u64 = 16;
/// How many ended entries one registration clears away: more than it adds, so they go faster than they come.
const CLEARED_AT_ONCE: usize = 8;

/// The store.
pub(super) struct ReplayStore {
    shards: Box<[Mutex<Shard>]>,
    /// Entries that a shard may have.
    room: usize,
    replays: AtomicU64,
    registered: AtomicU64,
    cleared: AtomicU64,
}

#[derive(Default)]
struct Shard {
    known: HashSet<[u8; 32], foldhash::fast::RandomState>,
    /// The same, first to end first, and whose.
    ends: BinaryHeap<Reverse<(Timestamp, [u8; 32], Holder)>>,
    /// How many there are of each key.
    held: HashMap<Holder, usize, foldhash::fast::RandomState>,
}

/// Half of a key's thumbprint: enough that nobody finds a key that is taken for another's.
type Holder = [u8; 16];

// === impl ReplayStore ===

impl ReplayStore {
    /// Room for about `capacity` proofs.
    pub(super) fn new(capacity: u64) -> Self {
        let shards = SHARDS.min(capacity.max(1));
        let room = usize::try_from(capacity.max(1).div_ceil(shards)).unwrap_or(usize::MAX);
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            room,
            replays: AtomicU64::new(0),
            registered: AtomicU64::new(0),
            cleared: AtomicU64::new(0),
        }
    }

    /// Replays are hits, first uses misses, and ended entries evictions.
    pub(super) fn counters(&self) -> CacheCounters {
        let entries = self.shards.iter().map(|shard| lock(shard).known.len() as u64).sum();
        CacheCounters {
            hits: self.replays.load(Ordering::Relaxed),
            misses: self.registered.load(Ordering::Relaxed),
            evictions: self.cleared.load(Ordering::Relaxed),
            entries,
        }
    }

    /// The key is a digest, so its first bytes spread evenly.
    fn shard(&self, key: &[u8; 32]) -> Option<MutexGuard<'_, Shard>> {
        let [a, b, ..] = key;
        let number = usize::from(u16::from_le_bytes([*a, *b])).checked_rem(self.shards.len())?;
        self.shards.get(number).map(lock)
    }
}

impl Replay for ReplayStore {
    fn register(&self, proven: &Proven, now: Timestamp) -> Registered {
        let Proven { key, until, .. } = *proven;
        let Some(mut shard) = self.shard(&key) else { return Registered::Full };
        let cleared = shard.clear(now);
        self.cleared.fetch_add(cleared, Ordering::Relaxed);
        if shard.known.contains(&key) {
            self.replays.fetch_add(1, Ordering::Relaxed);
            return Registered::Seen;
        }
        let registered = shard.add(key, holder(proven), until, self.room);
        if registered == Registered::New {
            self.registered.fetch_add(1, Ordering::Relaxed);
        }
        registered
    }

    fn remembers(&self, key: &[u8; 32]) -> bool {
        self.shard(key).is_none_or(|shard| shard.known.contains(key))
    }
}

impl fmt::Debug for ReplayStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayStore").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

fn holder(proven: &Proven) -> Holder {
    let (half, _) = proven.holder.split_at(size_of::<Holder>());
    half.try_into().unwrap_or_default()
}

/// A panic between the two steps of a registration leaves an entry that never ends, or none: neither opens anything.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Shard ===

impl Shard {
    /// Clears some entries that have ended away.
    fn clear(&mut self, now: Timestamp) -> u64 {
        let mut cleared = 0;
        for _ in 0..CLEARED_AT_ONCE {
            match self.ends.peek() {
                Some(Reverse((until, ..))) if *until <= now => {}
                _ => break,
            }
            if let Some(Reverse((_, key, holder))) = self.ends.pop() {
                self.known.remove(&key);
                self.release(holder);
                cleared += 1;
            }
        }
        cleared
    }

    /// Adds an entry that is not there, if `room` entries are enough for it and its holder's others.
    fn add(&mut self, key: [u8; 32], holder: Holder, until: Timestamp, room: usize) -> Registered {
        let left = room.saturating_sub(self.known.len());
        let held = self.held.get(&holder).copied().unwrap_or(0);
        if left == 0 {
            return Registered::Full;
        }
        if held >= left {
            return Registered::ShareUsedUp;
        }
        self.held.insert(holder, held + 1);
        self.known.insert(key);
        self.ends.push(Reverse((until, key, holder)));
        Registered::New
    }

    fn release(&mut self, holder: Holder) {
        if let Entry::Occupied(mut held) = self.held.entry(holder) {
            match held.get().saturating_sub(1) {
                0 => drop(held.remove()),
                fewer => drop(held.insert(fewer)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> [u8; 32] {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_le_bytes());
        key
    }

    const fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    /// The proof `n` of a key.
    fn of(holder: u8, n: u64, until: u64) -> Proven {
        Proven { key: key(n), holder: [holder; 32], until: at(until), nonce_is_old: false }
    }

    #[test]
    fn a_proof_is_new_once_until_it_ends() {
        let store = ReplayStore::new(100);
        assert!(!store.remembers(&key(1)));
        assert_eq!(store.register(&of(1, 1, 60), at(0)), Registered::New);
        assert!(store.remembers(&key(1)));
        assert_eq!(store.register(&of(1, 1, 60), at(59)), Registered::Seen);
        assert_eq!(store.register(&of(1, 2, 60), at(59)), Registered::New);
        assert_eq!(store.register(&of(1, 1, 120), at(60)), Registered::New, "it has ended, and its place is free");
        let counters = store.counters();
        assert_eq!((counters.hits, counters.misses, counters.evictions), (1, 3, 1));
    }

    /// Registers this many proofs of a key, from `from` on; answers those that were new.
    fn fill(store: &ReplayStore, holder: u8, from: u64, count: u64) -> Vec<u64> {
        let news = |n: &u64| match store.register(&of(holder, *n, 60), at(0)) {
            Registered::New => true,
            Registered::Full | Registered::ShareUsedUp => false,
            Registered::Seen => panic!("{n} was never used"),
        };
        (from..from + count).filter(news).collect()
    }

    #[test]
    fn a_full_store_refuses_and_forgets_nothing() {
        let store = ReplayStore::new(32);
        // Each of a key of its own: nothing but the whole bounds them.
        let new: Vec<u64> = (0..100).flat_map(|n| fill(&store, u8::try_from(n).unwrap(), n, 1)).collect();
        assert_eq!((new.len(), store.counters().entries), (32, 32));
        assert_eq!(store.register(&of(200, 200, 60), at(0)), Registered::Full);
        for n in &new {
            assert_eq!(store.register(&of(9, *n, 60), at(59)), Registered::Seen, "{n}");
        }
        assert_eq!(store.register(&of(200, 200, 120), at(60)), Registered::New, "all have ended");
    }

    #[test]
    fn a_busy_key_leaves_room_for_others() {
        let store = ReplayStore::new(160);
        let busy = fill(&store, 1, 0, 1000);
        assert_eq!(busy.len(), 80, "half");
        assert_eq!(store.register(&of(1, 5000, 60), at(0)), Registered::ShareUsedUp);
        assert_eq!(fill(&store, 2, 10_000, 1000).len(), 48, "3 of the 5 that are left in each part");
        assert_eq!(fill(&store, 3, 20_000, 1000).len(), 16);
        assert_eq!(fill(&store, 4, 30_000, 1000).len(), 16);
        assert_eq!(store.register(&of(5, 40_000, 60), at(0)), Registered::Full, "bounded as a whole");
        // What has ended is given back.
        let again = (0..1000).filter(|n| store.register(&of(1, 50_000 + n, 120), at(60)) == Registered::New);
        assert_eq!(again.count(), 80);
        let keys = store.shards.iter().map(|shard| lock(shard).held.clone());
        assert!(keys.map(|held| held.into_iter().collect::<Vec<_>>()).all(|held| held == [([1; 16], 5)]));
    }

    #[test]
    fn of_many_at_once_one_is_first() {
        let store = ReplayStore::new(1000);
        for round in 0..50 {
            let first = || usize::from(store.register(&of(1, round, 60), at(0)) == Registered::New);
            let firsts: usize = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..4).map(|_| scope.spawn(first)).collect();
                racers.into_iter().map(|racer| racer.join().unwrap()).sum()
            });
            assert_eq!(firsts, 1);
        }
    }
}
