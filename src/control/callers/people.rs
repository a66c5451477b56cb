//! People of a configured OpenID provider: from a token to a name and groups.
//!
//! Plane: control. The token is verified like any credential, for one audience; then its claims are read strictly: a
//! claim of another type than expected refuses, because a name that is guessed is somebody else's. A token that is bound
//! to a key, or that somebody holds for somebody else, does not count here.

use std::sync::Arc;

use serde_json::Value;

use crate::clock::Timestamp;
use crate::control::keys::Provider;
use crate::control::principal::{OperatorKind, Principal, Via};
use crate::credential::{CredentialReason, issuer_of, verify_for};
use crate::object::{Conditions, Issuer, IssuerKind, Jwks, KeySource, SigningAlgorithm, TokenType, claim};

/// The longest name, and the longest group, in bytes.
const MAX_NAME: usize = 200;
/// How many groups one may be in.
const MAX_GROUPS: usize = 200;

/// A provider of people's tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct ProviderConfig {
    /// What comes before `:` in the names of its people.
    pub name: String,
    /// The exact `iss` of its tokens.
    pub issuer: String,
    /// Which `aud` they must have.
    pub audience: String,
    /// What its tokens are.
    pub token_type: TokenType,
    /// Which algorithms they may use.
    pub algorithms: Option<Vec<SigningAlgorithm>>,
    /// The longest life of one.
    pub max_lifetime_seconds: u64,
    /// Where its keys are.
    pub keys: KeySource,
    /// The claim that names the person; a JSON pointer if it starts with `/`.
    pub name_claim: String,
    /// The claim with the groups.
    pub groups_claim: Option<String>,
    /// What else must hold of the claims.
    pub required: Conditions,
    /// What they are.
    pub kind: OperatorKind,
}

/// Whose tokens are people's.
#[derive(Debug)]
pub(super) struct People {
    config: ProviderConfig,
    pub(super) provider: Arc<Provider>,
}

// === impl ProviderConfig ===

impl ProviderConfig {
    /// As the issuer that verification knows; without keys.
    pub fn issuer(&self) -> Issuer {
        Issuer {
            name: self.name.clone(),
            kind: IssuerKind::Oidc,
            trust_domain: None,
            issuer: Some(self.issuer.clone()),
            token_type: self.token_type,
            audiences: vec![self.audience.clone()],
            algorithms: self.algorithms.clone(),
            max_lifetime_seconds: self.max_lifetime_seconds,
            max_delegation_depth: 0,
            proof: crate::object::ProofPolicy::default(),
            keys_from: Some(self.keys.clone()),
            keys_fetched: false,
            jwks: Jwks::default(),
        }
    }
}

// === impl People ===

impl People {
    pub(super) fn new(config: ProviderConfig) -> Self {
        let provider = Provider::new(config.issuer(), config.keys.clone());
        Self { config, provider }
    }

    /// Whether the token says that it is of this provider.
    pub(super) fn may_know(&self, token: &str) -> bool {
        issuer_of(token, &self.provider.keys()).is_some()
    }

    /// Whose token it is, and when it ends.
    pub(super) fn identify(&self, token: &str, now: Timestamp) -> Result<(Principal, Timestamp), &'static str> {
        let verified = verify_for(token, &self.provider.keys(), &[&self.config.audience], now).map_err(|e| {
            if matches!(e.reason, CredentialReason::KidUnknown | CredentialReason::IssuerUntrusted) {
                self.provider.key_is_missing();
            }
            e.detail
        })?;
        if verified.confirmation.is_some() {
            return Err("the token is bound to a key, and there is no proof of it");
        }
        let claims = verified.claims.as_deref().ok_or("the token has no claims that could be read")?;
        Ok((self.person(claims)?, verified.expires_at))
    }

    fn person(&self, claims: &Value) -> Result<Principal, &'static str> {
        let required = &self.config.required.0;
        if !required.iter().all(|(name, condition)| condition.holds(claim(claims, name))) {
            return Err("a claim that this provider's tokens must have is missing or another");
        }
        let name = claim(claims, &self.config.name_claim).and_then(Value::as_str).filter(|name| is_tame(name));
        let name = name.ok_or("the claim that names the person is not 1 to 200 visible ASCII characters")?;
        let groups = match self.config.groups_claim.as_ref().map(|name| claim(claims, name)) {
            None => Vec::new(),
            // Whoever could leave the claim out would be free of every rule about a group.
            Some(None) => return Err("the token has no claim with the groups"),
            Some(Some(Value::String(group))) => vec![Arc::from(group.as_str())],
            Some(Some(Value::Array(groups))) if groups.len() <= MAX_GROUPS => {
                let text = |group: &Value| group.as_str().map(Arc::from);
                groups.iter().map(text).collect::<Option<Vec<Arc<str>>>>().ok_or("a group is not text")?
            }
            Some(Some(_)) => return Err("the claim with the groups is neither text nor a list of at most 200 texts"),
        };
        if groups.iter().any(|group| group.is_empty() || group.len() > MAX_NAME || group.chars().any(char::is_control))
        {
            return Err("a group is not 1 to 200 bytes of text");
        }
        let mut principal = Principal::new(format!("{}:{name}", self.config.name), self.config.kind.into(), Via::Oidc);
        principal.groups = groups.into();
        Ok(principal)
    }
}

/// Nothing that looks like another name: names are compared, logged and typed.
fn is_tame(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn people(change: impl FnOnce(&mut ProviderConfig)) -> People {
        let mut config = ProviderConfig {
            name: "corp".to_owned(),
            issuer: "https://idp.example".to_owned(),
            audience: "portcullis".to_owned(),
            token_type: TokenType::Jwt,
            algorithms: None,
            max_lifetime_seconds: 3600,
            keys: KeySource::Discovery {},
            name_claim: "email".to_owned(),
            groups_claim: Some("/realm/groups".to_owned()),
            required: serde_json::from_value(json!({ "email_verified": true })).unwrap(),
            kind: OperatorKind::Person,
        };
        change(&mut config);
        People::new(config)
    }

    #[test]
    fn a_person_is_what_the_claims_say_and_nothing_is_guessed() {
        let claims =
            json!({ "email": "ann@corp.example", "email_verified": true, "realm": { "groups": ["ops", "x"] } });
        let ann = people(|_| {}).person(&claims).unwrap();
        assert_eq!((&*ann.name, ann.via, ann.is_person()), ("corp:ann@corp.example", Via::Oidc, true));
        assert_eq!(ann.groups.iter().map(|g| &**g).collect::<Vec<_>>(), ["ops", "x"]);
        let with = |pointer: &str, value: Value| {
            let mut claims = claims.clone();
            *claims.pointer_mut(pointer).unwrap() = value;
            people(|_| {}).person(&claims)
        };
        for (pointer, value) in [
            ("/email", json!("")),
            ("/email", json!(7)),
            ("/email", json!("ann corp")),
            ("/email", json!("\u{430}nn")),
            ("/email", json!("a".repeat(201))),
            ("/email_verified", json!(false)),
            ("/email_verified", json!("true")),
            ("/realm/groups", json!({ "ops": true })),
            ("/realm/groups", json!(["ops", 7])),
            ("/realm/groups", json!(["ops", ""])),
            ("/realm/groups", json!(vec!["g"; 201])),
        ] {
            assert!(with(pointer, value.clone()).is_err(), "{pointer} {value}");
        }
        assert!(with("/realm", json!(null)).is_err(), "who leaves the claim out is not free of rules about groups");
        assert_eq!(with("/realm/groups", json!([])).unwrap().groups.len(), 0);
        assert_eq!(people(|c| c.groups_claim = None).person(&claims).unwrap().groups.len(), 0);
        assert!(people(|c| c.name_claim = "sub".to_owned()).person(&claims).is_err());
    }

    #[test]
    fn before_its_keys_are_known_a_provider_vouches_for_nobody() {
        let token = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsifQ.eyJpc3MiOiJodHRwczovL2lkcC5leGFtcGxlIn0.AA";
        assert!(people(|_| {}).identify(token, Timestamp::from_secs(1)).is_err());
    }
}
