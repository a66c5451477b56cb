//! `forward_auth:` of `sidecar.yaml`: which proxies ask over HTTP, and how.
//!
//! Plane: composition. Fails closed: nobody is believed but from loopback unless it is listed, and an empty list is nobody.

use serde::{Deserialize, Serialize};

use super::positive;
use crate::authz::Network;
use crate::config::load::ConfigError;
use crate::config::values::{Cidr, Span};
use crate::forward_auth::Dialect;

/// Proxies that ask over HTTP, at `listeners.forward_auth`.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "ForwardAuth")]
pub struct RawForwardAuth {
    /// The addresses that proxies ask from. Whoever connects from there is believed about the method, the path, the host
    /// and the address of its clients; nobody else is answered. Default: this machine. Empty: nobody.
    pub trusted_peers: Vec<Cidr>,
    /// How they ask, each under its own path: `/envoy` and the client's path, `/traefik`, `/caddy`, `/nginx`.
    pub dialects: Vec<RawDialect>,
    /// How long the head of a question may take to arrive once it has begun, and how long its body.
    pub read_timeout: Span,
    /// How long a proxy may keep a connection without asking. Longer than the proxy itself does: a question on a
    /// connection that is being closed is a failure to it.
    pub idle_timeout: Span,
}

/// How a proxy asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Dialect")]
pub enum RawDialect {
    /// Envoy's HTTP ext_authz service.
    Envoy,
    /// Traefik's `forwardAuth`.
    Traefik,
    /// Caddy's `forward_auth`.
    Caddy,
    /// nginx's `auth_request`.
    Nginx,
}

/// Proxies that ask over HTTP, validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardAuth {
    /// Where they ask from.
    pub trusted_peers: Vec<Network>,
    /// How they ask: at least one.
    pub dialects: Vec<Dialect>,
    /// How long a head may take, and a body.
    pub read_timeout: std::time::Duration,
    /// How long a connection may rest.
    pub idle_timeout: std::time::Duration,
}

// === impl RawForwardAuth ===

impl RawForwardAuth {
    pub(super) fn validate(self) -> Result<ForwardAuth, ConfigError> {
        let mut dialects: Vec<Dialect> = Vec::new();
        for dialect in self.dialects.into_iter().map(Dialect::from) {
            if !dialects.contains(&dialect) {
                dialects.push(dialect);
            }
        }
        if dialects.is_empty() {
            let why = "at least one of `envoy`, `traefik`, `caddy` and `nginx` is needed";
            return Err(ConfigError::value("forward_auth.dialects", why));
        }
        positive("forward_auth.read_timeout", self.read_timeout)?;
        positive("forward_auth.idle_timeout", self.idle_timeout)?;
        Ok(ForwardAuth {
            trusted_peers: self.trusted_peers.into_iter().map(|Cidr(network)| network).collect(),
            dialects,
            read_timeout: self.read_timeout.0,
            idle_timeout: self.idle_timeout.0,
        })
    }
}

impl Default for RawForwardAuth {
    fn default() -> Self {
        let loopback = ["127.0.0.0/8", "::1"].into_iter().filter_map(|network| network.parse().ok());
        Self {
            trusted_peers: loopback.collect(),
            dialects: vec![RawDialect::Envoy, RawDialect::Traefik, RawDialect::Caddy, RawDialect::Nginx],
            read_timeout: Span::secs(5),
            idle_timeout: Span::secs(7200),
        }
    }
}

impl From<RawDialect> for Dialect {
    fn from(raw: RawDialect) -> Self {
        match raw {
            RawDialect::Envoy => Self::Envoy,
            RawDialect::Traefik => Self::Traefik,
            RawDialect::Caddy => Self::Caddy,
            RawDialect::Nginx => Self::Nginx,
        }
    }
}
