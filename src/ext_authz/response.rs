//! [`Decision`] → `CheckResponse`, written as bytes, length prefix of gRPC included.
//!
//! Pure; hot path. INVARIANTS: an allow is written only with a [`Permit`] in hand. A denial is always a
//! `denied_response` with a non-zero status, for `system.*` too: a gRPC error or an `error_response` would open the
//! gate under `failure_mode_allow`. Every identity header is either overwritten or removed from the client's request,
//! in every alias that is found. Envoy removes after it sets, so a header that is set is never listed for removal.

use std::borrow::Cow;
use std::io::Write;

use bytes::Bytes;
use uuid::fmt::Hyphenated;

use super::wire::{put_bytes, put_message, put_varint};
use crate::authz::{CREDENTIAL_HEADERS, Decision, GrpcStatus, Permit, Request, is_credential_header, problem};

/// Headers that speak for the caller to the upstream.
const IDENTITY: [&str; 5] = [
    "x-portcullis-workload",
    "x-portcullis-subject",
    "x-portcullis-actor",
    "x-portcullis-grant",
    "x-portcullis-decision-id",
];
/// Ours as well, but never for the upstream.
const NOT_FOR_UPSTREAM: [&str; 2] = ["x-portcullis-reason", "x-portcullis-min-revision"];
/// What all of them begin with.
const PREFIX: &[u8] = b"x-portcullis-";
const DECISION_ID: &str = "x-portcullis-decision-id";

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
    let mut grant = [0; Hyphenated::LENGTH];
    let grant = decision.grant.map(|g| &*g.0.hyphenated().encode_lower(&mut grant));
    let [workload_name, subject_name, actor_name, grant_name, id_name] = IDENTITY;
    // A SPIFFE ID can stand in a header as it is; what another issuer names its subjects need not be able to.
    let subject = decision.subject.as_deref().map(header_text);
    let identity = [
        (workload_name, decision.workload.as_deref()),
        (subject_name, subject.as_deref()),
        (actor_name, decision.actor.as_deref()),
        (grant_name, grant),
        (id_name, Some(id)),
    ];
    // status: OK, which is 0 and so not written
    put_message(out, 1, |_status| {});
    put_message(out, 3, |ok| {
        for (name, value) in identity {
            match value {
                Some(value) => header(ok, 2, name, value),
                None => put_bytes(ok, 5, name.as_bytes()),
            }
        }
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
    // A decision without a permit denies, whatever its reason says; a status of 0 would allow.
    let (grpc, http) = match decision.reason.grpc_status() {
        GrpcStatus::Ok => (GrpcStatus::PermissionDenied, 403),
        status => (status, decision.reason.http_status()),
    };
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

/// A text as a header value: bytes other than visible ASCII, and `%`, are percent-encoded.
fn header_text(text: &str) -> Cow<'_, str> {
    let plain = |b: u8| b.is_ascii_graphic() && b != b'%';
    if text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.bytes().fold(String::with_capacity(text.len() * 3), |mut out, b| {
        if plain(b) {
            out.push(char::from(b));
        } else {
            out.push('%');
            out.extend([b >> 4, b & 15].iter().filter_map(|n| char::from_digit(u32::from(*n), 16)));
        }
        out
    }))
}

/// Whether a server that takes `_` for `-` and any case could take this for one of our headers.
#[inline]
fn is_alias(name: &[u8]) -> bool {
    name.len() > PREFIX.len()
        && name
            .iter()
            .zip(PREFIX)
            .all(|(sent, ours)| sent.to_ascii_lowercase() == *ours || (*sent == b'_' && *ours == b'-'))
}

fn is_grpc(request: &Request<'_>) -> bool {
    request.headers.iter().any(|h| {
        h.name.eq_ignore_ascii_case(b"content-type")
            && h.value
                .strip_prefix(b"application/grpc")
                .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

fn grpc_code(status: GrpcStatus) -> &'static str {
    match status {
        GrpcStatus::Ok => "0",
        GrpcStatus::InvalidArgument => "3",
        GrpcStatus::PermissionDenied => "7",
        GrpcStatus::Unavailable => "14",
        GrpcStatus::Unauthenticated => "16",
    }
}

#[cfg(test)]
mod tests;
