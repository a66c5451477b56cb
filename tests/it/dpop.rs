//! DPoP through the real Envoy: what a client signs is what it called, and what it is told when it is refused.
//!
//! Envoy stands between the URI that the client proves and the one that Portcullis judges it by: method, scheme,
//! authority and path have to arrive as they were sent. The checks one by one are in `src/authz/proof/tests.rs`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use portcullis::clock::{Clock, SystemClock};
use portcullis::drain::Drain;
use portcullis::ext_authz;
use portcullis::object::Kind;
use portcullis::telemetry::{Output, Telemetry};
use portcullis::testing::{AUDIENCE, Estate, KeyHolder, changed};
use serde_json::{Value, json};

use crate::door;
use crate::envoy::{Answer, Envoy};
use crate::envoy_config::echo_service;

/// Envoy, a sidecar behind it, and a client with a key and a token bound to it.
struct Stack {
    envoy: Envoy,
    client: KeyHolder,
    token: String,
    clock: Arc<SystemClock>,
    telemetry: Arc<Telemetry>,
    records: PathBuf,
    _directory: tempfile::TempDir,
    _drain: Drain,
}

impl Stack {
    /// With this `proof` policy of the issuer.
    async fn start(policy: &Value) -> Self {
        let clock = Arc::new(SystemClock::new());
        let mut estate = Estate::new_at(clock.now().wall);
        estate.put(
            Kind::Issuer,
            &json!({
                "name": "test", "kind": "spiffe", "trust_domain": "test.example", "audiences": [AUDIENCE],
                "jwks": {"keys": [estate.signer.public_jwk()]}, "proof": policy,
            }),
        );
        estate.put(
            Kind::Service,
            &json!({"name": "orders", "hosts": ["orders.internal"], "origins": ["https://api.example"],
                    "routes": [{"name": "all", "path": "/orders/{*}"}]}),
        );
        estate.put_policies(r#"@id("all") permit(principal, action, resource);"#);
        let client = KeyHolder::new();
        let cnf = json!({"cnf": {"jkt": client.thumbprint()}});
        let token = estate.signer.sign(&changed(estate.claims("storefront"), &cnf)).unwrap();

        let directory = tempfile::tempdir().unwrap();
        let [socket, records] = ["ext_authz.sock", "records"].map(|name| directory.path().join(name));
        let unix = ext_authz::UnixSocket::bind(&socket, 0o600).unwrap();
        let listeners = ext_authz::Listeners { unix: Some(unix), ..Default::default() };
        let gate = door::gate(&door::state(&estate, &clock), &clock);
        let output = Output::File { path: records.clone(), max_bytes: 1 << 20, keep: 1 };
        let (telemetry, drain) = door::serve(gate, listeners, ext_authz::Config::default(), output);
        let configuration = door::on_free_ports("sidecar-grpc-uds.yaml", echo_service().await)
            .replace("/run/portcullis/ext_authz.sock", socket.to_str().unwrap());
        let envoy = tokio::task::spawn_blocking(move || Envoy::start(&configuration)).await.unwrap();
        Self { envoy, client, token, clock, telemetry, records, _directory: directory, _drain: drain }
    }

    /// A proof of this client, a good one for this method and URI.
    fn proof(&self, method: &str, uri: &str) -> String {
        self.client.dpop(&self.claims(method, uri))
    }

    fn claims(&self, method: &str, uri: &str) -> Value {
        KeyHolder::dpop_claims(method, uri, &self.token, self.clock.now().wall)
    }

    /// Sends the token with a proof. `line` is the request line without the version.
    fn send_to(&self, line: &str, host: &str, proof: Option<&str>, more: &str) -> Answer {
        let proof = proof.map(|proof| format!("DPoP: {proof}\r\n")).unwrap_or_default();
        let token = &self.token;
        let head = format!("Host: {host}\r\nConnection: close\r\nAuthorization: DPoP {token}\r\n{proof}{more}");
        self.envoy.send(format!("{line} HTTP/1.1\r\n{head}\r\n").as_bytes())
    }

    fn send(&self, proof: Option<&str>) -> Answer {
        self.send_to("GET /catalog/1", "test", proof, "")
    }

    /// The full reason of the last decision, which a client that was not authenticated is not told.
    fn reason(&self) -> String {
        assert!(self.telemetry.records().flush(Duration::from_secs(10)));
        let records = std::fs::read_to_string(&self.records).unwrap();
        let last: Value = serde_json::from_str(records.lines().last().unwrap()).unwrap();
        last["reason"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn allows(&self, answer: &Answer) {
        assert_eq!(answer.status, 200, "{}: {}\n{}", self.reason(), answer.head, answer.body);
        let workload = format!("x-portcullis-workload: {}\r\n", Estate::id("storefront"));
        assert!(answer.body.contains(&workload), "{}", answer.body);
    }

    /// The challenge of a refusal for this reason. Nothing has reached the service.
    #[track_caller]
    fn challenge(&self, answer: &Answer, reason: &str) -> String {
        assert_eq!((answer.status, self.reason().as_str()), (401, reason), "{}", answer.head);
        assert_eq!(header(answer, "x-portcullis-reason"), Some("credential"));
        assert!(!answer.body.contains(&self.token), "{}", answer.body);
        header(answer, "www-authenticate").unwrap().to_owned()
    }
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    let fields = answer.head.lines().filter_map(|line| line.split_once(": "));
    let mut values = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let value = values.next();
    assert_eq!(values.next(), None, "`{name}` once");
    value
}

const REFUSED: &str = r#"DPoP realm="portcullis", algs="ES256 ES384 ES512 EdDSA PS256 PS384 PS512 RS256 RS384 RS512", error="invalid_token""#;

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_counts_once_for_the_method_and_uri_that_the_client_called() {
    let stack = Stack::start(&json!({})).await;
    let proof = stack.proof("GET", "http://test/catalog/1");
    stack.allows(&stack.send(Some(&proof)));
    assert_eq!(stack.challenge(&stack.send(Some(&proof)), "credential.replay"), REFUSED);
    assert_eq!(stack.challenge(&stack.send(None), "credential.pop_missing"), REFUSED);
    let bearer = stack.envoy.get("/catalog/1", &[&format!("Authorization: Bearer {}", stack.token)]);
    assert_eq!(stack.challenge(&bearer, "credential.pop_missing"), REFUSED);

    for (method, uri) in [
        ("POST", "http://test/catalog/1"),
        ("GET", "https://test/catalog/1"),
        ("GET", "http://test:8080/catalog/1"),
        ("GET", "http://other/catalog/1"),
        ("GET", "http://test/catalog/2"),
    ] {
        let refused = stack.send(Some(&stack.proof(method, uri)));
        assert_eq!(stack.challenge(&refused, "credential.pop_invalid"), REFUSED, "{method} {uri}");
    }
    let stranger = KeyHolder::new();
    let of_another = stranger.dpop(&stack.claims("GET", "http://test/catalog/1"));
    assert_eq!(stack.challenge(&stack.send(Some(&of_another)), "credential.pop_invalid"), REFUSED);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_uri_is_the_clients_whatever_envoy_makes_of_the_request() {
    let stack = Stack::start(&json!({})).await;
    for (line, host, method, uri) in [
        ("GET /catalog/1?page=2", "test", "GET", "http://test/catalog/1"),
        ("GET /catalog/%40x", "test", "GET", "http://test/catalog/@x"),
        ("GET /catalog/@x", "Test:80", "GET", "http://test/catalog/%40x"),
        ("GET http://test/catalog/1", "test", "GET", "http://test/catalog/1"),
        ("PUT /catalog/1", "test:8080", "PUT", "http://test:8080/catalog/1"),
    ] {
        stack.allows(&stack.send_to(line, host, Some(&stack.proof(method, uri)), ""));
    }
    // In absolute form the target counts, and not the header (RFC 9112, section 3.2.2).
    let answer =
        stack.send_to("GET http://test/catalog/1", "other", Some(&stack.proof("GET", "http://other/catalog/1")), "");
    assert_eq!(stack.challenge(&answer, "credential.pop_invalid"), REFUSED);
    // A client does not say how it reached Envoy.
    let forged = "X-Forwarded-Proto: https\r\nX-Forwarded-Host: other\r\nX-Envoy-Original-Path: /catalog/2\r\n";
    for (uri, counts) in [
        ("https://test/catalog/1", false),
        ("http://other/catalog/1", false),
        ("http://test/catalog/2", false),
        ("http://test/catalog/1", true),
    ] {
        let answer = stack.send_to("GET /catalog/1", "test", Some(&stack.proof("GET", uri)), forged);
        assert_eq!(answer.status == 200, counts, "{uri}: {}", answer.head);
    }
    // Behind a proxy that ends TLS and changes the host, a service is known by its origins and no other.
    let at_orders = |uri: &str| stack.send_to("GET /orders/7", "orders.internal", Some(&stack.proof("GET", uri)), "");
    stack.allows(&at_orders("https://api.example/orders/7"));
    assert_eq!(stack.challenge(&at_orders("http://orders.internal/orders/7"), "credential.pop_invalid"), REFUSED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_sent_back_once_for_a_nonce() {
    let stack = Stack::start(&json!({"dpop_nonce": true})).await;
    let uri = "http://test/catalog/1";
    let asked = REFUSED.replace("invalid_token", "use_dpop_nonce");
    let refused = stack.send(Some(&stack.proof("GET", uri)));
    assert_eq!(stack.challenge(&refused, "credential.pop_invalid"), asked);
    let nonce = header(&refused, "dpop-nonce").expect("a nonce to come back with").to_owned();

    let proof_with = |nonce: &str| stack.client.dpop(&changed(stack.claims("GET", uri), &json!({"nonce": nonce})));
    let with_nonce = proof_with(&nonce);
    stack.allows(&stack.send(Some(&with_nonce)));
    assert_eq!(stack.challenge(&stack.send(Some(&with_nonce)), "credential.replay"), REFUSED);
    stack.allows(&stack.send(Some(&proof_with(&nonce))));

    let unknown = stack.send(Some(&proof_with("made-up")));
    assert_eq!(stack.challenge(&unknown, "credential.pop_invalid"), asked);
    assert!(header(&unknown, "dpop-nonce").is_some());
    // Only who holds the key learns that a nonce is what is missing.
    let stranger = KeyHolder::new();
    let other = stack.send(Some(&stranger.dpop(&stack.claims("GET", uri))));
    assert_eq!(stack.challenge(&other, "credential.pop_invalid"), REFUSED);
    assert_eq!(header(&other, "dpop-nonce"), None);
}
