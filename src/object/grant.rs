//! Grants, from their request to some time after their end: one object, one id, one state machine.
//!
//! Pure. The request part never changes after creation and votes carry its digest; only state, votes and times do.
//! A grant stays in its sidecars' state for a while after its end, so that a denial can say that it ended.
//! Long because a grant has many fields, and each has its check beside it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};
use uuid::Uuid;

use super::approval::{Needs, Party};
use super::limits::{ExactCall, GrantConditions};
use super::{FieldError, ResourceName, check_name, check_text};
use crate::clock::Timestamp;
use crate::credential::SpiffeId;

/// The id of a grant and of the request it came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct GrantId(pub Uuid);

/// A JIT permission for one workload on named resources and actions, for a bounded time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Unique id.
    pub id: GrantId,
    /// Whose permission it is.
    pub workload: SpiffeId,
    /// What it is for: services or routes.
    pub resources: Vec<ResourceName>,
    /// Which actions, as in `read`, `write`.
    pub actions: Vec<String>,
    /// Narrows the resources to paths that match this URI template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What must hold of a request.
    #[serde(default, skip_serializing_if = "GrantConditions::is_empty")]
    pub conditions: GrantConditions,
    /// Narrows it to one call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<ExactCall>,
    /// How many requests it allows, over all enforcement points; without it, any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// When it is to start; without it, on approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts_at: Option<Timestamp>,
    /// Why it was asked for.
    #[serde(default)]
    pub reason: String,
    /// The ticket that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// The grant that it is to follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renews: Option<GrantId>,
    /// Whether it was asked for as break-glass: an emergency, by a person, reviewed afterwards.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub break_glass: bool,
    /// Who asked.
    pub requested_by: String,
    /// What they are.
    #[serde(default, skip_serializing_if = "Party::is_plain")]
    pub requester: Party,
    /// When.
    pub requested_at: Timestamp,
    /// How long it is to last once active, in seconds.
    pub duration_seconds: u64,
    /// What approval it needs; without it, one of anybody who may approve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<Needs>,
    /// Lower-case hex SHA-256 of the immutable request part. Votes repeat it.
    pub digest: String,
    /// Where in its life it is.
    pub state: GrantState,
    /// Votes so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub votes: Vec<Vote>,
    /// When it starts to count; set on activation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// When it ends; fixed at activation, never extended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    /// How and when it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ending>,
}

/// Where in its life a grant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GrantState {
    /// Waiting for approval.
    Pending,
    /// Approved, with a start that has not come yet.
    Scheduled,
    /// In force between `not_before` and `not_after`.
    Active,
    /// Its time is over.
    Ended,
    /// Its last use has been spent.
    Exhausted,
    /// Ended by a revocation.
    Revoked,
    /// Refused by an approver.
    Denied,
    /// Taken back by the requester.
    Withdrawn,
    /// Never approved in time.
    ExpiredUnapproved,
}

/// One approver's word on a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vote {
    /// Who.
    pub approver: String,
    /// What they are.
    #[serde(default, skip_serializing_if = "Party::is_plain")]
    pub party: Party,
    /// For or against.
    pub vote: VoteKind,
    /// The step that an approval counts for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The digest of the request that was voted on.
    pub digest: String,
    /// When.
    pub at: Timestamp,
}

/// For or against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VoteKind {
    /// For.
    Approve,
    /// Against.
    Deny,
}

/// How a grant ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ending {
    /// Who ended it; the system for an expiry.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

/// Why a text is not a grant id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a grant id (a UUID)")]
pub struct ParseGrantIdError(String);

// === impl Grant ===

impl Grant {
    /// The longest duration, in seconds: 30 days.
    pub const MAX_DURATION_SECONDS: u64 = 30 * 86_400;
    /// The largest use limit.
    pub const MAX_USES: u32 = 1_000_000;

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.resources.is_empty() || self.resources.len() > 64 {
            return Err(FieldError::new("resources", "1 to 64 resources are needed"));
        }
        if self.actions.is_empty() || self.actions.len() > 64 {
            return Err(FieldError::new("actions", "1 to 64 actions are needed"));
        }
        for (i, action) in self.actions.iter().enumerate() {
            check_name(&format!("actions[{i}]"), action)?;
        }
        if let Some(path) = &self.path {
            crate::authz::Template::parse(path).map_err(|e| FieldError::new("path", format!("`{path}`: {e}")))?;
        }
        self.conditions.check()?;
        self.call.as_ref().map_or(Ok(()), ExactCall::check)?;
        if self.uses.is_some_and(|n| !(1..=Self::MAX_USES).contains(&n)) {
            return Err(FieldError::new("uses", format!("must be between 1 and {}", Self::MAX_USES)));
        }
        check_text("reason", &self.reason, 1000)?;
        check_text("ticket", self.ticket.as_deref().unwrap_or_default(), 200)?;
        check_text("requested_by", &self.requested_by, 2048)?;
        self.requester.check("requester")?;
        self.needs.as_ref().map_or(Ok(()), Needs::check)?;
        self.votes.iter().try_for_each(|vote| vote.party.check("votes.party"))?;
        if !(1..=Self::MAX_DURATION_SECONDS).contains(&self.duration_seconds) {
            return Err(FieldError::new("duration_seconds", "must be between 1 and 2592000 (30 days)"));
        }
        if !is_hex_of(&self.digest, &self.digest_of_request()) {
            return Err(FieldError::new("digest", "is not the digest of the request"));
        }
        match (self.not_before, self.not_after) {
            (Some(from), Some(to)) if to <= from => {
                Err(FieldError::new("not_after", format!("the grant ends ({to}) before it starts ({from})")))
            }
            (None, _) | (_, None) if matches!(self.state, GrantState::Active | GrantState::Scheduled) => {
                Err(FieldError::new("not_after", "an active grant has a start and an end"))
            }
            _ => Ok(()),
        }
    }

    /// The digest over the immutable request part: length-prefixed, so that no two requests share an encoding.
    pub fn request_digest(&self) -> String {
        self.digest_of_request().iter().flat_map(|byte| hex(*byte)).map(char::from).collect()
    }

    /// Every grant of a snapshot is checked against its digest, so it is fed in one piece.
    fn digest_of_request(&self) -> [u8; 32] {
        let mut request = Vec::with_capacity(512);
        let mut put = |parts: &[&[u8]]| {
            let len: usize = parts.iter().map(|part| part.len()).sum();
            request.extend_from_slice(&(len as u64).to_be_bytes());
            parts.iter().for_each(|part| request.extend_from_slice(part));
        };
        put(&[b"portcullis.grant-request.v1"]);
        put(&[self.id.0.as_bytes()]);
        put(&[self.workload.as_str().as_bytes()]);
        put(&[&(self.resources.len() as u64).to_be_bytes()]);
        for resource in &self.resources {
            match &resource.route {
                Some(route) => put(&[resource.service.as_bytes(), b"/", route.as_bytes()]),
                None => put(&[resource.service.as_bytes()]),
            }
        }
        put(&[&(self.actions.len() as u64).to_be_bytes()]);
        for action in &self.actions {
            put(&[action.as_bytes()]);
        }
        put(&[&[u8::from(self.path.is_some())]]);
        put(&[self.path.as_deref().unwrap_or("").as_bytes()]);
        put(&[self.reason.as_bytes()]);
        put(&[self.requested_by.as_bytes()]);
        put(&[&self.requested_at.as_millis().to_be_bytes()]);
        put(&[&self.duration_seconds.to_be_bytes()]);
        // What few grants have is one tagged part each, in a fixed order.
        if !self.conditions.is_empty() {
            put(&[b"conditions", &serde_json::to_vec(&self.conditions).unwrap_or_default()]);
        }
        if let Some(call) = &self.call {
            put(&[b"call", &serde_json::to_vec(call).unwrap_or_default()]);
        }
        if let Some(uses) = self.uses {
            put(&[b"uses", &uses.to_be_bytes()]);
        }
        if let Some(start) = self.starts_at {
            put(&[b"starts_at", &start.as_millis().to_be_bytes()]);
        }
        if let Some(ticket) = &self.ticket {
            put(&[b"ticket", ticket.as_bytes()]);
        }
        if let Some(earlier) = &self.renews {
            put(&[b"renews", earlier.0.as_bytes()]);
        }
        if self.break_glass {
            put(&[b"break_glass"]);
        }
        if !self.requester.is_plain() {
            put(&[b"requester", &serde_json::to_vec(&self.requester).unwrap_or_default()]);
        }
        if let Some(needs) = &self.needs {
            put(&[b"needs", &serde_json::to_vec(needs).unwrap_or_default()]);
        }
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &request);
        let mut out = [0; 32];
        out.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        out
    }

    /// Whether what it covers depends on more than workload, resource, action, path and time, or changes with each use.
    pub fn is_limited(&self) -> bool {
        !self.conditions.is_empty() || self.call.is_some() || self.uses.is_some()
    }

    /// How long it lasts once active.
    pub const fn duration(&self) -> Duration {
        Duration::from_secs(self.duration_seconds)
    }
}

impl GrantState {
    /// Whether nothing can follow.
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Pending | Self::Scheduled | Self::Active)
    }

    /// The name used in documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Scheduled => "scheduled",
            Self::Active => "active",
            Self::Ended => "ended",
            Self::Exhausted => "exhausted",
            Self::Revoked => "revoked",
            Self::Denied => "denied",
            Self::Withdrawn => "withdrawn",
            Self::ExpiredUnapproved => "expired_unapproved",
        }
    }
}

// === impl GrantId ===

/// A byte in lower-case hex.
fn hex(byte: u8) -> [u8; 2] {
    let digit = |n: u8| if n < 10 { b'0' + n } else { b'a' + n - 10 };
    [digit(byte >> 4), digit(byte & 15)]
}

/// Whether `text` is `bytes` in lower-case hex.
fn is_hex_of(text: &str, bytes: &[u8; 32]) -> bool {
    text.len() == 64 && text.bytes().eq(bytes.iter().flat_map(|byte| hex(*byte)))
}

impl fmt::Display for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// By hand, because an error has to repeat what is no id.
impl<'de> Deserialize<'de> for GrantId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text;

        impl de::Visitor<'_> for Text {
            type Value = GrantId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a grant id (a UUID)")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<GrantId, E> {
                text.parse().map_err(E::custom)
            }
        }

        d.deserialize_str(Text)
    }
}

impl std::str::FromStr for GrantId {
    type Err = ParseGrantIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(s).map(Self).map_err(|_not_a_uuid| ParseGrantIdError(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Kind, Object};
    use super::*;

    /// Spoils a grant that starts at a time.
    type Spoil = fn(&mut Grant, Timestamp);

    /// An active grant of five minutes.
    fn grant() -> Grant {
        let mut grant: Grant = serde_json::from_value(json!({
            "id": Uuid::nil(), "workload": "spiffe://a.example/x", "resources": ["payments/refunds"], "actions": ["write"],
            "requested_by": "alice", "requested_at": "2026-01-31T12:00:00.000Z", "duration_seconds": 300, "digest": "",
            "state": "active", "not_before": "2026-01-31T12:00:00.000Z", "not_after": "2026-01-31T12:05:00.000Z",
        }))
        .unwrap();
        grant.digest = grant.request_digest();
        grant
    }

    #[test]
    fn a_grant_without_any_time_names_the_field_that_takes_it_away() {
        assert_eq!(grant().check(), Ok(()));
        let start = grant().not_before.unwrap();
        let cases: [(&str, &str, Spoil); 6] = [
            ("not_after", "before it starts", |g, at| g.not_after = Some(Timestamp::from_secs(at.as_secs() - 1))),
            ("not_after", "before it starts", |g, at| g.not_after = Some(at)),
            ("not_after", "a start and an end", |g, _| g.not_after = None),
            ("not_after", "a start and an end", |g, _| g.not_before = None),
            ("duration_seconds", "between 1 and", |g, _| g.duration_seconds = 0),
            ("duration_seconds", "between 1 and", |g, _| g.duration_seconds = Grant::MAX_DURATION_SECONDS + 1),
        ];
        for (field, text, spoil) in cases {
            let mut bad = grant();
            spoil(&mut bad, start);
            bad.digest = bad.request_digest();
            let error = bad.check().unwrap_err();
            assert!(error.field == field && error.message.contains(text), "{field}: {error:?}");
            // As it comes from a store or over sync.
            let text = serde_json::to_vec(&bad).unwrap();
            assert!(Object::parse(Kind::Grant, &text).is_err(), "{field}");
        }
    }

    #[test]
    fn each_part_of_the_request_is_under_the_digest() {
        let changes: [(&str, serde_json::Value); 10] = [
            ("conditions", json!({ "environments": ["production"] })),
            ("call", json!({ "method": "POST", "path": "/refunds" })),
            ("uses", json!(3)),
            ("starts_at", json!("2026-01-31T13:00:00.000Z")),
            ("ticket", json!("OPS-7")),
            ("renews", json!(Uuid::nil())),
            ("break_glass", json!(true)),
            ("requester", json!({ "kind": "automation" })),
            ("needs", json!({ "steps": [{ "name": "security", "approvals": 1 }] })),
            ("duration_seconds", json!(301)),
        ];
        let mut digests = std::collections::BTreeSet::from([grant().digest]);
        for (field, value) in changes {
            let mut changed = serde_json::to_value(grant()).unwrap();
            changed[field] = value;
            let changed: Grant = serde_json::from_value(changed).unwrap();
            assert!(digests.insert(changed.request_digest()), "{field}");
        }
    }

    #[test]
    fn a_request_that_is_not_the_one_that_was_voted_on_is_no_grant() {
        let mut bad = serde_json::to_value(grant()).unwrap();
        bad["duration_seconds"] = json!(301);
        let bad: Grant = serde_json::from_value(bad).unwrap();
        assert_eq!(bad.check().unwrap_err().field, "digest");
    }
}
