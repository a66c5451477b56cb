//! Ways in for the fuzz targets: what the network or the disk may hand to the client, one function each.
//!
//! Feature `testing`; never part of a release. Each takes any bytes, does what the client would do with them, and tells
//! what came of it, so that a target can assert more than that nothing panics. Nothing here decides or keeps anything.

use bytes::Bytes;
use prost::Message;

use super::apply::{Assembly, Replay};
use super::disk;
use super::frame::Opener;
use crate::authz::{Builder, Snapshot};
use crate::wire::proto::{Payload, ServerFrame, payload::Body};
use crate::wire::{Epoch, Position, VerifyKey};

/// Opens a frame. Tells whether it was genuine.
pub fn frame(bytes: &[u8], key: &VerifyKey) -> bool {
    let opener = Opener { key: key.clone(), scope: None };
    ServerFrame::decode(bytes).is_ok_and(|frame| opener.open(&frame).is_ok())
}

/// Applies payloads, each behind its length, as if they had come in genuine frames. Tells the positions after each.
pub fn payloads(mut bytes: &[u8]) -> Vec<Position> {
    let (mut snapshot, _): (Snapshot, _) = Builder::empty().finish(Position::NONE);
    let mut assembly: Option<Assembly> = None;
    let mut positions = Vec::new();
    while let Ok(payload) = Payload::decode_length_delimited(&mut bytes) {
        let (Ok(epoch), Some(body)) = (Epoch::parse(&payload.epoch), payload.body) else { break };
        let applied = match body {
            Body::Begin(begin) => Assembly::begin(epoch, begin, Some(snapshot.position()), Some(&snapshot))
                .map(|begun| _ = assembly.insert(begun)),
            Body::Chunk(chunk) => assembly.as_mut().map_or(Ok(()), |a| a.chunk(epoch, chunk.into())),
            Body::End(end) => match assembly.take().map(|a| a.end(epoch, &end)) {
                Some(built) => built.map(|built| snapshot = built.snapshot),
                None => Ok(()),
            },
            Body::Delta(delta) => {
                let mut replay = Replay::on(&snapshot);
                replay.delta(epoch, delta.into()).map(|()| snapshot = replay.finish().snapshot)
            }
            Body::Allotment(given) => {
                let purse = crate::grant::purse::Purse::default();
                super::uses::take_in(&purse, &given, crate::clock::Monotonic::from_nanos(0));
                Ok(())
            }
            Body::Bookmark(bookmark) => {
                _ = super::apply::lease(&bookmark, crate::clock::Monotonic::from_nanos(0), None);
                Ok(())
            }
        };
        // A frame that does not fit ends the stream.
        if applied.is_err() {
            break;
        }
        positions.push(snapshot.position());
        if bytes.is_empty() {
            break;
        }
    }
    positions
}

/// Loads a state directory that holds this snapshot file and nothing else. Tells the position of the state.
pub fn state_file(bytes: &[u8], key: &VerifyKey) -> Option<Position> {
    disk::load_one(Bytes::copy_from_slice(bytes), &Opener { key: key.clone(), scope: None })
}
