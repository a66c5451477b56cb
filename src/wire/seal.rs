//! Sealing: a body becomes a payload of one epoch and scope, and the payload a signed frame.
//!
//! Pure. INVARIANT: epoch and scope are inside what is signed, so that no frame can be moved to another store or sidecar.
//! Seals whatever it is given; what may be sent to whom is the caller's to know.

use bytes::Bytes;
use prost::Message;

use super::proto::{Payload, ServerFrame, payload::Body};
use super::{Epoch, ScopeId, SigningKey};

/// A frame around `body`, signed with `key`, for the sidecars of `scope`.
pub fn seal(key: &SigningKey, epoch: Epoch, scope: &ScopeId, body: Body) -> ServerFrame {
    let payload = Payload { epoch: epoch.to_string(), scope: scope.as_str().to_owned(), body: Some(body) };
    let payload = Bytes::from(payload.encode_to_vec());
    let signature = Bytes::from(key.sign(&payload));
    ServerFrame { payload, signature }
}
