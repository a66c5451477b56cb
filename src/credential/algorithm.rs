//! The signature algorithms of RFC 7518, sections 3.3 to 3.5, and RFC 8037: names, key families and who verifies them.
//!
//! Pure. A closed list of asymmetric algorithms: `none` and the HMAC family have no value here, so no code path can
//! be talked into them (RFC 8725, sections 2.1 and 3.1).

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, VerificationAlgorithm,
};

use crate::object::SigningAlgorithm;

/// What kind of key an algorithm needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Rsa,
    P256,
    P384,
    P521,
    Ed25519,
}

// === impl SigningAlgorithm ===

impl SigningAlgorithm {
    /// The algorithm with this `alg` value; names are case-sensitive.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::RS256,
            "RS384" => Self::RS384,
            "RS512" => Self::RS512,
            "ES256" => Self::ES256,
            "ES384" => Self::ES384,
            "ES512" => Self::ES512,
            "PS256" => Self::PS256,
            "PS384" => Self::PS384,
            "PS512" => Self::PS512,
            // RFC 9864 gives the Ed25519 half of `EdDSA` a name of its own.
            "EdDSA" | "Ed25519" => Self::EdDSA,
            _ => return None,
        })
    }

    /// The kind of key it needs. ECDSA algorithms are bound to one curve each (RFC 7518, section 3.4).
    pub(super) const fn family(self) -> Family {
        match self {
            Self::RS256 | Self::RS384 | Self::RS512 | Self::PS256 | Self::PS384 | Self::PS512 => Family::Rsa,
            Self::ES256 => Family::P256,
            Self::ES384 => Family::P384,
            Self::ES512 => Family::P521,
            Self::EdDSA => Family::Ed25519,
        }
    }

    /// Its verification. ECDSA signatures are `R || S`, never DER (RFC 7518, section 3.4).
    pub(super) fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::RS256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::RS384 => &RSA_PKCS1_2048_8192_SHA384,
            Self::RS512 => &RSA_PKCS1_2048_8192_SHA512,
            Self::PS256 => &RSA_PSS_2048_8192_SHA256,
            Self::PS384 => &RSA_PSS_2048_8192_SHA384,
            Self::PS512 => &RSA_PSS_2048_8192_SHA512,
            Self::ES256 => &ECDSA_P256_SHA256_FIXED,
            Self::ES384 => &ECDSA_P384_SHA384_FIXED,
            Self::ES512 => &ECDSA_P521_SHA512_FIXED,
            Self::EdDSA => &ED25519,
        }
    }
}

// === impl Family ===

impl Family {
    /// The family of this curve (`crv`), and the length of one of its coordinates in bytes.
    pub(super) fn of_curve(name: &str) -> Option<(Self, usize)> {
        Some(match name {
            "P-256" => (Self::P256, 32),
            "P-384" => (Self::P384, 48),
            "P-521" => (Self::P521, 66),
            "Ed25519" => (Self::Ed25519, 32),
            _ => return None,
        })
    }
}
