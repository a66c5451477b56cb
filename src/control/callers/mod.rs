//! Who calls the API: an operator by its token or certificate, a person of a provider, a registered workload.
//!
//! Plane: control. INVARIANT: exactly one credential counts. Two are refused, also when both are good, because one of
//! them would be somebody else's. What a token looks like says who verifies it; no two verifiers are asked about one
//! token. Fails closed: what is not configured is nobody. No token is kept, logged or repeated.

mod certificate;
mod limits;
mod people;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use tokio_util::task::AbortOnDropHandle;

pub use self::certificate::{CertificateName, CertificateRule, Peer, PeerCertificate};
pub use self::limits::Rate;
use self::limits::{Buckets, neighbourhood};
use self::people::People;
pub use self::people::ProviderConfig;
use super::core::Core;
use super::keys::Keys;
use super::operators::{Operators, is_operator_token};
use super::principal::{Principal, PrincipalKind, Via};
use super::token_review::TokenReviewSettings;
use super::workload_identity::{Evidence, Identified, Vouchers, WorkloadIdentity};
use crate::clock::{SharedClock, Timestamp};

/// Who else than operators with tokens may call, and how often.
#[derive(Debug, Clone, Default)]
pub struct CallersConfig {
    /// Providers of people's tokens: distinct names and issuers.
    pub providers: Vec<ProviderConfig>,
    /// Whose certificates have which name.
    pub certificates: Vec<CertificateRule>,
    /// Workloads with their own tokens; without it, none.
    pub workloads: Option<WorkloadCallers>,
    /// How often one principal may call.
    pub calls: Option<Rate>,
    /// How often one address may fail to say who it is.
    pub failures: Option<Rate>,
}

/// Workloads that may call.
#[derive(Debug, Clone)]
pub struct WorkloadCallers {
    /// The audience that their tokens must name.
    pub audience: String,
    /// Whose tokens count.
    pub vouchers: Vouchers,
    /// API servers that confirm them.
    pub reviews: TokenReviewSettings,
}

/// Tells who calls.
#[derive(Debug)]
pub struct Callers {
    operators: Arc<Operators>,
    people: Vec<People>,
    certificates: Vec<CertificateRule>,
    workloads: Option<(String, Arc<WorkloadIdentity>)>,
    /// Knows which certificates were revoked.
    identity: Arc<WorkloadIdentity>,
    calls: Option<Buckets<Arc<str>>>,
    failures: Option<Buckets<IpAddr>>,
    clock: SharedClock,
    _keepers: Vec<AbortOnDropHandle<()>>,
}

/// What a caller was known by, for who has to look again later whether that still counts. Holds no token.
#[derive(Debug, Clone)]
pub struct Standing(Basis);

#[derive(Debug, Clone)]
enum Basis {
    /// An operator's own token.
    Operator,
    /// A certificate of one.
    Certificate(Arc<PeerCertificate>),
    /// A provider's token, until it ends.
    Person(Timestamp),
    /// A workload's token.
    Workload(Arc<Identified>),
}

/// Why a caller is nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown {
    /// Whether it showed a credential.
    pub presented: bool,
    /// What is wrong with it, for the log; holds nothing of it.
    pub detail: &'static str,
}

// === impl Callers ===

impl Callers {
    /// By this configuration. Within a runtime: the keys of providers are looked after from now on.
    pub fn new(config: CallersConfig, core: &Arc<Core>, operators: Arc<Operators>, keys: &Arc<Keys>) -> Self {
        let people: Vec<People> = config.providers.into_iter().map(People::new).collect();
        let keepers = people.iter().map(|p| AbortOnDropHandle::new(Arc::clone(keys).keep_provider(&p.provider)));
        let _keepers = keepers.collect();
        let identity = |vouchers, reviews| {
            Arc::new(WorkloadIdentity::new(Arc::clone(core.index()), vouchers, Some(Arc::clone(keys)), reviews))
        };
        let workloads = config.workloads.map(|w| (w.audience, identity(w.vouchers, w.reviews)));
        Self {
            operators,
            people,
            certificates: config.certificates,
            workloads,
            identity: identity(Vouchers::Named(Vec::new()), TokenReviewSettings::default()),
            calls: config.calls.map(Buckets::new),
            failures: config.failures.map(Buckets::new),
            clock: Arc::clone(core.clock()),
            _keepers,
        }
    }

    /// Who calls, by the one credential that came, and what that rests on.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Result<(Principal, Standing), Unknown> {
        let refused = |detail| Err(Unknown { presented: true, detail });
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let certificate = peer.and_then(|peer| peer.certificate.as_ref());
        match (values.next(), certificate) {
            _ if values.next().is_some() => refused("there are two credentials"),
            (Some(_), Some(_)) => refused("there is a token beside a client certificate"),
            (None, None) => Err(Unknown { presented: false, detail: "there is no credential" }),
            (None, Some(certificate)) => self.holder(certificate).or_else(refused),
            (Some(value), None) => {
                let token = value.to_str().ok().and_then(|text| {
                    let (scheme, token) = text.split_once(' ')?;
                    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
                });
                match token {
                    None => refused("`authorization` is not a bearer token"),
                    Some(token) => self.bearer(token).await.or_else(refused),
                }
            }
        }
    }

    fn holder(&self, certificate: &Arc<PeerCertificate>) -> Result<(Principal, Standing), &'static str> {
        let operator = self.operator_of(certificate)?;
        let principal = self.operators.named(operator, Via::Certificate);
        let principal = principal.ok_or("the certificate's operator does not exist any more")?;
        Ok((principal, Standing(Basis::Certificate(Arc::clone(certificate)))))
    }

    fn operator_of(&self, certificate: &PeerCertificate) -> Result<&str, &'static str> {
        let operator = certificate.operator(&self.certificates, self.clock.now().wall);
        let operator = operator.ok_or("the client certificate is not that of one operator, or not now")?;
        if self.identity.is_revoked_certificate(&certificate.serial) {
            return Err("the client certificate was revoked");
        }
        Ok(operator)
    }

    async fn bearer(&self, token: &str) -> Result<(Principal, Standing), &'static str> {
        if is_operator_token(token) {
            let principal = self.operators.authenticate(token).ok_or("the token is not that of an operator")?;
            return Ok((principal, Standing(Basis::Operator)));
        }
        if let Some(people) = self.people.iter().find(|people| people.may_know(token)) {
            let (principal, until) = people.identify(token, self.clock.now().wall)?;
            return Ok((principal, Standing(Basis::Person(until))));
        }
        let Some((audience, identity)) = &self.workloads else { return Err("the token is nobody's") };
        let identified = identity.identify(token, &[audience], Evidence::default(), &self.clock).await;
        let identified = identified.map_err(|refusal| refusal.detail)?;
        if identified.actor.is_some() {
            return Err("a workload calls for itself, and not with a token that another one acts with");
        }
        in_service(identity, &identified)?;
        let name = identified.workload.as_str().to_owned();
        let principal = Principal::new(name, PrincipalKind::Workload(identified.workload.clone()), Via::Workload);
        Ok((principal, Standing(Basis::Workload(Arc::new(identified)))))
    }

    /// Whether a caller that was known is still who it was: its credential has not ended, nothing of it was revoked, and
    /// it was neither revoked nor suspended itself. Verifies no signature again.
    pub fn stands(&self, principal: &Principal, standing: &Standing) -> Result<(), &'static str> {
        let is_over = |end: Timestamp| self.clock.now().wall >= end;
        let by_name = |via| self.operators.named(&principal.name, via).map(|_| ()).ok_or("the operator was revoked");
        match &standing.0 {
            Basis::Operator => by_name(Via::Token),
            Basis::Certificate(certificate) => {
                let operator = self.operator_of(certificate)?;
                if operator != &*principal.name {
                    return Err("the client certificate is another operator's now");
                }
                by_name(Via::Certificate)
            }
            Basis::Person(until) if is_over(*until) => Err("the token has ended"),
            Basis::Person(_) => Ok(()),
            Basis::Workload(identified) if is_over(identified.token.expires_at) => Err("the token has ended"),
            Basis::Workload(identified) => {
                let (_, identity) = self.workloads.as_ref().ok_or("the token is nobody's")?;
                identity.still_good(identified).map_err(|refusal| refusal.detail)?;
                in_service(identity, identified)
            }
        }
    }

    /// Changes whenever an operator was created or revoked.
    pub fn operators_changed(&self) -> tokio::sync::watch::Receiver<u64> {
        self.operators.changed()
    }

    /// Takes one call of a principal's; when there are too many, answers for how long to stay away.
    pub fn admit(&self, principal: &Principal) -> Result<(), Duration> {
        self.calls.as_ref().map_or(Ok(()), |calls| calls.take(Arc::clone(&principal.name)))
    }

    /// Takes note that an address failed to say who it is; when it does so too often, answers for how long to stay away.
    /// Whoever then shows a good credential from there is let in all the same.
    pub fn failed(&self, peer: Option<&Peer>) -> Result<(), Duration> {
        match (&self.failures, peer) {
            (Some(failures), Some(peer)) => failures.take(neighbourhood(peer.address)),
            _ => Ok(()),
        }
    }
}

/// Whether the workload is registered, and not suspended.
fn in_service(identity: &WorkloadIdentity, identified: &Identified) -> Result<(), &'static str> {
    let registered = identity.registered(&identified.workload).map_err(|refusal| refusal.detail)?;
    if registered.suspended.is_some() { Err("the workload is suspended") } else { Ok(()) }
}
