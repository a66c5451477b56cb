//! Asking: a request becomes pending, or a grant at once, or is answered with one that is in force already.
//!
//! Plane: control. What a request needs is fixed with it and is under its digest. Approval by policy and break-glass put
//! it in force in the very commit that makes it; break-glass opens its review in that commit as well.

use super::{Desk, Refusal};
use crate::clock::Timestamp;
use crate::control::core::Plan;
use crate::control::index::Index;
use crate::control::rules;
use crate::control::store::{Expect, Write};
use crate::grant;
use crate::object::{FieldError, Grant, GrantState, Kind, Object, PartyKind, ResourceName, Review};
use crate::wire::Revision;

/// How many requests of one workload may wait for approval: an agent that asks in a loop is told so.
const MAX_WAITING: usize = 32;

/// What a request comes to.
#[derive(Debug)]
pub(in crate::control) enum Asked {
    /// A new request, or a new grant.
    New(Grant),
    /// A grant that is in force already and gives all of it, with its revision.
    Reused(Grant, Revision),
}

impl Desk {
    /// The plan for a new request. `reuse` says whether a grant in force is an answer.
    pub(in crate::control) fn ask(
        &self,
        index: &Index,
        asked: &Grant,
        reuse: bool,
        now: Timestamp,
    ) -> Result<Plan<Asked>, Refusal> {
        if let Some(id) = &asked.renews
            && index.get(Kind::Grant, &id.to_string()).is_none()
        {
            return Err(FieldError::new("renews", format!("there is no grant `{id}` any more; ask anew")).into());
        }
        let ground = self.ground(index, asked)?;
        let held = index.live_grants_of(&asked.workload);
        let grants = || held.iter().filter_map(|stored| Some((rules::as_grant(stored)?, stored.revision)));
        if reuse && let Some((active, revision)) = grants().find(|(held, _)| grant::serves(held, asked, now)) {
            return Ok(Plan::new(Asked::Reused(active.clone(), revision)));
        }
        if asked.requester.kind == PartyKind::Workload {
            let waits = |held: &Grant| held.state == GrantState::Pending && held.requested_by == asked.requested_by;
            if grants().filter(|(held, _)| waits(held)).count() >= MAX_WAITING {
                let message = format!("`{}` has {MAX_WAITING} requests that wait for approval", asked.requested_by);
                return Err(Refusal::Conflict(message));
            }
        }
        // Each of them is a question to policy for every request, so their number is bounded. An emergency is not kept out.
        let most = self.limits.per_resource;
        let full = |resource: &&ResourceName| grants().filter(|(held, _)| touches(held, resource)).count() >= most;
        if !asked.break_glass
            && let Some(resource) = asked.resources.iter().find(full)
        {
            let message = format!(
                "`{}` has {most} grants and requests on `{resource}` already; one of them has to end first",
                asked.workload
            );
            return Err(Refusal::Conflict(message));
        }
        let at_once = ground.needs.as_ref().is_some_and(|needs| needs.auto);
        let mut grant = grant::needing(asked.clone(), ground.needs)?;
        if at_once {
            grant = grant::activate(&grant, &[], now)?;
        }
        let mut plan = Plan { guards: ground.guards, changes: Vec::new(), answer: Asked::New(grant.clone()) };
        if let Some(review) = review(&grant) {
            plan = plan.write(Write::put(&Object::Review(Box::new(review)), Expect::Absent));
        }
        Ok(plan.write(Write::put(&Object::Grant(Box::new(grant)), Expect::Absent)))
    }
}

/// Whether a live grant counts against the number of those on a resource.
fn touches(held: &Grant, resource: &ResourceName) -> bool {
    let overlaps = |other: &ResourceName| {
        other.service == resource.service
            && (other.route.is_none() || resource.route.is_none() || other.route == resource.route)
    };
    !held.state.is_terminal() && held.resources.iter().any(overlaps)
}

/// The review that a break-glass grant calls for.
fn review(grant: &Grant) -> Option<Review> {
    let (not_before, not_after) = (grant.not_before?, grant.not_after?);
    grant.break_glass.then(|| Review {
        grant: grant.id,
        workload: grant.workload.clone(),
        resources: grant.resources.clone(),
        actions: grant.actions.clone(),
        reason: grant.reason.clone(),
        ticket: grant.ticket.clone(),
        requested_by: grant.requested_by.clone(),
        not_before,
        not_after,
        closed: None,
    })
}
