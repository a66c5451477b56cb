//! Keys that the control plane signs tokens with: the public half, and where in its life a key is.
//!
//! Pure. The private half is in no document. A key is published from the moment it is announced until the last token that
//! it signed is over; it signs in between. INVARIANT: a key that is gone never comes back.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::grant::Ending;
use super::{FieldError, check_text};
use crate::clock::Timestamp;

/// A key that tokens are signed with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SigningKey {
    /// Its id in tokens and key sets: the thumbprint of the key (RFC 7638).
    pub kid: String,
    /// The public half (RFC 7517).
    pub jwk: Value,
    /// Where in its life it is.
    pub state: SigningKeyState,
    /// Who had it made.
    pub created_by: String,
    /// When it was made, and first published.
    pub created_at: Timestamp,
    /// When everybody who verifies has had time to learn of it: it signs nothing before.
    pub usable_from: Timestamp,
    /// Whether it takes over as soon as it may, because somebody asked for that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wanted: bool,
    /// Since when it signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activated_at: Option<Timestamp>,
    /// Since when it signs no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired_at: Option<Timestamp>,
    /// Since when it is not published any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<Timestamp>,
    /// Who revoked it, when and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Ending>,
}

/// Where in its life a signing key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SigningKeyState {
    /// Published, and signs nothing yet.
    Announced,
    /// Signs.
    Active,
    /// Published until the last token that it signed is over.
    Retiring,
    /// Not published any more.
    Gone,
}

// === impl SigningKey ===

impl SigningKey {
    /// Whether it is in the published key set.
    pub fn is_published(&self) -> bool {
        self.state != SigningKeyState::Gone
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if !(1..=256).contains(&self.kid.len()) {
            return Err(FieldError::new("kid", "must have 1 to 256 bytes"));
        }
        check_text("kid", &self.kid, 256)?;
        check_text("created_by", &self.created_by, 2048)?;
        if !self.jwk.is_object() || self.jwk.get("kid").and_then(Value::as_str) != Some(&self.kid) {
            return Err(FieldError::new("jwk", "is not a key with this `kid`"));
        }
        if ["d", "k", "p", "q"].iter().any(|member| self.jwk.get(member).is_some()) {
            return Err(FieldError::new("jwk", "holds private or symmetric key material"));
        }
        let needed = match self.state {
            SigningKeyState::Announced => None,
            SigningKeyState::Active => Some(("activated_at", self.activated_at)),
            SigningKeyState::Retiring => Some(("retired_at", self.retired_at)),
            SigningKeyState::Gone => Some(("gone_at", self.gone_at)),
        };
        match needed {
            Some((field, None)) => Err(FieldError::new(field, format!("is required in state `{}`", self.state.name()))),
            _ => Ok(()),
        }
    }
}

// === impl SigningKeyState ===

impl SigningKeyState {
    /// The name used in documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Announced => "announced",
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Gone => "gone",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::object::{Kind, Object};
    use crate::testing::changed;

    #[test]
    fn a_key_has_no_private_part_and_the_times_of_its_state() {
        let key = |changes: serde_json::Value| {
            let good = json!({
                "kid": "a", "jwk": {"kty": "EC", "kid": "a"}, "state": "active", "created_by": "system",
                "created_at": "2027-01-15T08:00:00.000Z", "usable_from": "2027-01-15T08:00:00.000Z",
                "activated_at": "2027-01-15T08:00:00.000Z",
            });
            Object::parse(Kind::SigningKey, changed(good, &changes).to_string().as_bytes())
        };
        assert!(key(json!({})).unwrap().has_key("a"));
        for (changes, field) in [
            (json!({"jwk": {"kty": "EC", "kid": "b"}}), "jwk"),
            (json!({"jwk": {"kty": "EC", "kid": "a", "d": "AA"}}), "jwk"),
            (json!({"kid": ""}), "kid"),
            (json!({"activated_at": null}), "activated_at"),
            (json!({"state": "retiring"}), "retired_at"),
            (json!({"state": "gone"}), "gone_at"),
        ] {
            assert_eq!(key(changes.clone()).unwrap_err().field, field, "{changes}");
        }
    }
}
