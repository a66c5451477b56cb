//! The chain: each record is one line of JSON that holds the hash of the one before it.
//!
//! Plane: control; pure. What is hashed is the text of the record itself, so that nothing has to be written again in
//! some canonical form to check it: a line of an export without its last member is what `sha256sum` is to be given.
//! The first record follows the hash of the store's epoch, so a chain of one store is not taken for another's.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Changed, Event, Outcome};
use crate::clock::Timestamp;
use crate::control::principal::Via;
use crate::wire::{Epoch, Revision};

/// Before the epoch in what the first record follows.
const GENESIS: &str = "portcullis.audit.v1 ";
/// Before the hash at the end of a line.
const MEMBER: &str = ",\"hash\":\"";

/// SHA-256 of a record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash([u8; 32]);

/// How far a chain has come: all that needs to be kept elsewhere to find later that its end was cut off or rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// Number of the last record; zero for none.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "AuditRecord", extend("additionalProperties" = true))]
pub struct Record {
    /// Its number; the first is 1, and none is left out.
    pub seq: u64,
    /// Hash of the record before it.
    pub prev: Hash,
    /// When.
    pub at: Timestamp,
    /// Who; empty for a caller that is not known.
    pub author: String,
    /// What the author is.
    pub kind: Cow<'static, str>,
    /// How the author proved who it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Via>,
    /// What, as in `grant.approve`.
    pub action: Cow<'static, str>,
    /// On what.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// In which request; empty for what no request asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// Address of the caller, where it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
    /// Status of the answer, for what was refused or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Under which revision it was committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    /// What it changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Changed>,
}

/// A record in its place: its text, and the hash of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The record as JSON, without its hash.
    pub text: String,
    /// SHA-256 of the text.
    pub hash: Hash,
}

// === impl Hash ===

impl Hash {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut out = [0; 32];
        for (to, from) in out.iter_mut().zip(digest(&SHA256, bytes).as_ref()) {
            *to = *from;
        }
        Self(out)
    }

    /// From its bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl schemars::JsonSchema for Hash {
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Sha256")
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256, in hex." })
    }
}

impl FromStr for Hash {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || "a hash is 64 characters of 0-9 and a-f".to_owned();
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let (pairs, rest) = s.as_bytes().as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return Err(bad());
        }
        let mut out = [0; 32];
        for (to, [high, low]) in out.iter_mut().zip(pairs) {
            *to = digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low).ok_or_else(bad)?;
        }
        Ok(Self(out))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

// === impl Tip ===

impl Tip {
    /// Before the first record of the store that has this epoch.
    pub fn genesis(epoch: Epoch) -> Self {
        Self { seq: 0, hash: Hash::of(format!("{GENESIS}{epoch}").as_bytes()) }
    }
}

/// As `audit checkpoint` prints it: `HASH:SEQ`.
impl fmt::Display for Tip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.hash, self.seq)
    }
}

impl FromStr for Tip {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (hash, seq) = s.split_once(':').ok_or("a checkpoint is HASH:SEQ")?;
        let seq = seq.parse().map_err(|_e| "a checkpoint is HASH:SEQ, and SEQ a number".to_owned())?;
        Ok(Self { seq, hash: hash.parse()? })
    }
}

// === impl Sealed ===

impl Sealed {
    /// Puts an event after `tip`, which moves on to it.
    pub fn after(tip: &mut Tip, event: Event, at: Timestamp) -> Result<Self, serde_json::Error> {
        let record = Record {
            seq: tip.seq.saturating_add(1),
            prev: tip.hash,
            at,
            author: event.author.name.to_string(),
            kind: event.author.kind,
            via: event.author.via,
            action: event.action,
            object: event.object,
            request_id: event.request_id,
            peer: event.peer,
            outcome: event.outcome,
            status: event.status,
            revision: event.revision,
            changes: event.changes,
        };
        let text = serde_json::to_string(&record)?;
        let hash = Hash::of(text.as_bytes());
        *tip = Tip { seq: record.seq, hash };
        Ok(Self { text, hash })
    }

    /// A line of an export: the record with its hash as the last member.
    pub fn line(&self) -> String {
        let head = self.text.strip_suffix('}').unwrap_or(&self.text);
        format!("{head}{MEMBER}{}\"}}", self.hash)
    }

    /// Of a line of an export. Whether the hash is that of the text is for the verifier to say.
    pub fn of_line(line: &str) -> Option<Self> {
        let (head, hash) = line.strip_suffix("\"}")?.rsplit_once(MEMBER)?;
        Some(Self { text: format!("{head}}}"), hash: hash.parse().ok()? })
    }
}
