//! Several questions of one application, all answered from one state and by one time.
//!
//! Plane: shared, on the request path. Borrows the state for as long as the questions of one call take; needs no runtime.

use std::sync::Arc;

use arc_swap::Guard;

use super::Gate;
use crate::authz::{self, Asker, Decision, Deferred, Evaluation, Found, Inputs, Request};
use crate::clock::Now;
use crate::state::World;
use crate::wire::Position;

/// A state that is held for the questions of one call.
#[derive(Debug)]
pub struct Held<'a> {
    gate: &'a Gate,
    world: Guard<Arc<World>>,
    now: Now,
}

impl Gate {
    /// Holds the state that is in force now.
    pub fn hold(&self) -> Held<'_> {
        Held { gate: self, world: self.state.load(), now: self.clock.now() }
    }
}

// === impl Held ===

impl Held<'_> {
    /// Who asks, by the credentials of this request: a SPIFFE ID, or the denial.
    pub fn asker(
        &self,
        request: &Request<'_>,
        origins: &[Box<str>],
        may_verify: bool,
    ) -> Result<Result<Arc<str>, Decision>, Deferred> {
        let memo = if may_verify { self.gate.memo.view_again() } else { self.gate.memo.view() };
        let known = authz::authenticate_asker(request, origins, self.inputs(), &memo, may_verify)?;
        if let Err(denied) = &known {
            self.gate.note_missing_key(request, &self.world, denied);
        }
        Ok(known)
    }

    /// Whether whoever asked a moment ago still may, by this state. Its proof of possession is not looked at again.
    pub fn asker_again(&self, request: &Request<'_>, may_verify: bool) -> Result<Result<Arc<str>, Decision>, Deferred> {
        authz::authenticate_asker_again(request, self.inputs(), &self.gate.memo.view_again(), may_verify)
    }

    /// Decides on an evaluation; unless it may verify, what takes that is deferred.
    pub fn evaluate(
        &self,
        evaluation: &Evaluation<'_>,
        asker: Asker<'_>,
        may_verify: bool,
    ) -> Result<Decision, Deferred> {
        let (inputs, memo) = (self.inputs(), self.gate.memo.view());
        match may_verify {
            true => Ok(authz::evaluate(evaluation, asker, inputs, &memo)),
            false => authz::evaluate_unless_costly(evaluation, asker, inputs, &memo),
        }
    }

    /// Searches; `None` when the state is too old to tell, or older than it has to be. What is found once for a page does not crowd the caches out.
    pub fn search(&self, least: Option<Position>, search: impl FnOnce(Inputs<'_>) -> Found) -> Option<Found> {
        let position = self.world.snapshot.as_deref()?.position();
        let lease = self.world.lease.filter(|_| least.is_none_or(|least| least <= position))?;
        (lease.age(self.now) < lease.max_staleness).then(|| search(self.inputs()))
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs { now: self.now, ..self.gate.inputs(&self.world) }
    }
}
