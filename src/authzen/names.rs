//! What the words of an application mean: types of subjects and resources, and who may vouch for whom.
//!
//! Pure. INVARIANT: an id becomes one SPIFFE ID or none: it is one segment below its type's prefix, so that no id reaches out
//! of it. What is unknown is nobody, or nothing that is protected.

use super::Config;
use crate::authz::{About, AboutResource};
use crate::credential::SpiffeId;
use crate::object::{ResourceName, WorkloadPattern};

/// A workload as a subject.
pub(super) const WORKLOAD: &str = "workload";
/// A route as a resource: `service/route`.
pub(super) const ROUTE: &str = "route";
/// A service as a resource.
pub(super) const SERVICE: &str = "service";

/// An application that may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its SPIFFE ID.
    pub identity: SpiffeId,
    /// Whom it may ask about without a token of theirs.
    pub may_assert: Vec<WorkloadPattern>,
}

/// A type of subjects that an application knows by names of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectType {
    /// The type.
    pub name: String,
    /// What a subject's id is put behind to be its SPIFFE ID; ends with a slash.
    pub prefix: String,
}

/// A type of resources that an application knows by names of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceType {
    /// The type.
    pub name: String,
    /// What all of them are to policies: a route, or the service one of whose routes has the action.
    pub resource: ResourceName,
}

/// What a subject's type and id mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    /// A workload, by its SPIFFE ID.
    Workload(String),
    /// Nobody, and why.
    Nobody(&'static str),
}

/// What a resource's type and id mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Resource {
    Route(String),
    Service(String),
    /// Nothing that is protected here.
    Nothing,
}

// === impl Subject ===

impl Subject {
    pub(super) fn read(kind: &str, id: &str, config: &Config) -> Self {
        let spiffe_id = match config.subject_types.iter().find(|known| known.name == kind) {
            Some(known) if !id.contains('/') => format!("{}{id}", known.prefix),
            Some(_) => return Self::Nobody("an id of this type has no slash in it"),
            None if kind == WORKLOAD => id.to_owned(),
            None => return Self::Nobody("no such type of subject"),
        };
        match SpiffeId::parse(&spiffe_id) {
            Ok(_) => Self::Workload(spiffe_id),
            Err(_) => Self::Nobody("the id is no workload's SPIFFE ID"),
        }
    }

    /// What ids of this type begin with, as SPIFFE IDs; `None` for an unknown one.
    pub(super) fn prefix<'a>(kind: &str, config: &'a Config) -> Option<&'a str> {
        let known = config.subject_types.iter().find(|known| known.name == kind);
        known.map(|known| known.prefix.as_str()).or_else(|| (kind == WORKLOAD).then_some(""))
    }

    pub(super) fn about<'a>(&'a self, token: Option<&'a str>) -> About<'a> {
        match (self, token) {
            (Self::Workload(id), Some(token)) => About::Token { id, token },
            (Self::Workload(id), None) => About::Workload(id),
            (Self::Nobody(why), _) => About::Nobody(why),
        }
    }
}

// === impl Resource ===

impl Resource {
    pub(super) fn read(kind: &str, id: &str, config: &Config) -> Self {
        let known = config.resource_types.iter().find(|known| known.name == kind);
        match (known.map(|known| &known.resource), kind) {
            (Some(ResourceName { service, route: Some(route) }), _) => Self::Route(format!("{service}/{route}")),
            (Some(ResourceName { service, route: None }), _) => Self::Service(service.clone()),
            (None, ROUTE) => Self::Route(id.to_owned()),
            (None, SERVICE) => Self::Service(id.to_owned()),
            (None, _) => Self::Nothing,
        }
    }

    pub(super) fn about(&self) -> AboutResource<'_> {
        match self {
            Self::Route(name) => AboutResource::Route(name),
            Self::Service(name) => AboutResource::Service(name),
            Self::Nothing => AboutResource::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let subject = SubjectType { name: "user".to_owned(), prefix: "spiffe://td/users/".to_owned() };
        let resource =
            |name: &str, resource: &str| ResourceType { name: name.to_owned(), resource: resource.parse().unwrap() };
        Config {
            subject_types: vec![subject],
            resource_types: vec![resource("todo", "todo"), resource("record", "records/all")],
            ..Config::default()
        }
    }

    #[test]
    fn an_id_is_one_workload_below_its_prefix_or_nobody() {
        let config = config();
        let read = |kind, id| Subject::read(kind, id, &config);
        assert_eq!(read("user", "alice"), Subject::Workload("spiffe://td/users/alice".to_owned()));
        assert_eq!(read("workload", "spiffe://td/a"), Subject::Workload("spiffe://td/a".to_owned()));
        for (kind, id) in [
            ("user", ""),
            ("user", "a/b"),
            ("user", ".."),
            ("user", "../admin"),
            ("user", "a b"),
            ("user", "a%2Fb"),
            ("user", "a@b"),
            ("user", "spiffe://td/a"),
            ("workload", "alice"),
            ("workload", "https://td/a"),
            ("User", "alice"),
            ("spaceship", "alice"),
            ("", ""),
        ] {
            assert!(matches!(read(kind, id), Subject::Nobody(_)), "{kind} {id}");
        }
        assert_eq!(Subject::prefix("user", &config), Some("spiffe://td/users/"));
        assert_eq!((Subject::prefix("workload", &config), Subject::prefix("x", &config)), (Some(""), None));
    }

    #[test]
    fn a_resource_is_a_route_a_service_or_nothing() {
        let config = config();
        let read = |kind, id| Resource::read(kind, id, &config);
        assert_eq!(read("route", "catalog/items"), Resource::Route("catalog/items".to_owned()));
        assert_eq!(read("service", "catalog"), Resource::Service("catalog".to_owned()));
        assert_eq!(read("todo", "whatever"), Resource::Service("todo".to_owned()));
        assert_eq!(read("record", "7"), Resource::Route("records/all".to_owned()));
        assert_eq!(read("account", "7"), Resource::Nothing);
    }
}
