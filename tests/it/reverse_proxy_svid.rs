//! The reverse proxy with certificates from a SPIFFE agent: who gets in, which upstream is spoken to, rotation, an agent
//! that is gone, and a sidecar that is not ready before its first SVID.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use portcullis::app;
use portcullis::clock::{Clock, SystemClock};
use portcullis::config::{Environment, RawSidecar};
use portcullis::credential::SpiffeId;
use portcullis::drain;
use portcullis::object::Kind;
use portcullis::proxy::{Protocol, ServerCertificates, ServerTls, UpstreamConfig, UpstreamTls};
use portcullis::svid::{Endpoint, Settings};
use portcullis::testing::{Estate, SpiffeAgent};
use portcullis::tls::{ClientFiles, ServerFiles, TLS12_UP, client_config};
use portcullis::wire::workload_api::{X509svid, X509svidResponse};
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::certificates::{self, Authority};
use crate::reverse_proxy::{Proxy, config, raw, upstream};
use crate::reverse_proxy_upstream::Service;
use crate::running::{SIDECAR, Server, Site, deps};

/// Of the trust domain that the estate's workloads are in.
const PROXY: &str = "spiffe://test.example/proxy";

struct Agent {
    agent: SpiffeAgent,
    directory: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut agent = Self { agent: SpiffeAgent::default(), directory };
        agent.again();
        agent
    }

    fn again(&mut self) {
        let socket = self.socket();
        self.agent.start(&socket);
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    fn settings(&self) -> Settings {
        Settings { endpoint: Endpoint::Unix(self.socket()), spiffe_id: None }
    }

    /// The proxy's SVID is now one of `ca`, for so long; it is to believe `ca` and `also`, and the federated ones.
    fn says(&self, ca: &Authority, seconds: u64, also: &[&Authority], federated: &[(&str, &Authority)]) {
        let now = now();
        let mut params = certificates::params(PROXY, now);
        certificates::valid(&mut params, now - 60, now + seconds);
        // For clients that look at names.
        params.subject_alt_names.push(rcgen::SanType::IpAddress("127.0.0.1".parse().unwrap()));
        let (der, key) = ca.sign(&params);
        let bundle: Vec<u8> = [ca].iter().chain(also).flat_map(|ca| ca.der()).collect();
        let svid = X509svid {
            spiffe_id: PROXY.to_owned(),
            x509_svid: der.into(),
            x509_svid_key: key.serialize_der().into(),
            bundle: bundle.into(),
            hint: String::new(),
        };
        let federated_bundles =
            federated.iter().map(|(domain, ca)| (format!("spiffe://{domain}"), ca.der().into())).collect();
        self.agent.svids.send_replace(Some(X509svidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles }));
    }
}

fn now() -> u64 {
    SystemClock::new().now().wall.as_secs()
}

/// Files with an SVID of `ca` and its key.
fn files(ca: &Authority, id: &str) -> (PathBuf, PathBuf) {
    let (der, key) = ca.sign(&certificates::params(id, now()));
    let name = id.rsplit('/').next().unwrap();
    let (cert_file, key_file) = (ca.path(&format!("{name}.pem")), ca.path(&format!("{name}.key")));
    std::fs::write(&cert_file, certificates::pem(&der)).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    (cert_file, key_file)
}

/// One request over TLS, to a proxy whose certificate `ca` vouches for. The answer, or why there is none.
async fn ask(address: SocketAddr, ca: &Authority, identity: Option<(PathBuf, PathBuf)>) -> Result<String, String> {
    let files = ClientFiles { ca_file: ca.file(), identity };
    let connector = TlsConnector::from(client_config(&files, TLS12_UP, &[b"http/1.1"]).unwrap());
    let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
    let head = b"GET /mtls/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    stream.write_all(head).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer).await {
        Err(error) if answer.is_empty() => Err(error.to_string()),
        _ => Ok(String::from_utf8_lossy(&answer).into_owned()),
    }
}

/// Asks until it comes out like this: what an agent says takes a moment.
async fn comes_to<T>(what: &str, mut ask: impl AsyncFnMut() -> T, is_it: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = ask().await;
        if is_it(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_known_by_svids_of_the_bundles_that_the_agent_hands_out() {
    let service = Service::start().await;
    let (ca, partner, stranger) = (Authority::new(), Authority::new(), Authority::new());
    let mut agent = Agent::start();
    let mut config = config(upstream(&[service.address], Protocol::Http1));
    let certificates = ServerCertificates::Svid(agent.settings());
    config.listener.tls = Some(ServerTls { certificates, require_client_certificate: false });
    let mut proxy = Proxy::open(config).await;
    proxy
        .estate
        .put_policies(r#"@id("all") permit(principal in Role::"storefront", action, resource in Service::"app");"#);
    proxy.publish();

    // Nothing is served before the first SVID, and nothing in plain text ever.
    let storefront = files(&ca, &Estate::id("storefront"));
    ask(proxy.address, &ca, Some(storefront.clone())).await.expect_err("there is no SVID yet");
    let plain = raw(proxy.address, proxy.head("GET /app/echo", &["Connection: close"]).as_bytes()).await;
    assert!(!plain.contains("HTTP/1.1"), "{plain}");
    agent.says(&ca, 3600, &[], &[("partner.example", &partner)]);
    let mine = async || ask(proxy.address, &ca, Some(storefront.clone())).await;
    let answer = comes_to("the first SVID", mine, Result::is_ok).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(&Estate::id("storefront")), "{answer}");
    assert_eq!(service.requests(), 1);
    let plain = raw(proxy.address, proxy.head("GET /app/echo", &["Connection: close"]).as_bytes()).await;
    assert!(!plain.contains("HTTP/1.1"), "{plain}");

    // Who shows nothing is the route's business; who shows what the bundle of its trust domain does not vouch for is not
    // let in, whatever other bundle would.
    let nobody = ask(proxy.address, &ca, None).await.unwrap();
    assert!(nobody.starts_with("HTTP/1.1 401 "), "{nobody}");
    let federated = ask(proxy.address, &ca, Some(files(&partner, "spiffe://partner.example/batch"))).await.unwrap();
    assert!(federated.starts_with("HTTP/1.1 401 "), "believed, but no workload here: {federated}");
    for (vouches, id) in [
        (&stranger, Estate::id("storefront")),
        (&partner, Estate::id("storefront")),
        (&stranger, "spiffe://partner.example/batch".to_owned()),
        (&ca, "spiffe://partner.example/batch".to_owned()),
        (&ca, "spiffe://other.example/batch".to_owned()),
    ] {
        ask(proxy.address, &ca, Some(files(vouches, &id))).await.expect_err(&id);
    }
    let storefront = files(&ca, &Estate::id("storefront"));

    // Rotation, of the certificate and of who is believed, without a restart.
    agent.says(&stranger, 3600, &[&ca], &[]);
    let rotated = async || ask(proxy.address, &stranger, Some(storefront.clone())).await;
    let answer = comes_to("the next SVID", rotated, Result::is_ok).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let gone = files(&partner, "spiffe://partner.example/batch");
    ask(proxy.address, &stranger, Some(gone)).await.expect_err("its bundle is gone");

    // The agent is gone: what is held stays. It comes back with another, which is in time for a moment only.
    agent.agent.stop().await;
    assert!(ask(proxy.address, &stranger, Some(storefront.clone())).await.unwrap().starts_with("HTTP/1.1 200 "));
    agent.says(&ca, 4, &[], &[]);
    agent.again();
    let back = async || ask(proxy.address, &ca, Some(storefront.clone())).await;
    let answer = comes_to("the stream is opened again", back, Result::is_ok).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    agent.agent.stop().await;
    comes_to("it has ended", back, Result::is_err).await.unwrap_err();
}

/// A server that shows an SVID and wants one of `ca`; it tells whether it was shown one.
async fn server(ca: &Authority, shown: (PathBuf, PathBuf)) -> SocketAddr {
    let files = ServerFiles { cert_file: shown.0, key_file: shown.1, client_ca_file: Some(ca.file()) };
    let tls = portcullis::tls::server_config(&files, TLS12_UP, &[b"http/1.1"]).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let shown = stream.get_ref().1.peer_certificates().is_some();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let body = if shown { "shown" } else { "empty" };
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_is_known_by_its_spiffe_id_and_shown_the_svid() {
    let (ca, stranger) = (Authority::new(), Authority::new());
    let agent = Agent::start();
    let app = "spiffe://test.example/app";
    let good = server(&ca, files(&ca, app)).await;
    let forged = server(&ca, files(&stranger, app)).await;
    // One proxy, so that what one of its upstreams shows of the SVID counts for all.
    let cases = [
        ("app", good, &["spiffe://test.example/other", app][..], "200"),
        ("other", good, &["spiffe://test.example/other"], "503"),
        ("longer", good, &["spiffe://test.example/app/x"], "503"),
        ("forged", forged, &[app], "503"),
    ];
    let mut config = config(upstream(&[good], Protocol::Http1));
    config.upstreams.clear();
    for (service, address, ids, _) in cases {
        let ids = ids.iter().map(|id| SpiffeId::parse(id).unwrap()).collect();
        let tls = Some(UpstreamTls::Svid(agent.settings(), ids));
        let service = service.to_owned();
        config.upstreams.push(UpstreamConfig { service, tls, ..upstream(&[address], Protocol::Http1) });
    }
    let mut proxy = Proxy::open(config).await;
    for (service, ..) in cases {
        let routes = json!([{"name": "all", "path": format!("/{service}/{{**}}")}]);
        proxy.estate.put(Kind::Service, &json!({"name": service, "routes": routes}));
    }
    proxy.estate.put_policies(r#"@id("all") permit(principal, action, resource);"#);
    proxy.publish();
    let head = |service| proxy.head(&format!("GET /{service}/x"), &["Connection: close"]);
    let answer = raw(proxy.address, head("app").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "without an SVID nothing is sent: {answer}");
    agent.says(&ca, 3600, &[], &[]);
    for (service, _, _, expected) in cases {
        let is_expected = |answer: &String| answer.starts_with(&format!("HTTP/1.1 {expected} "));
        let answer = comes_to(service, async || raw(proxy.address, head(service).as_bytes()).await, is_expected).await;
        assert!(expected != "200" || answer.ends_with("shown"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_is_not_ready_before_its_first_svid() {
    let site = Site::open().await;
    let agent = Agent::start();
    let text = format!(
        "listeners: {{ proxy: '127.0.0.1:0', admin: '127.0.0.1:0' }}\n\
         control_plane:\n  url: http://{sync}\n  insecure_loopback: true\n  token_file: {dir}/sidecar.jwt\n  \
         verify_key_file: {dir}/control/verify-key\n\
         scope: {{ identity: '{SIDECAR}', services: [catalog, payments] }}\n\
         state: {{ directory: {dir}/state-svid }}\n\
         records: {{ output: 'off' }}\n\
         proxy:\n  workload_api: {{ endpoint: 'unix:{socket}' }}\n  tls: {{ workload_api: true }}\n  \
         upstreams: [{{ service: catalog, addresses: ['127.0.0.1:9'] }}]\n",
        sync = site.sync,
        dir = site.dir.path().display(),
        socket = agent.socket().display(),
    );
    let raw = RawSidecar::parse(Path::new("sidecar.yaml"), &text, &Environment::default()).unwrap();
    let bound = app::sidecar::build(raw.validate().unwrap(), &deps()).unwrap();
    let readiness = bound.readiness().clone();
    let address = bound.proxy().unwrap();
    let (drain, signal) = drain::channel();
    let server = Server::start(drain, Some(bound.admin()), bound.run(signal));
    let waits = async || readiness.waiting_for();
    comes_to("all but the SVID", waits, |waiting| *waiting == ["SVID from the Workload API"]).await;
    let ca = Authority::new();
    agent.says(&ca, 4, &[], &[]);
    comes_to("the SVID", waits, Vec::is_empty).await;
    let answer = ask(address, &ca, None).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 40"), "{answer}");
    // It ends, and nothing comes after it.
    comes_to("its end", waits, |waiting| *waiting == ["SVID from the Workload API"]).await;
    server.stop().await;
}
