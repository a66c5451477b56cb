//! What was decided, and the proof of it.
//!
//! Pure. INVARIANT: a [`Permit`] exists only inside a [`Decision`] whose reason is an allow, and only this crate's
//! engine makes one. Doors forward a request only with a `Permit` in hand.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use super::mcp::McpCall;
use super::proof::Challenge;
use super::question::no_policies;
use super::reason::Reason;
use crate::object::{GrantId, GrantTerms};
use crate::wire::Position;

/// Proof that the engine allowed a request. Nothing else can make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit(());

/// The answer to one request.
#[derive(Debug, Clone)]
pub struct Decision {
    /// Unique id, time-ordered.
    pub id: DecisionId,
    /// Why.
    pub reason: Reason,
    /// Present exactly when `reason` is an allow.
    permit: Option<Permit>,
    /// The SPIFFE ID of the workload that the credential resolved to; absent when authentication failed.
    pub workload: Option<Arc<str>>,
    /// The subject as the credential names it, which is the workload's SPIFFE ID unless the claims were mapped to it.
    pub subject: Option<Arc<str>>,
    /// The SPIFFE ID of the workload that acts for the subject, when the credential was delegated.
    pub actor: Option<Arc<str>>,
    /// The SPIFFE ID of the application that asked by itself, when nobody's request was to be forwarded.
    pub asked_by: Option<Arc<str>>,
    /// Who acted before the actor, latest first, as the credential names them. For records only.
    pub earlier_actors: Option<Arc<[Arc<str>]>>,
    /// The grant that the decision rests on, or that it tells of.
    pub grant: Option<GrantId>,
    /// `service/route`, when the request matched one.
    pub resource: Option<Arc<str>>,
    /// The action, when the request matched a route.
    pub action: Option<Arc<str>>,
    /// Ids of the policies that decided.
    pub policies: Arc<[Box<str>]>,
    /// The `jti` of the token, when it has one.
    pub token_id: Option<Arc<str>>,
    /// The serial number of the client's certificate, when one counted.
    pub certificate_serial: Option<Arc<str>>,
    /// What to ask for, on `entitlement.*`.
    pub grant_request: Option<Arc<GrantHint>>,
    /// The state the decision was made on; absent before the first sync.
    pub position: Option<Position>,
    /// How long ago that state was confirmed current.
    pub behind_ms: u64,
    /// Whether the decision cache answered.
    pub cached: bool,
    /// More about the reason, for records and explanations; holds no token and no header value.
    pub detail: Option<Arc<str>>,
    /// What a denied client is asked to bring.
    pub challenge: Challenge,
    /// A nonce for the client's next DPoP proof, on an allow as on a denial.
    pub dpop_nonce: Option<String>,
    /// The grant of which a use is on its way: whoever can wait for it may ask again then, with [`decide_again`].
    ///
    /// [`decide_again`]: super::decide_again
    pub awaits: Option<GrantId>,
    /// On a denial: a body that was not there would have told more. Whoever can read it may ask again with it.
    pub needs_body: Option<NeedsBody>,
    /// Whether the credential is to be taken out of the request before it is forwarded: the headers of
    /// [`is_credential_header`](super::is_credential_header).
    pub removes_token: bool,
    /// What it is about, on a route that speaks the Model Context Protocol.
    pub mcp: Option<Box<McpCall>>,
}

/// A denial that rests on a body that was not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeedsBody {
    /// Whether this decision has used a proof of possession up: then [`decide_again`](super::decide_again) asks for no other.
    pub proof_is_used: bool,
}

/// A grant request that would turn the denial into an allow once approved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantHint {
    /// For whom.
    pub workload: Arc<str>,
    /// `service/route`.
    pub resource: Arc<str>,
    /// Action names.
    pub actions: Vec<Arc<str>>,
    /// What may be asked for at most.
    pub terms: GrantTerms,
}

/// A decision's id: UUID version 7.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecisionId(pub Uuid);

/// Everything of a decision but its permit, which [`Decision::new`] derives from the reason.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    pub(super) id: DecisionId,
    pub(super) reason: Reason,
    pub(super) workload: Option<Arc<str>>,
    pub(super) subject: Option<Arc<str>>,
    pub(super) actor: Option<Arc<str>>,
    pub(super) asked_by: Option<Arc<str>>,
    pub(super) earlier_actors: Option<Arc<[Arc<str>]>>,
    pub(super) grant: Option<GrantId>,
    pub(super) resource: Option<Arc<str>>,
    pub(super) action: Option<Arc<str>>,
    pub(super) policies: Arc<[Box<str>]>,
    pub(super) token_id: Option<Arc<str>>,
    pub(super) certificate_serial: Option<Arc<str>>,
    pub(super) grant_request: Option<Arc<GrantHint>>,
    pub(super) position: Option<Position>,
    pub(super) behind_ms: u64,
    pub(super) cached: bool,
    pub(super) detail: Option<Arc<str>>,
    pub(super) challenge: Challenge,
    pub(super) dpop_nonce: Option<String>,
    pub(super) awaits: Option<GrantId>,
    pub(super) needs_body: Option<NeedsBody>,
    /// Whether a proof of possession has been used up so far.
    pub(super) proof_is_used: bool,
    pub(super) removes_token: bool,
    pub(super) mcp: Option<Box<McpCall>>,
}

// === impl Decision ===

impl Decision {
    /// Only the engine calls this.
    pub(super) fn new(p: Parts) -> Self {
        Self {
            id: p.id,
            reason: p.reason,
            permit: p.reason.is_allow().then_some(Permit(())),
            workload: p.workload,
            subject: p.subject,
            actor: p.actor,
            asked_by: p.asked_by,
            earlier_actors: p.earlier_actors,
            grant: p.grant,
            resource: p.resource,
            action: p.action,
            policies: p.policies,
            token_id: p.token_id,
            certificate_serial: p.certificate_serial,
            grant_request: p.grant_request,
            position: p.position,
            behind_ms: p.behind_ms,
            cached: p.cached,
            detail: p.detail,
            challenge: p.challenge,
            dpop_nonce: p.dpop_nonce,
            awaits: p.awaits,
            needs_body: p.needs_body,
            removes_token: p.removes_token,
            mcp: p.mcp,
        }
    }

    /// A denial that no engine was asked for: overload, a panic, a request the door could not read.
    pub fn refuse(id: DecisionId, reason: Reason, detail: &str) -> Self {
        let reason = if reason.is_allow() { Reason::SystemInternal } else { reason };
        Self::new(Parts { reason, detail: Some(Arc::from(detail)), ..Parts::undecided(id) })
    }

    /// A decision for tests of what happens after one, an allow included.
    #[cfg(any(test, feature = "testing"))]
    pub fn for_test(reason: Reason, id: DecisionId) -> Self {
        let workload: Arc<str> = Arc::from("spiffe://td/w");
        Self::new(Parts {
            id,
            reason,
            workload: Some(workload.clone()),
            subject: Some(workload),
            actor: None,
            asked_by: None,
            earlier_actors: None,
            grant: None,
            resource: Some(Arc::from("payments/refunds")),
            action: Some(Arc::from("write")),
            policies: Arc::from([]),
            token_id: None,
            certificate_serial: None,
            grant_request: None,
            position: None,
            behind_ms: 0,
            cached: false,
            detail: None,
            challenge: Challenge::default(),
            dpop_nonce: None,
            awaits: None,
            needs_body: None,
            proof_is_used: false,
            removes_token: false,
            mcp: None,
        })
    }

    /// The permit, if the request is allowed.
    pub const fn permit(&self) -> Option<Permit> {
        self.permit
    }

    /// Whether the caller was authenticated, and so may learn the full reason.
    pub const fn is_authenticated(&self) -> bool {
        self.workload.is_some()
    }
}

// === impl Parts ===

impl Parts {
    /// Of a decision of which nothing is known yet: a denial.
    pub(super) fn undecided(id: DecisionId) -> Self {
        Self {
            id,
            reason: Reason::SystemInternal,
            workload: None,
            subject: None,
            actor: None,
            asked_by: None,
            earlier_actors: None,
            grant: None,
            resource: None,
            action: None,
            policies: no_policies(),
            token_id: None,
            certificate_serial: None,
            grant_request: None,
            position: None,
            behind_ms: 0,
            cached: false,
            detail: None,
            challenge: Challenge::default(),
            dpop_nonce: None,
            awaits: None,
            needs_body: None,
            proof_is_used: false,
            removes_token: false,
            mcp: None,
        }
    }
}

// === impl DecisionId ===

impl DecisionId {
    /// A new id at `now`.
    pub fn new(now: crate::clock::Timestamp) -> Self {
        let random: [u8; 10] = rand::random();
        Self(uuid::Builder::from_unix_timestamp_millis(now.as_millis(), &random).into_uuid())
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
