//! Rules that span objects, checked against the index before a commit.
//!
//! Plane: control; pure. Each rule reads the index and says which field is wrong. What it rests on is guarded by the
//! unit that its caller builds, so that a rule that held when it was checked still holds at commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::fleet::PointConfig;
use super::index::{Index, Stored};
use crate::authz::{Relation, RouteTable, RouteTableError, Template, metadata_place};
use crate::credential::{self, SpiffeId};
use crate::object::{
    ArgumentType, FieldError, Grant, GrantState, GrantTerms, Issuer, IssuerKind, Kind, Object, Review, Revocation,
    Route, Service, Workload,
};
use crate::policy::BUILTIN_ACTIONS;

/// A grant, if `stored` is one.
pub(super) fn as_grant(stored: &Stored) -> Option<&Grant> {
    match &stored.object {
        Some(Object::Grant(grant)) => Some(grant),
        _ => None,
    }
}

/// A review, if `stored` is one.
pub(super) fn as_review(stored: &Stored) -> Option<&Review> {
    match &stored.object {
        Some(Object::Review(review)) => Some(review),
        _ => None,
    }
}

/// A service, if `stored` is one.
pub(super) fn as_service(stored: &Stored) -> Option<&Service> {
    match &stored.object {
        Some(Object::Service(service)) => Some(service),
        _ => None,
    }
}

/// A workload, if `stored` is one.
pub(super) fn as_workload(stored: &Stored) -> Option<&Workload> {
    match &stored.object {
        Some(Object::Workload(workload)) => Some(workload),
        _ => None,
    }
}

/// An issuer, if `stored` is one.
pub(super) fn as_issuer(stored: &Stored) -> Option<&Issuer> {
    match &stored.object {
        Some(Object::Issuer(issuer)) => Some(issuer.as_ref()),
        _ => None,
    }
}

/// Keys can be used; one issuer answers for a trust domain or `iss`, and always for the same one and in the same way,
/// because workloads are mapped and tokens revoked by its name.
pub(super) fn issuer(index: &Index, new: &Issuer) -> Result<(), FieldError> {
    credential::check_issuer(new)?;
    for stored in index.list(Kind::Issuer) {
        let Some(other) = as_issuer(&stored) else { continue };
        let field = if new.kind == IssuerKind::Spiffe { "trust_domain" } else { "issuer" };
        if other.name == new.name {
            if other.kind != new.kind {
                let message = format!("is `{}` and cannot change; delete the issuer and create another", other.kind);
                return Err(FieldError::new("kind", message));
            }
            if other.authority() != new.authority() {
                let message =
                    format!("is `{}` and cannot change; delete the issuer and create another", other.authority());
                return Err(FieldError::new(field, message));
            }
        } else if credential::same_tokens(other, new) {
            let message = format!("issuer `{}` vouches for `{}` already", other.name, new.authority());
            return Err(FieldError::new(field, message));
        }
    }
    Ok(())
}

/// The mappings of a workload are of issuers that exist, and each pins what its kind of issuer demands.
pub(super) fn mappings(index: &Index, new: &Workload) -> Result<(), FieldError> {
    for (i, mapping) in new.credentials.iter().enumerate() {
        let at = |field: &str| format!("credentials[{i}].{field}");
        let stored = index.get(Kind::Issuer, &mapping.issuer);
        let Some(issuer) = stored.as_deref().and_then(as_issuer) else {
            return Err(FieldError::new(at("issuer"), format!("there is no issuer `{}`", mapping.issuer)));
        };
        mapping.check_for(issuer.kind).map_err(|e| FieldError::new(at(&e.field), e.message))?;
    }
    Ok(())
}

/// A revocation, if `stored` is one.
pub(super) fn as_revocation(stored: &Stored) -> Option<&Revocation> {
    match &stored.object {
        Some(Object::Revocation(revocation)) => Some(revocation),
        _ => None,
    }
}

/// Whether a workload of this id has been retired: its id is never used again.
pub(super) fn is_retired(index: &Index, id: &str) -> bool {
    index.get(Kind::Workload, id).is_none() && !index.revocations_of(id).is_empty()
}

/// The workload, if it can get anything new now: it is registered, and neither suspended nor revoked.
pub(super) fn in_service(index: &Index, id: &SpiffeId) -> Result<Arc<Stored>, FieldError> {
    let refused = |what: &str| FieldError::new("workload", format!("`{id}` {what}"));
    let stored = index.get(Kind::Workload, id.as_str());
    let stored = stored.ok_or_else(|| {
        refused(if is_retired(index, id.as_str()) { "has been retired" } else { "is not registered" })
    })?;
    if as_workload(&stored).is_some_and(|workload| workload.suspended.is_some()) {
        return Err(refused("is suspended"));
    }
    match index.revocations_of(id.as_str()).first() {
        Some(revocation) => Err(refused(&format!("has been revoked, by `{}`", revocation.key))),
        None => Ok(stored),
    }
}

/// The routes of a service conflict neither with each other nor with those of a service that some enforcement point
/// protects together with it.
pub(super) fn service(index: &Index, points: &[PointConfig], new: &Service) -> Result<(), FieldError> {
    let others: Vec<Arc<Stored>> = index.list(Kind::Service);
    let alone = std::iter::once(&[] as &[String]);
    let shared = points.iter().filter(|s| s.services.contains(&new.name)).map(|s| s.services.as_slice());
    for names in alone.chain(shared) {
        let neighbours =
            others.iter().filter_map(|s| as_service(s)).filter(|s| s.name != new.name && names.contains(&s.name));
        RouteTable::compile(neighbours.chain([new])).map_err(|e| route_error(new, &e))?;
    }
    let others = others.iter().filter_map(|s| as_service(s)).filter(|s| s.name != new.name);
    mcp_resources(others.clone(), new)?;
    // The new one last, so that it is the one at fault.
    mcp_arguments(others.chain([new])).map(|_types| ())
}

/// Names the route of `new` that an error is about.
fn route_error(new: &Service, error: &RouteTableError) -> FieldError {
    let position = |resource: &str| {
        let route = resource.strip_prefix(&new.name)?.strip_prefix('/')?;
        new.routes.iter().position(|r| r.name == route)
    };
    let found = match error {
        // The later one of two is the one that was too much.
        RouteTableError::Conflict(c) => position(&c.first).max(position(&c.second)),
        RouteTableError::Template { route, .. } | RouteTableError::Mcp { route, .. } => position(route),
    };
    let part = if matches!(error, RouteTableError::Mcp { .. }) { "mcp.arguments" } else { "path" };
    let field = found.map_or_else(|| "routes".to_owned(), |i| format!("routes[{i}].{part}"));
    FieldError::new(field, error.to_string())
}

/// The actions that routes name, beside the built-in ones.
pub(super) fn custom_actions(index: &Index) -> Vec<String> {
    let services = index.list(Kind::Service);
    let actions: BTreeSet<&str> = services
        .iter()
        .filter_map(|s| as_service(s))
        .flat_map(|s| s.routes.iter().filter_map(|r| r.action.as_deref()))
        .filter(|a| !BUILTIN_ACTIONS.contains(a))
        .collect();
    actions.into_iter().map(str::to_owned).collect()
}

/// The arguments of MCP tools that stored services name, and their types.
pub(super) fn arguments_of_tools(index: &Index) -> BTreeMap<String, ArgumentType> {
    let services = index.list(Kind::Service);
    // No service is stored that gives a name another type.
    mcp_arguments(services.iter().filter_map(|s| as_service(s))).unwrap_or_default()
}

/// No other service says of itself that it is a resource of `new`, or is told of in the same place: a client would be sent
/// to the authorization servers of whichever comes first.
fn mcp_resources<'a>(others: impl Iterator<Item = &'a Service> + Clone, new: &Service) -> Result<(), FieldError> {
    for (i, route) in new.routes.iter().enumerate() {
        let Some(resource) = route.mcp.as_ref().and_then(|mcp| mcp.resource.as_deref()) else { continue };
        let place = metadata_place(resource);
        let claims = |other: &&Service| {
            let mut theirs = other.routes.iter().filter_map(|route| route.mcp.as_ref()?.resource.as_deref());
            theirs.any(|their| their == resource || (place.is_some() && metadata_place(their) == place))
        };
        if let Some(other) = others.clone().find(claims) {
            let message = format!("service `{}` says already what the resource in this place is like", other.name);
            return Err(FieldError::new(format!("routes[{i}].mcp.resource"), message));
        }
    }
    Ok(())
}

/// The arguments of MCP tools that routes name, and their types; an error when two give one name two types.
pub(super) fn mcp_arguments<'a>(
    services: impl IntoIterator<Item = &'a Service>,
) -> Result<BTreeMap<String, ArgumentType>, FieldError> {
    let mut types = BTreeMap::new();
    for service in services {
        for (i, route) in service.routes.iter().enumerate() {
            for (name, argument) in route.mcp.iter().flat_map(|mcp| &mcp.arguments) {
                if *types.entry(name.clone()).or_insert(argument.kind) != argument.kind {
                    let field = format!("routes[{i}].mcp.arguments.{name}.type");
                    let message = "is of another type on another route; in policies, a name has one type";
                    return Err(FieldError::new(field, message));
                }
            }
        }
    }
    Ok(types)
}

/// What a grant asks for exists and may be had for that long. Answers the services that this rests on.
pub(super) fn grantable(index: &Index, grant: &Grant) -> Result<Vec<Arc<Stored>>, FieldError> {
    let mut services: Vec<Arc<Stored>> = Vec::new();
    let mut actions = BTreeSet::new();
    let mut reachable = false;
    let narrowed = match &grant.path {
        Some(path) => Some(Template::parse(path).map_err(|e| FieldError::new("path", format!("`{path}`: {e}")))?),
        None => None,
    };
    for (i, resource) in grant.resources.iter().enumerate() {
        let field = format!("resources[{i}]");
        let missing = || FieldError::new(field.clone(), format!("there is no `{resource}`"));
        let stored = index.get(Kind::Service, &resource.service).ok_or_else(missing)?;
        let service = as_service(&stored).ok_or_else(missing)?;
        let wanted = |r: &&Route| resource.route.as_ref().is_none_or(|name| *name == r.name);
        let routes: Vec<&Route> = service.routes.iter().filter(wanted).collect();
        if routes.is_empty() && resource.route.is_some() {
            return Err(missing());
        }
        let longest = routes.iter().map(|r| r.grants.max_duration_seconds).min();
        let longest = longest.unwrap_or(GrantTerms::default().max_duration_seconds);
        if grant.duration_seconds > longest {
            let message = format!("a grant on `{resource}` lasts at most {longest} seconds");
            return Err(FieldError::new("duration_seconds", message));
        }
        // An emergency does not wait for its uses to be counted out.
        if let Some(most) = routes.iter().filter_map(|r| r.grants.max_uses).min().filter(|_| !grant.break_glass)
            && grant.uses.is_none_or(|n| n > most)
        {
            return Err(FieldError::new("uses", format!("a grant on `{resource}` is for at most {most} uses")));
        }
        for route in routes {
            actions.extend(actions_of(route).map(str::to_owned));
            reachable |= narrowed
                .as_ref()
                .is_none_or(|path| Template::parse(&route.path).is_ok_and(|t| t.relation(path) != Relation::Disjoint));
        }
        if !services.iter().any(|s| s.key == stored.key) {
            services.push(stored);
        }
    }
    if let Some((i, action)) = grant.actions.iter().enumerate().find(|(_, a)| !actions.contains(*a)) {
        let known: Vec<&str> = actions.iter().map(String::as_str).collect();
        let message = format!("`{action}` is no action of these resources; they have: {}", known.join(", "));
        return Err(FieldError::new(format!("actions[{i}]"), message));
    }
    if !reachable {
        return Err(FieldError::new("path", "no request to these resources has such a path"));
    }
    Ok(services)
}

/// The actions that requests for a route can mean.
pub(super) fn actions_of(route: &Route) -> impl Iterator<Item = &str> {
    let defaults = if route.action.is_none() && route.methods.is_empty() { &Route::DEFAULT_ACTIONS[..] } else { &[] };
    let by_method = if route.action.is_none() { route.methods.as_slice() } else { &[] };
    route
        .action
        .as_deref()
        .into_iter()
        .chain(by_method.iter().map(|m| Route::default_action(m.as_str())))
        .chain(defaults.iter().copied())
}

/// The live grants and requests that name a resource of `service`; with `routes`, only those that name one of these.
pub(super) fn live_grants_on(index: &Index, service: &str, routes: Option<&BTreeSet<&str>>) -> Vec<Arc<Stored>> {
    let names = |grant: &Grant| {
        grant.resources.iter().any(|r| {
            r.service == service
                && routes.is_none_or(|gone| r.route.as_deref().is_some_and(|route| gone.contains(route)))
        })
    };
    let mut grants = index.list(Kind::Grant);
    grants.retain(|stored| as_grant(stored).is_some_and(|g| !g.state.is_terminal() && names(g)));
    grants
}

/// What ends with a workload: its live grants and requests, and the requests that it has made for others and that wait.
pub(super) fn ending_with(index: &Index, workload: &SpiffeId) -> Vec<Arc<Stored>> {
    let ends = |grant: &Grant| {
        let asks = grant.state == GrantState::Pending && grant.requested_by == workload.as_str();
        !grant.state.is_terminal() && (grant.workload == *workload || asks)
    };
    let mut grants = index.list(Kind::Grant);
    grants.retain(|stored| as_grant(stored).is_some_and(ends));
    grants
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_argument_has_one_type_in_policies() {
        let service = |name: &str, kind: &str| -> Service {
            let mcp = json!({"arguments": {"amount": {"type": kind}}});
            let routes = json!([{"name": "plain", "path": "/x"}, {"name": "mcp", "path": "/mcp", "mcp": mcp}]);
            serde_json::from_value(json!({"name": name, "routes": routes})).unwrap()
        };
        let types = mcp_arguments([&service("a", "long"), &service("b", "long")]).unwrap();
        assert_eq!(types, BTreeMap::from([("amount".to_owned(), ArgumentType::Long)]));
        let error = mcp_arguments([&service("a", "long"), &service("b", "string")]).unwrap_err();
        assert_eq!(error.field, "routes[1].mcp.arguments.amount.type");
    }
}
