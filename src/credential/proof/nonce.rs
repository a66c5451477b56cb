//! Nonces for DPoP proofs, without state: a MAC over the time, in coarse steps (RFC 9449, sections 8 and 9).
//!
//! Pure, except that a key draws on the operating system's random source. A nonce counts in the period that it was made
//! in and in the next, so a proof cannot be made long before it is used. Several enforcement points behind one load
//! balancer share a key, or each sends a client of another back for a nonce of its own. The key prints as `***`.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::clock::Timestamp;

/// The length of a period: a nonce counts for one to two of them.
pub const NONCE_PERIOD: Duration = Duration::from_secs(60);

const MIN_KEY: usize = 32;
const MAX_KEY: usize = 1024;
/// What the MAC is for, so that one key cannot be made to sign something else here one day.
const PURPOSE: &[u8] = b"portcullis dpop nonce 1";

/// Makes nonces and knows them again.
#[derive(Clone)]
pub struct Nonces {
    key: hmac::Key,
}

/// Why a text is no key for nonces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NonceKeyError {
    /// Not 32 to 1024 bytes.
    #[error("not 32 to 1024 random bytes in base64")]
    Form,
    /// The random source failed.
    #[error("the cryptographic library failed")]
    Crypto,
}

/// Whether a nonce counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    Current,
    /// Of the period before: it still counts, and the client should get the next.
    Previous,
    Unknown,
}

// === impl Nonces ===

impl Nonces {
    /// With a key of this process alone.
    pub fn random() -> Result<Self, NonceKeyError> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &aws_lc_rs::rand::SystemRandom::new());
        Ok(Self { key: key.map_err(|_opaque| NonceKeyError::Crypto)? })
    }

    /// With a key that others may have too, in base64.
    pub fn with_key(base64: &str) -> Result<Self, NonceKeyError> {
        let bytes = Zeroizing::new(STANDARD.decode(base64.trim()).map_err(|_not_base64| NonceKeyError::Form)?);
        if !(MIN_KEY..=MAX_KEY).contains(&bytes.len()) {
            return Err(NonceKeyError::Form);
        }
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &bytes) })
    }

    /// The nonce that counts longest.
    pub fn issue(&self, now: Timestamp) -> String {
        self.of_period(period(now))
    }

    pub(super) fn age(&self, nonce: &str, now: Timestamp) -> Age {
        let current = period(now);
        let is = |period: u64| bool::from(self.of_period(period).as_bytes().ct_eq(nonce.as_bytes()));
        if is(current) {
            Age::Current
        } else if current.checked_sub(1).is_some_and(is) {
            Age::Previous
        } else {
            Age::Unknown
        }
    }

    fn of_period(&self, period: u64) -> String {
        let mut text = [0; PURPOSE.len() + 8];
        let (purpose, number) = text.split_at_mut(PURPOSE.len());
        purpose.copy_from_slice(PURPOSE);
        number.copy_from_slice(&period.to_be_bytes());
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.key, &text))
    }
}

fn period(now: Timestamp) -> u64 {
    now.as_secs() / NONCE_PERIOD.as_secs()
}

impl fmt::Debug for Nonces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nonces").field("key", &"***").finish()
    }
}
