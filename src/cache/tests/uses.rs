//! The use limit in the gate: spent last, by whoever forwards, and only where nothing else allows.
//!
//! Shared plane, like the module. What the control plane would give is given by hand.

use super::*;
use crate::authz::Door;
use crate::grant::ledger::UseAnswer;
use crate::object::GrantId;
use crate::testing::{KeyHolder, changed};

const LEASE: Duration = Duration::from_secs(5);

impl Sidecar {
    /// A grant on refunds for the agent with so many uses.
    fn counted(&mut self, uses: u32) -> GrantId {
        let asked = self.estate.ask("agent", "payments/refunds", &["write"], None, 3600);
        let (grant, change) = self.estate.grant_as(asked, |grant| grant.uses = Some(uses));
        self.delta([change]);
        grant.id
    }

    /// What a door gets: the reason, the grant, and whether it came from the cache.
    fn at_the_door(&self, workload: usize) -> (Reason, Option<GrantId>, bool) {
        let headers = [("authorization", format!("Bearer {}", self.tokens[workload].0))];
        let refund = Request { door: Door::ExtAuthz, ..request("POST", "/refunds/7", &headers) };
        let decision = self.gate.check(&refund);
        assert_eq!(decision.awaits.is_some(), decision.reason == Reason::SystemUses);
        (decision.reason, decision.grant, decision.cached)
    }

    /// Answers what the purse asks with so many in all.
    fn give(&self, granted: u32) {
        let purse = self.state.purse();
        let now = self.estate.clock.now().mono;
        for message in purse.messages(now, usize::MAX) {
            let place = (message.grant, message.report.account);
            purse.answered(place, message.number, UseAnswer::Given(granted), LEASE, now);
        }
    }

    fn spent(&self) -> u64 {
        self.state.purse().counts().spent
    }
}

#[test]
fn each_request_spends_one_and_none_comes_from_the_cache() {
    let mut sidecar = Sidecar::new();
    let id = sidecar.counted(5);
    assert_eq!(sidecar.at_the_door(1), (Reason::SystemUses, Some(id), false));
    sidecar.give(2);
    for _ in 0..2 {
        assert_eq!(sidecar.at_the_door(1), (Reason::AllowGrant, Some(id), false));
    }
    assert_eq!(sidecar.at_the_door(1), (Reason::SystemUses, Some(id), false));
    assert_eq!(sidecar.spent(), 2);
    assert_eq!(sidecar.at_the_door(2).0, Reason::EntitlementNoGrant, "another workload's");
}

#[test]
fn what_only_looks_or_is_denied_spends_nothing() {
    let mut sidecar = Sidecar::new();
    let id = sidecar.counted(5);
    sidecar.at_the_door(1);
    sidecar.give(1);
    let headers = [("authorization", format!("Bearer {}", sidecar.tokens[1].0))];
    let refund = request("POST", "/refunds/7", &headers);
    for _ in 0..3 {
        assert_eq!(sidecar.gate.check(&refund).reason, Reason::AllowGrant);
        assert_eq!(sidecar.gate.explain(&refund).0.reason, Reason::AllowGrant);
    }
    let change = sidecar.estate.put_policies(&policies(1));
    sidecar.delta([change]);
    assert_eq!(sidecar.at_the_door(1), (Reason::PolicyExplicitDeny, Some(id), false));
    assert_eq!(sidecar.spent(), 0);
    let change = sidecar.estate.put_policies(POLICIES);
    sidecar.delta([change]);
    assert_eq!(sidecar.at_the_door(1).0, Reason::AllowGrant);
    assert_eq!(sidecar.spent(), 1);
}

#[test]
fn a_grant_without_a_limit_goes_first_and_one_that_is_revoked_not_at_all() {
    let mut sidecar = Sidecar::new();
    let counted = sidecar.counted(5);
    sidecar.at_the_door(1);
    sidecar.give(1);
    let (unlimited, change) = sidecar.estate.grant("agent", "payments/refunds", &["write"], None, 60);
    sidecar.delta([change]);
    assert_eq!(sidecar.at_the_door(1), (Reason::AllowGrant, Some(unlimited.id), false));
    assert_eq!(sidecar.at_the_door(1), (Reason::AllowGrant, Some(unlimited.id), true));
    let change = sidecar.estate.revoke_grant(unlimited.id);
    sidecar.delta([change]);
    assert_eq!(sidecar.spent(), 0);
    // Of two that are counted, the one that has some.
    let another = sidecar.counted(5);
    assert_eq!(sidecar.at_the_door(1), (Reason::AllowGrant, Some(counted), false));
    let change = sidecar.estate.revoke_grant(counted);
    sidecar.delta([change]);
    assert_eq!(sidecar.at_the_door(1), (Reason::SystemUses, Some(another), false));
    let change = sidecar.estate.revoke_grant(another);
    sidecar.delta([change]);
    assert_eq!(sidecar.at_the_door(1).0, Reason::RevokedGrant);
}

/// Who acts for somebody needs both's rights, and both's uses.
#[test]
fn a_request_for_another_takes_a_use_of_both_or_of_none() {
    let mut sidecar = Sidecar::new();
    let change = sidecar.estate.put(
        Kind::Issuer,
        &json!({"name": "test", "kind": "spiffe", "trust_domain": "test.example",
                "audiences": [crate::testing::AUDIENCE], "max_delegation_depth": 1,
                "jwks": {"keys": [sidecar.estate.signer.public_jwk()]}}),
    );
    sidecar.delta([change]);
    let mut claims = sidecar.estate.claims("agent");
    claims["act"] = json!({"sub": Estate::id("ci")});
    sidecar.tokens[0].0 = sidecar.estate.signer.sign(&claims).unwrap();
    let subject = sidecar.counted(5);
    let asked = sidecar.estate.ask("ci", "payments/refunds", &["write"], None, 3600);
    let (grant, change) = sidecar.estate.grant_as(asked, |grant| grant.uses = Some(5));
    sidecar.delta([change]);

    assert_eq!(sidecar.at_the_door(0), (Reason::SystemUses, Some(subject), false));
    sidecar.give(1);
    assert_eq!(sidecar.at_the_door(0), (Reason::SystemUses, Some(grant.id), false));
    assert_eq!(sidecar.spent(), 0, "the subject's is not spent in vain");
    sidecar.give(1);
    assert_eq!(sidecar.at_the_door(0).0, Reason::AllowGrant);
    assert_eq!(sidecar.spent(), 2);
}

/// The proof of possession was verified by the decision that found no use. Deciding again takes no such operation, and no
/// record of a missing use leaves open which grant it was, and why.
#[test]
fn deciding_again_verifies_no_proof_and_each_time_says_why_there_is_no_use() {
    let mut sidecar = Sidecar::new();
    let id = sidecar.counted(5);
    // The proofs that were used before the start are not known.
    sidecar.estate.clock.advance(Duration::from_secs(100));
    let change = sidecar.estate.put_policies(POLICIES);
    sidecar.delta([change]);
    let key = KeyHolder::new();
    let claims = changed(sidecar.estate.claims("agent"), &json!({"cnf": {"jkt": key.thumbprint()}}));
    let token = sidecar.estate.signer.sign(&claims).unwrap();
    let now = sidecar.estate.clock.now().wall;
    let proof = key.dpop(&KeyHolder::dpop_claims("POST", "https://shop.example/refunds/7", &token, now));
    let headers = [("authorization", format!("DPoP {token}")), ("dpop", proof)];
    let refund = Request { door: Door::ExtAuthz, ..request("POST", "/refunds/7", &headers) };
    let lacks = |decision: Decision, because: &str| {
        assert_eq!((decision.reason, decision.grant, decision.awaits), (Reason::SystemUses, Some(id), Some(id)));
        let detail = decision.detail.unwrap();
        assert!(detail.contains(&id.to_string()) && detail.contains(because), "{detail}");
    };
    lacks(sidecar.gate.check(&refund), "has not answered");
    sidecar.give(0);
    lacks(sidecar.gate.check_again(&refund).unwrap(), "others hold what is left");
    sidecar.estate.clock.advance(Duration::from_millis(60));
    sidecar.give(1);
    assert_eq!(sidecar.gate.check_again(&refund).unwrap().reason, Reason::AllowGrant);
    // Only who has decided before may decide again: to everybody else the proof has been used.
    assert_eq!(sidecar.gate.check(&refund).reason, Reason::CredentialReplay);
}
