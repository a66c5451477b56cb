//! Token exchange (RFC 8693): a workload's own token, and a grant, become a short-lived token for one service.
//!
//! Plane: control. A token is issued only after all of: the credential is a registered workload's, nothing about it has
//! been revoked, whoever acts may, the workload has not had too many, a grant that was approved is in force for that service
//! and those actions, in that environment. INVARIANT: a token ends no later than its grant and the tokens that it was made
//! of, and lives five minutes at most; the record of it is durable before it is handed out. What was exchanged buys nothing
//! more: `workload_identity` refuses it. Fails closed, and no refusal holds a byte of a token.

mod act;
mod choose;
mod form;
mod possession;
mod rate;
mod refusal;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use uuid::Uuid;

use self::choose::{Wanted, choose};
pub use self::form::{Asked, Destination, Secret};
use self::possession::Proofs;
use self::rate::Rate;
pub use self::refusal::Refused;
use super::audit::{Author, Event};
use super::core::Core;
use super::keys::Keys;
use super::principal::Via;
use super::rules::{self, as_grant, as_service};
use super::token_keys::{MAX_TOKEN_LIFETIME, TokenKeys};
use super::token_review::TokenReviewSettings;
use super::workload_identity::{Evidence, Identified, Vouchers, WorkloadIdentity};
use crate::authz::Reason;
use crate::clock::Timestamp;
use crate::credential::{Proven, SpiffeId};
use crate::grant::NewGrantRequest;
use crate::object::{Grant, GrantId, Kind, ResourceName, Service, Workload};
use crate::offload::offload;

/// Where it is asked for.
pub const PATH: &str = "/v1/token";
/// How many proofs of possession are verified at a time.
const VERIFYING: usize = 4;
/// How many ended grants are looked through for the reason of a refusal.
const LOOKED_AT: usize = 1000;

/// Settings of the exchange.
#[derive(Debug, Clone)]
pub struct ExchangeConfig {
    /// Audiences of which the tokens that are exchanged name at least one.
    pub audiences: Vec<String>,
    /// How many tokens a workload may have in a minute.
    pub per_minute: u32,
    /// Which tokens an API server has to confirm.
    pub reviews: TokenReviewSettings,
}

/// Exchanges tokens.
#[derive(Debug)]
pub struct Exchange {
    core: Arc<Core>,
    keys: Arc<TokenKeys>,
    identity: Arc<WorkloadIdentity>,
    audiences: Vec<String>,
    rate: Rate,
    proofs: Arc<Proofs>,
    turns: Semaphore,
}

/// What comes with a request, beside its form.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// The value of the `DPoP` header.
    pub dpop: Option<String>,
    /// SHA-256 of the client's certificate in DER form.
    pub certificate: Option<[u8; 32]>,
    /// The id of the request.
    pub request_id: Arc<str>,
}

/// A token that was issued.
#[derive(Debug)]
pub struct Issued {
    /// The token itself.
    pub token: Secret,
    /// The type that the client asked for.
    pub issued_token_type: &'static str,
    /// `DPoP` when it is bound to a key, else `Bearer`.
    pub token_type: &'static str,
    /// How long it is good, in seconds.
    pub expires_in: u64,
    /// For which actions.
    pub scope: String,
    /// On which grant.
    pub grant: GrantId,
}

/// Everything that was found good.
struct Granted<'a> {
    subject: &'a Identified,
    actor: Option<&'a Identified>,
    service: &'a str,
    grant: &'a Grant,
    scope: Vec<String>,
    proven: Option<&'a Proven>,
    shown: &'a Shown,
}

// === impl Exchange ===

impl Exchange {
    /// Exchanges tokens by what the log says now. `issuers` is told of keys that are missing.
    pub fn new(core: Arc<Core>, keys: Arc<TokenKeys>, issuers: Arc<Keys>, config: ExchangeConfig) -> Arc<Self> {
        let index = Arc::clone(core.index());
        let identity = WorkloadIdentity::new(index, Vouchers::All, Some(issuers), config.reviews);
        let endpoint = format!("{}{PATH}", keys.issuer());
        let since = core.clock().now().wall;
        Arc::new(Self {
            core,
            keys,
            identity: Arc::new(identity),
            audiences: config.audiences,
            rate: Rate::new(config.per_minute),
            proofs: Arc::new(Proofs::new(endpoint, since)),
            turns: Semaphore::new(VERIFYING),
        })
    }

    /// The keys that it signs with.
    pub const fn keys(&self) -> &Arc<TokenKeys> {
        &self.keys
    }

    /// Issues a token, or says why not.
    pub async fn exchange(&self, asked: Asked, shown: Shown) -> Result<Issued, Refused> {
        let proven = self.possession(&shown).await?;
        let evidence =
            Evidence { certificate: shown.certificate, dpop_key: proven.as_ref().map(|proven| proven.holder) };
        let subject = self.identify("subject_token", &asked.subject_token, evidence).await?;
        let actor = match &asked.actor_token {
            Some(token) => Some(self.identify("actor_token", token, evidence).await?),
            None => None,
        };
        // Who stands for itself does not act for another.
        let actor = actor.filter(|actor| actor.workload != subject.workload || actor.actor.is_some());
        let clock = self.core.clock();
        let bearer = actor.as_ref().map_or_else(
            || subject.actor.as_ref().unwrap_or(&subject.workload),
            |actor| actor.actor.as_ref().unwrap_or(&actor.workload),
        );
        self.rate.take(bearer, clock.now().mono).map_err(Refused::too_often)?;
        if let Some(proven) = &proven {
            self.proofs.use_up(proven, clock.now().wall)?;
        }
        // Verifying took time, in which something may have been revoked. From here until the token is dated nothing waits.
        self.identity.still_good(&subject).map_err(|refusal| Refused::token("subject_token", refusal))?;
        let workload = self.in_use(&subject.workload)?;
        if let Some(actor) = &actor {
            let refused = |refusal| Refused::token("actor_token", refusal);
            self.identity.still_good(actor).map_err(refused)?;
            self.identity.still_acts(&subject.workload, actor).map_err(refused)?;
            act::check(&subject, actor, &workload, &self.in_use(&actor.workload)?, self.core.index())?;
        }

        let service = self.service(&asked.destination)?;
        let now = clock.now().wall;
        let index = self.core.index();
        let grants = index.live_grants_of(&subject.workload);
        let wanted = Wanted {
            service: &service.name,
            scope: &asked.scope,
            id: asked.grant,
            environment: &workload.environment,
            now,
        };
        let chosen = choose(grants.iter().filter_map(|s| as_grant(s)), wanted).map_err(|lack| {
            // What has ended gives nothing, and may tell more: the one that is asked for, or some of them.
            let ended = match asked.grant {
                Some(id) => index.get(Kind::Grant, &id.to_string()).into_iter().collect(),
                None => index.ended_grants_of(&subject.workload, LOOKED_AT),
            };
            let ended = ended.iter().filter_map(|s| as_grant(s)).filter(|grant| grant.workload == subject.workload);
            let ended = ended.filter(|grant| grant.state.is_terminal());
            choose(ended, wanted).err().map_or(lack, |other| lack.more_telling(other))
        });
        let grant = chosen.map_err(|lack| match lack.grant {
            Some(grant) if lack.reason == Reason::EntitlementGrantPending => Refused::pending(grant),
            grant => {
                let request =
                    lack.reason.is_entitlement().then(|| request_for(&subject.workload, &service, &asked.scope));
                Refused::denied(lack.reason, "no active grant gives this workload that")
                    .about(grant)
                    .asking(request.flatten())
            }
        })?;
        let scope = if asked.scope.is_empty() { grant.actions.clone() } else { asked.scope.clone() };
        let granted = Granted {
            subject: &subject,
            actor: actor.as_ref(),
            service: &service.name,
            grant,
            scope,
            proven: proven.as_ref(),
            shown: &shown,
        };
        self.issue(&granted, asked.issued_token_type, now).await
    }

    /// The key that the client proved to hold, if it did.
    async fn possession(&self, shown: &Shown) -> Result<Option<Proven>, Refused> {
        let Some(proof) = shown.dpop.clone() else { return Ok(None) };
        let failed = || Refused::unavailable("the proof cannot be verified now");
        let turn = self.turns.acquire().await.map_err(|_closed| failed())?;
        let (proofs, now) = (Arc::clone(&self.proofs), self.core.clock().now().wall);
        let checked = offload(move || proofs.check(&proof, now)).await;
        drop(turn);
        checked.map_err(|_unfinished| failed())?.map(Some)
    }

    async fn identify(&self, who: &'static str, token: &Secret, evidence: Evidence) -> Result<Identified, Refused> {
        let audiences: Vec<&str> = self.audiences.iter().map(String::as_str).collect();
        let identified = self.identity.identify(token.reveal(), &audiences, evidence, self.core.clock()).await;
        identified.map_err(|refusal| {
            tracing::debug!(who, reason = %refusal.reason, detail = refusal.detail, "a token was not exchanged");
            Refused::token(who, refusal)
        })
    }

    /// A registered workload that is not suspended.
    fn in_use(&self, id: &SpiffeId) -> Result<Workload, Refused> {
        let workload = self.identity.registered(id).map_err(|refusal| Refused::token("subject_token", refusal))?;
        match workload.suspended {
            Some(_) => Err(Refused::denied(Reason::RevokedWorkload, format!("`{id}` is suspended"))),
            None => Ok(workload),
        }
    }

    fn service(&self, destination: &Destination) -> Result<Service, Refused> {
        let index = self.core.index();
        let found = match destination {
            Destination::Service(name) => index.get(Kind::Service, name).as_deref().and_then(as_service).cloned(),
            Destination::Uri(uri) => {
                let services = index.list(Kind::Service);
                let services = services.iter().filter_map(|s| as_service(s));
                let mut found = services.filter(|service| is_reached_at(service, uri));
                match (found.next(), found.next()) {
                    (Some(only), None) => Some(only.clone()),
                    (Some(_), Some(_)) => {
                        return Err(Refused::target(
                            "several services are reached at `resource`; name one in `audience`",
                        ));
                    }
                    (None, _) => None,
                }
            }
        };
        found.ok_or_else(|| Refused::target("there is no such service"))
    }

    async fn issue(
        &self,
        granted: &Granted<'_>,
        issued_token_type: &'static str,
        now: Timestamp,
    ) -> Result<Issued, Refused> {
        let Granted { subject, actor, service, grant, scope, proven, shown } = granted;
        let signer = self.keys.signer().ok_or_else(|| Refused::unavailable("no key may sign now"))?;
        let end = grant.not_after.unwrap_or(now).min(subject.token.expires_at);
        let end = actor.map_or(end, |actor| end.min(actor.token.expires_at));
        let issued_at = now.as_secs();
        let expires_at = end.as_secs().min(issued_at.saturating_add(MAX_TOKEN_LIFETIME.as_secs()));
        if expires_at <= issued_at {
            return Err(
                Refused::denied(Reason::EntitlementGrantExpired, "less than a second is left").about(Some(grant.id))
            );
        }
        let acting = act::chain(subject, *actor)?;
        let bearer = acting.as_ref().and_then(|act| act.get("sub")?.as_str()).unwrap_or(subject.workload.as_str());
        let (id, scope) = (Uuid::new_v4().to_string(), scope.join(" "));
        let mut claims = json!({
            "iss": self.keys.issuer(), "sub": subject.workload, "client_id": bearer, "aud": service, "iat": issued_at,
            "exp": expires_at, "jti": id, "scope": scope, "grant_id": grant.id,
        });
        let mut bound = serde_json::Map::new();
        if let Some(proven) = proven {
            bound.insert("jkt".to_owned(), json!(URL_SAFE_NO_PAD.encode(proven.holder)));
        }
        if let Some(certificate) = &shown.certificate {
            bound.insert("x5t#S256".to_owned(), json!(URL_SAFE_NO_PAD.encode(certificate)));
        }
        if let Some(members) = claims.as_object_mut() {
            if !bound.is_empty() {
                members.insert("cnf".to_owned(), Value::Object(bound));
            }
            if let Some(act) = acting.clone() {
                members.insert("act".to_owned(), act);
            }
        }
        let token = signer.sign_access_token(&claims).map_err(|error| {
            tracing::error!(%error, "a token could not be signed");
            Refused::unavailable("the token could not be signed")
        })?;
        // INVARIANT: the record is durable before anybody has the token. Records go into the trail in groups.
        let author = Author { name: Arc::from(bearer), kind: "workload".into(), via: Some(Via::Workload) };
        let what = format!("token {id}: grant {}, {service}, {scope}, for {}", grant.id, subject.workload);
        let event = Event::done(author, "token.issue", &what, &shown.request_id);
        let recorded = self.core.audit().record(event).await;
        recorded.map_err(|error| Refused::unavailable(error.to_string()))?;
        Ok(Issued {
            token: Secret::new(token),
            issued_token_type,
            token_type: if proven.is_some() { "DPoP" } else { "Bearer" },
            expires_in: expires_at - issued_at,
            scope,
            grant: grant.id,
        })
    }
}

/// Whether clients reach a service at the host of this URI (RFC 8707, section 2: absolute, without a fragment).
fn is_reached_at(service: &Service, uri: &str) -> bool {
    let Ok(parsed) = uri.parse::<http::Uri>() else { return false };
    let (Some(scheme), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else { return false };
    if uri.contains('#') || !matches!(scheme, "https" | "http") || authority.as_str().contains('@') {
        return false;
    }
    let origin = format!("{scheme}://{}", authority.as_str().to_ascii_lowercase());
    let host = parsed.host().unwrap_or_default().to_ascii_lowercase();
    service.origins.contains(&origin) || service.hosts.contains(&host)
}

/// A grant that would give what was asked for, if it says which actions: to be posted as it stands.
fn request_for(workload: &SpiffeId, service: &Service, scope: &[String]) -> Option<NewGrantRequest> {
    let known: BTreeSet<&str> = service.routes.iter().flat_map(rules::actions_of).collect();
    if scope.is_empty() || !scope.iter().all(|action| known.contains(action.as_str())) {
        return None;
    }
    let longest = service.routes.iter().map(|route| route.grants.max_duration_seconds).min()?;
    let resource = ResourceName { service: service.name.clone(), route: None };
    let mut request = NewGrantRequest::new(workload.clone(), vec![resource], scope.to_vec(), longest);
    request.reason = format!("token exchange for {} on {}", scope.join(", "), service.name);
    Some(request)
}
