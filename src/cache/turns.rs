//! Whose turn it is: sources that wait are served one by one in turn, each in the order in which it came.
//!
//! Plane: shared, off the warm path. Synchronous; knows no time. Bounded by the caller, and by nothing that a client says:
//! a source costs memory only while it waits. INVARIANT: when there is no room, the source that has most waiting loses its
//! newest, so that no other loses anything to it. What is pushed out is handed back, to be denied.

use core::net::IpAddr;
use std::collections::{HashMap, VecDeque};

/// Who a check came from, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The client of the proxy: an address, or the /64 network of an IPv6 one, whose holder has them all.
    Client(IpAddr),
    /// The proxy's connection, by its number.
    Connection(u64),
}

/// What waits.
#[derive(Debug)]
pub(super) struct Turns<T> {
    waiting: HashMap<Source, VecDeque<T>, foldhash::fast::RandomState>,
    /// Every source that waits, once; the first has its turn.
    order: VecDeque<Source>,
    len: usize,
}

/// There is no room for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused<T>(pub(super) T);

// === impl Source ===

impl Source {
    /// The client's address if the proxy tells it, else the connection.
    pub fn of(client: Option<IpAddr>, connection: u64) -> Self {
        const NETWORK: u128 = u128::MAX << 64;
        match client.map(|address| address.to_canonical()) {
            Some(IpAddr::V6(v6)) => Self::Client(IpAddr::V6((v6.to_bits() & NETWORK).into())),
            Some(v4) => Self::Client(v4),
            None => Self::Connection(connection),
        }
    }
}

// === impl Turns ===

impl<T> Turns<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds one where at most `room` may wait. Returns what has made room for it.
    pub(super) fn push(&mut self, source: Source, item: T, room: usize) -> Result<Option<T>, Refused<T>> {
        let mut made_room = None;
        if self.len >= room {
            let own = self.waiting.get(&source).map_or(0, VecDeque::len);
            let most = self.waiting.iter().max_by_key(|(_, items)| items.len()).map(|(s, items)| (*s, items.len()));
            // With as many as it has after this one, nothing would be fairer than before.
            let Some((victim, _)) = most.filter(|(_, len)| *len > own.saturating_add(1)) else {
                return Err(Refused(item));
            };
            // It keeps its place in the order: it has others that wait.
            made_room = self.waiting.get_mut(&victim).and_then(VecDeque::pop_back);
            self.len = self.len.saturating_sub(usize::from(made_room.is_some()));
        }
        let items = self.waiting.entry(source).or_default();
        if items.is_empty() {
            self.order.push_back(source);
        }
        items.push_back(item);
        self.len = self.len.saturating_add(1);
        Ok(made_room)
    }

    /// The oldest of the source whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let source = self.order.pop_front()?;
        let items = self.waiting.get_mut(&source)?;
        let item = items.pop_front();
        if items.is_empty() {
            self.waiting.remove(&source);
        } else {
            self.order.push_back(source);
        }
        self.len = self.len.saturating_sub(usize::from(item.is_some()));
        item
    }
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { waiting: HashMap::default(), order: VecDeque::new(), len: 0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_holder_of_a_network_is_one_source() {
        let of = |text: &str| Source::of(Some(text.parse().unwrap()), 7);
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(Source::of(None, 7), Source::Connection(7));
    }

    proptest! {
        /// Against a model that is a plain list.
        #[test]
        fn nothing_is_lost_and_nobody_loses_to_one_with_more(
            room in 0_usize..12,
            steps in proptest::collection::vec(proptest::option::weighted(0.7, 0_u64..4), 0..200),
        ) {
            let mut turns = Turns::default();
            let mut model: Vec<(u64, usize)> = Vec::new();
            let count = |model: &[(u64, usize)], s| model.iter().filter(|(of, _)| *of == s).count();
            for (n, step) in steps.into_iter().enumerate() {
                let Some(s) = step else {
                    let popped = turns.pop();
                    prop_assert_eq!(popped.is_some(), !model.is_empty());
                    if let Some((of, n)) = popped {
                        let oldest = model.iter().position(|(other, _)| *other == of).unwrap();
                        prop_assert_eq!(model.remove(oldest), (of, n), "the oldest of its source");
                    }
                    continue;
                };
                match turns.push(Source::Connection(s), (s, n), room) {
                    Ok(None) => {
                        prop_assert!(model.len() < room);
                        model.push((s, n));
                    }
                    Ok(Some((victim, newest))) => {
                        prop_assert!(count(&model, victim) > count(&model, s) + 1);
                        let at = model.iter().rposition(|(of, _)| *of == victim).unwrap();
                        prop_assert_eq!(model.remove(at), (victim, newest));
                        model.push((s, n));
                    }
                    Err(Refused(_)) => {
                        prop_assert!(model.len() >= room);
                        prop_assert!((0..4).all(|other| count(&model, other) <= count(&model, s) + 1));
                    }
                }
                prop_assert_eq!(turns.len(), model.len());
                prop_assert!(turns.len() <= room.max(1));
            }
        }
    }

    #[test]
    fn sources_take_turns() {
        let mut turns = Turns::default();
        for (source, n) in [(1, 1), (1, 2), (1, 3), (2, 4), (3, 5), (3, 6)] {
            assert_eq!(turns.push(Source::Connection(source), n, 9), Ok(None));
        }
        assert_eq!(std::iter::from_fn(|| turns.pop()).collect::<Vec<_>>(), [1, 4, 5, 2, 6, 3]);
        assert!(turns.is_empty());
    }
}
