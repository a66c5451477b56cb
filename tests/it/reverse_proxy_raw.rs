//! Requests that two servers could read in two ways, byte for byte: refused with 400, the connection closed, and nothing of
//! them or behind them at the upstream. And the same over HTTP/2, where the frames leave less to be read in two ways.

use std::time::Duration;

use http::{HeaderMap, Request};
use portcullis::proxy::Protocol;
use tokio::net::TcpStream;

use crate::reverse_proxy::{Proxy, config, raw, upstream};
use crate::reverse_proxy_upstream::Service;

#[tokio::test(flavor = "multi_thread")]
async fn what_could_be_read_in_two_ways_is_answered_400_and_the_connection_closed() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let auth = proxy.bearer("storefront");
    let get = format!("GET /app/smuggled HTTP/1.1\r\nHost: a\r\n{auth}\r\n\r\n");
    let post =
        |headers: &str, body: &str| format!("POST /app/x HTTP/1.1\r\nHost: a\r\n{auth}\r\n{headers}\r\n\r\n{body}");
    let line = |line: &str| format!("{line}\r\nHost: a\r\n{auth}\r\n\r\n");
    for (name, bytes) in [
        ("two lengths", post("Content-Length: 0\r\nContent-Length: 44", &get)),
        ("two equal lengths", post("Content-Length: 3\r\nContent-Length: 3", "abc")),
        ("a list of lengths", post("Content-Length: 3, 3", "abc")),
        ("a signed length", post("Content-Length: +3", "abc")),
        ("length beside chunked", post("Content-Length: 4\r\nTransfer-Encoding: chunked", &format!("0\r\n\r\n{get}"))),
        ("chunked beside length", post("Transfer-Encoding: chunked\r\nContent-Length: 4", &format!("0\r\n\r\n{get}"))),
        ("chunked not last", post("Transfer-Encoding: chunked, identity", &format!("0\r\n\r\n{get}"))),
        ("another coding", post("Transfer-Encoding: gzip, chunked", "0\r\n\r\n")),
        ("an unknown coding", post("Transfer-Encoding: xchunked", &format!("0\r\n\r\n{get}"))),
        ("chunked twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n")),
        ("chunked in two lines", post("Transfer-Encoding:\r\n chunked", "0\r\n\r\n")),
        ("chunked with a tab", post("Transfer-Encoding:\x0bchunked", "0\r\n\r\n")),
        ("an alias of a length", post("Content_Length: 3", "abc")),
        (
            "chunked in HTTP/1.0",
            "POST /app/x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        ),
        ("a bare LF", format!("GET /app/x HTTP/1.1\nHost: a\n{auth}\n\n")),
        ("one bare LF", format!("GET /app/x HTTP/1.1\r\nHost: a\n{auth}\r\n\r\n")),
        ("a bare CR", post("X: a\rContent-Length: 3", "abc")),
        ("a NUL", post("X: a\0b", "")),
        ("folding", post("X: a\r\n b", "")),
        ("a folded first line", "GET /app/x HTTP/1.1\r\n Host: a\r\n\r\n".to_owned()),
        ("a space before the colon", post("Content-Length : 3", "abc")),
        ("a header without a colon", post("Content-Length", "")),
        ("an empty name", post(": a", "")),
        ("two hosts", post("Host: b", "")),
        ("no host", format!("GET /app/x HTTP/1.1\r\n{auth}\r\n\r\n")),
        ("a target with another host", line("GET http://b/app/x HTTP/1.1")),
        ("a target with another port", line("GET http://a:8080/app/x HTTP/1.1")),
        ("a target with a user", line("GET http://a@b/app/x HTTP/1.1")),
        ("two spaces", line("GET  /app/x HTTP/1.1")),
        ("a space in the target", line("GET /app/x y HTTP/1.1")),
        ("a fragment", line("GET /app/x#y HTTP/1.1")),
        ("an odd version", line("GET /app/x HTTP/1.9")),
        ("no version", "GET /app/x\r\n\r\n".to_owned()),
        ("CONNECT", line("CONNECT a:80 HTTP/1.1")),
        ("TRACE", line("TRACE /app/x HTTP/1.1")),
        ("a method that is none", line("GE(T /app/x HTTP/1.1")),
        ("Connection names Authorization", post("Connection: Authorization", "")),
        ("Connection names an identity", post("Connection: x-portcullis-workload", "")),
        ("TLS in plain text", "\x16\x03\x01\x02\0\x01\0\x01\u{7f}\r\n\r\n".to_owned()),
    ] {
        let answer = raw(proxy.address, bytes.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{name}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{name}: one answer: {answer:?}");
        assert_eq!(service.requests(), 0, "{name}: nothing at the upstream");
    }
    let refused = proxy.records().iter().filter(|r| r["reason"] == "input.malformed").count();
    assert!(refused > 30, "they are on record: {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_chunk_ends_the_request_and_what_follows_is_no_request() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let head = proxy.head("POST /app/count", &["Transfer-Encoding: chunked"]);
    let smuggled = proxy.head("GET /app/smuggled", &[]);
    for chunk in [
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabcdef\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n",
    ] {
        let before = service.requests();
        let answer = raw(proxy.address, format!("{head}{chunk}{smuggled}").as_bytes()).await;
        assert!(!answer.contains("HTTP/1.1 200"), "{chunk:?}: {answer}");
        assert!(service.requests() <= before + 1, "{chunk:?}: only the one whose body broke off");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_behind_one_another_are_answered_in_turn() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let body = proxy.head("POST /app/count", &["Content-Length: 5"]) + "GET /";
    let last = proxy.head("GET /app/echo", &["Connection: close"]);
    let answer = raw(proxy.address, format!("{body}\r\n{body}{last}").as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "{answer}");
    assert_eq!(service.requests(), 3);
}

async fn h2(proxy: &Proxy) -> h2::client::SendRequest<bytes::Bytes> {
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    send.ready().await.unwrap()
}

/// Status, or that the stream was reset.
async fn over_h2(proxy: &Proxy, uri: &str, headers: &[(&str, &str)], body: Option<&str>) -> Result<u16, h2::Error> {
    let mut send = h2(proxy).await;
    let mut request = Request::post(uri).version(http::Version::HTTP_2);
    let auth = proxy.bearer("storefront");
    request = request.header("authorization", auth.split_once(": ").unwrap().1);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (answer, mut stream) = send.send_request(request.body(()).unwrap(), body.is_none())?;
    if let Some(body) = body {
        // The head alone may have been refused already: then the answer tells.
        let _too_late = stream.send_data(bytes::Bytes::from(body.to_owned()), true);
    }
    Ok(tokio::time::timeout(Duration::from_secs(10), answer).await.expect("an answer")?.status().as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http2_too_what_is_ambiguous_is_refused() {
    let service = Service::start().await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let proxy = Proxy::open(config(upstream(&[service.address], protocol))).await;
        let before = service.requests();
        let uri = "http://shop.example/app/echo";
        for (name, uri, headers, body) in [
            ("two hosts", uri, &[("host", "other.example")][..], None),
            ("a length that is not", uri, &[("content-length", "9")][..], Some("abc")),
            ("two lengths", uri, &[("content-length", "3"), ("content-length", "4")][..], Some("abc")),
            ("an empty length", uri, &[("content-length", "")][..], None),
            ("an alias", uri, &[("transfer_encoding", "chunked")][..], Some("abc")),
            ("dot segments", "http://shop.example/app/../live/x", &[][..], None),
            ("an escaped slash", "http://shop.example/app%2flive", &[][..], None),
        ] {
            match over_h2(&proxy, uri, headers, body).await {
                Ok(status) => assert_eq!(status, 400, "{name} to {protocol:?}"),
                Err(error) => assert!(error.is_reset() || error.is_go_away(), "{name}: {error}"),
            }
        }
        assert!(service.requests() <= before + 1, "only one whose body did not match its length may have begun");
        assert_eq!(
            over_h2(&proxy, uri, &[("te", "trailers"), ("host", "shop.example")], Some("abc")).await.unwrap(),
            200
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_in_pieces_is_one_for_http1() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let mut send = h2(&proxy).await;
    let mut headers = HeaderMap::new();
    for crumb in ["a=1", "b=2"] {
        headers.append("cookie", crumb.parse().unwrap());
    }
    let auth = proxy.bearer("storefront");
    headers.insert("authorization", auth.split_once(": ").unwrap().1.parse().unwrap());
    let mut request = Request::get("http://shop.example/app/echo").body(()).unwrap();
    *request.headers_mut() = headers;
    let (answer, _) = send.send_request(request, true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    let mut text = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
        text.extend_from_slice(&piece);
    }
    let seen: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(seen["headers"]["cookie"], "a=1; b=2");
    assert_eq!(seen["headers"]["host"], "shop.example");
}
