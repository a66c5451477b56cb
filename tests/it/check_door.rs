//! The admin server's `POST /v1/check`, asked as `portcullis check` asks it: one more door that has to agree with the
//! engine, for the corpora.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use http_body_util::BodyExt as _;
use portcullis::admin::{self, CheckAnswer, CheckBody, Common, HeaderValues};
use portcullis::authz::Request;
use portcullis::cache::Gate;
use portcullis::readiness::Readiness;
use portcullis::telemetry::{Output, Records, RecordsConfig, SidecarMetrics, Telemetry};
use tower::ServiceExt as _;

use crate::running::deps;

/// The admin server of a sidecar with a gate.
pub(crate) struct CheckDoor(axum::Router);

impl CheckDoor {
    pub(crate) fn of(gate: &Arc<Gate>) -> Self {
        let metrics = Arc::new(SidecarMetrics::new().unwrap());
        let records = RecordsConfig { output: Output::Off, queue: 1 };
        let records = Records::start(records, metrics.records_dropped().clone()).unwrap();
        let telemetry = Telemetry::new(metrics.clone(), records, None, Arc::clone(gate.clock()));
        let (exposition, level) = (metrics.exposition().clone(), deps().level);
        let common = Common { readiness: Readiness::new(), exposition, level };
        let url = Some("http://127.0.0.1:9180/v1/grant-requests".to_owned());
        Self(admin::sidecar_router(common, Arc::clone(gate), telemetry, url))
    }

    /// The answer to a request, all of whose headers are text.
    pub(crate) async fn check(&self, request: &Request<'_>) -> CheckAnswer {
        let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for header in &request.headers {
            let value = std::str::from_utf8(header.value).unwrap().to_owned();
            headers.entry(String::from_utf8_lossy(header.name).into_owned()).or_default().push(value);
        }
        let body = CheckBody {
            method: request.method.to_owned(),
            path: request.path.to_owned(),
            host: request.host.to_owned(),
            headers: headers.into_iter().map(|(name, values)| (name, HeaderValues::Many(values))).collect(),
            certificate: request.peer.certificate.map(str::to_owned),
            principal: request.peer.principal.map(str::to_owned),
            address: request.peer.address,
            partial_body: request.partial_body,
            body: request.body.map(|body| String::from_utf8(body.to_vec()).unwrap()),
            explain: false,
        };
        let request = axum::http::Request::post("/v1/check").body(Body::from(serde_json::to_vec(&body).unwrap()));
        let response = self.0.clone().oneshot(request.unwrap()).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{status}: {e}: {}", String::from_utf8_lossy(&bytes)))
    }
}
