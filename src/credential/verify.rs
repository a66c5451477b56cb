//! Verification of workload tokens (RFC 7515, 7518, 7519, 8725; each kind's own standard is in `profile`).
//!
//! Pure; the time is an argument. The order is fixed: everything cheap first, the signature last, and nothing counts
//! before it. Shape of header → `alg` → `typ` → shape of claims and signature → issuer → the profile of its kind, `act` →
//! issuer's algorithms → `kid` → key's algorithms → audience → `exp` → `nbf`, `iat` → lifetime → signature → `cnf`. So a
//! client that retries with an expired token costs no cryptography; the price is that a forged *and* expired token reads
//! as expired. INVARIANT: keys come only from the one issuer that the token's own claims pick. Fails closed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use smallvec::SmallVec;

use super::claims::Claims;
use super::issuers::{IssuerSet, TrustedIssuer};
use super::json::StrictValue;
use super::jws::{Compact, Header, decode};
use super::profile::{self, Actor, Profiled, Tie, Type};
use super::proof::Confirmation;
use super::rejection::{CredentialReason, Rejection};
use super::spiffe_id::SpiffeId;
use crate::clock::Timestamp;
use crate::object::{IssuerKind, ProofPolicy};

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 8 * 1024;
/// How far ahead of our clock an issuer's may be for `nbf` and `iat`. `exp` has no such leeway.
pub const TOKEN_CLOCK_SKEW: Duration = Duration::from_secs(5);

/// What a token proved, apart from the possession of a key. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifiedToken {
    /// Whom it names: `sub`.
    pub subject: Arc<str>,
    /// The workload, when the token names it itself. Otherwise the claims have to be mapped to one.
    pub workload: Option<SpiffeId>,
    /// Who acts for the subject, current actor first, earlier ones after it.
    pub actors: SmallVec<[Actor; 1]>,
    /// What the token is bound to (`cnf`): without a proof, a bound token does not count.
    pub confirmation: Option<Confirmation>,
    /// Who may act for the subject (RFC 8693, section 4.4), if it says.
    pub may_act: Option<Arc<Value>>,
    /// What its issuer demands of proofs.
    pub proof: ProofPolicy,
    /// Whether it is a WIMSE workload identity token.
    pub is_wit: bool,
    /// UIDs of the Kubernetes objects that it is bound to.
    pub bound_objects: SmallVec<[Arc<str>; 3]>,
    /// What it is tied to, when a control plane issued it.
    pub tie: Option<Arc<Tie>>,
    /// All claims, for mapping; only where the token does not name the workload itself.
    pub claims: Option<Arc<Value>>,
    /// The kind of its issuer.
    pub kind: IssuerKind,
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

/// Verifies a token for the audiences of its issuer. One that a control plane issued is for the service in its `tie`, which
/// is not checked here.
///
/// A proof of possession is not checked here: a token whose `confirmation` is set does not count without one.
/// A `sub` that should be a workload's SPIFFE ID and is not is [`CredentialReason::Subject`]; a missing `kid` is
/// [`CredentialReason::KidUnknown`]; a missing `aud` is [`CredentialReason::Malformed`], an empty one
/// [`CredentialReason::Audience`].
pub fn verify(token: &str, issuers: &IssuerSet, now: Timestamp) -> Result<VerifiedToken, Rejection> {
    verify_with(token, Purpose::Credential, issuers, None, now, || Ok(()))
}

/// Verifies like [`verify`], but asks `admit` before the one costly step, the signature. When it fails, so does this:
/// everything that costs little has been checked by then, and found good.
pub fn verify_if<E: From<Rejection>>(
    token: &str,
    purpose: Purpose,
    issuers: &IssuerSet,
    now: Timestamp,
    admit: impl FnOnce() -> Result<(), E>,
) -> Result<VerifiedToken, E> {
    verify_with(token, purpose, issuers, None, now, admit)
}

/// Verifies a token for one of `audiences`, whatever the audiences of its issuer are. As with [`verify`], what it is bound
/// to is not checked here.
pub fn verify_for(
    token: &str,
    issuers: &IssuerSet,
    audiences: &[&str],
    now: Timestamp,
) -> Result<VerifiedToken, Rejection> {
    verify_with(token, Purpose::Credential, issuers, Some(audiences), now, || Ok(()))
}

/// The name of the issuer that would judge a token, by its own unverified word: for a hint to whoever keeps that issuer's
/// keys, and for nothing that decides.
pub fn issuer_of<'i>(token: &str, issuers: &'i IssuerSet) -> Option<&'i Arc<str>> {
    if token.len() > MAX_TOKEN {
        return None;
    }
    let parts = Compact::split(token).ok()?;
    let header = decode(parts.header).ok()?;
    let typ = Type::of(&Header::parse(&header).ok()?).ok()?;
    let payload = decode(parts.claims).ok()?;
    let issuer = profile::issuer(issuers, typ, &Claims::parse(&payload).ok()?).ok()?;
    Some(&issuer.name)
}

/// SHA-256 of the whole token: its key in a cache, and its name in a record.
pub fn token_digest(token: &str) -> [u8; 32] {
    sha256(token.as_bytes())
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// What a token is presented as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To authenticate a workload.
    Credential,
    /// To tell of a transaction. It authenticates nobody.
    Transaction,
}

fn verify_with<E: From<Rejection>>(
    token: &str,
    purpose: Purpose,
    issuers: &IssuerSet,
    audiences: Option<&[&str]>,
    now: Timestamp,
    admit: impl FnOnce() -> Result<(), E>,
) -> Result<VerifiedToken, E> {
    if token.len() > MAX_TOKEN {
        return Err(CredentialReason::Malformed.because("the token is longer than 8 KiB").into());
    }
    let parts = Compact::split(token)?;
    let header = decode(parts.header)?;
    let header = Header::parse(&header)?;
    let algorithm = header.algorithm()?;
    let typ = Type::of(&header)?;
    let payload = decode(parts.claims)?;
    if (typ == Type::Transaction) != (purpose == Purpose::Transaction) {
        return Err(CredentialReason::Typ
            .because(match purpose {
                Purpose::Credential => "a transaction token is no credential",
                Purpose::Transaction => "not a transaction token",
            })
            .into());
    }
    let claims = Claims::parse(&payload)?;
    // A workload identity token is for whomever its proof is for (draft-ietf-wimse-workload-creds-02, section 5.1).
    let needs_audience = typ != Type::WorkloadIdentityToken || claims.has_audience();
    if needs_audience && !claims.has_audience() {
        return Err(CredentialReason::Malformed.because("`sub`, `aud` and `exp` are required").into());
    }
    if parts.signature.is_empty() {
        return Err(CredentialReason::Malformed.because("the signature is empty").into());
    }
    let signature = decode(parts.signature)?;

    let issuer = profile::issuer(issuers, typ, &claims)?;
    let profiled = profile::check(issuer, typ, &header, &claims)?;
    if issuer.has_no_keys() {
        return Err(CredentialReason::IssuerUntrusted.because("the issuer of this token has no keys").into());
    }
    if !issuer.allows(algorithm) {
        return Err(CredentialReason::Alg.because("the issuer does not use this algorithm").into());
    }
    let key = issuer
        .key(header.kid()?)
        .ok_or(CredentialReason::KidUnknown.because("the issuer has no key with this `kid`"))?;
    let verifier = key.verifier(algorithm).ok_or(CredentialReason::Alg.because("the key is not for this algorithm"))?;

    let meant_for_us = match audiences {
        Some(audiences) => audiences.iter().any(|a| claims.is_for(a)),
        // Which service it is for, whoever knows the service asks.
        None if issuer.kind == IssuerKind::Portcullis && issuer.audiences.is_empty() => profiled.tie.is_some(),
        None => issuer.audiences.iter().any(|a| claims.is_for(a)),
    };
    if needs_audience && !meant_for_us {
        return Err(CredentialReason::Audience.because("`aud` names none of the accepted audiences").into());
    }
    check_times(claims.exp, claims.nbf, claims.iat, now)?;
    if claims.exp.since(claims.iat.unwrap_or(now)) > issuer.max_lifetime {
        return Err(CredentialReason::Lifetime.because("the token lives longer than its issuer may make it").into());
    }
    if issuer.proof.required && claims.cnf.is_none() {
        return Err(CredentialReason::PopMissing
            .because("the issuer's tokens have to be bound to a key, with `cnf`")
            .into());
    }

    admit()?;
    verifier
        .verify_sig(parts.signed.as_bytes(), &signature)
        .map_err(|_opaque| CredentialReason::Signature.because("the signature does not verify"))?;
    Ok(verified(issuer, Arc::clone(&key.kid), typ, claims, profiled, &payload)?)
}

/// What the token says, now that it is true.
fn verified(
    issuer: &TrustedIssuer,
    kid: Arc<str>,
    typ: Type,
    claims: Claims<'_>,
    profiled: Profiled,
    payload: &[u8],
) -> Result<VerifiedToken, Rejection> {
    let is_wit = typ == Type::WorkloadIdentityToken;
    if is_wit && claims.cnf.is_none() {
        return Err(CredentialReason::PopInvalid.because("a workload identity token is bound to a key by `cnf.jwk`"));
    }
    let confirmation = claims.cnf.as_ref().map(|cnf| Confirmation::read(cnf, is_wit)).transpose()?;
    let all = match issuer.kind.names_workload() {
        true => None,
        false => Some(Arc::new(
            StrictValue::parse(payload)
                .map_err(|_invalid| CredentialReason::Malformed.because("the claims are not JSON"))?,
        )),
    };
    Ok(VerifiedToken {
        subject: Arc::from(claims.sub.0),
        workload: profiled.workload,
        actors: profiled.actors,
        confirmation,
        may_act: claims.may_act.map(Arc::new),
        proof: issuer.proof,
        is_wit,
        bound_objects: profiled.bound_objects,
        tie: profiled.tie,
        claims: all,
        kind: issuer.kind,
        issuer: Arc::clone(&issuer.name),
        kid,
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
    /// Whether `id` is in the trust domain of the workload that the token names.
    pub fn is_in_trust_domain(&self, id: &SpiffeId) -> bool {
        self.workload.as_ref().is_some_and(|workload| workload.trust_domain() == id.trust_domain())
    }

    /// Checks the times again, as a cache does on a hit.
    pub fn check_time(&self, now: Timestamp) -> Result<(), Rejection> {
        check_times(self.expires_at, self.not_before, self.issued_at, now)
    }
}
