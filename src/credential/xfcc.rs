//! `x-forwarded-client-cert`: what a proxy says about the certificate of its own client (Envoy's grammar).
//!
//! Pure. A list of elements, one a hop, of which only the last is the direct peer's word: `key=value` pairs between `;`,
//! elements between `,`, values plain or in double quotes with backslash escapes. Whether the peer may forward is for
//! the caller. INVARIANT: what an earlier hop wrote cannot change how the last element reads: it is refused with the
//! whole header, or it ends before it. Everything is held to the grammar, what does not fit refuses the header.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::rejection::{CredentialReason, Rejection};

/// The longest header that is looked at, in bytes: certificate and chain of a few hops.
pub const MAX_XFCC: usize = 64 * 1024;
/// How many different keys an element may have; Envoy writes seven.
const MAX_KEYS: usize = 32;

/// What counts of one element.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForwardedCertificate<'a> {
    /// `Cert`: URL-encoded PEM.
    pub cert: Option<Cow<'a, str>>,
    /// `Hash`: SHA-256 of the certificate's DER, in hex.
    pub hash: Option<Cow<'a, str>>,
    /// `URI`: the URI name of the certificate.
    pub uri: Option<Cow<'a, str>>,
}

/// Reads the header and gives its last element.
pub fn last_forwarded_certificate(value: &[u8]) -> Result<ForwardedCertificate<'_>, Rejection> {
    if value.len() > MAX_XFCC {
        return Err(malformed("`x-forwarded-client-cert` is longer than 64 KiB"));
    }
    let text = std::str::from_utf8(value).map_err(|_not_utf8| malformed("`x-forwarded-client-cert` is not text"))?;
    let mut reader = Reader(text);
    loop {
        let element = reader.element()?;
        if !reader.skip(',') {
            return Ok(element);
        }
    }
}

const fn malformed(detail: &'static str) -> Rejection {
    CredentialReason::Malformed.because(detail)
}

/// What is left to read.
struct Reader<'a>(&'a str);

// === impl Reader ===

impl<'a> Reader<'a> {
    /// One element, up to the comma after it or the end.
    fn element(&mut self) -> Result<ForwardedCertificate<'a>, Rejection> {
        let mut element = ForwardedCertificate::default();
        let mut seen: SmallVec<[&str; 8]> = SmallVec::new();
        loop {
            self.skip_blanks();
            let key = self.key()?;
            let value = self.value()?;
            // One certificate can have several DNS names, and Envoy writes one pair for each.
            if !key.eq_ignore_ascii_case("dns") {
                if seen.iter().any(|other| other.eq_ignore_ascii_case(key)) {
                    return Err(malformed("an element of `x-forwarded-client-cert` has a key twice"));
                }
                if seen.len() >= MAX_KEYS {
                    return Err(malformed("an element of `x-forwarded-client-cert` has too many keys"));
                }
                seen.push(key);
            }
            let slot = match () {
                () if key.eq_ignore_ascii_case("cert") => Some(&mut element.cert),
                () if key.eq_ignore_ascii_case("hash") => Some(&mut element.hash),
                () if key.eq_ignore_ascii_case("uri") => Some(&mut element.uri),
                () => None,
            };
            if let Some(slot) = slot {
                *slot = Some(value);
            }
            self.skip_blanks();
            if !self.skip(';') {
                break;
            }
        }
        match self.0.is_empty() || self.0.starts_with(',') {
            true => Ok(element),
            false => Err(malformed("`x-forwarded-client-cert` goes on after the end of a value")),
        }
    }

    fn key(&mut self) -> Result<&'a str, Rejection> {
        let (key, rest) =
            self.0.split_once('=').ok_or(malformed("`x-forwarded-client-cert` has a pair without `=`"))?;
        if key.is_empty() || key.len() > 32 || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(malformed("`x-forwarded-client-cert` has a key that is not a word"));
        }
        self.0 = rest;
        Ok(key)
    }

    fn value(&mut self) -> Result<Cow<'a, str>, Rejection> {
        if self.skip('"') {
            return self.quoted();
        }
        let end = self.0.find([',', ';']).unwrap_or(self.0.len());
        let (value, rest) = self.0.split_at_checked(end).unwrap_or((self.0, ""));
        if value.contains(['"', '\\']) {
            return Err(malformed("`x-forwarded-client-cert` has a quote or an escape in a plain value"));
        }
        self.0 = rest;
        Ok(Cow::Borrowed(value.trim_end_matches([' ', '\t'])))
    }

    /// The rest of a quoted value. A backslash takes the next character with it, whatever it is: names of RFC 4514, which
    /// Envoy quotes as they are, escape backslashes too.
    fn quoted(&mut self) -> Result<Cow<'a, str>, Rejection> {
        let mut unescaped: Option<String> = None;
        loop {
            let end =
                self.0.find(['"', '\\']).ok_or(malformed("`x-forwarded-client-cert` has a quote that does not end"))?;
            let (plain, rest) = self.0.split_at_checked(end).unwrap_or((self.0, ""));
            let mut after = rest.chars();
            let special = after.next();
            if special == Some('"') {
                self.0 = after.as_str();
                return Ok(match unescaped {
                    None => Cow::Borrowed(plain),
                    Some(text) => Cow::Owned(text + plain),
                });
            }
            let escaped = after.next().ok_or(malformed("`x-forwarded-client-cert` ends in an escape"))?;
            let text = unescaped.get_or_insert_default();
            text.push_str(plain);
            text.push(escaped);
            self.0 = after.as_str();
        }
    }

    fn skip(&mut self, one: char) -> bool {
        self.0.strip_prefix(one).map(|rest| self.0 = rest).is_some()
    }

    fn skip_blanks(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t']);
    }
}

#[cfg(test)]
mod tests;
