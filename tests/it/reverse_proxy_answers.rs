//! What comes back through the reverse proxy, and what does not: answers without a body, answers that break off, upstreams
//! that are unwell or full, and clients that wait for leave to send.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use portcullis::proxy::{Health, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::reverse_proxy::{Proxy, ask, config, raw, upstream};
use crate::reverse_proxy_upstream::Service;

/// A server that answers each head by the last part of its path, byte for byte, and what it has seen.
#[derive(Clone)]
struct Script {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
    is_well: Arc<AtomicBool>,
}

const WHOLE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole";

/// What it answers, and whether it closes then.
fn script(name: &str) -> (&'static str, bool) {
    match name {
        "length" => ("HTTP/1.1 200 OK\r\nContent-Length: 42\r\nETag: \"a\"\r\n\r\n", false),
        "chunked" => ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        "gone" => ("HTTP/1.1 204 No Content\r\nX-Kept: 1\r\n\r\n", false),
        "same" => ("HTTP/1.1 304 Not Modified\r\nContent-Length: 42\r\nETag: \"a\"\r\n\r\n", false),
        "short" => ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbegun", true),
        "torn" => ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n", true),
        "within" => ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nbegun", true),
        "garbled" => ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\nx\r\n", true),
        "hints" => (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole",
            false,
        ),
        "refuses" => ("HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nless", true),
        _ => (WHOLE, false),
    }
}

impl Script {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            heads: Arc::default(),
            is_well: Arc::new(AtomicBool::new(true)),
        };
        let accepting = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(accepting.clone().serve(stream));
            }
        });
        server
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut is_first = true;
        let mut seen = Vec::new();
        loop {
            while !seen.windows(4).any(|w| w == b"\r\n\r\n") {
                match stream.read_buf(&mut seen).await {
                    Ok(1..) => {}
                    _ => return,
                }
            }
            let head = String::from_utf8_lossy(&seen).into_owned();
            seen.clear();
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            if path == "/healthz" {
                let status = if self.is_well.load(Ordering::SeqCst) { "200 OK" } else { "503 Unwell" };
                let _ = stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
                continue;
            }
            if std::mem::take(&mut is_first) {
                self.connections.fetch_add(1, Ordering::SeqCst);
            }
            self.heads.lock().unwrap().push(head);
            let (answer, closes) = script(path.rsplit('/').next().unwrap_or_default());
            let _ = stream.write_all(answer.as_bytes()).await;
            if closes {
                // As servers do that have not read all: closed at once, what they said could be lost.
                let _ = stream.shutdown().await;
                while matches!(stream.read(&mut [0; 65_536]).await, Ok(1..)) {}
                return;
            }
        }
    }

    fn requests(&self) -> usize {
        self.heads.lock().unwrap().len()
    }
}

/// The next answer on a connection that stays open: its head, and so many bytes behind it.
async fn next(stream: &mut TcpStream, seen: &mut Vec<u8>, body: usize) -> (String, String) {
    let read = async {
        loop {
            if let Some(at) = seen.windows(4).position(|w| w == b"\r\n\r\n")
                && seen.len() >= at + 4 + body
            {
                let rest = seen.split_off(at + 4 + body);
                let answer = String::from_utf8_lossy(&std::mem::replace(seen, rest)).into_owned();
                let (head, body) = answer.split_at(at + 4);
                return (head.to_ascii_lowercase(), body.to_owned());
            }
            assert!(stream.read_buf(seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(seen));
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("an answer")
}

/// A connection of HTTP/2 to the proxy.
async fn h2(proxy: &Proxy) -> h2::client::SendRequest<Bytes> {
    let (send, connection) = h2::client::handshake(TcpStream::connect(proxy.address).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    send.ready().await.unwrap()
}

fn request(proxy: &Proxy, method: Method, path: &str) -> Request<()> {
    let auth = proxy.bearer("storefront");
    let request = Request::builder().method(method).uri(format!("http://shop.example{path}"));
    request.header("authorization", auth.split_once(": ").unwrap().1).body(()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_body_keeps_its_length_and_the_connection_goes_on() {
    let server = Script::start().await;
    let proxy = Proxy::open(config(upstream(&[server.address], Protocol::Http1))).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let mut seen = Vec::new();
    let cases = [
        (Method::HEAD, "length", 200, Some("42")),
        (Method::HEAD, "chunked", 200, None),
        (Method::GET, "gone", 204, None),
        (Method::HEAD, "gone", 204, None),
        (Method::GET, "same", 304, Some("42")),
        (Method::HEAD, "same", 304, Some("42")),
    ];
    // To a GET the library leaves out the length that the answer would have had, which it may (RFC 9110, section 15.4.5).
    let is_right =
        |said: Option<&str>, length: Option<&str>, status: u16| said == length || (status == 304 && said.is_none());
    for (method, name, status, length) in &cases {
        stream.write_all(proxy.head(&format!("{method} /app/{name}"), &[]).as_bytes()).await.unwrap();
        let (head, _) = next(&mut stream, &mut seen, 0).await;
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{method} {name}: {head}");
        let said = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        assert!(is_right(said, *length, *status), "{method} {name}: {head}");
        assert_eq!(head.contains("etag: \"a\""), matches!(*name, "length" | "same"), "{method} {name}: {head}");
        assert!(*status != 204 || !head.contains("transfer-encoding"), "{name}: {head}");
        // What follows is the next answer, and nothing is before it.
        stream.write_all(proxy.head("GET /app/x", &[]).as_bytes()).await.unwrap();
        let (head, body) = next(&mut stream, &mut seen, 5).await;
        assert!(head.starts_with("http/1.1 200 "), "after {method} {name}: {head}");
        assert_eq!(body, "whole", "after {method} {name}");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1, "one connection to the upstream for all of it");

    let mut send = h2(&proxy).await;
    for (method, name, status, length) in &cases {
        let (answer, _) = send.send_request(request(&proxy, method.clone(), &format!("/app/{name}")), true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), *status, "{method} {name}");
        let said = answer.headers().get("content-length").map(|v| v.to_str().unwrap());
        assert!(is_right(said, *length, *status), "{method} {name}: {answer:?}");
        assert!(answer.into_body().data().await.is_none(), "{method} {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_breaks_off_leaves_no_answer_that_looks_whole() {
    let server = Script::start().await;
    let proxy = Proxy::open(config(upstream(&[server.address], Protocol::Http1))).await;
    let mut send = h2(&proxy).await;
    for name in ["short", "torn", "within", "garbled"] {
        let answer = raw(proxy.address, proxy.head(&format!("GET /app/{name}"), &[]).as_bytes()).await;
        // The head may have gone out before it was known; or it was not, and there is an answer of the proxy's own.
        let is_own = answer.starts_with("HTTP/1.1 502 ");
        if !is_own {
            assert!(answer.starts_with("HTTP/1.1 200 "), "{name}: {answer:?}");
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            match head.to_ascii_lowercase().contains("content-length: 10") {
                true => assert!(body.len() < 10, "{name}: {answer:?}"),
                false => assert!(!body.ends_with("0\r\n\r\n"), "{name}: {answer:?}"),
            }
        }
        let (answer, _) = send.send_request(request(&proxy, Method::GET, &format!("/app/{name}")), true).unwrap();
        match answer.await {
            Err(error) => assert!(error.is_reset(), "{name}: {error}"),
            Ok(answer) => {
                assert_eq!(answer.status(), 200, "{name}");
                let mut body = answer.into_body();
                let broken = loop {
                    match body.data().await {
                        Some(Ok(piece)) => body.flow_control().release_capacity(piece.len()).unwrap(),
                        Some(Err(error)) => break error,
                        None => panic!("{name}: it looks whole"),
                    }
                };
                assert!(broken.is_reset(), "{name}: the stream, and nothing else: {broken}");
            }
        }
    }
    // It was one stream of a connection that goes on.
    let (answer, _) = send.send_request(request(&proxy, Method::GET, "/app/x"), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
}

/// A server of HTTP/2 that resets each stream in the middle of its answer.
async fn resetting() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let kind = request.headers().get("content-type").cloned();
                    let mut head = http::Response::new(());
                    kind.into_iter().for_each(|kind| drop(head.headers_mut().insert("content-type", kind)));
                    let mut body = respond.send_response(head, false).unwrap();
                    body.send_data(Bytes::from_static(b"begun"), false).unwrap();
                    tokio::spawn(async move {
                        // Once that has been written.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        body.send_reset(h2::Reason::INTERNAL_ERROR);
                    });
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_upstream_resets_is_not_whole_for_the_client_either() {
    let proxy = Proxy::open(config(upstream(&[resetting().await], Protocol::Http2))).await;
    let answer = raw(proxy.address, proxy.head("GET /app/x", &[]).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("begun"), "{answer}");
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer:?}");
    for kind in ["application/grpc", "text/plain"] {
        let mut send = h2(&proxy).await;
        let mut call = request(&proxy, Method::POST, "/app/x");
        call.headers_mut().insert("content-type", kind.parse().unwrap());
        let (answer, _) = send.send_request(call, true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        assert_eq!(&body.data().await.unwrap().unwrap()[..], b"begun");
        match body.data().await {
            Some(Err(error)) => assert!(error.is_reset(), "{kind}: {error}"),
            other => panic!("{kind}: {other:?}, {:?}", body.trailers().await),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unwell_upstream_is_passed_over_until_it_is_well() {
    let (first, second) = (Script::start().await, Script::start().await);
    let mut one = upstream(&[first.address, second.address], Protocol::Http1);
    let interval = Duration::from_millis(50);
    one.health = Some(Health { path: "/healthz".to_owned(), interval, unhealthy_after: 1, healthy_after: 1 });
    let proxy = Proxy::open(config(one)).await;
    // How many of some requests in a row each of the two gets.
    let shares = async || {
        let before = [first.requests(), second.requests()];
        for _ in 0..6 {
            assert_eq!(ask(&proxy, "GET /app/x", &[], "").await, (200, "whole".to_owned()));
        }
        (first.requests() - before[0], second.requests() - before[1])
    };
    let come_to = async |wanted: (usize, usize)| {
        let reached = async {
            while shares().await != wanted {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(15), reached).await.unwrap_or_else(|_| panic!("never {wanted:?}"));
    };
    come_to((3, 3)).await;
    first.is_well.store(false, Ordering::SeqCst);
    come_to((0, 6)).await;
    // When none is known to work, all are tried.
    second.is_well.store(false, Ordering::SeqCst);
    come_to((3, 3)).await;
    first.is_well.store(true, Ordering::SeqCst);
    come_to((6, 0)).await;
    second.is_well.store(true, Ordering::SeqCst);
    come_to((3, 3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_allowed_wait_to_be_accepted() {
    let service = Service::start().await;
    let mut config = config(upstream(&[service.address], Protocol::Http1));
    config.limits.max_connections = 2;
    let proxy = Proxy::open(config).await;
    let websocket = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x"];
    // One that rests between two requests, and one that has left HTTP: both are open.
    let mut resting = TcpStream::connect(proxy.address).await.unwrap();
    resting.write_all(proxy.head("GET /app/slow?ms=0", &[]).as_bytes()).await.unwrap();
    next(&mut resting, &mut Vec::new(), 4).await;
    let mut left = TcpStream::connect(proxy.address).await.unwrap();
    left.write_all(proxy.head("GET /app/ws", &websocket).as_bytes()).await.unwrap();
    next(&mut left, &mut Vec::new(), 6).await;
    let mut served = Vec::new();
    for frees in [resting, left] {
        let mut waiting = TcpStream::connect(proxy.address).await.unwrap();
        waiting.write_all(proxy.head("GET /app/slow?ms=0", &[]).as_bytes()).await.unwrap();
        let mut byte = [0];
        tokio::time::timeout(Duration::from_millis(300), waiting.read_exact(&mut byte)).await.expect_err("it waits");
        drop(frees);
        tokio::time::timeout(Duration::from_secs(5), waiting.read_exact(&mut byte)).await.expect("its turn").unwrap();
        served.push(waiting);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_to_an_upstream_than_allowed_are_answered_503() {
    let service = Service::start().await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let mut one = upstream(&[service.address], protocol);
        one.max_requests = 2;
        let proxy = Proxy::open(config(one)).await;
        let before = service.requests();
        let mut endless = Vec::new();
        for n in 1..=2 {
            let mut stream = TcpStream::connect(proxy.address).await.unwrap();
            stream.write_all(proxy.head("GET /app/events", &[]).as_bytes()).await.unwrap();
            service.until(before + n).await;
            endless.push(stream);
        }
        let (status, body) = ask(&proxy, "GET /app/echo", &[], "").await;
        assert_eq!(status, 503, "{protocol:?}: {body}");
        assert!(body.contains("\"status\":503"), "a problem document: {body}");
        let mut call = request(&proxy, Method::POST, "/app/stream");
        call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let (answer, _) = h2(&proxy).await.send_request(call, true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["grpc-status"]), (200, &"14".parse().unwrap()));
        assert_eq!(service.requests(), before + 2, "none of them reached it");
        // A place is free again once its client has gone.
        drop(endless.pop());
        let freed = async {
            while ask(&proxy, "GET /app/slow?ms=0", &[], "").await.0 != 200 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), freed).await.expect("a place becomes free");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_of_http2_that_rests_is_closed_and_one_with_a_request_is_not() {
    let service = Service::start().await;
    let mut config = config(upstream(&[service.address], Protocol::Http1));
    config.limits.idle_timeout = Duration::from_millis(200);
    let proxy = Proxy::open(config).await;
    let (send, connection) = h2::client::handshake(TcpStream::connect(proxy.address).await.unwrap()).await.unwrap();
    let ends = tokio::spawn(connection);
    let mut send = send.ready().await.unwrap();
    let (answer, _) = send.send_request(request(&proxy, Method::GET, "/app/slow?ms=1500"), true).unwrap();
    let mut body = answer.await.expect("seven times as long, and there is an answer").into_body();
    assert_eq!(&body.data().await.unwrap().unwrap()[..], b"slow");
    assert!(!ends.is_finished());
    let ended = tokio::time::timeout(Duration::from_secs(5), ends).await.expect("it is closed").unwrap();
    assert!(ended.is_ok(), "as one closes that has nothing against its client: {ended:?}");
    let refused = send.ready().await.err();
    assert!(refused.is_some_and(|error| !error.is_io()), "GOAWAY");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_last_answer_of_an_upstream_is_the_answer() {
    let server = Script::start().await;
    let proxy = Proxy::open(config(upstream(&[server.address], Protocol::Http1))).await;
    let answer = raw(proxy.address, proxy.head("GET /app/hints", &["Connection: close"]).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("whole"), "{answer}");
    // The proxy has told the client to go on by itself: the upstream is not asked to.
    let more = ["Expect: 100-continue", "Content-Length: 3", "Connection: close"];
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(proxy.head("POST /app/hints", &more).as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    assert_eq!(next(&mut stream, &mut seen, 0).await.0, "http/1.1 100 continue\r\n\r\n");
    stream.write_all(b"abc").await.unwrap();
    stream.read_to_end(&mut seen).await.unwrap();
    let answer = String::from_utf8(seen).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("whole"), "{answer}");
    let heads = server.heads.lock().unwrap().clone();
    assert!(heads.iter().all(|head| !head.to_ascii_lowercase().contains("expect")), "{heads:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_before_the_body_is_the_answer() {
    let server = Script::start().await;
    let proxy = Proxy::open(config(upstream(&[server.address], Protocol::Http1))).await;
    for expect in ["X-Nothing: 1", "Expect: 100-continue"] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let head = proxy.head("POST /app/refuses", &[expect, "Content-Length: 50000000"]);
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut reads, mut writes) = stream.into_split();
        // It goes on sending, as long as anybody takes it.
        let sends = tokio::spawn(async move { while writes.write_all(&[b'a'; 65_536]).await.is_ok() {} });
        let mut seen = Vec::new();
        let read = async {
            while !seen.ends_with(b"less") {
                match reads.read_buf(&mut seen).await {
                    Ok(1..) => {}
                    other => panic!("{expect}: {other:?} after {:?}", String::from_utf8_lossy(&seen)),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("an answer");
        let answer = String::from_utf8_lossy(&seen).into_owned();
        let answer = answer.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&answer);
        assert!(answer.starts_with("HTTP/1.1 413 "), "{expect}: {answer}");
        sends.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_leaves_a_websocket_open_and_decided_on_until_its_deadline() {
    let service = Service::start().await;
    let mut proxy = Proxy::before(&service).await;
    let more = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
    let open = async |token: &str, path: &str| {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{}\r\n{more}", proxy.bearer(token));
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        assert!(next(&mut stream, &mut seen, 6).await.0.starts_with("http/1.1 101 "));
        stream
    };
    let (mut kept, mut revoked) = (open("storefront", "/app/ws").await, open("agent", "/live/ws").await);
    let begun = std::time::Instant::now();
    proxy.drain.begin(Duration::from_secs(3));
    // Both ways still.
    kept.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(4).any(|w| w == b"\x81\x02hi") {
        assert!(kept.read_buf(&mut seen).await.unwrap() > 0);
    }
    proxy.estate.revoke_grant(proxy.grant);
    proxy.publish();
    let mut rest = Vec::new();
    revoked.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(b"revoked.grant"), "{rest:?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(!proxy.served.is_finished());
    let _reset = tokio::time::timeout(Duration::from_secs(10), kept.read_to_end(&mut seen)).await.expect("closed");
    assert!(begun.elapsed() >= Duration::from_secs(3), "not before: {:?}", begun.elapsed());
    tokio::time::timeout(Duration::from_secs(5), proxy.served).await.expect("it has ended").unwrap().unwrap();
}
