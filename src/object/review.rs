//! What stays behind of the use of power: the review of a break-glass grant, and the record of a lifted revocation.
//!
//! Pure. Both are the control plane's alone. A review is open until somebody other than who asked closes it with a
//! note; it tells everything that the grant said, because the grant itself is forgotten some time after its end.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{FieldError, GrantId, ResourceName, Revocation, check_text};
use crate::clock::Timestamp;
use crate::credential::SpiffeId;

/// The review that a break-glass grant calls for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Review {
    /// The grant, whose id is the review's as well.
    pub grant: GrantId,
    /// Whose permission it was.
    pub workload: SpiffeId,
    /// What it was for.
    pub resources: Vec<ResourceName>,
    /// Which actions.
    pub actions: Vec<String>,
    /// Why it was asked for.
    pub reason: String,
    /// The ticket that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// Who asked.
    pub requested_by: String,
    /// Since when it was in force.
    pub not_before: Timestamp,
    /// Until when it was to be in force.
    pub not_after: Timestamp,
    /// How it was closed, once it has been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<Closing>,
}

/// How a review was closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Closing {
    /// Who closed it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// What they found.
    pub note: String,
}

/// The record of a revocation that was lifted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lift {
    /// The revocation as it was, whose id is the record's as well.
    pub revocation: Revocation,
    /// Who lifted it.
    pub lifted_by: String,
    /// When.
    pub lifted_at: Timestamp,
    /// Why.
    pub reason: String,
}

/// What an idempotency key stands for: what was asked with it, and what was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Idempotency {
    /// Lower-case hex SHA-256 over who used the key, and the key.
    pub key: String,
    /// Lower-case hex SHA-256 of what was asked with it.
    pub body: String,
    /// The answer but for its position, as a JSON text.
    pub answer: String,
    /// When it was used.
    pub at: Timestamp,
    /// Who used it. Missing in records of before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
}

// === impl Review ===

impl Review {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        check_text("reason", &self.reason, 1000)?;
        check_text("requested_by", &self.requested_by, 2048)?;
        match &self.closed {
            None => Ok(()),
            Some(Closing { by, note, .. }) => {
                if note.trim().is_empty() {
                    return Err(FieldError::new("note", "a review is closed with a note"));
                }
                if *by == self.requested_by {
                    return Err(FieldError::new("closed.by", "nobody reviews what they asked for"));
                }
                check_text("closed.by", by, 2048)?;
                check_text("note", note, 4000)
            }
        }
    }
}

// === impl Lift ===

impl Lift {
    /// Its key: the revocation's.
    pub const fn id(&self) -> Uuid {
        self.revocation.id
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.reason.trim().is_empty() {
            return Err(FieldError::new("reason", "a revocation is lifted for a reason"));
        }
        check_text("reason", &self.reason, 1000)?;
        check_text("lifted_by", &self.lifted_by, 2048)
    }
}

// === impl Idempotency ===

impl Idempotency {
    /// The longest answer that is kept, in bytes.
    pub const MAX_ANSWER: usize = 256 << 10;

    pub(super) fn check(&self) -> Result<(), FieldError> {
        let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        for (field, text) in [("key", &self.key), ("body", &self.body)] {
            if !is_digest(text) {
                return Err(FieldError::new(field, "is not a SHA-256 in lower-case hex"));
            }
        }
        if self.answer.len() > Self::MAX_ANSWER {
            return Err(FieldError::new("answer", "is too long to be kept for an idempotency key"));
        }
        Ok(())
    }
}
