//! Why a credential was refused: the `credential.` family of reason codes, as far as a token alone can tell.
//!
//! Pure. `authz` maps each to its own reason; this module does not know `authz`. INVARIANT: the detail is a fixed text
//! of ours, so that no byte of a token can reach a log, a record or an answer by way of a rejection.

use std::fmt;

/// A refused credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Rejection {
    /// Which code.
    pub reason: CredentialReason,
    /// More about it, for records and explanations.
    pub detail: &'static str,
}

/// The reason codes that verification can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CredentialReason {
    /// Not a compact JWS with the header and claims of a JWT-SVID.
    Malformed,
    /// Its `exp` has come.
    Expired,
    /// Its `nbf` or `iat` lies in the future.
    NotYetValid,
    /// Its algorithm is none that its issuer and the key allow.
    Alg,
    /// Its `typ`, or a claim, makes it something other than a workload's own JWT-SVID; or it is a certificate that is not
    /// for a workload to show as a client.
    Typ,
    /// It names no key of its trust domain.
    KidUnknown,
    /// The signature does not verify.
    Signature,
    /// No issuer vouches for the trust domain of its subject, or that issuer has no keys.
    IssuerUntrusted,
    /// It is meant for another audience.
    Audience,
    /// It lives longer than its issuer may make it.
    Lifetime,
    /// Its `sub` is not the SPIFFE ID of a workload.
    Subject,
    /// It is bound to a key (`cnf`), and nothing proves that its bearer has that key.
    PopMissing,
    /// What it is bound to is not understood, or the proof does not hold.
    PopInvalid,
}

// === impl CredentialReason ===

impl CredentialReason {
    /// Every reason.
    pub const ALL: [Self; 13] = [
        Self::Malformed,
        Self::Expired,
        Self::NotYetValid,
        Self::Alg,
        Self::Typ,
        Self::KidUnknown,
        Self::Signature,
        Self::IssuerUntrusted,
        Self::Audience,
        Self::Lifetime,
        Self::Subject,
        Self::PopMissing,
        Self::PopInvalid,
    ];

    /// The reason code as it is written everywhere.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Malformed => "credential.malformed",
            Self::Expired => "credential.expired",
            Self::NotYetValid => "credential.not_yet_valid",
            Self::Alg => "credential.alg",
            Self::Typ => "credential.typ",
            Self::KidUnknown => "credential.kid_unknown",
            Self::Signature => "credential.signature",
            Self::IssuerUntrusted => "credential.issuer_untrusted",
            Self::Audience => "credential.audience",
            Self::Lifetime => "credential.lifetime",
            Self::Subject => "credential.subject",
            Self::PopMissing => "credential.pop_missing",
            Self::PopInvalid => "credential.pop_invalid",
        }
    }

    /// A rejection with this reason.
    pub(super) const fn because(self, detail: &'static str) -> Rejection {
        Rejection { reason: self, detail }
    }
}

impl fmt::Display for CredentialReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
