//! The TLS configurations of the proxy, from files or from a SPIFFE agent.
//!
//! Plane: hot path, at its start and when files have changed. One stream for all that name the same agent. A configuration
//! from an agent never changes: what it shows and believes is looked up at each handshake.

use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};

use super::config::{Protocol, ServerCertificates, UpstreamTls};
use crate::svid::{self, Settings, Source};
use crate::tls::{self, ALPN_H2, ALPN_HTTP1, TLS12_UP, TlsError};

/// The SVIDs that are used, each once.
#[derive(Debug, Default)]
pub(super) struct Svids(Vec<Arc<Source>>);

// === impl Svids ===

impl Svids {
    pub(super) fn all(&self) -> &[Arc<Source>] {
        &self.0
    }

    /// The listener's.
    pub(super) fn server_config(&mut self, from: &ServerCertificates) -> Result<Arc<ServerConfig>, TlsError> {
        let alpn = [ALPN_H2, ALPN_HTTP1];
        match from {
            ServerCertificates::Files(files) => tls::server_config(files, TLS12_UP, &alpn),
            ServerCertificates::Svid(settings) => svid::server_config(&self.of(settings), &alpn),
        }
    }

    /// Towards an upstream.
    pub(super) fn client_config(
        &mut self,
        from: &UpstreamTls,
        protocol: Protocol,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let alpn = match protocol {
            Protocol::Http1 => [ALPN_HTTP1],
            Protocol::Http2 => [ALPN_H2],
        };
        match from {
            UpstreamTls::Files(files, _) => tls::client_config(files, TLS12_UP, &alpn),
            UpstreamTls::Svid(settings, ids) => svid::client_config(&self.of(settings), ids, &alpn),
        }
    }

    fn of(&mut self, settings: &Settings) -> Arc<Source> {
        if let Some(source) = self.0.iter().find(|source| source.settings() == settings) {
            return Arc::clone(source);
        }
        let source = Source::new(settings.clone());
        self.0.push(Arc::clone(&source));
        source
    }
}
