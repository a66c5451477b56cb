//! The objects that the control plane stores and sidecars receive, in the form both sides parse: JSON documents.
//!
//! Pure: no I/O, no clock. One place for their names, fields and shape rules, so that REST, store, sync and the
//! compiled snapshot cannot disagree. Parsing is strict: an unknown field is an error, because a condition that is
//! not understood must not be ignored. What only makes sense against other objects (a grant's resource exists, a
//! policy type-checks) is checked where those are at hand: in `control` before commit, in `authz` on compile.

mod allotments;
mod approval;
mod grant;
mod grant_policies;
mod issuer;
mod key_source;
mod limits;
mod mapping;
mod mcp;
mod operator_policies;
mod policy_set;
mod review;
mod revocation;
mod service;
mod signing_key;
mod workload;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::allotments::{Allotments, MAX_ACCOUNTS, UseAccount, UseCounts};
pub use self::approval::{ApprovalStep, Needs, Party, PartyKind};
pub use self::grant::{Ending, Grant, GrantId, GrantState, ParseGrantIdError, Vote, VoteKind};
pub use self::grant_policies::GrantPolicySet;
pub use self::issuer::{
    Issuer, IssuerKind, Jwks, MAX_DELEGATION_DEPTH, MAX_KEYS, ProofPolicy, SigningAlgorithm, TokenType,
};
pub use self::key_source::KeySource;
pub use self::limits::{ExactCall, GrantConditions, TimeWindow, Weekday};
pub use self::mapping::{Condition, Conditions, CredentialMapping, MAX_CONDITIONS, MAX_MAPPINGS, Test, claim};
pub use self::mcp::{ArgumentType, McpArgument, McpRoute};
pub use self::operator_policies::OperatorPolicySet;
pub use self::policy_set::{POLICY_SET_KEY, PolicySet};
pub use self::review::{Closing, Idempotency, Lift, Review};
pub use self::revocation::{Revocation, Target};
pub use self::service::{
    Authentication, Freshness, GrantTerms, Method, ResourceName, ResourceNameError, Route, Service,
};
pub use self::signing_key::{SigningKey, SigningKeyState};
pub use self::workload::{Suspension, Workload, WorkloadKind, WorkloadPattern};

/// What kind of object a document is. The order is the order in which a snapshot sends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Kind {
    /// [`Revocation`]
    Revocation = 1,
    /// [`Issuer`]
    Issuer = 2,
    /// [`Workload`]
    Workload = 3,
    /// [`Service`]
    Service = 4,
    /// [`PolicySet`]
    PolicySet = 5,
    /// [`Grant`], from its request to some time after its end.
    Grant = 6,
    /// [`GrantPolicySet`]; like all that follow, never sent to a sidecar.
    GrantPolicySet = 7,
    /// [`Review`]
    Review = 8,
    /// [`Allotments`]
    Allotment = 9,
    /// [`SigningKey`]
    SigningKey = 10,
    /// [`OperatorPolicySet`]
    OperatorPolicySet = 11,
    /// [`Lift`]
    Lift = 20,
    /// [`Idempotency`]
    Idempotency = 21,
}

/// One parsed object.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// See [`Kind::Revocation`].
    Revocation(Revocation),
    /// See [`Kind::Issuer`].
    Issuer(Box<Issuer>),
    /// See [`Kind::Workload`].
    Workload(Workload),
    /// See [`Kind::Service`].
    Service(Service),
    /// See [`Kind::PolicySet`].
    PolicySet(PolicySet),
    /// See [`Kind::Grant`].
    Grant(Box<Grant>),
    /// See [`Kind::GrantPolicySet`].
    GrantPolicySet(GrantPolicySet),
    /// See [`Kind::Review`].
    Review(Box<Review>),
    /// See [`Kind::Allotment`].
    Allotment(Box<Allotments>),
    /// See [`Kind::SigningKey`].
    SigningKey(Box<SigningKey>),
    /// See [`Kind::OperatorPolicySet`].
    OperatorPolicySet(OperatorPolicySet),
    /// See [`Kind::Lift`].
    Lift(Box<Lift>),
    /// See [`Kind::Idempotency`].
    Idempotency(Idempotency),
}

/// What is wrong with a document, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {message}")]
pub struct FieldError {
    /// The path of the field, as in `routes[2].path`; empty for the document as a whole.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

// === impl Kind ===

impl Kind {
    /// Every kind, in snapshot order.
    pub const ALL: [Self; 13] = [
        Self::Revocation,
        Self::Issuer,
        Self::Workload,
        Self::Service,
        Self::PolicySet,
        Self::Grant,
        Self::GrantPolicySet,
        Self::Review,
        Self::Allotment,
        Self::SigningKey,
        Self::OperatorPolicySet,
        Self::Lift,
        Self::Idempotency,
    ];

    /// Whether it is the control plane's alone: no sidecar ever receives one.
    pub const fn is_private(self) -> bool {
        self as u8 > Self::Grant as u8
    }

    /// The name used in the store, in sync and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Revocation => "revocation",
            Self::Issuer => "issuer",
            Self::Workload => "workload",
            Self::Service => "service",
            Self::PolicySet => "policy_set",
            Self::Grant => "grant",
            Self::GrantPolicySet => "grant_policy_set",
            Self::OperatorPolicySet => "operator_policy_set",
            Self::Review => "review",
            Self::Allotment => "allotment",
            Self::SigningKey => "signing_key",
            Self::Lift => "lift",
            Self::Idempotency => "idempotency",
        }
    }

    /// The kind with this number on the wire.
    pub fn from_number(n: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|k| i32::from(*k as u8) == n)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|k| k.name() == s).ok_or_else(|| format!("`{s}` is not a kind of object"))
    }
}

// === impl Object ===

impl Object {
    /// Parses and checks a document. Errors name the field.
    pub fn parse(kind: Kind, body: &[u8]) -> Result<Self, FieldError> {
        let object = match kind {
            Kind::Revocation => Self::Revocation(from_json(body)?),
            Kind::Issuer => Self::Issuer(Box::new(from_json(body)?)),
            Kind::Workload => Self::Workload(from_json(body)?),
            Kind::Service => Self::Service(from_json(body)?),
            Kind::PolicySet => Self::PolicySet(from_json(body)?),
            Kind::Grant => Self::Grant(Box::new(from_json(body)?)),
            Kind::GrantPolicySet => Self::GrantPolicySet(from_json(body)?),
            Kind::OperatorPolicySet => Self::OperatorPolicySet(from_json(body)?),
            Kind::Review => Self::Review(Box::new(from_json(body)?)),
            Kind::Allotment => Self::Allotment(Box::new(from_json(body)?)),
            Kind::SigningKey => Self::SigningKey(Box::new(from_json(body)?)),
            Kind::Lift => Self::Lift(Box::new(from_json(body)?)),
            Kind::Idempotency => Self::Idempotency(from_json(body)?),
        };
        object.check()?;
        Ok(object)
    }

    /// Checks what the shape alone can tell.
    pub fn check(&self) -> Result<(), FieldError> {
        match self {
            Self::Revocation(o) => o.check(),
            Self::Issuer(o) => o.check(),
            Self::Workload(o) => o.check(),
            Self::Service(o) => o.check(),
            Self::PolicySet(o) => o.check(),
            Self::Grant(o) => o.check(),
            Self::GrantPolicySet(o) => o.check(),
            Self::OperatorPolicySet(o) => o.check(),
            Self::Review(o) => o.check(),
            Self::Allotment(o) => o.check(),
            Self::SigningKey(o) => o.check(),
            Self::Lift(o) => o.check(),
            Self::Idempotency(o) => o.check(),
        }
    }

    /// The kind of this object.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Revocation(_) => Kind::Revocation,
            Self::Issuer(_) => Kind::Issuer,
            Self::Workload(_) => Kind::Workload,
            Self::Service(_) => Kind::Service,
            Self::PolicySet(_) => Kind::PolicySet,
            Self::Grant(_) => Kind::Grant,
            Self::GrantPolicySet(_) => Kind::GrantPolicySet,
            Self::OperatorPolicySet(_) => Kind::OperatorPolicySet,
            Self::Review(_) => Kind::Review,
            Self::Allotment(_) => Kind::Allotment,
            Self::SigningKey(_) => Kind::SigningKey,
            Self::Lift(_) => Kind::Lift,
            Self::Idempotency(_) => Kind::Idempotency,
        }
    }

    /// The key that is unique within its kind.
    pub fn key(&self) -> String {
        match self {
            Self::Revocation(o) => o.id.to_string(),
            Self::Issuer(o) => o.name.clone(),
            Self::Workload(o) => o.id.to_string(),
            Self::Service(o) => o.name.clone(),
            Self::PolicySet(_) => POLICY_SET_KEY.to_owned(),
            Self::Grant(o) => o.id.to_string(),
            Self::GrantPolicySet(_) => GrantPolicySet::KEY.to_owned(),
            Self::OperatorPolicySet(_) => OperatorPolicySet::KEY.to_owned(),
            Self::Review(o) => o.grant.to_string(),
            Self::Allotment(o) => o.grant.to_string(),
            Self::SigningKey(o) => o.kid.clone(),
            Self::Lift(o) => o.id().to_string(),
            Self::Idempotency(o) => o.key.clone(),
        }
    }

    /// Whether `key` is its [`key`](Self::key).
    pub fn has_key(&self, key: &str) -> bool {
        let uuid = |id: &uuid::Uuid| *id.as_hyphenated().encode_lower(&mut [0; uuid::fmt::Hyphenated::LENGTH]) == *key;
        match self {
            Self::Revocation(o) => uuid(&o.id),
            Self::Issuer(o) => o.name == key,
            Self::Workload(o) => o.id.as_str() == key,
            Self::Service(o) => o.name == key,
            Self::PolicySet(_) => key == POLICY_SET_KEY,
            Self::Grant(o) => uuid(&o.id.0),
            Self::GrantPolicySet(_) => key == GrantPolicySet::KEY,
            Self::OperatorPolicySet(_) => key == OperatorPolicySet::KEY,
            Self::Review(o) => uuid(&o.grant.0),
            Self::Allotment(o) => uuid(&o.grant.0),
            Self::SigningKey(o) => o.kid == key,
            Self::Lift(o) => uuid(&o.revocation.id),
            Self::Idempotency(o) => o.key == key,
        }
    }

    /// The document as it is stored and sent.
    pub fn to_json(&self) -> Vec<u8> {
        let result = match self {
            Self::Revocation(o) => serde_json::to_vec(o),
            Self::Issuer(o) => serde_json::to_vec(o),
            Self::Workload(o) => serde_json::to_vec(o),
            Self::Service(o) => serde_json::to_vec(o),
            Self::PolicySet(o) => serde_json::to_vec(o),
            Self::Grant(o) => serde_json::to_vec(o),
            Self::GrantPolicySet(o) => serde_json::to_vec(o),
            Self::OperatorPolicySet(o) => serde_json::to_vec(o),
            Self::Review(o) => serde_json::to_vec(o),
            Self::Allotment(o) => serde_json::to_vec(o),
            Self::SigningKey(o) => serde_json::to_vec(o),
            Self::Lift(o) => serde_json::to_vec(o),
            Self::Idempotency(o) => serde_json::to_vec(o),
        };
        // Serialising plain structs with string keys cannot fail; an empty document would be refused by every reader.
        result.unwrap_or_default()
    }
}

/// Parses JSON into `T`; an error carries the path of the field it is about.
pub fn from_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, FieldError> {
    // Keeping track of the path costs as much as parsing, and nearly every document is good.
    if let Ok(value) = serde_json::from_slice(body) {
        return Ok(value);
    }
    let mut de = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut de).map_err(|e| {
        let path = e.path().to_string();
        FieldError { field: if path == "." { String::new() } else { path }, message: e.into_inner().to_string() }
    })?;
    de.end().map_err(|e| FieldError::new("", e.to_string()))?;
    Ok(value)
}

// === impl FieldError ===

impl FieldError {
    /// An error about `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// Checks a short name: 1 to 63 characters of `a-z 0-9 . _ -`, starting with a letter or digit.
pub(crate) fn check_name(field: &str, name: &str) -> Result<(), FieldError> {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !first || name.len() > 63 || !name.bytes().all(ok) {
        return Err(FieldError::new(
            field,
            format!("`{name}` is not a name: 1 to 63 characters of a-z, 0-9, `.`, `_`, `-`, first a letter or digit"),
        ));
    }
    Ok(())
}

/// Checks a free text: at most `max` bytes and no control characters.
pub(crate) fn check_text(field: &str, text: &str, max: usize) -> Result<(), FieldError> {
    if text.len() > max {
        return Err(FieldError::new(field, format!("has {} bytes, at most {max} are allowed", text.len())));
    }
    if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Err(FieldError::new(field, "has a control character"));
    }
    Ok(())
}
