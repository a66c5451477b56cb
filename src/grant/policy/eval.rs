//! Putting a request, or an approval of it, to the grant policies.
//!
//! Pure. Once for each resource that the request names: each must be permitted, and the strictest terms of all count. A
//! grant on a service covers all its routes, so a service is put as itself, as each of its routes that a policy names, and
//! as one that none names: what a policy says of a route cannot be got around by asking for the whole.
//! Fails closed: what cannot be put to Cedar is an error, and any error refuses.

use std::collections::{BTreeSet, HashSet};

use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
};

use super::terms::Terms;
use super::{GrantPolicies, Refusal};
use crate::object::{Grant, Needs, Party, PartyKind, ResourceName, Workload};

/// A request, with what policies may know of those whom it is about.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The request.
    pub grant: &'a Grant,
    /// For whom.
    pub workload: &'a Workload,
    /// Who asks.
    pub requester: Requester<'a>,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub enum Requester<'a> {
    /// An operator, as it was authenticated when it asked.
    Operator,
    /// A registered workload.
    Workload(&'a Workload),
}

/// What all policies say of one resource.
enum Verdict {
    Permit(Vec<String>),
    Refuse(Refusal),
}

impl GrantPolicies {
    /// What a request needs under these policies, or why it is refused.
    pub fn request(&self, ask: &Ask<'_>) -> Result<Needs, Refusal> {
        let action = if ask.grant.break_glass { "break_glass" } else { "request" };
        let principal = ask.requester();
        let (mut ids, mut terms) = (BTreeSet::new(), Vec::new());
        for resource in self.covered_by(ask.grant) {
            let context = ask.context(Vec::new());
            match self.put(ask, principal.clone(), action, resource, context) {
                Verdict::Permit(permits) => {
                    terms.extend(permits.iter().filter_map(|id| self.terms.get(id)));
                    ids.extend(permits);
                }
                Verdict::Refuse(refusal) => return Err(refusal),
            }
        }
        let terms = Terms::strictest(terms).ok_or(Refusal::NoMatch)?;
        terms.check(ask.grant)?;
        Ok(terms.needs(ids.into_iter().collect()))
    }

    /// Whether somebody may approve a step of a request. The rules that hold without any policy are not asked here.
    pub fn may_approve(&self, ask: &Ask<'_>, approver: &str, party: &Party, step: &str) -> Result<(), Refusal> {
        if party.kind == PartyKind::Workload {
            return Err(Refusal::NoMatch);
        }
        let principal = operator(approver, party);
        for resource in self.covered_by(ask.grant) {
            let text = RestrictedExpression::new_string;
            let more = vec![
                ("step".to_owned(), text(step.to_owned())),
                ("requester".to_owned(), text(ask.grant.requested_by.clone())),
            ];
            match self.put(ask, principal.clone(), "approve", resource, ask.context(more)) {
                Verdict::Permit(_) => {}
                Verdict::Refuse(refusal) => return Err(refusal),
            }
        }
        Ok(())
    }

    /// Everything that the resources of a grant cover, as far as policies can tell it apart.
    fn covered_by<'a>(&'a self, grant: &'a Grant) -> impl Iterator<Item = Option<Entity>> + 'a {
        grant.resources.iter().flat_map(|resource| {
            let whole = resource.route.is_none().then(|| {
                let within = format!("{}/", resource.service);
                let named = self.routes.iter().filter(move |name| name.starts_with(&within));
                // No route can have such a name, so no policy can be about it.
                let other = std::iter::once(format!("{}/*", resource.service));
                named.cloned().chain(other).map(|name| route(&resource.service, &name))
            });
            std::iter::once(entity_of(resource)).chain(whole.into_iter().flatten())
        })
    }

    fn put(
        &self,
        ask: &Ask<'_>,
        principal: Option<Entity>,
        action: &str,
        resource: Option<Entity>,
        context: Option<Context>,
    ) -> Verdict {
        let asked = || {
            let principal = principal?;
            let uid = principal.uid();
            let resource = resource?;
            let about = resource.uid();
            let subject = workload(ask.workload)?;
            // Who asks for itself is one entity, and is given once.
            let mut all = vec![resource];
            if subject.uid() != uid {
                all.push(subject);
            }
            all.push(principal);
            let entities = Entities::from_entities(all, None).ok()?;
            let request = Request::new(uid, self::uid("Action", action)?, about, context?, None).ok()?;
            Some(Authorizer::new().is_authorized(&request, &self.set, &entities))
        };
        let Some(response) = asked() else { return Verdict::Refuse(Refusal::Failed(Vec::new())) };
        let mut reasons: Vec<String> = response.diagnostics().reason().map(ToString::to_string).collect();
        reasons.sort_unstable();
        let failed: Vec<String> = response
            .diagnostics()
            .errors()
            .map(|cedar_policy::AuthorizationError::PolicyEvaluationError(e)| e.policy_id().to_string())
            .collect();
        match response.decision() {
            _ if !failed.is_empty() => Verdict::Refuse(Refusal::Failed(failed)),
            Decision::Allow => Verdict::Permit(reasons),
            Decision::Deny if reasons.is_empty() => Verdict::Refuse(Refusal::NoMatch),
            Decision::Deny => Verdict::Refuse(Refusal::Forbidden(reasons)),
        }
    }
}

// === impl Ask ===

impl Ask<'_> {
    fn requester(&self) -> Option<Entity> {
        match (self.requester, self.grant.requester.kind) {
            (Requester::Workload(asking), PartyKind::Workload) => workload(asking),
            (Requester::Operator, PartyKind::Person | PartyKind::Automation) => {
                operator(&self.grant.requested_by, &self.grant.requester)
            }
            _ => None,
        }
    }

    fn context(&self, mut pairs: Vec<(String, RestrictedExpression)>) -> Option<Context> {
        let Grant { actions, path, conditions, call, uses, starts_at, reason, ticket, renews, .. } = self.grant;
        let text = |s: &str| RestrictedExpression::new_string(s.to_owned());
        let for_itself = matches!(self.requester, Requester::Workload(asking) if asking.id == self.workload.id);
        let duration = i64::try_from(self.grant.duration_seconds).ok()?;
        pairs.extend(
            [
                ("workload", RestrictedExpression::new_entity_uid(uid("Workload", self.workload.id.as_str())?)),
                ("for_itself", RestrictedExpression::new_bool(for_itself)),
                ("actions", RestrictedExpression::new_set(actions.iter().map(|a| text(a)))),
                ("duration_seconds", RestrictedExpression::new_long(duration)),
                ("reason", text(reason)),
                ("conditional", RestrictedExpression::new_bool(!conditions.is_empty())),
                ("exact_call", RestrictedExpression::new_bool(call.is_some())),
                ("scheduled", RestrictedExpression::new_bool(starts_at.is_some())),
                ("renewal", RestrictedExpression::new_bool(renews.is_some())),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        pairs.extend(ticket.iter().map(|ticket| ("ticket".to_owned(), text(ticket))));
        pairs.extend(path.iter().map(|path| ("path".to_owned(), text(path))));
        pairs.extend(uses.iter().map(|uses| ("uses".to_owned(), RestrictedExpression::new_long(i64::from(*uses)))));
        Context::from_pairs(pairs).ok()
    }
}

fn operator(name: &str, party: &Party) -> Option<Entity> {
    let groups: Option<HashSet<EntityUid>> = party.groups.iter().map(|group| uid("Group", group)).collect();
    let kind = RestrictedExpression::new_string(party.kind.name().to_owned());
    Entity::new(uid("Operator", name)?, [("kind".to_owned(), kind)].into(), groups?).ok()
}

fn workload(workload: &Workload) -> Option<Entity> {
    let roles: Option<Vec<EntityUid>> = workload.roles.iter().map(|role| uid("Role", role)).collect();
    let text = |s: &str| RestrictedExpression::new_string(s.to_owned());
    let attrs = [
        ("kind".to_owned(), text(workload.kind.name())),
        ("environment".to_owned(), text(&workload.environment)),
        ("owner".to_owned(), text(&workload.owner)),
    ];
    let tags = workload.labels.iter().map(|(name, value)| (name.clone(), text(value)));
    Entity::new_with_tags(uid("Workload", workload.id.as_str())?, attrs, roles?, tags).ok()
}

/// A resource. A service has no attributes, so that Cedar needs no entity for the one that a route is in.
fn entity_of(resource: &ResourceName) -> Option<Entity> {
    match &resource.route {
        Some(_) => route(&resource.service, &resource.to_string()),
        None => Some(Entity::new_no_attrs(uid("Service", &resource.service)?, HashSet::new())),
    }
}

fn route(service: &str, name: &str) -> Option<Entity> {
    Some(Entity::new_no_attrs(uid("Route", name)?, HashSet::from([uid("Service", service)?])))
}

fn uid(kind: &'static str, id: &str) -> Option<EntityUid> {
    let kind: EntityTypeName = kind.parse().ok()?;
    Some(EntityUid::from_type_name_and_id(kind, EntityId::new(id)))
}
