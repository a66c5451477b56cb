//! What one process does with its account; the model over several is with the ledger's.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use super::*;

const LEASE: Duration = Duration::from_secs(5);

fn at(ms: u64) -> Monotonic {
    Monotonic::from_nanos(ms * 1_000_000)
}

fn id(n: u128) -> GrantId {
    GrantId(Uuid::from_u128(n))
}

/// Has a purse ask, and answers that it was given what it wanted.
fn fill(purse: &Purse, now: Monotonic) {
    for message in purse.messages(now, usize::MAX) {
        let given = UseAnswer::Given(message.report.wanted);
        purse.answered((message.grant, message.report.account), message.number, given, LEASE, now);
    }
}

#[test]
fn two_sides_spend_both_or_neither() {
    let purse = Purse::default();
    let (subject, actor) = (id(1), id(2));
    assert_eq!(purse.spend(&[&[subject], &[actor]], at(0)), Err(Lacking::Awaited(subject, Because::Asked)));
    fill(&purse, at(1));
    assert_eq!(purse.spend(&[&[subject], &[actor]], at(2)), Err(Lacking::Awaited(actor, Because::Asked)));
    fill(&purse, at(3));
    assert_eq!(purse.spend(&[&[subject], &[actor]], at(4)).unwrap().as_slice(), [subject, actor]);
    assert_eq!(purse.counts(), UseCounts { given: 2, spent: 2 });
}

#[test]
fn the_next_grant_is_asked_for_when_one_is_dry_or_exhausted() {
    let purse = Purse::default();
    let both = [id(1), id(2)];
    assert_eq!(purse.spend(&[&both], at(0)), Err(Lacking::Awaited(id(1), Because::Asked)));
    let [asked] = purse.messages(at(0), usize::MAX)[..] else { panic!("one message") };
    purse.answered((id(1), asked.report.account), asked.number, UseAnswer::Given(0), LEASE, at(1));
    assert_eq!(purse.spend(&[&both], at(2)), Err(Lacking::Awaited(id(2), Because::Asked)));
    let [asked] = purse.messages(at(2), usize::MAX)[..] else { panic!("one message") };
    purse.answered((id(2), asked.report.account), asked.number, UseAnswer::Exhausted(0), LEASE, at(3));
    assert_eq!(purse.spend(&[&both], at(4)), Err(Lacking::Awaited(id(1), Because::Held)));
    assert_eq!(purse.look(&both), Ok(()), "one may still have some");
    assert_eq!(purse.look(&[id(2)]), Err(Lacking::Exhausted(id(2))));
}

#[test]
fn a_replayed_answer_gives_nothing_and_lengthens_nothing() {
    let purse = Purse::default();
    assert!(purse.spend(&[&[id(1)]], at(0)).is_err());
    let [asked] = purse.messages(at(0), usize::MAX)[..] else { panic!("one message") };
    let answer = |now| purse.answered((id(1), asked.report.account), asked.number, UseAnswer::Given(1), LEASE, now);
    answer(at(10));
    assert!(purse.spend(&[&[id(1)]], at(20)).is_ok());
    answer(at(30));
    assert!(purse.spend(&[&[id(1)]], at(40)).is_err());
    // A use that was not spent goes back when the lease that the first answer began is over.
    let [asked, ..] = purse.messages(at(40), usize::MAX)[..] else { panic!("a message") };
    assert_eq!((asked.report.spent, asked.report.wanted > 1), (1, true));
    let given = UseAnswer::Given(2);
    purse.answered((id(1), asked.report.account), asked.number, given, LEASE, at(50));
    purse.answered((id(1), asked.report.account), asked.number, given, LEASE, at(5000));
    assert!(purse.spend(&[&[id(1)]], at(5040)).is_err(), "counted from when it was asked for");
    assert_eq!(purse.messages(at(5040), usize::MAX)[0].report.returned, 1);
}

#[test]
fn nothing_is_spent_of_a_closed_account_or_purse() {
    let purse = Purse::default();
    assert!(purse.spend(&[&[id(1)]], at(0)).is_err());
    fill(&purse, at(1));
    let account = purse.lock().accounts[&id(1)].id;
    purse.answered((id(1), account), 99, UseAnswer::Closed, LEASE, at(2));
    assert!(purse.spend(&[&[id(1)]], at(3)).is_err());
    assert_ne!(purse.lock().accounts[&id(1)].id, account, "another is opened");
    // Not at once: whoever closes accounts is not asked in a loop.
    assert!(purse.messages(at(4), usize::MAX).is_empty());
    fill(&purse, at(60));
    purse.close(at(60));
    assert!(purse.spend(&[&[id(1)]], at(61)).is_err());
    let last = purse.messages(at(61), usize::MAX);
    assert_eq!((last[0].report.returned, last[0].report.wanted), (1, 0));
    assert_eq!(purse.queue(id(1), at(62)), None, "there is nothing to wait for");
}

#[test]
fn whoever_spends_many_is_given_more_at_a_time_and_asks_ahead() {
    let purse = Purse::default();
    let mut asked = 0;
    for n in 0..2000_u64 {
        if purse.spend(&[&[id(1)]], at(n)).is_err() {
            asked += 1;
        }
        fill(&purse, at(n));
    }
    assert!(asked <= 4, "{asked} requests found none");
    assert!(purse.counts().spent > 1990);
}

#[test]
fn accounts_without_use_are_forgotten() {
    let purse = Purse::default();
    for n in 0..50 {
        assert!(purse.spend(&[&[id(n)]], at(0)).is_err());
    }
    fill(&purse, at(1));
    assert_eq!(purse.len(), 50);
    purse.retain(at(2), |grant| grant != id(7));
    assert_eq!(purse.spend(&[&[id(7)]], at(2)), Err(Lacking::Exhausted(id(7))));
    let back = purse.messages(at(6_000), usize::MAX);
    assert_eq!(back.len(), 50, "each gives its use back");
    let again = purse.messages(at(8_000), usize::MAX);
    assert_eq!(again.len(), 50, "again, while it is not answered");
    for message in again {
        let place = (message.grant, message.report.account);
        purse.answered(place, message.number, UseAnswer::Given(1), LEASE, at(8_001));
    }
    purse.messages(at(10_100), usize::MAX);
    assert!(purse.is_empty());
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A check that waits.
struct Waiter {
    place: Place,
    woken: Arc<Count>,
}

impl Waiter {
    fn is_called(&self, purse: &Purse) -> bool {
        let waker = Waker::from(Arc::clone(&self.woken));
        pin!(purse.called(self.place)).poll(&mut Context::from_waker(&waker)).is_ready()
    }
}

/// So many checks that found no use of `grants` and wait for one of the first.
fn waiting(purse: &Purse, grants: &[GrantId], count: usize, now: Monotonic) -> Vec<Waiter> {
    let wait = |_| {
        let Err(Lacking::Awaited(grant, _)) = purse.spend(&[grants], now) else { panic!("a use is here") };
        let waiter = Waiter { place: purse.queue(grant, now).unwrap(), woken: Arc::default() };
        assert!(!waiter.is_called(purse));
        waiter
    };
    (0..count).map(wait).collect()
}

fn answer(purse: &Purse, answer: UseAnswer, now: Monotonic) {
    let [asked] = purse.messages(now, usize::MAX)[..] else { panic!("one message") };
    purse.answered((asked.grant, asked.report.account), asked.number, answer, LEASE, now);
}

/// A use that arrives does not have everybody decide again, and one that is not taken goes to the next.
#[test]
fn as_many_are_called_as_there_are_uses_in_the_order_in_which_they_came() {
    let purse = Purse::default();
    let waiters = waiting(&purse, &[id(1)], 5, at(0));
    answer(&purse, UseAnswer::Given(2), at(1));
    let called = || waiters.iter().map(|w| w.woken.0.load(Ordering::SeqCst)).collect::<Vec<_>>();
    assert_eq!(called(), [1, 1, 0, 0, 0]);
    // One takes its use, the other is denied for another reason and leaves it.
    assert!(waiters[0].is_called(&purse) && purse.spend(&[&[id(1)]], at(2)).is_ok());
    purse.leave(waiters[0].place, at(2));
    assert_eq!(called(), [1, 1, 0, 0, 0]);
    purse.leave(waiters[1].place, at(2));
    assert_eq!(called(), [1, 1, 1, 0, 0]);
    // Who gives up before being called takes nothing from others.
    purse.leave(waiters[3].place, at(3));
    assert!(purse.spend(&[&[id(1)]], at(3)).is_ok());
    purse.leave(waiters[2].place, at(3));
    assert_eq!(called(), [1, 1, 1, 0, 0]);
    answer(&purse, UseAnswer::Exhausted(2), at(4));
    assert_eq!(called(), [1, 1, 1, 0, 1], "there will be none");
    assert_eq!(purse.spend(&[&[id(1)]], at(5)), Err(Lacking::Exhausted(id(1))));
}

/// Of two grants that cover a request, the first has none: whoever waits for it is not kept from the second.
#[test]
fn whoever_waits_for_a_dry_grant_tries_the_next() {
    let purse = Purse::default();
    let both = [id(1), id(2)];
    let waiters = waiting(&purse, &both, 2, at(0));
    answer(&purse, UseAnswer::Given(0), at(1));
    assert!(waiters.iter().all(|waiter| waiter.is_called(&purse)));
    assert_eq!(purse.spend(&[&both], at(2)), Err(Lacking::Awaited(id(2), Because::Asked)));
    waiters.iter().for_each(|waiter| purse.leave(waiter.place, at(2)));
    answer(&purse, UseAnswer::Given(0), at(3));
    // Both dry: the one whose last word is oldest.
    assert_eq!(purse.spend(&[&both], at(60)), Err(Lacking::Awaited(id(1), Because::Held)));
    answer(&purse, UseAnswer::Given(0), at(61));
    assert_eq!(purse.spend(&[&both], at(62)), Err(Lacking::Awaited(id(2), Because::Held)));
    // With nothing else to try, nobody is called to no end.
    let alone = waiting(&purse, &[id(3)], 1, at(63));
    answer_of(&purse, id(3), at(64));
    assert!(!alone[0].is_called(&purse));
}

fn answer_of(purse: &Purse, grant: GrantId, now: Monotonic) {
    let asked = purse.messages(now, usize::MAX).into_iter().find(|message| message.grant == grant).unwrap();
    purse.answered((grant, asked.report.account), asked.number, UseAnswer::Given(0), LEASE, now);
}

#[test]
fn much_is_told_in_parts_and_what_has_nothing_to_say_is_not_looked_at() {
    let purse = Purse::default();
    for n in 0..200 {
        assert!(purse.spend(&[&[id(n)]], at(0)).is_err());
    }
    let told: Vec<usize> = (0..4).map(|_| purse.messages(at(0), 64).len()).collect();
    assert_eq!(told, [64, 64, 64, 8]);
    assert!(purse.due(at(0)).is_some_and(|due| due > Duration::from_millis(900)), "{:?}", purse.due(at(0)));
    assert!(purse.spend(&[&[id(7)]], at(10)).is_err());
    assert_eq!(purse.lock().agenda.len(), 200, "one entry an account");
    // A new stream says all of it again.
    purse.reconnected(at(20));
    assert_eq!(purse.messages(at(20), 150).len(), 150);
    assert_eq!(purse.due(at(20)), Some(Duration::ZERO));
    assert_eq!(purse.messages(at(20), 150).len(), 50);
}
