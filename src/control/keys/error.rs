//! Why keys could not be brought up to date.
//!
//! Plane: control. The message is for operators: it names the host, the file or the field, and holds no byte of an
//! answer's body, no credential and no query of a URL. The result is a closed enum, for metrics.

use crate::control::commit::CommitError;
use crate::object::FieldError;
use crate::telemetry::KeyFetch;

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    /// What kind of failure.
    pub result: KeyFetch,
    /// What went wrong, and where.
    pub message: String,
}

// === impl FetchError ===

impl FetchError {
    /// Not allowed by the configuration.
    pub(in crate::control) fn refused(message: impl Into<String>) -> Self {
        Self { result: KeyFetch::Refused, message: message.into() }
    }

    /// Nobody answered, or nobody who could prove who they are.
    pub(in crate::control) fn unreachable(message: impl Into<String>) -> Self {
        Self { result: KeyFetch::Unreachable, message: message.into() }
    }

    /// The answer is not one that keys could be taken from.
    pub(in crate::control) fn answer(message: impl Into<String>) -> Self {
        Self { result: KeyFetch::BadAnswer, message: message.into() }
    }

    /// The keys are not ones that could be used.
    pub(in crate::control) fn invalid(message: impl Into<String>) -> Self {
        Self { result: KeyFetch::Invalid, message: message.into() }
    }

    /// The bundle is older than the one that is held.
    pub(in crate::control) fn rollback(held: u64, got: u64) -> Self {
        let message = format!("the bundle has `spiffe_sequence` {got}, and {held} is held: an older one is refused");
        Self { result: KeyFetch::Rollback, message }
    }

    /// The bundle says something else under the number of the one that is held.
    pub(super) fn same_sequence(held: u64) -> Self {
        let message =
            format!("the bundle has `spiffe_sequence` {held}, which is held with other contents: which is newer?");
        Self { result: KeyFetch::Rollback, message }
    }

    /// The task that asks has panicked.
    pub(super) fn failed() -> Self {
        let message = "the task that keeps the keys up to date has failed, and starts over".to_owned();
        Self { result: KeyFetch::Failed, message }
    }
}

impl From<FieldError> for FetchError {
    fn from(error: FieldError) -> Self {
        Self::invalid(format!("the key set cannot be used: {error}"))
    }
}

impl From<CommitError> for FetchError {
    fn from(error: CommitError) -> Self {
        Self { result: KeyFetch::NotStored, message: format!("the keys could not be stored: {error}") }
    }
}
