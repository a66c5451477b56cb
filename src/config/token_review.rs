//! `sync.token_review` of `control.yaml`: which API servers confirm sidecars' Kubernetes tokens.
//!
//! Plane: composition. Fails closed: an entry that could not be used, or for an issuer that is not trusted for sidecars
//! anyway, is an error, for whoever wrote it relies on it. Nothing is asked here.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::load::{self, ConfigError};
use super::values::HttpUrl;
use crate::control::token_review::TokenReviewConfig;

/// The API server that has to confirm the Kubernetes tokens of one issuer before a stream opens.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "TokenReview")]
pub struct RawTokenReview {
    /// Name of the issuer, of kind `kubernetes`; one of `sync.trust`.
    pub issuer: String,
    /// The API server's https URL.
    pub url: HttpUrl,
    /// PEM file with the CA certificates that vouch for the API server.
    pub ca_file: PathBuf,
    /// File with the token that the API server is shown, read anew each time. It has to be allowed to create
    /// `tokenreviews`, as by the cluster role `system:auth-delegator`.
    pub token_file: PathBuf,
}

pub(super) fn validate(raw: Vec<RawTokenReview>, trust: &[String]) -> Result<Vec<TokenReviewConfig>, ConfigError> {
    let mut servers: Vec<TokenReviewConfig> = Vec::with_capacity(raw.len());
    for (i, RawTokenReview { issuer, url, ca_file, token_file }) in raw.into_iter().enumerate() {
        let key = |field: &str| format!("sync.token_review[{i}].{field}");
        if !trust.contains(&issuer) {
            return Err(ConfigError::value(key("issuer"), format!("`{issuer}` is not in `sync.trust`")));
        }
        if servers.iter().any(|server| server.issuer == issuer) {
            return Err(ConfigError::value(key("issuer"), format!("`{issuer}` occurs twice")));
        }
        if !url.is_tls() {
            return Err(ConfigError::value(key("url"), format!("`{url}` is not https")));
        }
        if url.as_uri().query().is_some() {
            return Err(ConfigError::value(key("url"), "must not have a query"));
        }
        load::read_named(&key("ca_file"), &ca_file)?;
        load::read_named(&key("token_file"), &token_file)?;
        servers.push(TokenReviewConfig { issuer, url: url.to_string(), ca_file, token_file });
    }
    Ok(servers)
}
