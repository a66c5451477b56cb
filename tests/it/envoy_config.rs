//! The files under `envoy/`, with the real Envoy: it accepts them, and does with them what their comments promise.
//!
//! What only a cluster could show (that Istio and Envoy Gateway accept their documents) is not shown: their shape is
//! checked, and that they fail closed in the same way as the file that Envoy runs here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse, OkHttpResponse};
use envoy_types::pb::google::rpc;
use serde_yaml_ng::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::door;
use crate::envoy::{Envoy, root, validate};
use crate::mtls::{Pki, TLS_FILES};

const STRIPPED: &str =
    "x[-_]portcullis[-_](workload|subject|actor|grant|decision[-_]id|reason)|client[-_]cert([-_]chain)?";

pub(crate) fn file(name: &str) -> String {
    let path = root().join("envoy").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn documents(name: &str) -> Vec<Value> {
    use serde::Deserialize as _;
    serde_yaml_ng::Deserializer::from_str(&file(name))
        .map(|d| Value::deserialize(d).unwrap_or_else(|e| panic!("{name}: {e}")))
        .collect()
}

/// The value at `a.b.0.c`.
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |v, key| match key.parse::<usize>() {
        Ok(i) => v.get(i).unwrap_or_else(|| panic!("no `{key}` of `{path}` in {v:?}")),
        Err(_not_an_index) => v.get(key).unwrap_or_else(|| panic!("no `{key}` of `{path}` in {v:?}")),
    })
}

/// The scalar at `a.b.0.c`, as text.
fn text(value: &Value, path: &str) -> String {
    match at(value, path) {
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => s.clone(),
        other => panic!("`{path}` is not a scalar: {other:?}"),
    }
}

/// Every value whose key is `key`, at any depth.
fn all<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Mapping(map) => {
            for (k, v) in map {
                if k.as_str() == Some(key) {
                    found.push(v);
                }
                all(v, key, found);
            }
        }
        Value::Sequence(list) => list.iter().for_each(|v| all(v, key, found)),
        _ => {}
    }
}

// === the files ===

#[test]
fn envoy_accepts_every_bootstrap_file() {
    let files: Vec<PathBuf> = std::fs::read_dir(root().join("envoy"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    assert!(files.len() >= 2, "{files:?}");
    let directory = tempfile::tempdir().unwrap();
    let tls = Pki::new().files(directory.path(), "spiffe://test.example/envoy");
    for path in files {
        // The certificates are the reader's own.
        let copy = directory.path().join(path.file_name().unwrap());
        std::fs::write(&copy, std::fs::read_to_string(&path).unwrap().replace(TLS_FILES, &tls)).unwrap();
        validate(&copy).unwrap_or_else(|e| panic!("{}:\n{e}", path.display()));
    }
    // ... and would not accept just anything.
    let broken = directory.path().join("broken.yaml");
    std::fs::write(&broken, file("sidecar-grpc-uds.yaml").replace("validate_mutations:", "validate_mutation:"))
        .unwrap();
    let complaint = validate(&broken).unwrap_err();
    assert!(complaint.contains("validate_mutation"), "{complaint}");
}

#[test]
fn unix_and_tcp_differ_in_the_address_of_the_sidecar_only() {
    let mut configurations = ["sidecar-grpc-uds.yaml", "sidecar-grpc-tcp.yaml"].map(|f| documents(f).remove(0));
    let addresses = configurations.each_mut().map(|c| {
        let clusters = c.get_mut("static_resources").and_then(|s| s.get_mut("clusters")).unwrap();
        let address = clusters
            .get_mut(1)
            .and_then(|c| c.get_mut("load_assignment")?.get_mut("endpoints")?.get_mut(0)?.get_mut("lb_endpoints"))
            .and_then(|e| e.get_mut(0)?.get_mut("endpoint")?.get_mut("address"))
            .unwrap();
        std::mem::replace(address, Value::Null)
    });
    assert_eq!(configurations[0], configurations[1]);
    assert_eq!(text(&addresses[0], "pipe.path"), "/run/portcullis/ext_authz.sock");
    assert_eq!(text(&addresses[1], "socket_address.address"), "127.0.0.1");
    assert_eq!(text(&addresses[1], "socket_address.port_value"), "9191");
}

#[test]
fn mutual_tls_differs_in_the_connection_and_what_is_forwarded_only() {
    let mut mtls = documents("sidecar-grpc-mtls.yaml").remove(0);
    let chain = mtls
        .get_mut("static_resources")
        .and_then(|s| s.get_mut("listeners")?.get_mut(0)?.get_mut("filter_chains")?.get_mut(0))
        .unwrap();
    let socket = chain.as_mapping_mut().unwrap().remove("transport_socket").unwrap();
    assert_eq!(text(&socket, "typed_config.require_client_certificate"), "true");
    at(&socket, "typed_config.common_tls_context.validation_context.trusted_ca");
    let manager = chain.get_mut("filters").and_then(|f| f.get_mut(0)?.get_mut("typed_config")).unwrap();
    let details = manager.get_mut("forward_client_cert_details").unwrap();
    assert_eq!(std::mem::replace(details, "SANITIZE".into()), Value::from("FORWARD_ONLY"));
    assert_eq!(mtls, documents("sidecar-grpc-uds.yaml").remove(0));
}

#[test]
fn istio_and_envoy_gateway_fail_closed_and_strip_the_same_headers() {
    let istio = documents("istio/portcullis.yaml");
    let kinds: Vec<_> = istio.iter().map(|d| (text(d, "apiVersion"), text(d, "kind"))).collect();
    assert_eq!(
        kinds.iter().map(|(version, kind)| (version.as_str(), kind.as_str())).collect::<Vec<_>>(),
        [
            ("install.istio.io/v1alpha1", "IstioOperator"),
            ("networking.istio.io/v1", "ServiceEntry"),
            ("security.istio.io/v1", "AuthorizationPolicy"),
            ("security.istio.io/v1", "PeerAuthentication"),
            ("networking.istio.io/v1alpha3", "EnvoyFilter"),
        ]
    );
    let provider = at(&istio[0], "spec.meshConfig.extensionProviders.0");
    assert_eq!(text(&istio[2], "spec.provider.name"), text(provider, "name"));
    assert_eq!(text(&istio[2], "spec.action"), "CUSTOM");
    let grpc = at(provider, "envoyExtAuthzGrpc");
    assert_eq!(text(grpc, "failOpen"), "false");
    assert_eq!(text(grpc, "statusOnError"), "503");
    assert_eq!(text(grpc, "clearRouteCache"), "false");
    assert_eq!(text(grpc, "service"), text(&istio[1], "spec.hosts.0"));
    assert_eq!(text(grpc, "port"), text(&istio[1], "spec.ports.0.number"));

    let gateway = documents("envoy-gateway/portcullis.yaml");
    let kinds: Vec<_> = gateway.iter().map(|d| (text(d, "apiVersion"), text(d, "kind"))).collect();
    assert_eq!(
        kinds.iter().map(|(version, kind)| (version.as_str(), kind.as_str())).collect::<Vec<_>>(),
        [
            ("gateway.envoyproxy.io/v1alpha1", "EnvoyProxy"),
            ("gateway.networking.k8s.io/v1", "Gateway"),
            ("gateway.envoyproxy.io/v1alpha1", "Backend"),
            ("gateway.envoyproxy.io/v1alpha1", "SecurityPolicy"),
            ("gateway.envoyproxy.io/v1alpha1", "ClientTrafficPolicy"),
        ]
    );
    assert_eq!(text(&gateway[3], "spec.extAuth.failOpen"), "false");
    assert_eq!(text(&gateway[3], "spec.extAuth.recomputeRoute"), "false");
    assert_eq!(text(&gateway[3], "spec.extAuth.grpc.backendRefs.0.name"), text(&gateway[2], "metadata.name"));
    assert_eq!(text(&gateway[4], "spec.path.disableMergeSlashes"), "true");
    assert_eq!(text(&gateway[4], "spec.path.escapedSlashesAction"), "KeepUnchanged");
    assert_eq!(text(&gateway[4], "spec.headers.withUnderscoresAction"), "DropHeader");
    let removed = at(&gateway[4], "spec.headers.earlyRequestHeaders.remove").as_sequence().unwrap();
    let removed: Vec<_> = removed.iter().map(|h| h.as_str().unwrap()).collect();
    let expected = ["workload", "subject", "actor", "grant", "decision-id", "reason"];
    let ours = expected.map(|h| format!("x-portcullis-{h}"));
    let of_proxies = ["client-cert", "client-cert-chain"].map(str::to_owned);
    assert_eq!(removed, ours.into_iter().chain(of_proxies).collect::<Vec<_>>());
    assert_eq!(text(&gateway[4], "spec.headers.xForwardedClientCert.mode"), "Sanitize");

    // Every mention of the removal rule and of the failure mode, wherever it is.
    for (name, documents) in [
        ("uds", documents("sidecar-grpc-uds.yaml")),
        ("tcp", documents("sidecar-grpc-tcp.yaml")),
        ("mtls", documents("sidecar-grpc-mtls.yaml")),
        ("gateway-mtls", documents("gateway-mtls.yaml")),
        ("istio", istio.clone()),
    ] {
        let mut found = Vec::new();
        documents.iter().for_each(|d| all(d, "remove_on_match", &mut found));
        assert_eq!(found.len(), 1, "{name}");
        assert_eq!(text(found[0], "key_matcher.safe_regex.regex"), STRIPPED, "{name}");
    }
    for (name, documents) in [("uds", documents("sidecar-grpc-uds.yaml")), ("istio", istio), ("gateway", gateway)] {
        let mut found = Vec::new();
        for key in ["failure_mode_allow", "failOpen", "failure_mode_allow_header_add"] {
            documents.iter().for_each(|d| all(d, key, &mut found));
        }
        assert!(!found.is_empty() && found.iter().all(|v| v.as_bool() == Some(false)), "{name}: {found:?}");
    }
}

// === what Envoy does with them ===

/// An authorizer that says yes and remembers what it was asked; or one that never answers.
#[derive(Debug, Clone, Default)]
struct Authorizer {
    asked: Arc<Mutex<Vec<CheckRequest>>>,
    adds: Vec<(&'static str, &'static str)>,
    removes: Vec<&'static str>,
    silent: bool,
}

#[tonic::async_trait]
impl Authorization for Authorizer {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        self.asked.lock().unwrap().push(request.into_inner());
        if self.silent {
            std::future::pending::<()>().await;
        }
        let headers = self.adds.iter().map(|(key, value)| HeaderValueOption {
            header: Some(HeaderValue { key: (*key).into(), value: (*value).into(), ..HeaderValue::default() }),
            ..HeaderValueOption::default()
        });
        let ok = OkHttpResponse {
            headers: headers.collect(),
            headers_to_remove: self.removes.iter().map(|r| (*r).to_owned()).collect(),
            ..OkHttpResponse::default()
        };
        Ok(tonic::Response::new(CheckResponse {
            status: Some(rpc::Status::default()),
            http_response: Some(HttpResponse::OkResponse(ok)),
            ..CheckResponse::default()
        }))
    }
}

/// Envoy on the Unix socket file, with an authorizer behind it and a service that answers with what it received.
struct Stack {
    envoy: Envoy,
    authorizer: Authorizer,
    _directory: tempfile::TempDir,
}

impl Stack {
    async fn start(authorizer: Option<Authorizer>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("ext_authz.sock");
        if let Some(authorizer) = authorizer.clone() {
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(AuthorizationServer::new(authorizer));
            tokio::spawn(server.serve_with_incoming(incoming));
        }
        let service = echo_service().await;
        let configuration = door::on_free_ports("sidecar-grpc-uds.yaml", service)
            .replace("/run/portcullis/ext_authz.sock", socket.to_str().unwrap());
        let envoy = tokio::task::spawn_blocking(move || Envoy::start(&configuration)).await.unwrap();
        Self { envoy, authorizer: authorizer.unwrap_or_default(), _directory: directory }
    }

    /// What the authorizer was asked last: path, and the headers one by one.
    fn asked(&self) -> (String, Vec<(String, String)>) {
        let asked = self.authorizer.asked.lock().unwrap();
        let http = asked.last().unwrap().attributes.as_ref().unwrap().request.as_ref().unwrap().http.as_ref().unwrap();
        assert!(http.headers.is_empty(), "raw headers only");
        let pair = |h: &HeaderValue| {
            let raw = String::from_utf8(h.raw_value.clone()).unwrap();
            (h.key.clone(), if raw.is_empty() { h.value.clone() } else { raw })
        };
        (http.path.clone(), http.header_map.as_ref().unwrap().headers.iter().map(pair).collect())
    }
}

/// Answers every request with the head that it received.
pub(crate) async fn echo_service() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_closed) => return,
                    }
                }
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", head.len());
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.write_all(&head).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_decided_on_is_what_the_service_receives() {
    let stack = Stack::start(Some(Authorizer::default())).await;
    let ambiguous_or_not = [
        "/catalog/..%2frefunds/7",
        "/catalog/..%5crefunds/7",
        "//refunds/7",
        "/refunds//7",
        "/refunds;x/7",
        "/a%zzb",
        "/a%00b",
        "/catalog/../refunds/7",
        "/catalog/%2e%2E/refunds/7",
        "/../refunds/7",
        "/catalog\\..\\refunds/7",
        "/refunds/./7",
        "/a%252fb",
        "/catalog/1?next=/../refunds/7",
    ];
    for path in ambiguous_or_not {
        let answer = stack.envoy.get(path, &[]);
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(stack.asked().0, path);
        assert!(answer.body.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{path}: {}", answer.body);
    }
    // Envoy refuses a fragment itself.
    let before = stack.authorizer.asked.lock().unwrap().len();
    assert_eq!(stack.envoy.get("/a#b", &[]).status, 400);
    assert_eq!(stack.authorizer.asked.lock().unwrap().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_identity_headers_reach_neither_portcullis_nor_the_service() {
    let authorizer = Authorizer {
        adds: vec![("x-portcullis-workload", "spiffe://real")],
        removes: vec!["x_portcullis_workload", "workload_proof_token"],
        ..Authorizer::default()
    };
    let stack = Stack::start(Some(authorizer)).await;
    let sent = [
        "X-Portcullis-Workload: forged",
        "x_portcullis_workload: forged",
        "x-portcullis_workload: forged",
        "X-PORTCULLIS-GRANT: forged",
        "x-portcullis-decision-id: forged",
        "x-portcullis-min-revision: e.1",
        "x-kept: a",
        "x-kept: b",
        "workload-proof-token: proof",
        "Authorization: Bearer one",
        "Authorization: Bearer two",
    ];
    let answer = stack.envoy.get("/", &sent);
    assert_eq!(answer.status, 200);
    let (_, asked) = stack.asked();
    assert!(!asked.iter().any(|(_, v)| v == "forged"), "{asked:?}");
    let values = |name: &str| asked.iter().filter(|(k, _)| k == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
    assert_eq!(values("x-kept"), ["a", "b"], "each occurrence is seen");
    assert_eq!(values("x-portcullis-min-revision"), ["e.1"]);
    // Envoy's own header table joins these before any filter sees them: the engine must know a joined pair by its comma.
    assert_eq!(values("authorization"), ["Bearer one,Bearer two"]);

    let received = answer.body.to_lowercase();
    assert!(!received.contains("forged"), "{received}");
    assert!(received.contains("x-portcullis-workload: spiffe://real\r\n"), "{received}");
    assert!(received.contains("x-kept: a\r\n") && received.contains("workload-proof-token: proof\r\n"), "{received}");

    // The answer may touch our own headers, take the credential out, and nothing else: what tries to is an error.
    let credential = Authorizer { removes: vec!["authorization", "workload-proof-token"], ..Authorizer::default() };
    let removed = Stack::start(Some(credential)).await.envoy.get("/", &sent).body.to_lowercase();
    assert!(
        removed.contains("x-kept: a\r\n") && !removed.contains("bearer") && !removed.contains("proof"),
        "{removed}"
    );
    for (adds, removes) in
        [(vec![("x-admin", "yes")], vec![]), (vec![("host", "elsewhere")], vec![]), (vec![], vec!["x-kept"])]
    {
        let stack = Stack::start(Some(Authorizer { adds, removes, ..Authorizer::default() })).await;
        let answer = stack.envoy.get("/", &sent);
        assert_eq!(answer.status, 500, "{}", answer.body);
        assert!(!answer.body.contains("GET /"), "{}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_no() {
    let absent = Stack::start(None).await;
    let answer = absent.envoy.get("/", &[]);
    assert_eq!(answer.status, 503, "{}", answer.head);
    assert!(!answer.body.contains("GET /"), "{}", answer.body);
    drop(absent);

    let silent = Stack::start(Some(Authorizer { silent: true, ..Authorizer::default() })).await;
    let begun = std::time::Instant::now();
    let answer = silent.envoy.get("/", &[]);
    assert_eq!(answer.status, 503, "{}", answer.head);
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "not refused after its 200 ms: {:?}", begun.elapsed());
    assert_eq!(silent.authorizer.asked.lock().unwrap().len(), 1, "asked once, not again");
}
