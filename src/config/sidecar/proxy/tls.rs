//! `proxy.tls`, `proxy.workload_api` and `tls` of upstreams, as they are written and validated.
//!
//! Plane: composition. Certificates come from files or from a SPIFFE agent, and what would be both is refused; so is a
//! file that cannot be read, and a peer for whom nobody vouches. Never falls back to plain text.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::load::{self, ConfigError};
use crate::config::values::{Identity, WorkloadApi};
use crate::proxy::{ServerCertificates, ServerTls, UpstreamTls};
use crate::svid;
use crate::tls::{ClientFiles, ServerFiles};

/// A SPIFFE agent. New SVIDs and bundles count for new connections as soon as it sends them.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "ProxyWorkloadApi")]
pub struct RawWorkloadApi {
    /// Required. Where it is: a Unix socket, or TCP on a loopback address.
    pub endpoint: Option<WorkloadApi>,
    /// Which of several SVIDs. Null: the first.
    pub spiffe_id: Option<Identity>,
}

/// TLS towards clients. Changed files are read again within a second or two.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "ProxyTls")]
pub struct RawProxyTls {
    /// The SVID of `proxy.workload_api` is shown, and clients may show one that its bundles vouch for. No file beside it.
    pub workload_api: bool,
    /// Required without `workload_api`. PEM: the certificate and its chain.
    pub cert_file: Option<PathBuf>,
    /// Required without `workload_api`. PEM: its private key.
    pub key_file: Option<PathBuf>,
    /// PEM: who vouches for clients' certificates. Null: none are asked for.
    pub client_ca_file: Option<PathBuf>,
    /// Clients without a certificate get no connection. Otherwise it is the route that says what they must show.
    pub require_client_certificate: bool,
}

/// TLS towards an upstream. Changed files are read again within a second or two.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "UpstreamTls")]
pub struct RawUpstreamTls {
    /// The SVID of `proxy.workload_api` is shown, and its bundles vouch for the upstream. No file beside it.
    pub workload_api: bool,
    /// Required with `workload_api`: the upstream has an SVID of one of these. Its host name is not looked at.
    pub spiffe_ids: Vec<Identity>,
    /// Required without `workload_api`. PEM: who vouches for the upstream's certificate.
    pub ca_file: Option<PathBuf>,
    /// Required without `workload_api`. The name in its certificate.
    pub server_name: Option<String>,
    /// PEM: this proxy's own certificate and its chain, if it shows one.
    pub client_cert_file: Option<PathBuf>,
    /// PEM: its private key.
    pub client_key_file: Option<PathBuf>,
}

// === impl RawWorkloadApi ===

impl RawWorkloadApi {
    pub(super) fn validate(self) -> Result<svid::Settings, ConfigError> {
        let endpoint = self.endpoint.ok_or_else(|| ConfigError::value("proxy.workload_api.endpoint", "is required"))?;
        Ok(svid::Settings { endpoint: endpoint.0, spiffe_id: self.spiffe_id.map(|id| id.0) })
    }
}

// === impl RawProxyTls ===

impl RawProxyTls {
    pub(super) fn validate(self, agent: Option<&svid::Settings>) -> Result<ServerTls, ConfigError> {
        let require_client_certificate = self.require_client_certificate;
        if self.workload_api {
            let beside = [
                ("cert_file", self.cert_file.is_some()),
                ("key_file", self.key_file.is_some()),
                ("client_ca_file", self.client_ca_file.is_some()),
            ];
            let certificates = ServerCertificates::Svid(agent_of("proxy.tls", agent, &beside)?);
            return Ok(ServerTls { certificates, require_client_certificate });
        }
        let cert_file = file("proxy.tls.cert_file", self.cert_file)?;
        let key_file = file("proxy.tls.key_file", self.key_file)?;
        let client_ca_file = self.client_ca_file;
        if let Some(path) = &client_ca_file {
            load::read_named("proxy.tls.client_ca_file", path)?;
        } else if self.require_client_certificate {
            let why = "is required with `require_client_certificate`";
            return Err(ConfigError::value("proxy.tls.client_ca_file", why));
        }
        let certificates = ServerCertificates::Files(ServerFiles { cert_file, key_file, client_ca_file });
        Ok(ServerTls { certificates, require_client_certificate })
    }
}

// === impl RawUpstreamTls ===

impl RawUpstreamTls {
    pub(super) fn validate(self, at: &str, agent: Option<&svid::Settings>) -> Result<UpstreamTls, ConfigError> {
        let key = |name: &str| format!("{at}.{name}");
        if self.workload_api {
            let beside = [
                ("ca_file", self.ca_file.is_some()),
                ("server_name", self.server_name.is_some()),
                ("client_cert_file", self.client_cert_file.is_some()),
                ("client_key_file", self.client_key_file.is_some()),
            ];
            let agent = agent_of(at, agent, &beside)?;
            if self.spiffe_ids.is_empty() {
                return Err(ConfigError::value(key("spiffe_ids"), "is required with `workload_api`"));
            }
            return Ok(UpstreamTls::Svid(agent, self.spiffe_ids.into_iter().map(|id| id.0).collect()));
        }
        if !self.spiffe_ids.is_empty() {
            return Err(ConfigError::value(key("spiffe_ids"), "counts only with `workload_api`"));
        }
        let ca_file = file(&key("ca_file"), self.ca_file)?;
        let name = self.server_name.ok_or_else(|| ConfigError::value(key("server_name"), "is required"))?;
        if rustls_pki_types::ServerName::try_from(name.as_str()).is_err() {
            return Err(ConfigError::value(key("server_name"), format!("`{name}` is not a host name or an address")));
        }
        let identity = match (self.client_cert_file, self.client_key_file) {
            (None, None) => None,
            (cert, private) => Some((file(&key("client_cert_file"), cert)?, file(&key("client_key_file"), private)?)),
        };
        Ok(UpstreamTls::Files(ClientFiles { ca_file, identity }, name))
    }
}

/// The agent, for a section that asks for it; nothing beside it says where certificates come from.
fn agent_of(at: &str, agent: Option<&svid::Settings>, beside: &[(&str, bool)]) -> Result<svid::Settings, ConfigError> {
    if let Some((name, _)) = beside.iter().find(|(_, is_there)| *is_there) {
        let why = format!("`workload_api` and `{name}` cannot both be: certificates come from the agent or from files");
        return Err(ConfigError::value(at, why));
    }
    let why = "needs `proxy.workload_api`, where the agent is";
    agent.cloned().ok_or_else(|| ConfigError::value(format!("{at}.workload_api"), why))
}

fn file(key: &str, path: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
    let path = path.ok_or_else(|| ConfigError::value(key, "is required"))?;
    load::read_named(key, &path)?;
    Ok(path)
}
