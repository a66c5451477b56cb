//! [`Decision`] → `CheckResponse`, written as bytes, length prefix of gRPC included.
//!
//! Pure; hot path. INVARIANTS: an allow is written only with a [`Permit`] in hand. A denial is always a
//! `denied_response` with a non-zero status, for `system.*` too: a gRPC error or an `error_response` would open the
//! gate under `failure_mode_allow`. Every identity header is either overwritten or removed from the client's request,
//! in every alias that is found. Envoy removes after it sets, so a header that is set is never listed for removal.

use std::io::Write;

use bytes::Bytes;
use uuid::fmt::Hyphenated;

use super::wire::{put_bytes, put_message, put_varint};
use crate::authz::{CREDENTIAL_HEADERS, Decision, GrpcStatus, Permit, Request, is_credential_header, problem};
use crate::door::answer::{grpc_code, is_grpc_type, statuses};
use crate::door::{DECISION_ID, IDENTITY, NOT_FOR_UPSTREAM, identity, is_alias};

/// `envoy.config.core.v3.HeaderValueOption.HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD`
const OVERWRITE: u64 = 2;
/// gRPC's prefix: not compressed, four bytes of length.
const PREFIX_LEN: usize = 5;
/// Most responses fit, so that the buffer is allocated once.
const USUAL_LEN: usize = 1024;

/// A length-prefixed `CheckResponse`. `request` is absent when it could not be read.
pub(super) fn encode(decision: &Decision, request: Option<&Request<'_>>, grant_request_url: Option<&str>) -> Bytes {
    framed(|out| {
        match (decision.permit(), request) {
            (Some(permit), Some(request)) => allow(permit, decision, request, out),
            _ => deny(decision, request, grant_request_url, out),
        }
        metadata(decision, out);
    })
}

/// A message with the length prefix of gRPC.
#[inline]
fn framed(write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = Vec::with_capacity(USUAL_LEN);
    out.extend_from_slice(&[0; PREFIX_LEN]);
    write(&mut out);
    let len = u32::try_from(out.len() - PREFIX_LEN).unwrap_or(u32::MAX).to_be_bytes();
    if let Some(prefix) = out.get_mut(1..PREFIX_LEN) {
        prefix.copy_from_slice(&len);
    }
    out.into()
}

fn allow(_permit: Permit, decision: &Decision, request: &Request<'_>, out: &mut Vec<u8>) {
    let mut id = [0; Hyphenated::LENGTH];
    let id: &str = decision.id.0.hyphenated().encode_lower(&mut id);
    // status: OK, which is 0 and so not written
    put_message(out, 1, |_status| {});
    put_message(out, 3, |ok| {
        identity(decision, id, |name, value| match value {
            Some(value) => header(ok, 2, name, value),
            None => put_bytes(ok, 5, name.as_bytes()),
        });
        for name in NOT_FOR_UPSTREAM {
            put_bytes(ok, 5, name.as_bytes());
        }
        if decision.removes_token {
            remove_credential(ok, request);
        }
        for sent in &request.headers {
            if is_alias(sent.name)
                && !IDENTITY.iter().chain(&NOT_FOR_UPSTREAM).any(|n| n.as_bytes().eq_ignore_ascii_case(sent.name))
            {
                put_bytes(ok, 5, sent.name);
            }
        }
        header(ok, 6, DECISION_ID, id);
        if let Some(nonce) = &decision.dpop_nonce {
            header(ok, 6, "dpop-nonce", nonce);
        }
    });
}

/// The headers that the credential came in, and what could pass for them.
fn remove_credential(ok: &mut Vec<u8>, request: &Request<'_>) {
    for name in CREDENTIAL_HEADERS {
        put_bytes(ok, 5, name.as_bytes());
    }
    for sent in &request.headers {
        if is_credential_header(sent.name)
            && !CREDENTIAL_HEADERS.iter().any(|n| n.as_bytes().eq_ignore_ascii_case(sent.name))
        {
            put_bytes(ok, 5, sent.name);
        }
    }
}

/// An answer that is not about the request but about the server that it asks after: its metadata. To Envoy it is a denial
/// like any other, with a status that happens to be 200: nothing is forwarded.
pub(super) fn encode_document(decision: &Decision, document: &[u8]) -> Bytes {
    framed(|out| {
        put_message(out, 1, |status| put_varint(status, 1, GrpcStatus::PermissionDenied as u64));
        put_message(out, 2, |denied| {
            put_message(denied, 1, |status| put_varint(status, 1, 200));
            for (name, value) in [("content-type", "application/json"), ("cache-control", "max-age=60")] {
                header(denied, 2, name, value);
            }
            put_bytes(denied, 3, document);
        });
        metadata(decision, out);
    })
}

fn deny(decision: &Decision, request: Option<&Request<'_>>, grant_request_url: Option<&str>, out: &mut Vec<u8>) {
    let (grpc, http) = statuses(decision);
    put_message(out, 1, |status| put_varint(status, 1, grpc as u64));
    put_message(out, 2, |denied| {
        put_message(denied, 1, |status| put_varint(status, 1, u64::from(http)));
        for (name, value) in problem::headers(decision) {
            header(denied, 2, name, &value);
        }
        // Envoy would derive it from the HTTP status, and makes INTERNAL of 400.
        if request.is_some_and(is_grpc) {
            header(denied, 2, "grpc-status", grpc_code(grpc));
        }
        put_bytes(denied, 3, &problem::body(decision, grant_request_url));
    });
}

/// Envoy's dynamic metadata, under `envoy.filters.http.ext_authz`.
fn metadata(decision: &Decision, out: &mut Vec<u8>) {
    put_message(out, 4, |fields| {
        let mut id = [0; Hyphenated::LENGTH];
        text_field(fields, "decision_id", decision.id.0.hyphenated().encode_lower(&mut id));
        text_field(fields, "reason", decision.reason.code());
        if let Some(workload) = &decision.workload {
            text_field(fields, "workload", workload);
        }
        if let Some(call) = &decision.mcp {
            for (name, value) in call.fields() {
                text_field(fields, name, value);
            }
        }
        if let Some(grant) = decision.grant {
            let mut id = [0; Hyphenated::LENGTH];
            text_field(fields, "grant_id", grant.0.hyphenated().encode_lower(&mut id));
        }
        if let Some(position) = decision.position {
            // A string is framed as a message is. Writing to a `Vec` does not fail.
            field(fields, "revision", |value| {
                put_message(value, 3, |text| drop(write!(text, "{position}")));
            });
        }
        field(fields, "cached", |value| put_varint(value, 4, u64::from(decision.cached)));
    });
}

/// An entry of `Struct.fields`.
fn field(out: &mut Vec<u8>, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
    put_message(out, 1, |entry| {
        put_bytes(entry, 1, name.as_bytes());
        put_message(entry, 2, write);
    });
}

fn text_field(out: &mut Vec<u8>, name: &str, value: &str) {
    field(out, name, |out| put_bytes(out, 3, value.as_bytes()));
}

/// A `HeaderValueOption` that replaces whatever is there, in its present and its deprecated form.
fn header(out: &mut Vec<u8>, number: u32, name: &str, value: &str) {
    put_message(out, number, |option| {
        put_message(option, 1, |header| {
            put_bytes(header, 1, name.as_bytes());
            put_bytes(header, 2, value.as_bytes());
        });
        put_message(option, 2, |_append_false| {});
        put_varint(option, 3, OVERWRITE);
    });
}

fn is_grpc(request: &Request<'_>) -> bool {
    request.headers.iter().any(|h| h.name.eq_ignore_ascii_case(b"content-type") && is_grpc_type(h.value))
}

#[cfg(test)]
mod tests;
