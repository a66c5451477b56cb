//! The engine: a request, a snapshot and a time become a decision.
//!
//! Pure; no clock, no I/O, no runtime. The order is always: normalise, refuse ambiguity, authenticate, proof of
//! possession, revocation, freshness, resolve workload, grant, Cedar, use limit. Default deny; any Cedar error denies.
//! Policy is asked without the grant first and with it second, so that a grant can only ever add: adding a forbid, removing a grant or adding a
//! revocation never turns a deny into an allow. A [`Memo`] may answer for the two expensive steps, and may not change
//! any answer.
//! Long because the order of a decision is read here from top to bottom, in one place.

use std::sync::Arc;
use std::time::Duration;

use super::authenticate::{Caller, KnownToken, agree, authenticate, registered};
use super::case::Case;
use super::decision::{Decision, DecisionId, NeedsBody, Parts};
use super::explain::{Step, Trace};
use super::freshness::Lease;
use super::intake::{Intake, Refusal, intake};
use super::mcp::{self, MAX_LISTED_TOOLS, McpCall};
use super::peer::{self, KnownCertificate, Settings};
use super::proof::{self, Proving};
use super::question::{KnownAnswer, Question};
use super::ready::Registered;
use super::reason::Reason;
use super::request::{Door, Request};
use super::snapshot::Snapshot;
use super::transaction::transaction;
use crate::clock::{Now, Timestamp};
use crate::grant::purse::Purse;
use crate::grant::{Circumstances, WorkloadKey};
use crate::object::{Freshness, GrantId};

/// What the engine may remember between requests. Everything it is given back is checked again against the snapshot
/// and the time, so a memo can be lossy but never wrong.
pub trait Memo {
    /// A token that was verified before, by the digest of the whole token, if it is still usable.
    fn token(&self, digest: &[u8; 32], usable: impl Fn(&KnownToken) -> bool) -> Option<Arc<KnownToken>>;
    /// Remembers a verified token.
    fn keep_token(&self, digest: [u8; 32], token: &Arc<KnownToken>);
    /// A certificate that was read before, by the digest of the whole certificate. Whose it is never changes; whether
    /// it counts is asked each time.
    fn certificate(&self, _digest: &[u8; 32]) -> Option<Arc<KnownCertificate>> {
        None
    }
    /// Remembers a certificate.
    fn keep_certificate(&self, _digest: [u8; 32], _certificate: &Arc<KnownCertificate>) {}
    /// An answer that was computed before, by the encoding of all its inputs, if it is still usable.
    fn answer(&self, key: &[u8], usable: impl Fn(&KnownAnswer) -> bool) -> Option<Arc<KnownAnswer>>;
    /// Remembers an answer.
    fn keep_answer(&self, key: &[u8], answer: &Arc<KnownAnswer>);

    /// Whether a public-key operation may run now. Asked before each of them; when not, nothing is decided:
    /// [`Deferred`].
    fn admits_verification(&self) -> bool {
        true
    }
    /// Whether the signature of this token, by the digest of the whole, was found bad under issuers of this version.
    fn is_forged(&self, _digest: &[u8; 32], _global_version: u64) -> bool {
        false
    }
    /// Remembers that it was.
    fn keep_forged(&self, _digest: [u8; 32], _global_version: u64) {}
}

/// No decision was made, because it takes a public-key operation and the caller did not admit one. No answer at all,
/// least of all an allow: whoever gets it decides again where there is time. It says what is to be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "nothing has been decided"]
pub enum Deferred {
    /// A token that nobody has vouched for yet: anybody can make one.
    Token,
    /// A proof of possession beside a token that is known to be good. INVARIANT: nobody gets here without one.
    Proof,
}

/// Another memo, which admits no public-key operation.
pub(super) struct Unverifying<'a, M>(pub(super) &'a M);

/// Remembers nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoMemo;

/// Everything that a decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The state; absent before the first sync.
    pub snapshot: Option<&'a Snapshot>,
    /// How long it may be relied on.
    pub lease: Option<Lease>,
    /// The time.
    pub now: Now,
    /// What is known of proofs of possession. Without it, no proof counts that could be replayed.
    pub proofs: Option<Proving<'a>>,
    /// What the owner of the enforcement point says.
    pub settings: &'a Settings,
    /// The uses of grants that may be spent. Without it, no grant counts whose uses are counted.
    pub uses: Option<&'a Purse>,
}

/// Decides. Verifies what has to be verified; a memo that does not admit it gets a denial.
pub fn decide(request: &Request<'_>, inputs: Inputs<'_>, memo: &impl Memo) -> Decision {
    run(request, inputs, memo, (Mode::of(request), None), &mut Trace::off())
        .unwrap_or_else(|_: Deferred| undecided(inputs))
}

/// Decides, unless that takes a public-key operation: for a thread that others wait for. [`decide`] then gives the
/// same answer that this would have given.
pub fn decide_unless_costly(request: &Request<'_>, inputs: Inputs<'_>, memo: &impl Memo) -> Result<Decision, Deferred> {
    run(request, inputs, &Unverifying(memo), (Mode::of(request), None), &mut Trace::off())
}

/// Which of these tools the sender of a request may use, all by one state: what of the answer to its `tools/list` it gets to
/// see. `request` is that request, or the one for a stream on which lists come; allowed already, which has used its proof of
/// possession up. Each tool is asked about as what calls one, a `POST`. Nothing is spent, and what is not answered is no.
pub fn allowed_tools(request: &Request<'_>, inputs: Inputs<'_>, memo: &impl Memo, tools: &[&str]) -> Vec<bool> {
    let tools = tools.get(..MAX_LISTED_TOOLS).unwrap_or(tools);
    let call;
    let request = if request.method == "POST" {
        request
    } else {
        call = Request { method: "POST", ..request.clone() };
        &call
    };
    let mut listing = Listing { tools, allowed: Vec::with_capacity(tools.len()) };
    let _no_decision = run(request, inputs, memo, (Mode::Lists, Some(&mut listing)), &mut Trace::off());
    listing.allowed
}

/// Tools, and which of them may be used.
#[derive(Debug)]
struct Listing<'a> {
    tools: &'a [&'a str],
    allowed: Vec<bool>,
}

/// Decides again on a request that found no use of its grant. That decision has verified its proof of possession and used
/// it up; neither is done again. Should something else take a public-key operation by now, it goes to whoever admits one.
pub fn decide_again(request: &Request<'_>, inputs: Inputs<'_>, memo: &impl Memo) -> Result<Decision, Deferred> {
    run(request, inputs, &Unverifying(memo), (Mode::Again, None), &mut Trace::off())
}

/// The same, and verifies what has to be verified.
pub fn decide_again_deferred(request: &Request<'_>, inputs: Inputs<'_>, memo: &impl Memo) -> Decision {
    run(request, inputs, memo, (Mode::Again, None), &mut Trace::off()).unwrap_or_else(|_: Deferred| undecided(inputs))
}

/// Decides on a request that was let through before and is still being answered. Its proof of possession was shown then, and
/// its use of a grant spent: should that have been the last one of the grant that it was let through by, the rest of that grant
/// still counts for it, and for nothing else.
pub fn decide_open(request: &Request<'_>, by: Option<GrantId>, inputs: Inputs<'_>, memo: &impl Memo) -> Decision {
    run(request, inputs, memo, (Mode::Open(by), None), &mut Trace::off())
        .unwrap_or_else(|_: Deferred| undecided(inputs))
}

/// Decides without any memo, and tells each step. Uses no proof up, and spends nothing.
pub fn explain(request: &Request<'_>, inputs: Inputs<'_>) -> (Decision, Vec<Step>) {
    let mut trace = Trace::on();
    let decision =
        run(request, inputs, &NoMemo, (Mode::Looks, None), &mut trace).unwrap_or_else(|_: Deferred| undecided(inputs));
    (decision, trace.into_steps())
}

/// What a decision may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// A proof of possession, and a use of a grant.
    Decides,
    /// Nothing: what only asks forwards nothing.
    Looks,
    /// A use of a grant. The proof was this very request's to use up, and it did.
    Again,
    /// Nothing, and what takes a use is not allowed: an application asks, and may ask as often as it wants.
    Asks,
    /// Nothing. The proof was this very request's to use up, and it did.
    Lists,
    /// Nothing, of a request that has been let through: its use is spent, and its proof, whose time may be over, was shown.
    Open(Option<GrantId>),
}

pub(super) fn undecided(inputs: Inputs<'_>) -> Decision {
    Decision::refuse(DecisionId::new(inputs.now.wall), Reason::SystemInternal, "verification was not admitted")
}

fn run(
    request: &Request<'_>,
    inputs: Inputs<'_>,
    memo: &impl Memo,
    (mode, listing): (Mode, Option<&mut Listing<'_>>),
    trace: &mut Trace,
) -> Result<Decision, Deferred> {
    let mut parts = Parts::undecided(DecisionId::new(inputs.now.wall));
    let (reason, detail) = match steps(request, inputs, memo, (mode, listing), trace, &mut parts) {
        Ok(reason) => (reason, parts.detail.take()),
        Err(Halt::Denied((reason, detail))) => (reason, detail),
        Err(Halt::Deferred(deferred)) => return Err(deferred),
    };
    parts.reason = reason;
    parts.detail = detail;
    trace.step("answer", || format!("{reason}: {}", reason.title()));
    Ok(Decision::new(parts))
}

pub(super) type Denied = (Reason, Option<Arc<str>>);

/// Why a decision goes no further: it is a denial, or it is none yet.
#[derive(Debug)]
pub(super) enum Halt {
    Denied(Denied),
    Deferred(Deferred),
}

pub(super) fn deny<T, E: From<Denied>>(reason: Reason, detail: &str) -> Result<T, E> {
    Err((reason, Some(Arc::from(detail))).into())
}

fn steps(
    request: &Request<'_>,
    inputs: Inputs<'_>,
    memo: &impl Memo,
    (mode, listing): (Mode, Option<&mut Listing<'_>>),
    trace: &mut Trace,
    parts: &mut Parts,
) -> Result<Reason, Halt> {
    let (Some(snapshot), Some(lease)) = (inputs.snapshot, inputs.lease) else {
        trace.step("freshness", || "no state yet".to_owned());
        return Err((Reason::SystemNotReady, None).into());
    };
    let now = inputs.now;
    let age = lease.age(now);
    parts.position = Some(snapshot.position());
    parts.behind_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);

    // Normalise, refuse ambiguity.
    let intake = intake(request).map_err(told)?;
    let Intake { path, host, min_revision, .. } = &intake;
    trace.step("normalise", || format!("{} {}", request.method, path.as_str()));

    // Authenticate. The route is looked up first, because it says which credentials count.
    let route = snapshot.routes.table.find(host, request.method, path);
    if let Some(route) = route {
        parts.removes_token = !route.passes_token;
        parts.mcp = route.mcp.as_ref().map(|terms| Box::new(McpCall::unread(terms)));
    }
    parts.challenge = proof::challenge(intake.authorization.map(|a| a.scheme), snapshot.issuers.demands_dpop());
    let caller = authenticate(request.peer, &intake, route.map(|r| r.authentication), inputs, snapshot, memo)?;
    if let (Some(tie), Some(route)) = (caller.tie(), route)
        && tie.service != route.service
    {
        return deny(Reason::CredentialAudience, "the token is for another service");
    }
    trace.step("authenticate", || caller.describe());

    // Proof of possession: never from a cache. It may be of a certificate that the route does not look at.
    let certificate = || {
        let presented = peer::presented(request.peer, &intake, inputs.settings, snapshot, now, memo)?;
        presented.map(|presented| presented.unrevoked_thumbprint(snapshot)).transpose()
    };
    let origins = route.map_or(&[][..], |route| &*route.origins);
    let claim = proof::Claim {
        method: request.method,
        scheme: request.scheme,
        authority: request.host,
        intake: &intake,
        origins,
        proving: inputs.proofs,
        // INVARIANT: only who has decided on this very request decides on it again, and only after its proof held.
        verified: mode == Mode::Again,
        now: now.wall,
        was_shown: matches!(mode, Mode::Open(_) | Mode::Lists),
    };
    let mut asked = (parts.challenge, None);
    let proven = proof::prove(&claim, &caller, certificate, memo, &mut asked);
    (parts.challenge, parts.dpop_nonce) = asked;
    let proven = proven?;
    parts.dpop_nonce = proven.nonce;

    // Revocation, on every request and before any cached answer.
    if let Some(reason) = caller.revoked(snapshot) {
        return Err((reason, None).into());
    }
    trace.step("revocation", || {
        format!("none of {} revocations is about these credentials", snapshot.revocations.len())
    });

    // What the request is part of, for policy. Before anything that can be done only once.
    let transaction = transaction(&intake, snapshot, now, memo)?;
    let transaction = transaction.as_ref().map(|known| known.transaction(snapshot)).transpose()?.flatten();

    // Freshness. The route says how fresh is fresh enough.
    if let Some(problem) = &snapshot.denies_everything {
        return deny(Reason::SystemInternal, problem);
    }
    let strict = route.is_some_and(|r| r.freshness == Freshness::Strict);
    let good_until = fresh(snapshot, lease, now, age, strict, *min_revision)?;
    trace.step("freshness", || format!("at {}, confirmed {} ms ago", snapshot.position(), age.as_millis()));

    // Resolve the workload, and who acts for it.
    let (workload, key) = registered(caller.workload(), snapshot)?;
    // Only now is a proof used up: what is revoked, stale or nobody's takes no room from others.
    if let Some(unused) = proven.unused {
        if !matches!(mode, Mode::Again | Mode::Lists) {
            unused.use_up(inputs.proofs, now.wall, mode == Mode::Looks)?;
            parts.proof_is_used = mode == Mode::Decides;
        }
        trace.step("proof", || "the key that the token is bound to was proven".to_owned());
    }
    parts.workload = Some(Arc::clone(&workload.id));
    parts.subject = Some(Arc::clone(caller.subject()));
    parts.token_id = caller.token_id().cloned();
    parts.certificate_serial = caller.certificate_serial().cloned();
    trace.step("workload", || format!("`{}` is registered", workload.id));
    let actor = acting(&caller, workload, snapshot, trace, parts)?;

    // Resource and action.
    let Some(route) = route else { return deny(Reason::PolicyNoMatch, "no route of the service matches") };
    parts.resource = Some(Arc::clone(&route.resource));
    parts.action = Some(Arc::clone(&route.action));

    let (host, now) = (&**host, now.wall);
    let case = Case { actor, caller: &caller, until: good_until.min(caller.until()), inputs, mode };
    let by = if let Mode::Open(by) = mode { by } else { None };
    let circumstances = || {
        let call = (request.method, request.path);
        Circumstances::new(call, &request.headers, request.peer.address, request.body).once_let_through(by)
    };
    let plain = &circumstances();
    let question = Question {
        snapshot,
        workload,
        key,
        route,
        path: Some(path),
        host,
        circumstances: plain,
        transaction,
        mcp: None,
        asked: None,
        now,
    };
    let Some(terms) = &route.mcp else { return Ok(case.conclude(question, memo, trace, parts)) };
    if let Some(listing) = listing {
        for tool in listing.tools {
            let message = mcp::listing(request, terms, tool).map_err(told)?;
            let circumstances = &circumstances().with_tool(Some(tool));
            let question = Question { circumstances, mcp: Some(&message), ..question };
            listing.allowed.push(case.conclude(question, memo, trace, parts).is_allow());
        }
        return deny(Reason::SystemInternal, "it was asked about tools and not decided on");
    }
    // What is asked of an MCP server is in the message. It is read last, because that takes longest: not for those who are
    // nobody here.
    let message = Box::new(mcp::read(request, terms).map_err(|refusal| {
        let is_absent = refusal.0 == Reason::InputBodyTruncated;
        parts.needs_body = is_absent.then_some(NeedsBody { proof_is_used: parts.proof_is_used });
        told(refusal)
    })?);
    if let Some(call) = &mut parts.mcp {
        call.note(&message);
    }
    trace.step("message", || mcp::describe(&message));
    let circumstances = &circumstances().with_tool(message.tool.as_deref());
    let question = Question { circumstances, mcp: Some(&message), ..question };
    Ok(case.conclude(question, memo, trace, parts))
}

fn told((reason, detail): Refusal) -> Denied {
    (reason, Some(Arc::from(detail)))
}

/// Who acts for the workload, if somebody does, and may; and that the grant that the token is tied to stands, if it is.
pub(super) fn acting<'a>(
    caller: &Caller,
    workload: &Registered,
    snapshot: &'a Snapshot,
    trace: &mut Trace,
    parts: &mut Parts,
) -> Result<Option<(&'a Registered, WorkloadKey)>, Denied> {
    let actor = caller.actor().map(|actor| registered(actor, snapshot)).transpose()?;
    if let Some((actor, _)) = actor {
        parts.actor = Some(Arc::clone(&actor.id));
        parts.earlier_actors = caller.earlier_actors().cloned();
        trace.step("actor", || format!("`{}` acts for it", actor.id));
        agree(workload, actor)?;
        if snapshot.revocations.is_delegator_revoked(&workload.id) {
            return Err((Reason::RevokedDelegator, None));
        }
        let issued_at = caller.token().and_then(|token| token.issued_at);
        if let Some(reason) = snapshot.revocations.of_actor(&actor.id, issued_at) {
            return deny(reason, "the workload that acts, or its tokens of that time, have been revoked");
        }
    }
    if let Some(tie) = caller.tie() {
        parts.grant = Some(tie.grant);
        if snapshot.revocations.is_grant_revoked(tie.grant) {
            return deny(Reason::RevokedGrant, "the token is tied to a grant that has been revoked");
        }
    }
    Ok(actor)
}

/// Until when the state is fresh enough for the route; an error when it is not.
pub(super) fn fresh(
    snapshot: &Snapshot,
    lease: Lease,
    now: Now,
    age: Duration,
    strict: bool,
    min_revision: Option<crate::wire::Position>,
) -> Result<Timestamp, Denied> {
    let bound = if strict { lease.lease.min(lease.max_staleness) } else { lease.max_staleness };
    if age >= bound {
        return Err((Reason::SystemStale, None));
    }
    if min_revision.is_some_and(|min| min > snapshot.position()) {
        return deny(Reason::SystemStale, "the client has seen a later revision");
    }
    Ok(lease.good_until(now, strict))
}

// === impl Mode ===

impl Mode {
    fn of(request: &Request<'_>) -> Self {
        if request.door == Door::Check { Self::Looks } else { Self::Decides }
    }
}

// === impl Halt ===

impl From<Denied> for Halt {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

// === impl Unverifying ===

impl<M: Memo> Memo for Unverifying<'_, M> {
    fn token(&self, digest: &[u8; 32], usable: impl Fn(&KnownToken) -> bool) -> Option<Arc<KnownToken>> {
        self.0.token(digest, usable)
    }

    fn keep_token(&self, digest: [u8; 32], token: &Arc<KnownToken>) {
        self.0.keep_token(digest, token);
    }

    fn answer(&self, key: &[u8], usable: impl Fn(&KnownAnswer) -> bool) -> Option<Arc<KnownAnswer>> {
        self.0.answer(key, usable)
    }

    fn keep_answer(&self, key: &[u8], answer: &Arc<KnownAnswer>) {
        self.0.keep_answer(key, answer);
    }

    fn certificate(&self, digest: &[u8; 32]) -> Option<Arc<KnownCertificate>> {
        self.0.certificate(digest)
    }

    fn keep_certificate(&self, digest: [u8; 32], certificate: &Arc<KnownCertificate>) {
        self.0.keep_certificate(digest, certificate);
    }

    fn admits_verification(&self) -> bool {
        false
    }

    fn is_forged(&self, digest: &[u8; 32], global_version: u64) -> bool {
        self.0.is_forged(digest, global_version)
    }

    fn keep_forged(&self, digest: [u8; 32], global_version: u64) {
        self.0.keep_forged(digest, global_version);
    }
}

// === impl NoMemo ===

impl Memo for NoMemo {
    fn token(&self, _digest: &[u8; 32], _usable: impl Fn(&KnownToken) -> bool) -> Option<Arc<KnownToken>> {
        None
    }

    fn keep_token(&self, _digest: [u8; 32], _token: &Arc<KnownToken>) {}

    fn answer(&self, _key: &[u8], _usable: impl Fn(&KnownAnswer) -> bool) -> Option<Arc<KnownAnswer>> {
        None
    }

    fn keep_answer(&self, _key: &[u8], _answer: &Arc<KnownAnswer>) {}
}
