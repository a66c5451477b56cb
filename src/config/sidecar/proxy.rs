//! `proxy:` of `sidecar.yaml`: the reverse proxy, as it is written and validated.
//!
//! Plane: composition. Fails closed: without an upstream for a service the proxy does not listen; nobody's word about a
//! client's address or connection counts unless the peer is listed; an upstream with TLS names who vouches for it. What
//! would be a certificate from two places, or an agent that nothing uses, is refused.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::positive;
use crate::config::load::ConfigError;
use crate::config::values::{Cidr, Span};
use crate::proxy::{
    Config, Health, Limits, Listener, Protocol, ServerCertificates, Timeouts, UpstreamConfig, UpstreamTls,
};
use crate::svid::Settings;

mod tls;

pub use self::tls::{RawProxyTls, RawUpstreamTls, RawWorkloadApi};

/// The reverse proxy, at `listeners.proxy`.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Proxy")]
pub struct RawProxy {
    /// Where allowed requests go: one entry a service. The service is the one that the decision was for, whatever the
    /// request's host.
    pub upstreams: Vec<RawUpstream>,
    /// TLS towards clients. Null: plain text.
    pub tls: Option<RawProxyTls>,
    /// The SPIFFE agent that certificates come from where `workload_api` says so. Null: all come from files.
    pub workload_api: Option<RawWorkloadApi>,
    /// The load balancers that begin their connections with the header of the PROXY protocol, version 2. They must; from
    /// anybody else it is refused. Default: nobody.
    pub proxy_protocol_from: Vec<Cidr>,
    /// The proxies in front of this one. What they say in `Forwarded` and `X-Forwarded-*` is kept and added to; from
    /// anybody else it is removed. It decides nothing. Default: nobody.
    pub trusted_forwarders: Vec<Cidr>,
    /// What clients may ask to speak instead of HTTP, once they are allowed to.
    pub upgrades: Vec<String>,
    /// Open connections of clients; more wait to be accepted.
    pub max_connections: u32,
    /// Requests at once on one HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// Bytes of a request's body. Null: any number; only what is decided on is kept (`limits.max_message_bytes`).
    pub max_body_bytes: Option<u64>,
    /// How long the head of a request may take to arrive once it has begun; a body that is decided on, and a TLS handshake,
    /// too.
    pub head_timeout: Span,
    /// How long a client may be silent: between two requests, and in the middle of a body.
    pub idle_timeout: Span,
    /// How often open answers are decided on again when nothing has changed, so that one whose token or grant ends is cut.
    /// After a change they are at once.
    pub recheck_interval: Span,
}

/// Where the requests of a service go.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Upstream")]
pub struct RawUpstream {
    /// Required. One of `scope.services`.
    pub service: Option<String>,
    /// Required. `host:port`, tried in turn.
    pub addresses: Vec<String>,
    /// What is spoken there. gRPC needs `http2`.
    pub protocol: RawProtocol,
    /// TLS. Null: plain text.
    pub tls: Option<RawUpstreamTls>,
    /// How long connecting may take, TLS included.
    pub connect_timeout: Span,
    /// How long the head of an answer may take. Its body may take any time.
    pub response_timeout: Span,
    /// How long a connection is kept that is not used. Shorter than there, so that no request meets one that is closed.
    pub idle_timeout: Span,
    /// How often an idempotent request without a body is sent again when the connection broke before any byte of an answer.
    pub retries: u32,
    /// Requests under way; more are answered 503.
    pub max_requests: u32,
    /// Whether and how addresses are asked whether they work. Null: they are not.
    pub health: Option<RawHealth>,
}

/// How addresses are asked whether they work: GET, and any 2xx is good.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "UpstreamHealth")]
pub struct RawHealth {
    /// The path.
    pub path: String,
    /// How often; not more than once a second.
    pub interval: Span,
    /// Bad answers in a row after which an address is passed over.
    pub unhealthy_after: u32,
    /// Good answers in a row after which it is not any more.
    pub healthy_after: u32,
}

/// What is spoken to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "UpstreamProtocol")]
pub enum RawProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2; in plain text without asking.
    Http2,
}

// === impl RawProxy ===

impl RawProxy {
    /// `limits` are those of all doors; `listens` says whether there is a listener, which needs an upstream.
    pub(super) fn validate(
        self,
        listens: bool,
        services: &[String],
        [max_headers, max_header_bytes, max_message_bytes]: [u32; 3],
    ) -> Result<Config, ConfigError> {
        if listens && self.upstreams.is_empty() {
            return Err(ConfigError::value("proxy.upstreams", "at least one is needed with `listeners.proxy`"));
        }
        for (key, number) in
            [("max_connections", self.max_connections), ("max_concurrent_streams", self.max_concurrent_streams)]
        {
            at_least_one(&format!("proxy.{key}"), number)?;
        }
        positive("proxy.head_timeout", self.head_timeout)?;
        positive("proxy.idle_timeout", self.idle_timeout)?;
        positive("proxy.recheck_interval", self.recheck_interval)?;
        let mut upgrades = self.upgrades;
        for (i, name) in upgrades.iter_mut().enumerate() {
            *name = name.to_ascii_lowercase();
            let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-./_".contains(&b));
            if !is_name || matches!(name.as_str(), "h2c" | "h2" | "tls" | "tls/1.0") {
                let why = format!("`{name}` is not a protocol that a request can go over to here");
                return Err(ConfigError::value(format!("proxy.upgrades[{i}]"), why));
            }
        }
        let agent = self.workload_api.map(RawWorkloadApi::validate).transpose()?;
        let agent = agent.as_ref();
        let mut upstreams: Vec<UpstreamConfig> = Vec::new();
        for (i, upstream) in self.upstreams.into_iter().enumerate() {
            let upstream = upstream.validate(&format!("proxy.upstreams[{i}]"), services, agent)?;
            if upstreams.iter().any(|other| other.service == upstream.service) {
                let why = format!("`{}` has two entries", upstream.service);
                return Err(ConfigError::value(format!("proxy.upstreams[{i}].service"), why));
            }
            upstreams.push(upstream);
        }
        let networks = |all: Vec<Cidr>| all.into_iter().map(|Cidr(network)| network).collect();
        let tls = self.tls.map(|tls| tls.validate(agent)).transpose()?;
        let is_used = tls.as_ref().is_some_and(|tls| matches!(tls.certificates, ServerCertificates::Svid(_)))
            || upstreams.iter().any(|upstream| matches!(upstream.tls, Some(UpstreamTls::Svid(..))));
        if agent.is_some() && !is_used {
            let why = "nothing uses it: say `workload_api: true` in `proxy.tls`, or in `tls` of an upstream";
            return Err(ConfigError::value("proxy.workload_api", why));
        }
        Ok(Config {
            listener: Listener { tls, proxy_protocol: networks(self.proxy_protocol_from) },
            upstreams,
            trusted_forwarders: networks(self.trusted_forwarders),
            upgrades,
            limits: Limits {
                max_connections: self.max_connections as usize,
                max_concurrent_streams: self.max_concurrent_streams,
                max_headers: max_headers as usize,
                max_header_bytes: max_header_bytes as usize,
                max_body_bytes: self.max_body_bytes,
                max_read_bytes: max_message_bytes as usize,
                head_timeout: self.head_timeout.0,
                idle_timeout: self.idle_timeout.0,
                live_interval: self.recheck_interval.0,
                ..Limits::default()
            },
        })
    }
}

impl RawUpstream {
    fn validate(self, at: &str, services: &[String], agent: Option<&Settings>) -> Result<UpstreamConfig, ConfigError> {
        let key = |name: &str| format!("{at}.{name}");
        let service = self.service.ok_or_else(|| ConfigError::value(key("service"), "is required"))?;
        if !services.contains(&service) {
            let why = format!("`{service}` is not one of `scope.services`");
            return Err(ConfigError::value(key("service"), why));
        }
        if self.addresses.is_empty() {
            return Err(ConfigError::value(key("addresses"), "at least one is needed"));
        }
        for (i, address) in self.addresses.iter().enumerate() {
            let authority = address.parse::<http::uri::Authority>().ok();
            let is_address = authority.as_ref().is_some_and(|a| a.port_u16().is_some() && !a.as_str().contains('@'));
            if !is_address {
                let why = format!("`{address}` is not a host and a port, as in `127.0.0.1:8080` or `app.internal:80`");
                return Err(ConfigError::value(key(&format!("addresses[{i}]")), why));
            }
        }
        positive(&key("connect_timeout"), self.connect_timeout)?;
        positive(&key("response_timeout"), self.response_timeout)?;
        positive(&key("idle_timeout"), self.idle_timeout)?;
        at_least_one(&key("max_requests"), self.max_requests)?;
        if self.retries > 3 {
            return Err(ConfigError::value(key("retries"), "must be at most 3"));
        }
        Ok(UpstreamConfig {
            service,
            addresses: self.addresses,
            protocol: match self.protocol {
                RawProtocol::Http1 => Protocol::Http1,
                RawProtocol::Http2 => Protocol::Http2,
            },
            tls: self.tls.map(|tls| tls.validate(&key("tls"), agent)).transpose()?,
            timeouts: Timeouts {
                connect: self.connect_timeout.0,
                response: self.response_timeout.0,
                idle: self.idle_timeout.0,
            },
            retries: self.retries,
            max_requests: self.max_requests as usize,
            health: self.health.map(|health| health.validate(&key("health"))).transpose()?,
        })
    }
}

impl RawHealth {
    fn validate(self, at: &str) -> Result<Health, ConfigError> {
        let key = |name: &str| format!("{at}.{name}");
        if !self.path.starts_with('/') || self.path.parse::<http::uri::PathAndQuery>().is_err() {
            return Err(ConfigError::value(key("path"), format!("`{}` is not a path", self.path)));
        }
        if self.interval.0 < Duration::from_secs(1) {
            return Err(ConfigError::value(key("interval"), "must be at least 1s"));
        }
        at_least_one(&key("unhealthy_after"), self.unhealthy_after)?;
        at_least_one(&key("healthy_after"), self.healthy_after)?;
        let (unhealthy_after, healthy_after) = (self.unhealthy_after, self.healthy_after);
        Ok(Health { path: self.path, interval: self.interval.0, unhealthy_after, healthy_after })
    }
}

fn at_least_one(key: &str, number: u32) -> Result<(), ConfigError> {
    if number == 0 { Err(ConfigError::value(key, "must be at least 1")) } else { Ok(()) }
}

// === defaults ===

impl Default for RawProxy {
    fn default() -> Self {
        Self {
            upstreams: Vec::new(),
            tls: None,
            workload_api: None,
            proxy_protocol_from: Vec::new(),
            trusted_forwarders: Vec::new(),
            upgrades: vec!["websocket".to_owned()],
            max_connections: 4096,
            max_concurrent_streams: 128,
            max_body_bytes: None,
            head_timeout: Span::secs(10),
            idle_timeout: Span::secs(60),
            recheck_interval: Span::secs(1),
        }
    }
}

impl Default for RawUpstream {
    fn default() -> Self {
        Self {
            service: None,
            addresses: Vec::new(),
            protocol: RawProtocol::Http1,
            tls: None,
            connect_timeout: Span::secs(2),
            response_timeout: Span::secs(30),
            idle_timeout: Span::secs(30),
            retries: 1,
            max_requests: 1024,
            health: None,
        }
    }
}

impl Default for RawHealth {
    fn default() -> Self {
        Self { path: "/".to_owned(), interval: Span::secs(5), unhealthy_after: 2, healthy_after: 2 }
    }
}

#[cfg(test)]
mod tests;
