//! Evaluations: an application asks what somebody may do, and no request of theirs is to be forwarded.
//!
//! Pure. The steps are those of `engine`, in their order, and the parts are the same. What differs fails closed: a subject
//! without a token counts only where the application may vouch for it; nobody shows a certificate or a proof of possession
//! through somebody else, so routes that demand one and tokens that are bound to one are denied; where a route is named
//! instead of a request, no grant for some paths covers it and a policy that reads the request fails; a grant whose uses are
//! counted allows nothing, because asking is free. INVARIANT: an evaluation uses nothing up, and what is said beside the
//! question is read by policies only as `context.asked`.

use std::sync::Arc;

use super::asker::Asker;
use super::authenticate::{Caller, registered};
use super::case::Case;
use super::decision::{Decision, DecisionId, Parts};
use super::engine::{Deferred, Denied, Halt, Inputs, Memo, Mode, Unverifying, acting, deny, fresh, undecided};
use super::explain::Trace;
use super::path::CanonicalPath;
use super::question::Question;
use super::reason::Reason;
use super::route::{RouteMatch, host_name};
use super::snapshot::Snapshot;
use crate::grant::Circumstances;
use crate::object::{Authentication, Freshness};
use crate::policy::{AskedFacts, Told};
use crate::wire::Position;

/// What an application asks.
#[derive(Debug, Clone)]
pub struct Evaluation<'a> {
    /// About whom.
    pub subject: About<'a>,
    /// About what.
    pub resource: AboutResource<'a>,
    /// The name of the action.
    pub action: &'a str,
    /// The request that it is about, if there is one.
    pub call: Option<AboutCall<'a>>,
    /// What is said beside it.
    pub asked: AskedFacts,
    /// The state must be at least that fresh.
    pub min_revision: Option<Position>,
}

/// Whom an evaluation is about.
#[derive(Debug, Clone, Copy)]
pub enum About<'a> {
    /// The workload of this SPIFFE ID.
    Workload(&'a str),
    /// The workload of this SPIFFE ID, whose token this is.
    Token {
        /// The SPIFFE ID.
        id: &'a str,
        /// The token.
        token: &'a str,
    },
    /// Nobody that could be registered, and why.
    Nobody(&'static str),
}

/// What an evaluation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AboutResource<'a> {
    /// `service/route`.
    Route(&'a str),
    /// A service: the one route of it that the action, or the request, is on.
    Service(&'a str),
    /// Nothing that is protected here.
    Nothing,
}

/// A request that an application has, or would make.
#[derive(Debug, Clone, Copy)]
pub struct AboutCall<'a> {
    /// Its method.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// The host, if it is said; one that is not said, or empty, is unknown. Services that name theirs are not reached then.
    pub host: Option<&'a str>,
}

/// The request of an evaluation, read.
struct Call<'a> {
    path: CanonicalPath<'a>,
    host: std::borrow::Cow<'a, str>,
    has_host: bool,
}

/// Decides on an evaluation. Verifies what has to be verified.
pub fn evaluate(evaluation: &Evaluation<'_>, asker: Asker<'_>, inputs: Inputs<'_>, memo: &impl Memo) -> Decision {
    run(evaluation, asker, inputs, memo).unwrap_or_else(|_: Deferred| undecided(inputs))
}

/// The same, unless that takes a public-key operation.
pub fn evaluate_unless_costly(
    evaluation: &Evaluation<'_>,
    asker: Asker<'_>,
    inputs: Inputs<'_>,
    memo: &impl Memo,
) -> Result<Decision, Deferred> {
    run(evaluation, asker, inputs, &Unverifying(memo))
}

fn run(
    evaluation: &Evaluation<'_>,
    asker: Asker<'_>,
    inputs: Inputs<'_>,
    memo: &impl Memo,
) -> Result<Decision, Deferred> {
    let mut parts = Parts::undecided(DecisionId::new(inputs.now.wall));
    parts.asked_by = Some(Arc::clone(asker.id));
    let (reason, detail) = match steps(evaluation, asker, inputs, memo, &mut parts) {
        Ok(reason) => (reason, parts.detail.take()),
        Err(Halt::Denied(denied)) => denied,
        Err(Halt::Deferred(deferred)) => return Err(deferred),
    };
    parts.reason = reason;
    parts.detail = detail;
    Ok(Decision::new(parts))
}

fn steps(
    evaluation: &Evaluation<'_>,
    asker: Asker<'_>,
    inputs: Inputs<'_>,
    memo: &impl Memo,
    parts: &mut Parts,
) -> Result<Reason, Halt> {
    let trace = &mut Trace::off();
    let (Some(snapshot), Some(lease)) = (inputs.snapshot, inputs.lease) else {
        return Err((Reason::SystemNotReady, None).into());
    };
    let now = inputs.now;
    let age = lease.age(now);
    parts.position = Some(snapshot.position());
    parts.behind_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);

    // Normalise, refuse ambiguity.
    let call = evaluation.call.map(Call::read).transpose()?;

    // Authenticate, as far as somebody can be who is not here. INVARIANT: before anything is looked up that it is about, so
    // that nobody learns of routes who may not ask about the subject.
    let caller = evaluation.subject.caller(asker, inputs, snapshot, memo)?;
    let route = evaluation.route(call.as_ref(), snapshot)?;
    match route.map(|route| route.authentication) {
        None | Some(Authentication::Token | Authentication::Any) => {}
        Some(Authentication::Certificate | Authentication::Both) => {
            return deny(Reason::CredentialMissing, "the route demands a client certificate, and none comes this way");
        }
    }
    if let (Some(tie), Some(route)) = (caller.tie(), route)
        && tie.service != route.service
    {
        return deny(Reason::CredentialAudience, "the token is for another service");
    }

    // Proof of possession: what is bound to a key or a certificate does not count without.
    if let Some(token) = caller.token()
        && (token.confirmation.is_some() || token.is_wit || token.proof.required)
    {
        return deny(Reason::CredentialPopMissing, "the token is bound to a key, and no proof of it comes this way");
    }
    if let Some(reason) = caller.revoked(snapshot) {
        return Err((reason, None).into());
    }

    // Freshness.
    if let Some(problem) = &snapshot.denies_everything {
        return deny(Reason::SystemInternal, problem);
    }
    let strict = route.is_some_and(|r| r.freshness == Freshness::Strict);
    let good_until = fresh(snapshot, lease, now, age, strict, evaluation.min_revision)?;

    // Resolve the workload, and who acts for it.
    let (workload, key) = registered(caller.workload(), snapshot)?;
    if let About::Token { id, .. } = evaluation.subject
        && *workload.id != *id
    {
        return deny(Reason::CredentialSubject, "the token is somebody else's");
    }
    parts.workload = Some(Arc::clone(&workload.id));
    parts.subject = Some(Arc::clone(caller.subject()));
    parts.token_id = caller.token_id().cloned();
    let actor = acting(&caller, workload, snapshot, trace, parts)?;

    // Resource and action.
    let Some(route) = route else { return deny(Reason::PolicyNoMatch, "no route of the service has this action") };
    parts.resource = Some(Arc::clone(&route.resource));
    parts.action = Some(Arc::clone(&route.action));

    // INVARIANT: what is asked of an MCP server is in the message, and there is none: policy would not see what it forbids.
    if route.mcp.is_some() {
        return deny(
            Reason::InputMalformed,
            "what is asked of an MCP server is in its message, and none comes this way",
        );
    }
    let case = Case { actor, caller: &caller, until: good_until.min(caller.until()), inputs, mode: Mode::Asks };
    let request = evaluation.call.map_or(("", ""), |call| (call.method, call.path));
    let circumstances = &Circumstances::new(request, &[], None, None);
    let asked = AskedFacts { told: Call::told(call.as_ref()), ..evaluation.asked.clone() };
    let question = Question {
        snapshot,
        workload,
        key,
        route,
        path: call.as_ref().map(|call| &call.path),
        host: call.as_ref().map_or("", |call| &call.host),
        circumstances,
        transaction: None,
        mcp: None,
        asked: Some(&asked),
        now: now.wall,
    };
    Ok(case.conclude(question, memo, trace, parts))
}

// === impl Evaluation ===

impl Evaluation<'_> {
    /// The route that it is about; `None` denies, once it is known who is asked about.
    fn route<'a>(&self, call: Option<&Call<'_>>, snapshot: &'a Snapshot) -> Result<Option<&'a RouteMatch>, Denied> {
        let table = &snapshot.routes.table;
        let (AboutResource::Route(name) | AboutResource::Service(name)) = self.resource else { return Ok(None) };
        if let (Some(call), Some(about)) = (call, self.call) {
            let found = table.find(&call.host, about.method, &call.path);
            let is_meant = |route: &&RouteMatch| match self.resource {
                AboutResource::Service(service) => *route.service == *service,
                AboutResource::Route(resource) => *route.resource == *resource,
                AboutResource::Nothing => false,
            };
            return Ok(found.filter(is_meant).filter(|route| *route.action == *self.action));
        }
        if matches!(self.resource, AboutResource::Route(_)) {
            return Ok(table.named(name, self.action));
        }
        let mut routes = table.names(Some(name)).filter_map(|route| table.named(route, self.action));
        match (routes.next(), routes.next()) {
            (route, None) => Ok(route),
            (_, Some(_)) => deny(
                Reason::InputMalformed,
                "several routes of the service have this action: name the route, or the method and the path",
            ),
        }
    }
}

// === impl About ===

impl About<'_> {
    fn caller(
        self,
        asker: Asker<'_>,
        inputs: Inputs<'_>,
        snapshot: &Snapshot,
        memo: &impl Memo,
    ) -> Result<Caller, Halt> {
        match self {
            Self::Token { token, .. } => Caller::of_token(token, inputs, snapshot, memo),
            // INVARIANT: an application vouches for those alone that it may vouch for.
            Self::Workload(id) if asker.may_assert(id) => Ok(Caller::asserted(id)),
            Self::Workload(_) => {
                deny(Reason::CredentialMissing, "the application may not vouch for this subject, and brings no token")
            }
            Self::Nobody(why) => deny(Reason::CredentialSubject, why),
        }
    }
}

// === impl Asker ===

impl Asker<'_> {
    /// Whether its word is enough for this workload.
    pub fn may_assert(&self, id: &str) -> bool {
        self.may_assert.iter().any(|pattern| pattern.matches(id))
    }
}

// === impl Call ===

impl<'a> Call<'a> {
    fn read(call: AboutCall<'a>) -> Result<Self, Denied> {
        let path = CanonicalPath::parse(call.path).or_else(|e| deny(Reason::InputAmbiguousPath, &e.to_string()))?;
        let said = call.host.unwrap_or_default();
        let host = host_name(said).ok_or((Reason::InputMalformed, Some(Arc::from("the host is no host name"))))?;
        if call.method.is_empty() || call.method.len() > 32 {
            return deny(Reason::InputMalformed, "the method is missing or too long");
        }
        Ok(Self { path, host, has_host: !said.is_empty() })
    }

    const fn told(call: Option<&Self>) -> Told {
        match call {
            None => Told::ByName,
            Some(Self { has_host: false, .. }) => Told::NoHost,
            Some(_) => Told::All,
        }
    }
}
