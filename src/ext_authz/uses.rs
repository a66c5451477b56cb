//! Waiting for a use of a grant that is on its way from the control plane.
//!
//! Plane: hot path, for requests whose grant is counted and that find none here. INVARIANT: the wait is bounded, well below
//! Envoy's default timeout of 200 ms, and ends in a decision of the engine on the state of that moment; a use that comes too
//! late stays for the next request. Waiting holds no lock and no thread, and takes no place of checks that could be
//! answered; so many wait at most. As many decide again as there are uses, and none verifies its proof a second time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bytes::Bytes;

use super::body::Message;
use super::service::{Again, Arrival, Core, Costly, Decided, Door};
use crate::authz::Reason;
use crate::cache::{Admission, Source};
use crate::grant::purse::Place;
use crate::object::GrantId;
use crate::telemetry::Outcome;

/// From a check's arrival until it is answered without.
const WAIT: Duration = Duration::from_millis(150);

/// A check in the line for a use, until it is dropped.
struct InLine<'a>(&'a Core, Place);

/// Counted among the checks that wait for a use, until it is dropped.
struct Waiting<'a>(&'a Admission);

impl Door {
    /// Answers once a use of the grant is here, or is known to never come, or did not come in time.
    pub(super) async fn answer_with_use(
        &self,
        message: &Message<'_>,
        mut grant: GrantId,
        arrival: &Arrival,
        outcome: &mut Outcome<'_>,
    ) -> Bytes {
        let deadline = tokio::time::Instant::from_std(arrival.at) + WAIT;
        loop {
            let (in_line, in_time) = self.wait_for_use(grant, deadline).await;
            let decided = catch_unwind(AssertUnwindSafe(|| self.core.decide_again(message)));
            // Not before: who is called next is called because this one took nothing.
            drop(in_line);
            match decided {
                // Others were faster, or it takes a use of another grant.
                Ok(Ok(Some(Decided { decision, .. }))) if in_time && decision.awaits.is_some() => {
                    grant = decision.awaits.unwrap_or(grant);
                }
                Ok(Ok(Some(Decided { answer, decision, method, path }))) => {
                    outcome.finish(decision, &method, &path);
                    return answer;
                }
                // Its token has been forgotten meanwhile: to where that delays no other.
                Ok(Err(Costly { deferred, client })) => {
                    let source = Source::of(client, arrival.connection);
                    match self.answer_verified(message, (deferred, Again::Yes), source, outcome).await {
                        Ok(answer) => return answer,
                        Err(awaited) if in_time => grant = awaited,
                        Err(_) => return self.refuse(outcome, Reason::SystemUses, "no use has come in time"),
                    }
                }
                Ok(Ok(None)) | Err(_) => return self.panicked(outcome),
            }
        }
    }

    /// Waits to be called. The place in the line, and whether that was in time; nothing where nothing can be waited for,
    /// or too many do.
    async fn wait_for_use(&self, grant: GrantId, deadline: tokio::time::Instant) -> (Option<InLine<'_>>, bool) {
        let nothing = (None, false);
        let (Some(purse), Some(_waiting)) = (self.core.decide.purse(), Waiting::begin(self.admission())) else {
            return nothing;
        };
        let Some(place) = purse.queue(grant, self.core.decide.now().mono) else { return nothing };
        let in_line = InLine(&self.core, place);
        let in_time = tokio::time::timeout_at(deadline, purse.called(place)).await.is_ok();
        (Some(in_line), in_time)
    }
}

// === impl InLine ===

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if let Some(purse) = self.0.decide.purse() {
            purse.leave(self.1, self.0.decide.now().mono);
        }
    }
}

// === impl Waiting ===

impl<'a> Waiting<'a> {
    fn begin(admission: &'a Admission) -> Option<Self> {
        admission.enter_waiting().then_some(Self(admission))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waited();
    }
}
