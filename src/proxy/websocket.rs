//! Where the frames of a WebSocket end (RFC 6455, section 5.2), and the frame that closes it.
//!
//! Pure. So that a close frame can be put between two frames of the upstream and never into one. Reads lengths only; what
//! is in the frames passes unseen.

/// Follows the bytes of one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The beginning of a frame, until its length is known.
    head: Vec<u8>,
    /// Bytes of the frame that are to come.
    left: u64,
}

// === impl Frames ===

impl Frames {
    /// These bytes have been passed on.
    pub(super) fn passed(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let now = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= now as u64;
                bytes = bytes.get(now..).unwrap_or_default();
                continue;
            }
            self.head.push(*first);
            bytes = rest;
            if let Some(length) = length(&self.head) {
                self.left = length;
                self.head.clear();
            }
        }
    }

    /// Whether a frame may begin here.
    pub(super) fn is_between(&self) -> bool {
        self.left == 0 && self.head.is_empty()
    }

    /// How many of `bytes` belong to the frame that has begun.
    pub(super) fn rest_of_frame(&self, bytes: &[u8]) -> usize {
        let mut ahead = Self { head: self.head.clone(), left: self.left };
        bytes
            .iter()
            .position(|byte| {
                ahead.is_between() || {
                    ahead.passed(&[*byte]);
                    false
                }
            })
            .unwrap_or(bytes.len())
    }
}

/// What follows this head, its mask included; `None` while the head is not whole.
fn length(head: &[u8]) -> Option<u64> {
    let second = *head.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let length = match second & 0x7f {
        126 => u64::from(u16::from_be_bytes(*head.get(2..)?.first_chunk()?)),
        127 => u64::from_be_bytes(*head.get(2..)?.first_chunk()?),
        short => u64::from(short),
    };
    Some(length.saturating_add(mask))
}

/// Closes with status 1008, policy violation. From a server: without a mask.
pub(super) fn close(reason: &str) -> Vec<u8> {
    let reason = reason.as_bytes().get(..reason.len().min(123)).unwrap_or_default();
    let mut frame = vec![0x88, u8::try_from(reason.len() + 2).unwrap_or(2), 0x03, 0xf0];
    frame.extend_from_slice(reason);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_frames_are_found_whatever_pieces_they_come_in() {
        let mut stream = Vec::new();
        let mut ends = vec![0];
        for length in [0_usize, 5, 125, 126, 300, 70_000] {
            for masked in [false, true] {
                stream.push(0x82);
                let mask = if masked { 0x80 } else { 0 };
                match length {
                    0..=125 => stream.push(mask | u8::try_from(length).unwrap()),
                    126..=65_535 => {
                        stream.push(mask | 126);
                        stream.extend(u16::try_from(length).unwrap().to_be_bytes());
                    }
                    _ => {
                        stream.push(mask | 127);
                        stream.extend((length as u64).to_be_bytes());
                    }
                }
                stream.extend(std::iter::repeat_n(0x88, length + if masked { 4 } else { 0 }));
                ends.push(stream.len());
            }
        }
        for size in [1, 3, 1000, 1 << 20] {
            let mut frames = Frames::default();
            let mut passed = 0;
            for piece in stream.chunks(size) {
                let rest = frames.rest_of_frame(piece);
                let next_end = *ends.iter().find(|end| **end >= passed).unwrap();
                assert_eq!(rest, piece.len().min(next_end - passed), "at {passed} in pieces of {size}");
                frames.passed(piece);
                passed += piece.len();
                assert_eq!(frames.is_between(), ends.contains(&passed), "at {passed} in pieces of {size}");
            }
            assert!(frames.is_between());
        }
    }

    #[test]
    fn the_close_says_policy_violation() {
        assert_eq!(close("revoked.grant"), [&[0x88, 15, 0x03, 0xf0][..], b"revoked.grant"].concat());
        let mut frames = Frames::default();
        frames.passed(&close(&"x".repeat(500)));
        assert!(frames.is_between());
    }
}
