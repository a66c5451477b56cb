//! Workload credentials: SPIFFE IDs, issuers and their key sets, the verification of tokens against them, and client
//! certificates.
//!
//! Plane: pure. Synchronous, no clock, no I/O; the time is an argument. A token is judged by the profile and the key set
//! of exactly one issuer: key sets are never merged, and no header member can point to a key.
//! What the standards leave open is read strictly, and what does not parse is refused; nothing here repairs input.
//! Fails closed: an issuer whose keys do not compile has no keys. Rejections hold no byte of the token.

mod algorithm;
mod claims;
mod client_cert;
mod issuers;
mod json;
mod jwk;
mod jws;
mod key_set;
mod profile;
mod proof;
mod rejection;
mod signer;
mod spiffe_id;
mod verify;
mod x509;
mod xfcc;

#[cfg(test)]
mod tests;

pub use self::client_cert::certificate_from_client_cert;
pub use self::issuers::{IssuerSet, check_issuer, same_tokens};
pub(crate) use self::json::{Members, Skip, Text};
pub use self::key_set::{parse_key_set, strict_json};
pub use self::profile::{Actor, Tie};
pub use self::proof::{
    Confirmation, DPOP_ALGORITHMS, DPOP_WINDOW, Dpop, MAX_PROOF, NONCE_PERIOD, NonceKeyError, Nonces, Proven, Unproven,
    Unverified, WPT_MAX_LIFETIME, Wpt, check_dpop, check_wpt,
};
pub use self::rejection::{CredentialReason, Rejection};
pub use self::signer::{SignerError, TokenSigner};
pub use self::spiffe_id::{MAX_SPIFFE_ID, MAX_TRUST_DOMAIN, SpiffeId, SpiffeIdError, check_trust_domain};
pub use self::verify::{
    MAX_TOKEN, Purpose, TOKEN_CLOCK_SKEW, VerifiedToken, issuer_of, token_digest, verify, verify_for, verify_if,
};
pub use self::x509::{
    MAX_CERTIFICATE, TlsEnd, X509Svid, certificate_from_pem, certificate_memo_key, certificate_serial,
    certificate_thumbprint, serial_of_certificate,
};
pub use self::xfcc::{ForwardedCertificate, MAX_XFCC, last_forwarded_certificate};
