//! A persistent hash map in shards.
//!
//! Pure. A change copies one shard of it; readers hold whole versions for as long as they like. Hashing is free, because
//! keys are uniformly distributed bytes. Each shard carries the version at which it last changed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use super::shards::{Key, Shard, Shards};

/// The map.
#[derive(Clone)]
pub struct ShardedMap<V> {
    shards: Shards<Part<V>>,
    len: usize,
}

type Part<V> = HashMap<Key, V, BuildHasherDefault<KeyHasher>>;

/// Takes eight bytes of the key as the hash.
#[derive(Debug, Default, Clone, Copy)]
struct KeyHasher(u64);

// === impl ShardedMap ===

impl<V: Clone> ShardedMap<V> {
    /// An empty map whose shards are all of `version`.
    pub fn new(version: u64) -> Self {
        Self { shards: Shards::new(version), len: 0 }
    }

    /// Number of entries.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no entries.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of `key`.
    pub fn get(&self, key: &Key) -> Option<&V> {
        self.shards.get(Shard::of(key))?.get(key)
    }

    /// When the shard of `key` last changed.
    pub fn version(&self, key: &Key) -> u64 {
        self.shards.version(Shard::of(key))
    }

    /// Sets the value of `key`, in a change of `version`.
    pub fn insert(&mut self, key: Key, value: V, version: u64) -> Option<V> {
        let old = self.shards.edit(Shard::of(&key), version)?.insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Removes `key`, in a change of `version`.
    pub fn remove(&mut self, key: &Key, version: u64) -> Option<V> {
        self.get(key)?;
        let old = self.shards.edit(Shard::of(key), version)?.remove(key);
        self.len -= usize::from(old.is_some());
        old
    }

    /// Changes the value of `key`, starting from `V::default()`; a value that comes out as unwanted is removed.
    pub fn update(&mut self, key: Key, version: u64, change: impl FnOnce(&mut V), keep: impl FnOnce(&V) -> bool)
    where
        V: Default,
    {
        let Some(part) = self.shards.edit(Shard::of(&key), version) else { return };
        let before = part.len();
        match part.entry(key) {
            Entry::Occupied(mut slot) => {
                change(slot.get_mut());
                if !keep(slot.get()) {
                    slot.remove();
                }
            }
            Entry::Vacant(slot) => {
                let mut value = V::default();
                change(&mut value);
                if keep(&value) {
                    slot.insert(value);
                }
            }
        }
        let after = part.len();
        self.len = self.len + after - before;
    }

    /// Every entry, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &V)> {
        self.shards.iter().flat_map(|part| part.iter())
    }
}

impl<V> fmt::Debug for ShardedMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardedMap").field("len", &self.len).finish_non_exhaustive()
    }
}

// === impl KeyHasher ===

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // The last bytes choose the shard, so the first ones hash within it.
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 ^= u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _length: usize) {}
}

#[cfg(test)]
mod tests {
    use super::super::shards::WorkloadKey;
    use super::*;

    fn key(n: u32) -> Key {
        WorkloadKey::of(&n.to_string()).0
    }

    #[test]
    fn versions_share_what_did_not_change() {
        let mut a = ShardedMap::new(1);
        for n in 0..10_000 {
            a.insert(key(n), n, 1);
        }
        let mut b = a.clone();
        assert_eq!(b.insert(key(7), 70, 2), Some(7));
        assert_eq!(b.remove(&key(8), 3), Some(8));
        assert_eq!((a.get(&key(7)), a.get(&key(8)), a.len()), (Some(&7), Some(&8), 10_000), "the old version stands");
        assert_eq!((b.get(&key(7)), b.get(&key(8)), b.len()), (Some(&70), None, 9_999));
        assert_eq!(a.version(&key(7)), 1);
        assert_eq!(b.version(&key(8)), 3);
        assert!(a.shards.differing_nodes(&b.shards) <= 2, "two changes copy two nodes at most");
        assert_eq!(b.iter().count(), 9_999);
    }
}
