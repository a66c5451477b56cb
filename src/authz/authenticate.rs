//! Authentication: the credentials of a request, as the route demands them, become a caller or a refusal.
//!
//! Pure. Second step of a decision, after intake. A route that wants tokens does not look at certificates at all. A
//! caller is what the credentials prove and nothing more: whether the workload is registered, revoked or allowed anything
//! is for the steps that follow. INVARIANT: what a memo gives back counts only for the issuers and mappings it was made
//! with, and its times are checked again. Fails closed.
//! Long because tokens, certificates and what they must agree on are read side by side.

use std::sync::Arc;

use serde_json::Value;

use super::engine::{Deferred, Denied, Halt, Inputs, Memo, deny};
use super::intake::{Authorization, Intake, Scheme};
use super::mapping::Unmapped;
use super::owners::named_actor;
use super::peer::{KnownCertificate, presented};
use super::ready::Registered;
use super::reason::Reason;
use super::request::Peer;
use super::revocations::TokenMarks;
use super::snapshot::Snapshot;
use super::transaction::transaction_of;
use crate::clock::{Now, Timestamp};
use crate::credential::{self, Purpose, Rejection, Tie, VerifiedToken, X509Svid};
use crate::grant::WorkloadKey;
use crate::object::Authentication;
use crate::policy::TransactionFacts;

/// A verified token, with what follows from it and the mappings alone.
#[derive(Debug)]
pub struct KnownToken {
    /// Without its claims, which only resolving needs.
    token: VerifiedToken,
    /// What it was verified as.
    purpose: Purpose,
    /// What policy may know of the transaction that it tells of.
    transaction: Option<TransactionFacts>,
    /// SHA-256 of the whole token.
    digest: [u8; 32],
    workload: Result<Party, &'static str>,
    /// Who acts, if somebody else does.
    actor: Option<Result<Party, &'static str>>,
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
pub(super) type Named<'a> = Result<&'a Party, &'static str>;

/// Who is asking, as far as the credentials prove it: by a token, a certificate, or both.
#[derive(Debug)]
pub(super) struct Caller {
    by: By,
    /// How the token came, if one did.
    scheme: Option<Scheme>,
}

/// How a token came, for its proof of possession.
#[derive(Debug, Clone, Copy)]
pub(super) struct Presented<'a> {
    pub(super) scheme: Scheme,
    /// SHA-256 of the whole token.
    pub(super) digest: &'a [u8; 32],
}

#[derive(Debug)]
enum By {
    Token(Arc<KnownToken>),
    Certificate(Certificate),
    Both(Arc<KnownToken>, Certificate),
    /// No credential: an application that may says who it is.
    Asserted(Party),
}

/// A certificate that counts.
#[derive(Debug)]
struct Certificate {
    known: Arc<KnownCertificate>,
    issuer: Arc<str>,
    forwarded: bool,
}

/// Authenticates by what the route demands. Without a route everything will be denied, but not before somebody has shown
/// a credential: a token or, without one, a certificate.
pub(super) fn authenticate(
    peer: Peer<'_>,
    intake: &Intake<'_>,
    route: Option<Authentication>,
    inputs: Inputs<'_>,
    snapshot: &Snapshot,
    memo: &impl Memo,
) -> Result<Caller, Halt> {
    let token = token_of(intake, snapshot)?;
    let scheme = token.map(|token| token.scheme);
    let reads_certificate = match route {
        Some(Authentication::Token) => false,
        Some(Authentication::Certificate | Authentication::Any | Authentication::Both) => true,
        None => token.is_none(),
    };
    // The certificate costs no signature, so it is looked at first: who has none costs little.
    let certificate = match reads_certificate {
        true => Certificate::of(peer, intake, inputs, snapshot, memo)?,
        false => None,
    };
    match (route, token, &certificate) {
        (Some(Authentication::Certificate | Authentication::Both), _, None) => {
            return deny(Reason::CredentialMissing, "the route demands a client certificate");
        }
        (Some(Authentication::Both), None, Some(_)) => {
            return deny(Reason::CredentialMissing, "the route demands a token beside the certificate");
        }
        _ => {}
    }
    let verify = |token: &str| verified(token, Purpose::Credential, snapshot, inputs.now, memo);
    let token = token.map(|token| verify(token.token)).transpose()?;
    let by = match (token, certificate) {
        (Some(token), Some(certificate)) => {
            token.agrees_with(&certificate)?;
            By::Both(token, certificate)
        }
        (Some(token), None) => By::Token(token),
        (None, Some(certificate)) => By::Certificate(certificate),
        (None, None) => return Err((Reason::CredentialMissing, None).into()),
    };
    Ok(Caller { by, scheme })
}

/// The token of the request. A workload identity token has a header of its own, which is looked at only where an issuer
/// makes such tokens; the scheme is then that of its proof.
pub(super) fn token_of<'a>(intake: &Intake<'a>, snapshot: &Snapshot) -> Result<Option<Authorization<'a>>, Denied> {
    let wit = intake.beside.wit.filter(|_| snapshot.issuers.makes_wits());
    match (intake.authorization, wit) {
        (authorization, None) => Ok(authorization.filter(|a| a.scheme != Scheme::Wpt)),
        (None | Some(Authorization { scheme: Scheme::Wpt, .. }), Some(wit)) => {
            let token = std::str::from_utf8(wit).ok().map(|token| Authorization { scheme: Scheme::Wpt, token });
            token.map_or_else(|| deny(Reason::CredentialMalformed, "the token is not text"), |token| Ok(Some(token)))
        }
        (Some(_), Some(_)) => deny(Reason::InputHeaderMismatch, "a workload identity token beside another token"),
    }
}

/// The verified token, from the memo when it is still good.
pub(super) fn verified(
    token: &str,
    purpose: Purpose,
    snapshot: &Snapshot,
    now: Now,
    memo: &impl Memo,
) -> Result<Arc<KnownToken>, Halt> {
    let digest = credential::token_digest(token);
    let current = |k: &KnownToken| {
        // INVARIANT: a transaction token that was verified as one does not pass for a credential, nor the other way.
        k.purpose == purpose
            && k.global_version == snapshot.global_version
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
        if admitted { Ok(()) } else { Err(Halt::Deferred(Deferred::Token)) }
    };
    let verified = credential::verify_if(token, purpose, &snapshot.issuers, now.wall, admit).inspect_err(|halt| {
        if admitted && matches!(halt, Halt::Denied((Reason::CredentialSignature, _))) {
            memo.keep_forged(digest, snapshot.global_version);
        }
    })?;
    let known = Arc::new(KnownToken::new(verified, purpose, digest, snapshot));
    memo.keep_token(digest, &known);
    Ok(known)
}

/// The registered workload of this name.
pub(super) fn registered<'a>(
    named: Named<'_>,
    snapshot: &'a Snapshot,
) -> Result<(&'a Registered, WorkloadKey), Denied> {
    match named {
        Ok(party) => match snapshot.workload(&party.key, &party.id) {
            Some(workload) => Ok((workload, party.key)),
            None => deny(Reason::CredentialSubject, "the subject is not a registered workload"),
        },
        Err(unresolved) => deny(Reason::CredentialSubject, unresolved),
    }
}

/// Whether both of them let `actor` act for `workload`. What an issuer says of the two is one thing; whom they are
/// registered to act for and with is another, and both count.
pub(super) fn agree(workload: &Registered, actor: &Registered) -> Result<(), Denied> {
    if workload.document().may_be_acted_for_by(actor.document()) {
        return Ok(());
    }
    deny(Reason::CredentialSubject, "the workload that acts may not act for this one")
}

// === impl Halt ===

impl From<Rejection> for Halt {
    fn from(rejection: Rejection) -> Self {
        Self::Denied((Reason::from(rejection.reason), Some(Arc::from(rejection.detail))))
    }
}

// === impl Caller ===

impl Caller {
    /// Somebody who shows nothing, by the word of an application that may say so.
    pub(super) fn asserted(id: &str) -> Self {
        Self { by: By::Asserted(Party::of(id)), scheme: None }
    }

    /// Somebody whose token an application has been given.
    pub(super) fn of_token(
        token: &str,
        inputs: Inputs<'_>,
        snapshot: &Snapshot,
        memo: &impl Memo,
    ) -> Result<Self, Halt> {
        let known = verified(token, Purpose::Credential, snapshot, inputs.now, memo)?;
        Ok(Self { by: By::Token(known), scheme: Some(Scheme::Bearer) })
    }

    /// The token that counted, if one did: for what binds it to a key.
    pub(super) fn token(&self) -> Option<&VerifiedToken> {
        self.known_token().map(|known| &known.token)
    }

    fn known_token(&self) -> Option<&KnownToken> {
        match &self.by {
            By::Token(token) | By::Both(token, _) => Some(token),
            By::Certificate(_) | By::Asserted(_) => None,
        }
    }

    fn certificate(&self) -> Option<&Certificate> {
        match &self.by {
            By::Certificate(certificate) | By::Both(_, certificate) => Some(certificate),
            By::Token(_) | By::Asserted(_) => None,
        }
    }

    /// How that token came.
    pub(super) fn presented(&self) -> Option<Presented<'_>> {
        let digest = &self.known_token()?.digest;
        self.scheme.map(|scheme| Presented { scheme, digest })
    }

    /// Whom the credentials name.
    pub(super) fn workload(&self) -> Named<'_> {
        match &self.by {
            By::Token(token) | By::Both(token, _) => token.workload.as_ref().map_err(|why| *why),
            By::Certificate(certificate) => Ok(&certificate.known.party),
            By::Asserted(party) => Ok(party),
        }
    }

    /// The subject as the credential spells it.
    pub(super) fn subject(&self) -> &Arc<str> {
        match &self.by {
            By::Token(token) | By::Both(token, _) => &token.token.subject,
            By::Certificate(certificate) => &certificate.known.party.id,
            By::Asserted(party) => &party.id,
        }
    }

    /// Who acts for the workload, if somebody else does.
    pub(super) fn actor(&self) -> Option<Named<'_>> {
        self.known_token()?.actor.as_ref().map(|actor| actor.as_ref().map_err(|why| *why))
    }

    /// Who acted before that, latest first.
    pub(super) fn earlier_actors(&self) -> Option<&Arc<[Arc<str>]>> {
        self.known_token()?.earlier_actors.as_ref()
    }

    /// What the token is tied to, if a control plane issued it.
    pub(super) fn tie(&self) -> Option<&Tie> {
        self.token()?.tie.as_deref()
    }

    /// The token's id.
    pub(super) fn token_id(&self) -> Option<&Arc<str>> {
        self.token()?.jti.as_ref()
    }

    /// The serial number of the certificate, if one counted.
    pub(super) fn certificate_serial(&self) -> Option<&Arc<str>> {
        self.certificate().map(|certificate| &certificate.known.svid.serial)
    }

    /// When the first of the credentials ends.
    pub(super) fn until(&self) -> Timestamp {
        let token = self.token().map_or(Timestamp::MAX, |token| token.expires_at);
        self.certificate().map_or(token, |certificate| token.min(certificate.known.svid.not_after))
    }

    /// Why a credential does not count any more, if so.
    pub(super) fn revoked(&self, snapshot: &Snapshot) -> Option<Reason> {
        let revocations = &snapshot.revocations;
        if let By::Asserted(party) = &self.by {
            return party.revoked(snapshot);
        }
        let token = self.known_token().and_then(|known| revocations.of_token(&known.marks, known.token.issued_at));
        token.or_else(|| {
            let Certificate { known, issuer, .. } = self.certificate()?;
            revocations.of_certificate(&known.party.id, &known.svid.serial, issuer)
        })
    }

    /// For explanations.
    pub(super) fn describe(&self) -> String {
        let token = self.token().map(|t| {
            format!("token of `{}` from issuer `{}`, key `{}`, until {}", t.subject, t.issuer, t.kid, t.expires_at)
        });
        let certificate = self.certificate().map(|Certificate { known, issuer, forwarded }| {
            let X509Svid { id, serial, not_after, .. } = &known.svid;
            let by = if *forwarded { ", forwarded by a listed proxy" } else { "" };
            format!("certificate of `{id}` from issuer `{issuer}`, serial `{serial}`, until {not_after}{by}")
        });
        let asserted = match &self.by {
            By::Asserted(party) => Some(format!("`{}`, by the word of the application that asks", party.id)),
            By::Token(_) | By::Certificate(_) | By::Both(..) => None,
        };
        [token, certificate, asserted].into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

// === impl Certificate ===

impl Certificate {
    /// The client's, if it has one.
    fn of(
        peer: Peer<'_>,
        intake: &Intake<'_>,
        inputs: Inputs<'_>,
        snapshot: &Snapshot,
        memo: &impl Memo,
    ) -> Result<Option<Self>, Denied> {
        let now = inputs.now;
        let Some(presented) = presented(peer, intake, inputs.settings, snapshot, now, memo)? else {
            return Ok(None);
        };
        let (known, issuer) = presented.verify(snapshot, now, memo)?;
        Ok(Some(Self { known, issuer, forwarded: presented.forwarded }))
    }
}

// === impl KnownToken ===

impl KnownToken {
    pub(super) fn new(mut token: VerifiedToken, purpose: Purpose, digest: [u8; 32], snapshot: &Snapshot) -> Self {
        let claims = token.claims.take();
        let transaction = claims.as_ref().filter(|_| purpose == Purpose::Transaction);
        let transaction = transaction.and_then(|claims| transaction_of(&token, claims));
        let workload = match (&token.workload, &claims) {
            (Some(id), _) => Ok(Party::of(id.as_str())),
            (None, Some(claims)) => Self::mapped(&token, claims, snapshot),
            (None, None) => Err("the token names no workload"),
        };
        let actor = token.actors.first().map(|actor| match named_actor(&token, &actor.subject) {
            Some(named) => named.map(|id| Party::of(id.as_str())),
            None => Self::mapped(&token, &actor.claims, snapshot),
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
            purpose,
            transaction,
            digest,
        }
    }

    /// The registered workload, and who acts for it.
    pub(super) fn parties(&self, snapshot: &Snapshot) -> Result<(Arc<str>, Option<Arc<str>>), Denied> {
        let known = |party: &Result<Party, &'static str>| {
            registered(party.as_ref().map_err(|why| *why), snapshot).map(|(workload, _)| workload)
        };
        let workload = known(&self.workload)?;
        let Some(actor) = self.actor.as_ref().map(known).transpose()? else {
            return Ok((Arc::clone(&workload.id), None));
        };
        agree(workload, actor)?;
        Ok((Arc::clone(&workload.id), Some(Arc::clone(&actor.id))))
    }

    /// What it tells of a transaction. INVARIANT: one that has been revoked is a denial and no absence: a policy may
    /// forbid by what is there, and a revocation never turns a deny into an allow.
    pub(super) fn transaction(&self, snapshot: &Snapshot) -> Result<Option<&TransactionFacts>, Denied> {
        match snapshot.revocations.of_token(&self.marks, self.token.issued_at) {
            None => Ok(self.transaction.as_ref()),
            Some(reason) => deny(reason, "the transaction token, or who made it, has been revoked"),
        }
    }

    /// Whoever holds the connection presents the token: the actor, if there is one.
    fn agrees_with(&self, certificate: &Certificate) -> Result<(), Denied> {
        match self.actor.as_ref().unwrap_or(&self.workload) {
            Ok(party) if party.id == certificate.known.party.id => Ok(()),
            Ok(_) => deny(Reason::CredentialSubject, "token and certificate are not of the same workload"),
            Err(unresolved) => deny(Reason::CredentialSubject, unresolved),
        }
    }

    fn mapped(token: &VerifiedToken, claims: &Value, snapshot: &Snapshot) -> Result<Party, &'static str> {
        let found = snapshot.mappings.resolve(&token.issuer, token.kind, claims, &snapshot.workloads, |w| w.document());
        found.map(|workload| Party::of(&workload.id)).map_err(Unmapped::detail)
    }
}

// === impl Party ===

impl Party {
    /// Why a workload does not count any more that shows no credential, if so. Its trust domain may be revoked: then no
    /// word for it counts either. Mapped workloads may be of a domain that has no issuer.
    fn revoked(&self, snapshot: &Snapshot) -> Option<Reason> {
        let revocations = &snapshot.revocations;
        let domain = self.id.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
        let issuer_revoked = || {
            let (issuer, vouches) = snapshot.issuers.of_trust_domain(domain?)?;
            (!vouches || revocations.is_issuer_revoked(issuer)).then_some(Reason::RevokedIssuer)
        };
        revocations.of_workload(&self.id).or_else(issuer_revoked)
    }

    pub(super) fn of(id: &str) -> Self {
        Self { id: Arc::from(id), key: WorkloadKey::of(id) }
    }
}
