//! How an MCP request comes along: as what its method says, on a connection that stays HTTP, and without a hidden body.
//!
//! Pure. What a rule is about is one request. INVARIANT: a request that asks to leave HTTP, or to be taken for one of another
//! method, is refused on every MCP route; so is one without a message whose headers say that there is a body, where the
//! door does not see it. What neither door nor headers tell cannot be known here.

use super::super::intake::{Refusal, is_header};
use super::super::request::Request;
use super::malformed;

/// Headers by which servers take a request for one of another method.
const OVERRIDES: [&str; 3] = ["x-http-method-override", "x-method-override", "x-http-method"];
/// What the headers of a WebSocket begin with.
const WEBSOCKET: &str = "sec-websocket-";

/// The request is one of its own method, and stays one of HTTP: what is said after an upgrade nobody decides on.
pub(super) fn is_plain(request: &Request<'_>) -> Result<(), Refusal> {
    for header in &request.headers {
        let name = header.name;
        let leaves = is_header(name, "upgrade")
            || name.get(..WEBSOCKET.len()).is_some_and(|start| is_header(start, WEBSOCKET))
            || (is_header(name, "connection") && names_upgrade(header.value));
        if leaves {
            return malformed("the MCP transport is not upgraded to another protocol");
        }
        if OVERRIDES.iter().any(|other| is_header(name, other)) {
            return malformed("the request is to be taken for one of another method");
        }
    }
    Ok(())
}

/// There is no body: none that the door sees, and none that headers tell of.
pub(super) fn has_no_body(request: &Request<'_>) -> Result<(), Refusal> {
    let is_none = |length: &[u8]| !length.is_empty() && length.iter().all(|digit| *digit == b'0');
    let told = request.headers.iter().any(|header| {
        is_header(header.name, "transfer-encoding")
            || (is_header(header.name, "content-length") && !is_none(header.value.trim_ascii()))
    });
    if told || request.body.is_some_and(|body| !body.is_empty()) {
        return malformed("a request without a message has a body");
    }
    Ok(())
}

fn names_upgrade(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}
