//! The forward-auth listener, asked as Traefik asks it, over a socket: one more door that has to agree with the engine, for the
//! corpora. Every dialect is read into the same request (`src/forward_auth/read.rs`), so one of them stands for all.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use portcullis::authz::Reason;
use portcullis::cache::Gate;
use portcullis::door::{self, Checks};
use portcullis::drain::{self, Drain};
use portcullis::forward_auth::{self, Config};
use portcullis::telemetry::{Output, Records, RecordsConfig, SidecarMetrics, Telemetry};
use serde_json::Value;

use crate::envoy::{Answer, exchange};

/// The door of a sidecar with a gate.
pub(crate) struct HttpDoor {
    address: SocketAddr,
    telemetry: Arc<Telemetry>,
    directory: tempfile::TempDir,
    _drain: Drain,
}

/// A request to ask about.
pub(crate) struct Question<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) host: &'a str,
    pub(crate) headers: &'a [(String, String)],
    pub(crate) client: Option<IpAddr>,
    pub(crate) body: Option<&'a str>,
}

impl HttpDoor {
    pub(crate) async fn of(gate: &Arc<Gate>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let output = Output::File { path: directory.path().join("records"), max_bytes: u64::MAX, keep: 1 };
        let metrics = Arc::new(SidecarMetrics::new().unwrap());
        let records = RecordsConfig { output, queue: 100 };
        let records = Records::start(records, metrics.records_dropped().clone()).unwrap();
        let telemetry = Telemetry::new(metrics, records, None, Arc::clone(gate.clock()));
        let url = Some("http://127.0.0.1:9180/v1/grant-requests".to_owned());
        let config = door::Config { grant_request_url: url, ..door::Config::default() };
        let checks = Checks::new(Arc::clone(gate), Arc::clone(&telemetry), &config).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (drain, signal) = drain::channel();
        let config = Config { trusted_peers: vec!["127.0.0.1".parse().unwrap()], ..Config::default() };
        tokio::spawn(forward_auth::serve(listener, checks, Vec::new(), config, signal));
        Self { address, telemetry, directory, _drain: drain }
    }

    /// The answer, and the reason that was recorded; `None` for what no proxy could ask in this way.
    pub(crate) async fn ask(&self, question: &Question<'_>) -> Option<(Answer, Reason)> {
        let bytes = question.bytes()?;
        let address = self.address;
        let answer = tokio::task::spawn_blocking(move || exchange(address, &bytes)).await.unwrap().unwrap();
        assert!(self.telemetry.records().flush(Duration::from_secs(10)));
        let text = std::fs::read_to_string(self.directory.path().join("records")).unwrap();
        let record: Value = serde_json::from_str(text.lines().last().expect("a record")).unwrap();
        Some((answer, record["reason"].as_str().unwrap().parse().unwrap()))
    }
}

impl Question<'_> {
    fn bytes(&self) -> Option<Vec<u8>> {
        let is_text = |text: &str| !text.bytes().any(|b| b.is_ascii_control()) && text.trim_matches(' ') == text;
        // What frames the question, or is the proxy's own word, is not the client's to send here.
        let is_ours = |name: &str| {
            let name = name.to_ascii_lowercase();
            matches!(&*name, "content-length" | "transfer-encoding" | "x-forwarded-for") || name.is_empty()
        };
        let mut texts =
            [self.method, self.path, self.host].into_iter().chain(self.headers.iter().map(|(_, v)| v.as_str()));
        if self.headers.iter().any(|(name, _)| is_ours(name)) || !texts.all(is_text) || !self.path.is_ascii() {
            return None;
        }
        let body = self.body.unwrap_or_default();
        let mut head = format!(
            "GET /traefik HTTP/1.1\r\nHost: sidecar\r\nConnection: close\r\nContent-Length: {}\r\n\
             X-Forwarded-Method: {}\r\nX-Forwarded-Uri: {}\r\nX-Forwarded-Host: {}\r\nX-Forwarded-Proto: https\r\n",
            body.len(),
            self.method,
            self.path,
            self.host
        );
        for (name, value) in self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(client) = self.client {
            head.push_str(&format!("X-Forwarded-For: {client}\r\n"));
        }
        Some(format!("{head}\r\n{body}").into_bytes())
    }
}
