//! The trusted issuers of a snapshot, compiled: one key set per trust domain, never merged.
//!
//! Pure. Built off the request path. A bad issuer fails alone: it is reported and counts as an issuer without keys,
//! so that its trust domain is denied and the others are not. Two issuers for one trust domain cannot both be right,
//! and which came first must not matter: neither of them has keys.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use super::jwk::{Compiled, Key};
use crate::object::{FieldError, Issuer, SigningAlgorithm};

/// Compiled issuers, by trust domain.
#[derive(Debug, Clone, Default)]
pub struct IssuerSet {
    by_trust_domain: HashMap<Box<str>, Arc<TrustedIssuer>>,
}

/// One compiled issuer.
#[derive(Debug)]
pub(super) struct TrustedIssuer {
    pub(super) name: Arc<str>,
    pub(super) audiences: Box<[Box<str>]>,
    pub(super) max_lifetime: Duration,
    algorithms: Box<[SigningAlgorithm]>,
    keys: HashMap<Arc<str>, Key>,
}

/// Checks what only compiling can tell: that the keys parse, are strong enough, and can be told apart.
pub fn check_issuer(issuer: &Issuer) -> Result<(), FieldError> {
    compile_keys(issuer).map(|_keys| ())
}

// === impl IssuerSet ===

impl IssuerSet {
    /// Compiles issuers. The second part names those that failed, and why; they deny.
    pub fn compile<'a>(issuers: impl IntoIterator<Item = &'a Issuer>) -> (Self, Vec<(String, FieldError)>) {
        let mut by_trust_domain: HashMap<Box<str>, Arc<TrustedIssuer>> = HashMap::new();
        let mut errors = Vec::new();
        for issuer in issuers {
            let keys = compile_keys(issuer).unwrap_or_else(|e| {
                errors.push((issuer.name.clone(), e));
                HashMap::new()
            });
            match by_trust_domain.entry(issuer.trust_domain.as_str().into()) {
                Entry::Vacant(free) => {
                    free.insert(Arc::new(TrustedIssuer::new(issuer, keys)));
                }
                Entry::Occupied(mut taken) => {
                    let clash = |other: &str| {
                        let domain = &issuer.trust_domain;
                        FieldError::new("trust_domain", format!("`{domain}` is also that of issuer `{other}`"))
                    };
                    let first = taken.get().name.to_string();
                    errors.push((issuer.name.clone(), clash(&first)));
                    errors.push((first, clash(&issuer.name)));
                    taken.insert(Arc::new(TrustedIssuer::new(issuer, HashMap::new())));
                }
            }
        }
        (Self { by_trust_domain }, errors)
    }

    /// The issuer of this trust domain.
    pub(super) fn of_trust_domain(&self, name: &str) -> Option<&TrustedIssuer> {
        self.by_trust_domain.get(name).map(|issuer| &**issuer)
    }
}

// === impl TrustedIssuer ===

impl TrustedIssuer {
    fn new(issuer: &Issuer, keys: HashMap<Arc<str>, Key>) -> Self {
        Self {
            name: Arc::from(issuer.name.as_str()),
            audiences: issuer.audiences.iter().map(|a| a.as_str().into()).collect(),
            max_lifetime: Duration::from_secs(issuer.max_lifetime_seconds),
            algorithms: issuer.algorithms.as_slice().into(),
            keys,
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
        let key = match Key::compile(index, jwk, &issuer.algorithms)? {
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
        Some(why) if keys.values().all(Key::is_unusable) => {
            Err(FieldError::new(why.field, format!("{}; no key of the set can verify a JWT-SVID", why.message)))
        }
        _ => Ok(keys),
    }
}
