//! The compact serialisation of a JWS and its header, as far as a token may use it (RFC 7515, section 3.1).
//!
//! Pure. A header member that could carry or point to a key (`jwk`, `jku`, `x5c`, `x5u`), change the processing (`crit`,
//! `b64`, `zip`, `enc`) or the content (`cty`) makes any token malformed; in a JWT-SVID only `alg`, `kid` and `typ` may
//! occur at all (JWT-SVID, section 2), and elsewhere the rest is ignored, as RFC 7515, section 4, has it. Base64url is
//! read without padding, white space or stray bits, so that a token has one spelling.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

use super::json::{Members, Skip, Text};
use super::rejection::{CredentialReason, Rejection};
use crate::object::SigningAlgorithm;

const NOT_A_HEADER: &str = "the header is not a JSON object of distinct members";

/// The parts of a token, still encoded.
#[derive(Clone, Copy)]
pub(super) struct Compact<'a> {
    pub(super) header: &'a str,
    pub(super) claims: &'a str,
    pub(super) signature: &'a str,
    /// What the signature is over: header, dot, claims.
    pub(super) signed: &'a str,
}

/// The members of a header.
#[derive(Debug)]
pub(super) struct Header<'a> {
    alg: Text<'a>,
    typ: Option<Text<'a>>,
    kid: Option<Text<'a>>,
    /// It has a member that RFC 7515 lets a reader ignore.
    pub(super) has_others: bool,
}

/// Header members that change what a token means or which key verifies it.
pub(super) const DANGEROUS: [&str; 12] =
    ["jwk", "jku", "x5c", "x5u", "crit", "b64", "zip", "enc", "cty", "epk", "apu", "apv"];

// === impl Compact ===

impl<'a> Compact<'a> {
    /// Splits a token at its dots, of which there are two.
    pub(super) fn split(token: &'a str) -> Result<Self, Rejection> {
        let parts = token.rsplit_once('.').and_then(|(signed, signature)| {
            let (header, claims) = signed.split_once('.')?;
            (!claims.contains('.')).then_some(Self { header, claims, signature, signed })
        });
        parts.ok_or(CredentialReason::Malformed.because("a token has three parts, separated by dots"))
    }
}

/// Decodes one part.
pub(super) fn decode(part: &str) -> Result<Vec<u8>, Rejection> {
    let decoded = URL_SAFE_NO_PAD.decode(part);
    decoded.map_err(|_invalid| CredentialReason::Malformed.because("a part of the token is not unpadded base64url"))
}

// === impl Header ===

impl<'a> Header<'a> {
    /// Reads a decoded header.
    pub(super) fn parse(json: &'a [u8]) -> Result<Self, Rejection> {
        let mut fault = NOT_A_HEADER;
        let mut de = serde_json::Deserializer::from_slice(json);
        let header = HeaderSeed { fault: &mut fault }.deserialize(&mut de);
        match header.and_then(|header| de.end().map(|()| header)) {
            Ok(header) => Ok(header),
            Err(_described_by_fault) => Err(CredentialReason::Malformed.because(fault)),
        }
    }

    /// The algorithm, if it is one of RFC 7518, sections 3.3 to 3.5.
    pub(super) fn algorithm(&self) -> Result<SigningAlgorithm, Rejection> {
        let known = SigningAlgorithm::from_name(&self.alg.0);
        known.ok_or(CredentialReason::Alg.because("`alg` is not a known asymmetric signature algorithm"))
    }

    /// The type as it is written.
    pub(super) fn typ(&self) -> Option<&str> {
        self.typ.as_ref().map(|typ| &*typ.0)
    }

    /// The key id. The standard leaves it open; here a token without one names no key.
    pub(super) fn kid(&self) -> Result<&str, Rejection> {
        let kid = self.kid.as_ref().map(|kid| &*kid.0);
        kid.ok_or(CredentialReason::KidUnknown.because("the token has no `kid`"))
    }
}

struct HeaderSeed<'f> {
    /// What to say when reading stops here.
    fault: &'f mut &'static str,
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = Header<'de>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = Header<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JOSE header")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut alg, mut typ, mut kid) = (None, None, None);
        let mut has_others = false;
        let mut members = Members::default();
        while let Some(name) = members.next(&mut map)? {
            let slot = match name {
                "alg" => &mut alg,
                "typ" => &mut typ,
                "kid" => &mut kid,
                name if DANGEROUS.contains(&name) => {
                    *self.fault = "the header has a member that carries a key or changes the processing";
                    return Err(A::Error::custom("dangerous member"));
                }
                _ => {
                    has_others = true;
                    map.next_value_seed(Skip::member())?;
                    continue;
                }
            };
            *self.fault = "`alg`, `kid` and `typ` are strings";
            *slot = Some(map.next_value::<Text<'de>>()?);
            *self.fault = NOT_A_HEADER;
        }
        let Some(alg) = alg else {
            *self.fault = "the header has no `alg`";
            return Err(A::Error::custom("missing member"));
        };
        Ok(Header { alg, typ, kid, has_others })
    }
}
