//! Whose a workload's token is: for sync, for token exchange, and for workloads that call the API.
//!
//! Plane: control. The issuers, mappings and revocations in force are compiled once for all callers, and again only when
//! one of them changes; what was verified before can be checked against them again then. Signatures are verified off the
//! runtime's threads, few at a time. INVARIANT: a token that is bound to a key counts only with evidence of that key, and
//! one of the control plane's own never: what was exchanged buys nothing more. Fails closed, with a reason code and a
//! text that holds no byte of the token.
//! Long because what is verified of a token, its actor and its binding is one sequence that is read as a whole.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::index::{Index, Stored};
use super::keys::Keys;
use super::rules::{as_issuer, as_workload};
use super::token_review::{TokenReviewSettings, TokenReviews, Unconfirmed};
use crate::authz::{Owners, Reason};
use crate::clock::{SharedClock, Timestamp};
use crate::credential::{
    Confirmation, CredentialReason, IssuerSet, Rejection, SpiffeId, VerifiedToken, certificate_serial, issuer_of,
    verify_for,
};
use crate::object::{Issuer, IssuerKind, Kind, Object, Target, Workload};
use crate::offload::offload;
use crate::wire::Revision;

/// How many tokens are verified at a time.
const VERIFYING: usize = 4;

/// Whose tokens count.
#[derive(Debug, Clone)]
pub enum Vouchers {
    /// Those of every issuer.
    All,
    /// Those of the issuers with these names.
    Named(Vec<String>),
}

/// Verifies the tokens of workloads against what the log says now.
#[derive(Debug)]
pub struct WorkloadIdentity {
    index: Arc<Index>,
    vouchers: Vouchers,
    /// Told of keys that are missing.
    keys: Option<Arc<Keys>>,
    reviews: TokenReviews,
    cache: Mutex<Option<(Revision, Arc<Trust>)>>,
    turns: Semaphore,
}

/// What comes with a token, already verified, and shows what its bearer holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence {
    /// SHA-256 of the client's certificate in DER form.
    pub certificate: Option<[u8; 32]>,
    /// The thumbprint (RFC 7638) of the key that a DPoP proof for this very request was made with.
    pub dpop_key: Option<[u8; 32]>,
}

/// A registered workload, by its token.
#[derive(Debug, Clone)]
pub struct Identified {
    /// Whose token it is.
    pub workload: SpiffeId,
    /// Who acts for it, if another workload does. Registered as well.
    pub actor: Option<SpiffeId>,
    /// What the token says.
    pub token: VerifiedToken,
}

/// Why a token does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refusal {
    /// The code, as an enforcement point would give it.
    pub reason: Reason,
    /// More about it: a text of ours.
    pub detail: &'static str,
}

/// The issuers, mappings and revocations in force.
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

// === impl WorkloadIdentity ===

impl WorkloadIdentity {
    /// Verifies by the log. `reviews` says which tokens an API server has to confirm.
    pub fn new(index: Arc<Index>, vouchers: Vouchers, keys: Option<Arc<Keys>>, reviews: TokenReviewSettings) -> Self {
        let (reviews, turns) = (TokenReviews::new(reviews), Semaphore::new(VERIFYING));
        Self { index, vouchers, keys, reviews, cache: Mutex::default(), turns }
    }

    /// The registered workload whose token this is: verified for one of `audiences`, not revoked, bound to nothing that
    /// `evidence` does not show, and confirmed where its issuer's tokens have to be.
    pub async fn identify(
        self: &Arc<Self>,
        token: &str,
        audiences: &[&str],
        evidence: Evidence,
        clock: &SharedClock,
    ) -> Result<Identified, Refusal> {
        let overloaded = Refusal { reason: Reason::SystemOverload, detail: "no token can be verified now" };
        let turn = self.turns.acquire().await.map_err(|_closed| overloaded)?;
        let work = {
            let (this, token, clock) = (Arc::clone(self), token.to_owned(), Arc::clone(clock));
            let audiences: Vec<String> = audiences.iter().map(|a| (*a).to_owned()).collect();
            move || {
                let trust = this.trust();
                let audiences: Vec<&str> = audiences.iter().map(String::as_str).collect();
                this.identified(&trust, &token, &audiences, evidence, clock.now().wall)
            }
        };
        let identified = offload(work).await;
        drop(turn);
        let failed = Refusal { reason: Reason::SystemInternal, detail: "the verification has failed" };
        let identified = identified.map_err(|_unfinished| failed)??;
        let audience = audiences.first().copied().unwrap_or_default();
        self.confirm(token, &identified.token, audience).await.map_err(|why| {
            let issuer = &identified.token.issuer;
            tracing::warn!(issuer = &**issuer, %why, "a token was not confirmed");
            match why {
                Unconfirmed::Denied(detail) => Refusal { reason: Reason::CredentialSubject, detail },
                Unconfirmed::Unanswered(_) => {
                    Refusal { reason: Reason::SystemInternal, detail: "the issuer did not confirm the token" }
                }
            }
        })?;
        Ok(identified)
    }

    fn identified(
        &self,
        trust: &Trust,
        token: &str,
        audiences: &[&str],
        evidence: Evidence,
        now: Timestamp,
    ) -> Result<Identified, Refusal> {
        let token = self.verify(trust, token, audiences, now)?;
        evidence.shows(token.confirmation.as_ref())?;
        let workload = trust.owner_of(&token)?;
        let actor = trust.owners.actor_of(&token).transpose().map_err(Refusal::subject)?;
        trust.check(&workload, Some(&token), None)?;
        let registered = self.registered(&workload)?;
        if let Some(actor) = &actor {
            trust.check_actor(&workload, actor, token.issued_at)?;
            if !registered.may_be_acted_for_by(&self.registered(actor)?) {
                return Err(Refusal::subject("the workload that acts may not act for this one"));
            }
        }
        Ok(Identified { workload, actor, token })
    }

    /// Whether it is still good, by what the log says now: time may have passed since it was verified.
    pub(super) fn still_good(&self, identified: &Identified) -> Result<(), Refusal> {
        let Identified { workload, actor, token } = identified;
        let trust = self.trust();
        trust.check(workload, Some(token), None)?;
        actor.iter().try_for_each(|actor| trust.check_actor(workload, actor, token.issued_at))
    }

    /// Whether nothing was revoked that lets `actor` act for `subject`, which its own token says nothing of.
    pub(super) fn still_acts(&self, subject: &SpiffeId, actor: &Identified) -> Result<(), Refusal> {
        self.trust().check_actor(subject, &actor.workload, actor.token.issued_at)
    }

    /// Verifies a token and nothing about whose it is.
    pub(super) fn verify(
        &self,
        trust: &Trust,
        token: &str,
        audiences: &[&str],
        now: Timestamp,
    ) -> Result<VerifiedToken, Refusal> {
        let verified = verify_for(token, &trust.issuers, audiences, now).inspect_err(|e| {
            if e.reason == CredentialReason::KidUnknown {
                issuer_of(token, &trust.issuers).into_iter().for_each(|issuer| self.key_is_missing(issuer));
            }
        })?;
        if verified.kind == IssuerKind::Portcullis {
            let detail = "a token that a control plane issued is for the service that it names, and for nothing else";
            return Err(Refusal { reason: Reason::CredentialTyp, detail });
        }
        Ok(verified)
    }

    /// The workload of this id, as it is registered now.
    pub fn registered(&self, id: &SpiffeId) -> Result<Workload, Refusal> {
        let stored = self.index.get(Kind::Workload, id.as_str());
        let workload = stored.as_deref().and_then(as_workload);
        workload.cloned().ok_or(Refusal::subject("the token is not of a registered workload"))
    }

    /// Whether the certificate of this serial number was revoked.
    pub(super) fn is_revoked_certificate(&self, serial: &str) -> bool {
        self.trust().revoked.contains(&Target::Certificate { serial: serial.to_owned() })
    }

    /// Has a verified token confirmed, if its issuer's tokens have to be.
    pub(super) async fn confirm(
        &self,
        token: &str,
        verified: &VerifiedToken,
        audience: &str,
    ) -> Result<(), Unconfirmed> {
        self.reviews.confirm(token, verified, audience).await
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
        let trust = Arc::new(Trust::compile(&self.index, &self.vouchers));
        *cache = Some((revision, Arc::clone(&trust)));
        trust
    }

    /// A token of this issuer named a key that it does not have.
    pub(super) fn key_is_missing(&self, issuer: &str) {
        if let Some(keys) = &self.keys {
            keys.key_is_missing(issuer);
        }
    }
}

// === impl Evidence ===

impl Evidence {
    /// Whether it shows all that a token is bound to.
    fn shows(&self, bound: Option<&Confirmation>) -> Result<(), Refusal> {
        let Some(bound) = bound else { return Ok(()) };
        let missing = |detail| Err(Refusal { reason: Reason::CredentialPopMissing, detail });
        let invalid = |detail| Err(Refusal { reason: Reason::CredentialPopInvalid, detail });
        match &self.certificate {
            _ if !bound.needs_certificate() => {}
            None => return missing("the token is bound to a certificate, and there is none"),
            Some(shown) if !bound.is_certificate(shown) => {
                return invalid("the token is bound to another certificate");
            }
            Some(_) => {}
        }
        if bound.needs_wpt() {
            return missing("a workload identity token does not count here");
        }
        match (bound.dpop_thumbprint(), &self.dpop_key) {
            (None, _) => Ok(()),
            (Some(_), None) => missing("the token is bound to a key, and sent without its proof"),
            (Some(bound), Some(shown)) if bound != shown => invalid("the token is bound to another key"),
            (Some(_), Some(_)) => Ok(()),
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// The token is nobody's.
    const fn subject(detail: &'static str) -> Self {
        Self { reason: Reason::CredentialSubject, detail }
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self { reason: rejection.reason.into(), detail: rejection.detail }
    }
}

// === impl Trust ===

impl Trust {
    fn compile(index: &Index, vouchers: &Vouchers) -> Self {
        let stored = index.list(Kind::Issuer);
        let spiffe = stored.iter().filter_map(|s| as_issuer(s)).filter(|issuer| issuer.kind == IssuerKind::Spiffe);
        let spiffe: Vec<&Issuer> = spiffe.collect();
        let domains = spiffe.iter().filter_map(|issuer| issuer.trust_domain.as_deref().map(Box::from)).collect();
        let (of_certificates, _bad) = IssuerSet::compile(spiffe);
        let counts = |issuer: &&Issuer| vouchers.include(&issuer.name);
        let issuers: Vec<&Issuer> = stored.iter().filter_map(|s| as_issuer(s)).filter(counts).collect();
        let mapping = issuers.iter().filter(|issuer| !issuer.kind.names_workload());
        let mapped: HashSet<Box<str>> = mapping.map(|issuer| Box::from(&*issuer.name)).collect();
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
                Target::Grant { .. } => {}
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
            // Of those that end grants, there may be many, and no credential hangs on them.
            Kind::Revocation => !matches!(
                &changed.object,
                Some(Object::Revocation(r)) if matches!(r.target, Target::Grant { .. })
            ),
            Kind::Workload => {
                self.owners.contains(&changed.key)
                    || as_workload(changed).is_some_and(|workload| has_credentials_of(&self.mapped, workload))
            }
            _ => false,
        }
    }

    /// Whose a token is: of the workload that it names, or that it is mapped to.
    pub(super) fn owner_of(&self, token: &VerifiedToken) -> Result<SpiffeId, Refusal> {
        self.owners.owner_of(token).map_err(Refusal::subject)
    }

    /// Whether a credential of `identity` counts (still): this token, a certificate with this serial number, or both.
    pub(super) fn check(
        &self,
        identity: &SpiffeId,
        token: Option<&VerifiedToken>,
        certificate_serial: Option<&str>,
    ) -> Result<(), Refusal> {
        let refused = |reason, detail| Err(Refusal { reason, detail });
        let revoked = |target: Target| self.revoked.contains(&target);
        if revoked(Target::Workload { workload: identity.clone() }) {
            return refused(Reason::RevokedWorkload, "this identity was revoked");
        }
        if let Some(serial) = certificate_serial {
            if revoked(Target::Certificate { serial: serial.to_owned() }) {
                return refused(Reason::RevokedKey, "this certificate was revoked");
            }
            let domain = identity.trust_domain();
            // The configured CAs have vouched for it; an issuer for its trust domain has a say as well.
            let issuer = self.of_certificates.of_certificates(domain).map(|name| name.to_string());
            if self.domains.contains(domain) && issuer.is_none_or(|issuer| revoked(Target::Issuer { issuer })) {
                return refused(Reason::RevokedIssuer, "the trust domain of this certificate was revoked");
            }
        }
        let Some(token) = token else { return Ok(()) };
        if self.owner_of(token)? != *identity {
            return Err(Refusal::subject("the token is another workload's now"));
        }
        let issuer = token.issuer.to_string();
        let bound = |uid: &Arc<str>| Target::BoundObject { issuer: issuer.clone(), uid: uid.to_string() };
        if token.bound_objects.iter().any(|uid| revoked(bound(uid))) {
            return refused(Reason::RevokedToken, "an object that this token is bound to was revoked");
        }
        if revoked(Target::Issuer { issuer: issuer.clone() }) {
            return refused(Reason::RevokedIssuer, "the issuer of this token was revoked");
        }
        if revoked(Target::Key { issuer: issuer.clone(), kid: token.kid.to_string() })
            || !self.keys.contains(&(Box::from(&*token.issuer), Box::from(&*token.kid)))
        {
            return refused(Reason::RevokedKey, "the key of this token was revoked");
        }
        if let Some(jti) = &token.jti
            && revoked(Target::Token { issuer, jti: jti.to_string() })
        {
            return refused(Reason::RevokedToken, "this token was revoked");
        }
        if self.is_from_before(identity, token.issued_at) {
            return refused(Reason::RevokedToken, "this token was revoked");
        }
        Ok(())
    }

    /// Whether `actor` may (still) act for `workload` by a credential of this time.
    pub(super) fn check_actor(
        &self,
        workload: &SpiffeId,
        actor: &SpiffeId,
        issued_at: Option<Timestamp>,
    ) -> Result<(), Refusal> {
        let refused = |reason, detail| Err(Refusal { reason, detail });
        if self.revoked.contains(&Target::Delegator { workload: workload.clone() }) {
            return refused(Reason::RevokedDelegator, "nobody acts for this workload any more");
        }
        if self.revoked.contains(&Target::Workload { workload: actor.clone() }) {
            return refused(Reason::RevokedWorkload, "the workload that acts was revoked");
        }
        if self.is_from_before(actor, issued_at) {
            return refused(Reason::RevokedToken, "the tokens of that time of the workload that acts were revoked");
        }
        Ok(())
    }

    /// Without `iat` it counts as issued before.
    fn is_from_before(&self, workload: &SpiffeId, issued_at: Option<Timestamp>) -> bool {
        self.tokens_before.get(workload).is_some_and(|before| issued_at.is_none_or(|iat| iat < *before))
    }
}

impl Vouchers {
    fn include(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|n| n == name),
        }
    }
}

fn has_credentials_of(issuers: &HashSet<Box<str>>, workload: &Workload) -> bool {
    workload.credentials.iter().any(|mapping| issuers.contains(&*mapping.issuer))
}

#[cfg(test)]
mod tests;
