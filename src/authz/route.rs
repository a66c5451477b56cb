//! The route table: host, method and path of a request become a resource and an action.
//!
//! Pure; hot path: [`RouteTable::find`] borrows, and its cost grows with the path, not with the number of routes.
//! The host is chosen first: where a service names the host, services for any host do not apply, so a request is
//! never judged by the routes of a service that it will not reach. INVARIANT: of the templates for one host and
//! method, two that match the same path are one narrower than the other, or compiling fails; so the narrowest is the
//! only answer. A host that cannot be a host name, a method that is not upper-case, a path without a route: no match,
//! which denies. Long because all that a route says of its requests is compiled here.

use core::ops::Bound;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use smallvec::SmallVec;

use self::trie::{Node, Terminal};
use super::mcp::{McpTerms, TermsError};
use super::path::CanonicalPath;
use super::template::{Relation, Template, TemplateError};
use crate::object::{Authentication, Freshness, GrantTerms, Method, Route, Service};

#[cfg(test)]
mod tests;
mod trie;

/// The compiled routes of every service in scope.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<CompiledRoute>,
    tables: Vec<Table>,
    /// Table of each host that a service names.
    hosts: HashMap<Box<str>, u32>,
    /// Table of every other host.
    any_host: Option<u32>,
    /// Number of each route, by `service/route`.
    names: BTreeMap<Arc<str>, u32>,
}

/// What a request means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteMatch {
    /// Dense number of the route in its table, below [`RouteTable::len`].
    pub index: u32,
    /// Name of the service.
    pub service: Arc<str>,
    /// `service/route`.
    pub resource: Arc<str>,
    /// The action.
    pub action: Arc<str>,
    /// Which credentials a request must bring.
    pub authentication: Authentication,
    /// The origins that clients know the service by; empty: those of the request.
    pub origins: Arc<[Box<str>]>,
    /// How fresh the state must be.
    pub freshness: Freshness,
    /// What a grant on it may be at most.
    pub grants: GrantTerms,
    /// Whether the upstream gets the credential.
    pub passes_token: bool,
    /// The terms of a route that speaks the Model Context Protocol.
    pub mcp: Option<Arc<McpTerms>>,
}

/// Two routes that claim the same request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("routes `{first}` ({first_path}) and `{second}` ({second_path}) match the same requests")]
pub struct RouteConflict {
    /// `service/route`
    pub first: String,
    /// Its template.
    pub first_path: String,
    /// `service/route`
    pub second: String,
    /// Its template.
    pub second_path: String,
}

/// Why services do not compile to a route table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteTableError {
    /// Neither of two routes is narrower.
    #[error(transparent)]
    Conflict(#[from] RouteConflict),
    /// A template that does not parse. Without its route, the requests could fall to a wider one.
    #[error("route `{route}` ({path}): {error}")]
    Template {
        /// `service/route`
        route: String,
        /// Its template.
        path: String,
        /// What is wrong with it.
        error: TemplateError,
    },
    /// MCP terms that do not compile. Without them, a rule about an argument could be without effect.
    #[error("route `{route}`: {error}")]
    Mcp {
        /// `service/route`
        route: String,
        /// What is wrong with them.
        error: TermsError,
    },
}

/// What the routes of one service have in common.
#[derive(Debug)]
struct Shared {
    service: Arc<str>,
    origins: Arc<[Box<str>]>,
    authentication: Authentication,
}

#[derive(Debug)]
struct CompiledRoute {
    template: Template,
    methods: Vec<Method>,
    /// One for each action that the methods of the route can mean.
    matches: SmallVec<[RouteMatch; 1]>,
}

/// The routes of the services that share a host.
#[derive(Debug, Default)]
struct Table {
    /// Numbers of the methods that routes name.
    methods: HashMap<Box<str>, u32>,
    root: Node,
}

// === impl RouteTableError ===

impl RouteTableError {
    /// The service whose route is at fault, or the first of two that conflict.
    pub fn service(&self) -> &str {
        let route = match self {
            Self::Conflict(conflict) => &conflict.first,
            Self::Template { route, .. } | Self::Mcp { route, .. } => route,
        };
        route.split_once('/').map_or(route, |(service, _)| service)
    }
}

// === impl RouteTable ===

impl RouteTable {
    /// Compiles the routes of `services`.
    pub fn compile<'a>(services: impl IntoIterator<Item = &'a Service>) -> Result<Self, RouteTableError> {
        let services: Vec<&Service> = services.into_iter().collect();
        let mut table = Self::default();
        let mut numbers: Vec<Vec<u32>> = Vec::with_capacity(services.len());
        let mut actions = HashMap::new();
        for service in &services {
            let shared = Shared {
                service: Arc::from(service.name.as_str()),
                origins: service.origins.iter().map(|o| o.as_str().into()).collect(),
                authentication: service.authentication,
            };
            let mut of_service = Vec::with_capacity(service.routes.len());
            for route in &service.routes {
                let index = u32::try_from(table.routes.len()).unwrap_or(u32::MAX);
                let compiled = CompiledRoute::compile(index, &shared, route, &mut actions)?;
                compiled.matches.first().map(|m| table.names.insert(Arc::clone(&m.resource), index));
                table.routes.push(compiled);
                of_service.push(index);
            }
            numbers.push(of_service);
        }

        // Hosts that the same services name share a table.
        let mut by_host: BTreeMap<Cow<'_, str>, Vec<usize>> = BTreeMap::new();
        let mut any_host = Vec::new();
        for (i, service) in services.iter().enumerate() {
            if service.hosts.is_empty() {
                any_host.push(i);
            }
            for host in service.hosts.iter().filter_map(|h| host_name(h)) {
                let claimed = by_host.entry(host).or_default();
                if claimed.last() != Some(&i) {
                    claimed.push(i);
                }
            }
        }
        let mut shared: HashMap<Vec<usize>, u32> = HashMap::new();
        let routes_of = |claimed: &[usize]| -> Vec<u32> {
            claimed.iter().filter_map(|&i| numbers.get(i)).flatten().copied().collect()
        };
        for (host, claimed) in by_host {
            let number = match shared.get(&claimed) {
                Some(&number) => number,
                None => {
                    let number = table.add_table(&routes_of(&claimed))?;
                    shared.insert(claimed, number);
                    number
                }
            };
            table.hosts.insert(host.into(), number);
        }
        if !any_host.is_empty() {
            table.any_host = Some(table.add_table(&routes_of(&any_host))?);
        }
        Ok(table)
    }

    /// Number of routes.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether there are no routes.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// The route of a request; `None` denies.
    pub fn find(&self, host: &str, method: &str, path: &CanonicalPath<'_>) -> Option<&RouteMatch> {
        let host = host_name(host)?;
        let number = self.hosts.get(&*host).copied().or(self.any_host)?;
        if !Method::is_valid(method) {
            return None;
        }
        let table = self.tables.get(usize::try_from(number).ok()?)?;
        let route = table.root.find(path, table.methods.get(method).copied())?;
        self.route(route)?.match_for(method)
    }

    /// What an action means on the route of this name, whatever the request; `None` denies.
    pub fn named(&self, resource: &str, action: &str) -> Option<&RouteMatch> {
        self.actions(resource).find(|route| *route.action == *action)
    }

    /// What the route of this name can mean: one for each action.
    pub fn actions(&self, resource: &str) -> impl Iterator<Item = &RouteMatch> {
        let route = self.names.get(resource).and_then(|number| self.route(*number));
        route.into_iter().flat_map(|route| route.matches.iter())
    }

    /// The names of the routes of a service, or of all, in their order.
    pub fn names<'a>(&'a self, service: Option<&'a str>) -> impl Iterator<Item = &'a Arc<str>> {
        let of_service = move |name: &str| match service {
            None => true,
            Some(service) => name.split_once('/').is_some_and(|(of, _)| of == service),
        };
        // A service has no slash in its name, so its routes stand together.
        let from = service.map_or_else(String::new, |service| format!("{service}/"));
        let from = (Bound::Included(from.as_str()), Bound::Unbounded);
        self.names.range::<str, _>(from).map(|(name, _)| name).take_while(move |name| of_service(name))
    }

    fn route(&self, number: u32) -> Option<&CompiledRoute> {
        self.routes.get(usize::try_from(number).ok()?)
    }

    /// Builds the table of the routes with these numbers.
    fn add_table(&mut self, routes: &[u32]) -> Result<u32, RouteConflict> {
        let mut table = Table::default();
        for &number in routes {
            let Some(route) = self.route(number) else { continue };
            // The trie is walked in no particular order; of several conflicts, the same one is always told.
            let mut first: Option<RouteConflict> = None;
            table.root.overlapping(&route.template, &mut |other| {
                if let Err(found) = self.check_conflict(number, other)
                    && first.as_ref().is_none_or(|told| found.first < told.first)
                {
                    first = Some(found);
                }
                Ok::<(), RouteConflict>(())
            })?;
            if let Some(conflict) = first {
                return Err(conflict);
            }
            let methods: Vec<u32> = route.methods.iter().map(|m| table.method_number(m.as_str())).collect();
            table.root.insert(&route.template, number, &methods);
        }
        let number = u32::try_from(self.tables.len()).unwrap_or(u32::MAX);
        self.tables.push(table);
        Ok(number)
    }

    /// Fails if route `number` and one that ends in `terminal` claim the same requests.
    fn check_conflict(&self, number: u32, terminal: &Terminal) -> Result<(), RouteConflict> {
        let Some(route) = self.route(number) else { return Ok(()) };
        let mut templates_conflict = None;
        for other in terminal.routes().filter_map(|n| self.route(n)) {
            // The routes that end in one terminal have the same template, up to spelling.
            let conflict = *templates_conflict.get_or_insert_with(|| {
                matches!(route.template.relation(&other.template), Relation::Same | Relation::Overlap)
            });
            if !conflict {
                return Ok(());
            }
            if route.shares_a_method(other) {
                return Err(RouteConflict {
                    first: other.resource().to_owned(),
                    first_path: other.template.as_str().to_owned(),
                    second: route.resource().to_owned(),
                    second_path: route.template.as_str().to_owned(),
                });
            }
        }
        Ok(())
    }
}

// === impl CompiledRoute ===

impl CompiledRoute {
    fn compile(
        index: u32,
        shared: &Shared,
        route: &Route,
        actions: &mut HashMap<String, Arc<str>>,
    ) -> Result<Self, RouteTableError> {
        let resource: Arc<str> = Arc::from(format!("{}/{}", shared.service, route.name));
        let template = Template::parse(&route.path).map_err(|error| RouteTableError::Template {
            route: resource.to_string(),
            path: route.path.clone(),
            error,
        })?;
        let mcp = route.mcp.as_deref().map(|mcp| McpTerms::compile(&shared.service, mcp)).transpose();
        let mcp = mcp.map_err(|error| RouteTableError::Mcp { route: resource.to_string(), error })?.map(Arc::new);
        let mut names: Vec<&str> = if route.methods.is_empty() {
            route.action.as_deref().map_or_else(|| Route::DEFAULT_ACTIONS.to_vec(), |action| vec![action])
        } else {
            route.methods.iter().map(|m| route.action_for(m.as_str())).collect()
        };
        names.sort_unstable();
        names.dedup();
        let matches = names
            .into_iter()
            .map(|action| RouteMatch {
                index,
                service: Arc::clone(&shared.service),
                authentication: route.authentication.unwrap_or(shared.authentication),
                origins: Arc::clone(&shared.origins),
                resource: resource.clone(),
                action: actions.entry(action.to_owned()).or_insert_with(|| Arc::from(action)).clone(),
                freshness: route.freshness,
                grants: route.grants,
                passes_token: route.passes_token(),
                mcp: mcp.clone(),
            })
            .collect();
        let mut methods = route.methods.clone();
        methods.sort_unstable();
        methods.dedup();
        Ok(Self { template, methods, matches })
    }

    /// What `method` means here, which is one of the route's methods.
    fn match_for(&self, method: &str) -> Option<&RouteMatch> {
        match self.matches.as_slice() {
            [only] => Some(only),
            several => {
                let action = Route::default_action(method);
                several.iter().find(|m| *m.action == *action)
            }
        }
    }

    fn shares_a_method(&self, other: &Self) -> bool {
        self.methods.is_empty()
            || other.methods.is_empty()
            || self.methods.iter().any(|m| other.methods.binary_search(m).is_ok())
    }

    fn resource(&self) -> &str {
        self.matches.first().map_or("", |m| &m.resource)
    }
}

// === impl Table ===

impl Table {
    fn method_number(&mut self, method: &str) -> u32 {
        let next = u32::try_from(self.methods.len()).unwrap_or(u32::MAX);
        *self.methods.entry(method.into()).or_insert(next)
    }
}

/// The host of an `:authority` or `Host`: without port and trailing dot, in lower case. An address in brackets and
/// no host at all are `""`, which only services for any host answer to. `None` for what cannot be a host.
pub(super) fn host_name(authority: &str) -> Option<Cow<'_, str>> {
    if authority.is_empty() {
        return Some(Cow::Borrowed(""));
    }
    let is_port = |port: &str| port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
    if let Some(address) = authority.strip_prefix('[') {
        let (address, after) = address.split_once(']')?;
        let valid = address.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'));
        let port_valid = after.is_empty() || after.strip_prefix(':').is_some_and(is_port);
        return (valid && !address.is_empty() && port_valid).then_some(Cow::Borrowed(""));
    }
    let (name, port) = authority.split_once(':').unwrap_or((authority, ""));
    let name = name.strip_suffix('.').unwrap_or(name);
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if name.is_empty() || name.ends_with('.') || name.len() > 253 || !name.bytes().all(ok) || !is_port(port) {
        return None;
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Some(Cow::Owned(name.to_ascii_lowercase()));
    }
    Some(Cow::Borrowed(name))
}
