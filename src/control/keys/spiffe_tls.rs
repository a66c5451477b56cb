//! The TLS of a SPIFFE bundle endpoint: the server shows an X.509-SVID with exactly the expected SPIFFE ID
//! (SPIFFE Federation, section 5.2.2).
//!
//! Plane: control. The chain has to end in an authority of the bundle that is held; the host name is not looked at, the
//! SPIFFE ID is. No system CA counts. Fails closed: no authority, no connection; two URI names are no SPIFFE ID.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::error::FetchError;
use crate::credential::SpiffeId;
use crate::object::Jwks;
use crate::svid::check_server;

/// Lets in whoever has an X.509-SVID of one SPIFFE ID.
#[derive(Debug)]
struct ExactSvid {
    id: SpiffeId,
    authorities: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

/// A TLS client that talks to `id` only, as far as one of the X.509 authorities of `bundle` vouches for it.
pub(super) fn client(id: &SpiffeId, bundle: &Jwks) -> Result<Arc<ClientConfig>, FetchError> {
    let authorities = authorities(bundle)?;
    if authorities.is_empty() {
        return Err(FetchError::refused("no X.509 authority is known that could vouch for the endpoint"));
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = ExactSvid { id: id.clone(), authorities: Arc::new(authorities), provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(crate::tls::TLS12_UP)
        .map_err(|e| FetchError::refused(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Whether the bundle has X.509 authorities.
pub(super) fn has_authorities(bundle: &Jwks) -> bool {
    bundle.keys.iter().any(is_authority)
}

fn is_authority(key: &serde_json::Value) -> bool {
    key.get("use").is_some_and(|v| v == "x509-svid")
}

/// The X.509 authorities of a bundle: one certificate each (Trust Domain and Bundle, section 4.2.2).
fn authorities(bundle: &Jwks) -> Result<RootCertStore, FetchError> {
    let mut store = RootCertStore::empty();
    for (i, key) in bundle.keys.iter().enumerate().filter(|(_, key)| is_authority(key)) {
        let bad = |why: &str| FetchError::invalid(format!("the X.509 authority `keys[{i}]` cannot be used: {why}"));
        let chain = key.get("x5c").and_then(serde_json::Value::as_array).map(Vec::as_slice);
        let Some([one]) = chain else { return Err(bad("`x5c` is not an array of one certificate")) };
        let text = one.as_str().ok_or_else(|| bad("`x5c` is not text"))?;
        let der = STANDARD.decode(text).map_err(|_invalid| bad("`x5c` is not base64"))?;
        store.add(CertificateDer::from(der)).map_err(|_invalid| bad("`x5c` is not a CA certificate"))?;
    }
    Ok(store)
}

// === impl ExactSvid ===

impl ServerCertVerifier for ExactSvid {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _host: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ids = std::slice::from_ref(&self.id);
        check_server(leaf, intermediates, ids, |_| Some(Arc::clone(&self.authorities)), now)?;
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
