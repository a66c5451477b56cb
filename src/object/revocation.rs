//! Revocations: append-only facts that beat every allow and every cache entry.
//!
//! Pure. A sidecar that cannot read a revocation cannot know whom it should refuse, so it refuses everybody until
//! it can: failing closed is the only safe reading.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{FieldError, GrantId, check_text};
use crate::clock::Timestamp;
use crate::credential::{SpiffeId, certificate_serial};

/// One revocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// Unique id.
    pub id: Uuid,
    /// What ends.
    pub target: Target,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who ended it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
}

/// What a revocation ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// One token, by the name of its issuer and its `jti`.
    Token {
        /// Name of the issuer.
        issuer: String,
        /// The `jti` claim.
        jti: String,
    },
    /// Every token of a workload issued before a time. A token without `iat` counts as issued before.
    TokensBefore {
        /// The workload.
        workload: SpiffeId,
        /// Tokens with `iat` earlier than this are refused.
        before: Timestamp,
    },
    /// A workload.
    Workload {
        /// The workload.
        workload: SpiffeId,
    },
    /// A whole issuer.
    Issuer {
        /// Name of the issuer.
        issuer: String,
    },
    /// One signing key.
    Key {
        /// Name of the issuer.
        issuer: String,
        /// The `kid` of the key.
        kid: String,
    },
    /// Everything bound to one Kubernetes object, by its UID: a pod, a service account or a node.
    BoundObject {
        /// Name of the issuer.
        issuer: String,
        /// The UID in the token.
        uid: String,
    },
    /// Every client certificate with a serial number, whoever issued it.
    Certificate {
        /// Serial number in hex, in any of the forms that programs print.
        serial: String,
    },
    /// A grant.
    Grant {
        /// The grant.
        grant: GrantId,
    },
    /// A workload in its role as a delegator: nobody acts for it any more.
    Delegator {
        /// The workload.
        workload: SpiffeId,
    },
}

impl Revocation {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        check_text("reason", &self.reason, 1000)?;
        check_text("created_by", &self.created_by, 200)?;
        let text = match &self.target {
            Target::Token { issuer, jti } => [("target.issuer", issuer), ("target.jti", jti)],
            Target::Key { issuer, kid } => [("target.issuer", issuer), ("target.kid", kid)],
            Target::BoundObject { issuer, uid } => [("target.issuer", issuer), ("target.uid", uid)],
            Target::Issuer { issuer } => [("target.issuer", issuer), ("target.issuer", issuer)],
            Target::Certificate { serial } => {
                return match certificate_serial(serial) {
                    Some(_) => Ok(()),
                    None => Err(FieldError::new("target.serial", format!("`{serial}` is not a serial number in hex"))),
                };
            }
            Target::TokensBefore { .. } | Target::Workload { .. } | Target::Grant { .. } | Target::Delegator { .. } => {
                return Ok(());
            }
        };
        for (field, value) in text {
            if value.is_empty() {
                return Err(FieldError::new(field, "must not be empty"));
            }
            check_text(field, value, 1024)?;
        }
        Ok(())
    }
}
