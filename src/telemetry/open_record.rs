//! The record of an allowed request that this process forwards itself: written once it is known what became of it.
//!
//! Plane: hot path. INVARIANT: it is written exactly once: with the head of the answer, with why there is none, or when it
//! is dropped because nobody waits for one any more. It waits for nothing longer than the head may take; metrics and spans
//! of the decision have been told before. A door that forwards nothing never has one.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Telemetry;
use super::records::Record;

/// What became of a request that was forwarded, or was to be.
#[derive(Debug, Clone)]
pub(super) enum Forwarded {
    /// The head of an answer came.
    Answered {
        /// Of the upstream.
        address: Arc<str>,
        status: u16,
        took: Duration,
    },
    /// None did.
    Failed { why: Unanswered, took: Duration },
}

/// Why an upstream did not answer an allowed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// The service is not forwarded to.
    NoUpstream,
    /// Too many requests were under way.
    Full,
    /// There was no connection.
    Connect,
    /// The time was over.
    Timeout,
    /// The connection broke, or what came was no answer to this.
    Broken,
    /// The client's body was too large, or broke off.
    Body,
    /// It was refused after all, for what goes with it; that has a record of its own.
    Refused,
    /// It was not allowed any more; that has a record of its own.
    Cut,
    /// The client, or the connection that it came over, was gone.
    ClientGone,
}

/// A record that is not written yet, if there is one.
#[derive(Default)]
pub struct OpenRecord(Option<Box<Open>>);

struct Open {
    telemetry: Arc<Telemetry>,
    since: Instant,
    /// Unless none are kept.
    record: Option<Record>,
}

// === impl OpenRecord ===

impl OpenRecord {
    pub(super) fn new(telemetry: &Arc<Telemetry>, since: Instant, record: impl FnOnce() -> Record) -> Self {
        let record = telemetry.records.are_kept().then(record);
        Self(Some(Box::new(Open { telemetry: Arc::clone(telemetry), since, record })))
    }

    /// Takes it: what is left writes nothing.
    #[must_use = "what is dropped is written as that of a client that is gone"]
    pub fn take(&mut self) -> Self {
        Self(self.0.take())
    }

    /// The upstream at `address` answered with this status.
    pub fn answered(mut self, address: &Arc<str>, status: u16) {
        self.write(|took| Forwarded::Answered { address: Arc::clone(address), status, took });
    }

    /// No upstream did.
    pub fn unanswered(mut self, why: Unanswered) {
        self.write(|took| Forwarded::Failed { why, took });
    }

    fn write(&mut self, what: impl FnOnce(Duration) -> Forwarded) {
        let Some(open) = self.0.take() else { return };
        let Open { telemetry, since, record } = *open;
        let forwarded = what(since.elapsed());
        telemetry.metrics.forwarded(&forwarded);
        if let Some(mut record) = record {
            record.forwarded(forwarded);
            telemetry.records.push(|| record);
        }
    }
}

impl Drop for OpenRecord {
    fn drop(&mut self) {
        self.write(|took| Forwarded::Failed { why: Unanswered::ClientGone, took });
    }
}

impl fmt::Debug for OpenRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpenRecord").field(&self.0.as_ref().and_then(|open| open.record.as_ref())).finish()
    }
}

// === impl Unanswered ===

impl Unanswered {
    /// Every one, in the order of their numbers.
    pub(super) const ALL: [Self; 9] = [
        Self::NoUpstream,
        Self::Full,
        Self::Connect,
        Self::Timeout,
        Self::Broken,
        Self::Body,
        Self::Refused,
        Self::Cut,
        Self::ClientGone,
    ];

    /// As it is written in records and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoUpstream => "no_upstream",
            Self::Full => "full",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Body => "body",
            Self::Refused => "refused",
            Self::Cut => "cut",
            Self::ClientGone => "client_gone",
        }
    }
}
