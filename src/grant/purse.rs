//! The uses of grants that this process may still spend.
//!
//! Pure; time is an argument. A use is spent from what the control plane gave to an account of this process; the purse is
//! never written down, so a process that starts anew starts with nothing, and what an earlier one had is nobody's to spend.
//! INVARIANT: what was ever spent and given back never exceeds what was ever given. A lock is held for a few instructions,
//! and only by requests that have to spend. Who waits stands in line, and is called when there is something for them.

mod account;
mod line;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use smallvec::SmallVec;
use uuid::Uuid;

use self::account::Account;
use super::ledger::{UseAnswer, UseReport};
use super::signal::Signal;
use crate::clock::Monotonic;
use crate::object::GrantId;

/// An unanswered request is made again after this long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// When nothing was to be had, it is asked again after this long, as long as somebody wants it.
const DRY_FOR: Duration = Duration::from_millis(50);
/// For how long a check that does not wait counts as one that wants a use.
const WANTED_FOR: Duration = Duration::from_secs(2);
/// How many uses are asked for at a time at most.
const MAX_APPETITE: u32 = 1024;
/// How many accounts there are at most; who wants more of them has to wait.
const MAX_ACCOUNTS: usize = 100_000;
/// An account that has nothing to say is looked at again no sooner.
const PAUSE: Duration = Duration::from_millis(1);

/// The purse.
#[derive(Debug, Default)]
pub struct Purse {
    inner: Mutex<Inner>,
    /// Rings when there is something to tell.
    news: Signal,
}

#[derive(Debug, Default)]
struct Inner {
    accounts: HashMap<GrantId, Account>,
    /// When each account has something to say or is to be forgotten: one entry an account.
    agenda: BTreeSet<(Monotonic, GrantId)>,
    /// Nothing is spent any more.
    closed: bool,
    /// The number of the last request.
    number: u64,
    /// The number of the last place in a line.
    place: u64,
    counts: UseCounts,
}

/// What was given to this process and spent by it, since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UseCounts {
    /// Uses that the control plane gave.
    pub given: u64,
    /// Uses that were spent.
    pub spent: u64,
}

/// Why nothing was spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lacking {
    /// The last use of this grant has been spent.
    Exhausted(GrantId),
    /// None of this grant is here, and one may come.
    Awaited(GrantId, Because),
}

/// Why no use of a grant is here that may still have some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// The control plane has been asked, and has not answered yet.
    Asked,
    /// The control plane had none to give: others hold what is left.
    Held,
    /// Too many grants are in use here at once.
    Crowded,
    /// This enforcement point is shutting down.
    Closed,
}

/// A place in the line for uses of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "whoever does not leave it keeps a use from others"]
pub struct Place {
    grant: GrantId,
    number: u64,
}

/// Something to tell the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Of which grant.
    pub grant: GrantId,
    /// Repeated by the answer.
    pub number: u64,
    /// What.
    pub report: UseReport,
}

// === impl Purse ===

impl Purse {
    /// Spends a use for each of `sides`: of the first of its grants that has one left. Of all of them or of none.
    pub fn spend(&self, sides: &[&[GrantId]], now: Monotonic) -> Result<SmallVec<[GrantId; 2]>, Lacking> {
        let mut inner = self.lock();
        let mut chosen = SmallVec::new();
        for grants in sides {
            let has = |grant: &&GrantId| inner.accounts.get(*grant).is_some_and(|a| !inner.closed && a.held(now) > 0);
            match grants.iter().find(has) {
                Some(grant) => chosen.push(*grant),
                None => {
                    let lacking = inner.want(grants, now);
                    drop(inner);
                    if matches!(lacking, Lacking::Awaited(..)) {
                        self.news.ring();
                    }
                    return Err(lacking);
                }
            }
        }
        let mut rings = false;
        inner.counts.spent += chosen.len() as u64;
        for grant in &chosen {
            if inner.accounts.get_mut(grant).is_some_and(|account| account.spend(now)) {
                inner.plan(*grant, now);
                rings = true;
            }
        }
        drop(inner);
        if rings {
            self.news.ring();
        }
        Ok(chosen)
    }

    /// Rings when [`Self::messages`] has something.
    pub const fn news(&self) -> &Signal {
        &self.news
    }

    /// Whether a use could be spent of one of `grants`, as far as is known here; for callers that forward nothing.
    pub fn look(&self, grants: &[GrantId]) -> Result<(), Lacking> {
        let inner = self.lock();
        let over = |grant: &GrantId| inner.accounts.get(grant).is_some_and(|account| account.exhausted);
        match grants {
            [first, ..] if grants.iter().all(over) => Err(Lacking::Exhausted(*first)),
            _ => Ok(()),
        }
    }

    /// Stands in line for a use of a grant; nothing where there is nothing to wait for. Whoever is called decides again,
    /// and then, and not before, [leaves](Self::leave).
    pub fn queue(&self, grant: GrantId, now: Monotonic) -> Option<Place> {
        let mut inner = self.lock();
        let Inner { accounts, closed, place, .. } = &mut *inner;
        let account = accounts.get_mut(&grant).filter(|_| !*closed)?;
        *place += 1;
        let number = *place;
        account.line.enter(number);
        account.call(now);
        inner.plan(grant, now);
        drop(inner);
        self.news.ring();
        Some(Place { grant, number })
    }

    /// Waits to be called: when there is a use, when it turns out that there will be none, or when there is another grant
    /// to try.
    pub fn called(&self, place: Place) -> impl Future<Output = ()> + Send + '_ {
        poll_fn(move |cx| match self.lock().accounts.get_mut(&place.grant) {
            Some(account) => account.line.poll(place.number, cx),
            None => std::task::Poll::Ready(()),
        })
    }

    /// Leaves the line. What there still is goes to the next in it.
    pub fn leave(&self, place: Place, now: Monotonic) {
        let mut inner = self.lock();
        if let Some(account) = inner.accounts.get_mut(&place.grant) {
            account.line.leave(place.number);
            account.call(now);
            inner.plan(place.grant, now);
        }
    }

    /// What there is to tell now, at most `limit` of it, each once until it is answered or [`Self::reconnected`].
    pub fn messages(&self, now: Monotonic, limit: usize) -> Vec<Message> {
        let mut inner = self.lock();
        let mut messages = Vec::new();
        while messages.len() < limit && inner.agenda.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, grant)) = inner.agenda.pop_first() else { break };
            let Inner { accounts, number, closed, .. } = &mut *inner;
            let Some(account) = accounts.get_mut(&grant) else { continue };
            account.planned = None;
            if let Some(report) = account.say(*number + 1, *closed, now) {
                *number += 1;
                messages.push(Message { grant, number: *number, report });
            }
            if account.is_done(now) {
                accounts.remove(&grant);
            } else {
                inner.plan_after(grant, now, PAUSE);
            }
        }
        messages
    }

    /// Takes an answer in. One that is not to the request under way says nothing new. Tells what became of what was
    /// held, when that is lost.
    pub fn answered(
        &self,
        (grant, account): (GrantId, Uuid),
        number: u64,
        answer: UseAnswer,
        lease: Duration,
        now: Monotonic,
    ) -> Option<UseReport> {
        let mut inner = self.lock();
        let Inner { accounts, counts, .. } = &mut *inner;
        let known = accounts.get_mut(&grant).filter(|known| known.id == account)?;
        let before = known.report();
        counts.given += u64::from(known.answered(number, answer, lease, now));
        known.call(now);
        inner.plan(grant, now);
        (answer == UseAnswer::Closed && before.granted > before.spent).then_some(before)
    }

    /// A new stream: what was told may not have arrived.
    pub fn reconnected(&self, now: Monotonic) {
        let mut inner = self.lock();
        inner.each(now, |account| account.repeat());
    }

    /// Gives back what is held of grants that are not `in_force` any more.
    pub fn retain(&self, now: Monotonic, in_force: impl Fn(GrantId) -> bool) {
        let mut inner = self.lock();
        let over: Vec<GrantId> = inner.accounts.keys().copied().filter(|grant| !in_force(*grant)).collect();
        for grant in over {
            if let Some(account) = inner.accounts.get_mut(&grant) {
                account.give_back();
                account.exhausted = true;
                account.call(now);
                inner.plan(grant, now);
            }
        }
    }

    /// Ends all spending and gives everything back.
    pub fn close(&self, now: Monotonic) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.each(now, |account| {
            account.give_back();
            account.line.call_all();
        });
        drop(inner);
        self.news.ring();
    }

    /// When there will be something to tell, if nothing happens before.
    pub fn due(&self, now: Monotonic) -> Option<Duration> {
        self.lock().agenda.first().map(|(due, _)| due.since(now))
    }

    /// What was given and spent.
    pub fn counts(&self) -> UseCounts {
        self.lock().counts
    }

    /// How many accounts there are.
    pub fn len(&self) -> usize {
        self.lock().accounts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl Inner {
    /// Notes that a use of one of `grants` is wanted: of the first that may have one. Of those that had none to give, of
    /// the one that was asked longest ago.
    fn want(&mut self, grants: &[GrantId], now: Monotonic) -> Lacking {
        let nil = GrantId(Uuid::nil());
        let account = |grant: &GrantId| self.accounts.get(grant);
        let over = |grant: &&GrantId| account(grant).is_some_and(|a| a.exhausted);
        let dry = |grant: &&GrantId| account(grant).and_then(Account::dry_since);
        let Some(grant) = grants.iter().filter(|grant| !over(grant)).min_by_key(|grant| dry(grant)).copied() else {
            return Lacking::Exhausted(grants.first().copied().unwrap_or(nil));
        };
        if self.closed {
            return Lacking::Awaited(grant, Because::Closed);
        }
        if self.accounts.len() >= MAX_ACCOUNTS && !self.accounts.contains_key(&grant) {
            return Lacking::Awaited(grant, Because::Crowded);
        }
        let account = self.accounts.entry(grant).or_insert_with(|| Account::new(now));
        account.wanted = Some(now);
        account.has_rivals |= grants.len() > 1;
        let because = if account.dry_since().is_some() { Because::Held } else { Because::Asked };
        self.plan(grant, now);
        Lacking::Awaited(grant, because)
    }

    /// Enters in the agenda when an account has something to say next.
    fn plan(&mut self, grant: GrantId, now: Monotonic) {
        self.plan_after(grant, now, Duration::ZERO);
    }

    fn plan_after(&mut self, grant: GrantId, now: Monotonic, least: Duration) {
        let Some(account) = self.accounts.get_mut(&grant) else { return };
        let next = now.after(account.due(now).max(least));
        if account.planned != Some(next) {
            if let Some(before) = account.planned.replace(next) {
                self.agenda.remove(&(before, grant));
            }
            self.agenda.insert((next, grant));
        }
    }

    fn each(&mut self, now: Monotonic, change: impl Fn(&mut Account)) {
        self.agenda.clear();
        for (grant, account) in &mut self.accounts {
            change(account);
            let next = now.after(account.due(now));
            account.planned = Some(next);
            self.agenda.insert((next, *grant));
        }
    }
}

// === impl Because ===

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "the control plane has been asked and has not answered",
            Self::Held => "the control plane has none to give, others hold what is left",
            Self::Crowded => "too many grants with uses are in use here at once",
            Self::Closed => "this enforcement point is shutting down",
        })
    }
}

#[cfg(test)]
mod tests;
