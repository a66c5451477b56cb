//! Uses of grants over the stream: what the purse has to tell goes out, what the control plane gave comes in.
//!
//! Plane: sync. INVARIANT: an answer counts only if its signature held, like everything that is received, and if it is to
//! the request under way: one that is replayed gives nothing and lengthens nothing. At the end of the process what was not
//! spent is given back, after the purse has been closed for good.

use std::time::Duration;

use crate::clock::Monotonic;
use crate::grant::ledger::{UseAnswer, UseReport};
use crate::grant::purse::{Message, Purse};
use crate::object::GrantId;
use crate::wire::proto::{Allotment, Uses};

/// The longest lease that is believed.
const MAX_LEASE: Duration = Duration::from_secs(300);

/// What is said of a grant's uses.
pub(super) fn told(message: &Message) -> Uses {
    let UseReport { account, granted, spent, returned, wanted } = message.report;
    Uses {
        grant: message.grant.to_string(),
        account: account.to_string(),
        number: message.number,
        granted,
        spent,
        returned,
        wanted,
    }
}

/// Takes what was given into the purse. What cannot be read is nothing.
pub(super) fn take_in(purse: &Purse, given: &Allotment, now: Monotonic) {
    let (Ok(grant), Ok(account)) = (given.grant.parse::<GrantId>(), uuid::Uuid::try_parse(&given.account)) else {
        return;
    };
    let answer = match (given.closed, given.exhausted) {
        (true, _) => UseAnswer::Closed,
        (false, true) => UseAnswer::Exhausted(given.granted),
        (false, false) => UseAnswer::Given(given.granted),
    };
    let lease = Duration::from_millis(given.lease_ms).min(MAX_LEASE);
    if let Some(UseReport { granted, spent, returned, .. }) =
        purse.answered((grant, account), given.number, answer, lease, now)
    {
        // What of it counts as lost is the control plane's to say, and it does.
        tracing::warn!(%grant, granted, spent, returned, "the control plane has closed an account of a grant's uses");
    }
}
