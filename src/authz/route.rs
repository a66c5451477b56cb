//! The route table.
//!
//! STUB to be filled.

use std::sync::Arc;

use super::path::CanonicalPath;
use crate::object::{Freshness, Service};

/// The compiled routes of every service in scope.
#[derive(Debug, Default)]
pub struct RouteTable {}

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
    /// How fresh the state must be.
    pub freshness: Freshness,
    /// The longest grant on it, in seconds.
    pub max_grant_seconds: u64,
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

impl RouteTable {
    /// Compiles the routes of `services`.
    pub fn compile<'a>(services: impl IntoIterator<Item = &'a Service>) -> Result<Self, RouteConflict> {
        let _ = services.into_iter().count();
        Ok(Self {})
    }

    /// Number of routes.
    pub fn len(&self) -> usize {
        0
    }

    /// Whether there are no routes.
    pub fn is_empty(&self) -> bool {
        true
    }

    /// The route of a request; `None` denies.
    pub fn find(&self, host: &str, method: &str, path: &CanonicalPath<'_>) -> Option<&RouteMatch> {
        let _ = (host, method, path);
        None
    }
}
