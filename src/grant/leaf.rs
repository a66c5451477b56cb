//! The grants of one shard of the index, in two allocations: sorted entries of 64 bytes, and the texts of their paths.
//! A third, mostly empty, has the limits of those that have any.
//!
//! Pure. Entries are plain bytes, so that copying a leaf is two copies of memory, and freeing a million grants is freeing a
//! few thousand leaves. Ordered by workload, resource, exact path, end (latest first), id: a look-up bisects, and what has
//! ended sorts behind what has not. Texts that nothing refers to are dropped before they outweigh the others.
//! Long because entries, texts and limits of a leaf change together.

use std::cmp::Reverse;
use std::sync::Arc;

use super::limits::Limits;
use super::shards::{Key, Shard};
use crate::authz::{CanonicalPath, matches_pattern};
use crate::clock::Timestamp;

/// So much of texts is never tidied up.
const TEXTS_MIN: usize = 256;

/// The grants of the workloads of one shard.
#[derive(Debug, Clone, Default)]
pub(super) struct Leaf {
    entries: Vec<Entry>,
    texts: String,
    /// What the texts of the entries come to, those counted twice that share one.
    texts_used: usize,
    /// The limits of those grants that have some, by id. Few do.
    limits: Vec<(Key, Arc<Limits>)>,
    /// Whether something was appended that is not in its place yet.
    unsettled: bool,
}

/// One grant on one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) workload: Key,
    pub(super) id: Key,
    pub(super) not_before: Timestamp,
    /// When it ends or ended; [`Timestamp::MAX`] for a pending one.
    pub(super) not_after: Timestamp,
    pub(super) resource: u32,
    pub(super) actions: u32,
    pub(super) phase: Phase,
    kind: PathKind,
    /// The place of the path's text in the texts of its leaf.
    text_len: u16,
    text_at: u32,
}

/// What is known of a grant whatever the clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    Pending,
    /// Not in force before the control plane says so, whatever the clock says.
    Scheduled,
    Granted,
    /// Granted, and it has [`Limits`].
    Limited,
    /// Granted as break-glass.
    BreakGlass,
    /// Both.
    LimitedBreakGlass,
    /// Its last use has been spent.
    Exhausted,
    /// Ended, or dropped before its end.
    Over,
    Revoked,
}

/// Which paths an entry is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum PathKind {
    Any,
    Exact,
    Pattern,
}

/// What entries are sorted by.
type Order<'a> = (&'a Key, u32, Option<&'a str>, Reverse<Timestamp>, &'a Key);

const _: () = assert!(size_of::<Entry>() == 64, "an entry is a cache line");

/// Which grants there are in one shard of ids, and in which leaf each of them is.
#[derive(Debug, Clone, Default)]
pub(super) struct Ids(Vec<(Key, Shard)>);

// === impl Leaf ===

impl Leaf {
    /// Adds a grant on one resource, for the paths of a pattern. Nothing happens if there is no room for its text.
    pub(super) fn insert(&mut self, entry: Entry, path: Option<&str>) {
        let (kind, text) = PathKind::of(path);
        let exact = (kind == PathKind::Exact).then_some(text);
        let order = (&entry.workload, entry.resource, exact, Reverse(entry.not_after), &entry.id);
        let place = self.entries.partition_point(|e| self.order(e) < order);
        let beside = [place.checked_sub(1), Some(place)].into_iter().flatten();
        let shared = beside.filter_map(|i| self.entries.get(i)).find(|e| self.text(e) == text).map(|e| e.text_at);
        self.place(place, shared, kind, text, entry);
    }

    /// Adds a grant behind the others, in no order: [`settle`](Self::settle) sorts. Moving kilobytes for each of a million
    /// grants takes longer than parsing them.
    pub(super) fn append(&mut self, entry: Entry, path: Option<&str>) {
        let (kind, text) = PathKind::of(path);
        if self.entries.len() == self.entries.capacity() {
            // Larger steps than for one insertion; `settle` gives back what is left.
            self.entries.reserve_exact((self.entries.len() / 4).max(8));
        }
        self.unsettled = true;
        let shared = self.entries.iter().rev().take(4).find(|e| self.text(e) == text).map(|e| e.text_at);
        self.place(self.entries.len(), shared, kind, text, entry);
    }

    /// Whether [`settle`](Self::settle) has something to do.
    pub(super) const fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    /// Sorts what was appended, and gives back what is not needed.
    pub(super) fn settle(&mut self) {
        self.unsettled = false;
        let texts = std::mem::take(&mut self.texts);
        self.entries.sort_unstable_by(|a, b| a.order_in(&texts).cmp(&b.order_in(&texts)));
        self.texts = texts;
        self.tidy();
        self.entries.shrink_to_fit();
    }

    /// Removes a grant from all its resources.
    pub(super) fn remove(&mut self, id: &Key) {
        let mut dropped = 0;
        self.entries.retain(|e| {
            let stays = e.id != *id;
            dropped += if stays { 0 } else { usize::from(e.text_len) };
            stays
        });
        if let Ok(place) = self.limits.binary_search_by(|(known, _)| known.cmp(id)) {
            self.limits.remove(place);
        }
        self.texts_used = self.texts_used.saturating_sub(dropped);
        if self.texts.len() > TEXTS_MIN + 2 * self.texts_used {
            self.tidy();
        }
    }

    /// Whether both hold the same grants, none of them with limits. Numbers must mean the same in both.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let both_settled = !self.unsettled && !other.unsettled;
        let same = |(a, b): (&Entry, &Entry)| {
            let place = b.text_at;
            Entry { text_at: place, ..*a } == *b && a.text_in(&self.texts) == b.text_in(&other.texts)
        };
        both_settled
            && self.limits.is_empty()
            && other.limits.is_empty()
            && self.entries.len() == other.entries.len()
            && self.entries.iter().zip(&other.entries).all(same)
    }

    /// Keeps the limits of a grant, which has none here yet.
    pub(super) fn limit(&mut self, id: Key, limits: Arc<Limits>) {
        let place = self.limits.partition_point(|(known, _)| *known < id);
        self.limits.insert(place, (id, limits));
    }

    /// The limits of a grant.
    pub(super) fn limits(&self, id: &Key) -> Option<&Limits> {
        let place = self.limits.binary_search_by(|(known, _)| known.cmp(id)).ok()?;
        self.limits.get(place).map(|(_, limits)| &**limits)
    }

    /// The grants of a workload on a resource: those whose paths have to be matched, and those for the exact path `path`.
    /// The third are those for any exact path, of which the second are some.
    pub(super) fn find(&self, workload: &Key, resource: u32, path: &str) -> [&[Entry]; 3] {
        let wanted = (workload, resource);
        let place = |e: &Entry| (&e.workload, e.resource).cmp(&wanted);
        let here = cut(&self.entries, |e| place(e).is_lt(), |e| place(e).is_le());
        let (general, exact) = here.split_at_checked(here.partition_point(|e| !e.is_exact())).unwrap_or((here, &[]));
        let matching = cut(exact, |e| self.text(e) < path, |e| self.text(e) <= path);
        [general, matching, exact]
    }

    /// All grants of a workload.
    pub(super) fn of(&self, workload: &Key) -> &[Entry] {
        cut(&self.entries, |e| e.workload < *workload, |e| e.workload <= *workload)
    }

    /// Whether an entry of this leaf is for `path`.
    pub(super) fn covers_path(&self, entry: &Entry, path: Option<&CanonicalPath<'_>>) -> bool {
        match (entry.kind, path) {
            (PathKind::Any, _) => true,
            (PathKind::Exact, Some(path)) => self.text(entry) == path.as_str(),
            (PathKind::Pattern, Some(path)) => matches_pattern(self.text(entry), path),
            // INVARIANT: what is for some paths is not for a request whose path nobody knows.
            (PathKind::Exact | PathKind::Pattern, None) => false,
        }
    }

    /// All entries.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The text of an entry's path; empty without one. What cannot be read, which cannot be, matches nothing.
    pub(super) fn text(&self, entry: &Entry) -> &str {
        entry.text_in(&self.texts)
    }

    fn order<'a>(&'a self, e: &'a Entry) -> Order<'a> {
        e.order_in(&self.texts)
    }

    fn place(&mut self, place: usize, shared: Option<u32>, kind: PathKind, text: &str, entry: Entry) {
        let (Some(text_at), Ok(text_len)) = (shared.or_else(|| self.keep(text)), u16::try_from(text.len())) else {
            return;
        };
        if self.entries.len() == self.entries.capacity() {
            // Doubling would leave a third of the memory empty.
            self.entries.reserve_exact(self.entries.len() / 8 + 1);
        }
        self.texts_used += text.len();
        self.entries.insert(place, Entry { kind, text_len, text_at, ..entry });
    }

    /// Where `text` stands in the texts, to which it is added.
    fn keep(&mut self, text: &str) -> Option<u32> {
        let at = u32::try_from(self.texts.len()).ok()?;
        if self.texts.capacity() - self.texts.len() < text.len() {
            self.texts.reserve_exact(text.len() + self.texts.len() / 8);
        }
        self.texts.push_str(text);
        Some(at)
    }

    /// Builds the texts anew from what entries refer to.
    fn tidy(&mut self) {
        let mut texts = String::with_capacity(self.texts_used);
        let old = std::mem::take(&mut self.texts);
        let mut last = None;
        for entry in &mut self.entries {
            let from = (entry.text_at, entry.text_len);
            let at = match last {
                Some((same, at)) if same == from => at,
                _ => {
                    let at = u32::try_from(texts.len()).unwrap_or(u32::MAX);
                    texts.push_str(entry.text_in(&old));
                    at
                }
            };
            last = Some((from, at));
            entry.text_at = at;
        }
        texts.shrink_to_fit();
        self.texts = texts;
    }
}

/// From the first that is not `before` to the last that is `within`.
fn cut(entries: &[Entry], before: impl Fn(&Entry) -> bool, within: impl Fn(&Entry) -> bool) -> &[Entry] {
    let rest = entries.get(entries.partition_point(before)..).unwrap_or_default();
    rest.get(..rest.partition_point(within)).unwrap_or_default()
}

// === impl Phase ===

impl Phase {
    /// The phase of a grant that is or was in force.
    pub(super) const fn granted(limited: bool, break_glass: bool) -> Self {
        match (limited, break_glass) {
            (false, false) => Self::Granted,
            (true, false) => Self::Limited,
            (false, true) => Self::BreakGlass,
            (true, true) => Self::LimitedBreakGlass,
        }
    }

    pub(super) const fn is_granted(self) -> bool {
        matches!(self, Self::Granted | Self::Limited | Self::BreakGlass | Self::LimitedBreakGlass)
    }

    pub(super) const fn is_limited(self) -> bool {
        matches!(self, Self::Limited | Self::LimitedBreakGlass)
    }

    /// Whether its limits are kept: also of one that is over, for what it has let through.
    pub(super) const fn has_limits(self) -> bool {
        self.is_limited() || matches!(self, Self::Exhausted)
    }

    pub(super) const fn is_break_glass(self) -> bool {
        matches!(self, Self::BreakGlass | Self::LimitedBreakGlass)
    }
}

// === impl Entry ===

impl Entry {
    /// The same with another end, to be judged by it.
    pub(super) const fn until(self, not_after: Timestamp) -> Self {
        Self { not_after, ..self }
    }

    /// An entry of no leaf yet.
    pub(super) const fn new(workload: Key, id: Key, [not_before, not_after]: [Timestamp; 2], phase: Phase) -> Self {
        let (kind, text_len, text_at) = (PathKind::Any, 0, 0);
        Self { workload, id, not_before, not_after, resource: 0, actions: 0, phase, kind, text_len, text_at }
    }

    /// The same for a resource and a set of actions.
    pub(super) const fn on(self, resource: u32, actions: u32) -> Self {
        Self { resource, actions, ..self }
    }

    /// Whether it is in force at this time.
    pub(super) fn covers(&self, now: Timestamp) -> bool {
        self.phase.is_granted() && self.not_before <= now && now < self.not_after
    }

    fn order_in<'a>(&'a self, texts: &'a str) -> Order<'a> {
        let exact = self.is_exact().then(|| self.text_in(texts));
        (&self.workload, self.resource, exact, Reverse(self.not_after), &self.id)
    }

    fn text_in<'a>(&self, texts: &'a str) -> &'a str {
        let at = self.text_at as usize;
        texts.get(at..at + usize::from(self.text_len)).unwrap_or("\0")
    }

    const fn is_exact(&self) -> bool {
        matches!(self.kind, PathKind::Exact)
    }
}

// === impl PathKind ===

impl PathKind {
    /// In a pattern `*` is always an operator.
    fn of(path: Option<&str>) -> (Self, &str) {
        match path {
            None => (Self::Any, ""),
            Some(pattern) if !pattern.contains('*') => (Self::Exact, pattern),
            Some(pattern) => (Self::Pattern, pattern),
        }
    }
}

// === impl Ids ===

impl Ids {
    /// In which leaf a grant is.
    pub(super) fn find(&self, id: &Key) -> Option<Shard> {
        if self.is_last(id) {
            return None;
        }
        let place = self.0.binary_search_by(|(known, _)| known.cmp(id)).ok()?;
        self.0.get(place).map(|(_, shard)| *shard)
    }

    /// Adds a grant. In which leaf it was before, if it was.
    pub(super) fn put(&mut self, id: Key, shard: Shard) -> Option<Shard> {
        let place = match self.is_last(&id) {
            true => self.0.len(),
            false => match self.0.binary_search_by(|(known, _)| known.cmp(&id)) {
                Ok(place) => return self.0.get_mut(place).map(|(_, was)| std::mem::replace(was, shard)),
                Err(place) => place,
            },
        };
        if self.0.len() == self.0.capacity() {
            self.0.reserve_exact(self.0.len() / 8 + 1);
        }
        self.0.insert(place, (id, shard));
        None
    }

    /// Whether both hold the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    /// Whether it comes after all that are there, as each grant of a snapshot does.
    fn is_last(&self, id: &Key) -> bool {
        self.0.last().is_none_or(|(known, _)| known < id)
    }

    /// Removes a grant.
    pub(super) fn remove(&mut self, id: &Key) {
        if let Ok(place) = self.0.binary_search_by(|(known, _)| known.cmp(id)) {
            self.0.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::Template;

    #[test]
    fn texts_of_grants_that_are_gone_are_dropped_and_the_others_still_read() {
        let mut leaf = Leaf::default();
        let template =
            |n: u128| Template::parse(&format!("/accounts/{n:030}/{}", ["{*}", "x"][n as usize % 2])).unwrap();
        let entry = |n: u128| {
            let times = [Timestamp::from_secs(1), Timestamp::from_secs(2)];
            Entry::new([0; 16], n.to_be_bytes(), times, Phase::Granted)
        };
        for n in 0..2_000 {
            leaf.insert(entry(n), Some(template(n).pattern()));
            if n >= 10 {
                leaf.remove(&(n - 10).to_be_bytes());
            }
        }
        assert_eq!(leaf.entries().len(), 10);
        assert!(leaf.texts.len() < 2_000, "{} bytes for ten paths", leaf.texts.len());
        for e in leaf.entries() {
            assert_eq!(leaf.text(e), template(u128::from_be_bytes(e.id)).pattern());
        }
        assert!(leaf.entries().is_sorted_by_key(|e| leaf.order(e)));
    }

    #[test]
    fn one_text_serves_neighbours() {
        let mut leaf = Leaf::default();
        for n in 0..100_u128 {
            let times = [Timestamp::from_secs(1), Timestamp::from_secs(2)];
            leaf.insert(Entry::new([0; 16], n.to_be_bytes(), times, Phase::Granted), Some("/refunds/*"));
        }
        assert_eq!(leaf.texts, "/refunds/*");
    }
}
