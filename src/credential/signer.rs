//! Signs tokens with ES256: those that the control plane exchanges, and JWT-SVIDs for `token issue`, `dev` and tests.
//!
//! Pure, except that keys and signatures draw on the operating system's random source. Nothing on the request path
//! signs. The private key is never shown: `Debug` prints `***`, and its PEM form is zeroised when dropped.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use zeroize::Zeroizing;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";

/// A private key and its id.
pub struct TokenSigner {
    pair: EcdsaKeyPair,
    kid: String,
}

/// What can go wrong with a signing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignerError {
    /// Not a PEM file with a PKCS#8 key.
    #[error("not a PEM file with one `PRIVATE KEY` (PKCS#8) section")]
    Pem,
    /// PKCS#8, but not an ECDSA key on P-256.
    #[error("not an unencrypted PKCS#8 key for ES256 (ECDSA on P-256)")]
    Key,
    /// Key generation, signing or encoding failed.
    #[error("the cryptographic library failed")]
    Crypto,
}

// === impl TokenSigner ===

impl TokenSigner {
    /// Makes a new key.
    pub fn generate_es256(kid: impl Into<String>) -> Result<Self, SignerError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        Ok(Self { pair: pair.map_err(|_opaque| SignerError::Crypto)?, kid: kid.into() })
    }

    /// The key of a private number and its public point, uncompressed: for whoever derives keys. Both are checked.
    pub fn from_private_key(private: &[u8], public: &[u8], kid: impl Into<String>) -> Result<Self, SignerError> {
        let pair = EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_FIXED_SIGNING, private, public);
        Ok(Self { pair: pair.map_err(|_rejected| SignerError::Key)?, kid: kid.into() })
    }

    /// Reads a key in PKCS#8 PEM form.
    pub fn from_pkcs8_pem(pem: &str, kid: impl Into<String>) -> Result<Self, SignerError> {
        let body = pem.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END)).ok_or(SignerError::Pem)?;
        // Room for everything, here and below, so that growing leaves no copy behind.
        let mut base64 = Zeroizing::new(String::with_capacity(body.len()));
        base64.extend(body.split_ascii_whitespace());
        let der = Zeroizing::new(STANDARD.decode(&*base64).map_err(|_not_base64| SignerError::Pem)?);
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der);
        Ok(Self { pair: pair.map_err(|_rejected| SignerError::Key)?, kid: kid.into() })
    }

    /// The key in PKCS#8 PEM form, for a file of mode 0600.
    pub fn pkcs8_pem(&self) -> Result<Zeroizing<String>, SignerError> {
        let der = self.pair.to_pkcs8v1().map_err(|_opaque| SignerError::Crypto)?;
        let body = Zeroizing::new(STANDARD.encode(der.as_ref()));
        let mut pem = Zeroizing::new(String::with_capacity(body.len() * 2 + 64));
        pem.push_str(BEGIN);
        for (i, c) in body.chars().enumerate() {
            if i % 64 == 0 {
                pem.push('\n');
            }
            pem.push(c);
        }
        pem.push('\n');
        pem.push_str(END);
        pem.push('\n');
        Ok(pem)
    }

    /// Makes a new key whose id is its own thumbprint (RFC 7638).
    pub fn generate_named_by_thumbprint() -> Result<Self, SignerError> {
        let mut signer = Self::generate_es256("")?;
        let jwk = signer.public_jwk();
        let member = |name: &str| jwk.get(name).cloned().unwrap_or_default();
        // The required members of an EC key, in the order of their names, without white space.
        let text = format!(r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#, member("x"), member("y"));
        signer.kid = URL_SAFE_NO_PAD.encode(super::verify::sha256(text.as_bytes()));
        Ok(signer)
    }

    /// The id that its tokens carry.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The public half as a member of a SPIFFE bundle; with another `use` it is one of a plain key set.
    pub fn public_jwk(&self) -> Value {
        // An uncompressed point: 4, then the two coordinates.
        let point = self.pair.public_key().as_ref();
        let (x, y) = point.get(1..).unwrap_or_default().split_at_checked(32).unwrap_or_default();
        json!({
            "kty": "EC",
            "crv": "P-256",
            "alg": "ES256",
            "use": "jwt-svid",
            "kid": self.kid,
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
        })
    }

    /// Signs claims, as they are.
    pub fn sign(&self, claims: &Value) -> Result<String, SignerError> {
        self.sign_text(&json!({ "alg": "ES256", "kid": self.kid, "typ": "JWT" }).to_string(), &claims.to_string())
    }

    /// Signs the claims of an access token (RFC 9068), as they are.
    pub fn sign_access_token(&self, claims: &Value) -> Result<String, SignerError> {
        self.sign_text(&json!({ "alg": "ES256", "kid": self.kid, "typ": "at+jwt" }).to_string(), &claims.to_string())
    }

    /// Signs claims under a header of the caller's making, so that tests can make what no issuer should.
    #[cfg(any(test, feature = "testing"))]
    pub fn sign_with_header(&self, header: &Value, claims: &Value) -> Result<String, SignerError> {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    /// Signs header and claims as they are written, duplicate members and all.
    #[cfg(any(test, feature = "testing"))]
    pub fn sign_raw(&self, header: &str, claims: &str) -> Result<String, SignerError> {
        self.sign_text(header, claims)
    }

    fn sign_text(&self, header: &str, claims: &str) -> Result<String, SignerError> {
        let mut token = URL_SAFE_NO_PAD.encode(header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature =
            self.pair.sign(&SystemRandom::new(), token.as_bytes()).map_err(|_opaque| SignerError::Crypto)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        Ok(token)
    }
}

impl fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSigner").field("kid", &self.kid).field("pair", &"***").finish()
    }
}
