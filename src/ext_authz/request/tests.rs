//! Tests of reading checks, with prost and Envoy's own types as the oracle.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue, Metadata};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request as Attributes};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::authz;
use crate::ext_authz::wire::{put_bytes, put_message};

const LIMITS: HeaderLimits = HeaderLimits { count: 256, bytes: 65_536 };

fn check(http: HttpRequest) -> CheckRequest {
    let peer = Peer { principal: "spiffe://td/envoy".to_owned(), certificate: "pem".repeat(100), ..Peer::default() };
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer.clone()),
            destination: Some(peer),
            request: Some(Attributes { time: Some(Default::default()), http: Some(http) }),
            context_extensions: HashMap::from([("a".to_owned(), "b".to_owned())]),
            metadata_context: Some(Metadata::default()),
            ..AttributeContext::default()
        }),
    }
}

fn raw(key: &str, value: &[u8]) -> HeaderValue {
    HeaderValue { key: key.to_owned(), raw_value: value.to_vec(), ..HeaderValue::default() }
}

fn sorted<'a>(headers: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<(&'a str, &'a [u8])> {
    let mut headers: Vec<_> = headers.into_iter().collect();
    headers.sort_unstable();
    headers
}

fn names<'a>(request: &Request<'a>) -> Vec<(&'a str, &'a [u8])> {
    request.headers.iter().map(|h| (std::str::from_utf8(h.name).unwrap(), h.value)).collect()
}

prop_compose! {
    fn http()(
        text in proptest::collection::vec("\\PC{0,20}", 8),
        headers in proptest::collection::hash_map("[:a-zA-Z_-]{0,12}", "\\PC{0,200}", 0..50),
        header_map in proptest::option::of(proptest::collection::vec(("[:a-zA-Z_-]{0,12}", any::<Vec<u8>>(), any::<bool>()), 0..50)),
        size: i64,
        raw_body: Vec<u8>,
    ) -> HttpRequest {
        let header_map = header_map.map(|all| HeaderMap {
            headers: all.into_iter().map(|(key, value, is_text)| if is_text {
                HeaderValue { key, value: String::from_utf8_lossy(&value).into_owned(), ..HeaderValue::default() }
            } else {
                raw(&key, &value)
            }).collect(),
        });
        let mut text = text.into_iter();
        let mut next = || text.next().unwrap();
        HttpRequest {
            id: next(), method: next(), headers, header_map, path: next(), host: next(), scheme: next(),
            query: next(), fragment: String::new(), size, protocol: next(), body: next(), raw_body,
        }
    }
}

proptest! {
    #[test]
    fn any_check_reads_as_prost_reads_it(http in http()) {
        let message = check(http.clone()).encode_to_vec();
        let request = decode(&message, LIMITS).unwrap();
        prop_assert_eq!(request.method, &http.method);
        prop_assert_eq!(request.path, &http.path);
        prop_assert_eq!(request.host, &http.host);
        prop_assert_eq!(request.body.unwrap_or_default(), &http.raw_body);
        match &http.header_map {
            // In order, duplicates included.
            Some(raw) => {
                let expected: Vec<_> = raw.headers.iter().filter(|h| !h.key.starts_with(':')).map(|h| {
                    (h.key.as_str(), if h.raw_value.is_empty() { h.value.as_bytes() } else { &h.raw_value })
                }).collect();
                prop_assert_eq!(names(&request), expected);
            }
            None => {
                let expected = http.headers.iter().filter(|(k, _)| !k.starts_with(':')).map(|(k, v)| (k.as_str(), v.as_bytes()));
                prop_assert_eq!(sorted(names(&request)), sorted(expected));
            }
        }
    }

    /// Bytes that prost takes for a check we may refuse, but never read as another request.
    #[test]
    fn any_bytes_never_read_as_something_else(mut message in http().prop_map(|h| check(h).encode_to_vec()), edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        for (at, byte) in edits {
            let at = at.index(message.len());
            message[at] = byte;
        }
        if let Ok(ours) = decode(&message, LIMITS) {
            // We do not look into what we skip, so prost may refuse more.
            if let Ok(theirs) = CheckRequest::decode(&message[..]) {
                let http = theirs.attributes.unwrap().request.unwrap().http.unwrap();
                prop_assert_eq!(
                    (ours.method, ours.path, ours.host, ours.scheme),
                    (&*http.method, &*http.path, &*http.host, &*http.scheme)
                );
            }
        }
    }

    #[test]
    fn noise_never_panics(message: Vec<u8>) {
        let _ = decode(&message, LIMITS);
    }
}

#[test]
fn raw_headers_are_used_exclusively_and_keep_duplicates() {
    let http = HttpRequest {
        method: "GET".to_owned(),
        path: "/a?b".to_owned(),
        host: "shop".to_owned(),
        headers: HashMap::from([("authorization".to_owned(), "Bearer from-the-map".to_owned())]),
        header_map: Some(HeaderMap {
            headers: vec![
                raw(":path", b"/other"),
                raw("authorization", b"Bearer one"),
                raw("authorization", b"Bearer two"),
                raw("x-bytes", b"\xff\xfe"),
            ],
        }),
        ..HttpRequest::default()
    };
    let message = check(http).encode_to_vec();
    let request = decode(&message, LIMITS).unwrap();
    assert_eq!(
        names(&request),
        [("authorization", &b"Bearer one"[..]), ("authorization", b"Bearer two"), ("x-bytes", b"\xff\xfe")]
    );
    assert_eq!((request.path, request.door), ("/a?b", Door::ExtAuthz));
}

#[test]
fn an_empty_raw_header_map_hides_the_other() {
    let http = HttpRequest {
        headers: HashMap::from([("authorization".to_owned(), "Bearer a".to_owned())]),
        header_map: Some(HeaderMap::default()),
        ..HttpRequest::default()
    };
    assert!(names(&decode(&check(http).encode_to_vec(), LIMITS).unwrap()).is_empty());
}

#[test]
fn partial_body_is_told_in_either_form() {
    for (value, expected) in [("true", true), ("True", true), ("false", false)] {
        let map = HashMap::from([("x-envoy-auth-partial-body".to_owned(), value.to_owned())]);
        let http = HttpRequest { headers: map, ..HttpRequest::default() };
        assert_eq!(decode(&check(http).encode_to_vec(), LIMITS).unwrap().partial_body, expected);
        let headers = vec![raw("x-envoy-auth-partial-body", value.as_bytes())];
        let http = HttpRequest { header_map: Some(HeaderMap { headers }), ..HttpRequest::default() };
        assert_eq!(decode(&check(http).encode_to_vec(), LIMITS).unwrap().partial_body, expected);
    }
}

#[test]
fn the_source_and_not_the_destination_is_the_peer() {
    use envoy_types::pb::envoy::config::core::v3::{Address, Pipe, SocketAddress, address};
    let at = |text: &str| {
        let socket = SocketAddress { address: text.to_owned(), ..SocketAddress::default() };
        Address { address: Some(address::Address::SocketAddress(socket)) }
    };
    let pipe = Address { address: Some(address::Address::Pipe(Pipe { path: "/run/x".to_owned(), mode: 0 })) };
    let cases = [
        (Some(at("10.1.2.3")), Some("10.1.2.3")),
        (Some(at("2001:db8::1")), Some("2001:db8::1")),
        (Some(at("not an address")), None),
        (Some(pipe), None),
        (None, None),
    ];
    for (address, expected) in cases {
        let mut check = check(HttpRequest { scheme: "https".to_owned(), ..HttpRequest::default() });
        let attributes = check.attributes.as_mut().unwrap();
        attributes.source = Some(Peer {
            address,
            principal: "spiffe://td/client".to_owned(),
            certificate: "-----BEGIN".to_owned(),
            ..Peer::default()
        });
        let message = check.encode_to_vec();
        let request = decode(&message, LIMITS).unwrap();
        let expected = authz::Peer {
            principal: Some("spiffe://td/client"),
            certificate: Some("-----BEGIN"),
            address: expected.map(|ip| ip.parse().unwrap()),
        };
        assert_eq!((request.peer, request.scheme), (expected, "https"));
    }
    let mut silent = check(HttpRequest::default());
    silent.attributes.as_mut().unwrap().source = Some(Peer::default());
    assert_eq!(decode(&silent.encode_to_vec(), LIMITS).unwrap().peer, authz::Peer::default());
    let with_source = |times: usize| {
        let mut message = Vec::new();
        put_message(&mut message, 1, |attributes| {
            put_message(attributes, 1, |source| (0..times).for_each(|_| put_bytes(source, 5, b"pem")));
            put_message(attributes, 4, |request| put_message(request, 2, |_| ()));
        });
        message
    };
    assert_eq!(decode(&with_source(1), LIMITS).unwrap().peer.certificate, Some("pem"));
    assert_eq!(decode(&with_source(2), LIMITS).unwrap_err(), Unreadable::Twice);
}

#[test]
fn what_is_not_an_http_check_is_refused() {
    let mut no_http = check(HttpRequest::default());
    no_http.attributes.as_mut().unwrap().request.as_mut().unwrap().http = None;
    let mut no_request = check(HttpRequest::default());
    no_request.attributes.as_mut().unwrap().request = None;
    for message in [CheckRequest::default(), no_request, no_http] {
        assert_eq!(decode(&message.encode_to_vec(), LIMITS).unwrap_err(), Unreadable::NoHttp);
    }
    assert_eq!(decode(b"\xff\xff\xff", LIMITS).unwrap_err(), Unreadable::NotProtobuf(NotProtobuf));
}

/// A message whose `http` holds these fields.
fn with_http(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    put_message(&mut out, 1, |attributes| put_message(attributes, 4, |request| put_message(request, 2, write)));
    out
}

#[test]
fn a_field_that_occurs_twice_is_refused() {
    let twice = |number| {
        with_http(|http| {
            put_bytes(http, number, b"a");
            put_bytes(http, number, b"a");
        })
    };
    for number in [2, 4, 5, 6] {
        assert_eq!(decode(&twice(number), LIMITS).unwrap_err(), Unreadable::Twice, "field {number}");
    }
    let whole = check(HttpRequest::default()).encode_to_vec();
    assert_eq!(decode(&whole.repeat(2), LIMITS).unwrap_err(), Unreadable::Twice);
    let both_values = with_http(|http| {
        put_message(http, 13, |map| {
            put_message(map, 1, |header| {
                put_bytes(header, 1, b"authorization");
                put_bytes(header, 2, b"one");
                put_bytes(header, 3, b"two");
            });
        });
    });
    assert_eq!(decode(&both_values, LIMITS).unwrap_err(), Unreadable::Twice);
}

#[test]
fn text_that_is_not_text_is_refused() {
    for number in [2, 4, 5, 6] {
        let message = with_http(|http| put_bytes(http, number, b"\xff"));
        assert_eq!(decode(&message, LIMITS).unwrap_err(), Unreadable::NotProtobuf(NotProtobuf));
    }
    let name = with_http(|http| put_message(http, 3, |entry| put_bytes(entry, 1, b"\xff")));
    assert_eq!(decode(&name, LIMITS).unwrap_err(), Unreadable::NotProtobuf(NotProtobuf));
}

#[test]
fn headers_beyond_the_limits_are_refused() {
    let with = |count: usize, len: usize| {
        let headers = (0..count).map(|i| raw(&format!("x-{i:03}"), &vec![b'a'; len])).collect();
        check(HttpRequest { header_map: Some(HeaderMap { headers }), ..HttpRequest::default() }).encode_to_vec()
    };
    let limits = HeaderLimits { count: 10, bytes: 1000 };
    assert!(decode(&with(10, 95), limits).is_ok());
    assert_eq!(decode(&with(11, 1), limits).unwrap_err(), Unreadable::Headers);
    assert_eq!(decode(&with(10, 96), limits).unwrap_err(), Unreadable::Headers);
}
