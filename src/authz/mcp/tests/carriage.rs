//! Tests of how a request comes along: bodies that only headers tell of, upgrades, and methods that are overridden.
//!
//! Pure, like the module.

use super::{LEGACY, request, terms};
use crate::authz::Reason;
use crate::authz::mcp::read;

#[test]
fn a_body_that_only_headers_tell_of_is_refused() {
    let terms = terms();
    let version = [("mcp-protocol-version", "2025-06-18")];
    let kind = |method: &str, headers: &[(&str, &str)], body: Option<&[u8]>| {
        read(&request(method, headers, body), &terms).map(|_| ()).map_err(|(reason, _)| reason)
    };
    // Also where the door does not see bodies.
    for method in ["GET", "DELETE"] {
        for body in [None, Some(&b""[..])] {
            for told in [
                ("content-length", "5"),
                ("Content_Length", "5"),
                ("content-length", "x"),
                ("content-length", ""),
                ("transfer-encoding", "chunked"),
                ("Transfer-Encoding", "identity"),
            ] {
                assert_eq!(kind(method, &[version[0], told], body), Err(Reason::InputMalformed), "{method} {told:?}");
            }
            assert!(kind(method, &[version[0], ("content-length", "0")], body).is_ok(), "{method}");
        }
    }
}

#[test]
fn a_request_stays_one_of_its_method_and_of_http() {
    let terms = terms();
    let message = br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let reason = |method: &str, more: (&str, &str)| {
        let body = (method == "POST").then_some(&message[..]);
        let headers = [LEGACY[0], LEGACY[1], more];
        read(&request(method, &headers, body), &terms).map(|_| ()).map_err(|(reason, _)| reason)
    };
    for method in ["GET", "DELETE", "POST"] {
        for bad in [
            ("upgrade", "websocket"),
            ("Upgrade", "h2c"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec_WebSocket-Version", "13"),
            ("X-HTTP-Method-Override", "POST"),
            ("x_http_method_override", "POST"),
            ("x-method-override", "POST"),
            ("x-http-method", "POST"),
        ] {
            assert_eq!(reason(method, bad), Err(Reason::InputMalformed), "{method} {bad:?}");
        }
        for good in [("connection", "keep-alive"), ("x-upgrade", "1"), ("upgrade-insecure-requests", "1")] {
            assert_eq!(reason(method, good), Ok(()), "{method} {good:?}");
        }
    }
}
