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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_byte_sequence_is_read() {
        assert_eq!(certificate_from_client_cert(b":AAEC:").unwrap(), [0, 1, 2]);
        assert_eq!(certificate_from_client_cert(b" :AAEC: ").unwrap(), [0, 1, 2]);
        let refused: [&[u8]; 12] = [
            b"",
            b":",
            b"AAEC",
            b"\"AAEC\"",
            b":AAEC",
            b"AAEC:",
            b":AAEC:;a=1",
            b":AAEC:, :AAEC:",
            b":AA EC:",
            b":AAE:",
            b":A_-C:",
            b":\xff\xff:",
        ];
        for value in refused {
            let rejection = certificate_from_client_cert(value).unwrap_err();
            assert_eq!(rejection.reason, CredentialReason::Malformed, "{}", value.escape_ascii());
        }
        let long = format!(":{}:", "A".repeat(MAX_CERTIFICATE));
        assert!(certificate_from_client_cert(long.as_bytes()).unwrap_err().detail.contains("16 KiB"));
    }
}
