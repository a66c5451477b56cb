//! Verification of JWT-SVIDs (JWT-SVID standard; RFC 7515, 7518, 7519, 8725).
//!
//! Pure; the time is an argument. The order is fixed: everything cheap first, the signature last, and nothing counts
//! before it. Shape of header → `alg` → `typ` → shape of claims and signature → `cnf`, `act` → `sub` → issuer →
//! issuer's algorithms → `kid` → key's algorithms → audience → `exp` → `nbf`, `iat` → lifetime → signature. So a client
//! that retries with an expired token costs no cryptography; the price is that a forged *and* expired token reads as
//! expired. INVARIANT: keys come only from the set of the trust domain in `sub`. Fails closed.

use std::sync::Arc;
use std::time::Duration;

use super::claims::Claims;
use super::issuers::IssuerSet;
use super::jws::{Compact, Header, decode};
use super::rejection::{CredentialReason, Rejection};
use super::spiffe_id::SpiffeId;
use crate::clock::Timestamp;

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 8 * 1024;
/// How far ahead of our clock an issuer's may be for `nbf` and `iat`. `exp` has no such leeway.
pub const TOKEN_CLOCK_SKEW: Duration = Duration::from_secs(5);

/// What a token proved. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedToken {
    /// Whom it names.
    pub subject: SpiffeId,
    /// The name of the issuer that vouches for it.
    pub issuer: Arc<str>,
    /// Which of the issuer's keys signed it.
    pub kid: Arc<str>,
    /// Its id, if it has one.
    pub jti: Option<Arc<str>>,
    /// When it was made.
    pub issued_at: Option<Timestamp>,
    /// When it starts to count.
    pub not_before: Option<Timestamp>,
    /// When it ends; at this instant it has ended.
    pub expires_at: Timestamp,
}

/// Verifies a token for the audiences of its issuer.
///
/// A `sub` that is a string but not a workload's SPIFFE ID is [`CredentialReason::Subject`]; a missing `kid` is
/// [`CredentialReason::KidUnknown`]; a missing `aud` is [`CredentialReason::Malformed`], an empty one
/// [`CredentialReason::Audience`].
pub fn verify(token: &str, issuers: &IssuerSet, now: Timestamp) -> Result<VerifiedToken, Rejection> {
    verify_with(token, issuers, None, now)
}

/// Verifies a token for one of `audiences`, whatever the audiences of its issuer are.
pub fn verify_for_audience(
    token: &str,
    issuers: &IssuerSet,
    audiences: &[&str],
    now: Timestamp,
) -> Result<VerifiedToken, Rejection> {
    verify_with(token, issuers, Some(audiences), now)
}

/// SHA-256 of the whole token: its key in a cache, and its name in a record.
pub fn token_digest(token: &str) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

fn verify_with(
    token: &str,
    issuers: &IssuerSet,
    audiences: Option<&[&str]>,
    now: Timestamp,
) -> Result<VerifiedToken, Rejection> {
    if token.len() > MAX_TOKEN {
        return Err(CredentialReason::Malformed.because("the token is longer than 8 KiB"));
    }
    let parts = Compact::split(token)?;
    let header = decode(parts.header)?;
    let header = Header::parse(&header)?;
    let algorithm = header.algorithm()?;
    header.check_type()?;
    let claims = decode(parts.claims)?;
    let claims = Claims::parse(&claims)?;
    if parts.signature.is_empty() {
        return Err(CredentialReason::Malformed.because("the signature is empty"));
    }
    let signature = decode(parts.signature)?;
    claims.check_kind()?;

    let subject = SpiffeId::parse(&claims.sub.0)
        .map_err(|_why| CredentialReason::Subject.because("`sub` is not the SPIFFE ID of a workload"))?;
    let issuer = issuers
        .of_trust_domain(subject.trust_domain())
        .ok_or(CredentialReason::IssuerUntrusted.because("no issuer vouches for the trust domain of `sub`"))?;
    if issuer.has_no_keys() {
        return Err(CredentialReason::IssuerUntrusted.because("the issuer of this trust domain has no keys"));
    }
    if !issuer.allows(algorithm) {
        return Err(CredentialReason::Alg.because("the issuer does not use this algorithm"));
    }
    let key = issuer
        .key(header.kid()?)
        .ok_or(CredentialReason::KidUnknown.because("the trust domain has no key with this `kid`"))?;
    let verifier = key.verifier(algorithm).ok_or(CredentialReason::Alg.because("the key is not for this algorithm"))?;

    let meant_for_us = match audiences {
        Some(audiences) => audiences.iter().any(|a| claims.is_for(a)),
        None => issuer.audiences.iter().any(|a| claims.is_for(a)),
    };
    if !meant_for_us {
        return Err(CredentialReason::Audience.because("`aud` names none of the accepted audiences"));
    }
    check_times(claims.exp, claims.nbf, claims.iat, now)?;
    if claims.exp.since(claims.iat.unwrap_or(now)) > issuer.max_lifetime {
        return Err(CredentialReason::Lifetime.because("the token lives longer than its issuer may make it"));
    }

    verifier
        .verify_sig(parts.signed.as_bytes(), &signature)
        .map_err(|_opaque| CredentialReason::Signature.because("the signature does not verify"))?;
    Ok(VerifiedToken {
        subject,
        issuer: Arc::clone(&issuer.name),
        kid: Arc::clone(&key.kid),
        jti: claims.jti.map(|jti| Arc::from(jti.0)),
        issued_at: claims.iat,
        not_before: claims.nbf,
        expires_at: claims.exp,
    })
}

fn check_times(
    exp: Timestamp,
    nbf: Option<Timestamp>,
    iat: Option<Timestamp>,
    now: Timestamp,
) -> Result<(), Rejection> {
    if now >= exp {
        return Err(CredentialReason::Expired.because("`exp` has come"));
    }
    let horizon = now.saturating_add(TOKEN_CLOCK_SKEW);
    if nbf.is_some_and(|nbf| nbf > horizon) {
        return Err(CredentialReason::NotYetValid.because("`nbf` lies in the future"));
    }
    if iat.is_some_and(|iat| iat > horizon) {
        return Err(CredentialReason::NotYetValid.because("`iat` lies in the future"));
    }
    Ok(())
}

// === impl VerifiedToken ===

impl VerifiedToken {
    /// Checks the times again, as a cache does on a hit.
    pub fn check_time(&self, now: Timestamp) -> Result<(), Rejection> {
        check_times(self.expires_at, self.not_before, self.issued_at, now)
    }
}
