//! Waiting for a use of a grant that is on its way from the control plane.
//!
//! Plane: hot path, for requests whose grant is counted and that find none here. INVARIANT: the wait is bounded, well below
//! Envoy's default timeout of 200 ms, and ends in a decision of the engine on the state of that moment; a use that comes too
//! late stays for the next request. Waiting holds no lock and no thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::{Decided, Desk, Question, Refused};
use crate::grant::purse::Purse;
use crate::object::GrantId;

/// From a check's arrival until it is answered without.
const WAIT: Duration = Duration::from_millis(150);

/// A check among those that wait for a use.
struct Waiting<'a>(&'a Purse, GrantId);

impl Desk {
    /// Decides once a use of the grant is here, or is known to never come, or did not come in time.
    pub(super) async fn with_use<Q: Question>(
        &self,
        question: &Q,
        mut grant: GrantId,
        arrived: Instant,
    ) -> Result<Decided<Q::Answer>, Refused> {
        let deadline = tokio::time::Instant::from_std(arrived) + WAIT;
        loop {
            let in_time = match self.decide.purse() {
                Some(purse) => tokio::time::timeout_at(deadline, self.settled(purse, grant)).await.is_ok(),
                None => false,
            };
            let again = || question.decide(|request| self.decide.check_again(request));
            match catch_unwind(AssertUnwindSafe(again)) {
                // Others were faster, or it takes a use of another grant.
                Ok(Some(Decided { decision, .. })) if in_time && decision.awaits.is_some() => {
                    grant = decision.awaits.unwrap_or(grant);
                }
                Ok(Some(decided)) => return Ok(decided),
                Ok(None) | Err(_) => return Err(Refused::panicked()),
            }
        }
    }

    async fn settled(&self, purse: &Purse, grant: GrantId) {
        let _waiting = Waiting::begin(purse, grant);
        loop {
            let seen = purse.arrivals().seen();
            if purse.is_settled(grant, self.decide.now().mono) {
                return;
            }
            purse.arrivals().after(seen).await;
        }
    }
}

// === impl Waiting ===

impl<'a> Waiting<'a> {
    fn begin(purse: &'a Purse, grant: GrantId) -> Self {
        purse.wait(grant, true);
        Self(purse, grant)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.wait(self.1, false);
    }
}
