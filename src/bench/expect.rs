//! Which answer to a request is the right one, as a mix or a command line says it.
//!
//! Plane: composition; no I/O. `allow`, `deny`, `any`, or an HTTP status; anything else is refused.

use serde::{Deserialize, Deserializer, de};

/// Which answer is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expect {
    /// Either.
    #[default]
    Any,
    /// An allow. Over HTTP: a status below 400.
    Allow,
    /// A denial, with a status of 400 to 499. Not 5xx: whoever is overloaded, has no state or no upstream denies as well.
    Deny,
    /// A denial with this HTTP status; over HTTP, any answer with it.
    Status(u16),
}

// === impl Expect ===

impl std::str::FromStr for Expect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "any" => Ok(Self::Any),
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => match text.parse() {
                Ok(status @ 100..=599) => Ok(Self::Status(status)),
                _ => Err(format!("`{text}` is neither `allow`, `deny`, `any` nor an HTTP status")),
            },
        }
    }
}

impl std::fmt::Display for Expect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("any answer"),
            Self::Allow => f.write_str("allow"),
            Self::Deny => f.write_str("deny"),
            Self::Status(status) => write!(f, "status {status}"),
        }
    }
}

impl<'de> Deserialize<'de> for Expect {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Expect;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`allow`, `deny`, `any` or an HTTP status")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Expect, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, status: u64) -> Result<Expect, E> {
                status.to_string().parse().map_err(E::custom)
            }
        }
        d.deserialize_any(Visitor)
    }
}
