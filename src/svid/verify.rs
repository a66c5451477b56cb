//! Whether a certificate is an X.509-SVID that a trust domain's own authorities vouch for (SPIFFE X.509-SVID, section 5).
//!
//! Plane: cross-cutting. The SPIFFE ID picks the bundle, and only that bundle counts: no authority speaks for another trust
//! domain. Host names and system CAs are not looked at. Two URI names are no SPIFFE ID. Without an SVID of one's own in
//! time nobody is believed.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::source::Source;
use crate::credential::{SpiffeId, TlsEnd, X509Svid};
use crate::tls::provider;

/// Believes clients of the trust domains whose bundles are held.
#[derive(Debug)]
pub(super) struct Clients {
    source: Arc<Source>,
    provider: Arc<CryptoProvider>,
}

/// Believes servers with one of these SPIFFE IDs.
#[derive(Debug)]
pub(super) struct Servers {
    source: Arc<Source>,
    ids: Box<[SpiffeId]>,
    provider: Arc<CryptoProvider>,
}

/// Whether a server's certificate is an X.509-SVID of one of `ids`, in time, and `roots` picks the authorities for it.
pub fn check_server(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    ids: &[SpiffeId],
    roots: impl FnOnce(&SpiffeId) -> Option<Arc<RootCertStore>>,
    now: UnixTime,
) -> Result<(), Error> {
    let shown = parse(TlsEnd::Server, leaf)?;
    if !ids.contains(&shown.id) {
        return Err(Error::InvalidCertificate(CertificateError::NotValidForName));
    }
    let roots = roots(&shown.id).ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
    let parsed = ParsedCertificate::try_from(leaf)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms)
}

fn parse(end: TlsEnd, leaf: &CertificateDer<'_>) -> Result<X509Svid, Error> {
    X509Svid::parse_of(end, leaf).map_err(|why| Error::General(format!("not an X.509-SVID: {}", why.detail)))
}

fn without_svid() -> Error {
    Error::General("there is no SVID to answer with".to_owned())
}

// === impl Clients ===

impl Clients {
    pub(super) fn new(source: &Arc<Source>) -> Self {
        Self { source: Arc::clone(source), provider: provider() }
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // They change while connections are made; a workload has one certificate to show anyway.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let held = self.source.current().ok_or_else(without_svid)?;
        let shown = parse(TlsEnd::Client, leaf)?;
        let domain = held.domain(shown.id.trust_domain());
        let domain = domain.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        domain.clients.verify_client_cert(leaf, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

// === impl Servers ===

impl Servers {
    pub(super) fn new(source: &Arc<Source>, ids: &[SpiffeId]) -> Self {
        Self { source: Arc::clone(source), ids: ids.into(), provider: provider() }
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _host: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let held = self.source.current().ok_or_else(without_svid)?;
        let roots = |id: &SpiffeId| held.domain(id.trust_domain()).map(|domain| Arc::clone(&domain.roots));
        check_server(leaf, intermediates, &self.ids, roots, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
