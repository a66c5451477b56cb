//! The decision corpus, `tests/decisions/*.yaml`: every case through the engine, the caches and every door.
//!
//! A door that disagrees with the engine fails here. Over gRPC the full reason is read from the dynamic metadata, and
//! what the client would see is checked too.
//! Long because the form of a case, with all that may be written in it, is read beside what each field does.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{Address, HeaderMap, HeaderValue, SocketAddress, address};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{self, HttpRequest, Request as AttributeRequest};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use envoy_types::pb::google::protobuf::value::Kind as ValueKind;
use portcullis::admin::CheckAnswer;
use portcullis::authz::{Door, ForwardingHeader, Header, Peer, ProxyPeer, Reason, Request, Settings, TrustedProxy};
use portcullis::cache::{CacheSizes, Gate};
use portcullis::clock::Clock;
use portcullis::credential::TokenSigner;
use portcullis::object::{ExactCall, Grant, GrantConditions, GrantId, Kind, Object};
use portcullis::state::State;
use portcullis::telemetry::{Output, Records, RecordsConfig, SidecarMetrics, Telemetry};
use portcullis::testing::{Estate, KeyHolder, changed};
use portcullis::{drain, ext_authz, readiness};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::authzen_door::{Application, AuthzenDoor, Told};
use crate::certificates;
use crate::check_door::CheckDoor;
use crate::envoy::Answer;
use crate::http_door::{HttpDoor, Question};
use crate::reverse_proxy_decisions::ProxyDoor;

const FILES: [&str; 16] = [
    "certificate",
    "conditions",
    "credential",
    "entitlement",
    "input",
    "mcp",
    "policy",
    "policy_error",
    "proof",
    "revoked",
    "revoked_issuer",
    "revoked_object",
    "stale",
    "tied",
    "too_stale",
    "README",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    setup: Vec<Step>,
    #[serde(default)]
    trusted_proxies: Vec<TrustedProxyCase>,
    cases: Vec<Case>,
}

/// A proxy by the name of its workload or its network, and the header that it is believed in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustedProxyCase {
    peer: String,
    #[serde(default)]
    client_cert: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Step {
    Grant(GrantStep),
    Request(GrantStep),
    Revoke(Value),
    Put { kind: Kind, document: Value },
    Policies(String),
    Wait(u64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantStep {
    workload: String,
    resource: String,
    actions: Vec<String>,
    path: Option<String>,
    #[serde(default)]
    conditions: GrantConditions,
    call: Option<ExactCall>,
    seconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    method: String,
    path: String,
    #[serde(default = "default_host")]
    host: String,
    token: Option<Token>,
    authorization: Option<String>,
    /// The scheme under which the token is sent.
    #[serde(default = "default_scheme")]
    scheme: String,
    /// A DPoP proof of the client's key.
    dpop: Option<Proof>,
    /// The other end of the connection.
    #[serde(default)]
    peer: PeerCase,
    /// The elements of `x-forwarded-client-cert`.
    #[serde(default)]
    xfcc: Vec<Certificate>,
    client_cert: Option<Certificate>,
    #[serde(default)]
    headers: Vec<(String, String)>,
    /// The whole body, if the proxy sends it along.
    body: Option<String>,
    /// What the reverse proxy says instead, which knows of every body.
    proxied: Option<Reason>,
    reason: Reason,
    #[serde(default)]
    grant_request: bool,
    /// What is in `WWW-Authenticate`; without it, there is one with 401 alone.
    challenge: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    #[serde(default)]
    workload: Option<String>,
    /// Replaces claims; null removes one.
    #[serde(default)]
    claims: serde_json::Map<String, Value>,
    /// Replaces header members.
    #[serde(default)]
    header: serde_json::Map<String, Value>,
    /// Seconds from now.
    exp: Option<i64>,
    nbf: Option<i64>,
    iat: Option<i64>,
    #[serde(default)]
    key: Option<String>,
    /// Binds it to the client's key, by `cnf.jkt`.
    #[serde(default)]
    bound: bool,
    /// Makes it one that a control plane issued.
    tie: Option<Tie>,
}

/// What a token of a control plane is tied to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tie {
    /// The number of the grant in `setup`, from 1; 0 is a grant that is not there.
    grant: usize,
    service: String,
    scope: String,
}

/// A good proof for the case's token, method, host and path, with changes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Proof {
    /// Replaces claims; null removes one.
    #[serde(default)]
    claims: Value,
    /// Replaces header members.
    #[serde(default)]
    header: Value,
    /// Seconds from now.
    #[serde(default)]
    iat: i64,
    /// Another key signs, and is in the header.
    #[serde(default)]
    stranger: bool,
}

fn default_scheme() -> String {
    "Bearer".to_owned()
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct PeerCase {
    certificate: Option<Certificate>,
    principal: Option<String>,
    address: Option<String>,
}

/// A certificate, by the name of its workload, or changed.
#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum Certificate {
    Of(String),
    Changed(Changed),
}

#[derive(Deserialize, Clone, Default)]
#[serde(default, deny_unknown_fields)]
struct Changed {
    /// The URI names.
    uris: Vec<String>,
    /// Seconds from now.
    from: Option<i64>,
    until: Option<i64>,
    serial: Option<u8>,
    ca: bool,
    server_only: bool,
    no_key_usage: bool,
    /// In the header: what is said beside the certificate.
    says_uri: Option<String>,
    says_hash: Option<String>,
    /// In the header: no certificate at all.
    without_cert: bool,
    /// Appended to the DER.
    trailing: Option<u8>,
}

/// What the connection shows, as Envoy sends it.
#[derive(Default)]
struct Peered {
    certificate: Option<String>,
    principal: Option<String>,
    address: Option<std::net::IpAddr>,
}

fn default_host() -> String {
    "shop.example".to_owned()
}

impl Step {
    /// The service that it adds.
    fn service(&self) -> Option<String> {
        match self {
            Self::Put { kind: Kind::Service, document } => document["name"].as_str().map(str::to_owned),
            _ => None,
        }
    }
}

impl GrantStep {
    fn asked(&self, estate: &Estate) -> Grant {
        let actions: Vec<&str> = self.actions.iter().map(String::as_str).collect();
        let mut asked = estate.ask(&self.workload, &self.resource, &actions, self.path.as_deref(), self.seconds);
        (asked.conditions, asked.call) = (self.conditions.clone(), self.call.clone());
        asked.digest = asked.request_digest();
        asked
    }
}

fn set_up(steps: &[Step]) -> (Estate, Application, Vec<GrantId>, Arc<State>) {
    let mut estate = Estate::new();
    let application = Application::of(&mut estate);
    let lease = estate.lease();
    let mut grants: Vec<GrantId> = Vec::new();
    for step in steps {
        match step {
            Step::Grant(g) => {
                let asked = g.asked(&estate);
                grants.push(estate.grant_as(asked, |_| {}).0.id);
            }
            Step::Request(g) => {
                let asked = g.asked(&estate);
                estate.put_object(&Object::Grant(Box::new(asked)));
            }
            Step::Revoke(target) => {
                let mut target = target.clone();
                if target.get("grant").is_some_and(|g| g == "last") {
                    target["grant"] = json!(grants.last().expect("a grant before the revocation"));
                }
                estate.revoke(&target);
            }
            Step::Put { kind, document } => {
                let mut document = document.clone();
                if document.get("jwks").is_some_and(|jwks| jwks == "estate") {
                    let mut key = estate.signer.public_jwk();
                    key["use"] = json!("sig");
                    document["jwks"] = json!({ "keys": [key] });
                }
                drop(estate.put(*kind, &document));
            }
            Step::Policies(text) => drop(estate.put_policies(text)),
            Step::Wait(secs) => estate.clock.advance(Duration::from_secs(*secs)),
        }
    }
    let state = Arc::new(State::new());
    state.restore(Arc::new(estate.snapshot()), lease);
    (estate, application, grants, state)
}

fn proof(estate: &Estate, client: &KeyHolder, case: &Case, proof: &Proof, token: &str) -> String {
    let now = estate.clock.now().wall;
    let stranger = KeyHolder::new();
    let holder = if proof.stranger { &stranger } else { client };
    let path = case.path.split('?').next().unwrap();
    let mut claims = KeyHolder::dpop_claims(&case.method, &format!("https://{}{path}", case.host), token, now);
    claims["iat"] = json!(i64::try_from(now.as_secs()).unwrap() + proof.iat);
    let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": holder.jwk()});
    let over = |good: Value, changes: &Value| if changes.is_null() { good } else { changed(good, changes) };
    holder.sign(&over(header, &proof.header), &over(claims, &proof.claims))
}

fn token(estate: &Estate, grants: &[GrantId], client: &KeyHolder, token: &Token) -> String {
    let now = i64::try_from(estate.clock.now().wall.as_secs()).unwrap();
    let mut claims = estate.claims(token.workload.as_deref().unwrap_or("storefront"));
    for (name, offset) in [("exp", token.exp), ("nbf", token.nbf), ("iat", token.iat)] {
        if let Some(offset) = offset {
            claims[name] = json!(now + offset);
        }
    }
    let mut header = json!({"alg": "ES256", "kid": estate.signer.kid(), "typ": "JWT"});
    if let Some(Tie { grant, service, scope }) = &token.tie {
        header["typ"] = json!("at+jwt");
        let grant = grant.checked_sub(1).map_or(GrantId(uuid::Uuid::nil()), |n| grants[n]);
        for (name, value) in [("aud", json!(service)), ("scope", json!(scope)), ("grant_id", json!(grant))] {
            claims[name] = value;
        }
        claims["iss"] = json!("https://control.example");
        claims["client_id"] = claims["sub"].clone();
    }
    for (name, value) in &token.claims {
        claims[name] = value.clone();
    }
    if token.bound {
        claims["cnf"] = json!({"jkt": client.thumbprint()});
    }
    claims.as_object_mut().unwrap().retain(|_, v| !v.is_null());
    for (name, value) in &token.header {
        header[name] = value.clone();
    }
    let other = TokenSigner::generate_es256("key-1").unwrap();
    let signer = if token.key.is_some() { &other } else { &estate.signer };
    signer.sign_with_header(&header, &claims).unwrap()
}

impl TrustedProxyCase {
    fn proxy(&self) -> TrustedProxy {
        let peer = match self.peer.parse() {
            Ok(network) => ProxyPeer::Network(network),
            Err(_) => ProxyPeer::SpiffeId(Estate::id(&self.peer).parse().unwrap()),
        };
        let header = if self.client_cert { ForwardingHeader::ClientCert } else { ForwardingHeader::Xfcc };
        TrustedProxy { peer, header }
    }
}

impl Certificate {
    fn changed(&self) -> Changed {
        match self {
            Self::Of(name) => Changed { uris: vec![Estate::id(name)], ..Changed::default() },
            Self::Changed(changed) => changed.clone(),
        }
    }

    fn der(&self, estate: &Estate) -> Vec<u8> {
        let changed = self.changed();
        let now = estate.clock.now().wall.as_secs();
        let mut params = certificates::params("spiffe://test.example/replaced", now);
        params.subject_alt_names = changed.uris.iter().map(|uri| certificates::uri(uri)).collect();
        let at = |offset: Option<i64>, default| now.checked_add_signed(offset.unwrap_or(default)).unwrap();
        certificates::valid(&mut params, at(changed.from, -60), at(changed.until, 3600));
        if let Some(serial) = changed.serial {
            params.serial_number = Some(rcgen::SerialNumber::from_slice(&[serial]));
        }
        if changed.ca {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        if changed.server_only {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        }
        if changed.no_key_usage {
            params.key_usages.clear();
        }
        let mut der = certificates::der(&params);
        der.extend(changed.trailing);
        der
    }

    fn element(&self, der: &[u8]) -> String {
        let changed = self.changed();
        let uri = changed.says_uri.or_else(|| changed.uris.first().cloned()).unwrap_or_default();
        let element = certificates::xfcc(der, &uri);
        let element = match changed.says_hash {
            Some(hash) => element.replace("Hash=", &format!("Hash={hash};Was=")),
            None => element,
        };
        if changed.without_cert { element.replace("Cert=", "Kert=") } else { element }
    }
}

/// The DER that each case's certificates have, one for each name in a case: keys are made anew.
fn peered(estate: &Estate, case: &Case, ders: &mut Ders) -> Peered {
    Peered {
        certificate: case.peer.certificate.as_ref().map(|c| certificates::url_encoded(&ders.of(estate, c))),
        principal: case.peer.principal.as_deref().map(Estate::id),
        address: case.peer.address.as_ref().map(|a| a.parse().unwrap()),
    }
}

/// Certificates of this case, so that the same name is the same certificate in every header.
#[derive(Default)]
struct Ders(std::collections::BTreeMap<String, Vec<u8>>);

impl Ders {
    fn of(&mut self, estate: &Estate, certificate: &Certificate) -> Vec<u8> {
        match certificate {
            Certificate::Of(name) => self.0.entry(name.clone()).or_insert_with(|| certificate.der(estate)).clone(),
            Certificate::Changed(_) => certificate.der(estate),
        }
    }
}

fn forwarded_headers(estate: &Estate, case: &Case, ders: &mut Ders) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    let elements: Vec<_> = case.xfcc.iter().map(|c| c.element(&ders.of(estate, c))).collect();
    if !elements.is_empty() {
        headers.push(("x-forwarded-client-cert".to_owned(), elements.join(",")));
    }
    if let Some(certificate) = &case.client_cert {
        headers.push(("client-cert".to_owned(), certificates::client_cert(&ders.of(estate, certificate))));
    }
    headers
}

fn wire_headers(estate: &Estate, grants: &[GrantId], client: &KeyHolder, case: &Case) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    if let Some(t) = &case.token {
        let token = token(estate, grants, client, t);
        headers.push(("authorization".to_owned(), format!("{} {token}", case.scheme)));
        if let Some(p) = &case.dpop {
            headers.push(("dpop".to_owned(), proof(estate, client, case, p, &token)));
        }
    }
    if let Some(value) = &case.authorization {
        headers.push(("authorization".to_owned(), value.clone()));
    }
    headers.extend(case.headers.iter().cloned());
    headers
}

fn check_request(case: &Case, headers: &[(String, String)], peered: &Peered) -> CheckRequest {
    let mut check = ask_as(&case.method, &case.path, &case.host, headers, peered);
    if let Some(body) = &case.body {
        let http = check.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
        http.raw_body = body.clone().into_bytes();
    }
    check
}

/// What Envoy asks about a request.
pub(crate) fn ask(method: &str, path: &str, host: &str, headers: &[(String, String)]) -> CheckRequest {
    ask_as(method, path, host, headers, &Peered::default())
}

fn ask_as(method: &str, path: &str, host: &str, headers: &[(String, String)], peered: &Peered) -> CheckRequest {
    let headers = headers
        .iter()
        .map(|(k, v)| HeaderValue { key: k.clone(), raw_value: v.clone().into_bytes(), ..HeaderValue::default() })
        .collect();
    let http = HttpRequest {
        method: method.to_owned(),
        path: path.to_owned(),
        host: host.to_owned(),
        scheme: "https".to_owned(),
        header_map: Some(HeaderMap { headers }),
        ..HttpRequest::default()
    };
    let request = AttributeRequest { http: Some(http), ..AttributeRequest::default() };
    let socket = |ip: std::net::IpAddr| SocketAddress { address: ip.to_string(), ..SocketAddress::default() };
    let source = attribute_context::Peer {
        address: peered.address.map(|ip| Address { address: Some(address::Address::SocketAddress(socket(ip))) }),
        principal: peered.principal.clone().unwrap_or_default(),
        certificate: peered.certificate.clone().unwrap_or_default(),
        ..attribute_context::Peer::default()
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(source),
            request: Some(request),
            ..AttributeContext::default()
        }),
    }
}

pub(crate) fn metadata(response: &CheckResponse, key: &str) -> Option<String> {
    match response.dynamic_metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        ValueKind::StringValue(s) => Some(s.clone()),
        _ => None,
    }
}

/// What Envoy, and through it the client, is told.
fn check_wire(name: &str, case: &Case, response: &CheckResponse) {
    let reason = case.reason;
    assert_eq!(metadata(response, "reason").as_deref(), Some(reason.code()), "{name}: reason over gRPC");
    let status = response.status.as_ref().expect("a status").code;
    assert_eq!(status == 0, reason.is_allow(), "{name}: google.rpc.Code {status}");
    match response.http_response.as_ref().expect("an HTTP response") {
        HttpResponse::OkResponse(ok) => {
            assert!(reason.is_allow(), "{name}");
            let workload = ok.headers.iter().find(|h| h.header.as_ref().unwrap().key == "x-portcullis-workload");
            assert!(workload.is_some(), "{name}: the upstream learns who calls");
        }
        HttpResponse::DeniedResponse(denied) => {
            assert_eq!(denied.status.as_ref().unwrap().code, i32::from(reason.http_status()), "{name}");
            let header = |key: &str| {
                let found = denied.headers.iter().filter_map(|h| h.header.as_ref()).find(|h| h.key == key);
                found.map(|h| {
                    if h.raw_value.is_empty() {
                        h.value.clone()
                    } else {
                        String::from_utf8_lossy(&h.raw_value).into_owned()
                    }
                })
            };
            let shown = header("x-portcullis-reason").unwrap();
            assert!(shown == reason.code() || shown == reason.family(), "{name}: `{shown}`");
            let body: Value = serde_json::from_str(&denied.body).expect("a problem document");
            assert_eq!(body["status"], json!(reason.http_status()), "{name}");
            assert_eq!(body["reason"], json!(shown), "{name}");
            assert_eq!(body.get("grant_request").is_some(), case.grant_request, "{name}: {body}");
            let challenge = header("www-authenticate");
            match &case.challenge {
                Some(part) => assert!(challenge.as_ref().is_some_and(|c| c.contains(part)), "{name}: {challenge:?}"),
                None => assert_eq!(challenge.is_some(), reason.http_status() == 401, "{name}"),
            }
            assert_eq!(header("retry-after").is_some(), reason.http_status() == 503, "{name}");
        }
        HttpResponse::ErrorResponse(_) => panic!("{name}: an error response opens the gate under failure_mode_allow"),
    }
}

/// What a proxy is told that asks over HTTP, and what is recorded of it.
fn check_http(name: &str, case: &Case, (answer, recorded): &(Answer, Reason)) {
    let reason = case.reason;
    assert_eq!(*recorded, reason, "{name}: over HTTP");
    assert_eq!(answer.status, if reason.is_allow() { 200 } else { reason.http_status() }, "{name}: {answer:?}");
    let head = answer.head.to_lowercase();
    assert_eq!(
        head.contains("\r\nx-portcullis-workload: "),
        reason.is_allow(),
        "{name}: the upstream learns who calls"
    );
    let challenged = case.challenge.is_some() || reason.http_status() == 401;
    assert_eq!(head.contains("\r\nwww-authenticate: "), challenged, "{name}");
    assert!(case.challenge.as_ref().is_none_or(|part| head.contains(&part.to_lowercase())), "{name}: {head}");
    assert_eq!(head.contains("\r\nretry-after: "), reason.http_status() == 503, "{name}");
    if !reason.is_allow() {
        let body: Value = serde_json::from_str(&answer.body).expect("a problem document");
        let shown = body["reason"].as_str().unwrap();
        assert!(shown == reason.code() || shown == reason.family(), "{name}: `{shown}`");
        assert_eq!(body.get("grant_request").is_some(), case.grant_request, "{name}: {body}");
    }
}

/// What `portcullis check` is told.
fn check_answer(name: &str, case: &Case, answer: &CheckAnswer) {
    let reason = case.reason;
    assert_eq!(answer.reason, reason.code(), "{name}: reason of the check: {:?}", answer.detail);
    assert_eq!(answer.allowed, reason.is_allow(), "{name}");
    assert_eq!(answer.problem.is_some(), !reason.is_allow(), "{name}");
    assert_eq!(answer.status, if reason.is_allow() { 200 } else { reason.http_status() }, "{name}");
    let request = answer.problem.as_ref().and_then(|p| p.get("grant_request"));
    assert_eq!(request.is_some(), case.grant_request, "{name}: {:?}", answer.problem);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_gets_its_decision_at_every_door() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/decisions");
    let mut families = std::collections::BTreeSet::new();
    let (mut checked, mut over_http, mut proxied, mut asked) = (0, 0, 0, 0);
    let behind = crate::reverse_proxy_upstream::Service::start().await;
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), FILES.len(), "a file is missing from, or new to, the list");
    for path in files.iter().filter(|p| p.extension().is_some_and(|e| e == "yaml")) {
        let text = std::fs::read_to_string(path).unwrap();
        let value: Value = serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file: File = serde_json::from_value(value).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (estate, application, grants, state) = set_up(&file.setup);
        let sizes = CacheSizes { tokens: 1000, decisions: 1000 };
        let settings = Settings { trusted_proxies: file.trusted_proxies.iter().map(TrustedProxyCase::proxy).collect() };
        let gate = Gate::new(state, Arc::clone(&estate.clock) as _, sizes).with_settings(settings);
        let gate = Arc::new(gate);
        let (mut client, drain) = grpc(&gate).await;
        let (check_door, http_door) = (CheckDoor::of(&gate), HttpDoor::of(&gate).await);
        let authzen_door = AuthzenDoor::of(&gate, &estate).await;
        let services = file.setup.iter().filter_map(Step::service).chain(["catalog", "payments"].map(str::to_owned));
        let proxy = ProxyDoor::of(&gate, services.collect(), &behind).await;
        let client_key = KeyHolder::new();
        for case in &file.cases {
            let name = format!("{}: {}", path.file_name().unwrap().to_string_lossy(), case.name);
            families.insert(case.reason.family());
            let mut ders = Ders::default();
            let mut headers = wire_headers(&estate, &grants, &client_key, case);
            headers.extend(forwarded_headers(&estate, case, &mut ders));
            let peered = peered(&estate, case, &mut ders);
            let partial = headers.iter().any(|(k, _)| k == "x-envoy-auth-partial-body");
            let request = Request {
                door: Door::Check,
                method: &case.method,
                path: &case.path,
                host: &case.host,
                scheme: "https",
                headers: headers.iter().map(|(n, v)| Header { name: n.as_bytes(), value: v.as_bytes() }).collect(),
                partial_body: partial,
                body: case.body.as_ref().map(String::as_bytes),
                peer: Peer {
                    principal: peered.principal.as_deref(),
                    certificate: peered.certificate.as_deref(),
                    address: peered.address,
                },
            };
            let (evaluated, steps) = gate.explain(&request);
            assert_eq!(evaluated.reason, case.reason, "{name}: {:?} {steps:#?}", evaluated.detail);
            assert_eq!(evaluated.permit().is_some(), case.reason.is_allow(), "{name}");
            for _ in 0..2 {
                assert_eq!(gate.check(&request).reason, case.reason, "{name}: through the caches");
            }
            // Before the door: a check uses up no proof.
            check_answer(&name, case, &check_door.check(&request).await);
            checked += 1;
            let response =
                client.check(check_request(case, &headers, &peered)).await.unwrap_or_else(|e| panic!("{name}: {e}"));
            check_wire(&name, case, response.get_ref());
            if peered.certificate.is_none() && case.dpop.is_none() && !partial {
                let line = (case.method.as_str(), case.path.as_str(), case.host.as_str());
                let expected = case.proxied.unwrap_or(case.reason);
                let body = case.body.as_deref();
                proxy.check(&name, line, (&headers, body), peered.address, expected).await;
                if case.method == "GET" && case.path == "/mcp" && case.reason.is_allow() {
                    // This door knows of a body that nobody asks for.
                    let mut chunked = headers.clone();
                    chunked.push(("transfer-encoding".to_owned(), "chunked".to_owned()));
                    proxy.check(&name, line, (&chunked, None), peered.address, Reason::InputMalformed).await;
                }
                proxied += 1;
            }
            let has_peer = peered.certificate.is_some() || peered.principal.is_some() || peered.address.is_some();
            let (method, path, host) = (&*case.method, &*case.path, &*case.host);
            let told = Told { method, path, host, headers: &headers, has_peer, body: case.body.as_deref() };
            if let Some(question) = authzen_door.question(&told, &evaluated) {
                authzen_door.check(&name, (&application, &estate), question, case.grant_request).await;
                asked += 1;
            }
            // No certificate of its client's is a proxy's to tell over HTTP, but in a header of its own.
            if peered.certificate.is_none() && peered.principal.is_none() {
                // A proof is used up by now: another.
                let mut headers = wire_headers(&estate, &grants, &client_key, case);
                headers.extend(forwarded_headers(&estate, case, &mut ders));
                let (method, path, host) = (&case.method, &case.path, &case.host);
                let (client, body) = (peered.address, case.body.as_deref());
                if let Some(told) =
                    http_door.ask(&Question { method, path, host, headers: &headers, client, body }).await
                {
                    check_http(&name, case, &told);
                    over_http += 1;
                }
            }
        }
        drop(client);
        drain.begin(Duration::from_secs(1));
    }
    let expected = ["allow", "credential", "entitlement", "input", "policy", "revoked", "system"];
    assert!(checked >= 150, "only {checked} cases");
    assert!(over_http >= 120, "only {over_http} cases over HTTP");
    assert!(proxied >= 100, "only {proxied} through the reverse proxy");
    assert!(asked >= 122, "only {asked} that an application can ask about");
    assert_eq!(families.into_iter().collect::<Vec<_>>(), expected, "every family of reasons is hit");
}

pub(crate) async fn grpc(gate: &Arc<Gate>) -> (AuthorizationClient<tonic::transport::Channel>, drain::Drain) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Arc::new(SidecarMetrics::new().unwrap());
    let telemetry = Telemetry::new(
        metrics.clone(),
        Records::start(RecordsConfig { output: Output::Off, queue: 1 }, metrics.records_dropped().clone()).unwrap(),
        None,
        Arc::clone(gate.clock()),
    );
    let (drain, signal) = drain::channel();
    let config = ext_authz::Config {
        grant_request_url: Some("http://127.0.0.1:9180/v1/grant-requests".to_owned()),
        ..ext_authz::Config::default()
    };
    let listeners = ext_authz::Listeners { tcp: Some(listener), ..Default::default() };
    let served = ext_authz::serve(listeners, Arc::clone(gate), telemetry, readiness::Readiness::new(), config, signal);
    tokio::spawn(served);
    let client = AuthorizationClient::connect(format!("http://{address}")).await.unwrap();
    (client, drain)
}
