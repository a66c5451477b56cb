//! Which grant a token is issued on.
//!
//! Plane: control; pure. Only a grant that is in force gives a token, and only for what it gives; a standing policy gives
//! none. Of several the one that lasts longest is taken. When there is none, the most telling lack is named.

use crate::authz::Reason;
use crate::clock::Timestamp;
use crate::object::{Grant, GrantId, GrantState};

/// What a grant is looked for by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) service: &'a str,
    /// Empty: whatever it gives.
    pub(super) scope: &'a [String],
    /// Only this one.
    pub(super) id: Option<GrantId>,
    /// Where the workload runs.
    pub(super) environment: &'a str,
    pub(super) now: Timestamp,
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lack {
    pub(super) reason: Reason,
    pub(super) grant: Option<GrantId>,
}

/// The grant of a workload, all of whose grants and requests `grants` are.
pub(super) fn choose<'a>(grants: impl IntoIterator<Item = &'a Grant>, wanted: Wanted<'_>) -> Result<&'a Grant, Lack> {
    let mut best: Option<&Grant> = None;
    let mut lack = Lack { reason: Reason::EntitlementNoGrant, grant: None };
    for grant in grants.into_iter().filter(|grant| wanted.id.is_none_or(|id| id == grant.id)) {
        match wanted.judge(grant) {
            None => {
                if best.is_none_or(|best| (best.not_after, best.id) < (grant.not_after, grant.id)) {
                    best = Some(grant);
                }
            }
            Some(reason) if rank(reason) > rank(lack.reason) => lack = Lack { reason, grant: Some(grant.id) },
            Some(_) => {}
        }
    }
    best.ok_or(lack)
}

impl Lack {
    /// The one of two that tells more.
    pub(super) fn more_telling(self, other: Self) -> Self {
        if rank(other.reason) > rank(self.reason) { other } else { self }
    }
}

impl Wanted<'_> {
    /// Why a grant does not give what is wanted, if so.
    fn judge(&self, grant: &Grant) -> Option<Reason> {
        if !grant.resources.iter().any(|resource| resource.service == self.service) {
            return Some(Reason::EntitlementNoGrant);
        }
        let in_scope = self.scope.iter().all(|action| grant.actions.contains(action));
        let is_over = |end: Timestamp| self.now >= end;
        match grant.state {
            _ if !in_scope && grant.state != GrantState::Active => Some(Reason::EntitlementNoGrant),
            GrantState::Pending => Some(Reason::EntitlementGrantPending),
            GrantState::Revoked => Some(Reason::RevokedGrant),
            GrantState::Exhausted => Some(Reason::EntitlementGrantExhausted),
            GrantState::Ended => Some(Reason::EntitlementGrantExpired),
            GrantState::Scheduled => Some(Reason::EntitlementGrantNotYetValid),
            GrantState::Denied | GrantState::Withdrawn | GrantState::ExpiredUnapproved => {
                Some(Reason::EntitlementNoGrant)
            }
            GrantState::Active if grant.not_after.is_none_or(is_over) => Some(Reason::EntitlementGrantExpired),
            GrantState::Active if grant.not_before.is_none_or(|start| self.now < start) => {
                Some(Reason::EntitlementGrantNotYetValid)
            }
            GrantState::Active if !in_scope => Some(Reason::EntitlementScope),
            GrantState::Active => {
                let environments = &grant.conditions.environments;
                let elsewhere = !environments.is_empty() && !environments.iter().any(|e| e == self.environment);
                elsewhere.then_some(Reason::EntitlementEnvironment)
            }
        }
    }
}

/// The more telling, the higher: what comes soon tells more than what was.
const fn rank(reason: Reason) -> u8 {
    match reason {
        Reason::EntitlementScope => 1,
        Reason::EntitlementGrantExpired | Reason::EntitlementGrantExhausted | Reason::RevokedGrant => 2,
        Reason::EntitlementEnvironment => 3,
        Reason::EntitlementGrantPending => 4,
        Reason::EntitlementGrantNotYetValid => 5,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::{self, NewGrantRequest};
    use crate::object::{GrantConditions, VoteKind};

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    fn grant(resource: &str, actions: &[&str], secs: u64, state: &str) -> Grant {
        let actions = actions.iter().map(|a| (*a).to_owned()).collect();
        let workload = "spiffe://a.example/w".parse().unwrap();
        let mut new = NewGrantRequest::new(workload, vec![resource.parse().unwrap()], actions, secs);
        if state == "staging" {
            new.conditions = GrantConditions { environments: vec!["staging".to_owned()], ..GrantConditions::default() };
        }
        if state == "scheduled" {
            new.starts_at = Some(NOW.saturating_add(std::time::Duration::from_secs(60)));
        }
        let asked = grant::new_request(new, "alice", NOW).unwrap();
        if state == "pending" {
            return asked;
        }
        let active = grant::vote(&asked, "bob", VoteKind::Approve, &asked.digest, NOW).unwrap();
        match state {
            "revoked" => grant::revoke(&active, "bob", "", NOW).unwrap(),
            _ => active,
        }
    }

    fn wanted<'a>(scope: &'a [String], after: u64) -> Wanted<'a> {
        let now = NOW.saturating_add(std::time::Duration::from_secs(after));
        Wanted { service: "payments", scope, id: None, environment: "production", now }
    }

    #[test]
    fn the_longest_that_covers_is_taken() {
        let grants = [
            grant("payments/refunds", &["write"], 60, "active"),
            grant("payments", &["read", "write"], 120, "active"),
            grant("catalog", &["write"], 900, "active"),
            grant("payments", &["write"], 900, "pending"),
            grant("payments", &["read"], 900, "active"),
        ];
        let write = ["write".to_owned()];
        assert_eq!(choose(&grants, wanted(&write, 0)).unwrap().id, grants[1].id);
        assert_eq!(choose(&grants, wanted(&[], 0)).unwrap().id, grants[4].id, "whatever it gives");
        let only = Wanted { id: Some(grants[0].id), ..wanted(&write, 0) };
        assert_eq!(choose(&grants, only).unwrap().id, grants[0].id);
        let over = choose(&grants[..2], wanted(&write, 121)).unwrap_err();
        assert_eq!(over.reason, Reason::EntitlementGrantExpired);
    }

    #[test]
    fn what_is_missing_is_named() {
        let write = ["write".to_owned()];
        for (given, reason) in [
            (vec![], Reason::EntitlementNoGrant),
            (vec![grant("catalog", &["write"], 60, "active")], Reason::EntitlementNoGrant),
            (vec![grant("payments", &["read"], 60, "active")], Reason::EntitlementScope),
            (vec![grant("payments", &["read"], 60, "pending")], Reason::EntitlementNoGrant),
            (vec![grant("payments", &["write"], 60, "pending")], Reason::EntitlementGrantPending),
            (vec![grant("payments", &["write"], 60, "revoked")], Reason::RevokedGrant),
            (vec![grant("payments", &["write"], 60, "scheduled")], Reason::EntitlementGrantNotYetValid),
            (vec![grant("payments", &["write"], 60, "staging")], Reason::EntitlementEnvironment),
            (
                vec![grant("payments", &["write"], 60, "revoked"), grant("payments", &["write"], 60, "pending")],
                Reason::EntitlementGrantPending,
            ),
        ] {
            assert_eq!(choose(&given, wanted(&write, 0)).unwrap_err().reason, reason, "{given:?}");
        }
    }
}
