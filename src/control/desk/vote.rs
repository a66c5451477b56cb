//! Voting for a request, and putting a scheduled grant in force when its start has come.
//!
//! Plane: control. The approval that was missing puts the request in force, if everything it rests on still holds; if
//! not, the approval is refused and can be given again. A scheduled grant is looked at once more at its start: what does
//! not hold any more ends it, with the reason.

use super::{Desk, Ground, Refusal};
use crate::clock::Timestamp;
use crate::control::core::Plan;
use crate::control::index::Index;
use crate::control::rules;
use crate::control::store::{Expect, Guard, Write};
use crate::grant::{self, Ballot};
use crate::object::{FieldError, Grant, Kind, Object, Party, VoteKind};

/// A vote for a request.
#[derive(Debug)]
pub(in crate::control) struct Approval<'a> {
    /// Of the request.
    pub(in crate::control) id: &'a str,
    /// Who.
    pub(in crate::control) approver: &'a str,
    /// What they are.
    pub(in crate::control) party: Party,
    /// Of the request that they mean.
    pub(in crate::control) digest: &'a str,
    /// Which step; without it, the first that needs an approval and that they may give.
    pub(in crate::control) step: Option<&'a str>,
}

impl Desk {
    /// The plan for an approval.
    pub(in crate::control) fn approve(
        &self,
        index: &Index,
        approval: &Approval<'_>,
        now: Timestamp,
    ) -> Result<Plan<Grant>, Refusal> {
        let Approval { id, approver, party, digest, step } = approval;
        let stored = index.get(Kind::Grant, id).ok_or_else(|| Refusal::Unknown((*id).to_owned()))?;
        let grant = rules::as_grant(&stored).ok_or(Refusal::Unreadable)?;
        let ballot = |step| Ballot { approver, party: party.clone(), vote: VoteKind::Approve, digest, step };
        // What needs no look at anything else comes first.
        grant::cast(grant, ballot(*step), now)?;
        grant::may_wait(grant, self.limits.pending, now)?;
        let ground = self.ground(index, grant)?;
        if let Some(barred) = ground.barred(approver, party)? {
            return Err(barred.into());
        }
        let steps = ground.steps(grant);
        let chosen = self.step(&ground, grant, approval)?;
        let recorded = (ground.policies.is_some() || step.is_some()).then_some(&*chosen);
        let mut next = grant::cast(grant, ballot(recorded), now)?;
        if grant::missing(&next, &steps, |vote| self.stands(&ground, grant, vote)).is_empty() {
            next = grant::activate(&next, &steps, now)?;
        }
        let change = Write::put(&Object::Grant(Box::new(next.clone())), Expect::Revision(stored.revision));
        Ok(Plan { guards: ground.guards, changes: vec![change], answer: next })
    }

    /// The step that an approval counts for.
    fn step(&self, ground: &Ground, grant: &Grant, approval: &Approval<'_>) -> Result<String, Refusal> {
        let Approval { approver, party, step, .. } = approval;
        let steps = ground.steps(grant);
        let missing = grant::missing(grant, &steps, |vote| self.stands(ground, grant, vote));
        if let Some(name) = step {
            if !steps.iter().any(|s| s.name == **name) {
                let known: Vec<&str> = steps.iter().map(|s| &*s.name).collect();
                let message = format!("`{name}` is no step of this request; it has: {}", known.join(", "));
                return Err(FieldError::new("step", message).into());
            }
            if !missing.is_empty() && !missing.iter().any(|s| s.name == **name) {
                return Err(Refusal::Conflict(format!("step `{name}` has every approval that it needs")));
            }
            ground.may_approve(grant, approver, party, name)?;
            return Ok((*name).to_owned());
        }
        let mut refused = None;
        // None is missing when policies asked for more for a while: any approval will do then.
        for open in if missing.is_empty() { &steps } else { &missing } {
            match ground.may_approve(grant, approver, party, &open.name) {
                Ok(()) => return Ok(open.name.clone()),
                Err(refusal) => _ = refused.get_or_insert(refusal),
            }
        }
        Err(refused.unwrap_or_else(|| Refusal::Conflict("the request needs no approvals".to_owned())))
    }

    /// What becomes of a scheduled grant whose start has come, and what that rests on. `None`: it is to be looked at
    /// again, because nothing can be said now.
    pub(in crate::control) fn start(
        &self,
        index: &Index,
        grant: &Grant,
        now: Timestamp,
    ) -> Option<(Grant, Vec<Guard>)> {
        grant.not_before.filter(|start| *start <= now)?;
        let started = self.ground(index, grant).and_then(|ground| {
            let steps = ground.steps(grant);
            let missing = grant::missing(grant, &steps, |vote| self.stands(&ground, grant, vote));
            if !missing.is_empty() {
                return Err(grant::RuleError::Unapproved { missing }.into());
            }
            Ok((grant::activate(grant, &steps, now)?, ground.guards))
        });
        match started {
            Ok(started) => Some(started),
            Err(Refusal::Unreadable | Refusal::Commit(_)) => None,
            Err(refusal) => {
                let reason: String = format!("it could not start: {refusal}").chars().take(500).collect();
                Some((grant::lapse(grant, &reason, now).ok()?, Vec::new()))
            }
        }
    }
}
