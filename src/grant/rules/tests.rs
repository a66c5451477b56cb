//! The rules of a grant's life, one by one.
//!
//! Pure, like the rules. What follows from sequences of them is shown over the real store, by a model, in
//! `control/life`.

use super::*;

const NOW: Timestamp = Timestamp::from_secs(1_000);

fn ask(change: impl FnOnce(&mut NewGrantRequest)) -> Result<Grant, FieldError> {
    let workload = SpiffeId::parse("spiffe://a/w").unwrap();
    let resources = vec!["payments/refunds".parse().unwrap()];
    let mut new = NewGrantRequest::new(workload, resources, vec!["write".to_owned()], 60);
    change(&mut new);
    new_request(new, "alice", NOW)
}

#[test]
fn duration_counts_from_activation() {
    let asked = ask(|_| {}).unwrap();
    let later = Timestamp::from_secs(5_000);
    let grant = vote(&asked, "bob", VoteKind::Approve, &asked.digest, later).unwrap();
    assert_eq!(grant.state, GrantState::Active);
    assert_eq!(grant.not_after, Some(Timestamp::from_secs(5_060)));
    assert_eq!(grant.request_digest(), asked.digest, "a vote does not touch the request");
    assert!(expire(&grant, Duration::from_secs(1), Timestamp::from_millis(5_059_999)).is_none());
    let ended = expire(&grant, Duration::from_secs(1), Timestamp::from_secs(5_060)).unwrap();
    assert_eq!(ended.state, GrantState::Ended);
    assert_eq!(ended.not_after, grant.not_after);
    assert!(revoke(&ended, "bob", "", later).is_err(), "terminal states are final");
}

#[test]
fn the_requester_cannot_approve_and_nobody_votes_twice_or_on_another_request() {
    let asked = ask(|_| {}).unwrap();
    let own = vote(&asked, "alice", VoteKind::Approve, &asked.digest, NOW).unwrap_err();
    assert_eq!(own, RuleError::OwnRequest("alice".to_owned()));
    let other = ask(|r| r.duration_seconds = 61).unwrap();
    assert!(matches!(vote(&asked, "bob", VoteKind::Approve, &other.digest, NOW), Err(RuleError::Digest { .. })));
    let mut tampered = asked.clone();
    tampered.duration_seconds = 3600;
    let reused = vote(&tampered, "bob", VoteKind::Approve, &asked.digest, NOW);
    assert!(matches!(reused, Err(RuleError::Digest { .. })), "a vote is for the request as it was");
    let denied = vote(&asked, "bob", VoteKind::Deny, &asked.digest, NOW).unwrap();
    assert!(matches!(
        vote(&denied, "carol", VoteKind::Approve, &asked.digest, NOW),
        Err(RuleError::State { state: GrantState::Denied, .. })
    ));
    assert!(withdraw(&asked, "bob", NOW).is_err());
    assert_eq!(withdraw(&asked, "alice", NOW).unwrap().state, GrantState::Withdrawn);
}

#[test]
fn bad_requests_name_the_field() {
    let field = |change: fn(&mut NewGrantRequest)| ask(change).unwrap_err().field;
    assert_eq!(field(|r| r.duration_seconds = 0), "duration_seconds");
    assert_eq!(field(|r| r.resources.clear()), "resources");
    assert_eq!(field(|r| r.actions = vec!["Fly!".to_owned()]), "actions[0]");
    assert_eq!(field(|r| r.path = Some("no-slash".to_owned())), "path");
    assert_eq!(field(|r| r.reason = "\u{7}".to_owned()), "reason");
}

#[test]
fn pending_requests_lapse() {
    let asked = ask(|_| {}).unwrap();
    assert!(expire(&asked, Duration::from_secs(60), Timestamp::from_secs(1_059)).is_none());
    let lapsed = expire(&asked, Duration::from_secs(60), Timestamp::from_secs(1_060)).unwrap();
    assert_eq!(lapsed.state, GrantState::ExpiredUnapproved);
}

#[test]
fn each_step_needs_approvers_of_its_own() {
    let asked = ask(|_| {}).unwrap();
    let steps = vec![ApprovalStep::new("security", 2), ApprovalStep::new("lead", 1)];
    let needs = Needs { steps: steps.clone(), ..Needs::default() };
    let asked = needing(asked, Some(needs)).unwrap();
    let by = |grant: &Grant, approver: &str, step: &str| {
        let ballot = Ballot {
            approver,
            party: Party::default(),
            vote: VoteKind::Approve,
            digest: &grant.digest,
            step: Some(step),
        };
        cast(grant, ballot, NOW)
    };
    let one = by(&asked, "bob", "security").unwrap();
    assert_eq!(by(&one, "bob", "lead").unwrap_err(), RuleError::VotedAlready("bob".to_owned()), "once in all steps");
    assert_eq!(missing(&one, &steps, |_| true), [ApprovalStep::new("security", 1), ApprovalStep::new("lead", 1)]);
    assert!(matches!(activate(&one, &[], NOW), Err(RuleError::Unapproved { .. })), "what was fixed is needed anyway");
    let three = by(&by(&one, "carol", "security").unwrap(), "dave", "lead").unwrap();
    assert_eq!(missing(&three, &steps, |v| v.approver != "carol"), [ApprovalStep::new("security", 1)]);
    assert_eq!(activate(&three, &[], NOW).unwrap().state, GrantState::Active);
    // Policy has become stricter: that is needed as well.
    assert!(matches!(activate(&three, &[ApprovalStep::new("legal", 1)], NOW), Err(RuleError::Unapproved { .. })));
    // Three votes that were given to a milder request count for nothing in a changed one.
    let mut changed = three.clone();
    changed.needs = None;
    changed.digest = changed.request_digest();
    assert_eq!(missing(&changed, &steps, |_| true), steps);
}

#[test]
fn a_scheduled_grant_starts_when_it_said_and_its_end_never_moves() {
    let start = Timestamp::from_secs(2_000);
    let asked = ask(|r| r.starts_at = Some(start)).unwrap();
    let scheduled = vote(&asked, "bob", VoteKind::Approve, &asked.digest, NOW).unwrap();
    assert_eq!(scheduled.state, GrantState::Scheduled);
    let times = (Some(start), Some(Timestamp::from_secs(2_060)));
    assert_eq!((scheduled.not_before, scheduled.not_after), times);
    assert_eq!(activate(&scheduled, &[], Timestamp::from_secs(1_999)), Err(RuleError::NotYet(start)));
    let active = activate(&scheduled, &[], Timestamp::from_secs(2_030)).unwrap();
    assert_eq!((active.state, active.not_before, active.not_after), (GrantState::Active, times.0, times.1));
    assert!(matches!(activate(&scheduled, &[], Timestamp::from_secs(2_060)), Err(RuleError::TooLate(_))));
    assert_eq!(expire(&scheduled, Duration::ZERO, Timestamp::from_secs(2_060)).unwrap().state, GrantState::Ended);
    assert_eq!(lapse(&scheduled, "gone", NOW).unwrap().state, GrantState::Ended);
    let dropped = drop_early(&active, "alice", "", Timestamp::from_secs(2_040)).unwrap();
    assert_eq!((dropped.state, dropped.not_after), (GrantState::Ended, times.1));
    assert!(drop_early(&dropped, "alice", "", Timestamp::from_secs(2_041)).is_err());
    assert!(drop_early(&asked, "alice", "", NOW).is_err(), "a request is withdrawn");
    let field = |at| ask(|r| r.starts_at = Some(at)).unwrap_err().field;
    assert_eq!(field(Timestamp::from_secs(999)), "starts_at");
    assert_eq!(field(NOW.saturating_add(MAX_AHEAD).saturating_add(Duration::from_millis(1))), "starts_at");
}

#[test]
fn break_glass_is_a_persons_for_a_reason_now_and_short() {
    let glass = |party: PartyKind, change: fn(&mut NewGrantRequest)| {
        let workload = SpiffeId::parse("spiffe://a/w").unwrap();
        let mut new = NewGrantRequest::new(workload, vec!["x".parse().unwrap()], vec!["write".to_owned()], 3600);
        (new.break_glass, new.reason) = (true, "down".to_owned());
        change(&mut new);
        new_request_by(new, "alice", Party { kind: party, groups: Vec::new() }, NOW).map_err(|e| e.field)
    };
    let asked = glass(PartyKind::Person, |_| {}).unwrap();
    assert_eq!(activate(&asked, &[], NOW).unwrap().state, GrantState::Active);
    assert_eq!(glass(PartyKind::Automation, |_| {}).unwrap_err(), "break_glass");
    assert_eq!(glass(PartyKind::Workload, |_| {}).unwrap_err(), "break_glass");
    assert_eq!(glass(PartyKind::Person, |r| r.reason = " ".to_owned()).unwrap_err(), "reason");
    assert_eq!(glass(PartyKind::Person, |r| r.duration_seconds = 3601).unwrap_err(), "duration_seconds");
    assert_eq!(glass(PartyKind::Person, |r| r.starts_at = Some(NOW)).unwrap_err(), "starts_at");
    assert_eq!(glass(PartyKind::Person, |r| r.renews = Some(GrantId(Uuid::nil()))).unwrap_err(), "renews");
}

#[test]
fn a_renewal_asks_for_nothing_new() {
    let old = ask(|r| r.path = Some("/refunds/{*}".to_owned())).unwrap();
    let old = vote(&old, "bob", VoteKind::Approve, &old.digest, NOW).unwrap();
    let renew = |change: fn(&mut NewGrantRequest)| {
        let new = ask(|r| {
            (r.renews, r.path) = (Some(GrantId(Uuid::nil())), Some("/refunds/{*}".to_owned()));
            change(r);
        });
        check_renewal(&new.unwrap(), &old).map_err(|e| e.field)
    };
    assert_eq!(renew(|r| r.duration_seconds = 5), Ok(()));
    assert_eq!(renew(|r| r.workload = SpiffeId::parse("spiffe://a/x").unwrap()), Err("renews".to_owned()));
    assert_eq!(renew(|r| r.resources.push("payments".parse().unwrap())), Err("resources[1]".to_owned()));
    assert_eq!(renew(|r| r.actions.push("read".to_owned())), Err("actions[1]".to_owned()));
    assert_eq!(renew(|r| r.path = None), Err("path".to_owned()));
    // A use limit is not renewed away.
    let few = Grant { uses: Some(2), ..old.clone() };
    let again = |uses: Option<u32>| {
        let new = Grant { uses, ..old.clone() };
        check_renewal(&new, &few).map_err(|e| e.field)
    };
    assert_eq!((again(None), again(Some(3))), (Err("uses".to_owned()), Err("uses".to_owned())));
    assert_eq!(again(Some(2)), Ok(()));
    // What never was in force gives no right to follow it.
    let over = Ending { by: "system".to_owned(), at: NOW, reason: "it could not start".to_owned() };
    let lapsed = Grant { state: GrantState::Ended, ended: Some(over), ..old.clone() };
    assert_eq!(check_renewal(&old, &lapsed).unwrap_err().field, "renews");
    let revoked = revoke(&old, "bob", "", NOW).unwrap();
    assert_eq!(check_renewal(&old, &revoked).unwrap_err().field, "renews");
}

#[test]
fn an_active_grant_serves_only_what_it_gives_and_for_as_long() {
    let asked = ask(|_| {}).unwrap();
    let active = vote(&asked, "bob", VoteKind::Approve, &asked.digest, NOW).unwrap();
    let serves =
        |change: fn(&mut NewGrantRequest), now: u64| serves(&active, &ask(change).unwrap(), Timestamp::from_secs(now));
    assert!(serves(|_| {}, 1_000));
    assert!(!serves(|_| {}, 1_001), "less than a minute is left");
    assert!(serves(|r| r.duration_seconds = 30, 1_030));
    assert!(!serves(|r| r.actions.push("read".to_owned()), 1_000));
    assert!(!serves(|r| r.path = Some("/refunds/7".to_owned()), 1_000));
    assert!(!serves(|r| r.uses = Some(1), 1_000));
    assert!(!super::serves(&asked, &asked, NOW), "it waits");
}

#[test]
fn owner_and_delegators_do_not_approve() {
    let workload = |id: &str, owner: &str, delegators: &[&str]| -> Workload {
        serde_json::from_value(serde_json::json!({
            "id": id, "kind": "agent", "owner": owner, "environment": "test", "delegators": delegators,
        }))
        .unwrap()
    };
    let agent = workload("spiffe://a/agent", "olga", &["spiffe://a/desk", "spiffe://a/users/*"]);
    let desk = workload("spiffe://a/desk", "dora", &[]);
    let party =
        |groups: &[&str]| Party { kind: PartyKind::Person, groups: groups.iter().map(|g| (*g).into()).collect() };
    let of_group = |who: &str, group: &str| super::barred(who, &party(&[group]), &agent, [&desk]);
    let barred = |who: &str| super::barred(who, &Party::default(), &agent, [&desk]);
    assert_eq!(barred("olga"), Some(RuleError::Owner("olga".to_owned())));
    assert_eq!(barred("dora"), Some(RuleError::Delegator("dora".to_owned())));
    assert!(matches!(barred("spiffe://a/users/7"), Some(RuleError::Delegator(_))));
    assert_eq!(barred("bob"), None);
    // A team that owns is everybody in it.
    assert_eq!(of_group("bob", "olga"), Some(RuleError::Owner("bob".to_owned())));
    assert_eq!(of_group("bob", "dora"), Some(RuleError::Delegator("bob".to_owned())));
    assert_eq!(of_group("bob", "others"), None);
}
