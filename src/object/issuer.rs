//! Issuers: who may vouch for workloads, with which keys, algorithms, audiences and lifetimes.
//!
//! Pure. Each issuer has a key set of its own that is never merged with another's. An empty key set is valid and
//! revokes the whole trust domain. The key set is kept as it came; `credential` compiles it and refuses bad keys.

use serde::{Deserialize, Serialize};

use super::{FieldError, check_name};
use crate::credential::check_trust_domain;

/// A trust domain or token issuer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// Unique short name.
    pub name: String,
    /// Which standard its credentials follow.
    pub kind: IssuerKind,
    /// The SPIFFE trust domain that it vouches for, without `spiffe://`.
    pub trust_domain: String,
    /// Audiences of which a token must name at least one.
    pub audiences: Vec<String>,
    /// Signature algorithms that its tokens may use.
    #[serde(default = "default_algorithms")]
    pub algorithms: Vec<SigningAlgorithm>,
    /// The longest `exp - iat` (or `exp - now`, without `iat`) of a token, in seconds.
    #[serde(default = "default_lifetime")]
    pub max_lifetime_seconds: u64,
    /// The key set (RFC 7517). Empty revokes the domain.
    pub jwks: Jwks,
}

/// The standard that an issuer's credentials follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IssuerKind {
    /// JWT-SVIDs of a SPIFFE trust domain.
    Spiffe,
}

/// The JWS algorithms that a JWT-SVID may use (RFC 7518, sections 3.3 to 3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[allow(missing_docs, reason = "the names are those of RFC 7518")]
pub enum SigningAlgorithm {
    RS256,
    RS384,
    RS512,
    ES256,
    ES384,
    ES512,
    PS256,
    PS384,
    PS512,
}

/// A JSON Web Key Set, not compiled yet.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Jwks {
    /// The keys, public parts only.
    pub keys: Vec<serde_json::Value>,
    /// `spiffe_sequence` and other members of a SPIFFE bundle, kept but not used yet.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

fn default_algorithms() -> Vec<SigningAlgorithm> {
    SigningAlgorithm::ALL.to_vec()
}

const fn default_lifetime() -> u64 {
    3600
}

// === impl SigningAlgorithm ===

impl SigningAlgorithm {
    /// Every algorithm.
    pub const ALL: [Self; 9] = [
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::ES256,
        Self::ES384,
        Self::ES512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
    ];
}

// === impl Issuer ===

impl Issuer {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        check_name("name", &self.name)?;
        check_trust_domain(&self.trust_domain)
            .map_err(|e| FieldError::new("trust_domain", format!("`{}`: {e}", self.trust_domain)))?;
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return Err(FieldError::new("audiences", "at least one audience is needed, and none may be empty"));
        }
        if self.algorithms.is_empty() {
            return Err(FieldError::new("algorithms", "at least one algorithm is needed"));
        }
        if !(1..=86_400).contains(&self.max_lifetime_seconds) {
            return Err(FieldError::new("max_lifetime_seconds", "must be between 1 and 86400"));
        }
        if self.jwks.keys.len() > 100 {
            return Err(FieldError::new("jwks.keys", "at most 100 keys are allowed"));
        }
        for (i, key) in self.jwks.keys.iter().enumerate() {
            if ["d", "k", "p", "q"].iter().any(|m| key.get(m).is_some()) {
                return Err(FieldError::new(format!("jwks.keys[{i}]"), "holds private or symmetric key material"));
            }
        }
        Ok(())
    }
}
