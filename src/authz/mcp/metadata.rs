//! The metadata of protected resources (RFC 9728): where an MCP client learns who issues tokens for a server.
//!
//! Pure. Built when routes compile, found by host and path. It is public by its nature and says nothing but what the route's
//! terms say. INVARIANT: giving it out forwards nothing; the request for it is denied as any other that has no route.

use std::collections::HashMap;

use bytes::Bytes;
use serde::Serialize;

use super::super::route::host_name;
use crate::object::{McpRoute, Service};

/// What a path begins with that asks for metadata.
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// The documents of all MCP routes, by host and path.
#[derive(Debug, Default)]
pub(in crate::authz) struct Documents(HashMap<(Box<str>, Box<str>), Bytes>);

/// RFC 9728, section 2.
#[derive(Serialize)]
struct Metadata<'a> {
    resource: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    authorization_servers: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    scopes_supported: &'a [String],
    bearer_methods_supported: [&'static str; 1],
    resource_name: &'a str,
}

// === impl Documents ===

impl Documents {
    /// Those of these services. No two have a resource in one place that the control plane has stored; of two routes of
    /// one service, and in older stores of two services in the order of their names, the first says what it is like.
    pub(in crate::authz) fn of<'a>(services: impl IntoIterator<Item = &'a Service>) -> Self {
        let mut documents = HashMap::new();
        for service in services {
            for mcp in service.routes.iter().filter_map(|route| route.mcp.as_deref()) {
                let Some(resource) = mcp.resource.as_deref() else { continue };
                let Some((host, path)) = metadata_place(resource) else { continue };
                let document = Metadata::of(service, mcp, resource);
                // Serialising plain texts cannot fail.
                let document = Bytes::from(serde_json::to_vec(&document).unwrap_or_default());
                documents.entry((host.into(), path.into())).or_insert(document);
            }
        }
        Self(documents)
    }

    /// The document that a request asks for, if there is one.
    pub(in crate::authz) fn find(&self, method: &str, host: &str, path: &str) -> Option<&Bytes> {
        if method != "GET" || self.0.is_empty() {
            return None;
        }
        let path = path.split('?').next()?.strip_prefix(WELL_KNOWN)?;
        let host = host_name(host)?;
        self.0.get(&(Box::from(&*host), Box::from(path)))
    }
}

// === impl Metadata ===

impl<'a> Metadata<'a> {
    fn of(service: &'a Service, mcp: &'a McpRoute, resource: &'a str) -> Self {
        Self {
            resource,
            authorization_servers: &mcp.authorization_servers,
            scopes_supported: &mcp.scopes,
            bearer_methods_supported: ["header"],
            resource_name: mcp.server.as_deref().unwrap_or(&service.name),
        }
    }
}

/// Where the metadata of a resource is: the well-known part goes between host and path (RFC 9728, section 3.1).
pub(super) fn url(resource: &str) -> String {
    let host_at = resource.find("://").map_or(0, |at| at + 3);
    let path_at = resource.get(host_at..).and_then(|rest| rest.find('/')).map_or(resource.len(), |at| host_at + at);
    let (origin, path) = resource.split_at_checked(path_at).unwrap_or((resource, ""));
    format!("{origin}{WELL_KNOWN}{}", if path == "/" { "" } else { path })
}

/// Where a resource is told of: its host, as routes know hosts, and its path.
pub fn metadata_place(resource: &str) -> Option<(String, &str)> {
    let (_, rest) = resource.split_once("://")?;
    let path_at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(path_at)?;
    Some((host_name(authority)?.into_owned(), if path == "/" { "" } else { path }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_document_is_where_the_standard_has_it() {
        for (resource, metadata) in [
            ("https://mcp.example", "https://mcp.example/.well-known/oauth-protected-resource"),
            ("https://mcp.example/", "https://mcp.example/.well-known/oauth-protected-resource"),
            ("https://mcp.example:8443/a/mcp", "https://mcp.example:8443/.well-known/oauth-protected-resource/a/mcp"),
        ] {
            assert_eq!(url(resource), metadata);
        }
    }

    #[test]
    fn each_route_is_told_under_its_own_host_and_path() {
        let service = |name: &str, resource: Option<&str>| -> Service {
            let mcp =
                json!({"resource": resource, "authorization_servers": ["https://idp.example"], "scopes": ["read"]});
            let route = json!({"name": "mcp", "path": "/mcp", "mcp": mcp});
            serde_json::from_value(json!({"name": name, "routes": [route, {"name": "plain", "path": "/x"}]})).unwrap()
        };
        let services = [
            service("desk", Some("https://mcp.example:8443/mcp")),
            service("other", Some("https://other.example")),
            service("none", None),
        ];
        let documents = Documents::of(&services);
        let find = |method: &str, host: &str, path: &str| {
            let found = documents.find(method, host, &format!("{WELL_KNOWN}{path}"))?;
            serde_json::from_slice::<Value>(found).ok().map(|document| document["resource"].clone())
        };
        assert_eq!(find("GET", "mcp.example", "/mcp"), Some(json!("https://mcp.example:8443/mcp")));
        assert_eq!(find("GET", "MCP.example:10000", "/mcp?x"), Some(json!("https://mcp.example:8443/mcp")));
        assert_eq!(find("GET", "other.example", ""), Some(json!("https://other.example")));
        for (method, host, path) in [
            ("POST", "mcp.example", "/mcp"),
            ("GET", "mcp.example", ""),
            ("GET", "mcp.example", "/mcp/"),
            ("GET", "other.example", "/mcp"),
            ("GET", "", "/mcp"),
        ] {
            assert_eq!(find(method, host, path), None, "{method} {host} {path}");
        }
        assert!(documents.find("GET", "mcp.example", "/mcp").is_none());
        let document: Value =
            serde_json::from_slice(documents.find("GET", "other.example", WELL_KNOWN).unwrap()).unwrap();
        let expected = json!({
            "resource": "https://other.example", "authorization_servers": ["https://idp.example"],
            "scopes_supported": ["read"], "bearer_methods_supported": ["header"], "resource_name": "other",
        });
        assert_eq!(document, expected);
    }
}
