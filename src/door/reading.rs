//! A check of a request whose body can still be read, and is read only if the decision takes it.
//!
//! Plane: hot path, off the warm one. Decided once without the body; what that settles is settled, and costs what any check
//! costs. INVARIANT: only who has a good credential has a body read, a request has one outcome however often it is decided on,
//! and no allow rests on a body that was not there: what could not be read is denied with the decision that asked for it.
//! Reading takes no place among the checks under way, and has no limit of its own: that is for whoever reads.

use std::borrow::Cow;
use std::future::Future;
use std::time::Instant;

use super::later::Again;
use super::{Asked, Checked, Checks, Refused};
use crate::authz::{Decision, NeedsBody, Reason};
use crate::telemetry::Outcome;

/// Why there is no body. Without a reason the client is at fault: then the body did not reach the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unread {
    /// Of the denial, if not that which asked for the body.
    pub reason: Option<Reason>,
    /// For the record.
    pub detail: &'static str,
}

/// A check whose body is being read, until it is dropped: if its client goes away meanwhile, it ends as the denial that
/// it is without one.
struct Reading<'o, 't> {
    outcome: &'o mut Outcome<'t>,
    denial: Option<Decision>,
    method: String,
    path: String,
}

impl Checks {
    /// Decides one request without its body. If the decision takes one, has `read` put it in, and decides on all of it.
    pub async fn check_reading<R, F>(&self, request: Asked, read: R) -> Checked
    where
        R: FnOnce(Asked) -> F,
        F: Future<Output = (Asked, Result<(), Unread>)>,
    {
        let arrived = Instant::now();
        let mut outcome = self.telemetry().begin_at(request.door, arrived);
        let (decision, request) = self.decide(request, Again::No, arrived, &mut outcome).await;
        match decision.needs_body {
            Some(needs) if request.body.is_none() && !request.partial_body => {
                let reading = Box::pin(self.once_read(needs, decision, request, read, &mut outcome));
                let (decision, request) = reading.await;
                self.decided(decision, request, &mut outcome)
            }
            _ => self.decided(decision, request, &mut outcome),
        }
    }

    async fn once_read<R, F>(
        &self,
        needs: NeedsBody,
        denial: Decision,
        request: Asked,
        read: R,
        outcome: &mut Outcome<'_>,
    ) -> (Decision, Asked)
    where
        R: FnOnce(Asked) -> F,
        F: Future<Output = (Asked, Result<(), Unread>)>,
    {
        let (method, path) = (request.method.clone(), request.path.clone());
        let mut reading = Reading { outcome, denial: Some(denial), method, path };
        let (request, read) = read(request).await;
        let denial = reading.denial.take();
        let outcome = &mut *reading.outcome;
        match (read, denial) {
            (Ok(()), _) => {
                // What was verified and used up for this request is not asked for again: it is the same proof.
                let again = if needs.proof_is_used { Again::Yes } else { Again::No };
                self.decide(request, again, Instant::now(), outcome).await
            }
            (Err(Unread { reason, detail }), Some(mut denial)) => {
                // Whoever it is has been found out, and may know.
                denial.reason = reason.filter(|reason| !reason.is_allow()).unwrap_or(denial.reason);
                denial.detail = Some(detail.into());
                (denial, request)
            }
            (Err(Unread { detail, .. }), None) => {
                let reason = Reason::InputBodyTruncated;
                (self.refusal(&Refused { reason, detail: Cow::Borrowed(detail) }), request)
            }
        }
    }
}

// === impl Reading ===

impl Drop for Reading<'_, '_> {
    fn drop(&mut self) {
        if let Some(denial) = self.denial.take() {
            self.outcome.finish(denial, &self.method, &self.path);
        }
    }
}
