//! Client certificates through the real Envoy: the connection's own, and what a gateway Envoy forwards.
//!
//! The configuration is that of `envoy/sidecar-grpc-mtls.yaml` and `envoy/gateway-mtls.yaml`, with certificates made here.
//! Chains are verified by Envoy, everything else by Portcullis; each is shown to refuse its part.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::authz::{ForwardingHeader, ProxyPeer, Settings, TrustedProxy};
use portcullis::clock::{Clock, SystemClock};
use portcullis::credential::SpiffeId;
use portcullis::object::Kind;
use portcullis::telemetry::Output;
use portcullis::testing::{Estate, KeyHolder, changed};
use portcullis::{drain, ext_authz};
use rcgen::{KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::certificates::{self, Authority};
use crate::door;
use crate::envoy::Envoy;
use crate::envoy_config::{echo_service, file};

/// Where the files under `envoy/` have their certificates.
pub(crate) const TLS_FILES: &str = "/run/portcullis/tls";

const OF_A_LISTED_GATEWAY: &str = "gateway";

/// A CA.
pub(crate) struct Pki(Authority);

/// A certificate and its key.
struct Identity {
    der: Vec<u8>,
    key: KeyPair,
}

/// Envoy with mutual TLS, the sidecar's door behind it, and a service that tells what it received.
struct Stack {
    pki: Pki,
    estate: Estate,
    envoy: Envoy,
    directory: tempfile::TempDir,
    _drain: drain::Drain,
}

// === impl Pki ===

impl Pki {
    pub(crate) fn new() -> Self {
        Self(Authority::new())
    }

    /// A good X.509-SVID, which is also good for a server on 127.0.0.1.
    fn issue(&self, id: &str) -> Identity {
        let mut params = certificates::params(id, SystemClock::new().now().wall.as_secs());
        params.subject_alt_names.push(SanType::IpAddress("127.0.0.1".parse().unwrap()));
        let (der, key) = self.0.sign(&params);
        Identity { der, key }
    }

    /// Writes what an Envoy needs into a directory of its own, and names it.
    pub(crate) fn files(&self, directory: &Path, id: &str) -> String {
        let directory = directory.join(id.rsplit('/').next().unwrap());
        std::fs::create_dir(&directory).unwrap();
        let Identity { der, key } = self.issue(id);
        let write = |name: &str, text: String| std::fs::write(directory.join(name), text).unwrap();
        write("svid.pem", certificates::pem(&der));
        write("svid.key", key.serialize_pem());
        write("ca.pem", self.0.pem());
        directory.display().to_string()
    }
}

// === impl Stack ===

impl Stack {
    async fn start() -> Self {
        let clock = Arc::new(SystemClock::new());
        let mut estate = Estate::new_at(clock.now().wall);
        let route = |mode: &str| json!({"name": mode, "path": format!("/{mode}"), "authentication": mode});
        let routes = ["token", "certificate", "any", "both"].map(route);
        estate.put(Kind::Service, &json!({"name": "mtls", "routes": routes}));
        estate.put_policies(r#"@id("all") permit(principal, action, resource);"#);

        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("ext_authz.sock");
        let gateway = SpiffeId::parse(&Estate::id(OF_A_LISTED_GATEWAY)).unwrap();
        let settings = Settings {
            trusted_proxies: vec![TrustedProxy { peer: ProxyPeer::SpiffeId(gateway), header: ForwardingHeader::Xfcc }],
        };
        let gate = door::gate(&door::state(&estate, &clock), &clock).with_settings(settings);
        let unix = ext_authz::UnixSocket::bind(&socket, 0o600).unwrap();
        let listeners = ext_authz::Listeners { unix: Some(unix), ..Default::default() };
        let (_, drain) = door::serve(gate, listeners, ext_authz::Config::default(), Output::Off);

        let pki = Pki::new();
        let service = echo_service().await;
        let tls = pki.files(directory.path(), &Estate::id("envoy"));
        let configuration = door::on_free_ports("sidecar-grpc-mtls.yaml", service)
            .replace("/run/portcullis/ext_authz.sock", socket.to_str().unwrap())
            .replace(TLS_FILES, &tls);
        let envoy = tokio::task::spawn_blocking(move || Envoy::start(&configuration)).await.unwrap();
        Self { pki, estate, envoy, directory, _drain: drain }
    }

    /// A gateway Envoy in front, with the X.509-SVID of `name`.
    async fn gateway(&self, name: &str) -> Envoy {
        let tls = self.pki.files(self.directory.path(), &Estate::id(name));
        let configuration = file("gateway-mtls.yaml")
            .replace("port_value: 10443", "port_value: 0")
            .replace("port_value: 9902", "port_value: 0")
            .replace("port_value: 10000", &format!("port_value: {}", self.envoy.address.port()))
            .replace(TLS_FILES, &tls);
        tokio::task::spawn_blocking(move || Envoy::start(&configuration)).await.unwrap()
    }

    fn svid(&self, name: &str) -> Identity {
        self.pki.issue(&Estate::id(name))
    }

    fn bearer(&self, name: &str) -> String {
        format!("Authorization: Bearer {}", self.estate.token(name))
    }

    /// `GET path` with a client certificate: the status, and the head that the service received or the body of a denial.
    async fn get(
        &self,
        address: SocketAddr,
        client: &Identity,
        path: &str,
        headers: &[String],
    ) -> std::io::Result<(u16, String)> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(self.pki.0.der())).unwrap();
        let key = PrivatePkcs8KeyDer::from(client.key.serialize_der()).into();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![CertificateDer::from(client.der.clone())], key)
            .unwrap();
        let stream = tokio::net::TcpStream::connect(address).await?;
        let name = ServerName::from(address.ip());
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
        Ok((status.ok_or_else(|| std::io::Error::other(format!("`{answer}` is no answer")))?, answer.to_string()))
    }

    async fn directly(&self, client: &Identity, path: &str, headers: &[String]) -> (u16, String) {
        self.get(self.envoy.address, client, path, headers).await.unwrap()
    }
}

/// The workload that the service was told of.
fn workload((status, answer): &(u16, String)) -> &str {
    assert_eq!(*status, 200, "{answer}");
    answer.lines().find_map(|line| line.strip_prefix("x-portcullis-workload: ")).expect("the service learns who calls")
}

/// Refused for the credential, with no more than its family told.
fn refused((status, answer): &(u16, String)) {
    assert_eq!(*status, 401, "{answer}");
    assert!(answer.contains("\"reason\":\"credential\""), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_of_the_connection_authenticates() {
    let stack = Stack::start().await;
    let (storefront, agent) = (stack.svid("storefront"), stack.svid("agent"));
    assert_eq!(workload(&stack.directly(&storefront, "/certificate", &[]).await), Estate::id("storefront"));
    assert_eq!(workload(&stack.directly(&agent, "/any", &[]).await), Estate::id("agent"));

    // Chains of Envoy's CA, and yet not of a workload here: Portcullis' part.
    refused(&stack.directly(&stack.pki.issue("spiffe://other.example/storefront"), "/certificate", &[]).await);
    refused(&stack.directly(&stack.svid("unregistered"), "/certificate", &[]).await);
    refused(&stack.directly(&stack.pki.issue("https://test.example/storefront"), "/certificate", &[]).await);
    // Another CA: Envoy's part. With TLS 1.3 the client learns it when it reads.
    let stranger = Pki::new().issue(&Estate::id("storefront"));
    let answer = stack.get(stack.envoy.address, &stranger, "/certificate", &[]).await;
    assert!(answer.is_err(), "{answer:?}");

    let token = [stack.bearer("storefront")];
    assert_eq!(workload(&stack.directly(&storefront, "/both", &token).await), Estate::id("storefront"));
    refused(&stack.directly(&agent, "/both", &token).await);
    refused(&stack.directly(&agent, "/any", &token).await);
    refused(&stack.directly(&agent, "/both", &[]).await);
    refused(&stack.directly(&storefront, "/token", &[]).await);
    assert_eq!(workload(&stack.directly(&agent, "/token", &token).await), Estate::id("storefront"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_speaks_for_its_client_if_it_is_listed_and_a_client_never_for_another() {
    let stack = Stack::start().await;
    let (storefront, agent) = (stack.svid("storefront"), stack.svid("agent"));
    let id = Estate::id("storefront");
    let forged = [
        format!("X-Forwarded-Client-Cert: {}", certificates::xfcc(&storefront.der, &id)),
        format!("Client-Cert: {}", certificates::client_cert(&storefront.der)),
    ];
    // A client that is not listed says what it wants; it remains who it is.
    assert_eq!(workload(&stack.directly(&agent, "/certificate", &forged).await), Estate::id("agent"));
    refused(&stack.directly(&stack.svid("unregistered"), "/certificate", &forged).await);

    let gateway = stack.gateway(OF_A_LISTED_GATEWAY).await;
    let through = async |client: &Identity, headers: &[String]| {
        stack.get(gateway.address, client, "/certificate", headers).await.unwrap()
    };
    assert_eq!(workload(&through(&storefront, &[]).await), id);
    assert_eq!(workload(&through(&agent, &[]).await), Estate::id("agent"));
    assert_eq!(workload(&through(&agent, &forged).await), Estate::id("agent"));
    // ... in every spelling: the gateway does not know this one, and passes it on.
    let alias = [format!("X_Forwarded_Client_Cert: {}", certificates::xfcc(&storefront.der, &id))];
    assert_eq!(workload(&through(&agent, &alias).await), Estate::id("agent"));
    refused(&through(&stack.pki.issue("spiffe://other.example/storefront"), &forged).await);
    // Its own certificate is good for the way to the sidecar, and not for a request of its own.
    refused(&stack.directly(&stack.svid(OF_A_LISTED_GATEWAY), "/certificate", &[]).await);

    // The same gateway with a certificate that nobody listed is a client like any other.
    let unlisted = stack.gateway("ci").await;
    let answer = stack.get(unlisted.address, &storefront, "/certificate", &[]).await.unwrap();
    assert_eq!(workload(&answer), Estate::id("ci"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_proven_for_the_https_uri_and_beside_the_certificate_that_the_token_is_bound_to() {
    let stack = Stack::start().await;
    let (storefront, agent, holder) = (stack.svid("storefront"), stack.svid("agent"), KeyHolder::new());
    let x5t = URL_SAFE_NO_PAD.encode(portcullis::credential::certificate_thumbprint(&storefront.der));
    let cnf = json!({"cnf": {"jkt": holder.thumbprint(), "x5t#S256": x5t}});
    let token = stack.estate.signer.sign(&changed(stack.estate.claims("storefront"), &cnf)).unwrap();
    let headers = |uri: &str| {
        let claims = KeyHolder::dpop_claims("GET", uri, &token, SystemClock::new().now().wall);
        [format!("Authorization: DPoP {token}"), format!("DPoP: {}", holder.dpop(&claims))]
    };
    let good = stack.directly(&storefront, "/token", &headers("https://test/token")).await;
    assert_eq!(workload(&good), Estate::id("storefront"));
    refused(&stack.directly(&storefront, "/token", &headers("http://test/token")).await);
    refused(&stack.directly(&agent, "/token", &headers("https://test/token")).await);
}
