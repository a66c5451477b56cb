//! HTTP/2 frame by frame (RFC 9113): what a client may not send, and how it is told; what could be sent without end, and where
//! that ends. Nothing of it reaches the upstream, and the proxy goes on.
//!
//! Written without an HTTP/2 library, which would not send most of this. An endpoint may take an error of a stream for one of
//! the connection (section 5.4.2), so both are good where the RFC asks for the first; the library says PROTOCOL_ERROR of much
//! that has a code of its own.
#![allow(clippy::print_stdout, reason = "what is measured is told")]

use std::time::Duration;

use portcullis::proxy::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::reverse_proxy::{Proxy, ask, config, raw, upstream};
use crate::reverse_proxy_upstream::Service;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WHOLE: u8 = END_STREAM | END_HEADERS;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// How a client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// GOAWAY, and the end of the connection.
    Connection(u32),
    /// RST_STREAM.
    Stream(u32, u32),
    /// An answer of HTTP: the first byte of its header block, which is that of a status alone.
    Answer(u32, u8),
    /// The connection goes on as if nothing were.
    Nothing,
    Closed,
}

/// What has to come of it.
#[derive(Debug, Clone, Copy)]
enum Expected {
    /// The connection ends, with one of these.
    Connection(&'static [u32]),
    /// Stream 1 is reset with one of these or answered 400, or the connection ends with it.
    Stream(&'static [u32]),
    /// It is ignored.
    Nothing,
}

use Expected::{Connection, Nothing, Stream};

/// Index 8 of HPACK's table.
const STATUS_200: u8 = 0x88;
/// Index 12.
const STATUS_400: u8 = 0x8c;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// An integer of HPACK with a prefix of 7 bits, which has nothing set before it.
fn integer(n: usize) -> Vec<u8> {
    if n < 127 {
        return vec![u8::try_from(n).unwrap()];
    }
    let (mut rest, mut bytes) = (n - 127, vec![127]);
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

/// A field, literally, without an index and without Huffman.
fn field(name: &str, value: &str) -> Vec<u8> {
    [&[0], &integer(name.len())[..], name.as_bytes(), &integer(value.len()), value.as_bytes()].concat()
}

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

struct Client {
    stream: TcpStream,
    seen: Vec<u8>,
}

impl Client {
    async fn connect(proxy: &Proxy) -> Self {
        Self { stream: TcpStream::connect(proxy.address).await.unwrap(), seen: Vec::new() }
    }

    /// After the preface, in both directions.
    async fn open(proxy: &Proxy) -> Self {
        let mut client = Self::connect(proxy).await;
        client.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(SETTINGS, ACK, 0, &[])].concat()).await;
        client
    }

    async fn send(&mut self, bytes: &[u8]) {
        // It may have been closed by then: what was said before is what counts.
        let _closed = self.stream.write_all(bytes).await;
    }

    /// The next frame: its type, flags, stream and payload.
    async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        loop {
            if let Some(head) = self.seen.first_chunk::<9>() {
                let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap();
                let (kind, flags) = (head[3], head[4]);
                let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                if self.seen.len() >= 9 + length {
                    let payload = self.seen[9..9 + length].to_vec();
                    self.seen.drain(..9 + length);
                    return Some((kind, flags, stream, payload));
                }
            }
            if !matches!(self.stream.read_buf(&mut self.seen).await, Ok(1..)) {
                return None;
            }
        }
    }

    /// What it is told; where it is to be nothing, that is what a PING shows which is answered.
    async fn told(&mut self, is_nothing: bool) -> Told {
        if is_nothing {
            self.send(&frame(PING, 0, 0, b"stillwel")).await;
        }
        let told = async {
            while let Some((kind, flags, stream, payload)) = self.next().await {
                let code = |at: usize| u32::from_be_bytes(*payload[at..].first_chunk().unwrap());
                match kind {
                    GOAWAY if code(4) != 0 => return Told::Connection(code(4)),
                    RST_STREAM => return Told::Stream(stream, code(0)),
                    HEADERS => return Told::Answer(stream, payload[0]),
                    PING if flags == ACK && payload == b"stillwel" => return Told::Nothing,
                    _ => {}
                }
            }
            Told::Closed
        };
        tokio::time::timeout(Duration::from_secs(10), told).await.expect("something, in time")
    }
}

/// A good request's fields, with `storefront`'s token.
fn good(auth: &str) -> Vec<(&str, &str)> {
    vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "shop.example"),
        (":path", "/app/echo"),
        ("authorization", auth),
    ]
}

/// A good head with changes: without a field, or with some added behind it.
fn head(auth: &str, without: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let fields: Vec<_> =
        good(auth).into_iter().filter(|(name, _)| *name != without).chain(more.iter().copied()).collect();
    block(&fields)
}

fn settings(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_client_may_send_is_an_error_and_reaches_nobody() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let auth = proxy.bearer("storefront");
    let auth = auth.split_once(": ").unwrap().1;
    let request = |flags: u8| frame(HEADERS, flags, 1, &head(auth, "", &[]));
    // What a request of its own, of which nothing is wrong, would be: never answered, because its body has not ended.
    let post = |more: &[(&str, &str)]| {
        let fields: Vec<(&str, &str)> = [(":method", "POST")]
            .into_iter()
            .chain(good(auth).into_iter().skip(1))
            .chain(more.iter().copied())
            .collect();
        frame(HEADERS, END_HEADERS, 1, &block(&fields))
    };
    // One that is denied at once, so that streams can be used which nobody forwards.
    let denied = |stream: u32, flags: u8| frame(HEADERS, flags, stream, &head(auth, "authorization", &[]));
    let stranger = |more: &[(&str, &str)]| frame(HEADERS, WHOLE, 1, &head(auth, "", more));
    let whole = |fields: &[(&str, &str)]| frame(HEADERS, WHOLE, 1, &block(fields));
    let mut late_pseudo = good(auth);
    late_pseudo.rotate_left(1);
    let mut two_paths = good(auth);
    two_paths.insert(3, (":path", "/app/other"));
    let mut unknown_pseudo = good(auth);
    unknown_pseudo.insert(0, (":proxy", "x"));
    let mut status = good(auth);
    status.insert(0, (":status", "200"));
    let mut empty_path = good(auth);
    empty_path[3].1 = "";
    let connect = [(":method", "CONNECT"), (":authority", "shop.example:443"), ("authorization", auth)];
    let large = vec![0; 16_385];

    let cases: Vec<(&str, Vec<u8>, Expected)> = vec![
        // Section 4.1 and 4.2: frames.
        ("a frame of a type that nobody knows", frame(0x77, 0xff, 0, b"x"), Nothing),
        ("a frame larger than allowed", frame(DATA, 0, 1, &large), Connection(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR])),
        ("a head larger than allowed", frame(HEADERS, WHOLE, 1, &large), Connection(&[FRAME_SIZE_ERROR])),
        // Section 4.3: header compression.
        (
            "an index that is in no table",
            frame(HEADERS, WHOLE, 1, &[0xff, 0xff, 0x7f]),
            Connection(&[COMPRESSION_ERROR]),
        ),
        ("index 0", frame(HEADERS, WHOLE, 1, &[0x80]), Connection(&[COMPRESSION_ERROR])),
        ("a field that ends early", frame(HEADERS, WHOLE, 1, &[0, 5, b'a']), Connection(&[COMPRESSION_ERROR])),
        (
            "a table larger than agreed",
            frame(HEADERS, WHOLE, 1, &[0x3f, 0xff, 0xff, 0x7f]),
            Connection(&[COMPRESSION_ERROR]),
        ),
        (
            "a head that goes on with something else",
            [frame(HEADERS, END_STREAM, 1, &head(auth, "", &[])), frame(PING, 0, 0, &[0; 8])].concat(),
            Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "a head that goes on in another stream",
            [frame(HEADERS, END_STREAM, 1, &head(auth, "", &[])), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(),
            Connection(&[PROTOCOL_ERROR]),
        ),
        // Section 5.1: streams and their states.
        ("data in a stream that has not begun", frame(DATA, END_STREAM, 1, b"x"), Connection(&[PROTOCOL_ERROR])),
        (
            "a reset of a stream that has not begun",
            frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()),
            Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "room for a stream that has not begun",
            frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()),
            Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "a continuation of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &head(auth, "", &[])),
            Connection(&[PROTOCOL_ERROR]),
        ),
        ("a head in stream 0", frame(HEADERS, WHOLE, 0, &head(auth, "", &[])), Connection(&[PROTOCOL_ERROR])),
        (
            "a head in a stream of the server's",
            frame(HEADERS, WHOLE, 2, &head(auth, "", &[])),
            Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "a stream that is older than the last",
            [denied(5, WHOLE), frame(HEADERS, WHOLE, 3, &head(auth, "", &[]))].concat(),
            Connection(&[PROTOCOL_ERROR, STREAM_CLOSED]),
        ),
        (
            "data behind the end",
            [denied(1, WHOLE), frame(DATA, 0, 1, b"x")].concat(),
            Stream(&[STREAM_CLOSED, PROTOCOL_ERROR]),
        ),
        (
            "a second head behind the end",
            [denied(1, WHOLE), request(WHOLE)].concat(),
            Stream(&[STREAM_CLOSED, PROTOCOL_ERROR]),
        ),
        // Section 5.3: priorities, which nobody heeds, are still held to their form.
        ("a priority below itself", frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 0]), Stream(&[PROTOCOL_ERROR])),
        ("a priority that is too short", frame(PRIORITY, 0, 1, &[0; 4]), Stream(&[FRAME_SIZE_ERROR])),
        ("a priority of the connection", frame(PRIORITY, 0, 0, &[0; 5]), Connection(&[PROTOCOL_ERROR])),
        ("a priority of a stream that has not begun", frame(PRIORITY, 0, 7, &[0, 0, 0, 0, 1]), Nothing),
        // Section 6: frames one by one.
        ("data of no stream", frame(DATA, 0, 0, b"x"), Connection(&[PROTOCOL_ERROR])),
        (
            "data that is all padding and more",
            [post(&[]), frame(DATA, PADDED, 1, &[9, 0, 0])].concat(),
            Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "a head that is all padding and more",
            frame(HEADERS, WHOLE | PADDED, 1, &[9, 0, 0]),
            Connection(&[PROTOCOL_ERROR]),
        ),
        ("a reset of the connection", frame(RST_STREAM, 0, 0, &8_u32.to_be_bytes()), Connection(&[PROTOCOL_ERROR])),
        (
            "a reset that is too short",
            [denied(1, END_HEADERS), frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
            Connection(&[FRAME_SIZE_ERROR]),
        ),
        ("settings of a stream", frame(SETTINGS, 0, 1, &[]), Connection(&[PROTOCOL_ERROR])),
        ("settings of five bytes", frame(SETTINGS, 0, 0, &[0; 5]), Connection(&[FRAME_SIZE_ERROR])),
        ("settings that are received and said", frame(SETTINGS, ACK, 0, &[0; 6]), Connection(&[FRAME_SIZE_ERROR])),
        ("a setting that nobody knows", settings(0x7777, 1), Nothing),
        ("pushing neither on nor off", settings(2, 2), Connection(&[PROTOCOL_ERROR])),
        ("a window of 2^31", settings(4, 1 << 31), Connection(&[FLOW_CONTROL_ERROR])),
        ("frames of 16,383 bytes", settings(5, 16_383), Connection(&[PROTOCOL_ERROR])),
        ("frames of 2^24 bytes", settings(5, 1 << 24), Connection(&[PROTOCOL_ERROR])),
        ("a push to the server", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]), Connection(&[PROTOCOL_ERROR])),
        ("a ping of seven bytes", frame(PING, 0, 0, &[0; 7]), Connection(&[FRAME_SIZE_ERROR])),
        ("a ping of a stream", frame(PING, 0, 1, &[0; 8]), Connection(&[PROTOCOL_ERROR])),
        ("a goodbye of a stream", frame(GOAWAY, 0, 1, &[0; 8]), Connection(&[PROTOCOL_ERROR])),
        ("no room for the connection", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), Connection(&[PROTOCOL_ERROR])),
        (
            "no room for a stream",
            [denied(1, END_HEADERS), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat(),
            Stream(&[PROTOCOL_ERROR]),
        ),
        ("room in three bytes", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), Connection(&[FRAME_SIZE_ERROR])),
        (
            "more room than there is for the connection",
            frame(WINDOW_UPDATE, 0, 0, &(u32::MAX >> 1).to_be_bytes()),
            Connection(&[FLOW_CONTROL_ERROR]),
        ),
        // Section 8: requests.
        ("a name in upper case", stranger(&[("X-Upper", "1")]), Stream(&[PROTOCOL_ERROR])),
        ("a name with a space", stranger(&[("x y", "1")]), Stream(&[PROTOCOL_ERROR])),
        ("a name with a colon", stranger(&[("x:y", "1")]), Stream(&[PROTOCOL_ERROR])),
        ("no name", stranger(&[("", "1")]), Stream(&[PROTOCOL_ERROR])),
        ("a value with a NUL", stranger(&[("x", "a\0b")]), Stream(&[PROTOCOL_ERROR])),
        ("a value with a line in it", stranger(&[("x", "a\r\nx-more: 1")]), Stream(&[PROTOCOL_ERROR])),
        ("connection", stranger(&[("connection", "close")]), Stream(&[PROTOCOL_ERROR])),
        ("keep-alive", stranger(&[("keep-alive", "1")]), Stream(&[PROTOCOL_ERROR])),
        ("proxy-connection", stranger(&[("proxy-connection", "close")]), Stream(&[PROTOCOL_ERROR])),
        ("transfer-encoding", stranger(&[("transfer-encoding", "chunked")]), Stream(&[PROTOCOL_ERROR])),
        ("upgrade", stranger(&[("upgrade", "websocket")]), Stream(&[PROTOCOL_ERROR])),
        ("te that is not trailers", stranger(&[("te", "gzip")]), Stream(&[PROTOCOL_ERROR])),
        ("a pseudo-header behind the headers", whole(&late_pseudo), Stream(&[PROTOCOL_ERROR])),
        ("a pseudo-header that nobody knows", whole(&unknown_pseudo), Stream(&[PROTOCOL_ERROR])),
        ("a pseudo-header of answers", whole(&status), Stream(&[PROTOCOL_ERROR])),
        ("two paths", whole(&two_paths), Stream(&[PROTOCOL_ERROR])),
        ("no method", frame(HEADERS, WHOLE, 1, &head(auth, ":method", &[])), Stream(&[PROTOCOL_ERROR])),
        ("no scheme", frame(HEADERS, WHOLE, 1, &head(auth, ":scheme", &[])), Stream(&[PROTOCOL_ERROR])),
        ("no path", frame(HEADERS, WHOLE, 1, &head(auth, ":path", &[])), Stream(&[PROTOCOL_ERROR])),
        ("an empty path", whole(&empty_path), Stream(&[PROTOCOL_ERROR])),
        ("no host at all", frame(HEADERS, WHOLE, 1, &head(auth, ":authority", &[])), Stream(&[PROTOCOL_ERROR])),
        ("CONNECT", whole(&connect), Stream(&[PROTOCOL_ERROR])),
        ("a length, and no body", stranger(&[("content-length", "3")]), Stream(&[PROTOCOL_ERROR])),
        ("a length that is none", stranger(&[("content-length", "x")]), Stream(&[PROTOCOL_ERROR])),
    ];
    assert!(cases.len() > 60);
    let mut wrong = Vec::new();
    for (name, bytes, expected) in cases {
        let mut client = Client::open(&proxy).await;
        client.send(&bytes).await;
        let told = loop {
            // The answer to a denied request in front of it says nothing.
            match client.told(matches!(expected, Nothing)).await {
                Told::Answer(_, first) if first != STATUS_400 && first != STATUS_200 => {}
                told => break told,
            }
        };
        let is_right = match (expected, told) {
            (Nothing, told) => told == Told::Nothing,
            (Connection(codes), Told::Connection(code)) => codes.contains(&code) || code == PROTOCOL_ERROR,
            (Stream(codes), Told::Connection(code) | Told::Stream(1, code)) => {
                codes.contains(&code) || code == PROTOCOL_ERROR
            }
            (Stream(_), Told::Answer(1, STATUS_400)) => true,
            _ => false,
        };
        if !is_right {
            wrong.push(format!("{name}: {told:?} instead of {expected:?}"));
        }
        if let Told::Connection(_) = told {
            let ends = async { while client.next().await.is_some() {} };
            tokio::time::timeout(Duration::from_secs(10), ends)
                .await
                .unwrap_or_else(|_| panic!("{name}: it stays open"));
        }
        // The head of a body that is wrong may have gone on.
        assert!(
            service.requests() == 0 || name.starts_with("data that is all padding"),
            "{name}: it reached the upstream"
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The same client with nothing wrong is answered.
    let before = service.requests();
    let mut client = Client::open(&proxy).await;
    client.send(&request(WHOLE)).await;
    assert_eq!(client.told(false).await, Told::Answer(1, STATUS_200));
    assert_eq!(service.requests(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_does_not_begin_as_it_should_is_none() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    // A preface that is not one is HTTP/1, and no good one.
    for bytes in [&b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"[..], b"PRI * HTTP/2.0\r\nHost: a\r\n\r\n"] {
        let answer = raw(proxy.address, bytes).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert_eq!(service.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_what_was_said_ends_its_stream_and_is_not_whole_for_the_upstream() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let auth = proxy.bearer("storefront");
    let auth = auth.split_once(": ").unwrap().1;
    let post = |length: &str| {
        let fields: Vec<(&str, &str)> = good(auth)
            .into_iter()
            .map(|(n, v)| if n == ":method" { (n, "POST") } else { (n, v) })
            .chain([("content-length", length)])
            .collect();
        frame(HEADERS, END_HEADERS, 1, &block(&fields))
    };
    let trailers = |fields: &[(&str, &str)], flags: u8| frame(HEADERS, flags, 1, &block(fields));
    for (name, bytes) in [
        ("less than its length", [post("5"), frame(DATA, END_STREAM, 1, b"abc")].concat()),
        ("more than its length", [post("2"), frame(DATA, END_STREAM, 1, b"abc")].concat()),
        ("more, bit by bit", [post("2"), frame(DATA, 0, 1, b"ab"), frame(DATA, 0, 1, b"c")].concat()),
        ("less, and trailers", [post("5"), frame(DATA, 0, 1, b"abc"), trailers(&[("x-sum", "1")], WHOLE)].concat()),
        (
            "trailers that do not end it",
            [post("3"), frame(DATA, 0, 1, b"abc"), trailers(&[("x-sum", "1")], END_HEADERS)].concat(),
        ),
    ] {
        let mut client = Client::open(&proxy).await;
        client.send(&bytes).await;
        let told = client.told(false).await;
        // Nothing is made of it: the upstream answers whole requests only, and here it would with 200.
        let is_right = match told {
            Told::Stream(1, code) | Told::Connection(code) => code == PROTOCOL_ERROR,
            Told::Answer(1, first) => first != STATUS_200,
            _ => false,
        };
        assert!(is_right, "{name}: {told:?}");
    }
    // The library does not tell of pseudo-headers in trailers, and passes none on.
    let mut client = Client::open(&proxy).await;
    client
        .send(&[post("3"), frame(DATA, 0, 1, b"abc"), trailers(&[(":path", "/x"), ("x-sum", "1")], WHOLE)].concat())
        .await;
    let mut answer = Vec::new();
    while let Some((kind, flags, _, payload)) = client.next().await {
        answer.extend_from_slice(if kind == DATA { &payload } else { &[] });
        if flags & END_STREAM != 0 && (kind == DATA || kind == HEADERS) {
            break;
        }
    }
    let seen: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
    assert_eq!(seen["path"], "/app/echo", "{seen}");
    assert!(!seen["trailers"].to_string().contains(":path"), "{seen}");
    assert_eq!(ask(&proxy, "GET /app/echo", &[], "").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_streams_than_allowed_are_refused_one_by_one() {
    let service = Service::start().await;
    let mut config = config(upstream(&[service.address], Protocol::Http1));
    config.limits.max_concurrent_streams = 2;
    let proxy = Proxy::open(config).await;
    let auth = proxy.bearer("storefront");
    let auth = auth.split_once(": ").unwrap().1;
    let mut client = Client::open(&proxy).await;
    // That it has been told how many is what an acknowledgement says, which comes with the preface here.
    let mut slow = good(auth);
    slow[3].1 = "/app/slow?ms=2000";
    let all: Vec<u8> = [1, 3, 5].into_iter().flat_map(|stream| frame(HEADERS, WHOLE, stream, &block(&slow))).collect();
    client.send(&all).await;
    assert_eq!(client.told(false).await, Told::Stream(5, REFUSED_STREAM));
    let mut answers = [client.told(false).await, client.told(false).await];
    answers.sort_by_key(|told| format!("{told:?}"));
    assert_eq!(answers, [Told::Answer(1, STATUS_200), Told::Answer(3, STATUS_200)]);
    assert_eq!(service.requests(), 2);
}

/// Sends pieces until the other end has had enough; how many bytes that were, and what it was told.
async fn flood(client: &mut Client, most: usize, piece: impl Fn(usize) -> Vec<u8>) -> (usize, Told) {
    let mut sent = 0;
    for n in 0.. {
        let piece = piece(n);
        match tokio::time::timeout(Duration::from_secs(10), client.stream.write_all(&piece)).await {
            Ok(Ok(())) => sent += piece.len(),
            _ => break,
        }
        if sent > most {
            break;
        }
    }
    loop {
        match client.told(false).await {
            Told::Stream(..) => {}
            told => return (sent, told),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_go_on_without_end_is_ended() {
    let service = Service::start().await;
    let proxy = Proxy::before(&service).await;
    let auth = proxy.bearer("storefront");
    let auth = auth.split_once(": ").unwrap().1;
    let block = head(auth, "", &[]);

    // Rapid reset (CVE-2023-44487): each stream makes work and is gone before it is answered.
    let mut client = Client::open(&proxy).await;
    let (sent, told) = flood(&mut client, 20 << 20, |n| {
        let stream = u32::try_from(2 * n + 1).unwrap();
        [frame(HEADERS, WHOLE, stream, &block), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    })
    .await;
    assert!(
        matches!(told, Told::Connection(ENHANCE_YOUR_CALM) | Told::Closed),
        "rapid reset: {told:?} after {sent} bytes"
    );
    let pairs = sent / (block.len() + 22);
    println!("rapid reset: {told:?} after {pairs} streams, {} of which reached the upstream", service.requests());

    // The same, by what makes the server reset them (CVE-2025-8671): it is counted too.
    let mut client = Client::open(&proxy).await;
    let bad = head(auth, "", &[("content-length", "3")]);
    let (sent, told) =
        flood(&mut client, 20 << 20, |n| frame(HEADERS, WHOLE, u32::try_from(2 * n + 1).unwrap(), &bad)).await;
    assert!(matches!(told, Told::Connection(_) | Told::Closed), "made to reset: {told:?} after {sent} bytes");
    println!("made to reset: {told:?} after {} streams at the most", sent / (bad.len() + 9));

    // A head without an end.
    let mut client = Client::open(&proxy).await;
    client.send(&frame(HEADERS, 0, 1, &block)).await;
    let filler: Vec<u8> = std::iter::repeat_with(|| field("x-filler", &"a".repeat(1000))).take(16).flatten().collect();
    let (sent, told) = flood(&mut client, 64 << 20, |_| frame(CONTINUATION, 0, 1, &filler)).await;
    assert!(matches!(told, Told::Connection(_) | Told::Closed), "a head without an end: {told:?} after {sent} bytes");
    assert!(sent < 16 << 20, "a head without an end: {sent} bytes were taken");
    println!("a head without an end: {told:?} after {sent} bytes");

    // The same without a byte in it.
    let mut client = Client::open(&proxy).await;
    client.send(&frame(HEADERS, 0, 1, &block)).await;
    let (sent, told) = flood(&mut client, 16 << 20, |_| frame(CONTINUATION, 0, 1, &[]).repeat(100)).await;
    assert!(matches!(told, Told::Connection(_) | Told::Closed), "empty continuations: {told:?} after {sent} bytes");
    println!("empty continuations: {told:?} after {sent} bytes");

    // A small head that unpacks to 60 MB: a field of 3,900 bytes in the table, named 16,000 times.
    let mut client = Client::open(&proxy).await;
    let value = "b".repeat(3900);
    let mut bomb = [&block[..], &[0x40, 1, b'x'], &integer(value.len()), value.as_bytes()].concat();
    bomb.extend(std::iter::repeat_n(0x80 | 62, 12_000));
    client.send(&frame(HEADERS, WHOLE, 1, &bomb[..16_000.min(bomb.len())])).await;
    let told = client.told(false).await;
    assert!(!matches!(told, Told::Answer(_, STATUS_200) | Told::Nothing), "a head that unpacks: {told:?}");
    println!("a head that unpacks: {told:?}");

    let reached = service.requests();
    assert_eq!(ask(&proxy, "GET /app/echo", &[], "").await.0, 200, "it goes on");
    assert_eq!(service.requests(), reached + 1);
}
