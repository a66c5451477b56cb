//! Who a sidecar is: an X.509-SVID from the TLS handshake, or a bearer token: a JWT-SVID, or a Kubernetes service account
//! token that is mapped to one registered workload.
//!
//! Plane: control. Fails closed: no credential, one that does not verify, one that was revoked, or two that name
//! different identities end the call before a byte of state is sent. What tokens and certificates are judged by is
//! [`Trust`], one for all streams; every stream checks itself against it again when it has changed.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::clock::Timestamp;
use crate::control::token_review::Unconfirmed;
use crate::control::workload_identity::{Refusal, Trust, WorkloadIdentity};
use crate::credential::{Rejection, SpiffeId, VerifiedToken, X509Svid};
use crate::object::IssuerKind;
use crate::tls::PeerInfo;

/// An authenticated sidecar.
#[derive(Debug, Clone)]
pub(super) struct Principal {
    pub(super) identity: SpiffeId,
    /// When its credential ends.
    pub(super) expires_at: Timestamp,
    token: Option<VerifiedToken>,
    certificate_serial: Option<String>,
}

/// Authenticates calls.
#[derive(Debug)]
pub(super) struct Authenticator {
    /// Of the issuers that may vouch for sidecars.
    pub(super) tokens: WorkloadIdentity,
    pub(super) audience: String,
}

// === impl Authenticator ===

impl Authenticator {
    /// Who is calling.
    pub(super) fn authenticate(
        &self,
        peer: Option<&PeerInfo>,
        metadata: &MetadataMap,
        now: Timestamp,
    ) -> Result<Principal, Status> {
        let trust = self.trust();
        let by_certificate = match peer.and_then(|p| p.certificates.first()) {
            Some(leaf) => Some(from_certificate(leaf, now)?),
            None => None,
        };
        let by_token = match bearer(metadata)? {
            Some(token) => Some(self.verify_token(token, &trust, now)?),
            None => None,
        };
        let principal = match (by_certificate, by_token) {
            (None, None) => {
                return Err(Status::unauthenticated(
                    "no credential: send an X.509-SVID in the TLS handshake, or a JWT-SVID or a Kubernetes \
                     service account token as a bearer token",
                ));
            }
            (Some(p), None) | (None, Some(p)) => p,
            (Some(c), Some(t)) if c.identity == t.identity => {
                Principal { expires_at: c.expires_at.min(t.expires_at), certificate_serial: c.certificate_serial, ..t }
            }
            (Some(_), Some(_)) => {
                return Err(Status::unauthenticated("the client certificate and the token name different identities"));
            }
        };
        principal.check(&trust)?;
        Ok(principal)
    }

    /// Has the token of an authenticated sidecar confirmed, if its issuer's tokens have to be.
    pub(super) async fn confirm(&self, principal: &Principal, metadata: &MetadataMap) -> Result<(), Status> {
        let (Some(verified), Some(token)) = (&principal.token, bearer(metadata)?) else { return Ok(()) };
        self.tokens.confirm(token, verified, &self.audience).await.map_err(|why| {
            let issuer = &verified.issuer;
            match &why {
                Unconfirmed::Denied(_) => {
                    Status::unauthenticated(format!("the token of `{issuer}` was refused: {why}"))
                }
                Unconfirmed::Unanswered(_) => {
                    Status::unavailable(format!("the token of `{issuer}` could not be confirmed: {why}"))
                }
            }
        })
    }

    /// The trust in force. The same `Arc` as long as nothing that matters has changed.
    pub(super) fn trust(&self) -> Arc<Trust> {
        self.tokens.trust()
    }

    /// A token of this issuer named a key that it does not have.
    pub(super) fn key_is_missing(&self, issuer: &str) {
        self.tokens.key_is_missing(issuer);
    }

    fn verify_token(&self, token: &str, trust: &Trust, now: Timestamp) -> Result<Principal, Status> {
        let refused = |why: &dyn std::fmt::Display| Status::unauthenticated(format!("the token was refused: {why}"));
        let token = self.tokens.verify(trust, token, &[&self.audience], now).map_err(|why| refused(&why))?;
        // Proofs and actors are for those who do something; a stream is one sidecar's own.
        if token.confirmation.is_some() {
            return Err(refused(&"credential.pop_missing: the token has `cnf`, and no proof of possession counts"));
        }
        if !token.actors.is_empty() {
            return Err(refused(&"credential.typ: the token has `act`, and delegated tokens are not accepted"));
        }
        if token.workload.is_none() && token.kind != IssuerKind::Kubernetes {
            return Err(refused(
                &"a sidecar's token names its SPIFFE ID, as those of `spiffe` issuers do, or is a Kubernetes service \
                  account's",
            ));
        }
        let identity = trust.owner_of(&token).map_err(|why| refused(&why.detail))?;
        Ok(Principal { identity, expires_at: token.expires_at, token: Some(token), certificate_serial: None })
    }
}

// === impl Principal ===

impl Principal {
    /// Whether it may (still) be served.
    pub(super) fn check(&self, trust: &Trust) -> Result<(), Status> {
        let checked = trust.check(&self.identity, self.token.as_ref(), self.certificate_serial.as_deref());
        checked.map_err(|Refusal { detail, .. }| Status::unauthenticated(detail))
    }
}

fn bearer(metadata: &MetadataMap) -> Result<Option<&str>, Status> {
    let mut values = metadata.get_all("authorization").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Status::unauthenticated("more than one authorization header"));
    }
    let text = value.to_str().map_err(|_not_ascii| Status::unauthenticated("the authorization header is not ASCII"))?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        _ => Err(Status::unauthenticated("the authorization header is not a bearer token")),
    }
}

/// Reads an X.509-SVID. Its chain was verified in the handshake.
fn from_certificate(leaf: &CertificateDer<'_>, now: Timestamp) -> Result<Principal, Status> {
    let refuse = |why: Rejection| {
        Status::unauthenticated(format!("the client certificate is not an X.509-SVID: {}", why.detail))
    };
    let svid = X509Svid::parse(leaf).map_err(refuse)?;
    svid.check_time(now).map_err(refuse)?;
    let certificate_serial = Some(svid.serial.to_string());
    Ok(Principal { identity: svid.id, expires_at: svid.not_after, token: None, certificate_serial })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};

    fn certificate(uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["sidecar".to_owned()]).unwrap();
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn only_an_x509_svid_names_a_sidecar() {
        let now = Timestamp::from_secs(1_800_000_000);
        let one = "spiffe://a/sidecar";
        let ok = from_certificate(&certificate(&[one], |_| {}), now).unwrap();
        assert_eq!(ok.identity.as_str(), one);
        let refused = |cert: CertificateDer<'_>, part: &str| {
            let e = from_certificate(&cert, now).unwrap_err();
            assert!(e.message().contains(part), "{e}");
        };
        refused(certificate(&[], |_| {}), "no URI name");
        refused(certificate(&[one, "spiffe://a/other"], |_| {}), "more than one URI");
        refused(certificate(&["https://a/sidecar"], |_| {}), "SPIFFE ID");
        refused(certificate(&[one], |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "a CA's");
        refused(certificate(&[one], |p| p.key_usages.push(KeyUsagePurpose::CrlSign)), "revocation lists");
        refused(certificate(&[one], |p| p.key_usages.clear()), "does not say its key usage");
        refused(certificate(&[one], |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1)), "has ended");
    }
}
