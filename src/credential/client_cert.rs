//! `Client-Cert`: a certificate as a terminating proxy forwards it (RFC 9440, section 2.2).
//!
//! Pure. A structured field of one byte sequence, `:base64 of the DER:`, without parameters. Whether whoever sent it may
//! forward certificates is for the caller. `Client-Cert-Chain` is not read: there is no path to build. Size is capped
//! before decoding, and anything else than this one form is refused.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::rejection::{CredentialReason, Rejection};
use super::x509::MAX_CERTIFICATE;

/// The DER of a certificate in a `Client-Cert` header.
pub fn certificate_from_client_cert(value: &[u8]) -> Result<Vec<u8>, Rejection> {
    let malformed = |detail| CredentialReason::Malformed.because(detail);
    if value.len() > MAX_CERTIFICATE {
        return Err(malformed("the certificate in `Client-Cert` is longer than 16 KiB"));
    }
    let inner = value.trim_ascii().strip_prefix(b":").and_then(|value| value.strip_suffix(b":"));
    let base64 = inner.ok_or(malformed("`Client-Cert` is not a byte sequence"))?;
    STANDARD.decode(base64).map_err(|_not_base64| malformed("`Client-Cert` is not base64"))
}
