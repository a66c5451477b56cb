//! How the keys of one issuer stand: for operators, by way of the API.
//!
//! Plane: control. A reading, not a record: it starts anew with the process. Messages are ours and hold no secrets.

use serde::Serialize;

use super::error::FetchError;
use crate::clock::Timestamp;

/// How the keys of one issuer stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct KeyStatus {
    /// Where they come from, as in `jwks_uri`.
    pub source: &'static str,
    /// When they were last asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_attempt: Option<Timestamp>,
    /// When the source last answered with a set that is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_success: Option<Timestamp>,
    /// When the keys last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_change: Option<Timestamp>,
    /// The last failure. Older than `last_success`: it is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<KeyError>,
    /// Failures in a row, until now.
    pub failures: u32,
    /// When they are asked for next; absent when the source tells by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_refresh: Option<Timestamp>,
    /// `spiffe_sequence` of the bundle in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct KeyError {
    /// When.
    pub at: Timestamp,
    /// What kind, as in the metrics.
    pub result: &'static str,
    /// What went wrong, and where.
    pub message: String,
}

// === impl KeyStatus ===

impl KeyStatus {
    pub(super) const fn new(source: &'static str) -> Self {
        Self {
            source,
            last_attempt: None,
            last_success: None,
            last_change: None,
            last_error: None,
            failures: 0,
            next_refresh: None,
            sequence: None,
        }
    }

    pub(super) fn succeeded(&mut self, at: Timestamp, changed: bool, sequence: Option<u64>) {
        self.last_attempt = Some(at);
        self.last_success = Some(at);
        if changed {
            self.last_change = Some(at);
        }
        self.failures = 0;
        self.sequence = sequence;
    }

    pub(super) fn failed(&mut self, at: Timestamp, error: &FetchError) {
        self.last_attempt = Some(at);
        self.failures = self.failures.saturating_add(1);
        self.last_error = Some(KeyError { at, result: error.result.name(), message: error.message.clone() });
    }
}
