//! One account of a purse: what this process was given of one grant, what became of it, and what is still to be said.
//!
//! Pure. INVARIANT: `spent + returned <= granted`, and all three only grow. Whatever is said is said again until it is
//! answered, because an answer that was lost may have given something. What was given is held until a lease is over that
//! began when it was first asked for: here it is over before it is for the control plane.

use std::time::Duration;

use uuid::Uuid;

use super::line::Line;
use super::{ASK_AGAIN, DRY_FOR, MAX_APPETITE, WANTED_FOR};
use crate::clock::Monotonic;
use crate::grant::ledger::{UseAnswer, UseReport};

#[derive(Debug)]
pub(super) struct Account {
    pub(super) id: Uuid,
    granted: u32,
    spent: u32,
    returned: u32,
    /// When what is left is given back.
    until: Monotonic,
    /// Checks that wait for a use.
    pub(super) line: Line,
    /// Whether some of them could take a use of another grant.
    pub(super) has_rivals: bool,
    /// When it is on the agenda of the purse.
    pub(super) planned: Option<Monotonic>,
    /// When a check last found none, or few.
    pub(super) wanted: Option<Monotonic>,
    /// How many are asked for beyond what checks wait for: more each time that all were spent.
    appetite: u32,
    /// Whether the last use of the grant is known to be spent.
    pub(super) exhausted: bool,
    /// Whether something was spent or given back that the control plane should know now.
    tell: bool,
    /// What was said last, while it is not answered.
    said: Option<Said>,
    /// When there was nothing to be had.
    dry: Option<Monotonic>,
}

#[derive(Debug, Clone, Copy)]
struct Said {
    number: u64,
    /// How many uses it asked for in all.
    wanted: u32,
    first: Monotonic,
    last: Monotonic,
}

// === impl Account ===

impl Account {
    pub(super) fn new(now: Monotonic) -> Self {
        Self {
            id: Uuid::new_v4(),
            granted: 0,
            spent: 0,
            returned: 0,
            until: now,
            line: Line::default(),
            has_rivals: false,
            planned: None,
            wanted: None,
            appetite: 1,
            exhausted: false,
            tell: false,
            said: None,
            dry: None,
        }
    }

    /// What may be spent now.
    pub(super) fn held(&self, now: Monotonic) -> u32 {
        if now < self.until { self.left() } else { 0 }
    }

    /// Since when there is nothing to be had.
    pub(super) const fn dry_since(&self) -> Option<Monotonic> {
        self.dry
    }

    /// Calls whoever can do something: as many as there are uses; everybody when there will be none.
    pub(super) fn call(&mut self, now: Monotonic) {
        if self.exhausted {
            self.line.call_all();
        } else {
            let held = self.held(now);
            self.line.call(held);
        }
    }

    /// What is known of it.
    pub(super) const fn report(&self) -> UseReport {
        let Self { id: account, granted, spent, returned, .. } = *self;
        UseReport { account, granted, spent, returned, wanted: 0 }
    }

    /// Spends one, and tells whether that is news.
    pub(super) fn spend(&mut self, now: Monotonic) -> bool {
        self.spent = self.spent.saturating_add(1);
        let left = self.left();
        self.tell |= left == 0;
        // While many are spent, more are asked for before there is none.
        let few = self.appetite >= 8 && left <= self.appetite / 4 && self.wanted.is_none();
        if few {
            self.wanted = Some(now);
        }
        self.tell || few
    }

    /// What is to be said now, if anything, under this number.
    pub(super) fn say(&mut self, number: u64, closed: bool, now: Monotonic) -> Option<UseReport> {
        if closed || now >= self.until {
            self.give_back();
        }
        let wants = !closed && self.wants(now);
        let again = self.said.is_some_and(|said| now.since(said.last) >= ASK_AGAIN);
        if !wants && !self.tell && !again {
            return None;
        }
        let before = self.said.map_or(0, |said| said.wanted);
        let more = self.line.len().max(self.left().saturating_add(self.appetite));
        let target = if wants { self.spent.saturating_add(self.returned).saturating_add(more) } else { 0 };
        let wanted = if closed { 0 } else { target.max(before) };
        self.tell = false;
        if wants {
            self.wanted = None;
        }
        self.said = Some(Said { number, wanted, first: self.said.map_or(now, |said| said.first), last: now });
        Some(UseReport { wanted, ..self.report() })
    }

    /// Takes an answer in, and tells how many more were given.
    pub(super) fn answered(&mut self, number: u64, answer: UseAnswer, lease: Duration, now: Monotonic) -> u32 {
        let granted = match answer {
            UseAnswer::Closed => {
                self.begin_anew(now);
                return 0;
            }
            UseAnswer::Exhausted(granted) | UseAnswer::Given(granted) => granted,
        };
        self.exhausted |= matches!(answer, UseAnswer::Exhausted(_));
        // One that is not to what was said last may still tell of uses. A replayed one tells of none.
        let more = granted.saturating_sub(self.granted);
        if more > 0 {
            self.granted = granted;
            self.appetite = self.appetite.saturating_mul(2).min(MAX_APPETITE);
            let began = self.said.map_or(now, |said| said.first);
            self.until = self.until.max(began.after(lease));
        }
        if let Some(said) = self.said.filter(|said| said.number == number) {
            self.dry = (said.wanted > granted && more == 0).then_some(now);
            self.said = None;
            if self.dry.is_some() && self.has_rivals {
                // Those who can take a use of another grant try that one.
                self.line.call_all();
                self.has_rivals = false;
            }
        }
        more
    }

    /// A new stream: what was said may not have arrived.
    pub(super) fn repeat(&mut self) {
        self.tell = self.granted > 0 || self.said.is_some();
    }

    pub(super) fn give_back(&mut self) {
        if self.left() > 0 {
            (self.tell, self.appetite) = (true, 1);
            self.returned = self.returned.saturating_add(self.left());
        }
    }

    /// Whether there is nothing to remember. That a grant is exhausted is known from the state a moment later.
    pub(super) fn is_done(&self, now: Monotonic) -> bool {
        let over = now.since(self.until) >= ASK_AGAIN;
        over && self.left() == 0 && self.line.len() == 0 && !self.is_wanted(now) && !self.tell && self.said.is_none()
    }

    /// When there is something to say, or to forget.
    pub(super) fn due(&self, now: Monotonic) -> Duration {
        if self.tell {
            return Duration::ZERO;
        }
        let lease = if self.left() > 0 { self.until.since(now) } else { WANTED_FOR };
        let again = self.said.map_or(WANTED_FOR, |said| ASK_AGAIN.saturating_sub(now.since(said.last)));
        let asks = match self.dry {
            _ if !self.is_wanted(now) || self.is_asked_for(now) => WANTED_FOR,
            Some(at) => DRY_FOR.saturating_sub(now.since(at)),
            None => Duration::ZERO,
        };
        lease.min(again).min(asks)
    }

    /// What is left of what was given.
    const fn left(&self) -> u32 {
        self.granted.saturating_sub(self.returned).saturating_sub(self.spent)
    }

    fn is_wanted(&self, now: Monotonic) -> bool {
        let lately = self.wanted.is_some_and(|at| now.since(at) < WANTED_FOR);
        (lately || self.line.len() > self.left()) && !self.exhausted
    }

    /// Whether a request for more is under way.
    fn is_asked_for(&self, now: Monotonic) -> bool {
        self.said.is_some_and(|said| said.wanted > self.granted && now.since(said.last) < ASK_AGAIN)
    }

    /// Whether something is to be asked for now.
    fn wants(&self, now: Monotonic) -> bool {
        let dry = self.dry.is_some_and(|at| now.since(at) < DRY_FOR);
        self.is_wanted(now) && !self.is_asked_for(now) && !dry
    }

    /// What it held is lost; whoever waits goes on waiting.
    fn begin_anew(&mut self, now: Monotonic) {
        let (line, planned) = (std::mem::take(&mut self.line), self.planned);
        let (exhausted, has_rivals) = (self.exhausted, self.has_rivals);
        *self = Self { line, planned, exhausted, has_rivals, dry: Some(now), ..Self::new(now) };
    }
}
