//! Asks an ext_authz server over gRPC, on HTTP/2 itself: requests are encoded before, answers are looked at and dropped.
//!
//! Plane: composition. It has to cost less than the servers it measures, so there is no generic client between. A gRPC
//! error is a failure and never a denial: a server that answers one lets Envoy decide. A connection that broke is made
//! anew by the next request.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, StatusCode};
use prost::Message;

use super::prepare::Prepared;
use super::tally::{Answer, Failure};
use super::target::{Place, Stream};

/// The largest answer that is read.
const MAX_ANSWER: usize = 1 << 20;
/// A server that cannot be reached is tried again after so long.
const AGAIN: Duration = Duration::from_millis(50);

/// A connection that several lanes share.
#[derive(Debug)]
pub(super) struct CheckConnection {
    place: Place,
    state: Mutex<State>,
    connecting: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct State {
    /// Which connection it is, so that only the one that broke is given up.
    number: u64,
    sender: Option<SendRequest<Bytes>>,
}

/// One request at a time on it.
#[derive(Debug)]
pub(super) struct CheckLane {
    connection: Arc<CheckConnection>,
    head: Request<()>,
}

/// Of a `CheckResponse`, what decides. Other fields are skipped.
#[derive(Clone, PartialEq, prost::Message)]
struct Verdict {
    #[prost(message, optional, tag = "1")]
    status: Option<RpcStatus>,
    #[prost(message, optional, tag = "2")]
    denied: Option<Denied>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Denied {
    #[prost(message, optional, tag = "1")]
    status: Option<HttpStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HttpStatus {
    #[prost(int32, tag = "1")]
    code: i32,
}

// === impl CheckConnection ===

impl CheckConnection {
    pub(super) fn new(place: Place) -> Self {
        Self { place, state: Mutex::default(), connecting: tokio::sync::Mutex::new(None) }
    }

    async fn sender(&self) -> Result<(u64, SendRequest<Bytes>), String> {
        let current = || {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.sender.clone().map(|sender| (state.number, sender))
        };
        if let Some(sender) = current() {
            return Ok(sender);
        }
        let mut failed = self.connecting.lock().await;
        // Somebody else may have made it meanwhile.
        if let Some(sender) = current() {
            return Ok(sender);
        }
        if let Some(at) = *failed {
            tokio::time::sleep(AGAIN.saturating_sub(at.elapsed())).await;
        }
        let made = match self.place.connect().await {
            Ok(Stream::Tcp(io)) => handshake(io).await,
            Ok(Stream::Unix(io)) => handshake(io).await,
            Err(e) => Err(e),
        };
        *failed = made.is_err().then(Instant::now);
        let sender = made?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.number += 1;
        state.sender = Some(sender.clone());
        Ok((state.number, sender))
    }

    fn broke(&self, number: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.number == number {
            state.sender = None;
        }
    }
}

async fn handshake<T>(io: T) -> Result<SendRequest<Bytes>, String>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = h2::client::Builder::new();
    builder.enable_push(false).initial_window_size(1 << 20).initial_connection_window_size(1 << 24);
    let (sender, connection) = builder.handshake(io).await.map_err(|e| e.to_string())?;
    // Ends with the connection; what broke it is seen by the requests on it.
    drop(tokio::spawn(connection));
    Ok(sender)
}

// === impl CheckLane ===

impl CheckLane {
    pub(super) fn new(connection: Arc<CheckConnection>) -> Self {
        let mut head = Request::new(());
        *head.method_mut() = http::Method::POST;
        *head.version_mut() = http::Version::HTTP_2;
        let authority = match &connection.place {
            Place::Grpc(address) | Place::Http(address) => address.as_str(),
            Place::Unix(_) => "localhost",
        };
        // An address that was parsed as an authority is one.
        if let Ok(uri) = format!("http://{authority}/envoy.service.auth.v3.Authorization/Check").parse() {
            *head.uri_mut() = uri;
        }
        let headers = head.headers_mut();
        headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
        headers.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
        headers.insert(http::header::USER_AGENT, http::HeaderValue::from_static("portcullis-bench"));
        Self { connection, head }
    }

    pub(super) async fn connect(&mut self) -> Result<(), String> {
        self.connection.sender().await.map(drop)
    }

    pub(super) async fn ask(&mut self, request: &Prepared) -> Result<Answer, (Failure, Option<String>)> {
        let (number, sender) = self.connection.sender().await.map_err(|e| (Failure::Unreachable, Some(e)))?;
        self.exchange(sender, request).await.map_err(|failure| match failure {
            Broken::H2(e) => {
                // A stream that the server reset leaves its connection whole.
                if !e.is_reset() {
                    self.connection.broke(number);
                }
                (Failure::Closed, Some(e.to_string()))
            }
            Broken::Answer(failure, text) => (failure, Some(text)),
        })
    }

    async fn exchange(&self, sender: SendRequest<Bytes>, request: &Prepared) -> Result<Answer, Broken> {
        let mut sender = sender.ready().await.map_err(Broken::H2)?;
        let (response, mut body) = sender.send_request(self.head.clone(), false).map_err(Broken::H2)?;
        body.send_data(request.check.clone(), true).map_err(Broken::H2)?;
        let (head, mut body) = response.await.map_err(Broken::H2)?.into_parts();
        if head.status != StatusCode::OK {
            return Err(Broken::Answer(Failure::Protocol, format!("HTTP status {}", head.status)));
        }
        let mut message = Bytes::new();
        while let Some(data) = body.data().await {
            let data = data.map_err(Broken::H2)?;
            let _enough = body.flow_control().release_capacity(data.len());
            if message.is_empty() {
                message = data;
            } else if message.len() + data.len() <= MAX_ANSWER {
                message = [message, data].concat().into();
            } else {
                return Err(Broken::Answer(Failure::Protocol, "an answer of more than 1 MiB".to_owned()));
            }
        }
        let trailers = body.trailers().await.map_err(Broken::H2)?;
        grpc_status(trailers.as_ref().unwrap_or(&head.headers))?;
        verdict(&message).map_err(|text| Broken::Answer(Failure::Protocol, text.to_owned()))
    }
}

/// What went wrong in an exchange.
enum Broken {
    H2(h2::Error),
    Answer(Failure, String),
}

fn grpc_status(trailers: &HeaderMap) -> Result<(), Broken> {
    let code = trailers.get("grpc-status").and_then(|value| value.to_str().ok()).and_then(|code| code.parse().ok());
    match code {
        Some(0) => Ok(()),
        Some(code) => {
            let text = trailers.get("grpc-message").and_then(|value| value.to_str().ok()).unwrap_or_default();
            Err(Broken::Answer(Failure::Grpc(code), text.to_owned()))
        }
        None => Err(Broken::Answer(Failure::Protocol, "no grpc-status".to_owned())),
    }
}

/// What a gRPC message with a `CheckResponse` says.
fn verdict(message: &[u8]) -> Result<Answer, &'static str> {
    let (prefix, body) = message.split_at_checked(5).ok_or("an answer without a message")?;
    let length = prefix.iter().skip(1).fold(0_usize, |n, byte| n << 8 | usize::from(*byte));
    if prefix.first() != Some(&0) || length != body.len() {
        return Err("an answer that is not one uncompressed message");
    }
    let verdict = Verdict::decode(body).map_err(|_malformed| "an answer that is not a CheckResponse")?;
    match (verdict.status.map_or(0, |status| status.code), verdict.denied) {
        (0, None) => Ok(Answer::Allow),
        (0, Some(_)) => Err("an answer that is OK and a denial"),
        // Without a status, Envoy denies with 403.
        (_, denied) => {
            let status = denied.and_then(|d| d.status).map_or(403, |status| status.code);
            Ok(Answer::Deny(u16::try_from(status).unwrap_or(0)))
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
    use envoy_types::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
    use envoy_types::pb::envoy::r#type::v3::HttpStatus;
    use envoy_types::pb::google::rpc::Status;

    use super::*;

    fn answer(code: i32, http_response: Option<HttpResponse>) -> Vec<u8> {
        let response = CheckResponse {
            status: Some(Status { code, ..Status::default() }),
            http_response,
            ..CheckResponse::default()
        };
        let mut out = vec![0];
        out.extend_from_slice(&(response.encoded_len() as u32).to_be_bytes());
        out.extend_from_slice(&response.encode_to_vec());
        out
    }

    #[test]
    fn verdicts_are_those_that_envoy_would_see() {
        let ok = || Some(HttpResponse::OkResponse(OkHttpResponse::default()));
        let denied = |status: Option<HttpStatus>| {
            Some(HttpResponse::DeniedResponse(DeniedHttpResponse { status, ..DeniedHttpResponse::default() }))
        };
        assert_eq!(verdict(&answer(0, ok())), Ok(Answer::Allow));
        assert_eq!(verdict(&answer(0, None)), Ok(Answer::Allow));
        assert_eq!(verdict(&answer(7, None)), Ok(Answer::Deny(403)));
        assert_eq!(verdict(&answer(7, denied(None))), Ok(Answer::Deny(403)));
        assert_eq!(verdict(&answer(16, denied(Some(HttpStatus { code: 401 })))), Ok(Answer::Deny(401)));
        assert!(verdict(&answer(0, denied(None))).is_err());
        assert_eq!(verdict(&[0, 0, 0, 0, 0]), Ok(Answer::Allow), "an empty CheckResponse is OK");
        for bad in [&[][..], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 1], &[0, 0, 0, 0, 1, 0xff]] {
            assert!(verdict(bad).is_err(), "{bad:?}");
        }
    }
}
