//! What came of the requests of one turn of one target: answers, failures, latencies.
//!
//! Plane: composition; no I/O. INVARIANT: a request that was due is counted, whatever became of it, and one that got no
//! answer counts with at least the timeout: it was not answered any sooner. Percentiles are over all of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::{CreationError, Histogram};

use super::expect::Expect;

/// Wrong answers that are shown.
const EXAMPLES: usize = 5;
/// Latencies are kept in nanoseconds to three digits, up to ten minutes.
const MAX_NANOS: u64 = 600_000_000_000;

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Answer {
    /// Go ahead.
    Allow,
    /// Do not, with this HTTP status for the client.
    Deny(u16),
    /// An HTTP status, through a proxy.
    Http(u16),
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Failure {
    /// None in time.
    Timeout,
    /// No connection could be made.
    Unreachable,
    /// The connection broke, or the stream was reset.
    Closed,
    /// A gRPC status other than OK.
    Grpc(u32),
    /// Something that is not the protocol.
    Protocol,
    /// A proxy's own 502 or 504.
    Gateway(u16),
    /// It was due, but so many were waiting that it was not sent in time.
    Unsent,
}

/// A wrong answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Example {
    /// The request's place in the plan.
    pub(super) template: usize,
    /// What should have come.
    pub(super) expect: Expect,
    /// What came.
    pub(super) got: Answer,
}

/// The count.
#[derive(Debug)]
pub(super) struct Tally {
    /// From when a request was due to its answer.
    pub(super) latency: Histogram<u64>,
    /// From when a request was due to when it was sent.
    pub(super) lag: Histogram<u64>,
    pub(super) answers: BTreeMap<Answer, u64>,
    pub(super) failures: BTreeMap<Failure, u64>,
    pub(super) wrong: u64,
    pub(super) examples: Vec<Example>,
    /// Time in which requests were due.
    pub(super) elapsed: Duration,
    /// Whether it ended early because new tokens ran out.
    pub(super) exhausted: bool,
    /// What was last to go wrong on a connection.
    pub(super) trouble: Option<String>,
}

/// A request from its due time on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Due {
    pub(super) at: Instant,
    pub(super) sent: Option<Instant>,
}

// === impl Tally ===

impl Tally {
    pub(super) fn new() -> Result<Self, CreationError> {
        Ok(Self {
            latency: Histogram::new_with_bounds(1, MAX_NANOS, 3)?,
            lag: Histogram::new_with_bounds(1, MAX_NANOS, 3)?,
            answers: BTreeMap::new(),
            failures: BTreeMap::new(),
            wrong: 0,
            examples: Vec::new(),
            elapsed: Duration::ZERO,
            exhausted: false,
            trouble: None,
        })
    }

    /// Counts what came of a request. A failure counts with at least `timeout`.
    pub(super) fn count(
        &mut self,
        due: Due,
        outcome: Result<Answer, Failure>,
        (template, expect): (usize, Expect),
        timeout: Duration,
    ) {
        let mut took = due.at.elapsed();
        match outcome {
            Ok(answer) => {
                *self.answers.entry(answer).or_default() += 1;
                if !answer.is(expect) {
                    self.wrong += 1;
                    if self.examples.len() < EXAMPLES {
                        self.examples.push(Example { template, expect, got: answer });
                    }
                }
            }
            Err(failure) => {
                *self.failures.entry(failure).or_default() += 1;
                took = took.max(timeout);
            }
        }
        self.latency.saturating_record(nanos(took));
        if let Some(sent) = due.sent {
            self.lag.saturating_record(nanos(sent.saturating_duration_since(due.at)));
        }
    }

    /// Adds another turn of the same target.
    pub(super) fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _fits = self.latency.add(&other.latency).and_then(|()| self.lag.add(&other.lag));
        for (answer, n) in &other.answers {
            *self.answers.entry(*answer).or_default() += n;
        }
        for (failure, n) in &other.failures {
            *self.failures.entry(*failure).or_default() += n;
        }
        self.wrong += other.wrong;
        let room = EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.iter().take(room).cloned());
        self.elapsed += other.elapsed;
        self.exhausted |= other.exhausted;
        self.trouble = self.trouble.take().or_else(|| other.trouble.clone());
    }

    /// Answers of any kind.
    pub(super) fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Requests without one.
    pub(super) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Answers a second.
    pub(super) fn rate(&self) -> f64 {
        self.answered() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

// === impl Answer ===

impl Answer {
    /// Whether it is the one that is expected.
    pub(super) const fn is(self, expect: Expect) -> bool {
        match (expect, self) {
            (Expect::Any, _) | (Expect::Allow, Self::Allow) => true,
            (Expect::Allow, Self::Http(status)) => status < 400,
            // Not 5xx: a server that is overloaded or has no state denies too.
            (Expect::Deny, Self::Deny(status) | Self::Http(status)) => 400 <= status && status < 500,
            (Expect::Status(status), Self::Deny(got) | Self::Http(got)) => status == got,
            (Expect::Status(_), Self::Allow) | (Expect::Allow, Self::Deny(_)) | (Expect::Deny, Self::Allow) => false,
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Deny(status) => write!(f, "deny {status}"),
            Self::Http(status) => write!(f, "{status}"),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Timeout => f.write_str("timeout"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Closed => f.write_str("connection closed or stream reset"),
            Self::Grpc(code) => write!(f, "gRPC status {code}"),
            Self::Protocol => f.write_str("protocol error"),
            Self::Gateway(status) => write!(f, "gateway {status}"),
            Self::Unsent => f.write_str("not sent in time"),
        }
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tally: &Tally, quantile: f64) -> u64 {
        tally.latency.value_at_quantile(quantile)
    }

    #[test]
    fn what_got_no_answer_counts_with_the_timeout() {
        let mut tally = Tally::new().unwrap();
        let timeout = Duration::from_secs(2);
        let due = Due { at: Instant::now(), sent: Some(Instant::now()) };
        for _ in 0..90 {
            tally.count(due, Ok(Answer::Allow), (0, Expect::Allow), timeout);
        }
        for failure in [Failure::Closed, Failure::Timeout] {
            for _ in 0..5 {
                tally.count(due, Err(failure), (0, Expect::Allow), timeout);
            }
        }
        assert_eq!((tally.answered(), tally.failed(), tally.wrong), (90, 10, 0));
        assert!(at(&tally, 0.85) < 500_000_000);
        assert!(at(&tally, 0.95) >= 1_998_000_000, "{}", at(&tally, 0.95));
        let mut sum = Tally::new().unwrap();
        sum.add(&tally);
        sum.add(&tally);
        assert_eq!((sum.latency.len(), sum.failures[&Failure::Closed]), (200, 10));
    }

    #[test]
    fn wrong_answers_are_counted_and_a_few_kept() {
        let mut tally = Tally::new().unwrap();
        let due = Due { at: Instant::now(), sent: None };
        for _ in 0..9 {
            tally.count(due, Ok(Answer::Deny(403)), (3, Expect::Allow), Duration::ZERO);
        }
        assert_eq!((tally.wrong, tally.examples.len()), (9, EXAMPLES));
        assert_eq!(tally.examples[0], Example { template: 3, expect: Expect::Allow, got: Answer::Deny(403) });
        for (answer, expect, right) in [
            (Answer::Allow, Expect::Deny, false),
            (Answer::Deny(503), Expect::Deny, false),
            (Answer::Deny(403), Expect::Deny, true),
            (Answer::Http(503), Expect::Deny, false),
            (Answer::Deny(503), Expect::Status(403), false),
            (Answer::Deny(403), Expect::Status(403), true),
            (Answer::Allow, Expect::Status(200), false),
            (Answer::Http(204), Expect::Allow, true),
            (Answer::Http(401), Expect::Allow, false),
            (Answer::Http(401), Expect::Deny, true),
            (Answer::Http(404), Expect::Status(404), true),
        ] {
            assert_eq!(answer.is(expect), right, "{answer} {expect}");
        }
    }
}
