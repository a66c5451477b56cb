//! What of an agent's messages is taken, and who may connect to whom by what is held.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::message::{Held, Unusable};
use super::*;
use crate::credential::SpiffeId;
use crate::testing::SpiffeAgent;
use crate::testing::certificates::{self, Authority};
use crate::wire::workload_api::{X509svid, X509svidResponse};

const PROXY: &str = "spiffe://td.example/proxy";
const APP: &str = "spiffe://td.example/app";
const PARTNER: &str = "spiffe://partner.example/batch";

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn now() -> u64 {
    UnixTime::now().as_secs()
}

fn signed(ca: &Authority, id: &str, params: &CertificateParams) -> X509svid {
    let (der, key) = ca.sign(params);
    X509svid {
        spiffe_id: id.to_owned(),
        x509_svid: der.into(),
        x509_svid_key: key.serialize_der().into(),
        bundle: ca.der().into(),
        hint: String::new(),
    }
}

fn svid(ca: &Authority, id: &str) -> X509svid {
    signed(ca, id, &certificates::params(id, now()))
}

fn message(svids: Vec<X509svid>, federated: &[(&str, Bytes)]) -> X509svidResponse {
    let federated_bundles = federated.iter().map(|(domain, der)| (format!("spiffe://{domain}"), der.clone())).collect();
    X509svidResponse { svids, crl: Vec::new(), federated_bundles }
}

fn read(message: &X509svidResponse) -> Result<Held, Unusable> {
    Held::read(message, None, UnixTime::now())
}

fn settings() -> Settings {
    Settings { endpoint: "unix:/nowhere".parse().unwrap(), spiffe_id: None }
}

fn source(message: &X509svidResponse) -> Arc<Source> {
    Source::holding(settings(), read(message).unwrap())
}

#[test]
fn a_message_is_taken_whole_and_of_several_svids_the_one_that_is_wanted() {
    let (ca, partner) = (Authority::new(), Authority::new());
    let both = message(vec![svid(&ca, PROXY), svid(&ca, APP)], &[("partner.example", partner.der().into())]);
    let held = read(&both).unwrap();
    assert_eq!((held.id.as_str(), held.names()), (PROXY, vec!["partner.example", "td.example"]));
    assert_eq!(held.key.cert.len(), 1);
    let other = Held::read(&both, Some(&id(APP)), UnixTime::now()).unwrap();
    assert_eq!(other.id.as_str(), APP);
    let none = Held::read(&both, Some(&id(PARTNER)), UnixTime::now()).unwrap_err();
    assert_eq!(none, Unusable::NotAmong(id(PARTNER)));
    assert!(!format!("{held:?}").contains("key"), "{held:?}");
}

#[test]
fn what_would_show_or_believe_the_wrong_thing_is_refused() {
    let ca = Authority::new();
    let good = svid(&ca, PROXY);
    let with = |change: &dyn Fn(&mut X509svid)| {
        let mut svid = good.clone();
        change(&mut svid);
        message(vec![svid], &[])
    };
    let mut ended = certificates::params(PROXY, now());
    certificates::valid(&mut ended, now() - 3600, now() - 1);
    let mut of_a_ca = certificates::params(PROXY, now());
    of_a_ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let another_key = Bytes::from(KeyPair::generate().unwrap().serialize_der());
    for (message, expected) in [
        (message(vec![], &[]), "it holds no SVID"),
        (with(&|svid| svid.spiffe_id = APP.to_owned()), "of another SPIFFE ID"),
        (with(&|svid| svid.x509_svid = Bytes::new()), "there is no certificate"),
        (with(&|svid| svid.x509_svid = svid.x509_svid.slice(1..)), "cannot be parsed"),
        (with(&|svid| svid.x509_svid = svid.x509_svid.repeat(17).into()), "too long"),
        (with(&|svid| svid.x509_svid_key = another_key.clone()), "the SVID cannot be used"),
        (with(&|svid| svid.x509_svid_key = Bytes::from_static(b"x")), "the SVID cannot be used"),
        (with(&|svid| svid.bundle = Bytes::new()), "the bundle of `td.example` cannot be used"),
        (with(&|svid| svid.bundle = Bytes::from_static(b"\x30\x03")), "the bundle of `td.example` cannot be used"),
        (message(vec![signed(&ca, PROXY, &ended)], &[]), "it has ended"),
        (message(vec![signed(&ca, PROXY, &of_a_ca)], &[]), "the certificate is a CA's"),
    ] {
        let error = read(&message).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_federated_bundle_that_cannot_be_used_takes_nobody_elses_trust() {
    let (ca, partner) = (Authority::new(), Authority::new());
    let federated: [(&str, Bytes); 4] = [
        ("broken.example", Bytes::from_static(b"\x30\x03abc")),
        ("Not A Domain", partner.der().into()),
        ("partner.example", partner.der().into()),
        // Its own trust domain is not something that federation may speak for.
        ("td.example", partner.der().into()),
    ];
    let held = read(&message(vec![svid(&ca, PROXY)], &federated)).unwrap();
    assert_eq!(held.names(), ["partner.example", "td.example"]);
    assert_eq!(held.domain("td.example").unwrap().roots.subjects().len(), 1);
}

/// A handshake and a byte: of a client that has this SVID and wants `wanted`, with a server.
async fn handshake(client: &Arc<Source>, server: &Arc<Source>, wanted: &[&str]) -> Result<bool, String> {
    let ids: Vec<SpiffeId> = wanted.iter().map(|text| id(text)).collect();
    let client = client_config(client, &ids, &[b"http/1.1"]).unwrap();
    let server = server_config(server, &[b"http/1.1"]).unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from("app.internal").unwrap();
    let connect = async {
        let mut stream = tokio_rustls::TlsConnector::from(client).connect(name, near).await?;
        // In TLS 1.3 the server's verdict on the client comes with what is read first.
        stream.write_all(b"x").await?;
        stream.read_u8().await
    };
    let accept = async {
        let mut stream = tokio_rustls::TlsAcceptor::from(server).accept(far).await?;
        let is_known = stream.get_ref().1.peer_certificates().is_some();
        stream.read_u8().await?;
        stream.write_u8(u8::from(is_known)).await?;
        Ok::<_, std::io::Error>(())
    };
    let (connected, accepted) = tokio::join!(connect, accept);
    accepted.and(connected).map(|byte| byte == 1).map_err(|e| e.to_string())
}

#[tokio::test]
async fn each_trust_domain_is_vouched_for_by_its_own_authorities_only() {
    let (ca, partner, stranger) = (Authority::new(), Authority::new(), Authority::new());
    let of = |ca: &Authority, id: &str, federated: &[(&str, Bytes)]| source(&message(vec![svid(ca, id)], federated));
    let to_partner = [("partner.example", Bytes::from(partner.der()))];
    let to_td = [("td.example", Bytes::from(ca.der()))];
    let proxy = of(&ca, PROXY, &to_partner);
    let app = of(&ca, APP, &to_partner);
    assert_eq!(handshake(&proxy, &app, &[APP]).await, Ok(true));
    assert_eq!(handshake(&proxy, &app, &[PARTNER, APP]).await, Ok(true));
    handshake(&proxy, &app, &[PROXY]).await.expect_err("another SPIFFE ID");
    handshake(&proxy, &app, &["spiffe://td.example/app/x"]).await.expect_err("a part of it is not it");

    // Federated, both ways.
    let batch = of(&partner, PARTNER, &to_td);
    assert_eq!(handshake(&batch, &app, &[APP]).await, Ok(true));
    assert_eq!(handshake(&proxy, &batch, &[PARTNER]).await, Ok(true));
    // Not federated; known to the client, but not to the server.
    let foreign = of(&stranger, "spiffe://other.example/a", &to_td);
    handshake(&foreign, &app, &[APP]).await.expect_err("a trust domain without a bundle");
    // The partner's authority speaks for its own trust domain, in both directions.
    let forged = of(&partner, APP, &[]);
    let forged_with_our_bundle = {
        let mut svid = svid(&partner, "spiffe://td.example/admin");
        svid.bundle = ca.der().into();
        source(&message(vec![svid], &[]))
    };
    handshake(&proxy, &forged, &[APP]).await.expect_err("a server of td.example vouched for by the partner");
    handshake(&forged_with_our_bundle, &app, &[APP])
        .await
        .expect_err("a client of td.example vouched for by the partner");
}

#[tokio::test]
async fn without_an_svid_or_with_one_that_has_ended_nothing_is_connected() {
    let ca = Authority::new();
    let good = source(&message(vec![svid(&ca, PROXY)], &[]));
    let nothing = Source::new(settings());
    let ended = {
        let mut params = certificates::params(PROXY, now());
        certificates::valid(&mut params, now() - 7200, now() - 3600);
        let then = UnixTime::since_unix_epoch(Duration::from_secs(now() - 3700));
        let held = Held::read(&message(vec![signed(&ca, PROXY, &params)], &[]), None, then).unwrap();
        Source::holding(settings(), held)
    };
    for lacking in [&nothing, &ended] {
        handshake(&good, lacking, &[PROXY]).await.expect_err("a server without an SVID");
        handshake(lacking, &good, &[PROXY]).await.expect_err("a client without an SVID");
    }
    ended.lapsed().await;
    good.present().await;
}

async fn soon(what: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(20), what).await.unwrap();
}

#[tokio::test]
async fn what_the_agent_says_counts_until_it_says_something_else_that_can_be_used() {
    let (first, second) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let mut agent = SpiffeAgent::default();
    let settings = Settings { endpoint: Endpoint::Unix(socket.clone()), spiffe_id: None };
    let source = Source::new(settings);
    let following = tokio::spawn(Arc::clone(&source).run());
    agent.start(&socket);
    assert!(source.current().is_none(), "the agent knows no identity of it");
    agent.svids.send_replace(Some(message(vec![svid(&first, PROXY)], &[])));
    soon(source.present()).await;
    assert_eq!(source.current().unwrap().id.as_str(), PROXY);

    // Unusable, and gone: what is held stays.
    agent.svids.send_replace(Some(message(vec![], &[])));
    agent.stop().await;
    assert_eq!(source.current().unwrap().id.as_str(), PROXY);
    agent.svids.send_replace(Some(message(vec![svid(&second, APP)], &[])));
    agent.start(&socket);
    let rotated = async {
        while source.current().unwrap().id.as_str() != APP {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(rotated).await;
    // In time for a second only, and nothing comes after it.
    let mut brief = certificates::params(PROXY, now());
    certificates::valid(&mut brief, now() - 60, now() + 2);
    agent.svids.send_replace(Some(message(vec![signed(&second, PROXY, &brief)], &[])));
    soon(source.lapsed()).await;
    following.abort();
}

#[test]
fn an_endpoint_is_on_this_machine() {
    for (text, expected) in [
        ("unix:/run/agent.sock", "unix:/run/agent.sock"),
        ("unix:///run/agent.sock", "unix:/run/agent.sock"),
        ("tcp://127.0.0.1:8081", "tcp://127.0.0.1:8081"),
        ("tcp://[::1]:8081", "tcp://[::1]:8081"),
    ] {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), expected);
    }
    for (text, expected) in [
        ("", EndpointError::Scheme),
        ("/run/agent.sock", EndpointError::Scheme),
        ("http://127.0.0.1:8081", EndpointError::Scheme),
        ("unix:", EndpointError::Path),
        ("unix:///", EndpointError::Path),
        ("unix:run/agent.sock", EndpointError::Path),
        ("unix://host/agent.sock", EndpointError::Path),
        ("unix:/run/agent.sock?x", EndpointError::Path),
        ("tcp://localhost:1", EndpointError::Address),
        ("tcp://127.0.0.1", EndpointError::Address),
        ("tcp://127.0.0.1:1/x", EndpointError::Address),
        ("tcp://10.0.0.1:8081", EndpointError::NotLoopback),
    ] {
        assert_eq!(text.parse::<Endpoint>().unwrap_err(), expected, "{text}");
    }
}
