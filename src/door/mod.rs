//! What every door shares: a request that is its own, the way to its decision, and what HTTP is answered.
//!
//! Plane: hot path. [`Checks`] admits, decides through the caches, hands what takes a signature to the verification pool,
//! waits for a use of a counted grant, and tells of the one outcome; [`answer`] makes a denial's response and the headers
//! of an allow. Decides nothing itself: doors that ask here cannot disagree. INVARIANT: every way out is an allow that the
//! engine made or a denial; a panic is a denial; a check that is dropped is told of as one that ended without an answer.

mod accept;
pub mod answer;
mod asked;
mod checks;
mod decide;
mod desk;
mod identity;
mod later;
mod reading;
mod recheck;
mod uses;

use crate::cache::{AdaptiveLimits, VerificationLimits};

pub(crate) use self::accept::{Accept, accept};
pub use self::asked::{Asked, OwnedPeer};
pub use self::checks::{Checked, Checks};
pub(crate) use self::decide::Decide;
pub(crate) use self::desk::Desk;
pub(crate) use self::identity::{DECISION_ID, IDENTITY, NOT_FOR_UPSTREAM, identity, is_alias};
pub(crate) use self::later::{Decided, Later, Question, Refused};
pub use self::reading::Unread;

/// What is put up with, all doors together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Checks under way; more are answered `system.overload`.
    pub max_concurrent_checks: usize,
    /// How the limit of checks under way follows their delay; without, only `max_concurrent_checks` counts.
    pub adaptive: Option<AdaptiveLimits>,
    /// How many tokens may be verified at once, and wait for it; more are answered `system.overload`.
    pub verification: VerificationLimits,
    /// Headers of a checked request.
    pub max_headers: usize,
    /// Bytes of their names and values.
    pub max_header_bytes: usize,
    /// Where a denied caller can ask for a grant; part of a denial's `grant_request`.
    pub grant_request_url: Option<String>,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            max_concurrent_checks: 10_000,
            adaptive: Some(AdaptiveLimits::default()),
            verification: VerificationLimits::default(),
            max_headers: 256,
            max_header_bytes: 1 << 16,
            grant_request_url: None,
        }
    }
}
