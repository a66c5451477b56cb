//! The headers that speak for the caller to the upstream, and every name that could pass for one of them.
//!
//! Pure; hot path. INVARIANT: each of them is either set or removed, in every spelling that some server takes for it: any
//! case, `_` for `-`. What is ours but not for the upstream is removed.

use std::borrow::Cow;

use uuid::fmt::Hyphenated;

use crate::authz::Decision;

/// Headers that speak for the caller to the upstream.
pub(crate) const IDENTITY: [&str; 5] =
    ["x-portcullis-workload", "x-portcullis-subject", "x-portcullis-actor", "x-portcullis-grant", DECISION_ID];
/// Ours as well, but never for the upstream.
pub(crate) const NOT_FOR_UPSTREAM: [&str; 2] = ["x-portcullis-reason", "x-portcullis-min-revision"];
/// The decision's id.
pub(crate) const DECISION_ID: &str = "x-portcullis-decision-id";
/// What all of them begin with.
const PREFIX: &[u8] = b"x-portcullis-";

/// Tells each identity header's value for the upstream: `None` if it is to be removed. `id` is the decision's id as text.
#[inline]
pub(crate) fn identity(decision: &Decision, id: &str, mut each: impl FnMut(&'static str, Option<&str>)) {
    let mut grant = [0; Hyphenated::LENGTH];
    let grant = decision.grant.map(|g| &*g.0.hyphenated().encode_lower(&mut grant));
    let [workload_name, subject_name, actor_name, grant_name, id_name] = IDENTITY;
    // A SPIFFE ID can stand in a header as it is; what another issuer names its subjects need not be able to.
    let subject = decision.subject.as_deref().map(header_text);
    each(workload_name, decision.workload.as_deref());
    each(subject_name, subject.as_deref());
    each(actor_name, decision.actor.as_deref());
    each(grant_name, grant);
    each(id_name, Some(id));
}

/// Whether a server that takes `_` for `-` and any case could take this for one of our headers.
#[inline]
pub(crate) fn is_alias(name: &[u8]) -> bool {
    name.len() > PREFIX.len()
        && name
            .iter()
            .zip(PREFIX)
            .all(|(sent, ours)| sent.to_ascii_lowercase() == *ours || (*sent == b'_' && *ours == b'-'))
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
