//! Follows the bytes of an HTTP/1 client, stricter than the HTTP library that reads them afterwards.
//!
//! Pure. Heads are looked at line by line, bodies are skipped by their length. INVARIANT: what two servers could read
//! differently never gets past: a line that does not end in CRLF, a bare CR, obsolete folding, white space before a colon,
//! more than one `Content-Length`, `Content-Length` beside `Transfer-Encoding`, any coding but a single `chunked`, more or
//! fewer than one `Host`. A refusal is final: where the next request begins is then unknown.

/// Follows one connection, from its first byte.
#[derive(Debug)]
pub(super) struct Follower {
    place: Place,
    /// A line that has begun and not ended.
    partial: Vec<u8>,
    head: Head,
    /// Bytes of the head, or of the trailers, so far.
    length: usize,
    max_length: usize,
    max_lines: usize,
}

/// Where in the stream it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a request line. Whether an empty line has been skipped.
    Start {
        skipped: bool,
    },
    Fields,
    /// In a body with so many bytes left.
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
}

/// What a head has said about what follows it.
#[derive(Debug, Clone, Copy, Default)]
struct Head {
    lines: usize,
    is_http11: bool,
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    connection_upgrade: bool,
}

/// Why a client is not listened to any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("a line does not end in CRLF")]
    LineEnd,
    #[error("a line has a control character")]
    Control,
    #[error("the request line is malformed")]
    RequestLine,
    #[error("a header line is folded, or the first one begins with white space")]
    Folded,
    #[error("a header name is malformed, or has white space before its colon")]
    FieldName,
    #[error("a header name could be taken for one that frames the message")]
    Alias,
    #[error("`Content-Length` is not a number, or there is more than one")]
    ContentLength,
    #[error("`Transfer-Encoding` is something else than a single `chunked`")]
    TransferEncoding,
    #[error("`Content-Length` stands beside `Transfer-Encoding`")]
    TwoLengths,
    #[error("there is not exactly one `Host`")]
    Host,
    #[error("a chunk is malformed")]
    Chunk,
    #[error("the head or the trailers are larger than the limit")]
    TooLarge,
}

/// How far a client may be listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// All bytes.
    All,
    /// So many: a head that asks to leave HTTP has ended there, and what follows depends on the answer.
    UpTo(usize),
}

// === impl Follower ===

impl Follower {
    pub(super) fn new(max_length: usize, max_lines: usize) -> Self {
        let (place, head) = (Place::Start { skipped: false }, Head::default());
        Self { place, partial: Vec::new(), head, length: 0, max_length, max_lines }
    }

    /// Whether it is between two requests.
    pub(super) fn is_between(&self) -> bool {
        matches!(self.place, Place::Start { .. }) && self.partial.is_empty()
    }

    /// Whether it is within a head.
    pub(super) fn is_in_head(&self) -> bool {
        matches!(self.place, Place::Start { .. } | Place::Fields) && !self.is_between()
    }

    /// Looks at what has arrived next.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<Seen, Refusal> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.place {
                Place::Body(left) => match skip(&mut rest, left) {
                    0 => self.place = Place::Start { skipped: false },
                    left => self.place = Place::Body(left),
                },
                Place::ChunkData(left) => match skip(&mut rest, left) {
                    0 => self.place = Place::ChunkEnd,
                    left => self.place = Place::ChunkData(left),
                },
                _ => {
                    let Some(line) = self.line(&mut rest)? else { break };
                    if self.take(line.bytes())? {
                        return Ok(Seen::UpTo(bytes.len() - rest.len()));
                    }
                }
            }
        }
        Ok(Seen::All)
    }

    /// The next line without its end, if all of it is there.
    fn line<'a>(&mut self, rest: &mut &'a [u8]) -> Result<Option<Line<'a>>, Refusal> {
        let end = memchr::memchr(b'\n', rest);
        let (line, after) = match end {
            Some(end) => rest.split_at_checked(end + 1).unwrap_or((rest, &[])),
            None => (*rest, &[][..]),
        };
        self.length = self.length.saturating_add(line.len());
        if self.length > self.max_length {
            return Err(Refusal::TooLarge);
        }
        *rest = after;
        let line = match (end, self.partial.is_empty()) {
            (None, _) => {
                self.partial.extend_from_slice(line);
                return Ok(None);
            }
            (Some(_), true) => Line::Here(line),
            (Some(_), false) => {
                self.partial.extend_from_slice(line);
                Line::Joined(std::mem::take(&mut self.partial))
            }
        };
        Ok(Some(line))
    }

    /// Takes a line in, with its end. Whether it is the last of a head that asks to leave HTTP.
    fn take(&mut self, line: &[u8]) -> Result<bool, Refusal> {
        let line = line.strip_suffix(b"\r\n").ok_or(Refusal::LineEnd)?;
        if memchr::memchr(b'\r', line).is_some() {
            return Err(Refusal::LineEnd);
        }
        if has_control(line) {
            return Err(Refusal::Control);
        }
        match self.place {
            // One empty line before a request is what old clients send after a body (RFC 9112, section 2.2).
            Place::Start { skipped: false } if line.is_empty() => self.place = Place::Start { skipped: true },
            Place::Start { .. } => {
                self.head = Head { is_http11: request_line(line)?, ..Head::default() };
                self.place = Place::Fields;
            }
            Place::Fields if line.is_empty() => return self.end_of_head(),
            Place::Fields => {
                self.count()?;
                self.head.field(line)?;
            }
            Place::ChunkSize => {
                self.length = 0;
                self.place = match chunk_size(line)? {
                    0 => Place::Trailers,
                    size => Place::ChunkData(size),
                };
            }
            Place::ChunkEnd if line.is_empty() => self.place = Place::ChunkSize,
            Place::ChunkEnd | Place::Body(_) | Place::ChunkData(_) => return Err(Refusal::Chunk),
            Place::Trailers if line.is_empty() => self.begin(),
            Place::Trailers => {
                self.count()?;
                let (name, _value) = field(line)?;
                if Framing::of(name).is_some() {
                    return Err(Refusal::Alias);
                }
            }
        }
        Ok(false)
    }

    fn count(&mut self) -> Result<(), Refusal> {
        self.head.lines += 1;
        if self.head.lines > self.max_lines { Err(Refusal::TooLarge) } else { Ok(()) }
    }

    fn begin(&mut self) {
        self.length = 0;
        self.place = Place::Start { skipped: false };
    }

    fn end_of_head(&mut self) -> Result<bool, Refusal> {
        let head = self.head;
        if head.hosts > 1 || (head.hosts == 0 && head.is_http11) {
            return Err(Refusal::Host);
        }
        if head.chunked && head.length.is_some() {
            return Err(Refusal::TwoLengths);
        }
        if head.chunked && !head.is_http11 {
            return Err(Refusal::TransferEncoding);
        }
        self.begin();
        self.head.lines = 0;
        match (head.chunked, head.length.unwrap_or(0)) {
            (true, _) => self.place = Place::ChunkSize,
            (false, 0) => return Ok(head.upgrade && head.connection_upgrade),
            (false, length) => self.place = Place::Body(length),
        }
        Ok(false)
    }
}

/// Looks at all bytes, also after one that is found: so the compiler takes many at once.
fn has_control(line: &[u8]) -> bool {
    line.iter().fold(false, |found, b| found | ((*b < b' ') & (*b != b'\t')) | (*b == 0x7f))
}

/// Skips up to `left` bytes; answers how many are left then.
fn skip(rest: &mut &[u8], left: u64) -> u64 {
    let now = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
    *rest = rest.get(now..).unwrap_or_default();
    left.saturating_sub(now as u64)
}

/// A line, in one piece.
enum Line<'a> {
    Here(&'a [u8]),
    Joined(Vec<u8>),
}

impl Line<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Line::Here(line) => line,
            Line::Joined(line) => line,
        }
    }
}

/// `METHOD SP TARGET SP HTTP/1.x`. Whether it is HTTP/1.1.
fn request_line(line: &[u8]) -> Result<bool, Refusal> {
    let mut parts = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::RequestLine);
    };
    // A fragment has no place in a target, and some readers cut it off.
    let is_target = !target.is_empty() && target.iter().all(|b| b.is_ascii_graphic() && *b != b'#');
    if method.is_empty() || !method.iter().all(|b| is_token(*b)) || !is_target || method == b"CONNECT" {
        return Err(Refusal::RequestLine);
    }
    match version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        _ => Err(Refusal::RequestLine),
    }
}

/// A header line: name and value, the latter without white space around it.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Refusal::Folded);
    }
    let colon = line.iter().position(|b| *b == b':').ok_or(Refusal::FieldName)?;
    let (name, value) = line.split_at_checked(colon).ok_or(Refusal::FieldName)?;
    if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
        return Err(Refusal::FieldName);
    }
    Ok((name, value.get(1..).unwrap_or_default().trim_ascii()))
}

fn chunk_size(line: &[u8]) -> Result<u64, Refusal> {
    let (size, extension) = match line.iter().position(|b| *b == b';') {
        Some(at) => line.split_at_checked(at).ok_or(Refusal::Chunk)?,
        None => (line, &[][..]),
    };
    // Sixteen digits would be more than anything has.
    if size.is_empty() || size.len() > 15 || extension.len() > 256 {
        return Err(Refusal::Chunk);
    }
    size.iter().try_fold(0_u64, |sum, digit| {
        let digit = char::from(*digit).to_digit(16).ok_or(Refusal::Chunk)?;
        Ok(sum << 4 | u64::from(digit))
    })
}

const fn is_token(b: u8) -> bool {
    matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-'
        | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// The headers that say where a message ends and whom it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    ContentLength,
    TransferEncoding,
    Host,
    Upgrade,
    Connection,
}

impl Framing {
    /// Most headers are none of these, which their length tells. Also for names with `_` for `-`.
    fn of(name: &[u8]) -> Option<Self> {
        let (canonical, this): (&[u8], _) = match name.len() {
            4 => (b"host", Self::Host),
            7 => (b"upgrade", Self::Upgrade),
            10 => (b"connection", Self::Connection),
            14 => (b"content-length", Self::ContentLength),
            17 => (b"transfer-encoding", Self::TransferEncoding),
            _ => return None,
        };
        let same = |(a, b): (&u8, &u8)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-');
        name.iter().zip(canonical).all(same).then_some(this)
    }
}

// === impl Head ===

impl Head {
    fn field(&mut self, line: &[u8]) -> Result<(), Refusal> {
        let (name, value) = field(line)?;
        let Some(framing) = Framing::of(name) else { return Ok(()) };
        if name.contains(&b'_') {
            return Err(Refusal::Alias);
        }
        match framing {
            Framing::ContentLength => {
                let number = (value.len() <= 18 && !value.is_empty() && value.iter().all(u8::is_ascii_digit))
                    .then(|| value.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0')));
                if self.length.is_some() || number.is_none() {
                    return Err(Refusal::ContentLength);
                }
                self.length = number;
            }
            Framing::TransferEncoding => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::TransferEncoding);
                }
                self.chunked = true;
            }
            Framing::Host => self.hosts += 1,
            Framing::Upgrade => self.upgrade = true,
            Framing::Connection => {
                let mut options = value.split(|b| *b == b',');
                self.connection_upgrade |= options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
