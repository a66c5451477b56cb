//! The REST API that operators and their tools use.
//!
//! Plane: control. Each handler parses the request, makes a plan on the index (a pure function of it), has the core
//! commit the plan, and answers. Every write records the operator as its author. Rules that span objects hold at
//! commit, because plans carry guards for what they rested on. Fails closed: no token, no answer.

mod extract;
mod front;
mod grant_policies;
mod grants;
mod issuers;
mod named;
mod operators;
mod policies;
mod problem;

mod requests;
mod respond;
mod reviews;
mod revocations;
mod serve;
mod services;
mod status;
mod workloads;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::routing::{MethodRouter, delete, get, post, put};
use axum::{Extension, Router, middleware};
use tokio::sync::Semaphore;

use self::problem::Problem;
use super::core::Core;
use super::desk::Desk;
use super::fleet::{Fleet, PointConfig};
use super::keys::Keys;
use super::operators::Operators;
use crate::clock::Timestamp;

pub use self::serve::{ServeLimits, serve};

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
    /// How long a request may take, beside what it asks to wait.
    pub request_timeout: Duration,
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
    started: Timestamp,
}

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
    let (body, policy_body) = (config.max_body_bytes, config.max_policy_bytes);
    let started = core.clock().now().wall;
    let places = Semaphore::new(config.max_concurrent_requests);
    let api = Arc::new(Api {
        core,
        fleet,
        desk: Desk::new(Arc::clone(&operators)),
        operators,
        keys,
        config,
        places,
        started,
    });
    let limited = |routes: MethodRouter<Arc<Api>>, limit: usize| {
        routes.layer((Extension(BodyLimit(limit)), DefaultBodyLimit::max(limit)))
    };
    let routes: [(&str, MethodRouter<Arc<Api>>); 27] = [
        ("/v1/status", get(status::show)),
        ("/v1/enforcement-points", get(status::enforcement_points)),
        ("/v1/operators", get(operators::list).post(operators::create)),
        ("/v1/operators/{name}", delete(operators::revoke)),
        ("/v1/issuers", get(issuers::list)),
        ("/v1/issuers/{name}", get(issuers::show).put(issuers::put).delete(issuers::delete)),
        ("/v1/issuers/{name}/keys", get(issuers::keys)),
        ("/v1/workloads", get(workloads::list)),
        ("/v1/workloads/{id}", get(workloads::show).put(workloads::put).delete(workloads::retire)),
        ("/v1/services", get(services::list)),
        ("/v1/services/{name}", put(services::put).get(services::show).delete(services::delete)),
        ("/v1/policies/current", get(policies::current)),
        ("/v1/grant-policies", post(grant_policies::publish)),
        ("/v1/grant-policies/current", get(grant_policies::current)),
        ("/v1/grant-requests", get(requests::list).post(requests::create)),
        ("/v1/grant-requests/{id}", get(grants::show)),
        ("/v1/grant-requests/{id}/approve", post(requests::approve)),
        ("/v1/grant-requests/{id}/deny", post(requests::deny)),
        ("/v1/grant-requests/{id}/withdraw", post(requests::withdraw)),
        ("/v1/grants", get(grants::list)),
        ("/v1/grants/{id}", get(grants::show)),
        ("/v1/grants/{id}/revoke", post(grants::revoke)),
        ("/v1/reviews", get(reviews::list)),
        ("/v1/reviews/{id}", get(reviews::show)),
        ("/v1/reviews/{id}/close", post(reviews::close)),
        ("/v1/revocations", get(revocations::list).post(revocations::create)),
        ("/v1/revocations/{id}", get(revocations::show)),
    ];
    let mut router = Router::new().route("/v1/policies", limited(post(policies::publish), policy_body));
    for (path, methods) in routes {
        router = router.route(path, limited(methods, body));
    }
    router
        .fallback(async || Problem::not_found("such path"))
        .method_not_allowed_fallback(async || Problem::method())
        .layer(middleware::from_fn_with_state(Arc::clone(&api), front::front))
        .with_state(api)
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            points: Vec::new(),
            max_body_bytes: 4 << 20,
            max_policy_bytes: 24 << 20,
            max_concurrent_requests: 512,
            request_timeout: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests;
