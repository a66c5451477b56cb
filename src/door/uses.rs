//! Waiting for a use of a grant that is on its way from the control plane.
//!
//! Plane: hot path, for requests whose grant is counted and that find none here. INVARIANT: the wait is bounded, well below
//! Envoy's default timeout of 200 ms, and ends in a decision of the engine on the state of that moment; a use that comes too
//! late stays for the next request. Waiting holds no lock and no thread, and takes no place of checks that could be
//! answered; so many wait at most. As many decide again as there are uses, and none verifies its proof a second time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::later::Again;
use super::{Decide, Decided, Desk, Question, Refused};
use crate::cache::{Admission, Source};
use crate::grant::purse::Place;
use crate::object::GrantId;

/// From a check's arrival until it is answered without.
const WAIT: Duration = Duration::from_millis(150);

/// A check in the line for a use, until it is dropped.
struct InLine<'a>(&'a Decide, Place);

/// Counted among the checks that wait for a use, until it is dropped.
struct Waiting<'a>(&'a Admission);

impl Desk {
    /// Decides once a use of the grant is here, or is known to never come, or did not come in time.
    pub(super) async fn with_use<Q: Question>(
        &self,
        question: &Arc<Q>,
        mut grant: GrantId,
        source: Source,
        arrived: Instant,
    ) -> Result<Decided<Q::Answer>, Refused> {
        let deadline = tokio::time::Instant::from_std(arrived) + WAIT;
        loop {
            let (in_line, in_time) = self.wait_for_use(grant, deadline).await;
            let again = || question.decide(|request| self.decide.check_again(request));
            let decided = catch_unwind(AssertUnwindSafe(again));
            // Not before: who is called next is called because this one took nothing.
            drop(in_line);
            let decided = match decided {
                Ok(Some(Ok(decided))) => decided,
                // Its token has been forgotten meanwhile: to where that delays no other.
                Ok(Some(Err(deferred))) => self.verified(question, (deferred, Again::Yes), source).await?,
                Ok(None) | Err(_) => return Err(Refused::panicked()),
            };
            match decided.decision.awaits {
                // Others were faster, or it takes a use of another grant.
                Some(awaited) if in_time => grant = awaited,
                _ => return Ok(decided),
            }
        }
    }

    /// Waits to be called. The place in the line, and whether that was in time; nothing where nothing can be waited for,
    /// or too many do.
    async fn wait_for_use(&self, grant: GrantId, deadline: tokio::time::Instant) -> (Option<InLine<'_>>, bool) {
        let nothing = (None, false);
        let (Some(purse), Some(_waiting)) = (self.decide.purse(), Waiting::begin(&self.admission)) else {
            return nothing;
        };
        let Some(place) = purse.queue(grant, self.decide.now().mono) else { return nothing };
        let in_line = InLine(&self.decide, place);
        let in_time = tokio::time::timeout_at(deadline, purse.called(place)).await.is_ok();
        (Some(in_line), in_time)
    }
}

// === impl InLine ===

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if let Some(purse) = self.0.purse() {
            purse.leave(self.1, self.0.now().mono);
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
