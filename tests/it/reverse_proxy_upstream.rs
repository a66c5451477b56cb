//! A real server behind the reverse proxy: HTTP/1, HTTP/2 without TLS, WebSocket; what it does depends on the path.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

type Body = BoxBody<Bytes, Infallible>;

impl Service {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, requests) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&requests);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        count.fetch_add(1, Ordering::SeqCst);
                        async move { Ok::<_, Infallible>(answer(request).await) }
                    });
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, requests }
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Until so many requests have come.
    pub(crate) async fn until(&self, requests: usize) {
        while self.requests() < requests {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn number(request: &Request<Incoming>, key: &str) -> u64 {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')?.parse().ok()).unwrap_or(0)
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    match request.uri().path().rsplit('/').next().unwrap_or_default() {
        "slow" => {
            tokio::time::sleep(Duration::from_millis(number(&request, "ms"))).await;
            Response::new(Full::from("slow").boxed())
        }
        "events" => events(),
        "bytes" => zeros(number(&request, "n")),
        "count" => Response::new(Full::from(count(request.into_body()).await.to_string()).boxed()),
        "stream" => grpc(request.into_body()),
        "ws" => websocket(request),
        _ => echo(request).await,
    }
}

fn text(map: &HeaderMap) -> Value {
    let mut all = Map::new();
    for name in map.keys() {
        let mut values: Vec<Value> =
            map.get_all(name).iter().map(|v| json!(String::from_utf8_lossy(v.as_bytes()))).collect();
        all.insert(name.to_string(), if values.len() == 1 { values.remove(0) } else { Value::Array(values) });
    }
    Value::Object(all)
}

/// Tells what reached it, with a trailer.
async fn echo(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().map(text);
    let body = collected.to_bytes();
    let path = parts.uri.path_and_query().map_or("", |p| p.as_str());
    let seen = json!({
        "method": parts.method.as_str(), "path": path, "authority": parts.uri.authority().map(|a| a.as_str()),
        "headers": text(&parts.headers), "body": String::from_utf8_lossy(&body), "trailers": trailers,
    });
    let mut trailers = HeaderMap::new();
    trailers.insert("x-answered", HeaderValue::from_static("yes"));
    let frames = [Ok(Frame::data(Bytes::from(seen.to_string()))), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames))));
    response.headers_mut().insert("trailer", HeaderValue::from_static("x-answered"));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

/// Server-sent events without an end.
fn events() -> Response<Body> {
    let ticks = futures_util::stream::unfold(0_u64, |n| async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        Some((Ok(Frame::data(Bytes::from(format!("data: tick {n}\n\n")))), n + 1))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(ticks)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/event-stream"));
    response
}

fn zeros(n: u64) -> Response<Body> {
    static PIECE: [u8; 65_536] = [0; 65_536];
    let pieces = futures_util::stream::unfold(n, |left| async move {
        let now = left.min(PIECE.len() as u64);
        (now > 0).then(|| (Ok(Frame::data(Bytes::from_static(&PIECE[..usize::try_from(now).unwrap()]))), left - now))
    });
    Response::new(BodyExt::boxed(StreamBody::new(pieces)))
}

async fn count(mut body: Incoming) -> u64 {
    let mut sum = 0;
    while let Some(frame) = body.frame().await {
        sum += frame.unwrap().data_ref().map_or(0, |data| data.len() as u64);
    }
    sum
}

/// Sends every piece back; at the end `grpc-status: 0`.
fn grpc(body: Incoming) -> Response<Body> {
    let frames = body.into_data_stream().map(|piece| Ok(Frame::data(piece.unwrap_or_default())));
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let end = futures_util::stream::iter([Ok(Frame::trailers(trailers))]);
    // The body of a request can be sent on by one task at a time alone; a mutex makes that known.
    let frames = std::sync::Mutex::new(Box::pin(frames.chain(end)));
    let frames = futures_util::stream::poll_fn(move |cx| frames.lock().unwrap().poll_next_unpin(cx));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// Echoes short masked frames, and sends one of its own each 10 ms.
fn websocket(mut request: Request<Incoming>) -> Response<Body> {
    let key = request.headers().get("sec-websocket-key").cloned();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut from, mut to) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
        loop {
            let mut head = [0; 6];
            tokio::select! {
                read = from.read_exact(&mut head) => if read.is_err() { return },
                () = tokio::time::sleep(Duration::from_millis(10)) => {
                    if to.write_all(b"\x81\x04tick").await.is_err() { return }
                    continue;
                }
            }
            let mut payload = vec![0; usize::from(head[1] & 0x7f)];
            from.read_exact(&mut payload).await.unwrap();
            payload.iter_mut().enumerate().for_each(|(i, byte)| *byte ^= head[2 + i % 4]);
            let mut frame = vec![0x81, head[1] & 0x7f];
            frame.extend(payload);
            to.write_all(&frame).await.unwrap();
        }
    });
    let mut response = Response::new(Full::default().boxed());
    *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("connection", HeaderValue::from_static("Upgrade"));
    headers.insert("upgrade", HeaderValue::from_static("websocket"));
    headers.insert("sec-websocket-accept", key.unwrap_or(HeaderValue::from_static("none")));
    response
}
