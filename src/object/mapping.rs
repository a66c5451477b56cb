//! Claim mapping: which credentials of an issuer are a workload's.
//!
//! Pure. A mapping holds when every one of its conditions holds, and one without conditions never does: a mapping that
//! somebody forgot to finish must not be a wildcard. Values are compared exactly and by type; a claim that is absent,
//! or of another type than the condition's, does not match. There are no patterns: what a prefix covers can be seen.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{FieldError, IssuerKind, check_name, check_text};

/// The largest number of mappings of one workload.
pub const MAX_MAPPINGS: usize = 16;
/// The largest number of conditions of one mapping.
pub const MAX_CONDITIONS: usize = 16;

/// Credentials of one issuer that are this workload's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CredentialMapping {
    /// Name of the issuer; of any kind but `spiffe` and `portcullis`, whose tokens name the workload themselves.
    pub issuer: String,
    /// What the claims must be. All of it must hold; if there is nothing, nothing matches.
    pub when: Conditions,
}

/// Conditions by claim. A name that starts with `/` is a JSON Pointer (RFC 6901) into the claims, as in
/// `/kubernetes.io/namespace`; every other is the name of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Conditions(pub BTreeMap<String, Condition>);

/// What one claim must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum Condition {
    /// Exactly this text.
    Text(String),
    /// Exactly this boolean.
    Bool(bool),
    /// Exactly this whole number.
    Number(i64),
    /// Something else; see [`Test`].
    Test(Test),
}

/// What else a claim can be compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// Text that is one of these.
    OneOf(Vec<String>),
    /// Text that starts so.
    StartsWith(String),
    /// An array that has this text as a member.
    Contains(String),
}

// === impl CredentialMapping ===

impl CredentialMapping {
    /// Whether the claims are this workload's.
    pub fn holds(&self, claims: &Value) -> bool {
        !self.when.0.is_empty() && self.when.0.iter().all(|(name, condition)| condition.holds(claim(claims, name)))
    }

    /// Refuses conditions that do not tell a tenant of the issuer from another for good.
    ///
    /// GitHub's issuer is everybody's, and names there can be taken over when they become free, so the repository, its
    /// owner or an immutable `sub` must be pinned by number. In a cluster a service account is its namespace and name.
    pub fn check_for(&self, kind: IssuerKind) -> Result<(), FieldError> {
        let exact = |name: &str| matches!(self.when.0.get(name), Some(Condition::Text(_)));
        match kind {
            IssuerKind::Spiffe | IssuerKind::Portcullis => {
                let message = format!("`{}` is of kind `{kind}`: its tokens name the workload themselves", self.issuer);
                Err(FieldError::new("issuer", message))
            }
            IssuerKind::Github => {
                let immutable = ["repository_id", "repository_owner_id"].into_iter().any(exact)
                    || matches!(self.when.0.get("sub"), Some(Condition::Text(sub)) if is_immutable_github_subject(sub));
                let message = "for GitHub needs `repository_id`, `repository_owner_id` or an immutable `sub` \
                               (`repo:OWNER@ID/REPOSITORY@ID:...`), because names can be taken over";
                if immutable { Ok(()) } else { Err(FieldError::new("when", message)) }
            }
            IssuerKind::Kubernetes => {
                let account = exact("sub")
                    || (exact("/kubernetes.io/namespace") && exact("/kubernetes.io/serviceaccount/name"))
                    || exact("/kubernetes.io/serviceaccount/uid");
                let message = "for Kubernetes needs `sub`, or `/kubernetes.io/namespace` and \
                               `/kubernetes.io/serviceaccount/name`, or `/kubernetes.io/serviceaccount/uid`";
                if account { Ok(()) } else { Err(FieldError::new("when", message)) }
            }
            IssuerKind::Oidc => Ok(()),
        }
    }

    pub(super) fn check(&self, field: &str) -> Result<(), FieldError> {
        check_name(&format!("{field}.issuer"), &self.issuer)?;
        let when = format!("{field}.when");
        if self.when.0.is_empty() {
            return Err(FieldError::new(when, "at least one condition is needed; without any, nothing matches"));
        }
        if self.when.0.len() > MAX_CONDITIONS {
            return Err(FieldError::new(when, format!("at most {MAX_CONDITIONS} conditions are allowed")));
        }
        for (name, condition) in &self.when.0 {
            check_text(&when, name, 256)?;
            condition.check(&format!("{when}.{name}"))?;
        }
        Ok(())
    }
}

/// The claim of this name, or at this JSON Pointer.
pub fn claim<'a>(claims: &'a Value, name: &str) -> Option<&'a Value> {
    if name.starts_with('/') { claims.pointer(name) } else { claims.get(name) }
}

/// `repo:OWNER@ID/REPOSITORY@ID:...`: a subject with the immutable numbers of owner and repository.
fn is_immutable_github_subject(sub: &str) -> bool {
    let numbered = |part: &str| {
        part.rsplit_once('@').is_some_and(|(name, id)| {
            !name.is_empty() && !name.contains('@') && !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit())
        })
    };
    let names = sub.strip_prefix("repo:").and_then(|rest| rest.split_once(':')).map(|(names, _)| names);
    let parts = names.and_then(|names| names.split_once('/'));
    parts.is_some_and(|(owner, repository)| numbered(owner) && numbered(repository))
}

// === impl Condition ===

impl Condition {
    /// Whether a claim is what it must be.
    pub fn holds(&self, claim: Option<&Value>) -> bool {
        match (self, claim) {
            (Self::Text(expected), Some(Value::String(text))) => expected == text,
            (Self::Bool(expected), Some(Value::Bool(value))) => expected == value,
            (Self::Number(expected), Some(Value::Number(value))) => value.as_i64() == Some(*expected),
            (Self::Test(Test::OneOf(expected)), Some(Value::String(text))) => expected.contains(text),
            (Self::Test(Test::StartsWith(prefix)), Some(Value::String(text))) => text.starts_with(prefix),
            (Self::Test(Test::Contains(member)), Some(Value::Array(values))) => values.iter().any(|v| v == member),
            _ => false,
        }
    }

    fn check(&self, field: &str) -> Result<(), FieldError> {
        let text = |text: &str| {
            check_text(field, text, 1024)?;
            if text.is_empty() { Err(FieldError::new(field, "must not be empty")) } else { Ok(()) }
        };
        match self {
            Self::Bool(_) | Self::Number(_) => Ok(()),
            Self::Text(value) | Self::Test(Test::StartsWith(value) | Test::Contains(value)) => text(value),
            Self::Test(Test::OneOf(values)) => {
                if values.is_empty() || values.len() > 64 {
                    return Err(FieldError::new(field, "`one_of` needs 1 to 64 values"));
                }
                values.iter().try_for_each(|value| text(value))
            }
        }
    }
}

// === impl Conditions ===

/// A claim that occurs twice is an error: with the last one winning, a condition would be lost.
impl<'de> Deserialize<'de> for Conditions {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;

        impl<'de> Visitor<'de> for V {
            type Value = Conditions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("conditions by claim")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut conditions = BTreeMap::new();
                while let Some((name, condition)) = map.next_entry::<String, Condition>()? {
                    if conditions.contains_key(&name) {
                        return Err(A::Error::custom(format!("the claim `{name}` occurs twice")));
                    }
                    conditions.insert(name, condition);
                }
                Ok(Conditions(conditions))
            }
        }

        d.deserialize_map(V)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::from_json;

    fn mapping(when: &Value) -> CredentialMapping {
        from_json(json!({ "issuer": "i", "when": when }).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn every_condition_must_hold_by_value_and_type() {
        let claims = json!({
            "sub": "a", "n": 7, "f": 7.5, "yes": true, "groups": ["x", "y"], "null": null,
            "kubernetes.io": { "namespace": "shop" }, "a/b": "slash",
        });
        let cases = [
            (json!({ "sub": "a" }), true),
            (json!({ "sub": "A" }), false),
            (json!({ "sub": "a", "n": 7 }), true),
            (json!({ "sub": "a", "n": 8 }), false),
            (json!({ "n": "7" }), false),
            (json!({ "f": 7 }), false),
            (json!({ "yes": true }), true),
            (json!({ "yes": "true" }), false),
            (json!({ "missing": "a" }), false),
            (json!({ "null": "null" }), false),
            (json!({ "groups": "x" }), false),
            (json!({ "groups": { "contains": "y" } }), true),
            (json!({ "groups": { "contains": "z" } }), false),
            (json!({ "sub": { "contains": "a" } }), false),
            (json!({ "sub": { "one_of": ["b", "a"] } }), true),
            (json!({ "sub": { "starts_with": "a" } }), true),
            (json!({ "sub": { "starts_with": "b" } }), false),
            (json!({ "/kubernetes.io/namespace": "shop" }), true),
            (json!({ "kubernetes.io/namespace": "shop" }), false),
            (json!({ "/a~1b": "slash" }), true),
            (json!({ "a/b": "slash" }), true),
        ];
        for (when, expected) in cases {
            assert_eq!(mapping(&when).holds(&claims), expected, "{when}");
        }
    }

    #[test]
    fn an_empty_condition_matches_nothing_and_is_refused() {
        let empty = CredentialMapping { issuer: "i".to_owned(), when: Conditions::default() };
        assert!(!empty.holds(&json!({ "sub": "a" })));
        assert_eq!(empty.check("credentials[0]").unwrap_err().field, "credentials[0].when");
        for when in [json!({ "sub": "" }), json!({ "sub": { "starts_with": "" } }), json!({ "sub": { "one_of": [] } })]
        {
            assert!(mapping(&when).check("credentials[0]").is_err(), "{when}");
        }
    }

    #[test]
    fn a_claim_named_twice_is_refused_rather_than_lost() {
        let twice = br#"{ "issuer": "i", "when": { "sub": "a", "sub": "b" } }"#;
        let error = from_json::<CredentialMapping>(twice).unwrap_err();
        assert!(error.message.contains("`sub` occurs twice"), "{error}");
    }

    #[test]
    fn github_conditions_pin_a_number_and_kubernetes_conditions_an_account() {
        let github = [
            (json!({ "sub": "repo:octo/app:ref:refs/heads/main" }), false),
            (json!({ "repository": "octo/app" }), false),
            (json!({ "sub": { "starts_with": "repo:octo@1/app@2:" } }), false),
            (json!({ "sub": "repo:octo@1/app:ref:refs/heads/main" }), false),
            (json!({ "sub": "repo:octo@/app@2:ref:refs/heads/main" }), false),
            (json!({ "sub": "repo:octo@1/app@2:ref:refs/heads/main" }), true),
            (json!({ "repository_id": "2", "ref": "refs/heads/main" }), true),
            (json!({ "repository_owner_id": "1" }), true),
        ];
        for (when, expected) in github {
            assert_eq!(mapping(&when).check_for(IssuerKind::Github).is_ok(), expected, "{when}");
        }
        let kubernetes = [
            (json!({ "/kubernetes.io/namespace": "shop" }), false),
            (json!({ "/kubernetes.io/serviceaccount/name": "default" }), false),
            (json!({ "/kubernetes.io/namespace": "shop", "/kubernetes.io/serviceaccount/name": "web" }), true),
            (json!({ "sub": "system:serviceaccount:shop:web" }), true),
        ];
        for (when, expected) in kubernetes {
            assert_eq!(mapping(&when).check_for(IssuerKind::Kubernetes).is_ok(), expected, "{when}");
        }
        assert!(mapping(&json!({ "sub": "a" })).check_for(IssuerKind::Spiffe).is_err());
    }
}
