//! TLS to clients with certificates that are decided on, files that are read again, and the PROXY protocol.

use std::path::Path;
use std::time::Duration;

use portcullis::clock::{Clock, SystemClock};
use portcullis::object::Kind;
use portcullis::proxy::{Protocol, ServerCertificates, ServerTls, UpstreamTls};
use portcullis::testing::Estate;
use portcullis::tls::{ClientFiles, ServerFiles, TLS12_UP, client_config};
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::certificates::{self, Authority};
use crate::reverse_proxy::{Proxy, config, raw, upstream};
use crate::reverse_proxy_upstream::Service;

/// Writes a certificate of `ca` for a workload and 127.0.0.1, and its key.
fn issue(ca: &Authority, directory: &Path, name: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    let mut params = certificates::params(&Estate::id(name), SystemClock::new().now().wall.as_secs());
    params.subject_alt_names.push(rcgen::SanType::IpAddress("127.0.0.1".parse().unwrap()));
    let (der, key) = ca.sign(&params);
    let paths = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
    std::fs::write(&paths.0, certificates::pem(&der)).unwrap();
    std::fs::write(&paths.1, key.serialize_pem()).unwrap();
    paths
}

/// One request over TLS. The status, or why there is none.
async fn over_tls(
    proxy: &Proxy,
    ca_file: &Path,
    identity: Option<(std::path::PathBuf, std::path::PathBuf)>,
    target: &str,
) -> Result<String, String> {
    let files = ClientFiles { ca_file: ca_file.to_owned(), identity };
    let connector = TlsConnector::from(client_config(&files, TLS12_UP, &[b"http/1.1"]).unwrap());
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
    let head = format!("GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer).await {
        Err(error) if answer.is_empty() => Err(error.to_string()),
        _ => Ok(String::from_utf8_lossy(&answer).into_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_certificate_is_decided_on_and_changed_files_are_read_again() {
    let service = Service::start().await;
    let (ca, stranger) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let (cert_file, key_file) = issue(&ca, directory.path(), "proxy");
    let mut config = config(upstream(&[service.address], Protocol::Http1));
    let files =
        ServerFiles { cert_file: cert_file.clone(), key_file: key_file.clone(), client_ca_file: Some(ca.file()) };
    config.listener.tls =
        Some(ServerTls { certificates: ServerCertificates::Files(files), require_client_certificate: false });
    let mut proxy = Proxy::open(config).await;
    proxy
        .estate
        .put_policies(r#"@id("all") permit(principal in Role::"storefront", action, resource in Service::"app");"#);
    proxy.publish();

    let storefront = issue(&ca, directory.path(), "storefront");
    let answer = over_tls(&proxy, &ca.file(), Some(storefront.clone()), "/mtls/echo").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains(&Estate::id("storefront")) && answer.contains("proto=https"), "{answer}");
    let answer = over_tls(&proxy, &ca.file(), None, "/mtls/echo").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let foreign = issue(&stranger, directory.path(), "agent");
    over_tls(&proxy, &ca.file(), Some(foreign), "/mtls/echo").await.expect_err("of a CA that nobody named");

    // Half of a new pair cannot be used: what was there stays. The whole is taken.
    let (new_cert, new_key) = issue(&stranger, directory.path(), "ci");
    std::fs::copy(&new_cert, &cert_file).unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(over_tls(&proxy, &ca.file(), None, "/mtls/echo").await.is_ok());
    std::fs::copy(&new_key, &key_file).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while over_tls(&proxy, &stranger.file(), None, "/mtls/echo").await.is_err() {
        assert!(std::time::Instant::now() < deadline, "the new certificate is not served");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_is_known_by_its_certificate() {
    let (ca, stranger) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let (cert, key) = issue(&ca, directory.path(), "upstream");
    let files = ServerFiles { cert_file: cert, key_file: key, client_ca_file: Some(ca.file()) };
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
    let own = issue(&ca, directory.path(), "proxy");
    for (ca_file, name, identity, expected) in [
        (ca.file(), "127.0.0.1", Some(own), Some("shown")),
        (ca.file(), "127.0.0.1", None, Some("empty")),
        (ca.file(), "other.example", None, None),
        (stranger.file(), "127.0.0.1", None, None),
    ] {
        let mut upstream = upstream(&[address], Protocol::Http1);
        upstream.tls = Some(UpstreamTls::Files(ClientFiles { ca_file, identity }, name.to_owned()));
        let proxy = Proxy::open(config(upstream)).await;
        let answer = raw(proxy.address, proxy.head("GET /app/x", &["Connection: close"]).as_bytes()).await;
        match expected {
            Some(body) => assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(body), "{answer}"),
            None => assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_load_balancer_says_whose_connection_it_is() {
    let service = Service::start().await;
    let mut config = config(upstream(&[service.address], Protocol::Http1));
    config.listener.proxy_protocol = vec!["127.0.0.0/8".parse().unwrap()];
    let mut proxy = Proxy::open(config).await;
    // The address is what conditions of grants are judged by as well.
    proxy.estate.put(Kind::Service, &json!({"name": "app", "routes": [{"name": "all", "path": "/app/{**}"}]}));
    proxy.publish();
    let header = |source: [u8; 4]| {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        header.extend(source);
        header.extend([10, 0, 0, 1, 0x30, 0x39, 0, 80]);
        header
    };
    let request = proxy.head("GET /app/echo", &["Connection: close"]);
    let answer = raw(proxy.address, &[&header([192, 0, 2, 7])[..], request.as_bytes()].concat()).await;
    assert!(answer.contains("\"x-forwarded-for\":\"192.0.2.7\""), "{answer}");
    assert_eq!(raw(proxy.address, request.as_bytes()).await, "", "without the header there is no connection");
    let plain = Proxy::before(&service).await;
    let answer = raw(plain.address, &[&header([192, 0, 2, 7])[..], request.as_bytes()].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "from anybody else it is no HTTP: {answer}");
}
