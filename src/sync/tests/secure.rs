//! The stream over TLS: X.509-SVIDs, the server's certificate, and what happens without.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::SanType;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::frames::identity;
use super::plane::{Plane, Sidecar, eventually};
use crate::control::sync_server::{ServeError, SyncServerConfig, SyncServerDeps, serve};
use crate::credential::{X509Svid, certificate_from_pem};
use crate::object::Kind;
use crate::sync::SyncClientConfig;
use crate::testing::certificates::{Authority, uri};
use crate::tls::{self, ServerFiles};

fn svid(ca: &Authority, name: &str, id: &str) -> (PathBuf, PathBuf) {
    ca.issue(name, vec![uri(id)])
}

async fn secured(pki: &Authority) -> Plane {
    let (cert_file, key_file) = pki.issue("server", vec![SanType::IpAddress("127.0.0.1".parse().unwrap())]);
    let files = ServerFiles { cert_file, key_file, client_ca_file: Some(pki.file()) };
    let mut plane = Plane::stopped(100, &["catalog", "payments"]);
    plane.config.tls = Some(tls::server_config(&files, tls::TLS13, &[tls::ALPN_H2]).unwrap());
    plane.run().await;
    plane
}

fn config(plane: &Plane, ca: &Path, svid: Option<(PathBuf, PathBuf)>, token: bool) -> SyncClientConfig {
    let mut config = plane.client_config(None);
    config.control_plane.url = format!("https://{}", plane.address).parse().unwrap();
    config.control_plane.insecure_loopback = false;
    config.control_plane.ca_file = Some(ca.to_owned());
    config.control_plane.identity_files = svid;
    if !token {
        config.control_plane.token_file = None;
    }
    config
}

#[tokio::test]
async fn an_x509_svid_or_a_token_opens_the_stream() {
    let pki = Authority::new();
    let plane = secured(&pki).await;
    let svid = svid(&pki, "sidecar", identity().as_str());
    for (svid, token) in [(Some(svid.clone()), false), (None, true), (Some(svid), true)] {
        let sidecar = Sidecar::start(config(&plane, &pki.file(), svid, token), plane.estate.clock.clone());
        sidecar.reaches(plane.index.position()).await;
        sidecar.stop().await;
    }
}

#[tokio::test]
async fn a_wrong_certificate_on_either_side_opens_nothing() {
    let pki = Authority::new();
    let plane = secured(&pki).await;
    let other = Authority::new();
    let ca = pki.file();
    for config in [
        // The server's CA is not ours.
        config(&plane, &other.path("ca.pem"), None, true),
        // Our CA is not the server's.
        config(&plane, &ca, Some(svid(&other, "sidecar", identity().as_str())), false),
        // Not an enforcement point.
        config(&plane, &ca, Some(svid(&pki, "other", "spiffe://test.example/other")), false),
        // Two identities that do not agree.
        config(&plane, &ca, Some(svid(&pki, "other", "spiffe://test.example/other")), true),
    ] {
        let sidecar = Sidecar::start(config, plane.estate.clock.clone());
        eventually("it is refused", || sidecar.stats.read().failures >= 2).await;
        assert_eq!(sidecar.position(), None);
        sidecar.stop().await;
    }
}

#[tokio::test]
async fn a_revoked_certificate_opens_nothing_however_its_serial_number_is_spelt() {
    let pki = Authority::new();
    let mut plane = secured(&pki).await;
    let svid = svid(&pki, "sidecar", identity().as_str());
    let der = certificate_from_pem(&std::fs::read_to_string(&svid.0).unwrap()).unwrap();
    let serial = X509Svid::parse(&der).unwrap().serial.to_uppercase();
    let change = plane.estate.revoke(&json!({"kind": "certificate", "serial": format!("0x{serial}")}));
    plane.commit(vec![change]);
    let sidecar = Sidecar::start(config(&plane, &pki.file(), Some(svid), false), plane.estate.clock.clone());
    eventually("it is refused", || sidecar.stats.read().failures >= 2).await;
    assert_eq!(sidecar.position(), None);
}

#[tokio::test]
async fn a_certificate_ends_with_the_issuer_of_its_trust_domain() {
    let pki = Authority::new();
    for target in [Some(json!({"kind": "issuer", "issuer": "test"})), None] {
        let mut plane = secured(&pki).await;
        let svid = svid(&pki, "sidecar", identity().as_str());
        let config = config(&plane, &pki.file(), Some(svid), false);
        let sidecar = Sidecar::start(config, plane.estate.clock.clone());
        sidecar.reaches(plane.index.position()).await;
        let failures = sidecar.stats.read().failures;
        let change = match &target {
            Some(target) => plane.estate.revoke(target),
            // Or its key set is emptied.
            None => plane.estate.put(
                Kind::Issuer,
                &json!({"name": "test", "kind": "spiffe", "trust_domain": "test.example", "audiences": ["a"]}),
            ),
        };
        plane.commit(vec![change]);
        eventually("the stream ends and stays closed", || sidecar.stats.read().failures >= failures + 2).await;
        sidecar.stop().await;
    }
}

#[tokio::test]
async fn connections_are_bounded_and_their_places_come_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = tls::AcceptLimits { handshake: Duration::from_secs(10), pending: 8, computing: 1, connections: 2 };
    let mut accepted = tls::accept(listener, None, limits, CancellationToken::new());
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    let (first, second) = (accepted.recv().await.unwrap(), accepted.recv().await.unwrap());
    assert!(tokio::time::timeout(Duration::from_millis(200), accepted.recv()).await.is_err(), "the third waits");
    drop(first);
    assert!(accepted.recv().await.is_some(), "until a place is free");
    drop(second);
}

#[tokio::test]
async fn without_tls_only_loopback_is_served_and_dialled() {
    let plane = Plane::start(100).await;
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let deps = SyncServerDeps {
        index: plane.index.clone(),
        fleet: plane.fleet.clone(),
        key: plane.key.clone(),
        clock: plane.estate.clock.clone(),
        metrics: std::sync::Arc::new(crate::telemetry::ControlMetrics::new().unwrap()),
        keys: None,
        uses: None,
    };
    let e = serve(listener, deps, SyncServerConfig::default(), CancellationToken::new()).await.unwrap_err();
    assert!(matches!(e, ServeError::NotLoopback(_)), "{e}");
    let mut config = plane.client_config(None);
    config.control_plane.insecure_loopback = false;
    let e = config.control_plane.check().unwrap_err();
    assert!(e.to_string().contains("http is only allowed with"), "{e}");
    config.control_plane.url = format!("https://{}", plane.address).parse().unwrap();
    assert!(config.control_plane.check().unwrap_err().to_string().contains("needs a CA file"));
    config.control_plane.token_file = None;
    config.control_plane.ca_file = Some("ca.pem".into());
    assert!(config.control_plane.check().unwrap_err().to_string().contains("neither a token file"));
}

#[tokio::test]
async fn a_client_that_never_finishes_its_handshake_keeps_nobody_out() {
    let pki = Authority::new();
    let plane = secured(&pki).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(tokio::net::TcpStream::connect(plane.address).await.unwrap());
    }
    let sidecar = Sidecar::start(config(&plane, &pki.file(), None, true), plane.estate.clock.clone());
    tokio::time::timeout(Duration::from_secs(5), sidecar.reaches(plane.index.position())).await.unwrap();
}
