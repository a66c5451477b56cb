//! AuthZEN, the Authorization API 1.0 of the OpenID Foundation: for applications that ask directly what somebody may do.
//!
//! Plane: hot path. `POST /access/v1/evaluation`, `/evaluations` and `/search/{subject,resource,action}`, and the metadata of
//! this decision point. Turns each into [`crate::authz::Evaluation`]s and decisions back; decides nothing. INVARIANT: whoever
//! asks shows a token of its own and is on the list; an empty list is nobody, and no address is trusted. What cannot be read
//! is refused or denied. Mounted by path on the listener of forward-auth; knows no listener itself.

mod answer;
mod body;
mod call;
mod names;
mod page;
mod service;

pub use self::names::{Caller, ResourceType, SubjectType};
pub use self::service::Service;

/// The largest body that any configuration allows.
pub const MAX_BODY: usize = 512 << 10;

/// Who may ask, and what their words mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The applications that may ask. Nobody else is answered.
    pub callers: Vec<Caller>,
    /// Types of subjects beside `workload`.
    pub subject_types: Vec<SubjectType>,
    /// Types of resources beside `route` and `service`.
    pub resource_types: Vec<ResourceType>,
    /// Where applications reach this decision point, as in `https://pdp.example`; without it, there is no metadata.
    pub url: Option<String>,
    /// The largest body.
    pub max_body_bytes: usize,
    /// Evaluations in one call.
    pub max_evaluations: usize,
    /// How long a body may take to arrive.
    pub read_timeout: std::time::Duration,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            callers: Vec::new(),
            subject_types: Vec::new(),
            resource_types: Vec::new(),
            url: None,
            max_body_bytes: MAX_BODY,
            max_evaluations: 100,
            read_timeout: std::time::Duration::from_secs(5),
        }
    }
}

/// Whether a request to this path is for AuthZEN.
pub fn is_for(path: &str) -> bool {
    path.starts_with("/access/") || path == service::METADATA
}

/// Decides on everything that a body asks, for the fuzz targets. `None` when it cannot be read.
#[cfg(any(test, feature = "testing"))]
pub fn decide_all(
    body: &[u8],
    config: &Config,
    asker: crate::authz::Asker<'_>,
    inputs: crate::authz::Inputs<'_>,
) -> Option<Vec<crate::authz::Decision>> {
    let asked = body::read(body).ok()?;
    let batch = body::Batch::read(asked, config).ok()?;
    let evaluate = |one: &body::One| {
        let one = one.as_ref().ok()?;
        Some(crate::authz::evaluate(&one.evaluation(), asker, inputs, &crate::authz::NoMemo))
    };
    Some(batch.all.iter().filter_map(evaluate).collect())
}

#[cfg(test)]
mod tests;
