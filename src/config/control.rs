//! `control.yaml`: the control plane's configuration, raw and validated.
//!
//! Fails closed: without TLS it only starts on loopback, and only when that is asked for. Which enforcement points
//! there are, and what each may receive, is written here and nowhere else: never taken from a claim of a client.
//! Long because each part is there twice, as it is written and as it is used.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keys::RawKeys;
use super::load::{self, ConfigError, Environment};
use super::operators::{OperatorsConfig, RawOperators};
use super::shared::{RawTelemetry, Telemetry};
use super::sidecar::{positive, services};
use super::token_review::{self, RawTokenReview};
use super::tokens::{RawTokens, TokensConfig};
use super::values::{Address, Identity, Span};
use crate::control::api::GRANTS_PER_RESOURCE;
use crate::control::keys::KeysConfig;
use crate::control::token_review::TokenReviewConfig;
use crate::credential::SpiffeId;
use crate::object::ResourceName;

/// More streams than one machine can hold.
const MAX_STREAMS: usize = 1_000_000;

/// Configuration of `portcullis control`.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Control")]
pub struct RawControl {
    /// Where it listens.
    pub listeners: RawControlListeners,
    /// Directory of `control.db`, `signing-key`, `verify-key`, `bootstrap-token` and `token-keys`. Created with mode 0700.
    pub data_directory: PathBuf,
    /// Certificates of the API and sync listeners. Required unless `insecure_loopback` is true.
    pub tls: Option<RawTls>,
    /// Allows plain text when the API and sync listeners are all on loopback addresses.
    pub insecure_loopback: bool,
    /// How sidecars are kept in step.
    pub sync: RawSync,
    /// How the keys of issuers with `keys_from` are kept up to date.
    pub keys: RawKeys,
    /// Who else than operators with tokens may call the API, and how often.
    pub operators: RawOperators,
    /// The control plane as an issuer of short-lived tokens. Without it, it issues none.
    pub tokens: Option<RawTokens>,
    /// Bounds of grants that hold whatever policies say.
    pub grants: RawGrants,
    /// Logs and traces.
    pub telemetry: RawTelemetry,
}

/// Bounds of grants that hold whatever policies say.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Grants")]
pub struct RawGrants {
    /// How many grants and requests that have not ended one workload has on one resource at most; enforcement points ask
    /// policy about each of them. Break-glass is not counted. 1 to 10,000.
    pub max_per_resource: usize,
}

/// Where the control plane listens.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "ControlListeners")]
pub struct RawControlListeners {
    /// REST, for operators.
    pub api: Address,
    /// gRPC, for sidecars.
    pub sync: Address,
    /// `/livez`, `/readyz`, `/metrics`, `/loglevel`. No authentication: keep it private.
    pub admin: Address,
    /// `/livez`, `/readyz`, `/metrics` and nothing else, for probes and scrapes from outside. Default: nowhere.
    pub probes: Option<Address>,
}

/// Certificates of the API and sync listeners.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Tls")]
pub struct RawTls {
    /// Required. PEM file with the server's certificate and its chain.
    pub cert_file: Option<PathBuf>,
    /// Required. PEM file with the private key of that certificate.
    pub key_file: Option<PathBuf>,
    /// PEM file with the certificates that may vouch for sidecars (X.509-SVIDs). Without it they bring a token.
    pub client_ca_file: Option<PathBuf>,
}

/// How sidecars are kept in step.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Sync")]
pub struct RawSync {
    /// The audience that a sidecar's token must name.
    pub audience: String,
    /// Names of the issuers whose tokens sidecars may bring: JWT-SVIDs, or Kubernetes service account tokens that are
    /// mapped to the enforcement point's workload. Empty: none, so only X.509-SVIDs.
    pub trust: Vec<String>,
    /// API servers that have to confirm the Kubernetes tokens of an issuer. Empty: they are verified offline only.
    pub token_review: Vec<RawTokenReview>,
    /// How long a `strict` route may rely on a bookmark.
    pub lease: Span,
    /// How often a bookmark is sent; at most 10s.
    pub bookmark_interval: Span,
    /// How long a `bounded` route may rely on a bookmark.
    pub max_staleness: Span,
    /// How many commits are held in memory for deltas.
    pub log_capacity: usize,
    /// How many sidecars are served at a time; each takes a file descriptor and about 50 KiB. More are told to come back.
    pub max_streams: usize,
    /// How many of them are sent a whole snapshot at a time; more wait in line.
    pub max_snapshots: usize,
    /// The enforcement points that there are.
    pub enforcement_points: Vec<RawEnforcementPoint>,
}

/// One enforcement point: an identity, shared by all its instances, and the services that it protects.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "EnforcementPoint")]
pub struct RawEnforcementPoint {
    /// Its SPIFFE ID.
    pub identity: Identity,
    /// Names of the services that it protects.
    pub services: Vec<String>,
}

/// A control plane's configuration, validated.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// Where it listens.
    pub listeners: ControlListeners,
    /// Its directory.
    pub data_directory: PathBuf,
    /// Certificates; without them every listener is on loopback.
    pub tls: Option<TlsFiles>,
    /// How sidecars are kept in step.
    pub sync: SyncConfig,
    /// How issuers' keys are kept up to date.
    pub keys: KeysConfig,
    /// Who may call the API.
    pub operators: OperatorsConfig,
    /// The control plane as an issuer, if it is one.
    pub tokens: Option<TokensConfig>,
    /// Bounds of grants.
    pub grants: GrantsConfig,
    /// Logs and traces.
    pub telemetry: Telemetry,
}

/// Bounds of grants.
#[derive(Debug, Clone, Copy)]
pub struct GrantsConfig {
    /// Grants and requests of one workload on one resource.
    pub max_per_resource: usize,
}

/// Where a control plane listens.
#[derive(Debug, Clone, Copy)]
pub struct ControlListeners {
    /// REST.
    pub api: Address,
    /// gRPC.
    pub sync: Address,
    /// Admin.
    pub admin: Address,
    /// What of it may be seen from outside.
    pub probes: Option<Address>,
}

/// Certificates of the API and sync listeners.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// PEM chain.
    pub cert_file: PathBuf,
    /// PEM private key.
    pub key_file: PathBuf,
    /// PEM certificates that may vouch for sidecars.
    pub client_ca_file: Option<PathBuf>,
}

/// How sidecars are kept in step. `bookmark_interval < lease <= max_staleness`.
#[derive(Debug, Clone)]
pub struct SyncConfig {
    /// The audience of sidecars' tokens.
    pub audience: String,
    /// Issuers of sidecars' tokens.
    pub trust: Vec<String>,
    /// API servers that confirm them: of distinct issuers, all of them in `trust`.
    pub token_review: Vec<TokenReviewConfig>,
    /// How long a `strict` route may rely on a bookmark.
    pub lease: Duration,
    /// How often a bookmark is sent.
    pub bookmark_interval: Duration,
    /// How long a `bounded` route may rely on a bookmark.
    pub max_staleness: Duration,
    /// Commits held in memory.
    pub log_capacity: usize,
    /// Sidecars served at a time.
    pub max_streams: usize,
    /// Snapshots sent at a time.
    pub max_snapshots: usize,
    /// The enforcement points: distinct identities.
    pub enforcement_points: Vec<EnforcementPoint>,
}

/// One enforcement point.
#[derive(Debug, Clone)]
pub struct EnforcementPoint {
    /// Its SPIFFE ID.
    pub identity: SpiffeId,
    /// Names of the services that it protects: sorted, distinct, at least one.
    pub services: Vec<String>,
}

// === defaults ===

impl Default for RawControl {
    fn default() -> Self {
        Self {
            listeners: RawControlListeners::default(),
            data_directory: PathBuf::from("/var/lib/portcullis/control"),
            tls: None,
            insecure_loopback: false,
            sync: RawSync::default(),
            keys: RawKeys::default(),
            operators: RawOperators::default(),
            tokens: None,
            grants: RawGrants::default(),
            telemetry: RawTelemetry::default(),
        }
    }
}

impl Default for RawGrants {
    fn default() -> Self {
        Self { max_per_resource: GRANTS_PER_RESOURCE }
    }
}

impl Default for RawControlListeners {
    fn default() -> Self {
        Self {
            api: Address::loopback(9180),
            sync: Address::loopback(9181),
            admin: Address::loopback(9182),
            probes: None,
        }
    }
}

impl Default for RawSync {
    fn default() -> Self {
        Self {
            audience: "portcullis-control".to_owned(),
            trust: Vec::new(),
            token_review: Vec::new(),
            lease: Span::secs(10),
            bookmark_interval: Span::secs(2),
            max_staleness: Span::secs(300),
            log_capacity: 65_536,
            max_streams: 12_000,
            max_snapshots: 16,
            enforcement_points: Vec::new(),
        }
    }
}

// === impl ControlConfig ===

impl ControlConfig {
    /// Reads the file, lays the environment over it, validates.
    pub fn load(path: &std::path::Path, env: &Environment) -> Result<Self, ConfigError> {
        load::load::<RawControl>(path, env)?.validate()
    }
}

// === impl RawControl ===

impl RawControl {
    /// Parses a file's text, read from `path`, with the environment over it.
    pub fn parse(path: &std::path::Path, text: &str, env: &Environment) -> Result<Self, ConfigError> {
        load::parse(path, text, env)
    }

    /// Turns it into the runtime form. Reads the key files that it names.
    pub fn validate(self) -> Result<ControlConfig, ConfigError> {
        if self.data_directory.as_os_str().is_empty() {
            return Err(ConfigError::value("data_directory", "must not be empty"));
        }
        let tls = self.tls.map(RawTls::validate).transpose()?;
        if tls.is_none() {
            for (key, address) in [("listeners.api", self.listeners.api), ("listeners.sync", self.listeners.sync)] {
                if !address.is_loopback() {
                    let why = format!("`{address}` is not a loopback address, so `tls` is required");
                    return Err(ConfigError::value(key, why));
                }
            }
            if !self.insecure_loopback {
                let why = "must be true to speak plain text, even on loopback; otherwise `tls` is required";
                return Err(ConfigError::value("insecure_loopback", why));
            }
        }
        let has_tls = tls.is_some();
        let RawControlListeners { api, sync, admin, probes } = self.listeners;
        let sync_config = self.sync.validate()?;
        Ok(ControlConfig {
            listeners: ControlListeners { api, sync, admin, probes },
            data_directory: self.data_directory,
            tls,
            keys: self.keys.validate()?,
            operators: self.operators.validate(has_tls)?,
            tokens: self.tokens.map(|tokens| tokens.validate(sync_config.max_staleness)).transpose()?,
            grants: self.grants.validate()?,
            sync: sync_config,
            telemetry: self.telemetry.validate(),
        })
    }
}

impl RawGrants {
    fn validate(self) -> Result<GrantsConfig, ConfigError> {
        let Self { max_per_resource } = self;
        if !(1..=10_000).contains(&max_per_resource) {
            return Err(ConfigError::value("grants.max_per_resource", "must be 1 to 10000"));
        }
        Ok(GrantsConfig { max_per_resource })
    }
}

impl RawTls {
    fn validate(self) -> Result<TlsFiles, ConfigError> {
        let required = |key: &str, file: Option<PathBuf>| {
            let file = file.ok_or_else(|| ConfigError::value(key, "is required"))?;
            load::read_named(key, &file)?;
            Ok(file)
        };
        let cert_file = required("tls.cert_file", self.cert_file)?;
        let key_file = required("tls.key_file", self.key_file)?;
        if let Some(file) = &self.client_ca_file {
            load::read_named("tls.client_ca_file", file)?;
        }
        Ok(TlsFiles { cert_file, key_file, client_ca_file: self.client_ca_file })
    }
}

impl RawSync {
    fn validate(self) -> Result<SyncConfig, ConfigError> {
        if self.audience.is_empty() {
            return Err(ConfigError::value("sync.audience", "must not be empty"));
        }
        for (i, name) in self.trust.iter().enumerate() {
            if !name.parse::<ResourceName>().is_ok_and(|r| r.route.is_none()) {
                return Err(ConfigError::value(
                    format!("sync.trust[{i}]"),
                    format!("`{name}` is not an issuer's name"),
                ));
            }
        }
        positive("sync.bookmark_interval", self.bookmark_interval)?;
        if self.bookmark_interval > Span::secs(10) {
            // A sidecar gives a stream up that is silent for three times as long.
            return Err(ConfigError::value("sync.bookmark_interval", "must not be longer than 10s"));
        }
        if self.lease <= self.bookmark_interval {
            let why = format!("must be longer than `sync.bookmark_interval` ({})", self.bookmark_interval);
            return Err(ConfigError::value("sync.lease", why));
        }
        if self.max_staleness < self.lease {
            let why = format!("must not be shorter than `sync.lease` ({})", self.lease);
            return Err(ConfigError::value("sync.max_staleness", why));
        }
        if self.log_capacity == 0 {
            return Err(ConfigError::value("sync.log_capacity", "must be at least 1"));
        }
        for (key, number) in [("sync.max_streams", self.max_streams), ("sync.max_snapshots", self.max_snapshots)] {
            if !(1..=MAX_STREAMS).contains(&number) {
                return Err(ConfigError::value(key, format!("must be 1 to {MAX_STREAMS}")));
            }
        }
        let mut seen = HashSet::new();
        let mut enforcement_points: Vec<EnforcementPoint> = Vec::with_capacity(self.enforcement_points.len());
        for (i, raw) in self.enforcement_points.into_iter().enumerate() {
            let key = format!("sync.enforcement_points[{i}]");
            let Identity(identity) = raw.identity;
            if !seen.insert(identity.clone()) {
                let why = format!("`{identity}` occurs twice");
                return Err(ConfigError::value(format!("{key}.identity"), why));
            }
            let services = services(&format!("{key}.services"), raw.services)?;
            enforcement_points.push(EnforcementPoint { identity, services });
        }
        Ok(SyncConfig {
            audience: self.audience,
            token_review: token_review::validate(self.token_review, &self.trust)?,
            trust: self.trust,
            lease: self.lease.0,
            bookmark_interval: self.bookmark_interval.0,
            max_staleness: self.max_staleness.0,
            log_capacity: self.log_capacity,
            max_streams: self.max_streams,
            max_snapshots: self.max_snapshots,
            enforcement_points,
        })
    }
}
