//! Authentication: the credentials of a request become a caller, or a refusal.
//!
//! Pure. Second step of a decision, after intake. A caller is what the credentials prove and nothing more: whether the
//! workload is registered, revoked or allowed anything is for the steps that follow. INVARIANT: what a memo gives back
//! counts only for the issuers and mappings it was made with, and its times are checked again. Fails closed.

use std::sync::Arc;

use serde_json::Value;

use super::engine::{Denied, Halt, Memo, deny};
use super::intake::{Authorization, Intake, Scheme};
use super::mapping::Unmapped;
use super::reason::Reason;
use super::revocations::TokenMarks;
use super::snapshot::{Registered, Snapshot};
use crate::clock::{Now, Timestamp};
use crate::credential::{self, Rejection, SpiffeId, VerifiedToken};
use crate::grant::WorkloadKey;
use crate::object::{GrantId, IssuerKind};

/// A verified token, with what follows from it and the mappings alone.
#[derive(Debug)]
pub struct KnownToken {
    /// Without its claims, which only resolving needs.
    token: VerifiedToken,
    workload: Named,
    /// Who acts, if somebody else does.
    actor: Option<Named>,
    earlier_actors: Option<Arc<[Arc<str>]>>,
    marks: TokenMarks,
    /// The version of the issuers it was verified against, read before verification.
    global_version: u64,
    /// The version of the mappings it was resolved by, when it was.
    mappings_version: Option<u64>,
}

/// A workload by name, registered or not.
#[derive(Debug, Clone)]
pub(super) struct Party {
    pub(super) id: Arc<str>,
    pub(super) key: WorkloadKey,
}

/// The workload that a credential names, or why it names none.
pub(super) type Named = Result<Party, &'static str>;

/// Who is asking, as far as the credentials prove it.
#[derive(Debug)]
pub(super) struct Caller {
    token: Arc<KnownToken>,
}

/// Authenticates.
pub(super) fn authenticate(
    intake: &Intake<'_>,
    snapshot: &Snapshot,
    now: Now,
    memo: &impl Memo,
) -> Result<Caller, Halt> {
    let Some(Authorization { scheme: Scheme::Bearer, token }) = intake.authorization else {
        return Err((Reason::CredentialMissing, None).into());
    };
    Ok(Caller { token: verified(token, snapshot, now, memo)? })
}

/// The verified token, from the memo when it is still good.
fn verified(token: &str, snapshot: &Snapshot, now: Now, memo: &impl Memo) -> Result<Arc<KnownToken>, Halt> {
    let digest = credential::token_digest(token);
    let current = |k: &KnownToken| {
        k.global_version == snapshot.global_version
            && k.mappings_version.is_none_or(|version| version == snapshot.mappings.version())
    };
    if let Some(known) = memo.token(&digest, current) {
        known.token.check_time(now.wall)?;
        return Ok(known);
    }
    // A signature that was bad stays bad until the issuers change; to send it again shall cost no cryptography.
    let mut admitted = false;
    let admit = || {
        if memo.is_forged(&digest, snapshot.global_version) {
            return deny(Reason::CredentialSignature, "the signature does not verify");
        }
        admitted = memo.admits_verification();
        if admitted { Ok(()) } else { Err(Halt::Deferred) }
    };
    let verified = credential::verify_if(token, &snapshot.issuers, now.wall, admit).inspect_err(|halt| {
        if admitted && matches!(halt, Halt::Denied((Reason::CredentialSignature, _))) {
            memo.keep_forged(digest, snapshot.global_version);
        }
    })?;
    let known = Arc::new(KnownToken::new(verified, snapshot));
    memo.keep_token(digest, &known);
    Ok(known)
}

/// The registered workload of this name.
pub(super) fn registered<'a>(named: &Named, snapshot: &'a Snapshot) -> Result<(&'a Registered, WorkloadKey), Denied> {
    match named {
        Ok(party) => match snapshot.workload(&party.key, &party.id) {
            Some(workload) => Ok((workload, party.key)),
            None => deny(Reason::CredentialSubject, "the subject is not a registered workload"),
        },
        Err(unresolved) => deny(Reason::CredentialSubject, unresolved),
    }
}

// === impl Halt ===

impl From<Rejection> for Halt {
    fn from(rejection: Rejection) -> Self {
        Self::Denied((Reason::from(rejection.reason), Some(Arc::from(rejection.detail))))
    }
}

// === impl Caller ===

impl Caller {
    /// The token that counted, if one did: for what binds it to a key.
    pub(super) fn token(&self) -> Option<&VerifiedToken> {
        Some(&self.token.token)
    }

    /// Whom the credentials name.
    pub(super) fn workload(&self) -> &Named {
        &self.token.workload
    }

    /// The subject as the credential spells it.
    pub(super) fn subject(&self) -> &Arc<str> {
        &self.token.token.subject
    }

    /// Who acts for the workload, if somebody else does.
    pub(super) fn actor(&self) -> Option<&Named> {
        self.token.actor.as_ref()
    }

    /// Who acted before that, latest first.
    pub(super) fn earlier_actors(&self) -> Option<&Arc<[Arc<str>]>> {
        self.token.earlier_actors.as_ref()
    }

    /// The grant that the token is tied to.
    pub(super) fn grant(&self) -> Option<GrantId> {
        self.token.token.grant
    }

    /// The token's id.
    pub(super) fn token_id(&self) -> Option<&Arc<str>> {
        self.token.token.jti.as_ref()
    }

    /// When the first of the credentials ends.
    pub(super) fn until(&self) -> Timestamp {
        self.token.token.expires_at
    }

    /// Why a credential does not count any more, if so.
    pub(super) fn revoked(&self, snapshot: &Snapshot) -> Option<Reason> {
        snapshot.revocations.of_token(&self.token.marks, self.token.token.issued_at)
    }

    /// For explanations.
    pub(super) fn describe(&self) -> String {
        let t = &self.token.token;
        format!("token of `{}` from issuer `{}`, key `{}`, until {}", t.subject, t.issuer, t.kid, t.expires_at)
    }
}

// === impl KnownToken ===

impl KnownToken {
    fn new(mut token: VerifiedToken, snapshot: &Snapshot) -> Self {
        let claims = token.claims.take();
        let workload = match (&token.workload, &claims) {
            (Some(id), _) => Ok(Party::of(id.as_str())),
            (None, Some(claims)) => Self::mapped(&token, claims, snapshot),
            (None, None) => Err("the token names no workload"),
        };
        let actor = token.actors.first().map(|actor| match token.kind {
            IssuerKind::Portcullis | IssuerKind::Spiffe => match SpiffeId::parse(&actor.subject) {
                // A trust domain vouches for its own; the control plane that issued a token has seen both credentials.
                Ok(id) if token.kind == IssuerKind::Portcullis || token.is_in_trust_domain(&id) => {
                    Ok(Party::of(id.as_str()))
                }
                _ => Err("the actor in `act` is not a workload that the issuer vouches for"),
            },
            IssuerKind::Kubernetes | IssuerKind::Oidc | IssuerKind::Github => {
                Self::mapped(&token, &actor.claims, snapshot)
            }
        });
        let earlier: Arc<[Arc<str>]> = token.actors.iter().skip(1).map(|actor| Arc::clone(&actor.subject)).collect();
        Self {
            marks: TokenMarks::of(&token, workload.as_ref().ok().map(|party| &*party.id)),
            workload,
            actor,
            earlier_actors: (!earlier.is_empty()).then_some(earlier),
            global_version: snapshot.global_version,
            mappings_version: (!token.kind.names_workload()).then(|| snapshot.mappings.version()),
            token,
        }
    }

    fn mapped(token: &VerifiedToken, claims: &Value, snapshot: &Snapshot) -> Named {
        let found = snapshot.mappings.resolve(&token.issuer, token.kind, claims, &snapshot.workloads);
        found.map(|workload| Party::of(&workload.id)).map_err(Unmapped::detail)
    }
}

// === impl Party ===

impl Party {
    fn of(id: &str) -> Self {
        Self { id: Arc::from(id), key: WorkloadKey::of(id) }
    }
}
