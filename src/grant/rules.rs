//! The rules of a grant's life: who may take which step, and what follows.
//!
//! Pure. Each rule takes a grant and returns the next version of it, or says why not. INVARIANT: the request part
//! never changes, votes carry its digest, the requester never votes, `not_after` is fixed at activation, and a
//! terminal state is final.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::credential::SpiffeId;
use crate::object::{
    Ending, ExactCall, FieldError, Grant, GrantConditions, GrantId, GrantState, Object, ResourceName, Vote, VoteKind,
};

/// What a requester asks for: the body of `POST /v1/grant-requests`, and the `grant_request` of a denial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGrantRequest {
    /// For whom.
    pub workload: SpiffeId,
    /// What for: services or routes.
    pub resources: Vec<ResourceName>,
    /// Which actions.
    pub actions: Vec<String>,
    /// Narrows the resources to paths that match this URI template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What must hold of a request.
    #[serde(default, skip_serializing_if = "GrantConditions::is_empty")]
    pub conditions: GrantConditions,
    /// Narrows it to one call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<ExactCall>,
    /// How many requests it is to allow; without it, any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// How long, in seconds from activation.
    pub duration_seconds: u64,
    /// When it is to start; without it, on approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts_at: Option<Timestamp>,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// The ticket that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// The grant that it is to follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renews: Option<GrantId>,
    /// Whether this is break-glass: an emergency, by a person, reviewed afterwards.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub break_glass: bool,
    /// Where a denial says to submit it. Ignored: a denial's request can be submitted as it stands.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub submit_to: Option<String>,
}

/// Why a step is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The grant is not in a state that allows it.
    #[error("the grant is `{}`: this needs `{needs}`", state.name())]
    State {
        /// Where it is.
        state: GrantState,
        /// Where it would have to be.
        needs: &'static str,
    },
    /// The requester's own vote.
    #[error("`{0}` asked for this grant and cannot vote on it")]
    OwnRequest(String),
    /// A second vote of the same approver.
    #[error("`{0}` has voted already")]
    VotedAlready(String),
    /// The vote is for another request.
    #[error("the vote carries the digest `{given}`, the request has `{expected}`")]
    Digest {
        /// What the vote carries.
        given: String,
        /// What it must carry.
        expected: String,
    },
    /// Only the requester may take a request back.
    #[error("only the requester, `{0}`, can withdraw this request")]
    NotRequester(String),
}

// === impl NewGrantRequest ===

impl NewGrantRequest {
    /// Asks for actions on resources, without a reason and without limits.
    pub fn new(workload: SpiffeId, resources: Vec<ResourceName>, actions: Vec<String>, duration_seconds: u64) -> Self {
        Self {
            workload,
            resources,
            actions,
            path: None,
            conditions: GrantConditions::default(),
            call: None,
            uses: None,
            duration_seconds,
            starts_at: None,
            reason: String::new(),
            ticket: None,
            renews: None,
            break_glass: false,
            submit_to: None,
        }
    }
}

/// Makes a pending request. `requester` is an authenticated operator or workload.
pub fn new_request(new: NewGrantRequest, requester: &str, now: Timestamp) -> Result<Grant, FieldError> {
    let mut grant = Grant {
        id: GrantId(Uuid::new_v4()),
        workload: new.workload,
        resources: new.resources,
        actions: new.actions,
        path: new.path,
        conditions: new.conditions,
        call: new.call,
        uses: new.uses,
        starts_at: new.starts_at,
        reason: new.reason,
        ticket: new.ticket,
        renews: new.renews,
        break_glass: new.break_glass,
        requested_by: requester.to_owned(),
        requested_at: now,
        duration_seconds: new.duration_seconds,
        digest: String::new(),
        state: GrantState::Pending,
        votes: Vec::new(),
        not_before: None,
        not_after: None,
        ended: None,
    };
    grant.digest = grant.request_digest();
    let object = Object::Grant(Box::new(grant));
    object.check()?;
    match object {
        Object::Grant(grant) => Ok(*grant),
        _ => Err(FieldError::new("", "not a grant")),
    }
}

/// Records a vote. One approval activates the grant, any denial ends it.
pub fn vote(grant: &Grant, approver: &str, vote: VoteKind, digest: &str, now: Timestamp) -> Result<Grant, RuleError> {
    need(grant, grant.state == GrantState::Pending, "pending")?;
    if approver == grant.requested_by {
        return Err(RuleError::OwnRequest(approver.to_owned()));
    }
    if grant.votes.iter().any(|v| v.approver == approver) {
        return Err(RuleError::VotedAlready(approver.to_owned()));
    }
    let expected = grant.request_digest();
    if digest != expected {
        return Err(RuleError::Digest { given: digest.to_owned(), expected });
    }
    let mut next = grant.clone();
    next.votes.push(Vote { approver: approver.to_owned(), vote, digest: digest.to_owned(), at: now });
    match vote {
        VoteKind::Approve => {
            next.state = GrantState::Active;
            next.not_before = Some(now);
            next.not_after = Some(now.saturating_add(grant.duration()));
        }
        VoteKind::Deny => end(&mut next, GrantState::Denied, approver, "", now),
    }
    Ok(next)
}

/// Takes a pending request back.
pub fn withdraw(grant: &Grant, by: &str, now: Timestamp) -> Result<Grant, RuleError> {
    need(grant, grant.state == GrantState::Pending, "pending")?;
    if by != grant.requested_by {
        return Err(RuleError::NotRequester(grant.requested_by.clone()));
    }
    let mut next = grant.clone();
    end(&mut next, GrantState::Withdrawn, by, "", now);
    Ok(next)
}

/// Ends a grant, or a request that could still become one.
pub fn revoke(grant: &Grant, by: &str, reason: &str, now: Timestamp) -> Result<Grant, RuleError> {
    need(grant, !grant.state.is_terminal(), "pending, scheduled or active")?;
    let mut next = grant.clone();
    end(&mut next, GrantState::Revoked, by, reason, now);
    Ok(next)
}

/// What the passing of time does to a grant; `None` when nothing.
pub fn expire(grant: &Grant, pending_for: Duration, now: Timestamp) -> Option<Grant> {
    let state = match grant.state {
        GrantState::Pending if now.since(grant.requested_at) >= pending_for => GrantState::ExpiredUnapproved,
        GrantState::Active if grant.not_after.is_none_or(|end| now >= end) => GrantState::Ended,
        _ => return None,
    };
    let mut next = grant.clone();
    end(&mut next, state, "system", "", now);
    Some(next)
}

fn need(grant: &Grant, holds: bool, needs: &'static str) -> Result<(), RuleError> {
    if holds { Ok(()) } else { Err(RuleError::State { state: grant.state, needs }) }
}

fn end(grant: &mut Grant, state: GrantState, by: &str, reason: &str, now: Timestamp) {
    grant.state = state;
    grant.ended = Some(Ending { by: by.to_owned(), at: now, reason: reason.to_owned() });
}

#[cfg(test)]
mod tests {
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
}
