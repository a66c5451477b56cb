//! Workloads and routes of a snapshot, with what Cedar knows of them and what clients may know of MCP servers.
//!
//! Pure. What takes long to make is made when it is first asked for, or once for all when routes are compiled. What Cedar
//! cannot express is `None`, and then nothing is allowed to it or on it.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::mcp::Documents;
use super::route::{RouteMatch, RouteTable};
use crate::object::{Service, Workload};
use crate::policy::{PrincipalEntity, ResourceEntity};

/// A workload, ready for decisions.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) id: Arc<str>,
    /// Made at the first question about it: it is several kilobytes, and most of the workloads that are registered never
    /// call the services of this sidecar.
    principal: OnceLock<Option<PrincipalEntity>>,
    source: Workload,
}

/// Routes, and their Cedar resources by route number.
#[derive(Debug, Default)]
pub(super) struct Routes {
    pub(super) table: RouteTable,
    resources: BTreeMap<Arc<str>, ResourceEntity>,
    pub(super) documents: Documents,
}

// === impl Registered ===

impl Registered {
    pub(super) fn new(source: Workload) -> Self {
        Self { id: Arc::from(source.id.as_str()), principal: OnceLock::new(), source }
    }

    /// As Cedar knows it; `None` when that cannot be said in Cedar, and then nothing can be allowed to it.
    pub(super) fn principal(&self) -> Option<&PrincipalEntity> {
        self.principal.get_or_init(|| PrincipalEntity::new(&self.source)).as_ref()
    }

    /// Its document.
    pub(super) const fn document(&self) -> &Workload {
        &self.source
    }
}

// === impl Routes ===

impl Routes {
    pub(super) fn new(table: RouteTable, services: &BTreeMap<String, Service>) -> Self {
        let mut resources = BTreeMap::new();
        for service in services.values() {
            for route in &service.routes {
                let name = format!("{}/{}", service.name, route.name);
                if let Some(resource) = ResourceEntity::new(&service.name, &name) {
                    resources.insert(Arc::from(name), resource);
                }
            }
        }
        Self { table, resources, documents: Documents::of(services.values()) }
    }

    pub(super) fn resource(&self, route: &RouteMatch) -> Option<&ResourceEntity> {
        self.resources.get(&route.resource)
    }
}
