//! Waiting for a use of a grant that is on its way from the control plane.
//!
//! Plane: hot path, for requests whose grant is counted and that find none here. INVARIANT: the wait is bounded, well below
//! Envoy's default timeout of 200 ms, and ends in a decision of the engine on the state of that moment; a use that comes too
//! late stays for the next request. Waiting holds no lock and no thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::body::Message;
use super::service::{Decided, Door};
use crate::grant::purse::Purse;
use crate::object::GrantId;
use crate::telemetry::Outcome;

/// From a check's arrival until it is answered without.
const WAIT: Duration = Duration::from_millis(150);

/// A check among those that wait for a use.
struct Waiting<'a>(&'a Purse, GrantId);

impl Door {
    /// Answers once a use of the grant is here, or is known to never come, or did not come in time.
    pub(super) async fn answer_with_use(
        &self,
        message: &Message<'_>,
        mut grant: GrantId,
        arrived: Instant,
        outcome: &mut Outcome<'_>,
    ) -> Bytes {
        let deadline = tokio::time::Instant::from_std(arrived) + WAIT;
        loop {
            let in_time = match self.core.decide.purse() {
                Some(purse) => tokio::time::timeout_at(deadline, self.settled(purse, grant)).await.is_ok(),
                None => false,
            };
            let decided = catch_unwind(AssertUnwindSafe(|| self.core.decide_again(message)));
            match decided {
                // Others were faster, or it takes a use of another grant.
                Ok(Some(Decided { decision, .. })) if in_time && decision.awaits.is_some() => {
                    grant = decision.awaits.unwrap_or(grant);
                }
                Ok(Some(Decided { answer, decision, method, path })) => {
                    outcome.finish(decision, &method, &path);
                    return answer;
                }
                Ok(None) | Err(_) => return self.panicked(outcome),
            }
        }
    }

    async fn settled(&self, purse: &Purse, grant: GrantId) {
        let _waiting = Waiting::begin(purse, grant);
        loop {
            let seen = purse.arrivals().seen();
            if purse.is_settled(grant, self.core.decide.now().mono) {
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
