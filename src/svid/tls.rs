//! TLS configurations that show the SVID held at each handshake and believe the bundles held then.
//!
//! Plane: cross-cutting. INVARIANT: no session is resumed, so that each connection is verified by what is believed when it
//! is made; without an SVID in time every handshake fails, on both sides, before anything of a request is sent.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use super::source::Source;
use super::verify::{Clients, Servers};
use crate::credential::SpiffeId;
use crate::tls::{TLS12_UP, TlsError, provider};

/// Shows the SVID.
#[derive(Debug)]
struct Own(Arc<Source>);

/// The configuration of a server. Clients may stay without a certificate, and one that is shown must be an X.509-SVID of a
/// trust domain whose bundle is held: its own or a federated one.
pub fn server_config(source: &Arc<Source>, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(TLS12_UP)
        .map_err(|e| TlsError::Setup(e.to_string()))?
        .with_client_cert_verifier(Arc::new(Clients::new(source)))
        .with_cert_resolver(Arc::new(Own(Arc::clone(source))));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// The configuration of a client that talks to `ids` only. The host's name is not looked at.
pub fn client_config(source: &Arc<Source>, ids: &[SpiffeId], alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(TLS12_UP)
        .map_err(|e| TlsError::Setup(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Servers::new(source, ids)))
        .with_client_cert_resolver(Arc::new(Own(Arc::clone(source))));
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

// === impl Own ===

impl ResolvesServerCert for Own {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.current().map(|held| Arc::clone(&held.key))
    }
}

impl rustls::client::ResolvesClientCert for Own {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.current().map(|held| Arc::clone(&held.key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
