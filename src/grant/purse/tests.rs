//! What one process does with its account; the model over several is with the ledger's.

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
    for message in purse.messages(now) {
        let given = UseAnswer::Given(message.report.wanted);
        purse.answered((message.grant, message.report.account), message.number, given, LEASE, now);
    }
}

#[test]
fn two_sides_spend_both_or_neither() {
    let purse = Purse::default();
    let (subject, actor) = (id(1), id(2));
    assert_eq!(purse.spend(&[&[subject], &[actor]], at(0)), Err(Lacking::Awaited(subject)));
    fill(&purse, at(1));
    assert_eq!(purse.spend(&[&[subject], &[actor]], at(2)), Err(Lacking::Awaited(actor)));
    fill(&purse, at(3));
    assert_eq!(purse.spend(&[&[subject], &[actor]], at(4)).unwrap().as_slice(), [subject, actor]);
    assert_eq!(purse.counts(), UseCounts { given: 2, spent: 2 });
}

#[test]
fn the_next_grant_is_asked_for_when_one_is_dry_or_exhausted() {
    let purse = Purse::default();
    let both = [id(1), id(2)];
    assert_eq!(purse.spend(&[&both], at(0)), Err(Lacking::Awaited(id(1))));
    let [asked] = purse.messages(at(0))[..] else { panic!("one message") };
    purse.answered((id(1), asked.report.account), asked.number, UseAnswer::Given(0), LEASE, at(1));
    assert_eq!(purse.spend(&[&both], at(2)), Err(Lacking::Awaited(id(2))));
    let [asked] = purse.messages(at(2))[..] else { panic!("one message") };
    purse.answered((id(2), asked.report.account), asked.number, UseAnswer::Exhausted(0), LEASE, at(3));
    assert_eq!(purse.spend(&[&both], at(4)), Err(Lacking::Awaited(id(1))));
    assert_eq!(purse.look(&both), Ok(()), "one may still have some");
    assert_eq!(purse.look(&[id(2)]), Err(Lacking::Exhausted(id(2))));
}

#[test]
fn a_replayed_answer_gives_nothing_and_lengthens_nothing() {
    let purse = Purse::default();
    assert!(purse.spend(&[&[id(1)]], at(0)).is_err());
    let [asked] = purse.messages(at(0))[..] else { panic!("one message") };
    let answer = |now| purse.answered((id(1), asked.report.account), asked.number, UseAnswer::Given(1), LEASE, now);
    answer(at(10));
    assert!(purse.spend(&[&[id(1)]], at(20)).is_ok());
    answer(at(30));
    assert!(purse.spend(&[&[id(1)]], at(40)).is_err());
    // A use that was not spent goes back when the lease that the first answer began is over.
    let [asked, ..] = purse.messages(at(40))[..] else { panic!("a message") };
    assert_eq!((asked.report.spent, asked.report.wanted > 1), (1, true));
    let given = UseAnswer::Given(2);
    purse.answered((id(1), asked.report.account), asked.number, given, LEASE, at(50));
    purse.answered((id(1), asked.report.account), asked.number, given, LEASE, at(5000));
    assert!(purse.spend(&[&[id(1)]], at(5040)).is_err(), "counted from when it was asked for");
    assert_eq!(purse.messages(at(5040))[0].report.returned, 1);
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
    assert!(purse.messages(at(4)).is_empty());
    fill(&purse, at(60));
    purse.close();
    assert!(purse.spend(&[&[id(1)]], at(61)).is_err());
    let last = purse.messages(at(61));
    assert_eq!((last[0].report.returned, last[0].report.wanted), (1, 0));
    assert!(!purse.is_settled(id(1), at(62)));
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
    purse.retain(|grant| grant != id(7));
    assert_eq!(purse.spend(&[&[id(7)]], at(2)), Err(Lacking::Exhausted(id(7))));
    let back = purse.messages(at(6_000));
    assert_eq!(back.len(), 50, "each gives its use back");
    assert_eq!(purse.messages(at(8_000)).len(), 50, "again, while it is not answered");
    for message in back {
        let place = (message.grant, message.report.account);
        purse.answered(place, message.number + 50, UseAnswer::Given(1), LEASE, at(8_001));
    }
    purse.messages(at(10_000));
    assert!(purse.is_empty());
}
