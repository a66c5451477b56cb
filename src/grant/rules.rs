//! The rules of a grant's life: who may take which step, and what follows.
//!
//! Pure. Each rule takes a grant and returns the next version of it, or says why not. INVARIANT: the request part
//! never changes, votes carry its digest, the requester never votes, `not_after` is fixed at activation, and a
//! terminal state is final. What a request needs is fixed when it is made; a change of policy can only ask for more.
//! Whether a request and its voters are still eligible is for the caller to ask, who knows the others' state.
//! Long because each step of a life is a few lines, and the invariants show only where all of them stand together.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::credential::SpiffeId;
use crate::object::{
    ApprovalStep, Ending, ExactCall, FieldError, Grant, GrantConditions, GrantId, GrantState, Needs, Object, Party,
    PartyKind, ResourceName, Vote, VoteKind, Workload,
};

/// How far ahead a grant may be scheduled.
pub const MAX_AHEAD: Duration = Duration::from_secs(30 * 86_400);
/// The longest break-glass grant, whatever policy says, in seconds.
pub const MAX_BREAK_GLASS_SECONDS: u64 = 3600;

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
    /// Whether an active grant that gives all of this for as long is an answer. It is, unless this says otherwise.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub reuse: bool,
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
    /// The vote of the owner of the workload.
    #[error("`{0}` owns the workload that this is for and cannot approve it")]
    Owner(String),
    /// The vote of somebody on whose behalf the workload acts.
    #[error("`{0}` is, or answers for, a delegator of the workload that this is for and cannot approve it")]
    Delegator(String),
    /// A workload's vote.
    #[error("`{0}` is a workload: only operators approve")]
    NotAnOperator(String),
    /// Approvals are missing.
    #[error("approvals are missing: {}", missing.iter().map(|s| format!("{} in step `{}`", s.approvals, s.name)).collect::<Vec<_>>().join(", "))]
    Unapproved {
        /// In which steps, and how many.
        missing: Vec<ApprovalStep>,
    },
    /// Its start has not come.
    #[error("the grant starts at {0}")]
    NotYet(Timestamp),
    /// Nobody approved it while it could be.
    #[error("the request has expired: it waited for its approval until {0}")]
    Lapsed(Timestamp),
    /// Its time passed before it was in force.
    #[error("its time was over, at {0}, before it could be activated")]
    TooLate(Timestamp),
}

/// An approver's word, with who that is.
#[derive(Debug, Clone)]
pub struct Ballot<'a> {
    /// Who.
    pub approver: &'a str,
    /// What they are.
    pub party: Party,
    /// For or against.
    pub vote: VoteKind,
    /// The digest of the request that they mean.
    pub digest: &'a str,
    /// The step that an approval is to count for.
    pub step: Option<&'a str>,
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_yes(value: &bool) -> bool {
    *value
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
            reuse: true,
            submit_to: None,
        }
    }
}

/// Makes a pending request of a person.
pub fn new_request(new: NewGrantRequest, requester: &str, now: Timestamp) -> Result<Grant, FieldError> {
    new_request_by(new, requester, Party::default(), now)
}

/// Makes a pending request. `requester` is an authenticated operator or workload.
pub fn new_request_by(
    new: NewGrantRequest,
    requester: &str,
    party: Party,
    now: Timestamp,
) -> Result<Grant, FieldError> {
    if let Some(start) = new.starts_at {
        if start < now {
            return Err(FieldError::new("starts_at", format!("`{start}` is in the past")));
        }
        if start > now.saturating_add(MAX_AHEAD) {
            return Err(FieldError::new("starts_at", format!("`{start}` is more than 30 days ahead")));
        }
    }
    if new.break_glass {
        check_break_glass(&new, &party)?;
    }
    needing(
        Grant {
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
            requester: party,
            requested_at: now,
            duration_seconds: new.duration_seconds,
            needs: None,
            digest: String::new(),
            state: GrantState::Pending,
            votes: Vec::new(),
            not_before: None,
            not_after: None,
            ended: None,
        },
        None,
    )
}

/// Fixes what approval a request needs, before anybody has seen it.
pub fn needing(mut grant: Grant, needs: Option<Needs>) -> Result<Grant, FieldError> {
    grant.needs = needs;
    grant.digest = grant.request_digest();
    let object = Object::Grant(Box::new(grant));
    object.check()?;
    match object {
        Object::Grant(grant) => Ok(*grant),
        _ => Err(FieldError::new("", "not a grant")),
    }
}

/// Break-glass is an emergency of a person, now and for a short time.
fn check_break_glass(new: &NewGrantRequest, party: &Party) -> Result<(), FieldError> {
    let error = |field: &str, message: &str| Err(FieldError::new(field, message));
    if party.kind != PartyKind::Person {
        return error("break_glass", "only a person asks for break-glass");
    }
    if new.reason.trim().is_empty() {
        return error("reason", "break-glass needs a reason");
    }
    if new.duration_seconds > MAX_BREAK_GLASS_SECONDS {
        return error("duration_seconds", "break-glass lasts at most 3600 seconds");
    }
    if new.uses.is_some() {
        return error(
            "uses",
            "break-glass has no use limit: an emergency does not wait for its uses to be counted out",
        );
    }
    if new.starts_at.is_some() {
        return error("starts_at", "break-glass is for now");
    }
    if new.renews.is_some() {
        return error("renews", "break-glass is not renewed");
    }
    Ok(())
}

/// Whether `new` may follow `old`: the same workload, and nothing that `old` did not give.
pub fn check_renewal(new: &Grant, old: &Grant) -> Result<(), FieldError> {
    let id = old.id;
    if old.workload != new.workload {
        return Err(FieldError::new("renews", format!("grant `{id}` is of another workload")));
    }
    if !matches!(old.state, GrantState::Active | GrantState::Ended | GrantState::Exhausted) || old.break_glass {
        let what = if old.break_glass { "break-glass" } else { old.state.name() };
        return Err(FieldError::new("renews", format!("grant `{id}` is `{what}` and cannot be renewed")));
    }
    let given = |resource: &ResourceName| {
        let whole = |r: &ResourceName| r.route.is_none() && r.service == resource.service;
        old.resources.iter().any(|r| r == resource || whole(r))
    };
    if let Some(i) = new.resources.iter().position(|r| !given(r)) {
        return Err(FieldError::new(format!("resources[{i}]"), format!("grant `{id}` is not for this resource")));
    }
    if let Some(i) = new.actions.iter().position(|a| !old.actions.contains(a)) {
        return Err(FieldError::new(format!("actions[{i}]"), format!("grant `{id}` is not for this action")));
    }
    if old.path.is_some() && new.path != old.path {
        return Err(FieldError::new("path", format!("grant `{id}` is for other paths")));
    }
    if old.uses.is_some_and(|most| new.uses.is_none_or(|n| n > most)) {
        return Err(FieldError::new("uses", format!("grant `{id}` was for fewer uses")));
    }
    let never_began = |over: &Ending| old.not_before.is_none_or(|start| over.at <= start);
    if old.ended.as_ref().is_some_and(never_began) {
        return Err(FieldError::new("renews", format!("grant `{id}` was never in force")));
    }
    if (!old.conditions.is_empty() && new.conditions != old.conditions) || (old.call.is_some() && new.call != old.call)
    {
        return Err(FieldError::new("conditions", format!("grant `{id}` holds under other conditions")));
    }
    Ok(())
}

/// Whether an active grant gives what is asked for, and for as long. One with a use limit never does: how much of it
/// is left is not known here.
pub fn serves(active: &Grant, asked: &Grant, now: Timestamp) -> bool {
    fn same<T: Ord + Clone>(a: &[T], b: &[T]) -> bool {
        let sorted = |list: &[T]| list.iter().cloned().collect::<std::collections::BTreeSet<T>>();
        sorted(a) == sorted(b)
    }
    let names = |grant: &Grant| grant.resources.iter().map(ToString::to_string).collect::<Vec<_>>();
    let ordinary = |grant: &Grant| !grant.break_glass && grant.uses.is_none();
    active.state == GrantState::Active
        && ordinary(active)
        && ordinary(asked)
        && asked.starts_at.is_none()
        && asked.renews.is_none()
        && active.workload == asked.workload
        && same(&names(active), &names(asked))
        && same(&active.actions, &asked.actions)
        && (&active.path, &active.conditions, &active.call) == (&asked.path, &asked.conditions, &asked.call)
        && active.not_after.is_some_and(|end| end >= now.saturating_add(asked.duration()))
}

/// Records a vote of a person. The approval that was missing activates the grant, any denial ends it.
pub fn vote(grant: &Grant, approver: &str, vote: VoteKind, digest: &str, now: Timestamp) -> Result<Grant, RuleError> {
    let next = cast(grant, Ballot { approver, party: Party::default(), vote, digest, step: None }, now)?;
    let fixed = Needs::stricter(next.needs.as_ref(), next.needs.as_ref());
    if next.state == GrantState::Pending && missing(&next, &fixed, |_| true).is_empty() {
        return activate(&next, &fixed, now);
    }
    Ok(next)
}

/// Records a vote. Any denial ends the request; whether approvals are enough is asked with [`missing`].
pub fn cast(grant: &Grant, ballot: Ballot<'_>, now: Timestamp) -> Result<Grant, RuleError> {
    let Ballot { approver, party, vote, digest, step } = ballot;
    need(grant, grant.state == GrantState::Pending, "pending")?;
    if party.kind == PartyKind::Workload {
        return Err(RuleError::NotAnOperator(approver.to_owned()));
    }
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
    let step = step.map(str::to_owned).filter(|_| vote == VoteKind::Approve);
    next.votes.push(Vote { approver: approver.to_owned(), party, vote, step, digest: digest.to_owned(), at: now });
    if vote == VoteKind::Deny {
        end(&mut next, GrantState::Denied, approver, "", now);
    }
    Ok(next)
}

/// Why this approver cannot approve for this workload, if so: its owner and its delegators, and whoever answers for
/// one of those, would be approving for themselves. `delegators` are the registered ones.
pub fn barred<'a>(
    approver: &str,
    party: &Party,
    workload: &Workload,
    delegators: impl IntoIterator<Item = &'a Workload>,
) -> Option<RuleError> {
    if owns(workload, approver, party) {
        return Some(RuleError::Owner(approver.to_owned()));
    }
    let named = workload.delegators.iter().any(|pattern| pattern.matches(approver));
    let answers = || delegators.into_iter().any(|delegator| owns(delegator, approver, party));
    (named || answers()).then(|| RuleError::Delegator(approver.to_owned()))
}

/// Whether they answer for a workload, by their name or as one of the group that does.
pub fn owns(workload: &Workload, name: &str, party: &Party) -> bool {
    workload.owner == name || party.groups.contains(&workload.owner)
}

/// The approvals that are missing, of `steps`, when only the votes count that `stands` holds for. Each approver counts
/// once, in one step.
pub fn missing(grant: &Grant, steps: &[ApprovalStep], stands: impl Fn(&Vote) -> bool) -> Vec<ApprovalStep> {
    let mut counted = std::collections::BTreeSet::new();
    let votes: Vec<&Vote> = grant
        .votes
        .iter()
        .filter(|v| v.vote == VoteKind::Approve && v.digest == grant.digest && stands(v))
        .filter(|v| v.approver != grant.requested_by && counted.insert(&v.approver))
        .collect();
    let given = |step: &ApprovalStep| {
        let names = |v: &Vote| v.step.as_deref().unwrap_or(ApprovalStep::DEFAULT) == step.name;
        u32::try_from(votes.iter().filter(|v| names(v)).count()).unwrap_or(u32::MAX)
    };
    let open = steps.iter().map(|s| ApprovalStep::new(&s.name, s.approvals.saturating_sub(given(s))));
    open.filter(|s| s.approvals > 0).collect()
}

/// Puts an approved request in force, or on schedule, and a scheduled grant in force when its start has come. `steps`
/// are what it needs now; what was fixed with the request is needed in any case. Break-glass needs nobody's approval.
pub fn activate(grant: &Grant, steps: &[ApprovalStep], now: Timestamp) -> Result<Grant, RuleError> {
    let from_request = grant.state == GrantState::Pending;
    need(grant, from_request || grant.state == GrantState::Scheduled, "pending or scheduled")?;
    if !grant.break_glass {
        let fixed = Needs::stricter(grant.needs.as_ref(), grant.needs.as_ref());
        let fixed = if grant.needs.is_none() && !steps.is_empty() { Vec::new() } else { fixed };
        for steps in [&fixed, steps] {
            let missing = missing(grant, steps, |_| true);
            if !missing.is_empty() {
                return Err(RuleError::Unapproved { missing });
            }
        }
    }
    let mut next = grant.clone();
    if from_request {
        let start = grant.starts_at.map_or(now, |start| start.max(now));
        next.not_before = Some(start);
        next.not_after = Some(start.saturating_add(grant.duration()));
        next.state = if start > now { GrantState::Scheduled } else { GrantState::Active };
        return Ok(next);
    }
    match (grant.not_before, grant.not_after) {
        (_, Some(end)) if now >= end => Err(RuleError::TooLate(end)),
        (Some(start), _) if now < start => Err(RuleError::NotYet(start)),
        _ => {
            next.state = GrantState::Active;
            Ok(next)
        }
    }
}

/// Ends a grant early, by whoever has no more use for it. Whether they may is for the caller to say.
pub fn drop_early(grant: &Grant, by: &str, reason: &str, now: Timestamp) -> Result<Grant, RuleError> {
    need(grant, matches!(grant.state, GrantState::Active | GrantState::Scheduled), "active or scheduled")?;
    let mut next = grant.clone();
    end(&mut next, GrantState::Ended, by, reason, now);
    Ok(next)
}

/// Ends a scheduled grant that cannot be put in force.
pub fn lapse(grant: &Grant, reason: &str, now: Timestamp) -> Result<Grant, RuleError> {
    need(grant, grant.state == GrantState::Scheduled, "scheduled")?;
    let mut next = grant.clone();
    end(&mut next, GrantState::Ended, "system", reason, now);
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
        GrantState::Active | GrantState::Scheduled if grant.not_after.is_none_or(|end| now >= end) => GrantState::Ended,
        _ => return None,
    };
    // What was never in force says why.
    let reason =
        if grant.state == GrantState::Scheduled { "its time was over before it could be activated" } else { "" };
    let mut next = grant.clone();
    end(&mut next, state, "system", reason, now);
    Some(next)
}

/// Whether a request may still be approved: one that is too old may not, also before it is ended for that.
pub fn may_wait(grant: &Grant, pending_for: Duration, now: Timestamp) -> Result<(), RuleError> {
    match expire(grant, pending_for, now) {
        Some(_) if grant.state == GrantState::Pending => {
            Err(RuleError::Lapsed(grant.requested_at.saturating_add(pending_for)))
        }
        _ => Ok(()),
    }
}

fn need(grant: &Grant, holds: bool, needs: &'static str) -> Result<(), RuleError> {
    if holds { Ok(()) } else { Err(RuleError::State { state: grant.state, needs }) }
}

fn end(grant: &mut Grant, state: GrantState, by: &str, reason: &str, now: Timestamp) {
    grant.state = state;
    grant.ended = Some(Ending { by: by.to_owned(), at: now, reason: reason.to_owned() });
}

#[cfg(test)]
mod tests;
