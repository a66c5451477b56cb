//! The proofs of possession that were used here and would still hold, so that none is used twice (RFC 9449, 11.1).
//!
//! Plane: shared, on the request path: short critical sections, none across a wait. Bounded. INVARIANT: an entry stays
//! until its proof has ended; when there is no room, new proofs are refused rather than old ones forgotten. Each
//! enforcement point has its own, in memory: after a restart the engine refuses proofs from before it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::memo::CacheCounters;
use crate::authz::{Registered, Replay};
use crate::clock::Timestamp;

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
    /// The same, first to end first.
    ends: BinaryHeap<Reverse<(Timestamp, [u8; 32])>>,
}

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
    fn register(&self, key: [u8; 32], until: Timestamp, now: Timestamp) -> Registered {
        let Some(mut shard) = self.shard(&key) else { return Registered::Full };
        let cleared = shard.clear(now);
        self.cleared.fetch_add(cleared, Ordering::Relaxed);
        if shard.known.contains(&key) {
            self.replays.fetch_add(1, Ordering::Relaxed);
            return Registered::Seen;
        }
        if shard.known.len() >= self.room {
            return Registered::Full;
        }
        shard.known.insert(key);
        shard.ends.push(Reverse((until, key)));
        self.registered.fetch_add(1, Ordering::Relaxed);
        Registered::New
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
                Some(Reverse((until, _))) if *until <= now => {}
                _ => break,
            }
            if let Some(Reverse((_, key))) = self.ends.pop() {
                self.known.remove(&key);
                cleared += 1;
            }
        }
        cleared
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

    #[test]
    fn a_proof_is_new_once_until_it_ends() {
        let store = ReplayStore::new(100);
        assert!(!store.remembers(&key(1)));
        assert_eq!(store.register(key(1), at(60), at(0)), Registered::New);
        assert!(store.remembers(&key(1)));
        assert_eq!(store.register(key(1), at(60), at(59)), Registered::Seen);
        assert_eq!(store.register(key(2), at(60), at(59)), Registered::New);
        assert_eq!(store.register(key(1), at(120), at(60)), Registered::New, "it has ended, and its place is free");
        let counters = store.counters();
        assert_eq!((counters.hits, counters.misses, counters.evictions), (1, 3, 1));
    }

    #[test]
    fn a_full_store_refuses_and_forgets_nothing() {
        let store = ReplayStore::new(32);
        let (mut new, mut refused) = (Vec::new(), 0);
        for n in 0..1000 {
            match store.register(key(n), at(60 + n), at(0)) {
                Registered::New => new.push(n),
                Registered::Full => refused += 1,
                Registered::Seen => panic!("{n} was never used"),
            }
        }
        assert_eq!((new.len(), refused), (32, 968));
        assert_eq!(store.counters().entries, 32);
        for n in &new {
            assert_eq!(store.register(key(*n), at(60 + n), at(59)), Registered::Seen, "{n}");
        }
        assert_eq!(store.register(key(5000), at(5000), at(2000)), Registered::New, "all have ended");
    }

    #[test]
    fn of_many_at_once_one_is_first() {
        let store = ReplayStore::new(1000);
        for round in 0..50 {
            let firsts: usize = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..4)
                    .map(|_| scope.spawn(|| usize::from(store.register(key(round), at(60), at(0)) == Registered::New)))
                    .collect();
                racers.into_iter().map(|racer| racer.join().unwrap()).sum()
            });
            assert_eq!(firsts, 1);
        }
    }
}
