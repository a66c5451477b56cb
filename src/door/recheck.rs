//! Deciding again on a request whose answer is still open.
//!
//! Plane: hot path's background. INVARIANT: spends no use, uses no proof of possession up and asks for none that has been
//! shown: the request was let through with them. Everything else is asked again, on the state and the time of now. A panic
//! is a denial.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Asked, Checked, Checks, Refused};
use crate::authz::Decision;
use crate::telemetry::OpenRecord;

impl Checks {
    /// The denial that a request would get now which was let through before; `None` while it would still be let through.
    pub fn recheck(&self, before: &Checked) -> Option<Decision> {
        let desk = self.desk();
        let decided =
            catch_unwind(AssertUnwindSafe(|| desk.decide.check_open(&before.request.lend(), before.decision.grant)));
        let decision = decided.unwrap_or_else(|_panic| {
            let refused = Refused::panicked();
            desk.refusal(refused.reason, &refused.detail)
        });
        decision.permit().is_none().then_some(decision)
    }

    /// Tells of a decision that [`Self::recheck`] made: once, when something follows from it.
    pub fn tell(&self, request: &Asked, decision: &Decision) {
        self.telemetry().begin(request.door).finish(decision.clone(), &request.method, &request.path);
    }
}

// === impl Checked ===

impl Checked {
    /// The same request, with what was decided on it since.
    pub fn instead(&self, decision: Decision, request: Asked) -> Self {
        let grant_request_url = self.grant_request_url.clone();
        Self { decision, request, grant_request_url, record: OpenRecord::default() }
    }
}
