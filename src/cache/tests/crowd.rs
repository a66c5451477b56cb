//! Many grants that cover one request, and policies that can tell them apart: none is crowded out.
//!
//! Shared plane, like the module. The model is the obvious one: a request is allowed if any one grant, by itself, is what
//! the policy asks for. INVARIANT 12 follows from it: with one grant less, no request is allowed that was not before.

use proptest::prelude::*;

use super::*;

/// What a policy asks of a grant.
#[derive(Debug, Clone, Copy)]
enum Asks {
    Duration(u64),
    Action,
    /// The id of the grant with this number.
    Id(usize),
    Any,
}

impl Asks {
    fn policy(self, grants: &[crate::object::Grant]) -> String {
        let condition = match self {
            Self::Duration(secs) => format!("&& context.grant.duration_seconds == {secs}"),
            Self::Action => "&& context.grant.actions.contains(\"read\")".to_owned(),
            Self::Id(n) => format!("&& context.grant.id == \"{}\"", grants[n % grants.len()].id),
            Self::Any => String::new(),
        };
        format!("@id(\"a\") permit(principal, action, resource) when {{ context has grant {condition} }};")
    }

    fn is_met(self, grants: &[crate::object::Grant], grant: &crate::object::Grant) -> bool {
        match self {
            Self::Duration(secs) => grant.duration_seconds == secs,
            Self::Action => grant.actions.iter().any(|a| a == "read"),
            Self::Id(n) => grants[n % grants.len()].id == grant.id,
            Self::Any => true,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn invariant_12_no_grant_is_crowded_out_by_others(
        made in prop::collection::vec((60..90u64, any::<bool>(), 0..2usize, 0..3usize), 1..40),
        asks in prop_oneof![
            (60..90u64).prop_map(Asks::Duration), Just(Asks::Action), (0..40usize).prop_map(Asks::Id), Just(Asks::Any)
        ],
        order in any::<u64>(),
    ) {
        let mut sidecar = Sidecar::new();
        let mut grants = Vec::new();
        for (secs, reads, resource, path) in made {
            let actions: &[&str] = if reads { &["read", "write"] } else { &["write"] };
            let resource = ["payments/refunds", "payments"][resource];
            let path = [None, Some("/refunds/{*}"), Some("/refunds/7")][path];
            let (grant, change) = sidecar.estate.grant("agent", resource, actions, path, secs);
            grants.push(grant);
            sidecar.delta([change]);
        }
        let change = sidecar.estate.put_policies(&asks.policy(&grants));
        sidecar.delta([change]);
        let token = sidecar.mint(1, 300).0;
        let headers = [("authorization", format!("Bearer {token}"))];
        let refund = request("POST", "/refunds/7", &headers);

        let mut left = grants.clone();
        let mut at = order;
        loop {
            let expected = left.iter().any(|g| asks.is_met(&grants, g));
            let decision = sidecar.gate.check(&refund);
            prop_assert_eq!(decision.permit().is_some(), expected, "{:?}, {} left: {}", asks, left.len(), decision.reason);
            if left.is_empty() {
                break;
            }
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let gone = left.swap_remove((at >> 33) as usize % left.len());
            let change = sidecar.estate.delete(Kind::Grant, &gone.id.to_string());
            sidecar.delta([change]);
        }
    }
}
