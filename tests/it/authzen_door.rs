//! The AuthZEN API, asked by an application over a socket about what the corpora's requests are about: one more door that has
//! to agree with the engine.
//!
//! An application says who, what and about which request; it has no headers, body or connection of a client to show. A case
//! that is about one of those is left out by [`AuthzenDoor::question`], and nowhere else. The caller is a workload of a trust
//! domain of its own, so that no case revokes it.

use std::net::SocketAddr;
use std::sync::Arc;

use portcullis::authz::{CanonicalPath, Decision, Reason, RouteTable};
use portcullis::authzen::{Caller, Config, Service, is_for};
use portcullis::cache::Gate;
use portcullis::credential::TokenSigner;
use portcullis::door::{self, Checks};
use portcullis::drain::{self, Drain};
use portcullis::forward_auth::{self, Answering, Mount};
use portcullis::object::{Kind, Object};
use portcullis::telemetry::{Output, Records, RecordsConfig, SidecarMetrics, Telemetry};
use portcullis::testing::{AUDIENCE, Estate};
use serde_json::{Value, json};

use crate::envoy::exchange;

const APPLICATION: &str = "spiffe://apps.example/todo";

/// The application that asks.
pub(crate) struct Application(TokenSigner);

/// The door of a sidecar with a gate.
pub(crate) struct AuthzenDoor {
    address: SocketAddr,
    /// What the application knows of its services.
    routes: RouteTable,
    _drain: Drain,
}

/// A request as other doors are told of it.
#[derive(Clone, Copy)]
pub(crate) struct Told<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) host: &'a str,
    pub(crate) headers: &'a [(String, String)],
    pub(crate) has_peer: bool,
    pub(crate) body: Option<&'a str>,
}

/// What an application asks about a request, and what it is to be told.
pub(crate) struct Question {
    pub(crate) body: Value,
    least: Option<String>,
    expected: Reason,
}

impl Application {
    /// Registers it.
    pub(crate) fn of(estate: &mut Estate) -> Self {
        let signer = TokenSigner::generate_es256("apps").unwrap();
        let document = json!({
            "name": "apps", "kind": "spiffe", "trust_domain": "apps.example", "audiences": [AUDIENCE],
            "jwks": {"keys": [signer.public_jwk()]},
        });
        estate.put(Kind::Issuer, &document);
        let document = json!({"id": APPLICATION, "kind": "service", "owner": "team", "environment": "production"});
        estate.put(Kind::Workload, &document);
        Self(signer)
    }

    fn token(&self, estate: &Estate) -> String {
        let claims = portcullis::testing::changed(estate.claims("todo"), &json!({"sub": APPLICATION}));
        self.0.sign(&claims).unwrap()
    }
}

impl AuthzenDoor {
    pub(crate) async fn of(gate: &Arc<Gate>, estate: &Estate) -> Self {
        let objects = estate.changes().into_iter().map(|c| Object::parse(c.kind, &c.body.unwrap()).unwrap());
        let services =
            objects.filter_map(|object| if let Object::Service(service) = object { Some(service) } else { None });
        let services: Vec<_> = services.collect();
        let routes = RouteTable::compile(&services).unwrap();
        let metrics = Arc::new(SidecarMetrics::new().unwrap());
        let records = RecordsConfig { output: Output::Off, queue: 1 };
        let records = Records::start(records, metrics.records_dropped().clone()).unwrap();
        let telemetry = Telemetry::new(metrics, records, None, Arc::clone(gate.clock()));
        let url = Some("http://127.0.0.1:9180/v1/grant-requests".to_owned());
        let config = door::Config { grant_request_url: url, ..door::Config::default() };
        let checks = Checks::new(Arc::clone(gate), telemetry, &config).unwrap();
        // It may vouch for nobody: who is asked about is proven by a token, or not at all.
        let caller = Caller { identity: APPLICATION.parse().unwrap(), may_assert: Vec::new() };
        let service = Service::new(checks.clone(), Config { callers: vec![caller], ..Config::default() });
        let serve = move |request, peer| -> Answering {
            let service = service.clone();
            Box::pin(async move { service.answer(request, peer).await })
        };
        let mount = Mount { is_for, serve: Arc::new(serve) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (drain, signal) = drain::channel();
        tokio::spawn(forward_auth::serve(listener, checks, vec![mount], forward_auth::Config::default(), signal));
        Self { address, routes, _drain: drain }
    }

    /// The question that says all that the engine has gone by, and is to have its answer. `None` where an application cannot
    /// say it: what counts is
    ///
    /// - a header, but for the credential and `x-portcullis-min-revision`; two credentials, or a scheme that asks for a proof
    ///   of possession;
    /// - the connection: its certificate, its address, what a proxy says of them;
    /// - a body, or that there is none.
    pub(crate) fn question(&self, told: &Told<'_>, decided: &Decision) -> Option<Question> {
        if told.has_peer || told.body.is_some() || decided.reason == Reason::InputBodyTruncated {
            return None;
        }
        let (mut credential, mut least) = (None, None);
        for (name, value) in told.headers {
            match &*name.to_ascii_lowercase() {
                "authorization" if credential.is_none() => credential = Some(value.as_str()),
                "x-portcullis-min-revision" if least.is_none() => least = Some(value.clone()),
                _ => return None,
            }
        }
        let token = match credential.map(|value| value.split_once(' ').unwrap_or((value, ""))) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                (!token.contains(',')).then_some(Some(token))
            }
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("dpop") => None,
            _ => Some(None),
        }?;
        // What the request reaches is what is asked about. Where that is nothing, it is something that is there.
        let reached = CanonicalPath::parse(told.path).ok().and_then(|p| self.routes.find(told.host, told.method, &p));
        let (kind, resource, action) = match reached {
            Some(route) => ("route", &*route.resource, &*route.action),
            None => ("service", "catalog", "read"),
        };
        let mut subject = json!({"type": "workload", "id": who(token, decided)});
        if let Some(token) = token {
            subject["properties"] = json!({ "token": token });
        }
        let body = json!({
            "subject": subject,
            "action": {"name": action, "properties": {"method": told.method}},
            "resource": {"type": kind, "id": resource, "properties": {"path": told.path, "host": told.host}},
        });
        // As documented: what counts on such a route is in the message. Who asks is seen to before.
        let wants_message = reached.is_some_and(|route| route.mcp.is_some()) && decided.workload.is_some();
        let expected = if wants_message { Reason::InputMalformed } else { decided.reason };
        Some(Question { body, least, expected })
    }

    /// Asks, and holds the answer against what it should be.
    pub(crate) async fn check(&self, name: &str, by: (&Application, &Estate), question: Question, grant_request: bool) {
        let Question { body, least, expected } = question;
        let (application, estate) = by;
        let (token, text) = (application.token(estate), body.to_string());
        let least = least.map(|least| format!("x-portcullis-min-revision: {least}\r\n")).unwrap_or_default();
        let bytes = format!(
            "POST /access/v1/evaluation HTTP/1.1\r\nhost: pdp\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\n{least}content-length: {}\r\n\r\n{text}",
            text.len()
        );
        let address = self.address;
        let answer = tokio::task::spawn_blocking(move || exchange(address, bytes.as_bytes())).await.unwrap().unwrap();
        if !least.is_empty() && expected == Reason::InputMalformed {
            // It is a header of the call itself.
            assert_eq!(answer.status, 400, "{name}: {answer:?}");
            return;
        }
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
        let answer: Value = serde_json::from_str(&answer.body).expect("an answer of the API");
        assert_eq!(answer["context"]["reason"], expected.code(), "{name}: by AuthZEN: {body} {answer}");
        assert_eq!(answer["decision"], expected.is_allow(), "{name}: {answer}");
        assert_eq!(answer["context"].get("grant_request").is_some(), grant_request, "{name}: {answer}");
    }
}

/// The workload that the token is of, as an application knows it: by its id, which is the token's `sub` unless that was mapped.
fn who(token: Option<&str>, decided: &Decision) -> String {
    let claims = || {
        let claims = token?.split('.').nth(1)?;
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, claims).ok()?;
        serde_json::from_slice::<Value>(&bytes).ok()
    };
    let id = decided.workload.as_deref().map(str::to_owned);
    let id = id.or_else(|| Some(claims()?["sub"].as_str()?.to_owned()).filter(|sub| sub.starts_with("spiffe://")));
    id.unwrap_or_else(|| Estate::id("storefront"))
}
