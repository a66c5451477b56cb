//! Protobuf on the wire: a reader that borrows and a writer that appends.
//!
//! Pure; hot path. Only what `envoy.service.auth.v3` needs. The reader skips unknown fields, refuses groups, field
//! number 0 and anything cut short, and never allocates; nesting is the caller's, so it is bounded. Tests hold both
//! against prost.

/// Bytes that are not a protobuf message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message is not valid protobuf")]
pub(super) struct NotProtobuf;

/// Walks over the fields of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// An integer, bool or enum.
    Varint(u64),
    /// A string, bytes or message.
    Bytes(&'a [u8]),
    /// Fixed 32 or 64 bits, which nothing here uses.
    Fixed,
}

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(super) const fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    /// The next field's number and value; `None` at the end.
    #[inline]
    pub(super) fn field(&mut self) -> Result<Option<(u32, Value<'a>)>, NotProtobuf> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = u32::try_from(self.varint()?).map_err(|_too_large| NotProtobuf)?;
        let number = tag >> 3;
        if number == 0 {
            return Err(NotProtobuf);
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_too_large| NotProtobuf)?;
                Value::Bytes(self.take(len)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(NotProtobuf),
        };
        Ok(Some((number, value)))
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], NotProtobuf> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(NotProtobuf)?;
        self.0 = rest;
        Ok(taken)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, NotProtobuf> {
        let (&first, rest) = self.0.split_first().ok_or(NotProtobuf)?;
        if first < 0x80 {
            self.0 = rest;
            return Ok(u64::from(first));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, NotProtobuf> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(NotProtobuf)?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(NotProtobuf);
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(NotProtobuf)
    }
}

impl<'a> Value<'a> {
    /// The bytes of a length-delimited field.
    #[inline]
    pub(super) fn bytes(self) -> Result<&'a [u8], NotProtobuf> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) | Self::Fixed => Err(NotProtobuf),
        }
    }

    /// The text of a string field.
    #[inline]
    pub(super) fn text(self) -> Result<&'a str, NotProtobuf> {
        std::str::from_utf8(self.bytes()?).map_err(|_not_text| NotProtobuf)
    }

    /// The bytes of a string field. ASCII, as nearly all of it is, is known for text sooner than other UTF-8.
    #[inline]
    pub(super) fn text_bytes(self) -> Result<&'a [u8], NotProtobuf> {
        let bytes = self.bytes()?;
        if bytes.is_ascii() { Ok(bytes) } else { self.text().map(str::as_bytes) }
    }
}

// === writing ===

/// Appends an integer, bool or enum field.
pub(super) fn put_varint(out: &mut Vec<u8>, number: u32, value: u64) {
    varint(out, u64::from(number << 3));
    varint(out, value);
}

/// Appends a string or bytes field.
#[inline]
pub(super) fn put_bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    varint(out, u64::from(number << 3 | 2));
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Appends a message field whose fields `write` appends.
#[inline]
pub(super) fn put_message(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>)) {
    varint(out, u64::from(number << 3 | 2));
    // Most messages here are shorter than 128 bytes: leave one byte for the length and make room if it takes more.
    let at = out.len();
    out.push(0);
    write(out);
    let len = out.len() - at - 1;
    if let (true, Some(byte)) = (len < 0x80, out.get_mut(at)) {
        *byte = len as u8;
        return;
    }
    let mut digits = [0_u8; 10];
    let mut used = 0;
    let mut rest = len;
    for digit in &mut digits {
        used += 1;
        *digit = (rest & 0x7f) as u8;
        rest >>= 7;
        if rest == 0 {
            break;
        }
        *digit |= 0x80;
    }
    out.splice(at..=at, digits.into_iter().take(used));
}

#[inline]
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::encoding;

    use super::*;

    proptest! {
        #[test]
        fn varints_agree_with_prost(value: u64, rest: Vec<u8>) {
            let mut ours = Vec::new();
            varint(&mut ours, value);
            let mut theirs = Vec::new();
            encoding::encode_varint(value, &mut theirs);
            prop_assert_eq!(&ours, &theirs);
            ours.extend_from_slice(&rest);
            let mut reader = Reader::new(&ours);
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert_eq!(reader.0, &rest[..]);
        }

        #[test]
        fn any_bytes_as_varint_agree_with_prost(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), 0x80_u8..], 0..12)) {
            let theirs = encoding::decode_varint(&mut &bytes[..]).ok();
            prop_assert_eq!(Reader::new(&bytes).varint().ok(), theirs);
        }

        #[test]
        fn messages_of_any_length_are_framed(len in prop_oneof![0..300_usize, 16_000..17_000_usize, Just(3_000_000)], before: u8) {
            let mut out = vec![before];
            put_message(&mut out, 3, |out| out.resize(out.len() + len, 7));
            put_varint(&mut out, 1, 5);
            let mut reader = Reader::new(&out[1..]);
            let (number, value) = reader.field().unwrap().unwrap();
            prop_assert_eq!(number, 3);
            prop_assert!(value.bytes().unwrap().len() == len && value.bytes().unwrap().iter().all(|&b| b == 7));
            prop_assert_eq!(reader.field(), Ok(Some((1, Value::Varint(5)))));
            prop_assert_eq!(reader.field(), Ok(None));
            let mut theirs = vec![before];
            encoding::encode_key(3, encoding::WireType::LengthDelimited, &mut theirs);
            encoding::encode_varint(len as u64, &mut theirs);
            prop_assert_eq!(&out[..theirs.len()], &theirs[..], "lengths are minimal");
        }
    }

    #[test]
    fn what_is_not_protobuf_is_refused() {
        for bytes in [
            &[0x00, 0x01][..],                                                // field 0
            &[0x0b],                                                          // group
            &[0x0a, 0x05, 1, 2],                                              // cut short
            &[0x09, 1, 2, 3],                                                 // fixed64 cut short
            &[0x08],                                                          // no value
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],       // a length beyond everything
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],       // a varint beyond 64 bits
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0], // and one that is too long
        ] {
            assert_eq!(Reader::new(bytes).field(), Err(NotProtobuf), "{bytes:?}");
        }
    }
}
