//! Frames as they come, from the network or from disk: signature first, then everything else.
//!
//! Plane: sync; no I/O. INVARIANT: not a byte of a payload is looked at before its signature has verified, and a
//! payload for another sidecar's scope is refused although it is genuine. Fails closed: a refused frame does not exist.

use prost::Message;

use crate::wire::proto::{Payload, ServerFrame, payload::Body};
use crate::wire::{Epoch, ParseEpochError, ScopeId, SignatureError, VerifyKey};

/// The largest frame that is taken.
pub(crate) const MAX_FRAME_BYTES: usize = 64 * 1024 * 1024;

/// What frames are checked against.
#[derive(Debug, Clone)]
pub(super) struct Opener {
    pub(super) key: VerifyKey,
    /// The sidecar's own scope. Only the offline loader, which answers nobody, goes without.
    pub(super) scope: Option<ScopeId>,
}

/// The content of a genuine frame.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) epoch: Epoch,
    pub(super) body: Body,
}

/// Why a frame is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame of {0} bytes is larger than allowed")]
    TooLarge(usize),
    #[error("{0}")]
    Signature(#[from] SignatureError),
    #[error("the payload is malformed")]
    Malformed,
    #[error(
        "the payload is for scope `{got}`, this sidecar's is `{own}`: \
         do `scope` here and the enforcement point in the control plane's configuration name the same services?"
    )]
    Scope { got: String, own: String },
    #[error(transparent)]
    Epoch(#[from] ParseEpochError),
}

impl Opener {
    /// Checks a frame and takes it apart.
    pub(super) fn open(&self, frame: &ServerFrame) -> Result<Opened, FrameError> {
        if frame.payload.len() > MAX_FRAME_BYTES {
            return Err(FrameError::TooLarge(frame.payload.len()));
        }
        self.key.verify(&frame.payload, &frame.signature)?;
        let payload = Payload::decode(frame.payload.clone()).map_err(|_undecodable| FrameError::Malformed)?;
        if let Some(own) = &self.scope
            && payload.scope != own.as_str()
        {
            return Err(FrameError::Scope { got: payload.scope, own: own.as_str().to_owned() });
        }
        let epoch = Epoch::parse(&payload.epoch)?;
        Ok(Opened { epoch, body: payload.body.ok_or(FrameError::Malformed)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::credential::SpiffeId;
    use crate::wire::{SigningKey, proto::Bookmark};
    use bytes::Bytes;

    #[test]
    fn signature_then_scope_then_content() {
        let (key, _) = SigningKey::generate().unwrap();
        let id = SpiffeId::parse("spiffe://a/sidecar").unwrap();
        let (own, other) = (ScopeId::new(&id, ["a"]), ScopeId::new(&id, ["b"]));
        let opener = Opener { key: key.verify_key(), scope: Some(own.clone()) };
        let frame = |scope: &ScopeId, body: Option<Body>| {
            let epoch = Epoch::starting(Timestamp::from_secs(1)).to_string();
            let payload = Payload { epoch, scope: scope.as_str().to_owned(), body }.encode_to_vec();
            ServerFrame { signature: key.sign(&payload).into(), payload: payload.into() }
        };
        let body = Some(Body::Bookmark(Bookmark::default()));
        let good = frame(&own, body.clone());
        opener.open(&good).unwrap();
        assert!(matches!(opener.open(&frame(&other, body)).unwrap_err(), FrameError::Scope { .. }));
        assert_eq!(opener.open(&frame(&own, None)).unwrap_err(), FrameError::Malformed);
        for i in 0..good.payload.len() {
            let mut bytes = good.payload.to_vec();
            bytes[i] ^= 1;
            let bad = ServerFrame { payload: Bytes::from(bytes), signature: good.signature.clone() };
            assert_eq!(opener.open(&bad).unwrap_err(), FrameError::Signature(SignatureError::Mismatch));
        }
    }
}
