//! Audit: who did what and what became of it, as a chain of records that cannot be changed unseen.
//!
//! Plane: control. A record of a change is written in the transaction of the change, so neither is there without the
//! other. What changes nothing but was refused, and reads of the audit trail itself, go through a bounded queue.
//! Reads of other things are not recorded: nearly all of them are polls, and each would cost a durable write.
//! INVARIANT: a record holds no secret. Digests stand for documents, and tokens do not occur at all.

pub mod chain;
pub mod recorder;
pub mod verify;

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::chain::{Hash, Record, Sealed, Tip};
pub use self::recorder::Recorder;
pub use self::verify::{Finding, Verifier};
use super::principal::{Principal, Via};
use crate::object::Kind;
use crate::wire::Revision;

/// What the control plane itself is called.
const SYSTEM: &str = "system";
/// The longest path, object or author that a record repeats from a request, in bytes.
const LONGEST: usize = 512;

/// Who did something, and how they proved who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    /// Its name; empty for a caller that did not say who it is.
    pub name: Arc<str>,
    /// What it is: `person`, `automation`, `workload`, `system`, `unknown`.
    pub kind: Cow<'static, str>,
    /// How it proved that; nothing when it did not.
    pub via: Option<Via>,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was not done, because the caller may not, or what was asked for cannot be.
    Refused,
    /// The control plane failed. Whether it was done shows in the record of the change, if there is one.
    Failed,
}

/// What became of one object: the document's digest, or nothing when it was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Changed {
    /// Its kind, or `operator`.
    pub kind: Cow<'static, str>,
    /// Its key.
    pub key: String,
    /// SHA-256 of the document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Hash>,
}

/// Something that happened, before it has a place in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Who.
    pub author: Author,
    /// What, as in `grant.approve`.
    pub action: Cow<'static, str>,
    /// On what; the request's method and path where no object is known.
    pub object: String,
    /// In which request.
    pub request_id: String,
    /// Address of the caller, where it matters.
    pub peer: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
    /// Status of the answer, for what was refused or failed.
    pub status: Option<u16>,
    /// Under which revision.
    pub revision: Option<Revision>,
    /// What it changed.
    pub changes: Vec<Changed>,
}

// === impl Author ===

impl Author {
    /// The control plane itself, or the part of it that has this name.
    pub fn system(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), kind: Cow::Borrowed(SYSTEM), via: Some(Via::System) }
    }

    /// A caller that is not known.
    pub fn unknown() -> Self {
        Self { name: Arc::from(""), kind: Cow::Borrowed("unknown"), via: None }
    }
}

impl From<&Principal> for Author {
    fn from(p: &Principal) -> Self {
        Self { name: Arc::clone(&p.name), kind: Cow::Borrowed(p.kind.name()), via: Some(p.via) }
    }
}

impl From<&str> for Author {
    fn from(name: &str) -> Self {
        Self::system(name)
    }
}

impl From<Arc<str>> for Author {
    fn from(name: Arc<str>) -> Self {
        Self::system(name)
    }
}

// === impl Event ===

impl Event {
    /// Something that was done to `object`.
    pub fn done(author: Author, action: impl Into<Cow<'static, str>>, object: &str, request_id: &str) -> Self {
        Self {
            author,
            action: action.into(),
            object: bounded(object),
            request_id: request_id.to_owned(),
            peer: None,
            outcome: Outcome::Done,
            status: None,
            revision: None,
            changes: Vec::new(),
        }
    }

    /// The same, answered with this status.
    #[must_use]
    pub fn answered(mut self, status: u16) -> Self {
        self.outcome = match status {
            500.. => Outcome::Failed,
            400.. => Outcome::Refused,
            _ => Outcome::Done,
        };
        self.status = Some(status);
        self
    }
}

// === impl Changed ===

impl Changed {
    /// An object that was written or, without a document, deleted.
    pub fn object(kind: Kind, key: &str, body: Option<&[u8]>) -> Self {
        Self { kind: Cow::Owned(kind.to_string()), key: key.to_owned(), sha256: body.map(Hash::of) }
    }

    /// Whether it is of this object.
    pub fn is(&self, kind: Kind, key: &str) -> bool {
        self.key == key && *self.kind == *kind.to_string()
    }
}

/// `text`, not longer than a record repeats.
fn bounded(text: &str) -> String {
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let mut cut: String =
        text.char_indices().take_while(|(at, c)| at + c.len_utf8() <= LONGEST).map(|(_, c)| c).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests;
