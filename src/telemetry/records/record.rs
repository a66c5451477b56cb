//! One decision record and how it is written.
//!
//! Plane: cross-cutting. [`Record::new`] is on the hot path and only moves the decision and copies the path; the rest
//! runs on the writer's thread. Written by hand because at 20,000 checks a second serialisation is most of what a
//! record costs; a test holds it against a JSON parser. INVARIANT: holds no token, no header value and no query.

use std::fmt;
use std::io::Write;
use std::time::Duration;

use smallvec::SmallVec;
use uuid::fmt::Hyphenated;

use crate::authz::{Decision, Door};
use crate::clock::Timestamp;
use crate::telemetry::open_record::Forwarded;
use crate::wire::Position;

/// A client chooses path and method; a record does not grow with them.
const MAX_PATH: usize = 1024;
const MAX_METHOD: usize = 32;

/// A decision and what it was about.
pub(crate) struct Record {
    decision: Decision,
    door: Door,
    duration: Duration,
    method: SmallVec<[u8; 8]>,
    path: SmallVec<[u8; 48]>,
    forwarded: Option<Forwarded>,
}

/// Writes records, and remembers what seldom changes from one to the next.
#[derive(Debug, Default)]
pub(super) struct Writer {
    position: Option<(Position, Vec<u8>)>,
    second: (u64, Vec<u8>),
}

// === impl Record ===

impl Record {
    /// `path` may carry a query, which is left out.
    pub(crate) fn new(door: Door, decision: Decision, method: &str, path: &str, duration: Duration) -> Self {
        let path = path.split('?').next().unwrap_or_default();
        Self {
            decision,
            door,
            duration,
            method: SmallVec::from_slice(bounded(method, MAX_METHOD)),
            path: SmallVec::from_slice(bounded(path, MAX_PATH)),
            forwarded: None,
        }
    }

    /// What became of the request.
    pub(crate) fn forwarded(&mut self, what: Forwarded) {
        self.forwarded = Some(what);
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("id", &self.decision.id).field("reason", &self.decision.reason).finish()
    }
}

/// The first `max` bytes, cut between characters.
fn bounded(text: &str, max: usize) -> &[u8] {
    let end = text.floor_char_boundary(max);
    text.as_bytes().get(..end).unwrap_or_default()
}

// === impl Writer ===

impl Writer {
    /// Appends the record and a line break.
    pub(super) fn write(&mut self, record: &Record, out: &mut Vec<u8>) {
        let d = &record.decision;
        out.extend_from_slice(b"{\"time\":\"");
        self.time(decided_at(d), out);
        out.extend_from_slice(b"\",\"decision_id\":\"");
        uuid(d.id.0.hyphenated(), out);
        out.extend_from_slice(if d.reason.is_allow() { b"\",\"decision\":\"allow" } else { b"\",\"decision\":\"deny" });
        out.extend_from_slice(b"\",\"reason\":\"");
        out.extend_from_slice(d.reason.code().as_bytes());
        out.extend_from_slice(b"\",\"door\":\"");
        out.extend_from_slice(record.door.name().as_bytes());
        out.push(b'"');
        for (name, value) in [
            ("workload", &d.workload),
            ("subject", &d.subject),
            ("actor", &d.actor),
            ("asked_by", &d.asked_by),
            ("resource", &d.resource),
            ("action", &d.action),
            ("token_id", &d.token_id),
            ("certificate_serial", &d.certificate_serial),
            ("detail", &d.detail),
        ] {
            if let Some(value) = value {
                field(name, value.as_bytes(), out);
            }
        }
        if let Some(grant) = d.grant {
            out.extend_from_slice(b",\"grant_id\":\"");
            uuid(grant.0.hyphenated(), out);
            out.push(b'"');
        }
        if !record.method.is_empty() {
            field("method", &record.method, out);
        }
        if !record.path.is_empty() {
            field("path", &record.path, out);
        }
        if let Some(call) = &d.mcp {
            for (name, value) in call.fields() {
                field(name, value.as_bytes(), out);
            }
        }
        if let Some(earlier) = &d.earlier_actors {
            list("earlier_actors", earlier.iter().map(|actor| &**actor), out);
        }
        if !d.policies.is_empty() {
            list("policies", d.policies.iter().map(|policy| &**policy), out);
        }
        if let Some(position) = d.position {
            out.extend_from_slice(b",\"revision\":\"");
            self.position(position, out);
            out.extend_from_slice(b"\",\"behind_ms\":");
            number(d.behind_ms, out);
        }
        out.extend_from_slice(if d.cached { b",\"cached\":true" } else { b",\"cached\":false" });
        out.extend_from_slice(b",\"duration_us\":");
        microseconds(record.duration, out);
        if let Some(forwarded) = &record.forwarded {
            let took = match forwarded {
                Forwarded::Answered { address, status, took } => {
                    field("upstream", address.as_bytes(), out);
                    out.extend_from_slice(b",\"upstream_status\":");
                    number(u64::from(*status), out);
                    took
                }
                Forwarded::Failed { why, took } => {
                    field("upstream_error", why.name().as_bytes(), out);
                    took
                }
            };
            out.extend_from_slice(b",\"upstream_us\":");
            microseconds(*took, out);
        }
        out.extend_from_slice(b"}\n");
    }

    /// RFC 3339 with milliseconds.
    fn time(&mut self, at: Timestamp, out: &mut Vec<u8>) {
        let (second, text) = &mut self.second;
        if text.is_empty() || *second != at.as_secs() {
            text.clear();
            // Writing to a `Vec` does not fail.
            let _ = write!(text, "{}", Timestamp::from_secs(at.as_secs()));
            text.truncate("0000-00-00T00:00:00.".len());
            *second = at.as_secs();
        }
        out.extend_from_slice(text);
        let _ = write!(out, "{:03}Z", at.as_millis() % 1000);
    }

    fn position(&mut self, position: Position, out: &mut Vec<u8>) {
        match &self.position {
            Some((known, text)) if *known == position => out.extend_from_slice(text),
            _ => {
                let text = position.to_string().into_bytes();
                out.extend_from_slice(&text);
                self.position = Some((position, text));
            }
        }
    }
}

/// The time is in the id: the first 48 bits of a UUID version 7.
fn decided_at(decision: &Decision) -> Timestamp {
    let [a, b, c, d, e, f, ..] = *decision.id.0.as_bytes();
    Timestamp::from_millis(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
}

fn uuid(id: Hyphenated, out: &mut Vec<u8>) {
    let mut text = [0_u8; Hyphenated::LENGTH];
    out.extend_from_slice(id.encode_lower(&mut text).as_bytes());
}

fn microseconds(span: Duration, out: &mut Vec<u8>) {
    number(u64::try_from(span.as_micros()).unwrap_or(u64::MAX), out);
}

fn number(mut n: u64, out: &mut Vec<u8>) {
    let mut digits: SmallVec<[u8; 20]> = SmallVec::new();
    loop {
        digits.push(b'0' + (n % 10) as u8);
        n /= 10;
        if n == 0 {
            break;
        }
    }
    digits.reverse();
    out.extend_from_slice(&digits);
}

/// An array of strings, of which there is at least one.
fn list<'a>(name: &str, values: impl Iterator<Item = &'a str>, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    let mut before = b'[';
    for value in values {
        out.push(before);
        string(value.as_bytes(), out);
        before = b',';
    }
    out.push(b']');
}

fn field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    string(value, out);
}

/// A JSON string of valid UTF-8.
fn string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let is_special = |b: u8| b < 0x20 || b == b'"' || b == b'\\' || b == 0x7f;
    // Most texts have nothing special in them, and a loop that is never left early looks at many bytes at a time.
    if !text.iter().fold(false, |any, &b| any | is_special(b)) {
        out.extend_from_slice(text);
        out.push(b'"');
        return;
    }
    let mut rest = text;
    while let Some(at) = rest.iter().position(|&b| is_special(b)) {
        let (plain, from) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((&special, after)) = from.split_first() else { break };
        match special {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                let _ = write!(out, "\\u{control:04x}");
            }
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}
