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
/// For how many leases a control plane that starts waits for word of what was handed out before it did.
const COMING_BACK: u32 = 6;

/// How long accounts may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long uses may be held.
    pub lease: Duration,
    /// Since when reports are heard: while the control plane was away nobody could be.
    pub since: Timestamp,
}

/// Why uses are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Whoever held them was silent past its lease: it was killed, or cut off.
    Silent,
    /// Whoever held them when the control plane started has not come back.
    Restart,
}

/// Uses that nobody will spend: they were handed out, and who had them never said what became of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forfeit {
    /// Who had them.
    pub holder: SpiffeId,
    /// How many.
    pub uses: u32,
    /// Why.
    pub lost: Lost,
}

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
    /// What was lost with accounts that were closed.
    pub forfeited: Vec<Forfeit>,
}

/// Takes a report in.
pub fn settle(
    book: Option<&Allotments>,
    grant: &Grant,
    holder: &SpiffeId,
    report: &UseReport,
    now: Timestamp,
    terms: Terms,
) -> Settled {
    let Some(uses) = grant.uses else {
        return Settled { next: None, answer: UseAnswer::Closed, exhausted: false, forfeited: Vec::new() };
    };
    let before = book.cloned().unwrap_or_else(|| Allotments::new(grant.id, uses));
    let mut next = before.clone();
    let forfeited = close_overdue(&mut next, Some(report.account), now, terms);
    let in_force = grant.state == GrantState::Active
        && grant.not_before.is_some_and(|start| start <= now)
        && grant.not_after.is_some_and(|end| now < end);
    let place = next.accounts.iter().position(|account| account.id == report.account);
    // Whoever was given something from an account that is not there had it closed.
    let opens = place.is_none() && report.granted == 0 && report.wanted > 0;
    let mut account = match place.and_then(|i| next.accounts.get(i)) {
        Some(account) if account.holder == *holder => account.clone(),
        None if opens => fresh(report.account, holder),
        _ => return settled((before, next), forfeited, grant, |_| UseAnswer::Closed),
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
        account.until = now.saturating_add(terms.lease);
        match place.and_then(|i| next.accounts.get_mut(i)) {
            Some(known) => *known = account.clone(),
            None => next.accounts.push(account.clone()),
        }
    }
    let granted = account.granted;
    let answer = |over| if over { UseAnswer::Exhausted(granted) } else { UseAnswer::Given(granted) };
    settled((before, next), forfeited, grant, answer)
}

/// Closes accounts that have been silent for too long; `None` when there are none.
pub fn sweep(book: &Allotments, grant: &Grant, now: Timestamp, terms: Terms) -> Option<Settled> {
    let mut next = book.clone();
    let forfeited = close_overdue(&mut next, None, now, terms);
    let settled = settled((book.clone(), next), forfeited, grant, |_| UseAnswer::Closed);
    settled.next.is_some().then_some(settled)
}

/// The grant once its last use has been spent.
pub fn exhausted(grant: &Grant, now: Timestamp) -> Grant {
    let (by, reason) = ("system".to_owned(), "its last use has been spent".to_owned());
    Grant { state: GrantState::Exhausted, ended: Some(Ending { by, at: now, reason }), ..grant.clone() }
}

/// When the first account is to be closed unless it is heard of.
pub fn next_sweep(book: &Allotments, terms: Terms) -> Option<Timestamp> {
    book.accounts.iter().map(|account| terms.closes(account)).min()
}

fn settled(
    (before, next): (Allotments, Allotments),
    forfeited: Vec<Forfeit>,
    grant: &Grant,
    answer: impl FnOnce(bool) -> UseAnswer,
) -> Settled {
    let over = next.all_spent() >= next.uses;
    let ended = grant.state.is_terminal();
    let answer = answer(over || ended);
    // Of a grant that has ended nothing can be lost.
    let forfeited = if ended { Vec::new() } else { forfeited };
    Settled { next: (next != before).then_some(next), answer, exhausted: over && !ended, forfeited }
}

fn fresh(id: Uuid, holder: &SpiffeId) -> UseAccount {
    UseAccount { id, holder: holder.clone(), granted: 0, spent: 0, returned: 0, until: Timestamp::default() }
}

/// Closes accounts that have been silent for too long. What they kept counts as spent; what of that they did not say
/// they had spent is lost.
fn close_overdue(book: &mut Allotments, except: Option<Uuid>, now: Timestamp, terms: Terms) -> Vec<Forfeit> {
    let (mut gone, mut lost) = (0_u32, Vec::new());
    book.accounts.retain(|account| {
        if now < terms.closes(account) || except == Some(account.id) {
            return true;
        }
        gone = gone.saturating_add(account.kept());
        let uses = account.kept().saturating_sub(account.spent);
        if uses > 0 {
            let why = if terms.were_away(account) { Lost::Restart } else { Lost::Silent };
            lost.push(Forfeit { holder: account.holder.clone(), uses, lost: why });
        }
        false
    });
    book.spent = book.spent.saturating_add(gone);
    lost
}

// === impl Terms ===

impl Terms {
    /// When an account is closed unless it is heard of: one more lease after its own, for messages on their way, and for
    /// clocks that run at unequal speeds.
    fn closes(&self, account: &UseAccount) -> Timestamp {
        let closes = account.until.saturating_add(self.lease);
        if self.were_away(account) {
            return closes.max(self.since.saturating_add(self.lease.saturating_mul(COMING_BACK)));
        }
        closes
    }

    /// Whether what the account holds was handed out before reports were heard here.
    fn were_away(&self, account: &UseAccount) -> bool {
        account.until < self.since.saturating_add(self.lease)
    }
}

#[cfg(test)]
mod tests;
