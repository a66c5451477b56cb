//! The Workload API over a Unix socket, spoken for real: rotation, removal of a trust domain, restart.

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::endpoint::Ca;
use super::harness::{Site, config, eventually, jwk, spiffe};
use crate::control::keys::KeysConfig;
use crate::wire::workload_api::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use crate::wire::workload_api::{JwtBundlesRequest, JwtBundlesResponse, X509BundlesRequest, X509BundlesResponse};

type Bundles = HashMap<String, Bytes>;
type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// An agent: what it holds, and the server that tells it.
struct Agent {
    jwt: watch::Sender<Bundles>,
    x509: watch::Sender<Bundles>,
    server: Option<(CancellationToken, JoinHandle<()>)>,
}

struct Service {
    jwt: watch::Receiver<Bundles>,
    x509: watch::Receiver<Bundles>,
    stop: CancellationToken,
}

fn check<T>(request: &Request<T>) -> Result<(), Status> {
    match request.metadata().get("workload.spiffe.io") {
        Some(value) if value == "true" => Ok(()),
        _ => Err(Status::invalid_argument("security header missing from request")),
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509BundlesStream = Sent<X509BundlesResponse>;
    type FetchJWTBundlesStream = Sent<JwtBundlesResponse>;

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        check(&request)?;
        let all = WatchStream::new(self.x509.clone());
        let all = all.map(|bundles| Ok(X509BundlesResponse { crl: Vec::new(), bundles }));
        Ok(Response::new(Box::pin(all.take_until(self.stop.clone().cancelled_owned()))))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        check(&request)?;
        let all = WatchStream::new(self.jwt.clone()).map(|bundles| Ok(JwtBundlesResponse { bundles }));
        Ok(Response::new(Box::pin(all.take_until(self.stop.clone().cancelled_owned()))))
    }
}

impl Agent {
    fn new() -> Self {
        Self { jwt: watch::Sender::default(), x509: watch::Sender::default(), server: None }
    }

    fn start(&mut self, socket: &Path) {
        let _left_behind = std::fs::remove_file(socket);
        let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let stop = CancellationToken::new();
        let service = Service { jwt: self.jwt.subscribe(), x509: self.x509.subscribe(), stop: stop.clone() };
        let ended = stop.clone().cancelled_owned();
        let server = tonic::transport::Server::builder().add_service(SpiffeWorkloadApiServer::new(service));
        let task = tokio::spawn(async move { server.serve_with_incoming_shutdown(incoming, ended).await.unwrap() });
        self.server = Some((stop, task));
    }

    async fn stop(&mut self) {
        let (stop, task) = self.server.take().unwrap();
        stop.cancel();
        task.await.unwrap();
    }

    fn set_jwt(&self, domain: &str, set: &Value) {
        self.jwt.send_modify(|all| {
            all.insert(format!("spiffe://{domain}"), set.to_string().into());
        });
    }
}

/// As SPIRE sends them: without a use.
fn plain(kid: &str) -> Value {
    let mut key = jwk(kid, "");
    key.as_object_mut().unwrap().remove("use");
    key
}

fn workload_api(name: &str) -> Value {
    spiffe(name, &json!({ "type": "workload_api" }))
}

#[tokio::test]
async fn bundles_rotate_vanish_and_survive_a_restart() {
    let ca = Ca::new();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let mut agent = Agent::new();
    agent.set_jwt("td.example", &json!({ "keys": [plain("one")] }));
    agent.set_jwt("other.example", &json!({ "keys": [plain("of-other")] }));
    let two_authorities = [ca.der(), Ca::new().der()].concat();
    agent.x509.send_modify(|all| drop(all.insert("spiffe://td.example".to_owned(), two_authorities.into())));
    let site = Site::new(KeysConfig { workload_api: Some(socket.clone()), ..config(&ca) }).await;
    site.put(&workload_api("td")).await;
    site.put(&workload_api("other")).await;
    site.fails_with("td", "unreachable", "no connection").await;
    agent.start(&socket);
    site.comes_to_kids("td", &["one"]).await;
    site.comes_to_kids("other", &["of-other"]).await;
    let keys = site.issuer("td").unwrap().jwks.keys;
    let uses: Vec<_> = keys.iter().map(|k| k["use"].as_str().unwrap()).collect();
    assert_eq!(uses, ["jwt-svid", "x509-svid", "x509-svid"]);
    assert_eq!(keys[1], ca.authority());
    assert_eq!(site.issuer("other").unwrap().jwks.keys.len(), 1, "never merged");

    // Rotation, and a bundle that cannot be used.
    agent.set_jwt("td.example", &json!({ "keys": [plain("one"), plain("two")] }));
    site.comes_to_kids("td", &["one", "two"]).await;
    agent.jwt.send_modify(|all| drop(all.insert("spiffe://td.example".to_owned(), Bytes::from_static(b"{"))));
    site.fails_with("td", "invalid", "strict JSON").await;
    assert_eq!(site.kids("td"), ["one", "two"]);
    agent.set_jwt("other.example", &json!({ "keys": [plain("of-other-2")] }));
    site.comes_to_kids("other", &["of-other-2"]).await;

    // Gone with the agent: what is held stays, also when a first message comes with half of it.
    agent.stop().await;
    site.fails_with("other", "unreachable", "the Workload API at").await;
    assert_eq!(site.kids("other"), ["of-other-2"]);
    agent.set_jwt("td.example", &json!({ "keys": [plain("three")] }));
    agent.start(&socket);
    site.comes_to_kids("td", &["three"]).await;
    eventually("authorities too", || site.issuer("td").unwrap().jwks.keys.len() == 3).await;

    // Absence unloads.
    agent.x509.send_modify(HashMap::clear);
    eventually("no authorities", || site.issuer("td").unwrap().jwks.keys.len() == 1).await;
    agent.jwt.send_modify(|all| drop(all.remove("spiffe://td.example")));
    site.comes_to_kids("td", &[]).await;
    assert_eq!(site.kids("other"), ["of-other-2"]);
}

#[tokio::test]
async fn without_a_socket_the_operator_is_told() {
    let ca = Ca::new();
    let site = Site::new(config(&ca)).await;
    site.put(&workload_api("td")).await;
    site.fails_with("td", "refused", "`keys.workload_api` is not configured").await;
}
