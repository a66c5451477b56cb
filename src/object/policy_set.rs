//! The Cedar policy set in force, as published: text, digest, author.
//!
//! Pure. Immutable per revision. It carries the names of services that it was validated with, custom actions and arguments
//! of tools, so that a sidecar that knows only some services still validates it against the schema of its publication.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::mcp::{ArgumentType, check_argument_name};
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
    /// The arguments of MCP tools that the schema knows, and their types.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub arguments: BTreeMap<String, ArgumentType>,
}

impl PolicySet {
    /// The largest policy text, in bytes.
    pub const MAX_TEXT: usize = 16 * 1024 * 1024;

    /// A policy set with the digest of `text`.
    pub fn new(text: String, author: String, actions: Vec<String>) -> Self {
        let digest = hex_sha256(text.as_bytes());
        Self { text, digest, author, actions, arguments: BTreeMap::new() }
    }

    /// The same for a schema that knows these arguments of MCP tools.
    #[must_use]
    pub fn with_arguments(self, arguments: BTreeMap<String, ArgumentType>) -> Self {
        Self { arguments, ..self }
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
        for name in self.arguments.keys() {
            check_argument_name("arguments", name)?;
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
