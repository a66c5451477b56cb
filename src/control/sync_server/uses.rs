//! Reports on the uses of grants that come in on a stream, and their answers.
//!
//! Plane: control. A report is read in its turn and dealt with on a task of its own, so many of a stream at a time: a stream
//! that sends more is not read until one is done. INVARIANT: the holder of an account is the stream's authenticated identity,
//! and what it may ask about its configured services, whatever the report says. The answer goes out only after what it
//! says is durable.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use uuid::Uuid;

use super::door::Outbound;
use super::frames::Sealer;
use super::session::Session;
use crate::grant::ledger::{UseAnswer, UseReport};
use crate::object::GrantId;
use crate::wire::proto::{Allotment, Uses, payload::Body};

/// How many reports of one stream are under way at most.
const AT_ONCE: usize = 64;

/// The reports of one stream.
pub(super) struct Reports<'a> {
    session: &'a Session,
    under_way: Arc<Semaphore>,
}

// === impl Reports ===

impl<'a> Reports<'a> {
    pub(super) fn of(session: &'a Session) -> Self {
        Self { session, under_way: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Deals with a report.
    pub(super) async fn report(&self, said: Uses) {
        let session = self.session;
        let shared = &session.shared;
        let Some(books) = shared.uses.clone() else { return };
        let (Ok(grant), Ok(account)) = (said.grant.parse::<GrantId>(), Uuid::try_parse(&said.account)) else {
            return;
        };
        let Ok(permit) = Arc::clone(&self.under_way).acquire_owned().await else { return };
        // It may have been revoked since the stream was opened.
        if session.principal.check(&shared.auth.trust()).is_err() {
            return;
        }
        let Uses { number, granted, spent, returned, wanted, .. } = said;
        let report = UseReport { account, granted, spent, returned, wanted };
        let sealer = Sealer::new(Arc::clone(&shared.key), shared.index.position().epoch, &session.point.scope);
        let holder = session.principal.identity.clone();
        let services = Arc::from(session.point.services.clone());
        let (out, send_timeout) = (session.out.clone(), shared.config.send_timeout);
        tokio::spawn(async move {
            let _permit = permit;
            let Some(answer) = books.report(&holder, services, grant, report).await else { return };
            let answer = allotment(grant, account, number, answer, books.lease());
            let message = Outbound::Message(sealer.seal(Body::Allotment(answer)));
            // Who has gone comes back, and says again what it said.
            let _gone = tokio::time::timeout(send_timeout, out.send(message)).await;
        });
    }
}

fn allotment(grant: GrantId, account: Uuid, number: u64, answer: UseAnswer, lease: Duration) -> Allotment {
    let (granted, exhausted, closed) = match answer {
        UseAnswer::Given(granted) => (granted, false, false),
        UseAnswer::Exhausted(granted) => (granted, true, false),
        UseAnswer::Closed => (0, false, true),
    };
    let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(0);
    Allotment { grant: grant.to_string(), account: account.to_string(), number, granted, lease_ms, exhausted, closed }
}
