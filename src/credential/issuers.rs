//! The trusted issuers of a snapshot, compiled: one key set an issuer, never merged.
//!
//! Pure. Built off the request path. A SPIFFE issuer is found by the trust domain of `sub`, every other by `iss` and the
//! type of the token, so that no token can be judged by another profile's rules. A bad issuer fails alone: it is
//! reported and counts as an issuer without keys, so that what it vouches for is denied and the rest is not. Two issuers
//! that answer for the same tokens cannot both be right, and which came first must not matter: neither has keys.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use super::jwk::{Compiled, Key};
use crate::object::{FieldError, Issuer, IssuerKind, ProofPolicy, SigningAlgorithm, TokenType};

/// Compiled issuers, by what their tokens show.
#[derive(Debug, Clone, Default)]
pub struct IssuerSet {
    by_authority: HashMap<Authority, Arc<TrustedIssuer>>,
    kinds: HashMap<Arc<str>, IssuerKind>,
    /// Some issuer's tokens need a DPoP proof.
    demands_dpop: bool,
    /// Some issuer makes WIMSE workload identity tokens.
    makes_wits: bool,
}

/// What a token shows of its issuer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Authority {
    /// A SPIFFE ID of this trust domain in `sub`.
    TrustDomain(Box<str>),
    /// This `iss`, in a plain JWT.
    Jwt(Box<str>),
    /// This `iss`, in an access token (RFC 9068).
    AccessToken(Box<str>),
    /// This `iss`, in a transaction token.
    Transaction(Box<str>),
}

/// One compiled issuer.
#[derive(Debug)]
pub(super) struct TrustedIssuer {
    pub(super) name: Arc<str>,
    pub(super) kind: IssuerKind,
    pub(super) audiences: Box<[Box<str>]>,
    pub(super) max_lifetime: Duration,
    pub(super) max_delegation_depth: u8,
    pub(super) proof: ProofPolicy,
    algorithms: Box<[SigningAlgorithm]>,
    keys: HashMap<Arc<str>, Key>,
    /// Nobody has any key for it, not even one of another use.
    is_empty: bool,
}

/// Checks what only compiling can tell: that the keys parse, are strong enough, and can be told apart.
pub fn check_issuer(issuer: &Issuer) -> Result<(), FieldError> {
    compile_keys(issuer).map(|_keys| ())
}

/// Whether two issuers answer for the same tokens.
pub fn same_tokens(one: &Issuer, other: &Issuer) -> bool {
    Authority::of(one) == Authority::of(other)
}

// === impl Authority ===

impl Authority {
    fn of(issuer: &Issuer) -> Self {
        let name = issuer.authority().into();
        match (issuer.kind, issuer.token_type) {
            (IssuerKind::Spiffe, _) => Self::TrustDomain(name),
            (IssuerKind::Portcullis, _) | (_, TokenType::AccessToken) => Self::AccessToken(name),
            (_, TokenType::Transaction) => Self::Transaction(name),
            (_, TokenType::Jwt) => Self::Jwt(name),
        }
    }

    /// The field of the document that it comes from.
    const fn field(&self) -> &'static str {
        match self {
            Self::TrustDomain(_) => "trust_domain",
            Self::Jwt(_) | Self::AccessToken(_) | Self::Transaction(_) => "issuer",
        }
    }
}

// === impl IssuerSet ===

impl IssuerSet {
    /// Compiles issuers. The second part names those that failed, and why; they deny.
    pub fn compile<'a>(issuers: impl IntoIterator<Item = &'a Issuer>) -> (Self, Vec<(String, FieldError)>) {
        let mut set = Self::default();
        let mut errors = Vec::new();
        for issuer in issuers {
            let keys = compile_keys(issuer).map_err(|e| errors.push((issuer.name.clone(), e))).ok();
            let authority = Authority::of(issuer);
            let field = authority.field();
            let trusted = TrustedIssuer::new(issuer, keys);
            set.kinds.insert(Arc::clone(&trusted.name), issuer.kind);
            set.demands_dpop |= issuer.proof.dpop_nonce || (issuer.proof.required && !issuer.proof.wimse);
            set.makes_wits |= issuer.proof.wimse;
            match set.by_authority.entry(authority) {
                Entry::Vacant(free) => {
                    free.insert(Arc::new(trusted));
                }
                Entry::Occupied(mut taken) => {
                    let clash = |other: &str| {
                        let authority = issuer.authority();
                        FieldError::new(field, format!("`{authority}` is also that of issuer `{other}`"))
                    };
                    let first = taken.get().name.to_string();
                    errors.push((issuer.name.clone(), clash(&first)));
                    errors.push((first, clash(&issuer.name)));
                    taken.insert(Arc::new(TrustedIssuer::new(issuer, None)));
                }
            }
        }
        (set, errors)
    }

    /// The kind of the issuer with this name.
    pub fn kind(&self, name: &str) -> Option<IssuerKind> {
        self.kinds.get(name).copied()
    }

    /// The name of the issuer that vouches for this trust domain by certificates. None without any key, which is how a
    /// trust domain is revoked, nor with keys that were refused.
    pub fn of_certificates(&self, trust_domain: &str) -> Option<&Arc<str>> {
        let issuer = self.find(&Authority::TrustDomain(trust_domain.into()))?;
        (!issuer.is_empty).then_some(&issuer.name)
    }

    /// The name of the issuer of this trust domain, and whether it vouches for anything: without any key, which is how a
    /// trust domain is revoked, or with keys that were refused, it does not.
    pub fn of_trust_domain(&self, trust_domain: &str) -> Option<(&Arc<str>, bool)> {
        let issuer = self.find(&Authority::TrustDomain(trust_domain.into()))?;
        Some((&issuer.name, !issuer.is_empty))
    }

    /// Whether some issuer's tokens need a DPoP proof, as a client without a token has to be told.
    pub const fn demands_dpop(&self) -> bool {
        self.demands_dpop
    }

    /// Whether some issuer makes WIMSE workload identity tokens.
    pub const fn makes_wits(&self) -> bool {
        self.makes_wits
    }

    pub(super) fn find(&self, authority: &Authority) -> Option<&TrustedIssuer> {
        self.by_authority.get(authority).map(|issuer| &**issuer)
    }
}

// === impl TrustedIssuer ===

impl TrustedIssuer {
    /// Without `keys`, what it has cannot be relied on: it vouches for nothing, by tokens or by certificates.
    fn new(issuer: &Issuer, keys: Option<HashMap<Arc<str>, Key>>) -> Self {
        Self {
            name: Arc::from(issuer.name.as_str()),
            kind: issuer.kind,
            audiences: issuer.audiences.iter().map(|a| a.as_str().into()).collect(),
            max_lifetime: Duration::from_secs(issuer.max_lifetime_seconds),
            max_delegation_depth: issuer.max_delegation_depth,
            proof: issuer.proof,
            algorithms: issuer.algorithms().into(),
            is_empty: keys.is_none() || issuer.jwks.keys.is_empty(),
            keys: keys.unwrap_or_default(),
        }
    }

    /// Whether nothing can verify: revoked, or refused on compile.
    pub(super) fn has_no_keys(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether its tokens may use `algorithm`.
    pub(super) fn allows(&self, algorithm: SigningAlgorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// The key with this id in this issuer's set.
    pub(super) fn key(&self, kid: &str) -> Option<&Key> {
        self.keys.get(kid)
    }
}

/// Compiles a key set. Empty stays empty; a set in which no key can be used is an error, because somebody meant one.
fn compile_keys(issuer: &Issuer) -> Result<HashMap<Arc<str>, Key>, FieldError> {
    let mut keys = HashMap::new();
    let mut unusable = None;
    for (index, jwk) in issuer.jwks.keys.iter().enumerate() {
        let key = match Key::compile(index, jwk, issuer.kind, issuer.algorithms())? {
            Compiled::Key(key) => key,
            Compiled::Ignored(why) => {
                unusable.get_or_insert(why);
                continue;
            }
        };
        if key.is_unusable() {
            let why = "fits none of the issuer's algorithms";
            unusable.get_or_insert_with(|| FieldError::new(format!("jwks.keys[{index}]"), why));
        }
        if keys.contains_key(&key.kid) {
            let message = format!("`{}` occurs twice", key.kid);
            return Err(FieldError::new(format!("jwks.keys[{index}].kid"), message));
        }
        keys.insert(Arc::clone(&key.kid), key);
    }
    match unusable {
        // A SPIFFE bundle may vouch for certificates alone.
        Some(_) if issuer.kind == IssuerKind::Spiffe && keys.is_empty() && has_x509_authorities(issuer) => Ok(keys),
        Some(why) if keys.values().all(Key::is_unusable) => {
            Err(FieldError::new(why.field, format!("{}; no key of the set can verify a token", why.message)))
        }
        _ => Ok(keys),
    }
}

fn has_x509_authorities(issuer: &Issuer) -> bool {
    issuer.jwks.keys.iter().any(|key| key.get("use").is_some_and(|v| v == "x509-svid"))
}
