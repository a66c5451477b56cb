//! Proof of possession: what a token is bound to, and the proofs that its bearer holds that key or certificate.
//!
//! Plane: pure; the time is an argument. A proof is judged for one request and one token; whether it was seen before is
//! for the caller to find out, by the key that a good proof yields, after everything here has passed: so nobody can use
//! up the room for that with proofs that do not verify. Cheap checks come first, the signature last. Fails closed: a
//! binding that is not understood is refused, never taken as none. Rejections hold no byte of token or proof.

mod cnf;
mod dpop;
mod jws;
mod key;
mod nonce;
mod wimse;

#[cfg(test)]
mod tests;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;

pub use self::cnf::Confirmation;
pub use self::dpop::{DPOP_ALGORITHMS, DPOP_WINDOW, Dpop, check_dpop};
use self::key::{ClientKey, Holder};
pub use self::nonce::{NONCE_PERIOD, NonceKeyError, Nonces};
pub use self::wimse::{WPT_MAX_LIFETIME, Wpt, check_wpt};
use super::rejection::{CredentialReason, Rejection};
use super::verify::sha256;
use crate::clock::Timestamp;

/// The longest proof that is looked at, in bytes.
pub const MAX_PROOF: usize = 8 * 1024;

/// A proof that holds, if nobody has used it before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// By what to know it again: a digest of key and `jti`.
    pub key: [u8; 32],
    /// The thumbprint of the key that made it.
    pub holder: [u8; 32],
    /// Until when it would hold again.
    pub until: Timestamp,
    /// Its nonce is about to end, and the client needs the next.
    pub nonce_is_old: bool,
}

/// A proof that has passed every check but that of its signature.
#[derive(Debug)]
#[must_use = "nothing is proven before the signature has been verified"]
pub struct Unverified<'a> {
    key: SignedBy<'a>,
    signed: &'a str,
    signature: Vec<u8>,
    proven: Proven,
}

#[derive(Debug)]
enum SignedBy<'a> {
    /// The key in the header of the proof.
    Sent(ClientKey),
    /// The key in the token.
    Bound(&'a Holder),
}

/// Why there is no proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unproven {
    /// It does not hold.
    Refused(Rejection),
    /// It would, but for a nonce, which the client has to be given.
    NeedsNonce(Rejection),
}

// === impl Unverified ===

impl Unverified<'_> {
    /// Verifies the signature: the one costly step.
    pub fn verify(self) -> Result<Proven, Rejection> {
        match self.key {
            SignedBy::Sent(key) => key.compile()?.verify(self.signed, &self.signature)?,
            SignedBy::Bound(key) => key.verify(self.signed, &self.signature)?,
        }
        Ok(self.proven)
    }

    /// For who has verified the signature of the same bytes before, for the same token.
    pub fn verified_before(self) -> Proven {
        self.proven
    }
}

// === impl Unproven ===

impl Unproven {
    /// What to record.
    pub const fn rejection(&self) -> Rejection {
        match self {
            Self::Refused(rejection) | Self::NeedsNonce(rejection) => *rejection,
        }
    }
}

impl From<Rejection> for Unproven {
    fn from(rejection: Rejection) -> Self {
        Self::Refused(rejection)
    }
}

const fn invalid(detail: &'static str) -> Rejection {
    CredentialReason::PopInvalid.because(detail)
}

/// Whether a claim is this digest, in base64url.
fn is_digest(text: &str, digest: &[u8; 32]) -> bool {
    URL_SAFE_NO_PAD.encode(digest).as_bytes().ct_eq(text.as_bytes()).into()
}

/// What a good proof comes to.
fn proven(thumbprint: &[u8; 32], jti: &str, until: Timestamp, nonce_is_old: bool) -> Proven {
    Proven { key: replay_key(thumbprint, jti), holder: *thumbprint, until, nonce_is_old }
}

/// What a proof is remembered by: one `jti` of one key (RFC 9449, section 11.1). Digested, so that what a client chose
/// has a fixed size; both parts have a fixed place, so that no two pairs share a key.
fn replay_key(thumbprint: &[u8; 32], jti: &str) -> [u8; 32] {
    let mut text = Vec::with_capacity(32 + jti.len());
    text.extend_from_slice(thumbprint);
    text.extend_from_slice(jti.as_bytes());
    sha256(&text)
}
