//! What `--flood` and `--overload` send with: checks that are encoded before, at their times, whatever becomes of the ones
//! before; and which processors who runs on.
//!
//! Latency counts from the time a check was meant to be sent, so that a stall is not left out. Every answer is read: an
//! allow, `system.overload`, or another denial. Nothing is retried. What the generator costs is kept low, for it shares the
//! machine with what it measures: no request is encoded while others are measured.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use http::{HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis::credential::TokenSigner;
use prost::Message;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::check_request;

/// Compression flag and length.
const PREFIX_LEN: usize = 5;

/// How a check was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Allowed,
    /// `system.overload`, or another answer of the kind: 503.
    Refused,
    /// Denied for what it is.
    Denied,
}

/// Asks over one connection.
#[derive(Clone)]
pub(super) struct Client {
    send: SendRequest<Full<Bytes>>,
    uri: Uri,
}

/// One check, and what it takes to make others like it with another token of the same length.
pub(super) struct Template {
    before: Vec<u8>,
    after: Vec<u8>,
    token_len: usize,
}

/// Makes tokens like a given one.
pub(super) struct Tokens {
    signer: TokenSigner,
    claims: Value,
}

// === impl Client ===

impl Client {
    pub(super) async fn connect(address: &str) -> Self {
        let io = TcpStream::connect(address).await.expect("a connection");
        io.set_nodelay(true).expect("a socket");
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
        let (send, connection) = handshake.expect("HTTP/2");
        tokio::spawn(connection);
        let uri = format!("http://{address}/envoy.service.auth.v3.Authorization/Check");
        Self { send, uri: uri.parse().expect("a URI") }
    }

    /// Sends a message in its frame. An error of gRPC is a failure of the run: this door never answers with one.
    pub(super) async fn check(&mut self, frame: Bytes) -> Answer {
        let mut request = Request::new(Full::new(frame));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
        let response = self.send.send_request(request).await.expect("an answer");
        let answer = response.into_body().collect().await.expect("all of it").to_bytes();
        let answer = answer.get(PREFIX_LEN..).expect("a message");
        // The status of an allow is the empty message.
        if answer.starts_with(&[0x0a, 0]) {
            return Answer::Allowed;
        }
        match CheckResponse::decode(answer).expect("a CheckResponse").http_response {
            Some(HttpResponse::OkResponse(_)) => Answer::Allowed,
            Some(HttpResponse::DeniedResponse(denied)) if denied.status.as_ref().is_some_and(|s| s.code == 503) => {
                Answer::Refused
            }
            _ => Answer::Denied,
        }
    }
}

/// A message behind gRPC's prefix.
pub(super) fn frame(message: &[u8]) -> Bytes {
    let len = u32::try_from(message.len()).expect("a small message").to_be_bytes();
    [&[0], &len[..], message].concat().into()
}

// === impl Template ===

impl Template {
    pub(super) fn of(token: &str) -> Self {
        let message = check_request(token, 0).encode_to_vec();
        let at = message.windows(token.len()).position(|w| w == token.as_bytes()).expect("the token is in it");
        let (before, after) = (message[..at].to_vec(), message[at + token.len()..].to_vec());
        Self { before, after, token_len: token.len() }
    }

    /// The check with this token, in its frame.
    pub(super) fn with(&self, token: &str) -> Bytes {
        assert_eq!(token.len(), self.token_len, "the lengths in the message are those of the first token");
        frame(&[&*self.before, token.as_bytes(), &*self.after].concat())
    }
}

// === impl Tokens ===

impl Tokens {
    /// From a token and its key, as a server has printed them.
    pub(super) fn like(token: &str, key: &str) -> Self {
        let pem = String::from_utf8(URL_SAFE_NO_PAD.decode(key).expect("base64")).expect("text");
        let part = |n| URL_SAFE_NO_PAD.decode(token.split('.').nth(n).expect("a token")).expect("base64");
        let header: Value = serde_json::from_slice(&part(0)).expect("a header");
        let claims = serde_json::from_slice(&part(1)).expect("claims");
        let signer = TokenSigner::from_pkcs8_pem(&pem, header["kid"].as_str().expect("a key id")).expect("a key");
        Self { signer, claims }
    }

    /// A good token that nobody has seen.
    pub(super) fn fresh(&self) -> String {
        let mut claims = self.claims.clone();
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a time").as_secs();
        claims["iat"] = now.into();
        claims["exp"] = (now + 300).into();
        claims["jti"] = format!("{:032x}", rand::random::<u128>()).into();
        self.signer.sign(&claims).expect("a token")
    }
}

/// Calls `send` at a fixed rate with its number and the time that was meant for it, and waits for all of them. Paced by the
/// calling thread, to some 60 µs; the runtime's timers know only milliseconds.
pub(super) fn at_rate<F: Future<Output = ()> + Send + 'static>(
    runtime: &Runtime,
    rate: u64,
    count: u64,
    mut send: impl FnMut(u64, Instant) -> Option<F>,
) {
    let start = Instant::now();
    let mut tasks = Vec::with_capacity(usize::try_from(count).expect("a number of tasks"));
    for n in 0..count {
        let due = start + Duration::from_nanos(n * 1_000_000_000 / rate);
        let early = due.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        tasks.extend(send(n, due).map(|task| runtime.spawn(task)));
    }
    runtime.block_on(async {
        for task in tasks {
            task.await.expect("a check");
        }
    });
}

/// Counts what is under way, for as long as it is held.
pub(super) struct UnderWay(Arc<AtomicUsize>);

// === impl UnderWay ===

impl UnderWay {
    /// `None` when there are `max` already.
    pub(super) fn begin(count: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let begun = Self(Arc::clone(count));
        (count.fetch_add(1, Ordering::Relaxed) < max).then_some(begun)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// === who runs where ===

/// The processors of servers and those of generators: halves of what there is; the same one when there is only one.
pub(super) fn processors() -> [String; 2] {
    let set = sched_getaffinity(None).expect("an affinity");
    let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&n| set.is_set(n)).collect();
    let (servers, generators) = all.split_at(all.len() / 2);
    let list = |of: &[usize]| of.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    [list(if servers.is_empty() { generators } else { servers }), list(generators)]
}

/// Keeps this thread, and those that it will start, on these processors.
pub(super) fn stay_on(list: &str) {
    let mut set = CpuSet::new();
    let wanted: HashSet<usize> = list.split(',').map(|n| n.parse().expect("a processor")).collect();
    wanted.into_iter().for_each(|n| set.set(n));
    sched_setaffinity(None, &set).expect("an affinity");
}
