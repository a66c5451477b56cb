//! A persistent hash map in shards: a change copies one shard, everything else is shared.
//!
//! Pure. Readers hold whole versions of it for as long as they like. Keys are uniformly distributed bytes (digests,
//! random ids), so that shards fill evenly and hashing is free. Each shard carries the version at which it last
//! changed, which is what decisions are cached against.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// 16 uniformly distributed bytes.
pub type Key = [u8; 16];

const FANOUT: usize = 64;

/// The map: 64 nodes of 64 leaves.
#[derive(Clone)]
pub struct ShardedMap<V> {
    root: [Arc<Node<V>>; FANOUT],
    len: usize,
}

type Node<V> = [Arc<Leaf<V>>; FANOUT];

#[derive(Clone)]
struct Leaf<V> {
    version: u64,
    entries: HashMap<Key, V, BuildHasherDefault<KeyHasher>>,
}

/// Takes eight bytes of the key as the hash.
#[derive(Debug, Default, Clone, Copy)]
struct KeyHasher(u64);

/// The key of a workload: the first 16 bytes of the SHA-256 of its SPIFFE ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkloadKey(pub Key);

// === impl ShardedMap ===

impl<V: Clone> ShardedMap<V> {
    /// An empty map whose shards are all of `version`.
    pub fn new(version: u64) -> Self {
        let leaf = Arc::new(Leaf { version, entries: HashMap::default() });
        let node: Arc<Node<V>> = Arc::new(std::array::from_fn(|_| Arc::clone(&leaf)));
        Self { root: std::array::from_fn(|_| Arc::clone(&node)), len: 0 }
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
        self.leaf(key)?.entries.get(key)
    }

    /// When the shard of `key` last changed.
    pub fn version(&self, key: &Key) -> u64 {
        self.leaf(key).map_or(0, |leaf| leaf.version)
    }

    /// Sets the value of `key`, in a change of `version`.
    pub fn insert(&mut self, key: Key, value: V, version: u64) -> Option<V> {
        let leaf = self.leaf_mut(&key, version)?;
        let old = leaf.entries.insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Removes `key`, in a change of `version`.
    pub fn remove(&mut self, key: &Key, version: u64) -> Option<V> {
        self.get(key)?;
        let old = self.leaf_mut(key, version)?.entries.remove(key);
        self.len -= usize::from(old.is_some());
        old
    }

    /// Changes the value of `key`, starting from `V::default()`; a value that comes out as unwanted is removed.
    pub fn update(&mut self, key: Key, version: u64, change: impl FnOnce(&mut V), keep: impl FnOnce(&V) -> bool)
    where
        V: Default,
    {
        let Some(leaf) = self.leaf_mut(&key, version) else { return };
        let before = leaf.entries.len();
        match leaf.entries.entry(key) {
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
        let after = leaf.entries.len();
        self.len = self.len + after - before;
    }

    /// Marks the shard of `key` as changed, so that what was cached for it counts no more.
    pub fn touch(&mut self, key: &Key, version: u64) {
        self.leaf_mut(key, version);
    }

    /// Every entry, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &V)> {
        self.root.iter().flat_map(|node| node.iter()).flat_map(|leaf| leaf.entries.iter())
    }

    fn leaf(&self, key: &Key) -> Option<&Leaf<V>> {
        let (node, leaf) = place(key);
        self.root.get(node)?.get(leaf).map(Arc::as_ref)
    }

    fn leaf_mut(&mut self, key: &Key, version: u64) -> Option<&mut Leaf<V>> {
        let (node, leaf) = place(key);
        let node = Arc::make_mut(self.root.get_mut(node)?);
        let leaf = Arc::make_mut(node.get_mut(leaf)?);
        leaf.version = version;
        Some(leaf)
    }
}

/// The shard of a key, from its last two bytes: they are random in every kind of id that is used.
const fn place(key: &Key) -> (usize, usize) {
    let [.., a, b] = *key;
    (a as usize % FANOUT, b as usize % FANOUT)
}

impl<V> fmt::Debug for ShardedMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardedMap").field("len", &self.len).finish_non_exhaustive()
    }
}

// === impl WorkloadKey ===

impl WorkloadKey {
    /// The key of the workload with this SPIFFE ID.
    pub fn of(id: &str) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, id.as_bytes());
        let mut key = Key::default();
        for (to, from) in key.iter_mut().zip(digest.as_ref()) {
            *to = *from;
        }
        Self(key)
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
        let shared = a.root.iter().zip(&b.root).filter(|(x, y)| Arc::ptr_eq(x, y)).count();
        assert!(shared >= FANOUT - 2, "two changes copy two nodes at most");
        assert_eq!(b.iter().count(), 9_999);
    }
}
