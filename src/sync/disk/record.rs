//! Records: how signed frames lie in a file, and the hash chain through them.
//!
//! Plane: sync; no I/O of its own. A file is a header and records; a record is a length, a frame as it came, and
//! SHA-256(chain so far, frame). A snapshot's chain starts from its header, a journal's from the end of its snapshot's,
//! so neither a record nor a whole journal can be moved, left out or put in twice unnoticed.

use std::io::{self, Read};

use aws_lc_rs::digest::{Context, SHA256};
use prost::Message;

use crate::sync::frame::MAX_FRAME_BYTES;
use crate::wire::proto::ServerFrame;

/// First bytes of a snapshot file. The number at its end changes with the form of what is in it.
pub(super) const SNAPSHOT_MAGIC: &[u8; 16] = b"portcullis-snap2";
/// First bytes of a journal file; the chain it continues follows.
pub(super) const JOURNAL_MAGIC: &[u8; 16] = b"portcullis-jour2";

/// The length of most records of a snapshot, at most.
const USUAL: usize = 1 << 20;

/// A place in a hash chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain(pub(super) [u8; 32]);

/// What a reader came upon.
#[derive(Debug)]
pub(super) enum Next {
    /// A whole record that continues the chain.
    Frame(Box<ServerFrame>),
    /// The end of the file, right after a record.
    End,
    /// Not a whole record that continues the chain: torn or damaged.
    Broken(&'static str),
}

/// Reads records one by one.
pub(super) struct Reader<R> {
    from: R,
    chain: Chain,
    offset: u64,
}

impl Chain {
    /// The start of a snapshot's chain.
    pub(super) fn start() -> Self {
        Self(hash(&[SNAPSHOT_MAGIC]))
    }

    /// The chain after one more frame.
    fn after(self, frame: &[u8]) -> Self {
        Self(hash(&[&self.0, frame]))
    }
}

/// Encodes `frame` as the record after `chain`; returns it with the chain after it.
pub(super) fn encode(chain: Chain, frame: &ServerFrame) -> (Vec<u8>, Chain) {
    let len = frame.encoded_len();
    let mut record = Vec::with_capacity(4 + len + 32);
    record.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    record.extend_from_slice(&frame.encode_to_vec());
    let next = chain.after(record.get(4..).unwrap_or_default());
    record.extend_from_slice(&next.0);
    (record, next)
}

impl<R: Read> Reader<R> {
    /// Reads on after `offset` bytes of header.
    pub(super) const fn new(from: R, chain: Chain, offset: u64) -> Self {
        Self { from, chain, offset }
    }

    /// The chain so far.
    pub(super) const fn chain(&self) -> Chain {
        self.chain
    }

    /// Where the last whole record ended.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// The next record.
    pub(super) fn next(&mut self) -> io::Result<Next> {
        let mut len = [0; 4];
        match fill(&mut self.from, &mut len)? {
            0 => return Ok(Next::End),
            4 => {}
            _ => return Ok(Next::Broken("a record is cut off")),
        }
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_FRAME_BYTES + 1024 {
            return Ok(Next::Broken("a record has an impossible length"));
        }
        // Grows with what is there, not with what the length claims, past what records usually have.
        let mut bytes = Vec::with_capacity((len + 32).min(USUAL));
        self.from.by_ref().take(len as u64 + 32).read_to_end(&mut bytes)?;
        let Some((frame, chain)) = bytes.split_at_checked(len).filter(|(_, chain)| chain.len() == 32) else {
            return Ok(Next::Broken("a record is cut off"));
        };
        let next = self.chain.after(frame);
        if next.0 != *chain {
            return Ok(Next::Broken("a record does not continue the hash chain"));
        }
        bytes.truncate(len);
        let Ok(frame) = ServerFrame::decode(bytes::Bytes::from(bytes)) else {
            return Ok(Next::Broken("a record is not a frame"));
        };
        self.chain = next;
        self.offset += len as u64 + 36;
        Ok(Next::Frame(Box::new(frame)))
    }
}

/// Reads until `buffer` is full or the file ends; returns how much there was.
pub(super) fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut at = 0;
    while let Some(rest) = buffer.get_mut(at..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(at)
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}
