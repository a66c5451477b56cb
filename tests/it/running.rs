//! A control plane and a sidecar of the demo in this process, composed as in production, on free ports; the command
//! line as it is typed; and a client that asks as Envoy does.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request as AttributeRequest};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use portcullis::app::{self, Deps};
use portcullis::clock::{Clock, SystemClock};
use portcullis::config::{Environment, RawControl, RawSidecar};
use portcullis::credential::TokenSigner;
use portcullis::drain::{self, Drain};
use portcullis::telemetry::Logging;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

pub(crate) const DOMAIN: &str = "spiffe://demo.portcullis.local";
pub(crate) const SIDECAR: &str = "spiffe://demo.portcullis.local/sidecar";

type Ended = Result<(), app::RunError>;

/// One server of the process.
pub(crate) struct Server {
    /// Where admin is served, if anything is.
    admin: Option<SocketAddr>,
    drain: Drain,
    running: JoinHandle<Ended>,
}

/// A control plane and what belongs to it.
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) api: SocketAddr,
    pub(crate) sync: SocketAddr,
    pub(crate) signer: TokenSigner,
    pub(crate) control: Server,
}

/// A sidecar.
pub(crate) struct Sidecar {
    pub(crate) ext_authz: SocketAddr,
    /// Where the reverse proxy is, if there is one.
    pub(crate) proxy: Option<SocketAddr>,
    pub(crate) server: Server,
}

/// What a check came to, as Envoy is told.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) body: Value,
    /// Headers that go upstream.
    pub(crate) upstream: Vec<(String, String)>,
}

pub(crate) fn deps() -> Deps {
    static LOGGING: OnceLock<Logging> = OnceLock::new();
    let logging = LOGGING.get_or_init(|| {
        let telemetry = portcullis::config::RawTelemetry {
            log_level: portcullis::config::LogLevel::Error,
            ..portcullis::config::RawTelemetry::default()
        };
        app::log(&telemetry.validate(), "portcullis-test").unwrap()
    });
    let here = tokio::runtime::Handle::current();
    Deps::system(logging, here.clone(), here)
}

/// The real binary.
pub(crate) fn portcullis(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(args).env_clear().stdin(Stdio::null()).output().unwrap()
}

impl Server {
    pub(crate) fn start(
        drain: Drain,
        admin: Option<SocketAddr>,
        run: impl Future<Output = Ended> + Send + 'static,
    ) -> Self {
        Self { admin, drain, running: tokio::spawn(run) }
    }

    /// A server that is not there.
    pub(crate) fn nothing() -> Self {
        Self::start(drain::channel().0, None, async { Ok(()) })
    }

    /// What a scrape of it is answered with.
    pub(crate) async fn metrics(&self) -> String {
        let mut admin = TcpStream::connect(self.admin.unwrap()).await.unwrap();
        admin.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        admin.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200 "), "{head}");
        body.to_owned()
    }

    pub(crate) async fn stop(self) {
        self.drain.begin(Duration::from_millis(200));
        self.running.await.unwrap().unwrap();
    }
}

impl Site {
    /// A control plane with the demo's objects and the operators alice and bob.
    pub(crate) async fn open() -> Self {
        Self::open_with("").await
    }

    /// The same, with more of `control.yaml`.
    pub(crate) async fn open_with(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let signer = TokenSigner::generate_es256("demo").unwrap();
        let seed = dir.path().join("seed");
        std::fs::create_dir(&seed).unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo");
        for name in ["issuer.yaml", "workloads.yaml", "services.yaml", "policies.yaml", "policies.cedar"] {
            std::fs::copy(demo.join(name), seed.join(name)).unwrap();
        }
        std::fs::write(seed.join("jwks.json"), json!({ "keys": [signer.public_jwk()] }).to_string()).unwrap();
        let (control, api, sync) = start_control_with(dir.path(), &address_to_keep(), &address_to_keep(), more).await;
        let site = Self { dir, api, sync, signer, control };
        for name in ["alice", "bob"] {
            site.must("control/bootstrap-token", &["operator", "create", name, "--write-token", &site.path(name)])
                .await;
        }
        let files = ["issuer", "workloads", "services", "policies"].map(|n| site.path(&format!("seed/{n}.yaml")));
        let args: Vec<&str> = std::iter::once("apply").chain(files.iter().flat_map(|f| ["-f", f.as_str()])).collect();
        site.must("alice", &args).await;
        std::fs::write(site.path("sidecar.jwt"), site.token("sidecar", "portcullis-control")).unwrap();
        site
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub(crate) fn token(&self, name: &str, audience: &str) -> String {
        let now = SystemClock::new().now().wall.as_secs();
        let claims = json!({ "sub": format!("{DOMAIN}/{name}"), "aud": [audience], "iat": now, "exp": now + 1800 });
        self.signer.sign(&claims).unwrap()
    }

    /// Runs a command as an operator; answers its exit status and JSON.
    pub(crate) async fn run(&self, token: &str, args: &[&str]) -> (i32, Value) {
        let server = format!("http://{}", self.api);
        let token = self.path(token);
        let mut args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        args.extend(["--server", &server, "--token-file", &token, "--output", "json"].map(str::to_owned));
        let output =
            tokio::task::spawn_blocking(move || portcullis(&args.iter().map(String::as_str).collect::<Vec<_>>()));
        let output = output.await.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::String(text));
        (output.status.code().unwrap(), value)
    }

    pub(crate) async fn must(&self, token: &str, args: &[&str]) -> Value {
        let (status, value) = self.run(token, args).await;
        assert_eq!(status, 0, "{args:?}: {value}");
        value
    }

    /// A sidecar of this site, not yet necessarily ready.
    pub(crate) async fn sidecar(&self) -> Sidecar {
        self.sidecar_with("", &Environment::default()).await
    }

    /// The same, with more of `sidecar.yaml`, and what overrides it.
    pub(crate) async fn sidecar_with(&self, more: &str, environment: &Environment) -> Sidecar {
        let text = format!(
            "listeners: {{ ext_authz: {{ tcp: '127.0.0.1:0' }}, admin: '127.0.0.1:0' }}\n\
             control_plane:\n  url: http://{sync}\n  insecure_loopback: true\n  token_file: {dir}/sidecar.jwt\n  \
             verify_key_file: {dir}/control/verify-key\n  grant_request_url: http://{api}/v1/grant-requests\n\
             scope: {{ identity: '{SIDECAR}', services: [catalog, payments] }}\n\
             state: {{ directory: {dir}/state }}\n\
             records: {{ output: file, file: {dir}/decisions.jsonl }}\n{more}",
            sync = self.sync,
            api = self.api,
            dir = self.dir.path().display(),
        );
        let raw = RawSidecar::parse(Path::new("sidecar.yaml"), &text, environment).unwrap();
        let bound = app::sidecar::build(raw.validate().unwrap(), &deps()).unwrap();
        let (ext_authz, proxy) = (bound.ext_authz_tcp().unwrap(), bound.proxy());
        let mut ready = bound.readiness().watch();
        let (drain, signal) = drain::channel();
        let server = Server::start(drain, Some(bound.admin()), bound.run(signal));
        tokio::time::timeout(Duration::from_secs(20), ready.wait_for(|r| *r)).await.expect("ready in time").unwrap();
        Sidecar { ext_authz, proxy, server }
    }
}

/// An address that a server can take again after it has stopped: below the ports that connections of other tests get by
/// chance, and given once.
pub(crate) fn address_to_keep() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Another process with these tests begins elsewhere.
    let offset = |n: u16| u16::try_from((std::process::id() * 97 + u32::from(n)) % 12_000).expect("below 12,000");
    let mut ports = std::iter::repeat_with(|| 20_000 + offset(NEXT.fetch_add(1, Ordering::Relaxed))).take(12_000);
    let free = ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port below 32,000");
    format!("127.0.0.1:{free}")
}

/// A control plane on `dir`.
pub(crate) async fn start_control(dir: &Path, api: &str, sync: &str) -> (Server, SocketAddr, SocketAddr) {
    start_control_with(dir, api, sync, "").await
}

async fn start_control_with(dir: &Path, api: &str, sync: &str, more: &str) -> (Server, SocketAddr, SocketAddr) {
    let text = format!(
        "listeners: {{ api: '{api}', sync: '{sync}', admin: '127.0.0.1:0' }}\ndata_directory: {}\n\
         insecure_loopback: true\nsync:\n  trust: [demo]\n  enforcement_points:\n    \
         - {{ identity: '{SIDECAR}', services: [catalog, payments] }}\n{more}",
        PathBuf::from(dir).join("control").display()
    );
    let raw = RawControl::parse(Path::new("control.yaml"), &text, &Environment::default()).unwrap();
    let bound = app::control::build(raw.validate().unwrap(), &deps()).await.unwrap();
    let (api, sync) = (bound.api(), bound.sync());
    let (drain, signal) = drain::channel();
    (Server::start(drain, Some(bound.admin()), bound.run(signal)), api, sync)
}

impl Sidecar {
    /// Asks as Envoy does.
    pub(crate) async fn check(&self, method: &str, path: &str, token: &str) -> Checked {
        let mut client = AuthorizationClient::connect(format!("http://{}", self.ext_authz)).await.unwrap();
        let request = CheckRequest {
            attributes: Some(AttributeContext {
                request: Some(AttributeRequest {
                    http: Some(HttpRequest {
                        method: method.to_owned(),
                        path: path.to_owned(),
                        host: "demo.local".to_owned(),
                        headers: [("authorization".to_owned(), format!("Bearer {token}"))].into(),
                        ..HttpRequest::default()
                    }),
                    ..AttributeRequest::default()
                }),
                ..AttributeContext::default()
            }),
        };
        let response = client.check(request).await.expect("never a gRPC error").into_inner();
        match response.http_response.expect("an answer for Envoy") {
            HttpResponse::OkResponse(ok) => {
                let headers = ok.headers.into_iter().filter_map(|h| h.header).map(|h| (h.key, h.value));
                Checked { status: 200, reason: String::new(), body: Value::Null, upstream: headers.collect() }
            }
            HttpResponse::DeniedResponse(denied) => {
                let body: Value = serde_json::from_str(&denied.body).unwrap();
                Checked {
                    status: u16::try_from(denied.status.unwrap().code).unwrap(),
                    reason: body["reason"].as_str().unwrap().to_owned(),
                    body,
                    upstream: Vec::new(),
                }
            }
            other => panic!("{other:?}"),
        }
    }

    /// Asks until the answer has this status: a change takes a moment to come through.
    pub(crate) async fn comes_to(&self, status: u16, method: &str, path: &str, token: &str) -> Checked {
        let mut look = tokio::time::interval(Duration::from_millis(10));
        let answer = async {
            loop {
                look.tick().await;
                let checked = self.check(method, path, token).await;
                if checked.status == status {
                    return checked;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), answer).await.expect("the change comes through")
    }
}
