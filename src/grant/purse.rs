//! The uses of grants that this process may still spend.
//!
//! Pure; time is an argument. A use is spent from what the control plane gave to an account of this process; the purse is
//! never written down, so a process that starts anew starts with nothing, and what an earlier one had is nobody's to spend.
//! INVARIANT: what was ever spent and given back never exceeds what was ever given. A lock is held for a few instructions,
//! and only by requests that have to spend.

mod account;

use std::collections::HashMap;
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

/// The purse.
#[derive(Debug, Default)]
pub struct Purse {
    inner: Mutex<Inner>,
    /// Rings when there is something to tell.
    news: Signal,
    /// Rings when an answer has come.
    arrivals: Signal,
}

#[derive(Debug, Default)]
struct Inner {
    accounts: HashMap<GrantId, Account>,
    /// Nothing is spent any more.
    closed: bool,
    /// The number of the last request.
    number: u64,
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
    /// None of this grant is here. It has been asked for.
    Awaited(GrantId),
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
                    if matches!(lacking, Lacking::Awaited(_)) {
                        self.news.ring();
                    }
                    return Err(lacking);
                }
            }
        }
        let mut rings = false;
        inner.counts.spent += chosen.len() as u64;
        for grant in &chosen {
            rings |= inner.accounts.get_mut(grant).is_some_and(|account| account.spend(now));
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

    /// Rings when an answer of the control plane has been taken in.
    pub const fn arrivals(&self) -> &Signal {
        &self.arrivals
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

    /// Whether asking again helps: a use is here, or none will ever come.
    pub fn is_settled(&self, grant: GrantId, now: Monotonic) -> bool {
        let inner = self.lock();
        !inner.closed && inner.accounts.get(&grant).is_some_and(|account| account.exhausted || account.held(now) > 0)
    }

    /// Counts a check among those that wait for a use of a grant, or no longer.
    pub fn wait(&self, grant: GrantId, waits: bool) {
        let mut inner = self.lock();
        if let Some(account) = inner.accounts.get_mut(&grant) {
            account.waiting = if waits { account.waiting.saturating_add(1) } else { account.waiting.saturating_sub(1) };
        }
    }

    /// What there is to tell now, each once until it is answered or [`Self::reconnected`].
    pub fn messages(&self, now: Monotonic) -> Vec<Message> {
        let mut inner = self.lock();
        let Inner { accounts, number, closed, .. } = &mut *inner;
        let mut messages = Vec::new();
        accounts.retain(|grant, account| {
            if let Some(report) = account.say(*number + 1, *closed, now) {
                *number += 1;
                messages.push(Message { grant: *grant, number: *number, report });
            }
            !account.is_done(now)
        });
        messages
    }

    /// Takes an answer in. One that is not to the request under way says nothing new.
    pub fn answered(
        &self,
        (grant, account): (GrantId, Uuid),
        number: u64,
        answer: UseAnswer,
        lease: Duration,
        now: Monotonic,
    ) {
        let mut inner = self.lock();
        let Inner { accounts, counts, .. } = &mut *inner;
        if let Some(known) = accounts.get_mut(&grant).filter(|known| known.id == account) {
            counts.given += u64::from(known.answered(number, answer, lease, now));
        }
        drop(inner);
        self.arrivals.ring();
    }

    /// A new stream: what was told may not have arrived.
    pub fn reconnected(&self) {
        self.lock().accounts.values_mut().for_each(Account::repeat);
    }

    /// Gives back what is held of grants that are not `in_force` any more.
    pub fn retain(&self, in_force: impl Fn(GrantId) -> bool) {
        for (grant, account) in &mut self.lock().accounts {
            if !in_force(*grant) {
                account.give_back();
                account.exhausted = true;
            }
        }
    }

    /// Ends all spending and gives everything back.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.accounts.values_mut().for_each(Account::give_back);
        drop(inner);
        self.news.ring();
    }

    /// When there will be something to tell, if nothing happens before.
    pub fn due(&self, now: Monotonic) -> Option<Duration> {
        let inner = self.lock();
        inner.accounts.values().map(|account| account.due(now)).min()
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
    /// Notes that a use of one of `grants` is wanted: of the first that may have one.
    fn want(&mut self, grants: &[GrantId], now: Monotonic) -> Lacking {
        let nil = GrantId(Uuid::nil());
        let account = |grant: &GrantId| self.accounts.get(grant);
        let over = |grant: &&GrantId| account(grant).is_some_and(|a| a.exhausted);
        let dry = |grant: &&GrantId| account(grant).is_some_and(Account::is_dry);
        let first = grants.iter().find(|g| !over(g) && !dry(g)).or_else(|| grants.iter().find(|g| !over(g)));
        let Some(grant) = first.copied() else {
            return Lacking::Exhausted(grants.first().copied().unwrap_or(nil));
        };
        if self.accounts.len() < MAX_ACCOUNTS || self.accounts.contains_key(&grant) {
            self.accounts.entry(grant).or_insert_with(|| Account::new(now)).wanted = Some(now);
        }
        Lacking::Awaited(grant)
    }
}

#[cfg(test)]
mod tests;
