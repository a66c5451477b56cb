//! Ed25519 signatures over sync payloads (RFC 8032), with a context prefix so that no other signature fits.
//!
//! Pure, except that the key is generated from the operating system's random source. The sidecar holds only the
//! public key. Fails closed: a payload whose signature does not verify does not exist.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

const CONTEXT: &[u8] = b"portcullis.sync.v1\0";

/// The control plane's private key.
pub struct SigningKey {
    pair: Ed25519KeyPair,
}

/// The public half, which sidecars are configured with.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyKey([u8; 32]);

/// What is wrong with a key or a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not 32 bytes of base64, or not a PKCS#8 Ed25519 key.
    #[error("not an Ed25519 key")]
    Key,
    /// The signature does not match the payload and the key.
    #[error("the signature does not verify")]
    Mismatch,
    /// The random source failed.
    #[error("no key could be generated")]
    Generate,
}

// === impl SigningKey ===

impl SigningKey {
    /// Makes a new key; returns it with its PKCS#8 form, base64, for a file of mode 0600.
    pub fn generate() -> Result<(Self, Zeroizing<String>), SignatureError> {
        Self::with_text(Ed25519KeyPair::generate().map_err(|_opaque| SignatureError::Generate)?)
    }

    /// The key of a seed (RFC 8032, section 5.1.5), likewise: whoever knows the seed has the key.
    pub fn from_seed(seed: &[u8; 32]) -> Result<(Self, Zeroizing<String>), SignatureError> {
        Self::with_text(Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_rejected| SignatureError::Key)?)
    }

    fn with_text(pair: Ed25519KeyPair) -> Result<(Self, Zeroizing<String>), SignatureError> {
        let der = pair.to_pkcs8().map_err(|_opaque| SignatureError::Generate)?;
        let text = Zeroizing::new(STANDARD.encode(der.as_ref()));
        Ok((Self { pair }, text))
    }

    /// Reads the base64 PKCS#8 form.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let der = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_not_base64| SignatureError::Key)?);
        let pair = Ed25519KeyPair::from_pkcs8(&der).map_err(|_rejected| SignatureError::Key)?;
        Ok(Self { pair })
    }

    /// The public half.
    pub fn verify_key(&self) -> VerifyKey {
        let mut key = [0; 32];
        if let Ok(bytes) = <[u8; 32]>::try_from(self.pair.public_key().as_ref()) {
            key = bytes;
        }
        VerifyKey(key)
    }

    /// Signs `payload`.
    pub fn sign(&self, payload: &[u8]) -> Vec<u8> {
        self.pair.sign(&message(payload)).as_ref().to_vec()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(***)")
    }
}

// === impl VerifyKey ===

impl VerifyKey {
    /// Reads the base64 form of the 32 key bytes.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_not_base64| SignatureError::Key)?;
        <[u8; 32]>::try_from(bytes).map(Self).map_err(|_wrong_length| SignatureError::Key)
    }

    /// Checks `signature` over `payload`.
    pub fn verify(&self, payload: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        UnparsedPublicKey::new(&ED25519, self.0)
            .verify(&message(payload), signature)
            .map_err(|_opaque| SignatureError::Mismatch)
    }
}

impl fmt::Display for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyKey({self})")
    }
}

fn message(payload: &[u8]) -> Vec<u8> {
    let mut m = Vec::with_capacity(CONTEXT.len() + payload.len());
    m.extend_from_slice(CONTEXT);
    m.extend_from_slice(payload);
    m
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_signed_payload_verifies() {
        let (key, text) = SigningKey::generate().unwrap();
        let again = SigningKey::parse(&text).unwrap();
        let public = VerifyKey::parse(&key.verify_key().to_string()).unwrap();
        let sig = again.sign(b"payload");
        public.verify(b"payload", &sig).unwrap();
        assert_eq!(public.verify(b"payloae", &sig), Err(SignatureError::Mismatch));
        assert_eq!(public.verify(b"payload", &sig[1..]), Err(SignatureError::Mismatch));
        let (other, _) = SigningKey::generate().unwrap();
        assert_eq!(other.verify_key().verify(b"payload", &sig), Err(SignatureError::Mismatch));
        assert!(VerifyKey::parse("AAAA").is_err());
    }
}
