//! Evaluating the policies that can apply to one request.
//!
//! Pure. Slices are evaluated one by one and combined as Cedar would: a forbid anywhere denies, an error anywhere
//! denies, otherwise a permit anywhere allows. Whatever cannot be expressed to Cedar is an error, and so denies.
//! One request is put to them several times, without a grant and with one; what no grant can change is done once.
//! INVARIANT: that changes no answer; `tests.rs` compares it with asking everything anew.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
};
use smallvec::SmallVec;

use super::asked::{AskedFacts, PROPERTIES, Told};
use super::compiled::{CompiledPolicies, Slice};
use super::mcp::McpFacts;
use super::reads::Reads;
use crate::object::{GrantId, Workload};

/// A workload as a Cedar principal, made once per workload.
#[derive(Debug, Clone)]
pub struct PrincipalEntity {
    uid: EntityUid,
    /// The principal alone. Roles have no attributes, so that Cedar needs no entities for them: that the principal
    /// is in one is written in the principal.
    entities: Entities,
    /// The text forms that scopes are indexed by: the principal's own and its roles'.
    names: Vec<Box<str>>,
}

/// A route as a Cedar resource, made once per route.
#[derive(Debug, Clone)]
pub struct ResourceEntity {
    uid: EntityUid,
    /// The route; its service has no attributes either.
    entity: Entity,
    names: [Box<str>; 2],
}

/// The variable inputs of an evaluation.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Request method.
    pub method: &'a str,
    /// Canonical path.
    pub path: &'a str,
    /// Canonical host.
    pub host: &'a str,
    /// The transaction that the request is part of, if a transaction token tells of one.
    pub transaction: Option<&'a TransactionFacts>,
    /// What an application says that asks by itself.
    pub asked: Option<&'a AskedFacts>,
    /// The message, on a route that speaks the Model Context Protocol.
    pub mcp: Option<&'a McpFacts<'a>>,
}

/// What policies may know of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionFacts {
    /// Its id.
    pub txn: Arc<str>,
    /// What it is for.
    pub scope: Option<Arc<str>>,
    /// Whom it is for, as the token names it.
    pub subject: Arc<str>,
}

/// One request as it is put to the policies, once or several times.
#[derive(Debug)]
pub struct Inquiry<'a>(Result<Open<'a>, Outcome>);

/// A request that some policy may apply to; any other has its outcome already.
#[derive(Debug)]
struct Open<'a> {
    principal: &'a PrincipalEntity,
    action: EntityUid,
    resource: &'a ResourceEntity,
    facts: Facts<'a>,
    reads: Reads,
    entities: Entities,
    /// The request without a grant.
    plain: Request,
    /// The slices that read the grant.
    open: SmallVec<[&'a Slice; 4]>,
    /// What the other slices say, with a grant as without.
    settled: Verdicts,
}

/// The ids of the policies that permit, that forbid, and that failed.
#[derive(Debug, Clone, Default)]
struct Verdicts {
    permits: Vec<Box<str>>,
    forbids: Vec<Box<str>>,
    errors: Vec<Box<str>>,
}

/// What policies may know of a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantFacts {
    /// Its id.
    pub id: GrantId,
    /// Its actions.
    pub actions: Arc<[Box<str>]>,
    /// How long it lasts in all, in seconds.
    pub duration_seconds: u64,
}

/// What the policies say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// At least one permits, none forbids, none failed.
    Allow(Arc<[Box<str>]>),
    /// These forbid.
    Forbid(Arc<[Box<str>]>),
    /// None permits and none forbids.
    NoMatch,
    /// These failed to evaluate, whatever the others said.
    Error(Arc<[Box<str>]>),
}

// === impl PrincipalEntity ===

impl PrincipalEntity {
    /// The principal of `workload`.
    pub fn new(workload: &Workload) -> Option<Self> {
        let uid = uid("Workload", workload.id.as_str())?;
        let roles: Option<Vec<EntityUid>> = workload.roles.iter().map(|r| self::uid("Role", r)).collect();
        let roles = roles?;
        let text = |s: &str| RestrictedExpression::new_string(s.to_owned());
        let attrs = [
            ("kind".to_owned(), text(workload.kind.name())),
            ("environment".to_owned(), text(&workload.environment)),
            ("owner".to_owned(), text(&workload.owner)),
        ];
        let tags = workload.labels.iter().map(|(k, v)| (k.clone(), text(v)));
        let principal = Entity::new_with_tags(uid.clone(), attrs, roles.iter().cloned(), tags).ok()?;
        let names = std::iter::once(&uid).chain(&roles).map(|u| u.to_string().into()).collect();
        let entities = Entities::from_entities([principal], None).ok()?;
        Some(Self { uid, entities, names })
    }
}

// === impl ResourceEntity ===

impl ResourceEntity {
    /// The resource `Route::"service/route"` in `Service::"service"`.
    pub fn new(service: &str, resource: &str) -> Option<Self> {
        let uid = uid("Route", resource)?;
        let parent = self::uid("Service", service)?;
        let names = [uid.to_string().into(), parent.to_string().into()];
        let entity = Entity::new_no_attrs(uid.clone(), HashSet::from([parent]));
        Some(Self { uid, entity, names })
    }
}

// === impl CompiledPolicies ===

impl CompiledPolicies {
    /// Evaluates the policies that can apply, once.
    pub fn evaluate(
        &self,
        principal: &PrincipalEntity,
        action: &str,
        resource: &ResourceEntity,
        facts: Facts<'_>,
        grant: Option<&GrantFacts>,
    ) -> Outcome {
        self.inquire(principal, action, resource, facts).ask(grant)
    }

    /// Finds the policies that can apply, and evaluates those that no grant can sway.
    pub fn inquire<'a>(
        &'a self,
        principal: &'a PrincipalEntity,
        action: &str,
        resource: &'a ResourceEntity,
        facts: Facts<'a>,
    ) -> Inquiry<'a> {
        let slices = self.slices(principal.names.iter().map(|n| &**n), resource.names.iter().map(|n| &**n));
        let (open, settled): (SmallVec<[&Slice; 4]>, SmallVec<[&Slice; 4]>) = slices.partition(|s| s.reads_grant);
        if open.is_empty() && settled.is_empty() {
            return Inquiry(Err(Outcome::NoMatch));
        }
        // INVARIANT: what was not told is unknown, and not absent: whoever asks whether it is there has no answer.
        let untold = open.iter().chain(&settled).flat_map(|slice| slice.unanswerable(action, facts.told()));
        let mut untold: Vec<Box<str>> = untold.map(Box::from).collect();
        if !untold.is_empty() {
            untold.sort_unstable();
            return Inquiry(Err(Outcome::Error(untold.into())));
        }
        let Some(mut inquiry) = Open::new(principal, action, resource, facts, self.reads()) else {
            return Inquiry(Err(Outcome::inexpressible()));
        };
        let mut verdicts = Verdicts::default();
        inquiry.put(&settled, &inquiry.plain, &mut verdicts);
        inquiry.settled = verdicts;
        inquiry.open = open;
        Inquiry(Ok(inquiry))
    }
}

// === impl Inquiry ===

impl Inquiry<'_> {
    /// What the policies say of the request when this grant covers it.
    pub fn ask(&self, grant: Option<&GrantFacts>) -> Outcome {
        match &self.0 {
            Ok(open) => open.ask(grant),
            Err(outcome) => outcome.clone(),
        }
    }
}

// === impl Open ===

impl<'a> Open<'a> {
    fn new(
        principal: &'a PrincipalEntity,
        action: &str,
        resource: &'a ResourceEntity,
        facts: Facts<'a>,
        reads: Reads,
    ) -> Option<Self> {
        let action = uid("Action", action)?;
        // The principal's share of the hierarchy is ready; only the route is new to it.
        let asked = facts.asked.filter(|_| reads.asked).map(AskedFacts::entities);
        let asked = match asked {
            Some(entities) => entities?,
            None => Vec::new(),
        };
        let added = std::iter::once(resource.entity.clone()).chain(asked);
        let entities = principal.entities.clone().add_entities(added, None).ok()?;
        let plain = facts.request(principal, &action, resource, reads, None)?;
        let (open, settled) = (SmallVec::new(), Verdicts::default());
        Some(Self { principal, action, resource, facts, reads, entities, plain, open, settled })
    }

    fn ask(&self, grant: Option<&GrantFacts>) -> Outcome {
        let mut verdicts = self.settled.clone();
        match grant.filter(|_| !self.open.is_empty()) {
            None => self.put(&self.open, &self.plain, &mut verdicts),
            Some(grant) => {
                let request = self.facts.request(self.principal, &self.action, self.resource, self.reads, Some(grant));
                let Some(request) = request else { return Outcome::inexpressible() };
                self.put(&self.open, &request, &mut verdicts);
            }
        }
        verdicts.outcome()
    }

    fn put(&self, slices: &[&Slice], request: &Request, verdicts: &mut Verdicts) {
        let authorizer = Authorizer::new();
        for slice in slices {
            let response = authorizer.is_authorized(request, &slice.policies, &self.entities);
            let allowed = response.decision() == Decision::Allow;
            let decided = if allowed { &mut verdicts.permits } else { &mut verdicts.forbids };
            decided.extend(response.diagnostics().reason().map(|id| Box::from(AsRef::<str>::as_ref(id))));
            verdicts.errors.extend(response.diagnostics().errors().map(|e| match e {
                cedar_policy::AuthorizationError::PolicyEvaluationError(e) => {
                    Box::from(AsRef::<str>::as_ref(e.policy_id()))
                }
            }));
        }
    }
}

// === impl Facts ===

impl Facts<'_> {
    fn told(&self) -> Told {
        self.asked.map_or(Told::All, |asked| asked.told)
    }

    /// The request with the context that policies read.
    pub(super) fn request(
        &self,
        principal: &PrincipalEntity,
        action: &EntityUid,
        resource: &ResourceEntity,
        reads: Reads,
        grant: Option<&GrantFacts>,
    ) -> Option<Request> {
        let text = |s: &str| RestrictedExpression::new_string(s.to_owned());
        let mut pairs = Vec::with_capacity(4);
        let told = self.told();
        for (read, name, value) in [
            (reads.method && told.request(), "method", self.method),
            (reads.path && told.request(), "path", self.path),
            (reads.host && told.host(), "host", self.host),
        ] {
            if read {
                pairs.push((name.to_owned(), text(value)));
            }
        }
        if let Some(transaction) = self.transaction.filter(|_| reads.transaction) {
            pairs.push(("transaction".to_owned(), transaction.expression()?));
        }
        if let Some(asked) = self.asked.filter(|_| reads.asked) {
            pairs.push(("asked".to_owned(), asked.expression()?));
        }
        if let Some(mcp) = self.mcp.filter(|_| reads.mcp.any()) {
            pairs.push(("mcp".to_owned(), mcp.expression(reads.mcp)?));
        }
        if let Some(grant) = grant.filter(|_| reads.grant) {
            let grant = if reads.grant_detail { grant.expression() } else { RestrictedExpression::new_record([]).ok() };
            pairs.push(("grant".to_owned(), grant?));
        }
        let context = if pairs.is_empty() { Context::empty() } else { Context::from_pairs(pairs).ok()? };
        Request::new(principal.uid.clone(), action.clone(), resource.uid.clone(), context, None).ok()
    }
}

// === impl Verdicts ===

impl Verdicts {
    fn outcome(self) -> Outcome {
        let sorted = |mut ids: Vec<Box<str>>| {
            ids.sort_unstable();
            Arc::from(ids)
        };
        if !self.errors.is_empty() {
            Outcome::Error(sorted(self.errors))
        } else if !self.forbids.is_empty() {
            Outcome::Forbid(sorted(self.forbids))
        } else if !self.permits.is_empty() {
            Outcome::Allow(sorted(self.permits))
        } else {
            Outcome::NoMatch
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// What cannot be put to Cedar denies.
    fn inexpressible() -> Self {
        Self::Error(Arc::from([]))
    }
}

// === impl TransactionFacts ===

impl TransactionFacts {
    fn expression(&self) -> Option<RestrictedExpression> {
        let text = |s: &str| RestrictedExpression::new_string(s.to_owned());
        let scope = self.scope.as_ref().map(|scope| ("scope".to_owned(), text(scope)));
        let always = [("txn".to_owned(), text(&self.txn)), ("subject".to_owned(), text(&self.subject))];
        RestrictedExpression::new_record(always.into_iter().chain(scope)).ok()
    }
}

// === impl GrantFacts ===

impl GrantFacts {
    fn expression(&self) -> Option<RestrictedExpression> {
        let text = |s: &str| RestrictedExpression::new_string(s.to_owned());
        RestrictedExpression::new_record([
            ("id".to_owned(), text(&self.id.to_string())),
            ("actions".to_owned(), RestrictedExpression::new_set(self.actions.iter().map(|a| text(a)))),
            (
                "duration_seconds".to_owned(),
                RestrictedExpression::new_long(i64::try_from(self.duration_seconds).unwrap_or(i64::MAX)),
            ),
        ])
        .ok()
    }
}

/// Cedar's parser is slow, so the type names are parsed once a process.
pub(super) fn uid(kind: &'static str, id: &str) -> Option<EntityUid> {
    static TYPES: OnceLock<Option<[(&str, EntityTypeName); 6]>> = OnceLock::new();
    let parse = |name: &'static str| Some((name, name.parse().ok()?));
    let types = TYPES.get_or_init(|| {
        let [workload, role, service] = [parse("Workload")?, parse("Role")?, parse("Service")?];
        Some([workload, role, service, parse("Route")?, parse("Action")?, parse(PROPERTIES)?])
    });
    let (_, kind) = types.as_ref()?.iter().find(|(name, _)| *name == kind)?;
    Some(EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id)))
}
