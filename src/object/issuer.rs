//! Issuers: who may vouch for workloads, by which standard, with which keys, algorithms, audiences and lifetimes.
//!
//! Pure. Each issuer has a key set of its own that is never merged with another's. An empty key set is valid and
//! revokes the whole issuer. The key set is kept as it came; `credential` compiles it and refuses bad keys. Which
//! fields a kind has is checked here, so that a field that would be ignored is an error instead.

use serde::{Deserialize, Serialize};

use super::key_source::KeySource;
use super::{FieldError, check_name, check_text};
use crate::credential::check_trust_domain;

/// A trust domain or token issuer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// Unique short name.
    pub name: String,
    /// Which standard its credentials follow.
    pub kind: IssuerKind,
    /// `spiffe` only: the trust domain that it vouches for, without `spiffe://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// Every kind but `spiffe`: the exact value of `iss` in its tokens, as in `https://idp.example`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// `oidc` only: what its tokens are.
    #[serde(default, skip_serializing_if = "TokenType::is_default")]
    pub token_type: TokenType,
    /// Audiences of which a token must name at least one. `portcullis` has none: each of its tokens names one service, and
    /// is for that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// Signature algorithms that its tokens may use. Without it, those of its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithms: Option<Vec<SigningAlgorithm>>,
    /// The longest `exp - iat` (or `exp - now`, without `iat`) of a token, in seconds.
    #[serde(default = "default_lifetime")]
    pub max_lifetime_seconds: u64,
    /// How many actors a token may name in nested `act` claims (RFC 8693, section 4.1). 0: delegated tokens are refused.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_delegation_depth: u8,
    /// Proof of possession of the key that a token is bound to.
    #[serde(default, skip_serializing_if = "ProofPolicy::is_default")]
    pub proof: ProofPolicy,
    /// Where the control plane keeps the key set up to date from. Without it, `jwks` is what an operator last put.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys_from: Option<KeySource>,
    /// Whether `jwks` is what `keys_from` said, for good: then only `keys_from` changes it. Kept by the control plane,
    /// whatever a document says; another `keys_from` starts over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keys_fetched: bool,
    /// The key set (RFC 7517). Empty revokes the issuer.
    #[serde(default)]
    pub jwks: Jwks,
}

/// The standard that an issuer's credentials follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IssuerKind {
    /// JWT-SVIDs and X.509-SVIDs of a SPIFFE trust domain.
    Spiffe,
    /// Projected service account tokens of a Kubernetes cluster.
    Kubernetes,
    /// Tokens of an OpenID provider or OAuth authorization server; see [`TokenType`].
    Oidc,
    /// OIDC tokens of GitHub Actions.
    Github,
    /// Tokens that a Portcullis control plane issues.
    Portcullis,
}

/// What the tokens of an `oidc` issuer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub enum TokenType {
    /// A plain JWT, such as an ID token: `typ` is absent or `JWT`.
    #[default]
    #[serde(rename = "jwt")]
    Jwt,
    /// An access token of RFC 9068: `typ` is `at+jwt`.
    #[serde(rename = "at+jwt")]
    AccessToken,
    /// A transaction token (draft-ietf-oauth-transaction-tokens): `typ` is `txntoken+jwt`. It authenticates nobody: policy
    /// may read it as `context.transaction`.
    #[serde(rename = "txntoken+jwt")]
    Transaction,
}

/// What is demanded of tokens that are bound to a key, and whether others are taken at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProofPolicy {
    /// Refuse tokens that are not bound to a key.
    pub required: bool,
    /// DPoP proofs must carry a nonce of the enforcement point (RFC 9449, section 9).
    pub dpop_nonce: bool,
    /// Experimental: take WIMSE workload identity tokens (`wit+jwt`) with workload proof tokens (`wpt+jwt`).
    /// `spiffe` issuers only.
    pub wimse: bool,
}

/// The JWS algorithms that are known (RFC 7518, sections 3.3 to 3.5; RFC 8037, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[allow(missing_docs, reason = "the names are those of RFC 7518 and RFC 8037")]
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
    /// Ed25519 only. Not allowed in JWT-SVIDs.
    EdDSA,
}

/// A JSON Web Key Set, not compiled yet.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Jwks {
    /// The keys, public parts only.
    pub keys: Vec<serde_json::Value>,
    /// `spiffe_sequence`, `spiffe_refresh_hint` and other members of the set.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// The largest number of keys in a set.
pub const MAX_KEYS: usize = 100;
/// The largest [`Issuer::max_delegation_depth`].
pub const MAX_DELEGATION_DEPTH: u8 = 4;

const fn default_lifetime() -> u64 {
    3600
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(n: &u8) -> bool {
    *n == 0
}

// === impl SigningAlgorithm ===

impl SigningAlgorithm {
    /// Every algorithm.
    pub const ALL: [Self; 10] = [
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::ES256,
        Self::ES384,
        Self::ES512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::EdDSA,
    ];
    /// The algorithms of the JWT-SVID standard, section 2.2.
    pub const SPIFFE: [Self; 9] = [
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

// === impl IssuerKind ===

impl IssuerKind {
    /// Whether its tokens name the workload's SPIFFE ID themselves, in `sub`. Others are mapped to a workload.
    pub const fn names_workload(self) -> bool {
        matches!(self, Self::Spiffe | Self::Portcullis)
    }

    /// The algorithms that tokens of this kind may use unless the issuer says otherwise.
    pub const fn default_algorithms(self) -> &'static [SigningAlgorithm] {
        match self {
            Self::Spiffe => &SigningAlgorithm::SPIFFE,
            Self::Kubernetes | Self::Oidc => &SigningAlgorithm::ALL,
            Self::Github => &[SigningAlgorithm::RS256],
            Self::Portcullis => &[SigningAlgorithm::ES256],
        }
    }

    /// The name used in documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spiffe => "spiffe",
            Self::Kubernetes => "kubernetes",
            Self::Oidc => "oidc",
            Self::Github => "github",
            Self::Portcullis => "portcullis",
        }
    }
}

impl std::fmt::Display for IssuerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

// === impl TokenType ===

impl TokenType {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

// === impl ProofPolicy ===

impl ProofPolicy {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

// === impl Issuer ===

impl Issuer {
    /// The algorithms that its tokens may use.
    pub fn algorithms(&self) -> &[SigningAlgorithm] {
        self.algorithms.as_deref().unwrap_or(self.kind.default_algorithms())
    }

    /// What it is known by in credentials: the trust domain or the value of `iss`.
    pub fn authority(&self) -> &str {
        self.trust_domain.as_deref().or(self.issuer.as_deref()).unwrap_or_default()
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        check_name("name", &self.name)?;
        self.check_authority()?;
        if self.token_type != TokenType::Jwt && self.kind != IssuerKind::Oidc {
            return Err(FieldError::new("token_type", format!("issuers of kind `{}` have none", self.kind)));
        }
        if self.token_type == TokenType::Transaction {
            if self.proof != ProofPolicy::default() {
                return Err(FieldError::new(
                    "proof",
                    "transaction tokens authenticate nobody, so there is nothing to prove",
                ));
            }
            if self.max_delegation_depth != 0 {
                return Err(FieldError::new("max_delegation_depth", "transaction tokens authenticate nobody"));
            }
        }
        if self.kind == IssuerKind::Portcullis {
            if !self.audiences.is_empty() {
                let why = "issuers of kind `portcullis` have none: their tokens name the service that they are for";
                return Err(FieldError::new("audiences", why));
            }
        } else if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return Err(FieldError::new("audiences", "at least one audience is needed, and none may be empty"));
        }
        self.check_algorithms()?;
        if !(1..=86_400).contains(&self.max_lifetime_seconds) {
            return Err(FieldError::new("max_lifetime_seconds", "must be between 1 and 86400"));
        }
        if self.max_delegation_depth > MAX_DELEGATION_DEPTH {
            return Err(FieldError::new("max_delegation_depth", format!("must be at most {MAX_DELEGATION_DEPTH}")));
        }
        if self.proof.wimse && self.kind != IssuerKind::Spiffe {
            return Err(FieldError::new("proof.wimse", "only issuers of kind `spiffe` make WIMSE tokens"));
        }
        if let Some(source) = &self.keys_from {
            source.check(self.kind)?;
        }
        self.jwks.check()
    }

    fn check_authority(&self) -> Result<(), FieldError> {
        let (needed, name, other) = match self.kind {
            IssuerKind::Spiffe => (&self.trust_domain, "trust_domain", ("issuer", &self.issuer)),
            _ => (&self.issuer, "issuer", ("trust_domain", &self.trust_domain)),
        };
        if other.1.is_some() {
            return Err(FieldError::new(other.0, format!("issuers of kind `{}` have none", self.kind)));
        }
        let Some(value) = needed else {
            return Err(FieldError::new(name, format!("is required for issuers of kind `{}`", self.kind)));
        };
        if self.kind == IssuerKind::Spiffe {
            return check_trust_domain(value).map_err(|e| FieldError::new(name, format!("`{value}`: {e}")));
        }
        check_text(name, value, 1024)?;
        // Cluster-internal issuers of Kubernetes and portcullis are no https URLs everywhere, so only blanks are refused.
        if value.is_empty() || value.chars().any(char::is_whitespace) {
            return Err(FieldError::new(name, "must not be empty nor have white space"));
        }
        if self.kind == IssuerKind::Github && !value.starts_with("https://") {
            return Err(FieldError::new(name, format!("`{value}` is not an https URL")));
        }
        Ok(())
    }

    fn check_algorithms(&self) -> Result<(), FieldError> {
        let Some(algorithms) = &self.algorithms else { return Ok(()) };
        if algorithms.is_empty() {
            return Err(FieldError::new("algorithms", "at least one algorithm is needed"));
        }
        if self.kind == IssuerKind::Spiffe
            && let Some(i) = algorithms.iter().position(|a| !SigningAlgorithm::SPIFFE.contains(a))
        {
            return Err(FieldError::new(format!("algorithms[{i}]"), "is not an algorithm of JWT-SVIDs"));
        }
        Ok(())
    }
}

// === impl Jwks ===

impl Jwks {
    /// Whether it says the same to an issuer of this kind. The order of keys says nothing; other members do in SPIFFE only.
    pub fn says_the_same(&self, other: &Self, kind: IssuerKind) -> bool {
        let count = |keys: &[serde_json::Value], key| keys.iter().filter(|k| *k == key).count();
        let same_keys = self.keys == other.keys
            || self.keys.len() == other.keys.len()
                && self.keys.iter().all(|key| count(&self.keys, key) == count(&other.keys, key));
        same_keys && (kind != IssuerKind::Spiffe || self.other == other.other)
    }

    /// Checks what the shape alone can tell.
    pub fn check(&self) -> Result<(), FieldError> {
        if self.keys.len() > MAX_KEYS {
            return Err(FieldError::new("jwks.keys", format!("at most {MAX_KEYS} keys are allowed")));
        }
        for (i, key) in self.keys.iter().enumerate() {
            if ["d", "k", "p", "q"].iter().any(|m| key.get(m).is_some()) {
                return Err(FieldError::new(format!("jwks.keys[{i}]"), "holds private or symmetric key material"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{IssuerKind, Jwks};
    use crate::object::{Kind, Object};
    use crate::testing::changed;

    #[test]
    fn key_sets_are_compared_as_multisets() {
        let set = |text: serde_json::Value| serde_json::from_value::<Jwks>(text).unwrap();
        let (a, b) = (json!({"kty": "EC", "kid": "a"}), json!({"kid": "b"}));
        let one = set(json!({"keys": [a, b, a]}));
        for (other, oidc, spiffe) in [
            (json!({"keys": [{"kid": "a", "kty": "EC"}, b, a]}), true, true),
            (json!({"keys": [b, a, a]}), true, true),
            (json!({"keys": [b, a, a], "served_at": 7}), true, false),
            (json!({"keys": [b, b, a]}), false, false),
            (json!({"keys": [a, b]}), false, false),
            (json!({"keys": [a, b, a, a]}), false, false),
            (json!({"keys": [a, b, {"kid": "a"}]}), false, false),
            (json!({"keys": []}), false, false),
        ] {
            let other = set(other);
            assert_eq!(one.says_the_same(&other, IssuerKind::Oidc), oidc, "{other:?}");
            assert_eq!(one.says_the_same(&other, IssuerKind::Spiffe), spiffe, "{other:?}");
            assert_eq!(other.says_the_same(&one, IssuerKind::Spiffe), spiffe, "{other:?}");
        }
    }

    #[test]
    fn an_issuer_of_transaction_tokens_demands_nothing_of_credentials() {
        let issuer = |changes| {
            let document = json!({"name": "tts", "kind": "oidc", "issuer": "https://tts.example", "audiences": ["td"],
                                  "token_type": "txntoken+jwt"});
            Object::parse(Kind::Issuer, changed(document, &changes).to_string().as_bytes()).map_err(|e| e.to_string())
        };
        issuer(json!({})).unwrap();
        for (changes, field) in [
            (json!({"proof": {"required": true}}), "proof"),
            (json!({"proof": {"dpop_nonce": true}}), "proof"),
            (json!({"max_delegation_depth": 1}), "max_delegation_depth"),
            (json!({"kind": "github"}), "token_type"),
            (json!({"token_type": "txntoken"}), "token_type"),
        ] {
            let why = issuer(changes.clone()).unwrap_err();
            assert!(why.contains(field), "{changes}: {why}");
        }
    }
}
