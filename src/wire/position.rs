//! Epochs, revisions and scopes: the position of every state.
//!
//! Pure. Revisions are dense within an epoch. Epochs are UUIDv7, so a store that was set up anew or restored
//! compares as later, and a position of an earlier epoch is never accepted after one of a later.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::credential::SpiffeId;

/// The identity of a store's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Epoch(Uuid);

/// A dense number, one per committed change.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// An epoch and a revision in it. Written `EPOCH.REV`. Ordered by epoch, then revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The store's epoch.
    pub epoch: Epoch,
    /// The revision in that epoch.
    pub revision: Revision,
}

/// Lower-case hex SHA-256 of an enforcement point's identity and services.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ScopeId(String);

/// Why a text is not an epoch or a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a position: expected EPOCH.REVISION, a UUID version 7 and a number")]
pub struct ParseEpochError(String);

// === impl Epoch ===

impl Epoch {
    /// A new epoch that starts at `now`.
    pub fn starting(now: crate::clock::Timestamp) -> Self {
        Self::of(now, rand::random())
    }

    /// The epoch that starts at `now` and carries these bytes: for whoever has to make the same one again.
    pub fn of(now: crate::clock::Timestamp, random: [u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(now.as_millis(), &random).into_uuid())
    }

    /// Parses an epoch; only UUID version 7 is one.
    pub fn parse(text: &str) -> Result<Self, ParseEpochError> {
        let id = Uuid::try_parse(text).map_err(|_not_a_uuid| ParseEpochError(text.to_owned()))?;
        if id.get_version_num() != 7 {
            return Err(ParseEpochError(text.to_owned()));
        }
        Ok(Self(id))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

// === impl Revision ===

impl Revision {
    /// The revision after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Position ===

impl Position {
    /// Before every position: that of a state that holds nothing yet.
    pub const NONE: Self = Self { epoch: Epoch(Uuid::nil()), revision: Revision(0) };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.revision)
    }
}

impl std::str::FromStr for Position {
    type Err = ParseEpochError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || ParseEpochError(s.to_owned());
        let (epoch, revision) = s.split_once('.').ok_or_else(bad)?;
        let digits = !revision.is_empty() && revision.bytes().all(|b| b.is_ascii_digit());
        let revision = revision.parse().ok().filter(|_| digits).ok_or_else(bad)?;
        Ok(Self { epoch: Epoch::parse(epoch)?, revision: Revision(revision) })
    }
}

// === impl ScopeId ===

impl ScopeId {
    /// The scope of the enforcement point `identity` that protects `services`, in any order.
    pub fn new<'a>(identity: &SpiffeId, services: impl IntoIterator<Item = &'a str>) -> Self {
        use fmt::Write;
        let mut names: Vec<&str> = services.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        let mut ctx = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for part in std::iter::once(identity.as_str()).chain(names) {
            ctx.update(&(part.len() as u64).to_be_bytes());
            ctx.update(part.as_bytes());
        }
        Self(ctx.finish().as_ref().iter().fold(String::with_capacity(64), |mut hex, b| {
            let _ = write!(hex, "{b:02x}");
            hex
        }))
    }

    /// As written in a payload.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn positions_round_trip_and_order_by_epoch_first() {
        let early = Epoch::starting(Timestamp::from_secs(1_000));
        let late = Epoch::starting(Timestamp::from_secs(2_000));
        let a = Position { epoch: early, revision: Revision(900) };
        let b = Position { epoch: late, revision: Revision(1) };
        assert!(a < b, "a later epoch is later whatever its revision");
        assert_eq!(a.to_string().parse::<Position>().unwrap(), a);
        for bad in ["", "7", "x.7", &format!("{early}."), &format!("{early}.+7"), &format!("{}.7", Uuid::nil())] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
    }

    #[test]
    fn scope_is_bound_to_identity_and_services() {
        let id = SpiffeId::parse("spiffe://a/sidecar").unwrap();
        assert_eq!(ScopeId::new(&id, ["b", "a"]), ScopeId::new(&id, ["a", "b", "a"]));
        assert_ne!(ScopeId::new(&id, ["ab"]), ScopeId::new(&id, ["a", "b"]));
    }
}
