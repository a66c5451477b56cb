//! The paths of a route table as a trie over segments.
//!
//! Pure. A look-up follows, segment by segment, the literal child and the child of `*`; so it visits no more nodes than
//! routes have prefixes that match, whatever else the table holds. It collects every template that matches and keeps
//! the narrowest, by [`Specificity`]: the deepest node is not always it (`/a/{**}/z` is narrower than `/a/{*}/{**}`).

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

use super::super::path::CanonicalPath;
use super::super::template::{Segment, Specificity, Template, split_segment};

/// All that follows one prefix.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Next segment is this text; `""` after a trailing slash.
    literals: HashMap<Box<str>, Node>,
    /// Next segment is any non-empty text.
    any: Option<Box<Node>>,
    /// The path ends here.
    end: Terminal,
    /// The next segment is the last, ends with this text and is longer.
    last: Suffixes,
    /// What follows ends with this text.
    rest: Suffixes,
    /// The fewest and the most segments that may follow.
    span: Option<(usize, usize)>,
}

/// A template that looks for those it has paths in common with.
#[derive(Debug)]
struct Probe<'t> {
    has_rest: bool,
    ending: &'t str,
}

/// The routes of one template, by method.
#[derive(Debug, Default)]
pub(super) struct Terminal {
    specificity: Option<Specificity>,
    /// For every method. INVARIANT: no others then.
    every_method: Option<u32>,
    /// Method and route, sorted. INVARIANT: a method occurs once.
    by_method: Vec<(u32, u32)>,
}

/// Terminals by the text that a path must end with.
#[derive(Debug, Default)]
struct Suffixes {
    by_text: HashMap<Box<str>, Terminal>,
    /// The lengths of the texts, without repetition.
    lengths: Vec<usize>,
    /// The texts back to front, to find those that end alike.
    reversed: BTreeSet<Box<[u8]>>,
}

/// The narrowest template so far, and its route.
type Best = Option<(Specificity, u32)>;

// === impl Node ===

impl Node {
    /// The route with the narrowest template that matches, of those for the method. A method without a number is one
    /// that no route names.
    pub(super) fn find(&self, path: &CanonicalPath<'_>, method: Option<u32>) -> Option<u32> {
        let mut best = None;
        self.collect(path.as_str().strip_prefix('/'), method, &mut best);
        best.map(|(_, route)| route)
    }

    /// The depth of the recursion is that of the trie, at most `MAX_SEGMENTS`.
    fn collect(&self, left: Option<&str>, method: Option<u32>, best: &mut Best) {
        let Some(text) = left else {
            return self.end.offer(method, best);
        };
        self.rest.offer(text, 0, method, best);
        let (segment, after) = split_segment(text);
        if let Some(node) = self.literals.get(segment) {
            node.collect(after, method, best);
        }
        if segment.is_empty() {
            return;
        }
        if after.is_none() {
            self.last.offer(segment, 1, method, best);
        }
        if let Some(node) = &self.any {
            node.collect(after, method, best);
        }
    }

    /// Adds a route that conflicts with none. No methods: every method.
    pub(super) fn insert(&mut self, template: &Template, route: u32, methods: &[u32]) {
        let mut node = self;
        let mut terminal_text = None;
        let mut left = template.shortest();
        let has_rest = template.rest_suffix().is_some();
        node.note(left, has_rest);
        for segment in template.head() {
            node = match segment {
                Segment::Literal(text) => node.literals.entry(text.clone()).or_default(),
                Segment::Before(text) if text.is_empty() => node.any.get_or_insert_default(),
                // Only the last segment of a template without `**` has a text after its operator.
                Segment::Before(text) | Segment::Ends(text) => {
                    terminal_text = Some(text);
                    break;
                }
            };
            left = left.saturating_sub(1);
            node.note(left, has_rest);
        }
        let terminal = match (template.rest_suffix(), terminal_text) {
            (Some(suffix), _) => node.rest.terminal(suffix),
            (None, Some(text)) => node.last.terminal(text),
            (None, None) => &mut node.end,
        };
        terminal.add(template.specificity(), route, methods);
    }

    fn note(&mut self, segments: usize, or_more: bool) {
        let longest = if or_more { usize::MAX } else { segments };
        let (low, high) = self.span.unwrap_or((segments, longest));
        self.span = Some((low.min(segments), high.max(longest)));
    }

    /// Calls `f` on every terminal whose template may have a path in common with `template`, and perhaps on others.
    pub(super) fn overlapping<E>(
        &self,
        template: &Template,
        f: &mut impl FnMut(&Terminal) -> Result<(), E>,
    ) -> Result<(), E> {
        let ending = template.ending();
        let probe = Probe { has_rest: template.rest_suffix().is_some(), ending: &ending };
        self.overlapping_from(template.head(), &probe, f)
    }

    fn overlapping_from<E>(
        &self,
        head: &[Segment],
        probe: &Probe<'_>,
        f: &mut impl FnMut(&Terminal) -> Result<(), E>,
    ) -> Result<(), E> {
        let fits = |(low, high)| high >= head.len() && (probe.has_rest || low <= head.len());
        if !self.span.is_some_and(fits) {
            return Ok(());
        }
        let Some((segment, after)) = head.split_first() else {
            return if probe.has_rest { self.each(probe, f) } else { f(&self.end) };
        };
        self.rest.ending_alike(probe.ending, f)?;
        if after.is_empty() {
            self.last.ending_alike(probe.ending, f)?;
        }
        if let Segment::Literal(text) = segment {
            if let Some(node) = self.literals.get(text) {
                node.overlapping_from(after, probe, f)?;
            }
        } else {
            for node in self.literals.values() {
                node.overlapping_from(after, probe, f)?;
            }
        }
        self.any.iter().try_for_each(|node| node.overlapping_from(after, probe, f))
    }

    fn each<E>(&self, probe: &Probe<'_>, f: &mut impl FnMut(&Terminal) -> Result<(), E>) -> Result<(), E> {
        f(&self.end)?;
        self.last.ending_alike(probe.ending, f)?;
        self.rest.ending_alike(probe.ending, f)?;
        for node in self.literals.values().chain(self.any.as_deref()) {
            node.each(probe, f)?;
        }
        Ok(())
    }
}

// === impl Terminal ===

impl Terminal {
    /// Every route that ends here.
    pub(super) fn routes(&self) -> impl Iterator<Item = u32> {
        self.every_method.into_iter().chain(self.by_method.iter().map(|&(_, route)| route))
    }

    fn add(&mut self, specificity: Specificity, route: u32, methods: &[u32]) {
        self.specificity = Some(specificity);
        if methods.is_empty() {
            self.every_method = Some(route);
        }
        self.by_method.extend(methods.iter().map(|&method| (method, route)));
        self.by_method.sort_unstable();
    }

    fn offer(&self, method: Option<u32>, best: &mut Best) {
        let by_method = || {
            let at = self.by_method.binary_search_by_key(&method?, |&(m, _)| m).ok()?;
            self.by_method.get(at).map(|&(_, route)| route)
        };
        let (Some(specificity), Some(route)) = (self.specificity, self.every_method.or_else(by_method)) else {
            return;
        };
        if best.is_none_or(|(narrowest, _)| specificity > narrowest) {
            *best = Some((specificity, route));
        }
    }
}

// === impl Suffixes ===

impl Suffixes {
    fn terminal(&mut self, text: &str) -> &mut Terminal {
        if !self.lengths.contains(&text.len()) {
            self.lengths.push(text.len());
        }
        self.reversed.insert(text.bytes().rev().collect());
        self.by_text.entry(text.into()).or_default()
    }

    /// Calls `f` on every terminal whose text ends with `ending`, or the other way round.
    fn ending_alike<E>(&self, ending: &str, f: &mut impl FnMut(&Terminal) -> Result<(), E>) -> Result<(), E> {
        for length in self.lengths.iter().filter(|&&length| length < ending.len()) {
            let suffix = ending.len().checked_sub(*length).and_then(|at| ending.get(at..));
            suffix.and_then(|s| self.by_text.get(s)).into_iter().try_for_each(&mut *f)?;
        }
        let start: Box<[u8]> = ending.bytes().rev().collect();
        let longer = self.reversed.range::<[u8], _>((Bound::Included(&*start), Bound::Unbounded));
        for reversed in longer.take_while(|text| text.starts_with(&start)) {
            let text = String::from_utf8(reversed.iter().rev().copied().collect()).unwrap_or_default();
            self.by_text.get(text.as_str()).into_iter().try_for_each(&mut *f)?;
        }
        Ok(())
    }

    /// Offers every terminal whose text `text` ends with, after at least `before` other bytes.
    fn offer(&self, text: &str, before: usize, method: Option<u32>, best: &mut Best) {
        for length in &self.lengths {
            let suffix = text.len().checked_sub(*length).filter(|&at| at >= before).and_then(|at| text.get(at..));
            if let Some(terminal) = suffix.and_then(|s| self.by_text.get(s)) {
                terminal.offer(method, best);
            }
        }
    }
}
