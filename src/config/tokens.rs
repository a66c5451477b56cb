//! `tokens:` of `control.yaml`: the control plane as an issuer of short-lived tokens (RFC 8693).
//!
//! Plane: composition. Without this section no keys are made and no token is issued. Fails closed: what would let a token
//! outlive its bound, or a key sign before it is known, is refused.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::load::ConfigError;
use super::sidecar::positive;
use super::values::Span;
use crate::control::token_keys::{MAX_TOKEN_LIFETIME, TokenKeysConfig};
use crate::object::ResourceName;

/// The control plane as an issuer of short-lived tokens.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Tokens")]
pub struct RawTokens {
    /// The value of `iss`: the URL that clients know the API by. It never changes.
    pub issuer: String,
    /// Its name among the issuers.
    #[serde(default = "default_name")]
    pub name: String,
    /// Audiences of which the tokens that workloads exchange name at least one. Empty: `issuer`.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// How many tokens a workload may have in a minute.
    #[serde(default = "default_per_minute")]
    pub per_minute: u32,
    /// How long a key signs.
    #[serde(default = "default_rotation")]
    pub rotate_every: Span,
    /// How long verifiers may keep the published key set. A new key is published for so long, and for
    /// `sync.max_staleness`, before it signs.
    #[serde(default = "default_cache")]
    pub key_set_cache: Span,
}

/// The control plane as an issuer, validated.
#[derive(Debug, Clone)]
pub struct TokensConfig {
    /// Its keys.
    pub keys: TokenKeysConfig,
    /// Audiences of the tokens that are exchanged: at least one.
    pub audiences: Vec<String>,
    /// How many tokens a workload may have in a minute.
    pub per_minute: u32,
}

fn default_name() -> String {
    "portcullis".to_owned()
}

const fn default_per_minute() -> u32 {
    120
}

const fn default_rotation() -> Span {
    Span::secs(30 * 86_400)
}

const fn default_cache() -> Span {
    Span::secs(300)
}

impl RawTokens {
    /// The defaults, for an issuer.
    pub fn new(issuer: impl Into<String>) -> Self {
        Self {
            issuer: issuer.into(),
            name: default_name(),
            audiences: Vec::new(),
            per_minute: default_per_minute(),
            rotate_every: default_rotation(),
            key_set_cache: default_cache(),
        }
    }

    pub(super) fn validate(self, max_staleness: Duration) -> Result<TokensConfig, ConfigError> {
        let is_url = self.issuer.parse::<http::Uri>().is_ok_and(|uri| {
            uri.scheme_str().is_some_and(|s| matches!(s, "https" | "http"))
                && uri.host().is_some()
                && uri.query().is_none()
        });
        if !is_url || self.issuer.ends_with('/') {
            let why = format!("`{}` is not a URL such as `https://control.example.org`", self.issuer);
            return Err(ConfigError::value("tokens.issuer", why));
        }
        if !self.name.parse::<ResourceName>().is_ok_and(|r| r.route.is_none()) {
            return Err(ConfigError::value("tokens.name", format!("`{}` is not an issuer's name", self.name)));
        }
        if self.audiences.iter().any(String::is_empty) {
            return Err(ConfigError::value("tokens.audiences", "none may be empty"));
        }
        if !(1..=100_000).contains(&self.per_minute) {
            return Err(ConfigError::value("tokens.per_minute", "must be 1 to 100000"));
        }
        positive("tokens.key_set_cache", self.key_set_cache)?;
        if self.key_set_cache > Span::secs(86_400) {
            return Err(ConfigError::value("tokens.key_set_cache", "must not be longer than 1day"));
        }
        let known = max_staleness.saturating_add(self.key_set_cache.0).saturating_add(MAX_TOKEN_LIFETIME);
        if self.rotate_every.0 < known {
            let why = format!(
                "must be at least {}: `sync.max_staleness`, `tokens.key_set_cache` and the life of a token",
                Span(known)
            );
            return Err(ConfigError::value("tokens.rotate_every", why));
        }
        let audiences = if self.audiences.is_empty() { vec![self.issuer.clone()] } else { self.audiences };
        Ok(TokensConfig {
            audiences,
            per_minute: self.per_minute,
            keys: TokenKeysConfig {
                name: self.name,
                issuer: self.issuer,
                rotate_every: self.rotate_every.0,
                cache: self.key_set_cache.0,
                max_staleness,
            },
        })
    }
}
