//! What grants and policy say of a request of one workload.
//!
//! Pure. Grants that cover it are looked up each time; only what policy says is remembered, by every input that it can
//! depend on, the grants included: so what a grant asks of a request needs no place in the key. Policy is asked without a
//! grant first, so that a grant can only ever add.
//! Long because every answer that grants and policy can give, and its key in the cache, is read here.

use std::sync::Arc;

use smallvec::SmallVec;

use super::decision::GrantHint;
use super::engine::Memo;
use super::explain::Trace;
use super::path::CanonicalPath;
use super::ready::Registered;
use super::reason::Reason;
use super::route::RouteMatch;
use super::snapshot::Snapshot;
use crate::clock::Timestamp;
use crate::credential::Tie;
use crate::grant::{Active, Circumstances, Covering, End, Ended, Sought, Standing, Unmet, WorkloadKey};
use crate::object::GrantId;
use crate::policy::{AskedFacts, Facts, GrantFacts, Inquiry, McpFacts, Outcome, TransactionFacts};

/// What policy and grants said, with the versions that were read before they were asked.
#[derive(Debug)]
pub struct KnownAnswer {
    answer: Answer,
    global_version: u64,
    shard_version: u64,
    valid_until: Timestamp,
}

#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) reason: Reason,
    pub(super) grant: Option<GrantId>,
    pub(super) policies: Arc<[Box<str>]>,
    pub(super) grant_request: Option<Arc<GrantHint>>,
}

/// An answer, and the grants of one of which it takes a use, if it is an allow that does.
pub(super) struct Said {
    pub(super) answer: Answer,
    pub(super) counted: Vec<GrantId>,
    /// Some grant in force is for one body, and that of the request is not known.
    pub(super) lacks_body: bool,
}

/// What policy is asked.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) workload: &'a Registered,
    pub(super) key: WorkloadKey,
    pub(super) route: &'a RouteMatch,
    /// Unknown where a route is asked about by its name.
    pub(super) path: Option<&'a CanonicalPath<'a>>,
    pub(super) host: &'a str,
    /// The rest of the request.
    pub(super) circumstances: &'a Circumstances<'a>,
    pub(super) transaction: Option<&'a TransactionFacts>,
    /// What an application says that asks by itself.
    pub(super) asked: Option<&'a AskedFacts>,
    /// The message, on a route that speaks the Model Context Protocol.
    pub(super) mcp: Option<&'a McpFacts<'a>>,
    pub(super) now: Timestamp,
}

impl Question<'_> {
    /// What grants and policy say.
    pub(super) fn answer(&self, until: Timestamp, memo: &impl Memo, trace: &mut Trace, hit: &mut bool) -> Said {
        let apart = self.snapshot.policies.reads().grants_apart();
        let covering = self.snapshot.grants.find(&self.key, &self.sought(), apart, |id| self.is_revoked(id));
        let mut said = Said::of(self.judge(&covering, until, memo, trace, hit));
        // Only what is not allowed otherwise spends a use. Never from the cache, and never kept in it.
        if !covering.counted.is_empty()
            && !said.answer.reason.is_allow()
            && let Some(counted) = self.counted(&covering)
        {
            (said, *hit) = (counted, false);
        }
        said.note_body(covering.standing);
        said.trace(trace);
        said
    }

    /// The same of a token that is good for one grant, and within its scope. INVARIANT: no other grant counts, and without
    /// this one nothing does, whatever policy gives to other tokens of the workload.
    pub(super) fn answer_within(
        &self,
        tie: &Tie,
        until: Timestamp,
        memo: &impl Memo,
        trace: &mut Trace,
        hit: &mut bool,
    ) -> Said {
        let in_scope = tie.scope.iter().any(|action| **action == *self.route.action);
        let found = in_scope
            .then(|| self.snapshot.grants.find_one(tie.grant, &self.key, &self.sought(), |id| self.is_revoked(id)));
        let standing = found.as_ref().map_or(Standing::None, |covering| covering.standing);
        let mut said = match found {
            Some(covering) if !covering.active.is_empty() => {
                let answer = self.judge(&covering, until, memo, trace, hit);
                Said::of(Answer { grant: Some(tie.grant), ..answer })
            }
            // Each request under such a token is a use of its grant, whatever else would allow it.
            Some(covering) if !covering.counted.is_empty() => {
                self.counted(&covering).unwrap_or_else(|| Said::of(self.fallback()))
            }
            found => {
                let standing = found.map_or(Standing::Scope(tie.grant), |covering| covering.standing);
                trace.step("grant", || format!("the token's own does not cover it ({standing:?})"));
                Said::of(self.outside(tie.grant, standing))
            }
        };
        said.note_body(standing);
        said.trace(trace);
        said
    }

    /// The answer with the grants whose uses are counted; `None` if that without them tells more.
    fn counted(&self, covering: &Covering) -> Option<Said> {
        let inquiry = self.inquiry()?;
        let apart = self.snapshot.policies.reads().grants_apart();
        let (mut allowed, mut policies, mut first_denied) = (Vec::new(), None, None);
        let mut asked: Vec<(&Active, bool)> = Vec::new();
        for active in &covering.counted {
            let allows = match asked.iter().find(|(other, _)| active.is_like(other, apart)) {
                Some((_, allows)) => *allows,
                None => {
                    let allows = match inquiry.ask(Some(&self.snapshot.grants.facts(active))) {
                        Outcome::Allow(ids) => {
                            policies.get_or_insert(ids);
                            true
                        }
                        denied => {
                            first_denied = first_denied.or(Some((active, denied)));
                            false
                        }
                    };
                    asked.push((active, allows));
                    allows
                }
            };
            allowed.extend(allows.then_some(active.id));
        }
        let answer = match (policies, first_denied) {
            (Some(policies), _) => {
                // Which of them is spent is not known yet: an emergency is named rather than hidden.
                let glass = covering.counted.iter().any(|active| active.break_glass && allowed.contains(&active.id));
                let reason = if glass { Reason::AllowBreakGlass } else { Reason::AllowGrant };
                Answer { reason, grant: allowed.first().copied(), policies, grant_request: None }
            }
            (None, Some((active, denied))) if covering.active.is_empty() => denial(denied, Some(active.id)),
            _ => return None,
        };
        Some(Said { answer, counted: allowed, lacks_body: false })
    }

    fn judge(
        &self,
        covering: &Covering,
        until: Timestamp,
        memo: &impl Memo,
        trace: &mut Trace,
        hit: &mut bool,
    ) -> Answer {
        let route = self.route;
        trace.step("grant", || format!("on `{}`, action `{}`: {}", route.resource, route.action, describe(covering)));
        let answer = self.cached(covering, until, memo, hit);
        answer.as_ref().map_or_else(|| self.fallback(), |known| known.answer.clone())
    }

    fn sought(&self) -> Sought<'_> {
        Sought {
            resource: [&self.route.resource, &self.route.service],
            action: &self.route.action,
            path: self.path,
            environment: &self.workload.document().environment,
            request: self.circumstances,
            now: self.now,
        }
    }

    fn is_revoked(&self, grant: GrantId) -> bool {
        self.snapshot.revocations.is_grant_revoked(grant)
    }

    /// The answer, from the memo when it is still good.
    fn cached(
        &self,
        covering: &Covering,
        until: Timestamp,
        memo: &impl Memo,
        hit: &mut bool,
    ) -> Option<Arc<KnownAnswer>> {
        // INVARIANT: versions are read before anything is evaluated. The snapshot cannot change underneath, but this
        // is where it would matter if it could.
        let global_version = self.snapshot.global_version;
        let shard_version = self.snapshot.grants.version(&self.key);
        let key = self.encode(covering);
        let current = |k: &KnownAnswer| {
            k.global_version == global_version && k.shard_version == shard_version && self.now < k.valid_until
        };
        if let Some(known) = memo.answer(&key, current) {
            *hit = true;
            return Some(known);
        }
        let answer = self.evaluate(covering)?;
        let valid_until = covering.active.iter().map(|a| a.not_after).fold(until, Timestamp::min);
        let known = Arc::new(KnownAnswer { answer, global_version, shard_version, valid_until });
        memo.keep_answer(&key, &known);
        Some(known)
    }

    /// Every input that the answer can depend on, typed and length-prefixed.
    fn encode(&self, covering: &Covering) -> SmallVec<[u8; 256]> {
        let reads = self.snapshot.policies.reads();
        let mut key = SmallVec::new();
        let mut put = |tag: u8, bytes: &[u8]| {
            key.push(tag);
            key.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
            key.extend_from_slice(bytes);
        };
        put(1, &self.key.0);
        put(2, &self.route.index.to_le_bytes());
        put(3, self.route.action.as_bytes());
        for grant in &covering.active {
            put(4, grant.id.0.as_bytes());
        }
        let (kind, id) = covering.standing.encode();
        put(5, &[kind]);
        put(6, id.as_ref().map_or(&[][..], |id| id.0.as_bytes()));
        if reads.method {
            put(7, self.circumstances.method.as_bytes());
        }
        // That there is none is not that it is empty.
        if let Some(path) = self.path.filter(|_| reads.path) {
            put(8, path.as_str().as_bytes());
        }
        if reads.host {
            put(9, self.host.as_bytes());
        }
        if let Some(transaction) = self.transaction.filter(|_| reads.transaction) {
            put(10, transaction.txn.as_bytes());
            put(11, transaction.subject.as_bytes());
            // That there is none is not that it is empty.
            if let Some(scope) = &transaction.scope {
                put(12, scope.as_bytes());
            }
        }
        if let Some(asked) = self.asked {
            put(32, asked.told.name().as_bytes());
            if reads.asked {
                put(33, &asked.digest());
            }
        }
        if let Some(mcp) = self.mcp {
            mcp.encode(reads.mcp, 13, &mut put);
        }
        key
    }

    /// What policy is asked about. `None` when the route has no resource.
    fn inquiry(&self) -> Option<Inquiry<'_>> {
        let resource = self.snapshot.routes.resource(self.route)?;
        Some(self.snapshot.policies.inquire(self.workload.principal()?, &self.route.action, resource, self.facts()))
    }

    fn facts(&self) -> Facts<'_> {
        let Self { host, transaction, mcp, asked, .. } = *self;
        let path = self.path.map_or("", CanonicalPath::as_str);
        Facts { method: self.circumstances.method, path, host, transaction, asked, mcp }
    }

    /// Asks policy: without a grant, then with each that covers the request. `None` when the route has no resource.
    fn evaluate(&self, covering: &Covering) -> Option<Answer> {
        let inquiry = self.inquiry()?;
        let plain = inquiry.ask(None);
        if let Outcome::Allow(policies) = plain {
            return Some(Answer { reason: Reason::AllowPolicy, grant: None, policies, grant_request: None });
        }
        let mut with_grant = None;
        for active in &covering.active {
            match inquiry.ask(Some(&self.snapshot.grants.facts(active))) {
                Outcome::Allow(policies) => {
                    let grant = Some(active.id);
                    let reason = if active.break_glass { Reason::AllowBreakGlass } else { Reason::AllowGrant };
                    return Some(Answer { reason, grant, policies, grant_request: None });
                }
                denied => with_grant = with_grant.or(Some((active, denied))),
            }
        }
        Some(match with_grant {
            Some((active, denied)) => denial(denied, Some(active.id)),
            None => self.without_grant(&inquiry, plain, covering.standing),
        })
    }

    /// A denial without a grant: if a grant would help, say what is known about grants, and what to ask for.
    fn without_grant(&self, inquiry: &Inquiry<'_>, plain: Outcome, standing: Standing) -> Answer {
        if matches!(plain, Outcome::Error(_)) || !self.would_help(inquiry) {
            return denial(plain, None);
        }
        let (reason, grant) = standing.reason();
        let policies = denial(plain, None).policies;
        let grant_request = reason.is_entitlement().then(|| self.hint());
        Answer { reason, grant, policies, grant_request }
    }

    /// A denial because the grant that the token is tied to does not cover the request.
    fn outside(&self, grant: GrantId, standing: Standing) -> Answer {
        let (reason, _) = standing.reason();
        let inquiry = reason.is_entitlement().then(|| self.inquiry()).flatten();
        let grant_request = inquiry.filter(|inquiry| self.would_help(inquiry)).map(|_| self.hint());
        Answer { reason, grant: Some(grant), policies: no_policies(), grant_request }
    }

    /// Whether policy would allow it with a grant.
    fn would_help(&self, inquiry: &Inquiry<'_>) -> bool {
        let hypothetical = GrantFacts {
            id: GrantId(uuid::Uuid::nil()),
            actions: Arc::from([Box::from(&*self.route.action)]),
            duration_seconds: self.route.grants.max_duration_seconds,
        };
        matches!(inquiry.ask(Some(&hypothetical)), Outcome::Allow(_))
    }

    /// What to ask for.
    pub(super) fn hint(&self) -> Arc<GrantHint> {
        Arc::new(GrantHint {
            workload: Arc::clone(&self.workload.id),
            resource: Arc::clone(&self.route.resource),
            actions: vec![Arc::clone(&self.route.action)],
            terms: self.route.grants,
        })
    }

    fn fallback(&self) -> Answer {
        Answer { reason: Reason::SystemInternal, grant: None, policies: no_policies(), grant_request: None }
    }
}

fn denial(outcome: Outcome, grant: Option<GrantId>) -> Answer {
    let (reason, policies) = match outcome {
        Outcome::Forbid(policies) => (Reason::PolicyExplicitDeny, policies),
        Outcome::Error(policies) => (Reason::PolicyError, policies),
        Outcome::NoMatch => (Reason::PolicyNoMatch, no_policies()),
        // Never reached with an allow; if it were, it would not be one.
        Outcome::Allow(_) => (Reason::SystemInternal, no_policies()),
    };
    Answer { reason, grant, policies, grant_request: None }
}

pub(super) fn no_policies() -> Arc<[Box<str>]> {
    static NONE: std::sync::OnceLock<Arc<[Box<str>]>> = std::sync::OnceLock::new();
    Arc::clone(NONE.get_or_init(|| Arc::from([])))
}

fn describe(covering: &Covering) -> String {
    match covering.active.first().or_else(|| covering.counted.first()) {
        Some(Active { id, not_after, .. }) => format!("grant {id} covers it until {not_after}"),
        None => format!("no active grant covers it ({:?})", covering.standing),
    }
}

// === impl Said ===

impl Said {
    /// An answer that takes no use.
    const fn of(answer: Answer) -> Self {
        Self { answer, counted: Vec::new(), lacks_body: false }
    }

    /// Of all that can be said of grants, that one depends on the body is the most telling: it is never hidden by another.
    fn note_body(&mut self, standing: Standing) {
        self.lacks_body = matches!(standing, Standing::Unmet(Unmet::Body, _));
    }

    fn trace(&self, trace: &mut Trace) {
        let Answer { reason, policies, .. } = &self.answer;
        trace.step("policy", || format!("{reason} (policies: {})", policies.join(", ")));
    }
}

// === impl Standing ===

impl Standing {
    fn encode(self) -> (u8, Option<GrantId>) {
        match self {
            Self::None => (0, None),
            Self::Scope(id) => (1, Some(id)),
            Self::Over(Ended { by: End::Expired, id, .. }) => (2, Some(id)),
            Self::Over(Ended { by: End::Revoked, id, .. }) => (3, Some(id)),
            Self::Pending(id) => (4, Some(id)),
            Self::NotYetValid(id) => (5, Some(id)),
            Self::Over(Ended { by: End::Exhausted, id, .. }) => (6, Some(id)),
            Self::Unmet(Unmet::Environment, id) => (7, Some(id)),
            Self::Unmet(Unmet::Condition, id) => (8, Some(id)),
            Self::Unmet(Unmet::Body, id) => (9, Some(id)),
        }
    }

    fn reason(self) -> (Reason, Option<GrantId>) {
        match self {
            Self::None => (Reason::EntitlementNoGrant, None),
            Self::Scope(id) => (Reason::EntitlementScope, Some(id)),
            Self::Over(Ended { by: End::Expired, id, .. }) => (Reason::EntitlementGrantExpired, Some(id)),
            Self::Over(Ended { by: End::Exhausted, id, .. }) => (Reason::EntitlementGrantExhausted, Some(id)),
            Self::Over(Ended { by: End::Revoked, id, .. }) => (Reason::RevokedGrant, Some(id)),
            Self::Pending(id) => (Reason::EntitlementGrantPending, Some(id)),
            Self::NotYetValid(id) => (Reason::EntitlementGrantNotYetValid, Some(id)),
            Self::Unmet(Unmet::Environment, id) => (Reason::EntitlementEnvironment, Some(id)),
            Self::Unmet(Unmet::Condition, id) => (Reason::EntitlementCondition, Some(id)),
            Self::Unmet(Unmet::Body, id) => (Reason::InputBodyTruncated, Some(id)),
        }
    }
}
