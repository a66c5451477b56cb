//! The Cedar policy set in force, as published: text, digest, author.
//!
//! Pure. Immutable per revision. It carries the custom action names it was validated with, so that a sidecar that
//! knows only some services still validates it against the schema of its publication.

use serde::{Deserialize, Serialize};

use super::{FieldError, check_name, check_text};

/// The key of the one policy set.
pub const POLICY_SET_KEY: &str = "default";

/// A published policy set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicySet {
    /// Cedar source text. Every policy has an `@id`.
    pub text: String,
    /// Lower-case hex SHA-256 of `text`.
    pub digest: String,
    /// Who published it.
    pub author: String,
    /// Action names beside `read`, `write` and `delete` that the schema knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<String>,
}

impl PolicySet {
    /// The largest policy text, in bytes.
    pub const MAX_TEXT: usize = 16 * 1024 * 1024;

    /// A policy set with the digest of `text`.
    pub fn new(text: String, author: String, actions: Vec<String>) -> Self {
        let digest = hex_sha256(text.as_bytes());
        Self { text, digest, author, actions }
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.text.len() > Self::MAX_TEXT {
            return Err(FieldError::new("text", "a policy set has at most 16 MiB"));
        }
        if self.digest != hex_sha256(self.text.as_bytes()) {
            return Err(FieldError::new("digest", "is not the SHA-256 of `text`"));
        }
        check_text("author", &self.author, 200)?;
        for (i, action) in self.actions.iter().enumerate() {
            check_name(&format!("actions[{i}]"), action)?;
        }
        Ok(())
    }
}

pub(super) fn hex_sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::with_capacity(64), |mut hex, b| {
        let _ = write!(hex, "{b:02x}");
        hex
    })
}
