//! An https endpoint on loopback that answers what a test tells it to, and a CA that vouches for it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::SanType;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::control::api::{ServeLimits, serve};
use crate::testing::certificates::Authority;
use crate::tls::{self, ServerFiles};

pub(crate) struct Ca(Authority);

/// An answer.
#[derive(Debug, Clone)]
pub(crate) enum Say {
    Body(String),
    Status(u16),
    /// `201` with this body.
    Created(String),
    Redirect(String),
    /// So many bytes, without saying how many.
    Endless(usize),
    /// Nothing, ever.
    Silence,
}

/// What it answers, by path, and what it was asked.
type Script = Arc<Mutex<(HashMap<String, Say>, Vec<Asked>)>>;

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    at: Instant,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authorization: String,
    pub(crate) body: String,
}

pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    script: Script,
    _stop: DropGuard,
}

impl Ca {
    pub(crate) fn new() -> Self {
        Self(Authority::new())
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.0.file()
    }

    /// Its certificate as an X.509 authority of a SPIFFE bundle.
    pub(crate) fn authority(&self) -> Value {
        json!({ "kty": "EC", "use": "x509-svid", "x5c": [STANDARD.encode(self.der())] })
    }

    /// Its certificate in DER.
    pub(crate) fn der(&self) -> Vec<u8> {
        self.0.der()
    }

    /// An endpoint for `127.0.0.1` and `localhost`.
    pub(crate) async fn endpoint(&self) -> Endpoint {
        let address = SanType::IpAddress("127.0.0.1".parse().unwrap());
        self.endpoint_as(vec![address, SanType::DnsName("localhost".try_into().unwrap())]).await
    }

    /// An endpoint that shows these names.
    pub(crate) async fn endpoint_as(&self, names: Vec<SanType>) -> Endpoint {
        let (cert_file, key_file) = self.0.issue(&uuid::Uuid::new_v4().to_string(), names);
        let files = ServerFiles { cert_file, key_file, client_ca_file: None };
        let config = tls::server_config(&files, tls::TLS12_UP, &[tls::ALPN_HTTP1]).unwrap();
        Endpoint::start(config).await
    }

    pub(crate) async fn endpoint_with_id(&self, id: &str) -> Endpoint {
        self.endpoint_as(vec![SanType::URI(id.try_into().unwrap())]).await
    }
}

impl Endpoint {
    async fn start(config: Arc<rustls::ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Script::default();
        let asked = Arc::clone(&script);
        let router = Router::new().fallback(move |request: Request<Body>| {
            let script = Arc::clone(&asked);
            async move {
                let request = Asked::read(request).await;
                let say = {
                    let mut script = script.lock().unwrap();
                    let say = script.0.get(&request.path).cloned().unwrap_or(Say::Status(404));
                    script.1.push(request);
                    say
                };
                say.respond().await
            }
        });
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, Some(config.into()), router, ServeLimits::default(), stop.clone()));
        Self { address, script, _stop: stop.drop_guard() }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    pub(crate) fn say(&self, path: &str, say: Say) {
        self.script.lock().unwrap().0.insert(path.to_owned(), say);
    }

    pub(crate) fn serve_json(&self, path: &str, body: &Value) {
        self.say(path, Say::Body(body.to_string()));
    }

    /// The last request that came.
    pub(crate) fn last_asked(&self) -> Asked {
        self.script.lock().unwrap().1.last().cloned().expect("it was asked")
    }

    pub(crate) fn times_asked(&self) -> usize {
        self.script.lock().unwrap().1.len()
    }
}

impl Endpoint {
    /// The time between the first two times that it was asked.
    pub(crate) fn first_gap(&self) -> Duration {
        let script = self.script.lock().unwrap();
        script.1[1].at - script.1[0].at
    }
}

impl Asked {
    async fn read(request: Request<Body>) -> Self {
        let (head, body) = request.into_parts();
        let authorization = head.headers.get("authorization").map_or("", |value| value.to_str().unwrap()).to_owned();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        Self {
            at: Instant::now(),
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            authorization,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }
}

impl Say {
    async fn respond(self) -> Response<Body> {
        match self {
            Self::Body(text) => Response::new(Body::from(text)),
            Self::Status(status) => Response::builder().status(status).body(Body::empty()).unwrap(),
            Self::Created(text) => Response::builder().status(201).body(Body::from(text)).unwrap(),
            Self::Redirect(to) => Response::builder().status(302).header("location", to).body(Body::empty()).unwrap(),
            Self::Endless(bytes) => {
                let chunks = (0..bytes / 1024).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1024]));
                Response::new(Body::from_stream(futures_util::stream::iter(chunks)))
            }
            Self::Silence => {
                tokio::time::sleep(Duration::from_secs(600)).await;
                Response::new(Body::empty())
            }
        }
    }
}
