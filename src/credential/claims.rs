//! The claims of a token, typed (RFC 7519, section 4.1; RFC 7800; RFC 8693, section 4; RFC 9068, section 2.2).
//!
//! Pure. Times are whole, non-negative seconds: a number with a fraction or exponent, a string, `null` or a year past
//! 9999 is malformed, never rounded and never taken as absent (the class of CVE-2026-25537). Claims that mean nothing
//! here are skipped with the same strictness. Reads every profile's claims; which may occur is for `profile` to say.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use smallvec::SmallVec;

use super::json::{Members, Skip, StrictValue, Text};
use super::rejection::{CredentialReason, Rejection};
use crate::clock::Timestamp;

/// The longest `jti`, in bytes.
const MAX_JTI: usize = 256;
/// The largest number of audiences in one token.
const MAX_AUDIENCES: usize = 64;

const NOT_CLAIMS: &str = "the claims are not a JSON object of distinct members";

/// What a token says. Nothing of it is true before the signature has been verified.
#[derive(Debug)]
pub(super) struct Claims<'a> {
    pub(super) iss: Option<Text<'a>>,
    pub(super) sub: Text<'a>,
    pub(super) exp: Timestamp,
    pub(super) nbf: Option<Timestamp>,
    pub(super) iat: Option<Timestamp>,
    pub(super) jti: Option<Text<'a>>,
    /// The OAuth client that an access token was issued to.
    pub(super) client_id: Option<Text<'a>>,
    /// What the token is bound to.
    pub(super) cnf: Option<Value>,
    /// Who acts for the subject.
    pub(super) act: Option<Value>,
    /// Who may act for the subject.
    pub(super) may_act: Option<Value>,
    /// What a Kubernetes token is bound to: `kubernetes.io`.
    pub(super) kubernetes: Option<Value>,
    /// The grant that a token of the control plane is tied to.
    pub(super) grant_id: Option<Text<'a>>,
    /// What it is for, as actions with spaces between them; read of tokens of the control plane only.
    pub(super) scope: Option<Value>,
    /// It has `events`: a security event or logout token, which is nobody's credential (RFC 8417, section 2.2).
    pub(super) is_event: bool,
    aud: Option<SmallVec<[Text<'a>; 4]>>,
}

// === impl Claims ===

impl<'a> Claims<'a> {
    /// Reads decoded claims.
    pub(super) fn parse(json: &'a [u8]) -> Result<Self, Rejection> {
        let mut fault = NOT_CLAIMS;
        let mut de = serde_json::Deserializer::from_slice(json);
        let claims = ClaimsSeed { fault: &mut fault }.deserialize(&mut de);
        match claims.and_then(|claims| de.end().map(|()| claims)) {
            Ok(claims) => Ok(claims),
            Err(_described_by_fault) => Err(CredentialReason::Malformed.because(fault)),
        }
    }

    /// Whether the token is meant for `audience`.
    pub(super) fn is_for(&self, audience: &str) -> bool {
        self.aud.iter().flatten().any(|aud| aud.0 == audience)
    }

    /// The audience, if there is exactly one.
    pub(super) fn only_audience(&self) -> Option<&str> {
        match self.aud.as_deref() {
            Some([only]) => Some(&only.0),
            _ => None,
        }
    }

    /// Whether it says whom it is meant for.
    pub(super) const fn has_audience(&self) -> bool {
        self.aud.is_some()
    }
}

struct ClaimsSeed<'f> {
    /// What to say when reading stops here.
    fault: &'f mut &'static str,
}

impl<'de> DeserializeSeed<'de> for ClaimsSeed<'_> {
    type Value = Claims<'de>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ClaimsSeed<'_> {
    type Value = Claims<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the claims of a token")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut iss, mut sub, mut aud, mut jti, mut client_id, mut grant_id) = (None, None, None, None, None, None);
        let (mut exp, mut nbf, mut iat) = (None, None, None);
        let (mut cnf, mut act, mut may_act, mut kubernetes, mut scope) = (None, None, None, None, None);
        let mut is_event = false;
        let mut members = Members::default();
        while let Some(name) = members.next(&mut map)? {
            match name {
                "iss" => {
                    *self.fault = "`iss` is not a string";
                    iss = Some(map.next_value::<Text<'de>>()?);
                }
                "sub" => {
                    *self.fault = "`sub` is not a string";
                    sub = Some(map.next_value::<Text<'de>>()?);
                }
                "aud" => {
                    *self.fault = "`aud` is neither a string nor an array of at most 64 strings";
                    aud = Some(map.next_value::<Audiences<'de>>()?.0);
                }
                "exp" => {
                    *self.fault = "`exp` is not a whole number of seconds";
                    exp = Some(map.next_value::<Seconds>()?.0);
                }
                "nbf" => {
                    *self.fault = "`nbf` is not a whole number of seconds";
                    nbf = Some(map.next_value::<Seconds>()?.0);
                }
                "iat" => {
                    *self.fault = "`iat` is not a whole number of seconds";
                    iat = Some(map.next_value::<Seconds>()?.0);
                }
                "jti" => {
                    *self.fault = "`jti` is not a string of 1 to 256 bytes without control characters";
                    jti = Some(map.next_value::<Text<'de>>()?);
                    // A token whose id nobody could write down could not be revoked by it.
                    if jti.as_ref().is_some_and(|jti| !is_token_id(&jti.0)) {
                        return Err(A::Error::custom("not an id"));
                    }
                }
                "client_id" => {
                    *self.fault = "`client_id` is not a string";
                    client_id = Some(map.next_value::<Text<'de>>()?);
                }
                "grant_id" => {
                    *self.fault = "`grant_id` is not a string";
                    grant_id = Some(map.next_value::<Text<'de>>()?);
                }
                // Other issuers may write it as they like: whoever reads it says what it must be.
                "scope" => scope = Some(map.next_value_seed(StrictValue::member())?),
                "cnf" => {
                    *self.fault = "`cnf` is not a JSON object of distinct members";
                    cnf = Some(object(&mut map)?);
                }
                "act" => {
                    *self.fault = "`act` is not a JSON object of distinct members";
                    act = Some(object(&mut map)?);
                }
                "may_act" => {
                    *self.fault = "`may_act` is not a JSON object of distinct members";
                    may_act = Some(object(&mut map)?);
                }
                "kubernetes.io" => {
                    *self.fault = "`kubernetes.io` is not a JSON object of distinct members";
                    kubernetes = Some(object(&mut map)?);
                }
                other => {
                    is_event |= other == "events";
                    map.next_value_seed(Skip::member())?;
                }
            }
            *self.fault = NOT_CLAIMS;
        }
        *self.fault = "`sub`, `aud` and `exp` are required";
        let (Some(sub), Some(exp)) = (sub, exp) else {
            return Err(A::Error::custom("missing member"));
        };
        *self.fault = NOT_CLAIMS;
        Ok(Claims {
            iss,
            sub,
            exp,
            nbf,
            iat,
            jti,
            client_id,
            cnf,
            act,
            may_act,
            kubernetes,
            grant_id,
            scope,
            is_event,
            aud,
        })
    }
}

fn object<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Value, A::Error> {
    let value = map.next_value_seed(StrictValue::member())?;
    if value.is_object() { Ok(value) } else { Err(A::Error::custom("not an object")) }
}

fn is_token_id(text: &str) -> bool {
    (1..=MAX_JTI).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// A NumericDate that is a whole number.
struct Seconds(Timestamp);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let seconds = u64::deserialize(d)?;
        if seconds > Timestamp::MAX.as_secs() {
            return Err(D::Error::custom("out of range"));
        }
        Ok(Self(Timestamp::from_secs(seconds)))
    }
}

/// One audience or several.
struct Audiences<'a>(SmallVec<[Text<'a>; 4]>);

impl<'de> Deserialize<'de> for Audiences<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;

        impl<'de> Visitor<'de> for V {
            type Value = Audiences<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_borrowed_str<E: Error>(self, v: &'de str) -> Result<Self::Value, E> {
                Ok(Audiences(SmallVec::from_iter([Text(v.into())])))
            }

            fn visit_str<E: Error>(self, v: &str) -> Result<Self::Value, E> {
                Ok(Audiences(SmallVec::from_iter([Text(v.to_owned().into())])))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut all = SmallVec::new();
                while let Some(audience) = seq.next_element::<Text<'de>>()? {
                    if all.len() == MAX_AUDIENCES {
                        return Err(A::Error::custom("too many audiences"));
                    }
                    all.push(audience);
                }
                Ok(Audiences(all))
            }
        }

        d.deserialize_any(V)
    }
}
