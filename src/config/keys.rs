//! `keys:` of `control.yaml`: from where, and how often, the control plane fetches issuers' keys.
//!
//! Plane: composition. Fails closed: by default no host may be asked and no private network connected to. Which issuer's
//! keys come from which source is said in the issuer's document; what may be reached at all is said here.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::load::{self, ConfigError};
use super::sidecar::positive;
use super::values::{Cidr, Host, Span};
use crate::control::keys::{Allowed, KeysConfig};

/// How the keys of issuers with `keys_from` are kept up to date.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Keys")]
pub struct RawKeys {
    /// Hosts that may be asked for keys, over https. Empty: none.
    pub allowed_hosts: Vec<Host>,
    /// Networks that are not public and may be connected to all the same.
    pub allowed_networks: Vec<Cidr>,
    /// PEM file with the CA certificates that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Directory of the files of `file` sources.
    pub directory: Option<PathBuf>,
    /// Socket of the SPIFFE Workload API, for `workload_api` sources.
    pub workload_api: Option<PathBuf>,
    /// How often a source is asked, unless a SPIFFE bundle has a refresh hint.
    pub refresh_interval: Span,
    /// How often a file is looked at.
    pub file_interval: Span,
    /// A key id that no key of an issuer has makes its source be asked, at most once in this time.
    pub unknown_kid_cooldown: Span,
    /// How long a fetch may take, all in all.
    pub timeout: Span,
    /// The largest answer or file.
    pub max_bytes: u32,
}

impl Default for RawKeys {
    fn default() -> Self {
        Self {
            allowed_hosts: Vec::new(),
            allowed_networks: Vec::new(),
            ca_file: None,
            directory: None,
            workload_api: None,
            refresh_interval: Span::secs(300),
            file_interval: Span::secs(5),
            unknown_kid_cooldown: Span::secs(30),
            timeout: Span::secs(10),
            max_bytes: 262_144,
        }
    }
}

impl RawKeys {
    pub(super) fn validate(self) -> Result<KeysConfig, ConfigError> {
        for (key, span) in [
            ("keys.refresh_interval", self.refresh_interval),
            ("keys.file_interval", self.file_interval),
            ("keys.unknown_kid_cooldown", self.unknown_kid_cooldown),
            ("keys.timeout", self.timeout),
        ] {
            positive(key, span)?;
            if span > Span::secs(86_400) {
                return Err(ConfigError::value(key, "must not be longer than 1day"));
            }
        }
        if self.timeout > Span::secs(60) {
            return Err(ConfigError::value("keys.timeout", "must not be longer than 1m"));
        }
        if !(1024..=4 << 20).contains(&self.max_bytes) {
            return Err(ConfigError::value("keys.max_bytes", "must be between 1024 and 4194304"));
        }
        if let Some(path) = &self.ca_file {
            load::read_named("keys.ca_file", path)?;
        }
        for (key, path) in [("keys.directory", &self.directory), ("keys.workload_api", &self.workload_api)] {
            if path.as_ref().is_some_and(|p| !p.is_absolute()) {
                return Err(ConfigError::value(key, "must be an absolute path"));
            }
        }
        Ok(KeysConfig {
            allowed: Allowed {
                hosts: self.allowed_hosts.into_iter().map(|h| h.0).collect(),
                networks: self.allowed_networks.into_iter().map(|n| n.0).collect(),
            },
            ca_file: self.ca_file,
            directory: self.directory,
            workload_api: self.workload_api,
            refresh_interval: self.refresh_interval.0,
            file_interval: self.file_interval.0,
            unknown_kid_cooldown: self.unknown_kid_cooldown.0,
            timeout: self.timeout.0,
            max_bytes: self.max_bytes as usize,
        })
    }
}
