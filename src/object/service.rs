//! Services and their routes: what is protected, and how a request maps to a resource and an action.
//!
//! Pure. A route is a Cedar resource `Route::"service/route"` in `Service::"service"`. Templates are only checked
//! for syntax here; overlap between the routes of a sidecar is refused when its route table compiles.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::mcp::McpRoute;
use super::{FieldError, Grant, check_name};

/// A protected service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Unique short name, `Service::"name"` in policies.
    pub name: String,
    /// The `:authority` values it answers to, lower-case, without port. Empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// The origins under which clients reach it, as in `https://api.example`: what a DPoP proof's `htu` may start with.
    /// Empty: the request's own scheme and host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<String>,
    /// How clients prove who they are, on every route that does not say otherwise.
    #[serde(default, skip_serializing_if = "Authentication::is_default")]
    pub authentication: Authentication,
    /// Its routes. A request that matches none is denied.
    pub routes: Vec<Route>,
}

/// Method and path of a request, and what they mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Short name, unique in its service.
    pub name: String,
    /// The methods it covers. Empty: every method.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<Method>,
    /// Envoy URI template of the path, as in `/refunds/{*}`.
    pub path: String,
    /// The action, `Action::"name"` in policies. Without it: `read` for GET, HEAD and OPTIONS, `delete` for DELETE,
    /// `write` for every other method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// How clients prove who they are. Without it, as the service says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
    /// How fresh the sidecar's state must be.
    #[serde(default)]
    pub freshness: Freshness,
    /// What a JIT grant on it may ask for.
    #[serde(default)]
    pub grants: GrantTerms,
    /// Whether the credential that was checked reaches the upstream: the token, and what proves its possession. Without it:
    /// yes, and no where the route speaks MCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass_token: Option<bool>,
    /// Makes it a route of the Model Context Protocol: its messages are read, and rules may be about tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp: Option<Box<McpRoute>>,
}

/// Which credentials a request must bring. A certificate is that of the client's connection, or what a listed proxy
/// forwards of it; it counts only as an X.509-SVID. Where one counts, one that is there and bad refuses the request. With
/// a delegated token the certificate must be that of the workload that acts, because it holds the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Authentication {
    /// A token. The certificate of the connection, which may be a gateway's, says nothing about the workload.
    #[default]
    Token,
    /// A certificate. A token is not needed, and if there is one it must name the same workload.
    Certificate,
    /// A token or a certificate; with both, they must name the same workload.
    Any,
    /// A token and a certificate that name the same workload.
    Both,
}

/// How fresh the state must be for a route to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Freshness {
    /// Answers until the staleness bound.
    #[default]
    Bounded,
    /// Denies as soon as the lease lapses.
    Strict,
}

/// The limits of JIT grants on a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantTerms {
    /// The longest grant, in seconds.
    #[serde(default = "default_max_duration")]
    pub max_duration_seconds: u64,
    /// The most requests that a grant may allow, so that one is always for a number of them; without it, any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_uses: Option<u32>,
}

/// An HTTP method token (RFC 9110, section 9.1), upper-case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Method(String);

/// A whole service, or one of its routes: `payments` or `payments/refunds`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceName {
    /// The service.
    pub service: String,
    /// The route; without it, the whole service.
    pub route: Option<String>,
}

/// Why a text is not a resource name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a resource: expected `service` or `service/route`")]
pub struct ResourceNameError(String);

const fn default_max_duration() -> u64 {
    3600
}

// === impl Service ===

impl Service {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        check_name("name", &self.name)?;
        for (i, host) in self.hosts.iter().enumerate() {
            let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
            if host.is_empty() || host.len() > 253 || !host.bytes().all(ok) {
                return Err(FieldError::new(
                    format!("hosts[{i}]"),
                    format!("`{host}` is not a host name in lower case without a port"),
                ));
            }
        }
        for (i, origin) in self.origins.iter().enumerate() {
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_' | b':');
            if host.is_none_or(|host| host.is_empty() || host.len() > 260 || !host.bytes().all(ok)) {
                return Err(FieldError::new(
                    format!("origins[{i}]"),
                    format!("`{origin}` is not `http://` or `https://` and a host in lower case, without a path"),
                ));
            }
        }
        if self.routes.len() > 10_000 {
            return Err(FieldError::new("routes", "at most 10000 routes are allowed"));
        }
        let mut seen = std::collections::HashSet::new();
        for (i, route) in self.routes.iter().enumerate() {
            check_name(&format!("routes[{i}].name"), &route.name)?;
            if !seen.insert(route.name.as_str()) {
                return Err(FieldError::new(format!("routes[{i}].name"), format!("`{}` occurs twice", route.name)));
            }
            if let Some(action) = &route.action {
                check_name(&format!("routes[{i}].action"), action)?;
            }
            crate::authz::Template::parse(&route.path)
                .map_err(|e| FieldError::new(format!("routes[{i}].path"), format!("`{}`: {e}", route.path)))?;
            if !(1..=30 * 86_400).contains(&route.grants.max_duration_seconds) {
                return Err(FieldError::new(
                    format!("routes[{i}].grants.max_duration_seconds"),
                    "must be between 1 and 2592000 (30 days)",
                ));
            }
            if route.grants.max_uses.is_some_and(|n| !(1..=Grant::MAX_USES).contains(&n)) {
                let message = format!("must be between 1 and {}", Grant::MAX_USES);
                return Err(FieldError::new(format!("routes[{i}].grants.max_uses"), message));
            }
            if let Some(mcp) = &route.mcp {
                mcp.check(&format!("routes[{i}].mcp"))?;
            }
        }
        Ok(())
    }
}

// === impl Authentication ===

impl Authentication {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

// === impl Route ===

impl Route {
    /// Every action that [`Route::default_action`] can give.
    pub const DEFAULT_ACTIONS: [&'static str; 3] = ["delete", "read", "write"];

    /// The action that `method` means on this route.
    pub fn action_for(&self, method: &str) -> &str {
        self.action.as_deref().unwrap_or_else(|| Self::default_action(method))
    }

    /// Whether the upstream gets the credential.
    pub fn passes_token(&self) -> bool {
        self.pass_token.unwrap_or(self.mcp.is_none())
    }

    /// The action that `method` means on a route that names none.
    pub fn default_action(method: &str) -> &'static str {
        match method {
            "GET" | "HEAD" | "OPTIONS" => "read",
            "DELETE" => "delete",
            _ => "write",
        }
    }
}

impl Default for GrantTerms {
    fn default() -> Self {
        Self { max_duration_seconds: default_max_duration(), max_uses: None }
    }
}

// === impl Method ===

impl Method {
    /// Parses a method; it is case-sensitive, and only upper-case ones are registered.
    pub fn parse(text: &str) -> Option<Self> {
        Self::is_valid(text).then(|| Self(text.to_owned()))
    }

    /// Whether `text` is a method that a route can have.
    pub fn is_valid(text: &str) -> bool {
        !text.is_empty() && text.len() <= 32 && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
    }

    /// The method token.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serialize for Method {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom(format!("`{text}` is not an HTTP method in upper case")))
    }
}

impl schemars::JsonSchema for Method {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Method".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "An HTTP method, in upper case.",
            "type": "string",
            "pattern": "^[A-Z-]{1,32}$",
        })
    }
}

// === impl ResourceName ===

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.route {
            Some(route) => write!(f, "{}/{route}", self.service),
            None => f.write_str(&self.service),
        }
    }
}

impl std::str::FromStr for ResourceName {
    type Err = ResourceNameError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (service, route) = match s.split_once('/') {
            Some((service, route)) => (service, Some(route)),
            None => (s, None),
        };
        let valid = |n: &str| check_name("", n).is_ok();
        if !valid(service) || !route.is_none_or(valid) {
            return Err(ResourceNameError(s.to_owned()));
        }
        Ok(Self { service: service.to_owned(), route: route.map(str::to_owned) })
    }
}

impl Serialize for ResourceName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ResourceName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl schemars::JsonSchema for ResourceName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ResourceName".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A service, or a route of one: `payments`, `payments/refunds`.",
            "type": "string",
            "pattern": "^[a-z0-9][a-z0-9._-]{0,62}(/[a-z0-9][a-z0-9._-]{0,62})?$",
        })
    }
}
