//! A control plane in a temporary directory, and requests to it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

use crate::clock::{ManualClock, SharedClock, Timestamp};
use crate::control::api::{ApiConfig, router};
use crate::control::callers::CallersConfig;
use crate::control::desk::{Desk, Limits};
use crate::control::fleet::{Fleet, FleetConfig, PointConfig};
use crate::control::keys::{Keys, KeysConfig};
use crate::control::operators::Operators;
use crate::control::store::SqliteStore;
use crate::control::sweep::sweep;
use crate::control::{Core, CoreConfig};
use crate::credential::TokenSigner;
use crate::telemetry::ControlMetrics;

pub(super) const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);
pub(super) const STOREFRONT: &str = "spiffe://test.example/storefront";
pub(super) const SIDECAR: &str = "spiffe://test.example/portcullis/sidecar";

pub(super) const POLICIES: &str = r#"@id("catalog-read") permit(principal, action == Action::"read", resource in Service::"catalog");
@id("grants") permit(principal, action, resource) when { context has grant };
"#;

pub(super) struct Site {
    directory: TempDir,
    pub(super) clock: Arc<ManualClock>,
    pub(super) core: Arc<Core>,
    pub(super) fleet: Arc<Fleet>,
    desk: Desk,
    router: Router,
    /// Of `bootstrap`.
    pub(super) token: String,
}

/// An answer, read whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: axum::http::HeaderMap,
    pub(super) body: Value,
}

impl Site {
    pub(super) async fn new() -> Self {
        Self::at(TempDir::new().unwrap(), NOW).await
    }

    async fn at(directory: TempDir, wall: Timestamp) -> Self {
        Self::at_with(directory, wall, CallersConfig::default()).await
    }

    /// One that others may call than operators with tokens, or not as often.
    pub(super) async fn with_callers(callers: CallersConfig) -> Self {
        Self::at_with(TempDir::new().unwrap(), NOW, callers).await
    }

    async fn at_with(directory: TempDir, wall: Timestamp, callers: CallersConfig) -> Self {
        let clock = Arc::new(ManualClock::new(wall));
        let shared: SharedClock = Arc::clone(&clock) as SharedClock;
        let store = Arc::new(SqliteStore::open(directory.path(), wall).await.unwrap());
        let core = Core::open(store, Arc::clone(&shared), CoreConfig::default()).await.unwrap();
        let file = directory.path().join("bootstrap-token");
        let operators = Operators::open(Arc::clone(core.store()), Arc::clone(&shared), &file).await.unwrap();
        let points = vec![PointConfig {
            identity: SIDECAR.parse().unwrap(),
            services: vec!["catalog".to_owned(), "payments".to_owned()],
        }];
        let config = FleetConfig {
            points: points.clone(),
            max_staleness: Duration::from_secs(300),
            registry_file: None,
            max_instances: 16,
        };
        let fleet = Fleet::open(shared, config).unwrap();
        let config = ApiConfig { points, max_body_bytes: 64 << 10, callers, ..ApiConfig::default() };
        let metrics = Arc::new(ControlMetrics::new().unwrap());
        let keys = Keys::new(Arc::clone(&core), metrics, KeysConfig::default());
        let desk = Desk::new(Arc::clone(&operators), Limits::of(&core, 0));
        let router = router(Arc::clone(&core), Arc::clone(&fleet), operators, keys, config);
        let token = std::fs::read_to_string(file).unwrap().trim().to_owned();
        Self { directory, clock, core, fleet, desk, router, token }
    }

    /// Ends, starts and forgets what is due.
    pub(super) async fn sweep(&self) -> usize {
        sweep(&self.core, &self.desk).await.unwrap()
    }

    /// Stops and starts the control plane.
    pub(super) async fn restart(self) -> Self {
        self.restart_at(NOW).await
    }

    /// The same, on a machine whose wall clock stands at `wall`.
    pub(super) async fn restart_at(self, wall: Timestamp) -> Self {
        let Self { directory, core, router, .. } = self;
        core.close().await;
        drop((core, router));
        Self::at(directory, wall).await
    }

    pub(super) fn router(&self) -> Router {
        self.router.clone()
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        Answer::read(self.router.clone().oneshot(request).await.unwrap()).await
    }

    /// The answer's text, and the `next` of the page that it is.
    pub(super) async fn text(&self, request: Request<Body>) -> (String, Option<String>) {
        let body = self.router.clone().oneshot(request).await.unwrap().into_body();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        let next = serde_json::from_str::<Value>(&text).unwrap()["next"].as_str().map(str::to_owned);
        (text, next)
    }

    pub(super) fn request(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> Request<Body> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONTENT_TYPE, "application/json");
        request.body(body.map_or_else(Body::empty, |b| Body::from(b.to_string()))).unwrap()
    }

    /// As `bootstrap`.
    pub(super) async fn call(&self, method: &str, path: &str, body: Value) -> Answer {
        self.call_as(&self.token, method, path, body).await
    }

    pub(super) async fn call_as(&self, token: &str, method: &str, path: &str, body: Value) -> Answer {
        let body = (!body.is_null()).then_some(&body);
        self.send(self.request(token, method, path, body)).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, Value::Null).await
    }

    /// Creates an operator; answers its token.
    pub(super) async fn operator(&self, name: &str) -> String {
        let answer = self.call("POST", "/v1/operators", json!({ "name": name })).await;
        answer.body["token"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
    }

    /// Issuer `test`, workload `storefront`, services `catalog` and `payments`, policies.
    pub(super) async fn furnish(&self) {
        self.call("PUT", "/v1/issuers/test", issuer("test", "test.example")).await.expect(201);
        self.call("PUT", &workload_path(STOREFRONT), workload(STOREFRONT)).await.expect(201);
        self.call("PUT", "/v1/services/catalog", catalog()).await.expect(201);
        self.call("PUT", "/v1/services/payments", payments()).await.expect(201);
        self.call("POST", "/v1/policies", json!({ "text": POLICIES })).await.expect(201);
    }

    /// Asks for a grant on `payments/refunds` as `token`; answers the grant.
    pub(super) async fn ask(&self, token: &str) -> Value {
        let mut request = refund_request();
        request["reuse"] = json!(false);
        let answer = self.call_as(token, "POST", "/v1/grant-requests", request).await;
        answer.expect(201).body["object"].clone()
    }

    pub(super) fn revision(&self) -> u64 {
        self.core.index().position().revision.0
    }
}

impl Answer {
    pub(super) async fn read(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
        Self { status: parts.status, headers: parts.headers, body }
    }

    #[track_caller]
    pub(super) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        if !self.status.is_success() {
            assert_eq!(self.header("content-type"), "application/problem+json");
            assert_eq!(self.body["status"], status);
            assert!(self.body["type"].as_str().unwrap().starts_with("https://portcullis.dev/problems/"));
        }
        self
    }

    /// A refusal that names a field, with a message that contains a text.
    #[track_caller]
    pub(super) fn names(&self, field: &str, text: &str) {
        let errors = self.body["errors"].as_array().unwrap_or_else(|| panic!("no errors: {}", self.body));
        let found =
            errors.iter().any(|e| e["field"] == field && e["message"].as_str().is_some_and(|m| m.contains(text)));
        assert!(found, "`{field}`, `{text}`: {}", self.body);
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

pub(super) fn issuer(name: &str, trust_domain: &str) -> Value {
    let key = TokenSigner::generate_es256("key-1").unwrap().public_jwk();
    json!({
        "name": name, "kind": "spiffe", "trust_domain": trust_domain,
        "audiences": ["portcullis-test"], "jwks": { "keys": [key] },
    })
}

pub(super) fn workload(id: &str) -> Value {
    json!({ "id": id, "kind": "service", "owner": "shop-team", "environment": "test", "roles": ["storefront"] })
}

pub(super) fn workload_path(id: &str) -> String {
    format!("/v1/workloads/{}", id.replace(':', "%3A").replace('/', "%2F"))
}

pub(super) fn catalog() -> Value {
    json!({ "name": "catalog", "routes": [{ "name": "items", "methods": ["GET"], "path": "/catalog/{*}" }] })
}

pub(super) fn payments() -> Value {
    json!({ "name": "payments", "routes": [
        { "name": "refunds", "path": "/refunds/{*}", "grants": { "max_duration_seconds": 600 } },
        { "name": "reports", "methods": ["GET"], "path": "/reports/{**}", "action": "audit" },
    ] })
}

pub(super) fn refund_request() -> Value {
    json!({
        "workload": STOREFRONT, "resources": ["payments/refunds"], "actions": ["write"],
        "duration_seconds": 300, "reason": "ticket 7",
    })
}
