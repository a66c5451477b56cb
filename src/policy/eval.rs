//! Evaluating the policies that can apply to one request.
//!
//! Pure. Slices are evaluated one by one and combined as Cedar would: a forbid anywhere denies, an error anywhere
//! denies, otherwise a permit anywhere allows. Whatever cannot be expressed to Cedar is an error, and so denies.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
};

use super::compiled::CompiledPolicies;
use crate::object::{GrantId, Workload};

/// A workload as a Cedar principal, made once per workload.
#[derive(Debug, Clone)]
pub struct PrincipalEntity {
    uid: EntityUid,
    /// The principal and its roles, each with the text form that scopes are indexed by.
    entities: Vec<Entity>,
    names: Vec<Box<str>>,
}

/// A route as a Cedar resource, made once per route.
#[derive(Debug, Clone)]
pub struct ResourceEntity {
    uid: EntityUid,
    entities: Vec<Entity>,
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
    /// The grant that covers the request, if one does.
    pub grant: Option<&'a GrantFacts>,
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
        let unique: HashSet<EntityUid> = roles.into_iter().collect();
        let entities = std::iter::once(principal)
            .chain(unique.into_iter().map(|r| Entity::new_no_attrs(r, HashSet::new())))
            .collect();
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
        let entities = vec![
            Entity::new_no_attrs(uid.clone(), HashSet::from([parent.clone()])),
            Entity::new_no_attrs(parent, HashSet::new()),
        ];
        Some(Self { uid, entities, names })
    }
}

// === impl CompiledPolicies ===

impl CompiledPolicies {
    /// Evaluates the policies that can apply.
    pub fn evaluate(
        &self,
        principal: &PrincipalEntity,
        action: &str,
        resource: &ResourceEntity,
        facts: &Facts<'_>,
    ) -> Outcome {
        let slices = self.slices(principal.names.iter().map(|n| &**n), resource.names.iter().map(|n| &**n));
        let mut slices = slices.peekable();
        if slices.peek().is_none() {
            return Outcome::NoMatch;
        }
        let Some((request, entities)) = self.question(principal, action, resource, facts) else {
            return Outcome::Error(Arc::from([]));
        };
        let authorizer = Authorizer::new();
        let (mut permits, mut forbids, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for slice in slices {
            let response = authorizer.is_authorized(&request, slice, &entities);
            let decided = if response.decision() == Decision::Allow { &mut permits } else { &mut forbids };
            decided.extend(response.diagnostics().reason().map(|id| Box::from(AsRef::<str>::as_ref(id))));
            errors.extend(response.diagnostics().errors().map(|e| match e {
                cedar_policy::AuthorizationError::PolicyEvaluationError(e) => {
                    Box::from(AsRef::<str>::as_ref(e.policy_id()))
                }
            }));
        }
        let sorted = |mut ids: Vec<Box<str>>| {
            ids.sort_unstable();
            Arc::from(ids)
        };
        if !errors.is_empty() {
            Outcome::Error(sorted(errors))
        } else if !forbids.is_empty() {
            Outcome::Forbid(sorted(forbids))
        } else if !permits.is_empty() {
            Outcome::Allow(sorted(permits))
        } else {
            Outcome::NoMatch
        }
    }

    pub(super) fn question(
        &self,
        principal: &PrincipalEntity,
        action: &str,
        resource: &ResourceEntity,
        facts: &Facts<'_>,
    ) -> Option<(Request, Entities)> {
        let reads = self.reads();
        let text = |s: &str| RestrictedExpression::new_string(s.to_owned());
        let mut pairs = Vec::with_capacity(4);
        for (read, name, value) in
            [(reads.method, "method", facts.method), (reads.path, "path", facts.path), (reads.host, "host", facts.host)]
        {
            if read {
                pairs.push((name.to_owned(), text(value)));
            }
        }
        if let Some(grant) = facts.grant.filter(|_| reads.grant) {
            pairs.push(("grant".to_owned(), grant.expression()?));
        }
        let context = if pairs.is_empty() { Context::empty() } else { Context::from_pairs(pairs).ok()? };
        let request =
            Request::new(principal.uid.clone(), uid("Action", action)?, resource.uid.clone(), context, None).ok()?;
        let entities = principal.entities.iter().chain(&resource.entities).cloned();
        Some((request, Entities::from_entities(entities, None).ok()?))
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
fn uid(kind: &'static str, id: &str) -> Option<EntityUid> {
    static TYPES: OnceLock<Option<[(&str, EntityTypeName); 5]>> = OnceLock::new();
    let parse = |name: &'static str| Some((name, name.parse().ok()?));
    let types = TYPES.get_or_init(|| {
        Some([parse("Workload")?, parse("Role")?, parse("Service")?, parse("Route")?, parse("Action")?])
    });
    let (_, kind) = types.as_ref()?.iter().find(|(name, _)| *name == kind)?;
    Some(EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id)))
}
