//! Why no token is issued, in the words of OAuth (RFC 6749, section 5.2; RFC 8693, section 2.2.2; RFC 8628; RFC 9449).
//!
//! Plane: control; plain data. Whoever has not shown a good token learns the family of a reason code and no more; whoever
//! has learns the full code and, where a grant is missing, a request for one that can be posted as it stands.

use std::time::Duration;

use crate::authz::Reason;
use crate::control::workload_identity::Refusal;
use crate::grant::NewGrantRequest;
use crate::object::GrantId;

/// A refusal.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// Of HTTP.
    pub status: u16,
    /// The code of OAuth.
    pub error: &'static str,
    /// More about it. Holds no byte of a token.
    pub description: String,
    /// The reason code, or its family.
    pub reason: Option<&'static str>,
    /// The grant that the reason is about.
    pub grant: Option<GrantId>,
    /// What would have to be granted.
    pub grant_request: Option<Box<NewGrantRequest>>,
    /// When it is worth trying again.
    pub retry_after: Option<Duration>,
}

// === impl Refused ===

impl Refused {
    fn new(status: u16, error: &'static str, description: impl Into<String>) -> Self {
        Self {
            status,
            error,
            description: description.into(),
            reason: None,
            grant: None,
            grant_request: None,
            retry_after: None,
        }
    }

    /// The request is not one.
    pub fn request(description: impl Into<String>) -> Self {
        Self::new(400, "invalid_request", description)
    }

    /// There is no such service.
    pub(super) fn target(description: impl Into<String>) -> Self {
        Self::new(400, "invalid_target", description)
    }

    pub(super) fn scope(description: impl Into<String>) -> Self {
        Self::new(400, "invalid_scope", description)
    }

    pub(super) fn grant_type() -> Self {
        let description = "only `urn:ietf:params:oauth:grant-type:token-exchange` is a grant type here";
        Self::new(400, "unsupported_grant_type", description)
    }

    /// The proof of possession does not hold.
    pub(super) fn proof(description: impl Into<String>) -> Self {
        Self::new(400, "invalid_dpop_proof", description)
    }

    /// A token that does not count. `who` is the parameter that it came in.
    pub(super) fn token(who: &'static str, refusal: Refusal) -> Self {
        match refusal.reason {
            Reason::SystemOverload | Reason::SystemInternal => Self::unavailable(refusal.detail),
            // RFC 8693, section 2.2.2: whatever is wrong with the token.
            reason => {
                let description = format!("`{who}` is not accepted");
                Self { reason: Some(reason.family()), ..Self::request(description) }
            }
        }
    }

    /// The workload may not have it; its reason code says why.
    pub(super) fn denied(reason: Reason, description: impl Into<String>) -> Self {
        Self { reason: Some(reason.code()), ..Self::new(400, "access_denied", description) }
    }

    /// Somebody has to approve first (RFC 8628, section 3.5).
    pub(super) fn pending(grant: GrantId) -> Self {
        let description = "a grant has been asked for and waits for approval";
        let reason = Some(Reason::EntitlementGrantPending.code());
        Self { reason, grant: Some(grant), ..Self::new(400, "authorization_pending", description) }
    }

    /// Too often.
    pub(super) fn too_often(retry_after: Duration) -> Self {
        let description = "this workload has had as many tokens as it may have in this time";
        Self { retry_after: Some(retry_after), ..Self::new(429, "slow_down", description) }
    }

    /// Not now.
    pub fn unavailable(description: impl Into<String>) -> Self {
        let retry_after = Some(Duration::from_secs(1));
        Self { retry_after, ..Self::new(503, "temporarily_unavailable", description) }
    }

    /// About this grant.
    pub(super) fn about(mut self, grant: Option<GrantId>) -> Self {
        self.grant = grant;
        self
    }

    /// With what to ask for.
    pub(super) fn asking(mut self, request: Option<NewGrantRequest>) -> Self {
        self.grant_request = request.map(Box::new);
        self
    }
}
