//! SPIFFE IDs, the canonical names of workloads (SPIFFE-ID standard, sections 2.1 to 2.4).
//!
//! Pure. Parsing is strict: what the standard does not allow is refused, never normalised, because two spellings of
//! one identity would be two identities to somebody. Fails closed: an id that does not parse names nobody.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest SPIFFE ID, in bytes (standard, section 2.3).
pub const MAX_SPIFFE_ID: usize = 2048;
/// The longest trust domain name, in bytes (standard, section 2.1).
pub const MAX_TRUST_DOMAIN: usize = 255;

const SCHEME: &str = "spiffe://";

/// `spiffe://trust-domain/path`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain_end: u16,
}

/// Why a text is not a SPIFFE ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// The scheme is missing or not lower-case.
    #[error("a SPIFFE ID starts with `spiffe://`, in lower case")]
    Scheme,
    /// Longer than [`MAX_SPIFFE_ID`].
    #[error("a SPIFFE ID has at most 2048 bytes")]
    TooLong,
    /// Empty, too long, or with a character outside `a-z 0-9 . - _`.
    #[error("a trust domain has 1 to 255 characters of a-z, 0-9, `.`, `-` and `_`")]
    TrustDomain,
    /// Empty segment, dot segment, or a character outside `a-z A-Z 0-9 . - _`.
    #[error("a SPIFFE ID path has non-empty segments of a-z, A-Z, 0-9, `.`, `-` and `_`, none of them `.` or `..`")]
    Path,
    /// A trust domain's own id where a workload's is needed.
    #[error("a workload's SPIFFE ID has a path")]
    NoPath,
}

// === impl SpiffeId ===

impl SpiffeId {
    /// Parses a workload's SPIFFE ID, which has a path.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_SPIFFE_ID {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| match check_trust_domain(rest) {
            Ok(()) => SpiffeIdError::NoPath,
            Err(e) => e,
        })?;
        check_trust_domain(domain)?;
        if path.is_empty() || !path.split('/').all(is_segment) {
            return Err(SpiffeIdError::Path);
        }
        let trust_domain_end =
            u16::try_from(SCHEME.len() + domain.len()).map_err(|_too_big| SpiffeIdError::TrustDomain)?;
        Ok(Self { text: Arc::from(text), trust_domain_end })
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain's name, without the scheme.
    pub fn trust_domain(&self) -> &str {
        self.text.get(SCHEME.len()..usize::from(self.trust_domain_end)).unwrap_or("")
    }

    /// The path, with its leading slash.
    pub fn path(&self) -> &str {
        self.text.get(usize::from(self.trust_domain_end)..).unwrap_or("")
    }
}

/// Checks a trust domain's name.
pub fn check_trust_domain(name: &str) -> Result<(), SpiffeIdError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > MAX_TRUST_DOMAIN || !name.bytes().all(allowed) {
        return Err(SpiffeIdError::TrustDomain);
    }
    Ok(())
}

fn is_segment(s: &str) -> bool {
    !s.is_empty()
        && s != "."
        && s != ".."
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::borrow::Borrow<str> for SpiffeId {
    fn borrow(&self) -> &str {
        &self.text
    }
}

impl std::str::FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::parse(s)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::parse(&text).map_err(|e| de::Error::custom(format!("`{text}`: {e}")))
    }
}

impl schemars::JsonSchema for SpiffeId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SpiffeId".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "The SPIFFE ID of a workload.",
            "type": "string",
            "pattern": "^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_valid_id() {
        let id = SpiffeId::parse("spiffe://prod.example/ns/shop/sa/Storefront_1").unwrap();
        assert_eq!(id.trust_domain(), "prod.example");
        assert_eq!(id.path(), "/ns/shop/sa/Storefront_1");
    }

    #[test]
    fn what_the_standard_does_not_allow_is_refused() {
        let cases: &[(&str, SpiffeIdError)] = &[
            ("SPIFFE://a/b", SpiffeIdError::Scheme),
            ("https://a/b", SpiffeIdError::Scheme),
            ("", SpiffeIdError::Scheme),
            ("spiffe://", SpiffeIdError::TrustDomain),
            ("spiffe:///b", SpiffeIdError::TrustDomain),
            ("spiffe://A/b", SpiffeIdError::TrustDomain),
            ("spiffe://a:80/b", SpiffeIdError::TrustDomain),
            ("spiffe://u@a/b", SpiffeIdError::TrustDomain),
            ("spiffe://a", SpiffeIdError::NoPath),
            ("spiffe://a/", SpiffeIdError::Path),
            ("spiffe://a/b/", SpiffeIdError::Path),
            ("spiffe://a//b", SpiffeIdError::Path),
            ("spiffe://a/./b", SpiffeIdError::Path),
            ("spiffe://a/../b", SpiffeIdError::Path),
            ("spiffe://a/b?q", SpiffeIdError::Path),
            ("spiffe://a/b#f", SpiffeIdError::Path),
            ("spiffe://a/%62", SpiffeIdError::Path),
            ("spiffe://a/é", SpiffeIdError::Path),
        ];
        for (text, expected) in cases {
            assert_eq!(SpiffeId::parse(text).unwrap_err(), *expected, "{text}");
        }
        let long = format!("spiffe://a/{}", "b".repeat(MAX_SPIFFE_ID));
        assert_eq!(SpiffeId::parse(&long).unwrap_err(), SpiffeIdError::TooLong);
    }
}
