//! The rules of a book of uses: what a report of an enforcement point changes, and what it is answered.
//!
//! Pure; time is an argument. INVARIANT: never more than the grant's uses are handed out and not given back, whatever is
//! reported, however often, in whatever order, by whomever; so with accounts that are only spent from what they were given,
//! no more than that are ever spent. An account that is silent past its lease is closed and counts as spent whole: nobody
//! knows what it did. Its id never opens again for whoever had it: a new one does.

use std::time::Duration;

use uuid::Uuid;

use crate::clock::Timestamp;
use crate::credential::SpiffeId;
use crate::object::{Allotments, Ending, Grant, GrantState, MAX_ACCOUNTS, UseAccount};

/// The most that one account is handed at a time.
const MAX_SHARE: u32 = 1024;

/// What a process of an enforcement point says of its account. Every number counts from the account's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UseReport {
    /// The account.
    pub account: Uuid,
    /// How many uses it knows it was given.
    pub granted: u32,
    /// How many are spent.
    pub spent: u32,
    /// How many it gives back.
    pub returned: u32,
    /// How many it would like to have been given.
    pub wanted: u32,
}

/// What it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UseAnswer {
    /// The account was given so many in all, to be spent within the lease.
    Given(u32),
    /// The same, and nothing more will ever be given.
    Exhausted(u32),
    /// The account is closed. What it holds is not to be spent, and another may be opened.
    Closed,
}

/// The book after a report, if it changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The next version; `None` when nothing changed.
    pub next: Option<Allotments>,
    /// What is answered once that is durable.
    pub answer: UseAnswer,
    /// Whether the grant's last use has been spent.
    pub exhausted: bool,
}

/// Takes a report in.
pub fn settle(
    book: Option<&Allotments>,
    grant: &Grant,
    holder: &SpiffeId,
    report: &UseReport,
    now: Timestamp,
    lease: Duration,
) -> Settled {
    let Some(uses) = grant.uses else {
        return Settled { next: None, answer: UseAnswer::Closed, exhausted: false };
    };
    let before = book.cloned().unwrap_or_else(|| Allotments::new(grant.id, uses));
    let mut next = before.clone();
    close_overdue(&mut next, Some(report.account), now, lease);
    let in_force = grant.state == GrantState::Active
        && grant.not_before.is_some_and(|start| start <= now)
        && grant.not_after.is_some_and(|end| now < end);
    let place = next.accounts.iter().position(|account| account.id == report.account);
    // Whoever was given something from an account that is not there had it closed.
    let opens = place.is_none() && report.granted == 0 && report.wanted > 0;
    let mut account = match place.and_then(|i| next.accounts.get(i)) {
        Some(account) if account.holder == *holder => account.clone(),
        None if opens => fresh(report.account, holder),
        _ => return settled(before, next, grant, |_| UseAnswer::Closed),
    };
    account.returned = account.returned.max(report.returned.min(account.granted.saturating_sub(account.spent)));
    account.spent = account.spent.max(report.spent.min(account.kept()));
    // In the book first, so that what it gives back counts as available.
    if let Some(known) = place.and_then(|i| next.accounts.get_mut(i)) {
        *known = account.clone();
    }
    let asks = report.wanted.saturating_sub(account.granted);
    let room = place.is_some() || next.accounts.len() < MAX_ACCOUNTS;
    let available = next.available();
    if in_force && asks > 0 && room && available > 0 {
        // Small enough that others find some: the last ones go out one by one, to whoever asks first.
        account.granted = account.granted.saturating_add(asks.min((available / 16).clamp(1, MAX_SHARE)));
        account.until = now.saturating_add(lease);
        match place.and_then(|i| next.accounts.get_mut(i)) {
            Some(known) => *known = account.clone(),
            None => next.accounts.push(account.clone()),
        }
    }
    let granted = account.granted;
    settled(before, next, grant, |over| if over { UseAnswer::Exhausted(granted) } else { UseAnswer::Given(granted) })
}

/// Closes accounts that have been silent for too long; `None` when there are none.
pub fn sweep(book: &Allotments, grant: &Grant, now: Timestamp, lease: Duration) -> Option<Settled> {
    let mut next = book.clone();
    close_overdue(&mut next, None, now, lease);
    let settled = settled(book.clone(), next, grant, |_| UseAnswer::Closed);
    settled.next.is_some().then_some(settled)
}

/// The grant once its last use has been spent.
pub fn exhausted(grant: &Grant, now: Timestamp) -> Grant {
    let (by, reason) = ("system".to_owned(), "its last use has been spent".to_owned());
    Grant { state: GrantState::Exhausted, ended: Some(Ending { by, at: now, reason }), ..grant.clone() }
}

/// When the first account is to be closed unless it is heard of.
pub fn next_sweep(book: &Allotments, lease: Duration) -> Option<Timestamp> {
    book.accounts.iter().map(|account| account.until.saturating_add(lease)).min()
}

fn settled(before: Allotments, next: Allotments, grant: &Grant, answer: impl FnOnce(bool) -> UseAnswer) -> Settled {
    let over = next.all_spent() >= next.uses;
    let exhausted = over && !grant.state.is_terminal();
    let answer = answer(over || grant.state.is_terminal());
    Settled { next: (next != before).then_some(next), answer, exhausted }
}

fn fresh(id: Uuid, holder: &SpiffeId) -> UseAccount {
    UseAccount { id, holder: holder.clone(), granted: 0, spent: 0, returned: 0, until: Timestamp::default() }
}

/// One more lease after its own: for messages on their way, and for clocks that run at unequal speeds.
fn close_overdue(book: &mut Allotments, except: Option<Uuid>, now: Timestamp, lease: Duration) {
    let mut gone = 0_u32;
    book.accounts.retain(|account| {
        let stays = now < account.until.saturating_add(lease) || except == Some(account.id);
        gone = gone.saturating_add(if stays { 0 } else { account.kept() });
        stays
    });
    book.spent = book.spent.saturating_add(gone);
}

#[cfg(test)]
mod tests;
