//! Whether a chain is whole: every record unchanged, in its place, none missing, its end where it is known to have been.
//!
//! Plane: control; pure. Takes one record after another, so memory does not grow with their number, and goes on after
//! a finding, so that each is located. A chain proves nothing about its own end: whoever can write the whole file can
//! cut it off or make a suffix anew. That is what checkpoints that are kept elsewhere are for.

use serde::Serialize;

use super::chain::{Hash, Record, Sealed, Tip};

/// How many findings are kept; more are only counted.
const MAX_FINDINGS: usize = 200;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The record that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// What kind of thing.
    pub what: What,
    /// What exactly.
    pub detail: String,
}

/// Kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The hash is not that of the text.
    Edited,
    /// It is no record at all.
    Unreadable,
    /// It stands where another one belongs.
    Misplaced,
    /// Records are gone.
    Missing,
    /// It does not follow the one before it.
    Broken,
    /// A checkpoint says otherwise.
    Rewritten,
    /// A checkpoint says that there were more.
    Truncated,
    /// What the records say was written is not what is stored.
    Contradicted,
}

/// What a verification comes to.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// How many records there were.
    pub records: u64,
    /// Number of the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<u64>,
    /// The checkpoint of the last, `HASH:SEQ`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// How many more findings there were.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_findings: u64,
}

/// Verifies a chain.
#[derive(Debug)]
pub struct Verifier {
    genesis: Option<Tip>,
    expected: Vec<Tip>,
    last: Option<Tip>,
    first: Option<u64>,
    records: u64,
    findings: Vec<Finding>,
    more: u64,
}

// === impl Finding ===

impl Finding {
    /// About one record, or about none.
    pub fn new(seq: impl Into<Option<u64>>, what: What, detail: impl Into<String>) -> Self {
        Self { seq: seq.into(), what, detail: detail.into() }
    }
}

// === impl Verdict ===

impl Verdict {
    /// Whether nothing is wrong.
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty()
    }
}

// === impl Verifier ===

impl Verifier {
    /// With the checkpoints that the chain has to agree with.
    pub const fn new(expected: Vec<Tip>) -> Self {
        Self { genesis: None, expected, last: None, first: None, records: 0, findings: Vec::new(), more: 0 }
    }

    /// The chain has to be there from its beginning.
    #[must_use]
    pub const fn from_beginning(mut self, genesis: Tip) -> Self {
        self.genesis = Some(genesis);
        self.last = Some(genesis);
        self
    }

    /// Takes the next record, which is kept under the number `place` if it has one beside its own.
    pub fn record(&mut self, place: Option<u64>, sealed: &Sealed) -> Option<Record> {
        self.records += 1;
        let record: Option<Record> = serde_json::from_str(&sealed.text).ok();
        let follows = self.last.map(|tip| tip.seq.saturating_add(1));
        let seq = place.or(record.as_ref().map(|r| r.seq)).or(follows).unwrap_or(1);
        if Hash::of(sealed.text.as_bytes()) != sealed.hash {
            self.find(seq, What::Edited, format!("record {seq} was changed: its hash is not that of its text"));
        }
        match &record {
            None => self.find(seq, What::Unreadable, format!("record {seq} cannot be read as one")),
            Some(r) if r.seq != seq => {
                self.find(seq, What::Misplaced, format!("in the place of record {seq} stands record {}", r.seq));
            }
            Some(_) => {}
        }
        self.follow(seq, record.as_ref());
        if let Some(tip) = self.expected.iter().find(|tip| tip.seq == seq && tip.hash != sealed.hash).copied() {
            let detail =
                format!("record {seq} was written anew: its hash is {}, the checkpoint says {}", sealed.hash, tip.hash);
            self.find(seq, What::Rewritten, detail);
        }
        self.first.get_or_insert(seq);
        self.last = Some(Tip { seq, hash: sealed.hash });
        record
    }

    fn follow(&mut self, seq: u64, record: Option<&Record>) {
        let Some(last) = self.last else { return };
        let due = last.seq.saturating_add(1);
        if seq > due {
            let detail = if due + 1 == seq {
                format!("record {due} is missing")
            } else {
                format!("records {due} to {} are missing", seq - 1)
            };
            self.find(due, What::Missing, detail);
        } else if seq < due {
            self.find(seq, What::Misplaced, format!("record {seq} stands after record {}", last.seq));
        } else if record.is_some_and(|r| r.prev != last.hash) {
            let detail = match last.seq {
                0 => format!("record {seq} does not begin the chain of this store"),
                before => format!("record {seq} does not follow record {before}: one of the two was made anew"),
            };
            self.find(seq, What::Broken, detail);
        }
    }

    /// A line that is no record at all.
    pub fn unreadable(&mut self, detail: impl Into<String>) {
        self.find(None, What::Unreadable, detail);
    }

    /// Adds a finding of somebody who compares the records with something else.
    pub fn find(&mut self, seq: impl Into<Option<u64>>, what: What, detail: impl Into<String>) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding::new(seq, what, detail));
        } else {
            self.more += 1;
        }
    }

    /// The last record so far.
    pub const fn tip(&self) -> Option<Tip> {
        self.last
    }

    /// There are no more records.
    pub fn finish(mut self) -> Verdict {
        let last = self.last.map_or(0, |tip| tip.seq);
        for tip in std::mem::take(&mut self.expected) {
            let before = self.first.unwrap_or(1) > tip.seq;
            if tip.seq > last {
                let detail = format!("the chain ends with record {last}, the checkpoint is of record {}", tip.seq);
                self.find(last.saturating_add(1), What::Truncated, detail);
            } else if before && self.genesis.is_none_or(|genesis| genesis != tip) {
                let detail = format!("record {}, which the checkpoint is of, is not there", tip.seq);
                self.find(tip.seq, What::Missing, detail);
            }
        }
        Verdict {
            records: self.records,
            first: self.first,
            checkpoint: self.last.map(|tip| tip.to_string()),
            findings: self.findings,
            more_findings: self.more,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}
