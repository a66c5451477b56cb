//! Certificates of workloads: PEM or DER becomes an X.509-SVID, a client's unless a server's is asked for (SPIFFE
//! X.509-SVID standard, sections 2 to 5; RFC 5280).
//!
//! Pure; the time is an argument. INVARIANT: no signature is checked here. The TLS terminator has verified the chain
//! and that the client holds the key (Envoy: a validation context and `require_client_certificate`); intermediates are
//! not handed on, so there is no path to build. What is judged here is what a terminator does not: that the leaf is
//! one workload's and not a CA's. Which trust domains count is for the caller. Sizes are capped before anything is
//! decoded; trailing bytes, second certificates and critical extensions that nothing here understands are refused.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

use super::rejection::{CredentialReason, Rejection};
use super::spiffe_id::SpiffeId;
use super::verify::TOKEN_CLOCK_SKEW;
use crate::clock::Timestamp;

/// The longest certificate that is looked at, in bytes as it is sent.
pub const MAX_CERTIFICATE: usize = 16 * 1024;
/// The longest serial number, in bytes (RFC 5280, section 4.1.2.2).
const MAX_SERIAL: usize = 20;

const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
const END: &[u8] = b"-----END CERTIFICATE-----";

/// A certificate that is one workload's. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct X509Svid {
    /// The workload.
    pub id: SpiffeId,
    /// Serial number in lower-case hex, without leading zeros.
    pub serial: Arc<str>,
    /// When it starts to count.
    pub not_before: Timestamp,
    /// When it ends; at this instant it has ended.
    pub not_after: Timestamp,
    /// SHA-256 of the DER: `x5t#S256` (RFC 8705, section 3.1).
    pub thumbprint: [u8; 32],
}

/// Which end of a connection shows a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsEnd {
    /// The one that connects.
    Client,
    /// The one that is connected to.
    Server,
}

/// The DER of a certificate in PEM, URL-encoded as Envoy does it, or plain.
pub fn certificate_from_pem(text: &str) -> Result<Vec<u8>, Rejection> {
    if text.len() > MAX_CERTIFICATE {
        return Err(malformed("the certificate is longer than 16 KiB"));
    }
    let pem = percent_decoded(text.as_bytes()).ok_or(malformed("the certificate is not URL-encoded"))?;
    let body = pem.trim_ascii().strip_prefix(BEGIN).ok_or(malformed("the certificate is not a PEM `CERTIFICATE`"))?;
    let body = body.strip_suffix(END).ok_or(malformed("the PEM `CERTIFICATE` does not end"))?;
    if body.contains(&b'-') {
        return Err(malformed("there is more than one certificate"));
    }
    let base64: Vec<u8> = body.iter().copied().filter(|b| !matches!(b, b'\n' | b'\r')).collect();
    STANDARD.decode(base64).map_err(|_not_base64| malformed("the PEM `CERTIFICATE` is not base64"))
}

/// SHA-256 of a certificate's DER: what RFC 8705 binds tokens to.
pub fn certificate_thumbprint(der: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der).as_ref());
    bytes
}

/// Under which a memo keeps what a certificate says. Never equal to a token's digest, whatever either says.
pub fn certificate_memo_key(der: &[u8]) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    context.update(b"portcullis certificate\0");
    context.update(der);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

/// A serial number in the one form that is compared: lower-case hex without leading zeros. Takes what programs print:
/// upper case, colons between bytes, leading zeros, `0x`. `None` when it is not such a number, or zero.
pub fn certificate_serial(text: &str) -> Option<String> {
    let text = text.strip_prefix("0x").unwrap_or(text);
    if text.len() > 4 * MAX_SERIAL || text.starts_with(':') || text.ends_with(':') || text.contains("::") {
        return None;
    }
    let digits: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
    let serial = digits.trim_start_matches('0');
    let valid = !serial.is_empty() && serial.len() <= 2 * MAX_SERIAL && serial.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| serial.to_owned())
}

/// The serial number of a certificate, whatever else it is; in the form of [`certificate_serial`].
pub fn serial_of_certificate(der: &[u8]) -> Option<Arc<str>> {
    let (_, certificate) = X509Certificate::from_der(der).ok().filter(|_| der.len() <= MAX_CERTIFICATE)?;
    serial(certificate.raw_serial()).ok()
}

const fn malformed(detail: &'static str) -> Rejection {
    CredentialReason::Malformed.because(detail)
}

/// Decodes `%XX`; everything else stands for itself, `+` too.
fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || char::from(*bytes.next()?).to_digit(16).and_then(|d| u8::try_from(d).ok());
                let (high, low) = (digit()?, digit()?);
                high << 4 | low
            }
            plain => plain,
        });
    }
    Some(out)
}

// === impl X509Svid ===

impl X509Svid {
    /// Reads a client's certificate and checks all but its times and its trust domain.
    pub fn parse(der: &[u8]) -> Result<Self, Rejection> {
        Self::parse_of(TlsEnd::Client, der)
    }

    /// Like [`X509Svid::parse`], for the certificate of either end.
    pub fn parse_of(end: TlsEnd, der: &[u8]) -> Result<Self, Rejection> {
        if der.len() > MAX_CERTIFICATE {
            return Err(malformed("the certificate is longer than 16 KiB"));
        }
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_opaque| malformed("the certificate is not valid DER"))?;
        if !rest.is_empty() {
            return Err(malformed("there are bytes after the certificate"));
        }
        if certificate.version() != X509Version::V3 {
            return Err(malformed("the certificate is not of version 3"));
        }
        check_extensions(&certificate)?;
        check_use(&certificate, end)?;
        let validity = certificate.validity();
        Ok(Self {
            id: workload(&certificate)?,
            serial: serial(certificate.raw_serial())?,
            not_before: instant(validity.not_before.timestamp()),
            not_after: instant(validity.not_after.timestamp()),
            thumbprint: certificate_thumbprint(der),
        })
    }

    /// Checks its times.
    pub fn check_time(&self, now: Timestamp) -> Result<(), Rejection> {
        if now >= self.not_after {
            return Err(CredentialReason::Expired.because("the certificate has ended"));
        }
        if self.not_before > now.saturating_add(TOKEN_CLOCK_SKEW) {
            return Err(CredentialReason::NotYetValid.because("the certificate starts in the future"));
        }
        Ok(())
    }
}

/// Every extension parses and occurs once, and a critical one is one that is judged here.
fn check_extensions(certificate: &X509Certificate<'_>) -> Result<(), Rejection> {
    certificate
        .tbs_certificate
        .extensions_map()
        .map_err(|_duplicate| malformed("the certificate has an extension twice"))?;
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_) => {}
            ParsedExtension::ParseError { .. } => {
                return Err(malformed("an extension of the certificate does not parse"));
            }
            _ if extension.critical => {
                return Err(malformed("the certificate has a critical extension that is not understood"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A leaf, for its holder to sign handshakes with as this end (sections 4.1 to 4.4).
fn check_use(certificate: &X509Certificate<'_>, end: TlsEnd) -> Result<(), Rejection> {
    let unusable = |detail| CredentialReason::Typ.because(detail);
    let mut signs = None;
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                return Err(unusable("the certificate is a CA's"));
            }
            ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
                return Err(unusable("the key of the certificate signs certificates or revocation lists"));
            }
            ParsedExtension::KeyUsage(usage) => signs = Some(usage.digital_signature()),
            ParsedExtension::ExtendedKeyUsage(usage) => match end {
                TlsEnd::Client if !usage.client_auth => {
                    return Err(unusable("the extended key usage of the certificate is not for clients"));
                }
                TlsEnd::Server if !usage.server_auth => {
                    return Err(unusable("the extended key usage of the certificate is not for servers"));
                }
                TlsEnd::Client | TlsEnd::Server => {}
            },
            _ => {}
        }
    }
    match signs {
        Some(true) => Ok(()),
        Some(false) => Err(unusable("the key usage of the certificate is not for signatures")),
        None => Err(unusable("the certificate does not say its key usage")),
    }
}

/// The SPIFFE ID in the one URI name (section 2).
fn workload(certificate: &X509Certificate<'_>) -> Result<SpiffeId, Rejection> {
    let names = certificate.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let mut uris = names.flatten().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let reject = |detail| CredentialReason::Subject.because(detail);
    let Some(uri) = uris.next() else { return Err(reject("the certificate has no URI name")) };
    if uris.next().is_some() {
        return Err(reject("the certificate has more than one URI name"));
    }
    SpiffeId::parse(uri).map_err(|_invalid| reject("the URI name of the certificate is not a workload's SPIFFE ID"))
}

fn serial(raw: &[u8]) -> Result<Arc<str>, Rejection> {
    // A DER integer is negative when its first bit is set.
    let positive = raw.first().is_some_and(|first| *first < 0x80);
    let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
    let serial = certificate_serial(&hex).filter(|_| positive);
    serial.map(Arc::from).ok_or(malformed("the serial number of the certificate is not positive, or is too long"))
}

/// Before 1970 there is nothing: such an end has long come, and such a beginning too.
fn instant(seconds: i64) -> Timestamp {
    Timestamp::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests;
