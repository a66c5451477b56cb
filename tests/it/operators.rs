//! Who may call the control plane, end to end: a workload with its own token, an operator with a client certificate.

use std::path::Path;

use portcullis::config::{Environment, RawControl};
use portcullis::{app, drain};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType};
use serde_json::{Value, json};

use super::running::{DOMAIN, Server, Site, deps};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_workload_asks_for_itself_with_its_own_token_and_for_nothing_else() {
    let site = Site::open_with("operators:\n  workloads: { audience: portcullis-demo, trust: [demo] }\n").await;
    for name in ["agent", "storefront"] {
        std::fs::write(site.path(name), site.token(name, "portcullis-demo")).unwrap();
    }
    std::fs::write(site.path("elsewhere"), site.token("agent", "somewhere-else")).unwrap();
    let agent = format!("{DOMAIN}/agent");
    let ask = |workload: &str| {
        let workload = workload.to_owned();
        ["grant", "request", "--workload", &workload, "--resource", "payments/refunds", "--action", "write"]
            .map(str::to_owned)
            .into_iter()
            .chain(["--duration", "5m", "--reason", "T-7"].map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let run = async |token: &str, args: &[String]| {
        site.run(token, &args.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    let (status, asked) = run("agent", &ask(&agent)).await;
    assert_eq!(status, 0, "{asked}");
    let id = asked["object"]["id"].as_str().unwrap();
    assert_eq!(asked["object"]["requested_by"], agent, "{asked}");
    let (status, for_another) = run("agent", &ask(&format!("{DOMAIN}/storefront"))).await;
    assert_eq!((status, for_another["status"].as_u64()), (1, Some(403)), "{for_another}");

    assert_eq!(site.run("agent", &["grant", "show", id]).await.0, 0, "its own");
    let (status, refused) = site.run("storefront", &["grant", "show", id]).await;
    assert_eq!((status, refused["status"].as_u64()), (1, Some(403)), "another's: {refused}");
    assert!(refused["detail"].as_str().unwrap().contains("`grant.show`"), "{refused}");
    for not in [&["grant", "list"][..], &["grant", "approve", id], &["operator", "list"], &["audit", "list"]] {
        let (status, refused) = site.run("agent", not).await;
        assert_eq!((status, refused["status"].as_u64()), (1, Some(403)), "{not:?}: {refused}");
    }
    let (status, refused) = site.run("elsewhere", &["grant", "show", id]).await;
    assert_eq!(status, 2, "a token for somewhere else is nobody's: {refused}");
    site.must("bob", &["grant", "approve", id]).await;
    assert_eq!(site.must("agent", &["grant", "show", id]).await["state"], "active");

    let is_there = |records: &serde_json::Value, action: &str| {
        records["items"].as_array().unwrap().iter().any(|record| record["action"] == action)
    };
    // Refusals are written in groups, a moment after they were answered.
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    let records = loop {
        let records = site.must("alice", &["audit", "list", "--author", &agent]).await;
        if is_there(&records, "operator.list") || tokio::time::Instant::now() > deadline {
            break records;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let said = records["items"].as_array().unwrap();
    assert!(said.iter().all(|r| r["via"] == "workload" && r["kind"] == "workload"), "{records}");
    assert!(said.iter().any(|r| r["action"] == "grant.request" && r["outcome"] == "done"), "{records}");
    assert!(said.iter().any(|r| r["action"] == "operator.list" && r["outcome"] == "refused"), "{records}");
    assert_eq!(site.run("alice", &["audit", "verify"]).await.0, 0);

    // Revoked as a workload, it is nobody here either.
    site.must("alice", &["revoke", "workload", &agent, "--reason", "stolen"]).await;
    assert_eq!(site.run("agent", &["grant", "show", id]).await.0, 2);
    site.control.stop().await;
}

/// A certificate authority, and files of certificates that it has signed.
struct Pki<'a> {
    ca: CertifiedIssuer<'a, KeyPair>,
}

impl Pki<'_> {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self { ca: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Certificate and key, in PEM.
    fn sign(&self, names: Vec<SanType>) -> (String, String) {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.subject_alt_names = names;
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.ca).unwrap().pem(), key.serialize_pem())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_operator_is_known_by_its_client_certificate_and_by_nothing_beside_it() {
    portcullis::tls::install_provider();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (servers, people, strangers) = (Pki::new(), Pki::new(), Pki::new());
    let (cert, key) = servers.sign(vec![SanType::IpAddress("127.0.0.1".parse().unwrap())]);
    for (name, text) in [("cert.pem", cert), ("key.pem", key), ("people.pem", people.ca.pem())] {
        std::fs::write(file(name), text).unwrap();
    }
    let text = format!(
        "listeners: {{ api: '127.0.0.1:0', sync: '127.0.0.1:0', admin: '127.0.0.1:0' }}\ndata_directory: {}\n\
         tls: {{ cert_file: {}, key_file: {} }}\noperators:\n  certificates:\n    ca_file: {}\n    operators:\n      \
         - {{ operator: alice, uri: 'urn:example:alice' }}\n      - {{ operator: ghost, dns: ghost.example }}\n",
        file("control"),
        file("cert.pem"),
        file("key.pem"),
        file("people.pem"),
    );
    let raw = RawControl::parse(Path::new("control.yaml"), &text, &Environment::default()).unwrap();
    let bound = app::control::build(raw.validate().unwrap(), &deps()).await.unwrap();
    let url = format!("https://{}/v1", bound.api());
    let (drain, signal) = drain::channel();
    let control = Server::start(drain, Some(bound.admin()), bound.run(signal));

    let root = reqwest::Certificate::from_pem(servers.ca.pem().as_bytes()).unwrap();
    let client = |identity: Option<(String, String)>| {
        let mut builder = reqwest::Client::builder().no_proxy().tls_certs_only([root.clone()]);
        if let Some((cert, key)) = identity {
            builder = builder.identity(reqwest::Identity::from_pem(format!("{cert}{key}").as_bytes()).unwrap());
        }
        builder.build().unwrap()
    };
    let uri = |name: &str| vec![SanType::URI(name.try_into().unwrap())];
    let bootstrap = std::fs::read_to_string(file("control/bootstrap-token")).unwrap();
    let plain = client(None);
    let made = plain.post(format!("{url}/operators")).bearer_auth(bootstrap.trim()).json(&json!({ "name": "alice" }));
    assert_eq!(made.send().await.unwrap().status(), 201);

    let alice = client(Some(people.sign(uri("urn:example:alice"))));
    let operators = alice.get(format!("{url}/operators")).send().await.unwrap();
    assert_eq!(operators.status(), 200);
    let made = alice.post(format!("{url}/operators")).json(&json!({ "name": "carol" })).send().await.unwrap();
    assert_eq!(made.json::<Value>().await.unwrap()["object"]["created_by"], "alice");
    let both = alice.get(format!("{url}/status")).bearer_auth(bootstrap.trim()).send().await.unwrap();
    assert_eq!(both.status(), 401, "two credentials, although both are good");
    for nobody in [uri("urn:example:mallory"), vec![SanType::DnsName("ghost.example".try_into().unwrap())]] {
        let answer = client(Some(people.sign(nobody))).get(format!("{url}/status")).send().await.unwrap();
        assert_eq!(answer.status(), 401);
    }
    assert_eq!(plain.get(format!("{url}/status")).send().await.unwrap().status(), 401);
    let forged = client(Some(strangers.sign(uri("urn:example:alice")))).get(format!("{url}/status")).send().await;
    assert!(forged.is_err(), "the handshake refuses what another authority has signed: {forged:?}");

    // A revoked operator's certificate is nobody's, also on a connection that is open.
    let revoke = plain.delete(format!("{url}/operators/alice")).bearer_auth(bootstrap.trim());
    assert_eq!(revoke.send().await.unwrap().status(), 204);
    assert_eq!(alice.get(format!("{url}/status")).send().await.unwrap().status(), 401);
    let records = plain.get(format!("{url}/audit?author=alice")).bearer_auth(bootstrap.trim()).send().await.unwrap();
    let records: Value = records.json().await.unwrap();
    assert_eq!(records["items"][0]["via"], "certificate", "{records}");
    control.stop().await;
}
