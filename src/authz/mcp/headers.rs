//! What the headers of an MCP request say, and whether the message agrees.
//!
//! Pure. Since 2026-07-28 a client repeats the method and the name of its message in `Mcp-Method` and `Mcp-Name`, for
//! those who do not read bodies. INVARIANT: where such a header is there, in whatever version, it says what the body says;
//! a header that has to be there is. A body in another encoding than plain JSON in UTF-8 is refused unread.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::intake::{Refusal, is_header};
use super::super::reason::Reason;
use super::super::request::Request;
use super::malformed;
use super::message::{Kind, Message};

/// The headers that are looked at, each absent or single.
#[derive(Debug, Default)]
pub(super) struct Headers<'a> {
    version: Option<&'a [u8]>,
    method: Option<&'a [u8]>,
    name: Option<&'a [u8]>,
    session: Option<&'a [u8]>,
    content_type: Option<&'a [u8]>,
    content_encoding: Option<&'a [u8]>,
    content_length: Option<&'a [u8]>,
}

/// The versions of the protocol that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V20250618,
    V20251125,
    V20260728,
}

/// What surrounds the Base64 of a name that cannot stand in a header (2026-07-28, "Value Encoding").
const ENCODED: (&[u8], &[u8]) = (b"=?base64?", b"?=");

// === impl Version ===

impl Version {
    const ALL: [Self; 3] = [Self::V20250618, Self::V20251125, Self::V20260728];

    /// As it is written.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V20250618 => "2025-06-18",
            Self::V20251125 => "2025-11-25",
            Self::V20260728 => "2026-07-28",
        }
    }

    /// Whether there are sessions, streams that a `GET` opens, and requests of the server that clients respond to.
    pub(super) const fn has_sessions(self) -> bool {
        !matches!(self, Self::V20260728)
    }

    /// Whether headers have to repeat the message.
    const fn mirrors(self) -> bool {
        matches!(self, Self::V20260728)
    }
}

// === impl Headers ===

impl<'a> Headers<'a> {
    pub(super) fn of(request: &'a Request<'_>) -> Result<Self, Refusal> {
        let mut headers = Self::default();
        for header in &request.headers {
            let (slot, name) = match header.name.len() {
                8 => (&mut headers.name, "mcp-name"),
                10 => (&mut headers.method, "mcp-method"),
                12 => (&mut headers.content_type, "content-type"),
                14 if is_header(header.name, "mcp-session-id") => (&mut headers.session, "mcp-session-id"),
                14 => (&mut headers.content_length, "content-length"),
                16 => (&mut headers.content_encoding, "content-encoding"),
                20 => (&mut headers.version, "mcp-protocol-version"),
                _ => continue,
            };
            if is_header(header.name, name) && slot.replace(header.value.trim_ascii()).is_some() {
                let detail = "a header of MCP that must be single occurs more than once";
                return Err((Reason::InputDuplicateHeader, detail.into()));
            }
        }
        Ok(headers)
    }

    /// The version, if there is one; an error when it is not known.
    pub(super) fn version(&self) -> Result<Option<Version>, Refusal> {
        let Some(text) = self.version else { return Ok(None) };
        match Version::ALL.into_iter().find(|version| version.name().as_bytes() == text) {
            Some(version) => Ok(Some(version)),
            None => malformed("this version of MCP is not known here"),
        }
    }

    /// The version, which every request has to say but the one that asks for one.
    pub(super) fn known_version(&self) -> Result<Version, Refusal> {
        match self.version()? {
            Some(version) => Ok(version),
            None => malformed("`MCP-Protocol-Version` is missing"),
        }
    }

    /// Whether the body is said to be empty.
    pub(super) fn says_empty(&self) -> bool {
        self.content_length == Some(b"0")
    }

    /// The body is JSON in UTF-8, and nothing is to be done to it before it can be read.
    pub(super) fn is_plain_json(&self) -> Result<(), Refusal> {
        if self.content_encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity")) {
            return malformed("the message is compressed or encoded");
        }
        let Some(text) = self.content_type.and_then(|text| std::str::from_utf8(text).ok()) else {
            return malformed("the message is not said to be `application/json`");
        };
        let mut parts = text.split(';').map(str::trim_ascii);
        let json = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
        let utf8 = parts.all(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            name.eq_ignore_ascii_case("charset") && value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        });
        if json && utf8 { Ok(()) } else { malformed("the message is not said to be `application/json` in UTF-8") }
    }

    /// A request without a message has none of the headers that repeat one.
    pub(super) fn names_nothing(&self) -> Result<(), Refusal> {
        match (self.method, self.name) {
            (None, None) => Ok(()),
            _ => mismatch("`Mcp-Method` or `Mcp-Name` is there, and no message"),
        }
    }

    /// The headers say what the message says.
    pub(super) fn agree_with(
        &self,
        message: &Message<'_>,
        kind: Kind,
        version: Option<Version>,
    ) -> Result<(), Refusal> {
        let mirrors = version.is_some_and(Version::mirrors);
        match (self.method, message.method.as_deref()) {
            (None, Some(_)) if mirrors && kind == Kind::Request => return mismatch("`Mcp-Method` is missing"),
            (None, _) => {}
            (Some(said), Some(method)) if said == method.as_bytes() => {}
            (Some(_), _) => return mismatch("`Mcp-Method` is not the method of the message"),
        }
        match (self.name, message.named()) {
            (None, Some(_)) if mirrors && kind == Kind::Request && message.must_repeat_its_name() => {
                return mismatch("`Mcp-Name` is missing");
            }
            (None, _) => {}
            (Some(said), Some(name)) if decoded(said).is_some_and(|said| *said == *name.as_bytes()) => {}
            (Some(_), _) => return mismatch("`Mcp-Name` is not what the message names"),
        }
        match (version, message.version()) {
            (Some(version), Some(said)) if said == Some(version.name()) => Ok(()),
            (Some(version), None) if !version.mirrors() || kind != Kind::Request => Ok(()),
            (None, None) => Ok(()),
            _ => mismatch("`MCP-Protocol-Version` is not the version in the message"),
        }
    }
}

/// A name as a header has it, decoded; `None` if it cannot be one.
fn decoded(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    match value.strip_prefix(ENCODED.0).and_then(|rest| rest.strip_suffix(ENCODED.1)) {
        Some(encoded) => STANDARD.decode(encoded).ok().map(Cow::Owned),
        None => value.iter().all(|b| matches!(b, b' '..=b'~' | b'\t')).then_some(Cow::Borrowed(value)),
    }
}

fn mismatch(detail: &'static str) -> Result<(), Refusal> {
    Err((Reason::InputHeaderMismatch, detail.into()))
}
