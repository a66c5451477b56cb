//! What decides, for every door: the gate, or in tests any answer.
//!
//! Plane: hot path. Nothing is added to what the gate says.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::authz::{Decision, Deferred, Request};
use crate::cache::Gate;
use crate::clock::Now;
use crate::grant::purse::Purse;
use crate::object::GrantId;

/// Behind a type of its own, so that tests can give any answer.
pub(crate) enum Decide {
    /// The gate.
    Gate(Arc<Gate>),
    #[cfg(test)]
    Test(Box<dyn Fn(&Request<'_>) -> Decision + Send + Sync>, crate::clock::SharedClock),
}

// === impl Decide ===

impl Decide {
    /// Decides, unless that takes the verification of a signature.
    pub(crate) fn check_unless_costly(&self, request: &Request<'_>) -> Result<Decision, Deferred> {
        match self {
            Self::Gate(gate) => gate.check_unless_costly(request),
            #[cfg(test)]
            Self::Test(decide, _) => Ok(decide(request)),
        }
    }

    /// Decides what has been deferred.
    pub(super) fn check_deferred(&self, request: &Request<'_>) -> Decision {
        match self {
            Self::Gate(gate) => gate.check_deferred(request),
            #[cfg(test)]
            Self::Test(decide, _) => decide(request),
        }
    }

    /// Decides again, once a use may have come, unless that takes the verification of a signature.
    pub(super) fn check_again(&self, request: &Request<'_>) -> Result<Decision, Deferred> {
        match self {
            Self::Gate(gate) => gate.check_again(request),
            #[cfg(test)]
            Self::Test(decide, _) => Ok(decide(request)),
        }
    }

    /// The same, where there is time for that.
    pub(super) fn check_again_deferred(&self, request: &Request<'_>) -> Decision {
        match self {
            Self::Gate(gate) => gate.check_again_deferred(request),
            #[cfg(test)]
            Self::Test(decide, _) => decide(request),
        }
    }

    /// What anybody may know of an MCP server, if a request that was denied asks for that.
    pub(crate) fn resource_metadata(&self, request: &Request<'_>) -> Option<Bytes> {
        self.gate().and_then(|gate| gate.resource_metadata(request.method, request.host, request.path))
    }

    /// Decides on a request that was let through, by this grant if by one, and whose answer is still open.
    pub(super) fn check_open(&self, request: &Request<'_>, by: Option<GrantId>) -> Decision {
        match self {
            Self::Gate(gate) => gate.check_open(request, by),
            #[cfg(test)]
            Self::Test(decide, _) => decide(request),
        }
    }

    /// The uses of grants that it may spend, if it counts any.
    pub(super) fn purse(&self) -> Option<&Purse> {
        match self {
            Self::Gate(gate) => Some(gate.state().purse()),
            #[cfg(test)]
            Self::Test(..) => None,
        }
    }

    /// The time that it decides by.
    pub(crate) fn now(&self) -> Now {
        match self {
            Self::Gate(gate) => gate.clock().now(),
            #[cfg(test)]
            Self::Test(_, clock) => clock.now(),
        }
    }

    /// The gate, unless a test decides.
    pub(super) fn gate(&self) -> Option<&Arc<Gate>> {
        match self {
            Self::Gate(gate) => Some(gate),
            #[cfg(test)]
            Self::Test(..) => None,
        }
    }
}

impl fmt::Debug for Decide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decide").finish_non_exhaustive()
    }
}
