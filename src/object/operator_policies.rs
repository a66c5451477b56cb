//! The policies for operators in force, as published: text, digest, author.
//!
//! Pure. Immutable per revision, and never sent to a sidecar: who may call what of the API is the control plane's
//! business alone.

use serde::{Deserialize, Serialize};

use super::policy_set::hex_sha256;
use super::{FieldError, POLICY_SET_KEY, check_text};

/// A published set of operator policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OperatorPolicySet {
    /// Cedar source text. Every policy has an `@id`.
    pub text: String,
    /// Lower-case hex SHA-256 of `text`.
    pub digest: String,
    /// Who published it.
    pub author: String,
}

impl OperatorPolicySet {
    /// The key of the one set.
    pub const KEY: &str = POLICY_SET_KEY;
    /// The largest text, in bytes. Every call is put to all of it.
    pub const MAX_TEXT: usize = 1024 * 1024;

    /// A set with the digest of `text`.
    pub fn new(text: String, author: String) -> Self {
        let digest = hex_sha256(text.as_bytes());
        Self { text, digest, author }
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.text.len() > Self::MAX_TEXT {
            return Err(FieldError::new("text", "a set of operator policies has at most 1 MiB"));
        }
        if self.digest != hex_sha256(self.text.as_bytes()) {
            return Err(FieldError::new("digest", "is not the SHA-256 of `text`"));
        }
        check_text("author", &self.author, 2048)
    }
}
