//! `authzen:` of `sidecar.yaml`: which applications may ask directly, about whom, and what their words mean.
//!
//! Plane: composition. Fails closed: without callers nobody is answered, and a caller that is not told whom it may vouch for
//! has to bring tokens.

use serde::{Deserialize, Serialize};

use crate::authzen::{Caller, ResourceType, SubjectType};
use crate::config::load::ConfigError;
use crate::config::values::{HttpUrl, Identity};
use crate::credential::SpiffeId;
use crate::object::{ResourceName, WorkloadPattern};

/// Applications that ask directly (AuthZEN 1.0), at `listeners.forward_auth`.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Authzen")]
pub struct RawAuthzen {
    /// Where applications reach it, as in `https://pdp.example`: for `/.well-known/authzen-configuration`, and for their
    /// proofs of possession. Null: there is no such document.
    pub url: Option<HttpUrl>,
    /// The applications that may ask, each by a workload token of its own. Default: nobody, not even from this machine.
    pub callers: Vec<RawCaller>,
    /// Types of subjects beside `workload`, whose ids are SPIFFE IDs.
    pub subject_types: Vec<RawSubjectType>,
    /// Types of resources beside `route` (`service/route`) and `service`.
    pub resource_types: Vec<RawResourceType>,
    /// Evaluations in one call; more are refused.
    pub max_evaluations: u32,
}

/// An application that may ask.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "AuthzenCaller")]
pub struct RawCaller {
    /// Required. Its SPIFFE ID.
    pub identity: Option<Identity>,
    /// Whose names it may give without a token of theirs: SPIFFE IDs, or everything below one, as in
    /// `spiffe://example.org/users/*`. Whoever is on this list is whoever it says. Default: nobody, so that each question
    /// needs `subject.properties.token`.
    pub may_assert: Vec<String>,
}

/// A type of subjects that applications know by names of their own.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "AuthzenSubjectType")]
pub struct RawSubjectType {
    /// Required. As in `user`.
    #[serde(rename = "type")]
    pub name: String,
    /// Required. What a subject's id is put behind to be its SPIFFE ID, as in `spiffe://example.org/users/`. An id is one
    /// segment, without a slash.
    pub prefix: String,
}

/// A type of resources that applications know by names of their own.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "AuthzenResourceType")]
pub struct RawResourceType {
    /// Required. As in `todo`.
    #[serde(rename = "type")]
    pub name: String,
    /// Required. What all of them are to policies: a route, or a service one of whose routes has the action. Which of them
    /// is meant is in `context.asked`.
    pub resource: String,
}

/// Applications that ask directly, validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authzen {
    /// Without a slash at its end.
    pub url: Option<String>,
    /// Those that may ask.
    pub callers: Vec<Caller>,
    /// Their types of subjects.
    pub subject_types: Vec<SubjectType>,
    /// Their types of resources.
    pub resource_types: Vec<ResourceType>,
    /// Evaluations in one call, at least one.
    pub max_evaluations: usize,
}

// === impl RawAuthzen ===

impl RawAuthzen {
    pub(super) fn validate(self) -> Result<Authzen, ConfigError> {
        let url = self.url.map(|url| url.to_string().trim_end_matches('/').to_owned());
        if let Some(url) = &url {
            let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or(url);
            if host.contains(['/', '?']) {
                return Err(ConfigError::value("authzen.url", "must have no path: the API begins at `/access/v1`"));
            }
        }
        if !(1..=1000).contains(&self.max_evaluations) {
            return Err(ConfigError::value("authzen.max_evaluations", "must be between 1 and 1000"));
        }
        let each = |(i, caller): (usize, RawCaller)| caller.validate(&format!("authzen.callers[{i}]"));
        let callers: Vec<Caller> = self.callers.into_iter().enumerate().map(each).collect::<Result<_, _>>()?;
        if let Some(i) = first_double(&callers, |caller| caller.identity.as_str()) {
            return Err(ConfigError::value(format!("authzen.callers[{i}].identity"), "occurs twice"));
        }
        let each = |(i, kind): (usize, RawSubjectType)| kind.validate(&format!("authzen.subject_types[{i}]"));
        let subject_types: Vec<_> = self.subject_types.into_iter().enumerate().map(each).collect::<Result<_, _>>()?;
        let each = |(i, kind): (usize, RawResourceType)| kind.validate(&format!("authzen.resource_types[{i}]"));
        let resource_types: Vec<_> = self.resource_types.into_iter().enumerate().map(each).collect::<Result<_, _>>()?;
        for (key, double) in [
            ("subject_types", first_double(&subject_types, |kind: &SubjectType| kind.name.as_str())),
            ("resource_types", first_double(&resource_types, |kind: &ResourceType| kind.name.as_str())),
        ] {
            if let Some(i) = double {
                return Err(ConfigError::value(format!("authzen.{key}[{i}].type"), "occurs twice"));
            }
        }
        let max_evaluations = self.max_evaluations as usize;
        Ok(Authzen { url, callers, subject_types, resource_types, max_evaluations })
    }
}

impl RawCaller {
    fn validate(self, key: &str) -> Result<Caller, ConfigError> {
        let Some(Identity(identity)) = self.identity else {
            return Err(ConfigError::value(format!("{key}.identity"), "is required"));
        };
        for (i, pattern) in self.may_assert.iter().enumerate() {
            let id = match pattern.strip_suffix("/*") {
                Some(below) => format!("{below}/x"),
                None => pattern.clone(),
            };
            if let Err(e) = SpiffeId::parse(&id) {
                return Err(ConfigError::value(format!("{key}.may_assert[{i}]"), format!("`{pattern}`: {e}")));
            }
        }
        Ok(Caller { identity, may_assert: self.may_assert.into_iter().map(WorkloadPattern).collect() })
    }
}

impl RawSubjectType {
    fn validate(self, key: &str) -> Result<SubjectType, ConfigError> {
        named(key, &self.name, &["workload"])?;
        if !self.prefix.ends_with('/') || SpiffeId::parse(&format!("{}x", self.prefix)).is_err() {
            let why = format!("`{}` is no SPIFFE ID that ends with a slash", self.prefix);
            return Err(ConfigError::value(format!("{key}.prefix"), why));
        }
        Ok(SubjectType { name: self.name, prefix: self.prefix })
    }
}

impl RawResourceType {
    fn validate(self, key: &str) -> Result<ResourceType, ConfigError> {
        named(key, &self.name, &["route", "service"])?;
        let resource: ResourceName =
            self.resource.parse().map_err(|e| ConfigError::value(format!("{key}.resource"), format!("{e}")))?;
        Ok(ResourceType { name: self.name, resource })
    }
}

impl Default for RawAuthzen {
    fn default() -> Self {
        Self {
            url: None,
            callers: Vec::new(),
            subject_types: Vec::new(),
            resource_types: Vec::new(),
            max_evaluations: 100,
        }
    }
}

fn named(key: &str, name: &str, taken: &[&str]) -> Result<(), ConfigError> {
    if name.is_empty() || name.len() > 200 {
        return Err(ConfigError::value(format!("{key}.type"), "needs a name of at most 200 bytes"));
    }
    if taken.contains(&name) {
        return Err(ConfigError::value(format!("{key}.type"), format!("`{name}` has a meaning already")));
    }
    Ok(())
}

/// The place of the first that has the name of an earlier one.
fn first_double<T>(all: &[T], name: impl Fn(&T) -> &str) -> Option<usize> {
    let mut seen = std::collections::BTreeSet::new();
    all.iter().position(|one| !seen.insert(name(one)))
}
