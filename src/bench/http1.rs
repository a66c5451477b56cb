//! Asks a proxy over HTTP/1.1, as a client would: one request at a time on a connection that is kept.
//!
//! Plane: composition. What the proxy answers for want of an upstream or an authorization server (502, 504) is a failure,
//! not an answer. A connection that was closed is made anew by the next request, which counts as part of it.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;

use super::prepare::Prepared;
use super::tally::{Answer, Failure};
use super::target::{Place, Stream};

/// One connection.
#[derive(Debug)]
pub(super) struct HttpLane {
    place: Place,
    sender: Option<SendRequest<Empty<Bytes>>>,
}

impl HttpLane {
    pub(super) const fn new(place: Place) -> Self {
        Self { place, sender: None }
    }

    /// Gives the connection up.
    pub(super) fn close(&mut self) {
        self.sender = None;
    }

    pub(super) async fn connect(&mut self) -> Result<(), String> {
        if self.sender.as_ref().is_some_and(|sender| !sender.is_closed()) {
            return Ok(());
        }
        let sender = match self.place.connect().await? {
            Stream::Tcp(io) => open(io).await?,
            Stream::Unix(io) => open(io).await?,
        };
        self.sender = Some(sender);
        Ok(())
    }

    pub(super) async fn ask(&mut self, request: &Prepared) -> Result<Answer, (Failure, Option<String>)> {
        self.connect().await.map_err(|e| (Failure::Unreachable, Some(e)))?;
        let asked = self.exchange(request).await;
        if asked.is_err() {
            self.close();
        }
        let status = asked.map_err(|e| {
            let failure = if e.is_parse() { Failure::Protocol } else { Failure::Closed };
            (failure, Some(e.to_string()))
        })?;
        match status {
            502 | 504 => Err((Failure::Gateway(status), None)),
            _ => Ok(Answer::Http(status)),
        }
    }

    async fn exchange(&mut self, prepared: &Prepared) -> Result<u16, hyper::Error> {
        let mut request = Request::new(Empty::new());
        if let Some(plain) = &prepared.http {
            request.method_mut().clone_from(&plain.method);
            request.uri_mut().clone_from(&plain.path);
            request.headers_mut().clone_from(&plain.headers);
        }
        let Some(sender) = &mut self.sender else { return Ok(0) };
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame?;
        }
        Ok(status)
    }
}

async fn open<T>(io: T) -> Result<SendRequest<Empty<Bytes>>, String>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(io)).await.map_err(|e| e.to_string())?;
    // Ends with the connection; what broke it is seen by the request on it.
    drop(tokio::spawn(connection));
    Ok(sender)
}
