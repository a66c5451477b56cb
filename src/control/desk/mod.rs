//! The desk where grants are asked for: what a request rests on now, and what becomes of it under the grant policies.
//!
//! Plane: control. Makes plans on the index for REST handlers and for the sweeper. INVARIANT: nothing comes into force
//! unless everything it rests on holds at that time: workload and requester registered and not suspended, resources as
//! asked for, policies that still permit it, and approvals of people who may still give them; the plan's guards make
//! that hold at commit as well. Without any grant policies one approval of another operator is needed, and there is no
//! break-glass. Fails closed: what cannot be evaluated is refused.

mod ask;
mod policies;
mod refusal;
mod vote;

use std::sync::Arc;
use std::time::Duration;

use self::policies::{InForce, PolicyCache};
use super::core::Core;
use super::index::{Index, Stored};
use super::operators::Operators;
use super::principal::{Principal, PrincipalKind};
use super::rules;
use super::store::{Expect, Guard};
use crate::grant::policy::{self, Ask, Requester};
use crate::grant::{self, RuleError};
use crate::object::{ApprovalStep, FieldError, Grant, Kind, Needs, Party, PartyKind, Vote, Workload, WorkloadPattern};
use crate::wire::Revision;

pub(super) use self::ask::Asked;
pub(super) use self::refusal::Refusal;
pub(super) use self::vote::Approval;

/// The desk.
#[derive(Debug)]
pub(super) struct Desk {
    operators: Arc<Operators>,
    policies: PolicyCache,
    limits: Limits,
}

/// What the configuration says of all requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// How long a request waits for its approval.
    pending: Duration,
    /// How many live grants and requests a workload has on one resource at most.
    per_resource: usize,
}

/// What a request rests on, as it stands now.
#[derive(Debug)]
struct Ground {
    workload: Arc<Stored>,
    /// The workload that asks, if one does.
    requester: Option<Arc<Stored>>,
    /// Registered workloads that it may act for.
    delegators: Vec<Arc<Stored>>,
    policies: Option<InForce>,
    /// What the policies in force ask for; without any policies, `None`.
    needs: Option<Needs>,
    guards: Vec<Guard>,
}

/// Why a workload may not ask for another. INVARIANT: it is the same whether that other one exists or not, in whatever
/// state, and whichever policies speak against it: who may not ask learns nothing of others.
fn not_for_others(policies: Option<&InForce>) -> Refusal {
    match policies {
        None => Refusal::Forbidden("without grant policies a workload asks only for itself".to_owned()),
        Some(_) => Refusal::Policy(policy::Refusal::NoMatch),
    }
}

// === impl Limits ===

impl Limits {
    /// With what the core keeps of requests that wait.
    pub(super) fn of(core: &Core, per_resource: usize) -> Self {
        Self { pending: core.agenda().retention().pending, per_resource }
    }
}

// === impl Desk ===

impl Desk {
    pub(super) fn new(operators: Arc<Operators>, limits: Limits) -> Self {
        Self { operators, policies: PolicyCache::default(), limits }
    }

    /// To be called before plans are made, so that none of them has to compile anything.
    pub(super) async fn ready(&self, index: &Index) {
        self.policies.ready(index).await;
    }

    /// Whether this request may be made, or be put in force, as things are now; and what that rests on.
    fn ground(&self, index: &Index, grant: &Grant) -> Result<Ground, Refusal> {
        let since = index.position().revision;
        let requester = match grant.requester.kind {
            PartyKind::Workload => Some(asking(index, &grant.requested_by)?),
            PartyKind::Person | PartyKind::Automation if self.operators.has_left(&grant.requested_by) => {
                return Err(Refusal::Forbidden(format!("`{}` is not an operator any more", grant.requested_by)));
            }
            PartyKind::Person | PartyKind::Automation => None,
        };
        // Before the workload is looked at: what is wrong with these is told whether there is such a workload or not.
        let services = rules::grantable(index, grant)?;
        let renewed = renewed(index, grant)?;
        let policies = self.policies.in_force(index)?;
        let workload = rules::in_service(index, &grant.workload);
        // Once it has been made, a request is no way to find out any more.
        let hides = grant.needs.is_none() && requester.as_ref().is_some_and(|r| *r.key != *grant.workload.as_str());
        let workload = match workload {
            Err(_) if hides => return Err(not_for_others(policies.as_ref())),
            found => found?,
        };
        let mut guards: Vec<Guard> = [&workload]
            .into_iter()
            .chain(&requester)
            .chain(&services)
            .chain(&renewed)
            .map(|stored| as_found(stored))
            .collect();
        // Who asks for itself is one object, and is guarded once.
        guards.dedup();
        guards.push(PolicyCache::guard(policies.as_ref()));
        // A workload is revoked without being written.
        guards.push(Guard::KindUnchanged { kind: Kind::Revocation, since });
        let delegators = delegators(index, as_workload(&workload)?, since, &mut guards);
        let mut ground = Ground { workload, requester, delegators, policies, needs: None, guards };
        ground.needs = match ground.asked_of_policies(grant) {
            Err(Refusal::Policy(_) | Refusal::Forbidden(_)) if hides => {
                return Err(not_for_others(ground.policies.as_ref()));
            }
            needs => needs?,
        };
        Ok(ground)
    }

    /// Whether a vote still counts: its approver is still an operator, is not barred, and may approve that step.
    fn stands(&self, ground: &Ground, grant: &Grant, vote: &Vote) -> bool {
        let step = vote.step.as_deref().unwrap_or(ApprovalStep::DEFAULT);
        !self.operators.has_left(&vote.approver)
            && ground.barred(&vote.approver, &vote.party).is_ok_and(|barred| barred.is_none())
            && ground.may_approve(grant, &vote.approver, &vote.party, step).is_ok()
    }
}

// === impl Ground ===

impl Ground {
    /// What the policies in force make of a request. Without any: it needs one approval, is not break-glass, and a
    /// workload asks only for itself.
    fn asked_of_policies(&self, grant: &Grant) -> Result<Option<Needs>, Refusal> {
        let Some(policies) = &self.policies else {
            if grant.break_glass {
                let message = "break-glass needs a grant policy for it, and none is published";
                return Err(Refusal::Forbidden(message.to_owned()));
            }
            if grant.requester.kind == PartyKind::Workload && *grant.requested_by != *grant.workload.as_str() {
                return Err(not_for_others(None));
            }
            return Ok(None);
        };
        let needs = policies.rules.request(&self.ask(grant)?)?;
        // Nobody approves break-glass: it is reviewed afterwards.
        Ok(Some(if grant.break_glass { Needs { steps: Vec::new(), auto: true, ..needs } } else { needs }))
    }

    fn ask<'a>(&'a self, grant: &'a Grant) -> Result<Ask<'a>, Refusal> {
        let requester = match &self.requester {
            Some(stored) => Requester::Workload(as_workload(stored)?),
            None => Requester::Operator,
        };
        Ok(Ask { grant, workload: as_workload(&self.workload)?, requester })
    }

    /// The steps that a request needs: those that were fixed with it, and those that policies want now.
    fn steps(&self, grant: &Grant) -> Vec<ApprovalStep> {
        Needs::stricter(grant.needs.as_ref(), self.needs.as_ref())
    }

    /// Why this approver cannot approve whatever policy says, if so: whoever asks, acts or answers for the workload
    /// would be approving for themselves.
    fn barred(&self, approver: &str, party: &Party) -> Result<Option<RuleError>, Refusal> {
        let delegators = self.delegators.iter().filter_map(|stored| rules::as_workload(stored));
        let of_workload = grant::barred(approver, party, as_workload(&self.workload)?, delegators);
        if of_workload.is_some() {
            return Ok(of_workload);
        }
        let requester = self.requester.as_deref().and_then(rules::as_workload);
        Ok(requester
            .filter(|asking| grant::owns(asking, approver, party))
            .map(|_| RuleError::Owner(approver.to_owned())))
    }

    fn may_approve(&self, grant: &Grant, approver: &str, party: &Party, step: &str) -> Result<(), Refusal> {
        match &self.policies {
            None => Ok(()),
            Some(policies) => Ok(policies.rules.may_approve(&self.ask(grant)?, approver, party, step)?),
        }
    }
}

impl Principal {
    /// As requests and votes keep it.
    pub(super) fn party(&self) -> Party {
        let kind = match self.kind {
            PrincipalKind::Person => PartyKind::Person,
            PrincipalKind::Automation => PartyKind::Automation,
            PrincipalKind::Workload(_) => PartyKind::Workload,
        };
        Party { kind, groups: self.groups.iter().map(|group| group.to_string()).collect() }
    }
}

/// The registered workloads that `workload` may act for, and what that rests on: of each that it names, that one; of those
/// below a name, that no workload has changed.
fn delegators(index: &Index, workload: &Workload, since: Revision, guards: &mut Vec<Guard>) -> Vec<Arc<Stored>> {
    let (below, named): (Vec<_>, Vec<_>) = workload.delegators.iter().partition(|pattern| pattern.is_below());
    let mut found = Vec::new();
    if !below.is_empty() {
        guards.push(Guard::KindUnchanged { kind: Kind::Workload, since });
        found = index.list(Kind::Workload);
        found.retain(|stored| below.iter().any(|pattern| pattern.matches(&stored.key)));
    }
    for WorkloadPattern(id) in named {
        let stored = index.get(Kind::Workload, id);
        let expect = stored.as_ref().map_or(Expect::Absent, |stored| Expect::Revision(stored.revision));
        guards.push(Guard::Object { kind: Kind::Workload, key: id.clone(), expect });
        found.extend(stored);
    }
    found
}

/// The workload that asks, if it can get anything new now.
fn asking(index: &Index, id: &str) -> Result<Arc<Stored>, Refusal> {
    let parsed = id.parse().map_err(|_no_id| Refusal::Forbidden(format!("`{id}` is no workload")))?;
    rules::in_service(index, &parsed).map_err(|e| Refusal::Forbidden(e.message))
}

/// The grant that a request is to follow, as long as it is remembered. A request that is made names one that is.
fn renewed(index: &Index, grant: &Grant) -> Result<Option<Arc<Stored>>, FieldError> {
    let Some(id) = &grant.renews else { return Ok(None) };
    let stored = index.get(Kind::Grant, &id.to_string());
    if let Some(old) = stored.as_deref().and_then(rules::as_grant) {
        grant::check_renewal(grant, old)?;
    }
    Ok(stored)
}

fn as_workload(stored: &Stored) -> Result<&Workload, Refusal> {
    rules::as_workload(stored).ok_or(Refusal::Unreadable)
}

/// It is still as it was found.
fn as_found(stored: &Stored) -> Guard {
    Guard::Object { kind: stored.kind, key: stored.key.to_string(), expect: Expect::Revision(stored.revision) }
}

#[cfg(test)]
mod tests;
