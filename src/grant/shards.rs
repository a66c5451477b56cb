//! Persistent shards: a change copies one leaf, everything else is shared.
//!
//! Pure. Readers hold whole versions of it for as long as they like; a leaf that nobody else holds is changed in place, so
//! that building from nothing copies nothing. Keys are uniformly distributed bytes (digests, random ids), so that leaves
//! fill evenly. Each leaf carries the version at which it last changed, which is what decisions are cached against.

use std::sync::Arc;

/// 16 uniformly distributed bytes.
pub type Key = [u8; 16];

/// The key of a workload: the first 16 bytes of the SHA-256 of its SPIFFE ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkloadKey(pub Key);

pub(super) const FANOUT: usize = 64;

/// 64 nodes of 64 leaves.
#[derive(Debug, Clone)]
pub(super) struct Shards<L> {
    root: [Arc<Node<L>>; FANOUT],
}

type Node<L> = [Arc<Leaf<L>>; FANOUT];

#[derive(Debug, Clone)]
struct Leaf<L> {
    version: u64,
    content: L,
}

/// The number of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shard {
    node: u8,
    leaf: u8,
}

// === impl Shards ===

impl<L: Clone + Default> Shards<L> {
    /// Empty leaves, all of `version`.
    pub(super) fn new(version: u64) -> Self {
        let leaf = Arc::new(Leaf { version, content: L::default() });
        let node: Arc<Node<L>> = Arc::new(std::array::from_fn(|_| Arc::clone(&leaf)));
        Self { root: std::array::from_fn(|_| Arc::clone(&node)) }
    }

    /// The content of a leaf.
    pub(super) fn get(&self, shard: Shard) -> Option<&L> {
        self.leaf(shard).map(|leaf| &leaf.content)
    }

    /// When a leaf last changed.
    pub(super) fn version(&self, shard: Shard) -> u64 {
        self.leaf(shard).map_or(0, |leaf| leaf.version)
    }

    /// The content of a leaf, to be changed in a change of `version`.
    pub(super) fn edit(&mut self, shard: Shard, version: u64) -> Option<&mut L> {
        let node = Arc::make_mut(self.root.get_mut(usize::from(shard.node))?);
        let leaf = Arc::make_mut(node.get_mut(usize::from(shard.leaf))?);
        leaf.version = version;
        Some(&mut leaf.content)
    }

    /// Changes the contents of those leaves that are `wanted` to something that means the same.
    pub(super) fn rearrange(&mut self, wanted: impl Fn(&L) -> bool, change: impl Fn(&mut L)) {
        for node in &mut self.root {
            if !node.iter().any(|leaf| wanted(&leaf.content)) {
                continue;
            }
            for leaf in Arc::make_mut(node).iter_mut().filter(|leaf| wanted(&leaf.content)) {
                change(&mut Arc::make_mut(leaf).content);
            }
        }
    }

    /// Takes from `other` each leaf that is the `same`, and with it its version.
    pub(super) fn share(&mut self, other: &Self, same: impl Fn(&L, &L) -> bool) {
        let all = (0..FANOUT as u8).flat_map(|node| (0..FANOUT as u8).map(move |leaf| Shard { node, leaf }));
        all.for_each(|shard| self.share_one(shard, other, &same));
    }

    /// The same for one leaf.
    pub(super) fn share_one(&mut self, shard: Shard, other: &Self, same: impl Fn(&L, &L) -> bool) {
        let theirs = other.root.get(usize::from(shard.node)).and_then(|node| node.get(usize::from(shard.leaf)));
        let (Some(ours), Some(theirs)) = (self.leaf(shard), theirs) else { return };
        if std::ptr::eq(ours, Arc::as_ptr(theirs)) || !same(&ours.content, &theirs.content) {
            return;
        }
        let node = self.root.get_mut(usize::from(shard.node)).map(Arc::make_mut);
        if let Some(place) = node.and_then(|node| node.get_mut(usize::from(shard.leaf))) {
            *place = Arc::clone(theirs);
        }
    }

    /// The contents of all leaves.
    pub(super) fn iter(&self) -> impl Iterator<Item = &L> {
        self.root.iter().flat_map(|node| node.iter()).map(|leaf| &leaf.content)
    }

    /// How many leaves two versions do not share.
    #[cfg(test)]
    pub(super) fn differing_leaves(&self, other: &Self) -> usize {
        let leaves = |shards: &'_ Self| shards.root.iter().flat_map(|node| node.iter().map(Arc::as_ptr)).collect();
        let (ours, theirs): (Vec<_>, Vec<_>) = (leaves(self), leaves(other));
        ours.iter().zip(&theirs).filter(|(x, y)| x != y).count()
    }

    /// How many nodes two versions do not share.
    #[cfg(test)]
    pub(super) fn differing_nodes(&self, other: &Self) -> usize {
        self.root.iter().zip(&other.root).filter(|(x, y)| !Arc::ptr_eq(x, y)).count()
    }

    fn leaf(&self, shard: Shard) -> Option<&Leaf<L>> {
        self.root.get(usize::from(shard.node))?.get(usize::from(shard.leaf)).map(Arc::as_ref)
    }
}

// === impl Shard ===

impl Shard {
    /// A number for it.
    pub(super) const fn number(self) -> u16 {
        (self.node as u16) << 8 | self.leaf as u16
    }

    /// The leaf of a key, from its last two bytes: they are random in every kind of id that is used.
    pub(super) const fn of(key: &Key) -> Self {
        let [.., node, leaf] = *key;
        Self { node: node % FANOUT as u8, leaf: leaf % FANOUT as u8 }
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
