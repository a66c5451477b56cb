//! Who a sidecar is: an X.509-SVID from the TLS handshake, or a bearer token: a JWT-SVID, or a Kubernetes service account
//! token that is mapped to one registered workload.
//!
//! Plane: control. Fails closed: no credential, one that does not verify, one that was revoked, or two that name
//! different identities end the call before a byte of state is sent. The trust in force is compiled once for all
//! streams and recompiled when an issuer or a revocation changes; every stream checks itself against it again then.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use rustls_pki_types::CertificateDer;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::authz::Owners;
use crate::clock::Timestamp;
use crate::control::index::{Index, Stored};
use crate::control::keys::Keys;
use crate::control::rules::{as_issuer, as_workload};
use crate::control::token_review::{TokenReviews, Unconfirmed};
use crate::credential::{
    CredentialReason, IssuerSet, Rejection, SpiffeId, VerifiedToken, X509Svid, certificate_serial, issuer_of,
    verify_for_audience,
};
use crate::object::{Issuer, IssuerKind, Kind, Object, Target, Workload};
use crate::tls::PeerInfo;
use crate::wire::Revision;

/// An authenticated sidecar.
#[derive(Debug, Clone)]
pub(super) struct Principal {
    pub(super) identity: SpiffeId,
    /// When its credential ends.
    pub(super) expires_at: Timestamp,
    token: Option<VerifiedToken>,
    certificate_serial: Option<String>,
}

/// The issuers, mappings and revocations in force that concern sidecars themselves.
#[derive(Debug)]
pub(super) struct Trust {
    issuers: IssuerSet,
    /// Every SPIFFE issuer, listed or not, for what it says of its own trust domain's certificates.
    of_certificates: IssuerSet,
    /// Their trust domains.
    domains: HashSet<Box<str>>,
    /// The keys of each issuer, by name and `kid`.
    keys: HashSet<(Box<str>, Box<str>)>,
    /// Names of those whose tokens do not name the workload themselves.
    mapped: HashSet<Box<str>>,
    /// The workloads that have credentials of those.
    owners: Owners,
    revoked: HashSet<Target>,
    tokens_before: HashMap<SpiffeId, Timestamp>,
}

/// Authenticates calls.
#[derive(Debug)]
pub(super) struct Authenticator {
    pub(super) index: Arc<Index>,
    /// Names of the issuers that may vouch for sidecars.
    pub(super) trusted: Vec<String>,
    pub(super) audience: String,
    pub(super) cache: Mutex<Option<(Revision, Arc<Trust>)>>,
    /// Told of keys that are missing.
    pub(super) keys: Option<Arc<Keys>>,
    pub(super) reviews: TokenReviews,
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
        trust.check(&principal)?;
        Ok(principal)
    }

    /// Has the token of an authenticated sidecar confirmed, if its issuer's tokens have to be.
    pub(super) async fn confirm(&self, principal: &Principal, metadata: &MetadataMap) -> Result<(), Status> {
        let (Some(verified), Some(token)) = (&principal.token, bearer(metadata)?) else { return Ok(()) };
        self.reviews.confirm(token, verified, &self.audience).await.map_err(|why| {
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
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((revision, trust)) = cache.as_mut()
            && let Some(log) = self.index.since(*revision, usize::MAX)
            && !log.iter().any(|l| l.changes.iter().any(|c| trust.depends_on(&c.stored)))
        {
            *revision = log.last().map_or(*revision, |l| l.commit.revision);
            return Arc::clone(trust);
        }
        // The position is read first: the trust is at least as new as it says.
        let revision = self.index.position().revision;
        let trust = Arc::new(Trust::compile(&self.index, &self.trusted));
        *cache = Some((revision, Arc::clone(&trust)));
        trust
    }

    /// A token of this issuer named a key that it does not have.
    pub(super) fn key_is_missing(&self, issuer: &str) {
        if let Some(keys) = &self.keys {
            keys.key_is_missing(issuer);
        }
    }

    fn verify_token(&self, token: &str, trust: &Trust, now: Timestamp) -> Result<Principal, Status> {
        let token = verify_for_audience(token, &trust.issuers, &[&self.audience], now).map_err(|e| {
            if e.reason == CredentialReason::KidUnknown {
                issuer_of(token, &trust.issuers).into_iter().for_each(|issuer| self.key_is_missing(issuer));
            }
            Status::unauthenticated(format!("the token was refused: {e}"))
        })?;
        let identity = trust.identity_of(&token)?;
        Ok(Principal { identity, expires_at: token.expires_at, token: Some(token), certificate_serial: None })
    }
}

// === impl Trust ===

impl Trust {
    fn compile(index: &Index, trusted: &[String]) -> Self {
        let stored = index.list(Kind::Issuer);
        let spiffe = stored.iter().filter_map(|s| as_issuer(s)).filter(|issuer| issuer.kind == IssuerKind::Spiffe);
        let spiffe: Vec<&Issuer> = spiffe.collect();
        let domains = spiffe.iter().filter_map(|issuer| issuer.trust_domain.as_deref().map(Box::from)).collect();
        let (of_certificates, _bad) = IssuerSet::compile(spiffe);
        let issuers: Vec<&Issuer> =
            stored.iter().filter_map(|s| as_issuer(s)).filter(|issuer| trusted.contains(&issuer.name)).collect();
        let of_clusters = issuers.iter().filter(|issuer| issuer.kind == IssuerKind::Kubernetes);
        let mapped: HashSet<Box<str>> = of_clusters.map(|issuer| Box::from(&*issuer.name)).collect();
        let workloads = if mapped.is_empty() { Vec::new() } else { index.list(Kind::Workload) };
        let workloads = workloads.iter().filter_map(|s| as_workload(s));
        let owners = Owners::new(workloads.filter(|workload| has_credentials_of(&mapped, workload)));
        let mut keys = HashSet::new();
        for issuer in &issuers {
            for kid in issuer.jwks.keys.iter().filter_map(|k| k.get("kid")?.as_str()) {
                keys.insert((Box::from(&*issuer.name), Box::from(kid)));
            }
        }
        // A bad issuer fails alone: it has no keys, so its tokens do not verify.
        let (issuers, _bad) = IssuerSet::compile(issuers);
        let (revoked, tokens_before) = (HashSet::new(), HashMap::new());
        let mut trust = Self { issuers, of_certificates, domains, keys, mapped, owners, revoked, tokens_before };
        for stored in index.list(Kind::Revocation) {
            let Some(Object::Revocation(revocation)) = &stored.object else { continue };
            match &revocation.target {
                Target::TokensBefore { workload, before } => {
                    let latest = trust.tokens_before.entry(workload.clone()).or_default();
                    *latest = (*latest).max(*before);
                }
                Target::Grant { .. } | Target::Delegator { .. } => {}
                // However it is spelt.
                Target::Certificate { serial } => {
                    let serial = certificate_serial(serial).unwrap_or_else(|| serial.clone());
                    trust.revoked.insert(Target::Certificate { serial });
                }
                target => {
                    trust.revoked.insert(target.clone());
                }
            }
        }
        trust
    }

    /// Whether a change could make it another.
    fn depends_on(&self, changed: &Stored) -> bool {
        match changed.kind {
            Kind::Issuer => true,
            // Of those that end grants, there may be many, and no stream hangs on them.
            Kind::Revocation => !matches!(
                &changed.object,
                Some(Object::Revocation(r)) if matches!(r.target, Target::Grant { .. } | Target::Delegator { .. })
            ),
            Kind::Workload => {
                self.owners.contains(&changed.key)
                    || as_workload(changed).is_some_and(|workload| has_credentials_of(&self.mapped, workload))
            }
            _ => false,
        }
    }

    /// Whose a token is: of the workload that it names, or that it is mapped to.
    fn identity_of(&self, token: &VerifiedToken) -> Result<SpiffeId, Status> {
        if token.workload.is_none() && token.kind != IssuerKind::Kubernetes {
            return Err(Status::unauthenticated(
                "the token was refused: a sidecar's token names its SPIFFE ID, as those of `spiffe` issuers do, \
                 or is a Kubernetes service account's",
            ));
        }
        self.owners.owner_of(token).map_err(|why| Status::unauthenticated(format!("the token was refused: {why}")))
    }

    /// Whether `principal` may (still) be served.
    pub(super) fn check(&self, principal: &Principal) -> Result<(), Status> {
        let refused = |what: &str| Err(Status::unauthenticated(format!("{what} was revoked")));
        let revoked = |target: Target| self.revoked.contains(&target);
        if revoked(Target::Workload { workload: principal.identity.clone() }) {
            return refused("this identity");
        }
        if let Some(serial) = &principal.certificate_serial
            && revoked(Target::Certificate { serial: serial.clone() })
        {
            return refused("this certificate");
        }
        let domain = principal.identity.trust_domain();
        if principal.certificate_serial.is_some() && self.domains.contains(domain) {
            // The configured CAs have vouched for it; an issuer for its trust domain has a say as well.
            let issuer = self.of_certificates.of_certificates(domain).map(|name| name.to_string());
            if issuer.is_none_or(|issuer| revoked(Target::Issuer { issuer })) {
                return refused("the trust domain of this certificate");
            }
        }
        let Some(token) = &principal.token else { return Ok(()) };
        if self.identity_of(token)? != principal.identity {
            return Err(Status::unauthenticated("the token is another workload's now"));
        }
        let issuer = token.issuer.to_string();
        let bound = |uid: &Arc<str>| Target::BoundObject { issuer: issuer.clone(), uid: uid.to_string() };
        if token.bound_objects.iter().any(|uid| revoked(bound(uid))) {
            return refused("an object that this token is bound to");
        }
        if revoked(Target::Issuer { issuer: issuer.clone() })
            || revoked(Target::Key { issuer: issuer.clone(), kid: token.kid.to_string() })
            || !self.keys.contains(&(Box::from(&*token.issuer), Box::from(&*token.kid)))
        {
            return refused("the issuer of this token, or its key,");
        }
        if let Some(jti) = &token.jti
            && revoked(Target::Token { issuer, jti: jti.to_string() })
        {
            return refused("this token");
        }
        // Without `iat` it counts as issued before.
        if let Some(before) = self.tokens_before.get(&principal.identity)
            && token.issued_at.is_none_or(|iat| iat < *before)
        {
            return refused("this token");
        }
        Ok(())
    }
}

fn has_credentials_of(issuers: &HashSet<Box<str>>, workload: &Workload) -> bool {
    workload.credentials.iter().any(|mapping| issuers.contains(&*mapping.issuer))
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
