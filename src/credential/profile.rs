//! The profiles of tokens: which issuer a token is judged by, and what its kind must and must not have.
//!
//! Pure. Profiles exclude each other (RFC 8725, section 3.12): the type of a token and what it shows of its issuer pick
//! exactly one, and a token that fits none is refused rather than tried with the next. Sources: JWT-SVID standard,
//! sections 2 and 3; RFC 9068, sections 2 and 4; OpenID Connect Core 1.0, section 2; Kubernetes' projected service
//! account tokens; GitHub's OIDC reference. INVARIANT: nothing here is true before the signature has been verified.

use std::sync::Arc;

use serde_json::Value;
use smallvec::SmallVec;

use super::claims::Claims;
use super::issuers::{Authority, IssuerSet, TrustedIssuer};
use super::jws::Header;
use super::rejection::{CredentialReason, Rejection};
use super::spiffe_id::SpiffeId;
use crate::object::{GrantId, IssuerKind, MAX_DELEGATION_DEPTH};

const SPIFFE: &str = "spiffe://";
const APPLICATION: &str = "application/";
/// The largest number of actions in a scope.
const MAX_SCOPE: usize = 64;
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Who acts for the subject of a token (RFC 8693, section 4.1).
#[derive(Debug, Clone, PartialEq)]
pub struct Actor {
    /// Whom the `act` claim names.
    pub subject: Arc<str>,
    /// The claims about the actor, for mapping; without its nested `act`.
    pub claims: Value,
}

/// What a token that a control plane issued is tied to: it is good for no more than all of this says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tie {
    /// The grant that it was issued on, and that it ends with.
    pub grant: GrantId,
    /// The service that it is for.
    pub service: Arc<str>,
    /// The actions that it is for.
    pub scope: SmallVec<[Box<str>; 2]>,
}

/// What a profile reads from the claims beside the registered ones.
#[derive(Debug)]
pub(super) struct Profiled {
    /// The workload, where the token names it itself.
    pub(super) workload: Option<SpiffeId>,
    /// UIDs of the Kubernetes objects that the token is bound to.
    pub(super) bound_objects: SmallVec<[Arc<str>; 3]>,
    pub(super) tie: Option<Arc<Tie>>,
    /// Current actor first.
    pub(super) actors: SmallVec<[Actor; 1]>,
}

/// The type of a token, by its `typ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    /// Absent, `JWT` or `JOSE`.
    Jwt,
    /// `at+jwt` (RFC 9068, section 2.1).
    AccessToken,
    /// `wit+jwt`: a WIMSE workload identity token.
    WorkloadIdentityToken,
    /// `txntoken+jwt`: a transaction token, which is no credential.
    Transaction,
}

// === impl Type ===

impl Type {
    /// A media type has no case and may be written out (RFC 7515, section 4.1.9); in a JWT-SVID the value is exact, which
    /// [`check`] sees to.
    pub(super) fn of(header: &Header<'_>) -> Result<Self, Rejection> {
        let typ = match header.typ() {
            None | Some("JWT" | "JOSE") => return Ok(Self::Jwt),
            Some("wit+jwt") => return Ok(Self::WorkloadIdentityToken),
            Some(typ) => typ,
        };
        let name = match typ.split_at_checked(APPLICATION.len()) {
            Some((tree, name)) if tree.eq_ignore_ascii_case(APPLICATION) => name,
            _ => typ,
        };
        if name.eq_ignore_ascii_case("jwt") || name.eq_ignore_ascii_case("jose") {
            Ok(Self::Jwt)
        } else if name.eq_ignore_ascii_case("at+jwt") {
            Ok(Self::AccessToken)
        } else if name.eq_ignore_ascii_case("txntoken+jwt") {
            Ok(Self::Transaction)
        } else {
            Err(CredentialReason::Typ.because("`typ` is of no kind of token that is a credential here"))
        }
    }
}

/// The issuer whose rules and keys judge this token.
pub(super) fn issuer<'a>(
    issuers: &'a IssuerSet,
    typ: Type,
    claims: &Claims<'_>,
) -> Result<&'a TrustedIssuer, Rejection> {
    let sub: &str = &claims.sub.0;
    let iss = claims.iss.as_ref().map(|iss| &*iss.0);
    if typ == Type::Transaction {
        return iss.and_then(|iss| issuers.find(&Authority::Transaction(iss.into()))).ok_or(
            CredentialReason::IssuerUntrusted.because("no issuer is trusted for transaction tokens of this `iss`"),
        );
    }
    let trust_domain = match (typ, sub.strip_prefix(SPIFFE)) {
        (Type::Jwt | Type::WorkloadIdentityToken, Some(_)) => {
            let id = SpiffeId::parse(sub).map_err(|_why| not_a_workload())?;
            return issuers
                .find(&Authority::TrustDomain(id.trust_domain().into()))
                .ok_or(CredentialReason::IssuerUntrusted.because("no issuer vouches for the trust domain of `sub`"));
        }
        (_, rest) => rest.and_then(|rest| rest.split('/').next()),
    };
    let Some(iss) = iss else {
        return Err(match typ {
            Type::Jwt | Type::WorkloadIdentityToken | Type::Transaction => not_a_workload(),
            Type::AccessToken => {
                CredentialReason::Typ.because("`typ` is that of an access token, and there is no `iss`")
            }
        });
    };
    let (right, wrong) = match typ {
        Type::AccessToken => (Authority::AccessToken(iss.into()), Authority::Jwt(iss.into())),
        Type::Jwt | Type::WorkloadIdentityToken | Type::Transaction => {
            (Authority::Jwt(iss.into()), Authority::AccessToken(iss.into()))
        }
    };
    if let Some(issuer) = issuers.find(&right) {
        return Ok(issuer);
    }
    let of_another_profile = issuers.find(&wrong).is_some()
        || trust_domain.is_some_and(|domain| issuers.find(&Authority::TrustDomain(domain.into())).is_some());
    Err(if of_another_profile {
        CredentialReason::Typ.because("the issuer is trusted, but not for tokens of this `typ`")
    } else {
        CredentialReason::IssuerUntrusted.because("no issuer is trusted for this `iss`")
    })
}

fn not_a_workload() -> Rejection {
    CredentialReason::Subject.because("`sub` is not the SPIFFE ID of a workload")
}

/// Checks what this kind of token must and must not have.
pub(super) fn check(
    issuer: &TrustedIssuer,
    typ: Type,
    header: &Header<'_>,
    claims: &Claims<'_>,
) -> Result<Profiled, Rejection> {
    if claims.is_event {
        return Err(CredentialReason::Typ.because("the token has `events`: it tells of events and is no credential"));
    }
    if typ == Type::WorkloadIdentityToken && !issuer.proof.wimse {
        return Err(CredentialReason::Typ.because("the issuer does not make workload identity tokens"));
    }
    let mut profiled = Profiled {
        workload: None,
        bound_objects: SmallVec::new(),
        tie: None,
        actors: actors(claims, issuer.max_delegation_depth)?,
    };
    // Who the actor is, is read by this issuer's mappings: a name that another gave means somebody else.
    let named_by = profiled.actors.first().and_then(|actor| actor.claims.get("iss"));
    if !issuer.kind.names_workload() && named_by.is_some_and(|by| by.as_str() != claims.iss.as_ref().map(|iss| &*iss.0))
    {
        return Err(CredentialReason::Subject.because("the actor in `act` is named by another issuer"));
    }
    match issuer.kind {
        IssuerKind::Spiffe => {
            // JWT-SVID standard, section 2.3.
            if typ == Type::Jwt && !matches!(header.typ(), None | Some("JWT" | "JOSE")) {
                return Err(
                    CredentialReason::Typ.because("the `typ` of a JWT-SVID is `JWT` or `JOSE`, if there is one")
                );
            }
            if header.has_others && typ == Type::Jwt {
                return Err(CredentialReason::Malformed
                    .because("the header of a JWT-SVID has a member other than `alg`, `kid` and `typ`"));
            }
            profiled.workload = Some(SpiffeId::parse(&claims.sub.0).map_err(|_why| not_a_workload())?);
        }
        IssuerKind::Portcullis => {
            access_token(claims)?;
            profiled.workload = Some(SpiffeId::parse(&claims.sub.0).map_err(|_why| not_a_workload())?);
            profiled.tie = Some(Arc::new(tie(claims)?));
        }
        IssuerKind::Kubernetes => profiled.bound_objects = kubernetes(claims)?,
        IssuerKind::Oidc if typ == Type::AccessToken => access_token(claims)?,
        IssuerKind::Oidc => {
            if claims.iat.is_none() {
                return Err(CredentialReason::Malformed.because("`iat` is required"));
            }
        }
        IssuerKind::Github => {
            if claims.iat.is_none() || claims.jti.is_none() {
                return Err(CredentialReason::Malformed.because("`iat` and `jti` are required"));
            }
        }
    }
    Ok(profiled)
}

/// RFC 9068, section 2.2: what every access token has.
fn access_token(claims: &Claims<'_>) -> Result<(), Rejection> {
    if claims.iat.is_none() || claims.jti.is_none() || claims.client_id.is_none() {
        return Err(CredentialReason::Malformed.because("`iat`, `jti` and `client_id` are required in an access token"));
    }
    Ok(())
}

/// What a token of a control plane is tied to. Without any part of it there is no telling what it may be used for.
fn tie(claims: &Claims<'_>) -> Result<Tie, Rejection> {
    let malformed = |detail| CredentialReason::Malformed.because(detail);
    let id = claims.grant_id.as_ref().ok_or(malformed("`grant_id` is required in a token of a control plane"))?;
    let grant = id.0.parse().map_err(|_not_an_id| malformed("`grant_id` is not an id"))?;
    let service = claims.only_audience().ok_or(malformed("`aud` of a token of a control plane is one service"))?;
    let scope = claims.scope.as_ref().and_then(Value::as_str).unwrap_or_default();
    let scope: SmallVec<[Box<str>; 2]> = scope.split(' ').filter(|action| !action.is_empty()).map(Box::from).collect();
    if scope.is_empty() || scope.len() > MAX_SCOPE {
        return Err(malformed("`scope` is 1 to 64 actions with spaces between them"));
    }
    Ok(Tie { grant, service: Arc::from(service), scope })
}

/// A projected token is bound to objects of the cluster by UID, and its `sub` says the same as its binding.
fn kubernetes(claims: &Claims<'_>) -> Result<SmallVec<[Arc<str>; 3]>, Rejection> {
    let malformed = |detail| CredentialReason::Malformed.because(detail);
    let Some(bound) = &claims.kubernetes else {
        return Err(CredentialReason::Typ.because("there is no `kubernetes.io`: not a projected service account token"));
    };
    if claims.iat.is_none() {
        return Err(malformed("`iat` is required"));
    }
    let text = |pointer: &str| bound.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    let (Some(namespace), Some(account), Some(uid)) =
        (text("/namespace"), text("/serviceaccount/name"), text("/serviceaccount/uid"))
    else {
        return Err(malformed("`kubernetes.io` does not name a service account with namespace, name and UID"));
    };
    let named = claims.sub.0.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':'));
    if named != Some((namespace, account)) {
        return Err(CredentialReason::Subject.because("`sub` and `kubernetes.io` name different service accounts"));
    }
    let mut uids = SmallVec::from_iter([Arc::from(uid)]);
    for object in ["pod", "node", "secret"] {
        if bound.get(object).is_some() {
            let uid =
                bound.get(object).and_then(|o| o.get("uid")).and_then(Value::as_str).filter(|uid| !uid.is_empty());
            uids.push(Arc::from(uid.ok_or(malformed("an object in `kubernetes.io` has no UID"))?));
        }
    }
    Ok(uids)
}

/// The chain of `act` claims, current actor first.
fn actors(claims: &Claims<'_>, max_depth: u8) -> Result<SmallVec<[Actor; 1]>, Rejection> {
    let mut actors = SmallVec::new();
    let mut next = claims.act.as_ref();
    while let Some(act) = next {
        if max_depth == 0 {
            return Err(CredentialReason::Typ.because("the token has `act`, and the issuer may not delegate"));
        }
        if actors.len() >= usize::from(max_depth.min(MAX_DELEGATION_DEPTH)) {
            return Err(CredentialReason::Malformed.because("more actors are nested in `act` than the issuer may name"));
        }
        let subject = act.get("sub").and_then(Value::as_str).filter(|sub| !sub.is_empty());
        let Some(subject) = subject else {
            return Err(CredentialReason::Malformed.because("an actor in `act` has no `sub`"));
        };
        let mut about = act.clone();
        let nested = about.as_object_mut().and_then(|members| members.remove("act"));
        if nested.is_some_and(|nested| !nested.is_object()) {
            return Err(CredentialReason::Malformed.because("`act` is not a JSON object of distinct members"));
        }
        actors.push(Actor { subject: Arc::from(subject), claims: about });
        next = act.get("act");
    }
    may_act(claims, actors.first())?;
    Ok(actors)
}

/// Whoever acts must be who may (RFC 8693, section 4.4).
fn may_act(claims: &Claims<'_>, actor: Option<&Actor>) -> Result<(), Rejection> {
    let (Some(may_act), Some(actor)) = (&claims.may_act, actor) else { return Ok(()) };
    let allowed = ["sub", "iss", "client_id"];
    let named = allowed.iter().filter(|name| may_act.get(**name).is_some()).count();
    let agrees = allowed.iter().all(|name| may_act.get(*name).is_none_or(|who| actor.claims.get(*name) == Some(who)));
    if named == 0 || !agrees {
        return Err(CredentialReason::Subject.because("`may_act` does not allow the actor in `act`"));
    }
    Ok(())
}
