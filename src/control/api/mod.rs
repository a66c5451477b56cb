//! The REST API that operators and their tools use.
//!
//! Plane: control. Each handler parses the request, makes a plan on the index (a pure function of it), has the core
//! commit the plan, and answers. Every write records the operator as its author. Rules that span objects hold at
//! commit, because plans carry guards for what they rested on. Fails closed: no token, no answer.

mod audit;
mod exchange;
mod extract;
mod front;
mod grant_policies;
mod grants;
mod idempotency;
mod issuers;
mod lifecycle;
mod lifts;
mod named;
mod openapi;
mod operation;
mod operator_policies;
mod operators;
mod policies;
mod problem;
mod requests;
mod respond;
mod reviews;
mod revocations;
mod routes;
mod serve;
mod services;
mod signing_keys;
mod status;
mod watch;
mod workloads;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::{Extension, Router, middleware};
use tokio::sync::Semaphore;

use self::operation::{Limit, Method, Route};
use self::problem::Problem;
use super::callers::{Callers, CallersConfig};
use super::core::Core;
use super::desk::{Desk, Limits};
use super::exchange::Exchange;
use super::fleet::{Fleet, PointConfig};
use super::keys::Keys;
use super::operator_policy::InForce;
use super::operators::Operators;
use crate::clock::Timestamp;

pub use self::openapi::openapi;
pub use self::routes::{actions, operator_actions};
pub use self::serve::{ServeLimits, serve};

/// How many live grants and requests a workload has on one resource, unless it is configured otherwise.
pub const GRANTS_PER_RESOURCE: usize = 64;

/// Settings of the API.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// The enforcement points: routes must not overlap among the services of one.
    pub points: Vec<PointConfig>,
    /// The largest body.
    pub max_body_bytes: usize,
    /// The largest body of a policy set.
    pub max_policy_bytes: usize,
    /// How many requests are worked on at once.
    pub max_concurrent_requests: usize,
    /// How many live grants and requests a workload may have on one resource.
    pub grants_per_resource: usize,
    /// How many may wait at once until something has become of a grant, by long poll or stream.
    pub max_watchers: usize,
    /// How long a request may take, beside what it asks to wait.
    pub request_timeout: Duration,
    /// Who may call, beside operators with tokens.
    pub callers: CallersConfig,
    /// The exchange of tokens, if the control plane issues any.
    pub tokens: Option<Arc<Exchange>>,
}

/// What handlers work with.
#[derive(Debug)]
struct Api {
    core: Arc<Core>,
    fleet: Arc<Fleet>,
    operators: Arc<Operators>,
    desk: Desk,
    keys: Arc<Keys>,
    config: ApiConfig,
    places: Semaphore,
    /// For those who wait until something has become of a grant.
    watchers: Arc<Semaphore>,
    started: Timestamp,
    callers: Callers,
    /// What callers may do.
    policies: InForce,
    /// What is served, as the front door knows it.
    routes: Vec<Route>,
}

/// The largest form: two tokens, each byte of which may take three.
const MAX_FORM: usize = 64 << 10;

/// The body limit of a route, for the message.
#[derive(Debug, Clone, Copy)]
struct BodyLimit(usize);

/// The API's routes.
pub fn router(
    core: Arc<Core>,
    fleet: Arc<Fleet>,
    operators: Arc<Operators>,
    keys: Arc<Keys>,
    config: ApiConfig,
) -> Router {
    let started = core.clock().now().wall;
    let places = Semaphore::new(config.max_concurrent_requests);
    let watchers = Arc::new(Semaphore::new(config.max_watchers));
    let operations = routes::table();
    let routes = operations.iter().map(|o| o.route).collect();
    let (document, large) = (config.max_body_bytes, config.max_policy_bytes);
    let callers = Callers::new(config.callers.clone(), &core, Arc::clone(&operators), &keys);
    let policies = InForce::new(Arc::clone(core.index()), operator_actions());
    let limits = Limits::of(&core, config.grants_per_resource);
    let api = Arc::new(Api {
        core,
        fleet,
        desk: Desk::new(Arc::clone(&operators), limits),
        operators,
        keys,
        config,
        places,
        watchers,
        started,
        callers,
        policies,
        routes,
    });
    let mut router = Router::new();
    for operation in operations {
        let limit = match operation.limit() {
            Limit::Document => document,
            Limit::Policies => large,
            Limit::Form => MAX_FORM,
        };
        let limited = operation.handler.layer((Extension(BodyLimit(limit)), DefaultBodyLimit::max(limit)));
        router = router.route(operation.route.path, limited);
    }
    router
        .fallback(async || Problem::not_found("such path"))
        .method_not_allowed_fallback(async || Problem::method())
        .layer(middleware::from_fn_with_state(Arc::clone(&api), front::front))
        .with_state(api)
}

impl Api {
    /// The operation that a request for `path`, as routes spell it, is for.
    fn route(&self, method: &axum::http::Method, path: &str) -> Option<Route> {
        let method = Method::of(method)?;
        self.routes.iter().find(|r| r.method == method && r.path == path).copied()
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            points: Vec::new(),
            max_body_bytes: 4 << 20,
            max_policy_bytes: 24 << 20,
            max_concurrent_requests: 512,
            grants_per_resource: GRANTS_PER_RESOURCE,
            max_watchers: 256,
            request_timeout: Duration::from_secs(30),
            callers: CallersConfig::default(),
            tokens: None,
        }
    }
}

#[cfg(test)]
mod tests;
