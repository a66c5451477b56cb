//! Tests of the grant index: a table of what covers what, and a model-based comparison with a plain list.
//!
//! Pure, like the module.

use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::super::limits::{Circumstances, Unmet};
use super::*;
use crate::authz::{CanonicalPath, Template};
use crate::credential::SpiffeId;
use crate::object::{Grant, GrantConditions, Party};

fn grant(n: u128, workload: &str, resource: &str, path: Option<&str>, from: u64, to: u64) -> Grant {
    let mut grant = Grant {
        id: GrantId(Uuid::from_u128(n * 0x1_0000_0001)),
        workload: SpiffeId::parse(&format!("spiffe://a/{workload}")).unwrap(),
        resources: vec![resource.parse().unwrap()],
        actions: vec!["write".to_owned()],
        path: path.map(str::to_owned),
        conditions: GrantConditions::default(),
        call: None,
        uses: None,
        starts_at: None,
        reason: String::new(),
        ticket: None,
        renews: None,
        break_glass: false,
        requested_by: "alice".to_owned(),
        requester: Party::default(),
        requested_at: Timestamp::from_secs(1),
        duration_seconds: to.saturating_sub(from).max(1),
        needs: None,
        digest: String::new(),
        state: GrantState::Active,
        votes: vec![],
        not_before: Some(Timestamp::from_secs(from)),
        not_after: Some(Timestamp::from_secs(to)),
        ended: None,
    };
    grant.digest = grant.request_digest();
    grant
}

fn put(index: &mut GrantIndex, grant: &Grant, version: u64) {
    index.put(&CompactGrant::read(&CompactGrant::encode(grant)).unwrap(), version);
}

fn find(index: &GrantIndex, workload: &str, resource: [&str; 2], action: &str, path: &str, now: u64) -> Covering {
    let key = WorkloadKey::of(&format!("spiffe://a/{workload}"));
    let path = CanonicalPath::parse(path).unwrap();
    let request = &Circumstances::new(("POST", "/"), &[], None, None);
    let now = Timestamp::from_secs(now);
    let sought = Sought { resource, action, path: Some(&path), environment: "production", request, now };
    index.find(&key, &sought, Apart::Id, |_| false)
}

const REFUNDS: [&str; 2] = ["payments/refunds", "payments"];

#[test]
fn a_grant_covers_its_workload_resource_action_path_and_time_and_nothing_else() {
    let mut index = GrantIndex::new(1);
    let g = grant(1, "w", "payments/refunds", Some("/refunds/{*}"), 10, 20);
    put(&mut index, &g, 2);
    let standing = |workload, resource, action, path, now| {
        let found = find(&index, workload, resource, action, path, now);
        if found.active.is_empty() { Err(found.standing) } else { Ok(found.active[0].id) }
    };
    assert_eq!(standing("w", REFUNDS, "write", "/refunds/7", 10), Ok(g.id));
    assert_eq!(standing("w", REFUNDS, "write", "/refunds/7", 19), Ok(g.id));
    assert_eq!(standing("w", REFUNDS, "write", "/refunds/7", 9), Err(Standing::NotYetValid(g.id)));
    assert_eq!(standing("w", REFUNDS, "write", "/refunds/7", 20), Err(over(20, false, g.id)));
    assert_eq!(standing("w", REFUNDS, "read", "/refunds/7", 10), Err(Standing::Scope(g.id)));
    assert_eq!(standing("w", REFUNDS, "write", "/refunds/7/x", 10), Err(Standing::Scope(g.id)));
    assert_eq!(standing("v", REFUNDS, "write", "/refunds/7", 10), Err(Standing::None));
    assert_eq!(standing("w", ["payments/payouts", "payments"], "write", "/refunds/7", 10), Err(Standing::None));
}

#[test]
fn a_grant_on_a_service_covers_its_routes() {
    let mut index = GrantIndex::new(1);
    put(&mut index, &grant(1, "w", "payments", None, 10, 20), 2);
    assert_eq!(find(&index, "w", REFUNDS, "write", "/refunds/7", 15).active.len(), 1);
    assert!(find(&index, "w", ["catalog/items", "catalog"], "write", "/refunds/7", 15).active.is_empty());
}

#[test]
fn later_versions_replace_earlier_ones_and_the_most_telling_wins() {
    let mut index = GrantIndex::new(1);
    let mut g = grant(1, "w", "payments/refunds", None, 10, 20);
    let key = WorkloadKey::of("spiffe://a/w");
    put(&mut index, &g, 2);
    assert_eq!(index.version(&key), 2);
    g.state = GrantState::Revoked;
    g.ended = Some(crate::object::Ending { by: "bob".to_owned(), at: Timestamp::from_secs(12), reason: String::new() });
    put(&mut index, &g, 3);
    assert_eq!((index.len(), index.version(&key)), (1, 3));
    let found = find(&index, "w", REFUNDS, "write", "/refunds/7", 15);
    assert_eq!((found.active.len(), found.standing), (0, over(12, true, g.id)));

    let mut asked = grant(2, "w", "payments/refunds", None, 10, 20);
    asked.state = GrantState::Pending;
    asked.not_before = None;
    asked.not_after = None;
    put(&mut index, &asked, 4);
    let found = find(&index, "w", REFUNDS, "write", "/refunds/7", 15);
    assert_eq!(found.standing, Standing::Pending(asked.id), "a new request tells more than an old end");
    index.remove(asked.id, 5);
    index.remove(g.id, 5);
    assert!(index.is_empty() && index.by_workload.iter().all(|leaf| leaf.entries().is_empty()));
}

#[test]
fn what_has_ended_is_over_even_when_the_clock_is_behind() {
    for (from, ended, now, at) in [(10, 12, 15, 12), (10, 12, 11, 11), (14, 12, 15, 12), (14, 12, 11, 11)] {
        let mut index = GrantIndex::new(1);
        let mut dropped = grant(1, "w", "payments/refunds", None, from, 20);
        dropped.state = GrantState::Ended;
        let at_end = Timestamp::from_secs(ended);
        dropped.ended = Some(crate::object::Ending { by: "w".to_owned(), at: at_end, reason: String::new() });
        put(&mut index, &dropped, 2);
        let found = find(&index, "w", REFUNDS, "write", "/refunds/7", now);
        assert_eq!((found.active.len(), found.standing), (0, over(at, false, dropped.id)), "at {now}");
    }
}

#[test]
fn revocations_end_a_grant_that_is_still_listed() {
    let mut index = GrantIndex::new(1);
    let g = grant(1, "w", "payments/refunds", None, 10, 20);
    put(&mut index, &g, 2);
    let path = CanonicalPath::parse("/refunds/7").unwrap();
    let now = Timestamp::from_secs(15);
    let request = &Circumstances::new(("POST", "/"), &[], None, None);
    let (resource, action, environment) = (REFUNDS, "write", "production");
    let sought = Sought { resource, action, path: Some(&path), environment, request, now };
    let found = index.find(&WorkloadKey::of("spiffe://a/w"), &sought, Apart::Nothing, |id| id == g.id);
    assert_eq!((found.active.len(), found.standing), (0, over(15, true, g.id)));
}

#[test]
fn a_grant_whose_last_use_is_spent_covers_what_spent_it_within_its_end_and_its_conditions() {
    let mut index = GrantIndex::new(1);
    let mut spent = grant(1, "w", "payments/refunds", None, 10, 20);
    spent.uses = Some(1);
    spent.conditions.source_networks = vec!["10.0.0.0/8".to_owned()];
    spent.state = GrantState::Exhausted;
    let at = Timestamp::from_secs(12);
    spent.ended = Some(crate::object::Ending { by: "w".to_owned(), at, reason: String::new() });
    put(&mut index, &spent, 2);
    assert!(!index.is_counted(spent.id), "nothing more is spent of it");
    let path = CanonicalPath::parse("/refunds/7").unwrap();
    let find = |by, address: &str, now, is_revoked| {
        let request = &Circumstances::new(("POST", "/"), &[], address.parse().ok(), None).once_let_through(by);
        let (resource, action, environment, now) = (REFUNDS, "write", "production", Timestamp::from_secs(now));
        let sought = Sought { resource, action, path: Some(&path), environment, request, now };
        let key = WorkloadKey::of("spiffe://a/w");
        let found = index.find(&key, &sought, Apart::Id, |_| is_revoked);
        let one = index.find_one(spent.id, &key, &sought, |_| is_revoked);
        assert_eq!(found.counted, one.counted);
        assert!(found.active.is_empty());
        found.counted.first().map(|active| (active.id, active.not_after)).ok_or(found.standing)
    };
    let (its_own, other) = (Some(spent.id), Some(GrantId(Uuid::from_u128(7))));
    let ended = |at, by| Err(Standing::Over(Ended { at: Timestamp::from_secs(at), by, id: spent.id }));
    assert_eq!(find(its_own, "10.0.0.1", 15, false), Ok((spent.id, Timestamp::from_secs(20))));
    assert_eq!(find(its_own, "10.0.0.1", 20, false), ended(20, End::Expired));
    assert_eq!(find(its_own, "192.0.2.1", 15, false), Err(Standing::Unmet(Unmet::Condition, spent.id)));
    assert_eq!(find(its_own, "10.0.0.1", 15, true), ended(12, End::Revoked));
    for by in [None, other] {
        assert_eq!(find(by, "10.0.0.1", 15, false), ended(12, End::Exhausted));
    }
}

#[test]
fn of_two_that_are_over_the_later_end_is_told() {
    let mut index = GrantIndex::new(1);
    let mut revoked = grant(1, "w", "payments/refunds", None, 10, 20);
    revoked.state = GrantState::Revoked;
    let at = Timestamp::from_secs(12);
    revoked.ended = Some(crate::object::Ending { by: "bob".to_owned(), at, reason: String::new() });
    put(&mut index, &revoked, 2);
    let expired = grant(2, "w", "payments/refunds", None, 14, 18);
    put(&mut index, &expired, 3);
    assert_eq!(find(&index, "w", REFUNDS, "write", "/refunds/7", 19).standing, over(18, false, expired.id));
}

fn over(at: u64, revoked: bool, id: GrantId) -> Standing {
    let by = if revoked { End::Revoked } else { End::Expired };
    Standing::Over(Ended { at: Timestamp::from_secs(at), by, id })
}

const PATHS: [Option<&str>; 5] = [None, Some("/refunds/{*}"), Some("/refunds/7"), Some("/refunds/8"), Some("/{**}")];

#[test]
fn a_snapshot_in_place_of_another_shares_the_leaves_that_came_out_the_same() {
    let paths = [None, Some("/refunds/{*}"), Some("/a/b")];
    let of = |n: u128, to| grant(n, &format!("w{}", n % 50), "payments/refunds", paths[n as usize % 3], 10, to);
    let mut all: Vec<Grant> = (1..500).map(|n| of(n, 20)).collect();
    let mut old = GrantIndex::new(1);
    all.iter().rev().for_each(|g| put(&mut old, g, 1));
    for by_leaf in [true, false] {
        if by_leaf {
            all.sort_by_cached_key(|grant| super::super::compact::place(&CompactGrant::encode(grant)));
        } else {
            all.sort_by_key(|g| g.id);
        }
        let mut same = GrantIndex::filling_in_place_of(&old, 2);
        all.iter().for_each(|g| put(&mut same, g, 2));
        same.settle();
        assert_eq!((same.len(), same.canonical()), (old.len(), old.canonical()));
        assert_eq!(same.by_workload.differing_leaves(&old.by_workload), 0, "by leaf: {by_leaf}");
        assert_eq!(same.by_id.differing_leaves(&old.by_id), 0);
        // One ends later, and one is there no more.
        let mut other = GrantIndex::filling_in_place_of(&old, 2);
        let changed = of(7, 30);
        let left = all.iter().filter(|g| g.id != of(8, 20).id);
        left.for_each(|g| put(&mut other, if g.id == changed.id { &changed } else { g }, 2));
        other.settle();
        assert_eq!(other.len(), old.len() - 1);
        assert_eq!(other.by_workload.differing_leaves(&old.by_workload), 2);
        let key = |name: &str| WorkloadKey::of(&format!("spiffe://a/{name}"));
        assert_eq!(["w7", "w8", "w9"].map(|w| other.version(&key(w))), [2, 2, 1]);
        assert_eq!(find(&other, "w7", REFUNDS, "write", "/refunds/7", 25).active.len(), 1);
        assert_eq!(find(&old, "w7", REFUNDS, "write", "/refunds/7", 25).active.len(), 0);
    }
}

proptest! {
    /// After any sequence of puts and removals, the index answers as a plain list does, and equals an index that was
    /// built from that list alone.
    #[test]
    fn equals_a_plain_list(
        steps in prop::collection::vec((0..12u128, 0..2usize, 0..2usize, 0..5usize, 0..30u64, 1..30u64, any::<bool>()), 1..60),
        now in 0..60u64,
    ) {
        let workloads = ["w", "v"];
        let resources = ["payments/refunds", "payments"];
        let mut index = GrantIndex::new(1);
        let mut list: BTreeMap<GrantId, Grant> = BTreeMap::new();
        for (n, w, r, p, from, lasts, remove) in steps {
            let g = grant(n, workloads[w], resources[r], PATHS[p], from, from + lasts);
            if remove {
                index.remove(g.id, 2);
                list.remove(&g.id);
            } else {
                put(&mut index, &g, 2);
                list.insert(g.id, g);
            }
        }
        let mut rebuilt = GrantIndex::filling(1);
        for g in list.values() {
            // A snapshot that has a grant twice means the later one.
            let mut earlier = g.clone();
            earlier.path = Some("/refunds/9".to_owned());
            put(&mut rebuilt, &earlier, 1);
            put(&mut rebuilt, g, 1);
        }
        rebuilt.settle();
        prop_assert_eq!(index.canonical(), rebuilt.canonical());
        prop_assert_eq!(index.len(), list.len());
        for workload in workloads {
            for at in ["/refunds/7", "/refunds/8", "/refunds/7/x"] {
                let path = CanonicalPath::parse(at).unwrap();
                let mut expected: Vec<GrantId> = list
                    .values()
                    .filter(|g| g.workload.path() == format!("/{workload}"))
                    .filter(|g| g.not_before.unwrap() <= Timestamp::from_secs(now))
                    .filter(|g| Timestamp::from_secs(now) < g.not_after.unwrap())
                    .filter(|g| g.path.as_ref().is_none_or(|t| Template::parse(t).unwrap().matches(&path)))
                    .map(|g| g.id)
                    .collect();
                let found = find(&index, workload, REFUNDS, "write", at, now);
                prop_assert_eq!(&found, &find(&rebuilt, workload, REFUNDS, "write", at, now));
                let mut actual: Vec<GrantId> = found.active.iter().map(|a| a.id).collect();
                actual.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(actual, expected);
            }
        }
    }
}
