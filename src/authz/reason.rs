//! The reason codes: a closed, stable list that appears in records, metrics, headers and bodies.
//!
//! Pure. Other people's alerts and tests name these strings: a code is added, never renamed. Each code has one
//! HTTP status and one gRPC status, and this file is the only place that says which.

use serde::{Deserialize, Serialize, Serializer, de};

use crate::credential::CredentialReason;

macro_rules! reasons {
    ($($variant:ident = $code:literal => $http:literal, $grpc:ident, $title:literal;)+) => {
        /// Why a request was allowed or denied.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $(#[doc = $title] $variant,)+ }

        impl Reason {
            /// Every code, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The code as it is written everywhere.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)+ }
            }

            /// One sentence for people.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)+ }
            }

            /// The HTTP status of an answer with this reason.
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$variant => $http,)+ }
            }

            /// The gRPC status of an answer with this reason.
            pub const fn grpc_status(self) -> GrpcStatus {
                match self { $(Self::$variant => GrpcStatus::$grpc,)+ }
            }
        }
    };
}

/// The gRPC status codes that an answer can carry (`google.rpc.Code`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum GrpcStatus {
    /// 0
    Ok = 0,
    /// 3
    InvalidArgument = 3,
    /// 7
    PermissionDenied = 7,
    /// 14
    Unavailable = 14,
    /// 16
    Unauthenticated = 16,
}

reasons! {
    CredentialMissing = "credential.missing" => 401, Unauthenticated, "no workload credential was presented";
    CredentialMalformed = "credential.malformed" => 401, Unauthenticated, "the credential cannot be parsed";
    CredentialExpired = "credential.expired" => 401, Unauthenticated, "the credential has expired";
    CredentialNotYetValid = "credential.not_yet_valid" => 401, Unauthenticated, "the credential is not valid yet";
    CredentialAlg = "credential.alg" => 401, Unauthenticated, "the credential's algorithm is not allowed for its issuer";
    CredentialTyp = "credential.typ" => 401, Unauthenticated, "the credential is of a type that its issuer may not issue";
    CredentialKidUnknown = "credential.kid_unknown" => 401, Unauthenticated, "the credential names no key of its issuer";
    CredentialSignature = "credential.signature" => 401, Unauthenticated, "the credential's signature does not verify";
    CredentialIssuerUntrusted = "credential.issuer_untrusted" => 401, Unauthenticated, "the credential's issuer is not trusted";
    CredentialAudience = "credential.audience" => 401, Unauthenticated, "the credential is meant for another audience";
    CredentialLifetime = "credential.lifetime" => 401, Unauthenticated, "the credential lives longer than its issuer may issue";
    CredentialSubject = "credential.subject" => 401, Unauthenticated, "the credential resolves to no registered workload";
    CredentialPopMissing = "credential.pop_missing" => 401, Unauthenticated, "the credential is bound to a key that was not proven";
    CredentialPopInvalid = "credential.pop_invalid" => 401, Unauthenticated, "the proof of possession does not verify";
    CredentialReplay = "credential.replay" => 401, Unauthenticated, "the proof of possession was used before";
    RevokedToken = "revoked.token" => 401, Unauthenticated, "the token has been revoked";
    RevokedWorkload = "revoked.workload" => 401, Unauthenticated, "the workload has been revoked";
    RevokedIssuer = "revoked.issuer" => 401, Unauthenticated, "the issuer has been revoked";
    RevokedKey = "revoked.key" => 401, Unauthenticated, "the signing key or certificate has been revoked";
    RevokedGrant = "revoked.grant" => 403, PermissionDenied, "the grant has been revoked";
    RevokedDelegator = "revoked.delegator" => 403, PermissionDenied, "the delegator has been revoked";
    EntitlementNoGrant = "entitlement.no_grant" => 403, PermissionDenied, "this needs a grant, and there is none";
    EntitlementGrantPending = "entitlement.grant_pending" => 403, PermissionDenied, "a grant has been requested and is not approved yet";
    EntitlementGrantNotYetValid = "entitlement.grant_not_yet_valid" => 403, PermissionDenied, "the grant has not started yet";
    EntitlementGrantExpired = "entitlement.grant_expired" => 403, PermissionDenied, "the grant has ended";
    EntitlementGrantExhausted = "entitlement.grant_exhausted" => 403, PermissionDenied, "the grant's uses are spent";
    EntitlementCondition = "entitlement.condition" => 403, PermissionDenied, "a condition of the grant does not hold";
    EntitlementScope = "entitlement.scope" => 403, PermissionDenied, "the grant does not cover this action or path";
    EntitlementEnvironment = "entitlement.environment" => 403, PermissionDenied, "the grant is for another environment";
    PolicyExplicitDeny = "policy.explicit_deny" => 403, PermissionDenied, "a policy forbids this";
    PolicyNoMatch = "policy.no_match" => 403, PermissionDenied, "no policy permits this";
    PolicyError = "policy.error" => 403, PermissionDenied, "a policy failed to evaluate";
    InputAmbiguousPath = "input.ambiguous_path" => 400, InvalidArgument, "the path can be read in more than one way";
    InputDuplicateHeader = "input.duplicate_header" => 400, InvalidArgument, "a header that must be single occurs more than once";
    InputBodyTruncated = "input.body_truncated" => 400, InvalidArgument, "the body reached the check only in part";
    InputHeaderMismatch = "input.header_mismatch" => 400, InvalidArgument, "headers disagree with each other or with the body";
    InputMalformed = "input.malformed" => 400, InvalidArgument, "the request cannot be parsed";
    SystemStale = "system.stale" => 503, Unavailable, "the enforcement point's state is too old to answer";
    SystemNotReady = "system.not_ready" => 503, Unavailable, "the enforcement point has no state yet";
    SystemOverload = "system.overload" => 503, Unavailable, "the enforcement point is overloaded";
    SystemInternal = "system.internal" => 503, Unavailable, "the enforcement point failed to decide";
    SystemUses = "system.uses" => 503, Unavailable, "no use of the grant has reached the enforcement point in time";
    AllowPolicy = "allow.policy" => 200, Ok, "allowed by standing policy";
    AllowGrant = "allow.grant" => 200, Ok, "allowed by a grant";
    AllowBreakGlass = "allow.break_glass" => 200, Ok, "allowed by a break-glass grant";
}

impl Reason {
    /// The part before the dot: `credential`, `revoked`, `entitlement`, `policy`, `input`, `system` or `allow`.
    pub fn family(self) -> &'static str {
        self.code().split_once('.').map_or("", |(family, _)| family)
    }

    /// Whether a request with this reason goes through.
    pub const fn is_allow(self) -> bool {
        matches!(self, Self::AllowPolicy | Self::AllowGrant | Self::AllowBreakGlass)
    }

    /// Whether a JIT grant would change the answer, so that the denial carries a `grant_request`.
    pub fn is_entitlement(self) -> bool {
        self.family() == "entitlement"
    }
}

impl From<CredentialReason> for Reason {
    fn from(reason: CredentialReason) -> Self {
        match reason {
            CredentialReason::Malformed => Self::CredentialMalformed,
            CredentialReason::Expired => Self::CredentialExpired,
            CredentialReason::NotYetValid => Self::CredentialNotYetValid,
            CredentialReason::Alg => Self::CredentialAlg,
            CredentialReason::Typ => Self::CredentialTyp,
            CredentialReason::KidUnknown => Self::CredentialKidUnknown,
            CredentialReason::Signature => Self::CredentialSignature,
            CredentialReason::IssuerUntrusted => Self::CredentialIssuerUntrusted,
            CredentialReason::Audience => Self::CredentialAudience,
            CredentialReason::Lifetime => Self::CredentialLifetime,
            CredentialReason::Subject => Self::CredentialSubject,
            CredentialReason::PopMissing => Self::CredentialPopMissing,
            CredentialReason::PopInvalid => Self::CredentialPopInvalid,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.code())
    }
}

impl std::str::FromStr for Reason {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|r| r.code() == s).ok_or_else(|| format!("`{s}` is not a reason code"))
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.code())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = std::borrow::Cow::<'de, str>::deserialize(d)?;
        s.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credential_reasons_keep_their_code() {
        for reason in CredentialReason::ALL {
            assert_eq!(Reason::from(reason).code(), reason.code());
        }
    }

    #[test]
    fn codes_are_unique_and_statuses_follow_their_family() {
        let mut seen = std::collections::BTreeSet::new();
        for &r in Reason::ALL {
            assert!(seen.insert(r.code()), "`{r}` occurs twice");
            let expected: &[u16] = match r.family() {
                "credential" => &[401],
                "revoked" => &[401, 403],
                "entitlement" | "policy" => &[403],
                "input" => &[400],
                "system" => &[503],
                "allow" => &[200],
                other => panic!("unknown family {other}"),
            };
            assert!(expected.contains(&r.http_status()), "{r}");
            assert_eq!(r.is_allow(), r.http_status() == 200);
            assert_eq!(r.code().parse::<Reason>().unwrap(), r);
        }
    }
}
