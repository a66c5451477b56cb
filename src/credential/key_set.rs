//! Key sets and other JSON documents as they come from an issuer's endpoint or file.
//!
//! Pure. Read as strictly as tokens are: a duplicate member at any depth, or nesting without end, refuses the document
//! whole, because two readers could take two different keys from it. Whether the keys can be used is found out by
//! [`check_issuer`](super::check_issuer); nothing here repairs or drops a key.

use serde_json::Value;

use super::json::StrictValue;
use crate::object::{FieldError, Jwks};

/// Reads a JSON document of a stranger: distinct members, bounded depth and width, nothing after its end.
pub fn strict_json(json: &[u8]) -> Result<Value, FieldError> {
    StrictValue::parse(json).map_err(|e| FieldError::new("", format!("is not a strict JSON document: {e}")))
}

/// Reads a key set (RFC 7517, section 5; SPIFFE Trust Domain and Bundle, section 4).
pub fn parse_key_set(json: &[u8]) -> Result<Jwks, FieldError> {
    let Value::Object(mut other) = strict_json(json)? else {
        return Err(FieldError::new("", "is not a JSON object"));
    };
    let keys = match other.remove("keys") {
        Some(Value::Array(keys)) => keys,
        Some(_) => return Err(FieldError::new("keys", "is not an array")),
        None => return Err(FieldError::new("keys", "is missing")),
    };
    let set = Jwks { keys, other };
    set.check()?;
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_read_whole_or_not_at_all() {
        let set = parse_key_set(br#"{"keys":[{"kty":"EC","kid":"a"}],"spiffe_sequence":7}"#).unwrap();
        assert_eq!((set.keys.len(), set.other["spiffe_sequence"].as_u64()), (1, Some(7)));
        assert!(parse_key_set(br#"{"keys":[]}"#).unwrap().keys.is_empty(), "empty is well-formed: it revokes");
        for (text, why) in [
            ("", "strict JSON"),
            ("[]", "not a JSON object"),
            ("{}", "keys"),
            (r#"{"keys":null}"#, "not an array"),
            (r#"{"keys":[],"keys":[]}"#, "duplicate member"),
            (r#"{"keys":[{"kid":"a","kid":"b"}]}"#, "duplicate member"),
            (r#"{"keys":[]} x"#, "strict JSON"),
            (r#"{"keys":[{"kty":"oct","k":"AA"}]}"#, "private or symmetric"),
        ] {
            let error = parse_key_set(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "`{text}`: {error}");
        }
        let many = format!(r#"{{"keys":[{}]}}"#, vec!["{}"; crate::object::MAX_KEYS + 1].join(","));
        assert!(parse_key_set(many.as_bytes()).unwrap_err().to_string().contains("at most"));
    }
}
