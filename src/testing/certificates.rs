//! Client certificates, made on the spot, in the forms that doors hand over.
//!
//! For tests only; `tests/it` includes this file as well, because a release must not depend on what makes certificates.
//! A certificate is a good X.509-SVID unless the test changes it. Self-signed where nobody verifies the chain, else of an
//! [`Authority`].
#![allow(dead_code, clippy::unwrap_used, reason = "test support, of which each test uses a part")]

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};

/// The serial number of every certificate that does not say otherwise, as it is recorded.
pub(crate) const SERIAL: &str = "a1b2c";

/// A CA, and the directory with its certificate and what it has issued.
pub(crate) struct Authority {
    directory: tempfile::TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { directory: tempfile::tempdir().unwrap(), ca };
        std::fs::write(authority.file(), authority.pem()).unwrap();
        authority
    }

    /// The file with its certificate.
    pub(crate) fn file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn pem(&self) -> String {
        self.ca.pem()
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        self.ca.der().to_vec()
    }

    /// A certificate that says this, and its key.
    pub(crate) fn sign(&self, params: &CertificateParams) -> (Vec<u8>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.ca).unwrap().der().to_vec(), key)
    }

    /// Files with a certificate for these names, good for both ends, and with its key.
    pub(crate) fn issue(&self, name: &str, names: Vec<SanType>) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (der, key) = self.sign(&params);
        let (cert_file, key_file) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        std::fs::write(&cert_file, pem(&der)).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        (cert_file, key_file)
    }
}

/// What a good X.509-SVID of `id` says that is valid from a minute before to an hour after `now`, in seconds.
pub(crate) fn params(id: &str, now: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(id)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(SerialNumber::from_slice(&[0x0a, 0x1b, 0x2c]));
    valid(&mut params, now - 60, now + 3600);
    params
}

/// A URI name.
pub(crate) fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

/// Sets the times, in seconds.
pub(crate) fn valid(params: &mut CertificateParams, from: u64, until: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from);
    params.not_after = epoch + Duration::from_secs(until);
}

/// The DER of a certificate.
pub(crate) fn der(params: &CertificateParams) -> Vec<u8> {
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

/// The DER of a good X.509-SVID.
pub(crate) fn svid(id: &str, now: u64) -> Vec<u8> {
    der(&params(id, now))
}

/// As text.
pub(crate) fn pem(der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let lines: Vec<_> = base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// As Envoy's `source.certificate` and `Cert=`.
pub(crate) fn url_encoded(der: &[u8]) -> String {
    let mut text = pem(der);
    for (plain, encoded) in [("\n", "%0A"), (" ", "%20"), ("+", "%2B"), ("/", "%2F"), ("=", "%3D")] {
        text = text.replace(plain, encoded);
    }
    text
}

/// An element of `x-forwarded-client-cert`, as Envoy writes it.
pub(crate) fn xfcc(der: &[u8], id: &str) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let cert = url_encoded(der);
    format!(
        "By=spiffe://test.example/gateway;Hash={hash};Cert=\"{cert}\";Subject=\"CN=a\\\"b, O=\\\\;\";URI={id};DNS=a;DNS=b"
    )
}

/// `Client-Cert` (RFC 9440).
pub(crate) fn client_cert(der: &[u8]) -> String {
    format!(":{}:", STANDARD.encode(der))
}
