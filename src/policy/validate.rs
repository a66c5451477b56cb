//! Strict validation of a policy text, with errors that say where.
//!
//! Pure. A text is accepted whole or not at all. Every policy needs an `@id`, unique in its set, because decisions
//! and records name the policies that decided; templates are refused, because nothing links them.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use cedar_policy::{Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use serde::Serialize;

use super::asked::PROPERTIES;
use super::reads::Reads;
use super::schema::{self, Names};

/// What a valid policy set contains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Report {
    /// Number of policies.
    pub policies: usize,
    /// Their ids, in the order of the text.
    pub ids: Vec<String>,
    /// The context attributes that they read; decisions are cached by these.
    pub reads: Vec<String>,
}

/// One thing that is wrong with a policy text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyError {
    /// The policy, when the error is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Line in the text, from 1, when known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// Column in the line, from 1, when known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What would help, when Cedar knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// Everything that is wrong with a policy text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct PolicyErrors(pub Vec<PolicyError>);

/// The policies of a valid text, under their `@id`s, in the order of the text.
pub(super) struct Valid {
    pub(super) policies: Vec<Policy>,
    /// What each of them reads.
    pub(super) reads: Vec<Reads>,
}

/// Validates `text` strictly, against the schema with these names.
pub fn validate(text: &str, names: Names<'_>) -> Result<Report, PolicyErrors> {
    let valid = parse(text, names)?;
    Ok(Report {
        policies: valid.policies.len(),
        ids: valid.policies.iter().map(|p| p.id().to_string()).collect(),
        reads: Reads::of_all(&valid.reads).names(),
    })
}

/// Parses and validates.
pub(super) fn parse(text: &str, names: Names<'_>) -> Result<Valid, PolicyErrors> {
    let schema = schema::parse(names).map_err(|e| PolicyErrors(vec![PolicyError::plain(e)]))?;
    let policies = parse_strictly(text, &schema)?;
    let errors: Vec<PolicyError> = policies.iter().filter_map(names_properties).collect();
    if !errors.is_empty() {
        return Err(PolicyErrors(errors));
    }
    let reads = policies.iter().map(Reads::of).collect();
    Ok(Valid { policies, reads })
}

/// INVARIANT: what an application says is read through `context.asked` and by no other way: the entities that carry it are
/// there for some requests only, and a policy that names one would take one that is not there for an empty one.
fn names_properties(policy: &Policy) -> Option<PolicyError> {
    let literals = policy.entity_literals();
    let named = literals.iter().find(|uid| uid.type_name().to_string() == PROPERTIES)?;
    let message = format!("`{named}` cannot be named: what an application says is in `context.asked`");
    Some(PolicyError::about(AsRef::<str>::as_ref(policy.id()), message))
}

/// Parses a text and validates it strictly against any schema: the policies under their `@id`s, in the order of the text.
pub(crate) fn parse_strictly(text: &str, schema: &Schema) -> Result<Vec<Policy>, PolicyErrors> {
    let parsed = PolicySet::from_str(text).map_err(|e| PolicyErrors(parse_errors(text, &e)))?;
    let (set, policies) = named(&parsed)?;
    check_types(text, schema, &set)?;
    Ok(policies)
}

/// Renames every policy to its `@id`.
fn named(parsed: &PolicySet) -> Result<(PolicySet, Vec<Policy>), PolicyErrors> {
    let mut errors = Vec::new();
    if parsed.templates().next().is_some() {
        errors.push(PolicyError::plain("policy templates (`?principal`, `?resource`) are not supported".to_owned()));
    }
    let mut numbered: Vec<(usize, &Policy)> = parsed.policies().map(|p| (number(p.id()), p)).collect();
    numbered.sort_by_key(|(n, _)| *n);
    let mut seen = HashSet::new();
    let mut policies = Vec::with_capacity(numbered.len());
    for (n, policy) in numbered {
        match policy.annotation("id") {
            Some(id) if !id.is_empty() && id.len() <= 128 && !id.chars().any(char::is_control) => {
                if !seen.insert(id.to_owned()) {
                    errors.push(PolicyError::about(id, format!("the id `{id}` occurs twice")));
                }
                policies.push(policy.new_id(PolicyId::new(id)));
            }
            Some(_) => errors.push(PolicyError::plain(format!("policy {} has an `@id` that is no id", n + 1))),
            None => errors.push(PolicyError::plain(format!("policy {} in the text has no `@id(\"…\")`", n + 1))),
        }
    }
    if !errors.is_empty() {
        return Err(PolicyErrors(errors));
    }
    match PolicySet::from_policies(policies.iter().cloned()) {
        Ok(set) => Ok((set, policies)),
        Err(e) => Err(PolicyErrors(vec![PolicyError::plain(e.to_string())])),
    }
}

/// Cedar numbers the policies of a text `policy0`, `policy1`, …
fn number(id: &PolicyId) -> usize {
    AsRef::<str>::as_ref(id).strip_prefix("policy").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX)
}

fn check_types(text: &str, schema: &Schema, set: &PolicySet) -> Result<(), PolicyErrors> {
    let result = Validator::new(schema.clone()).validate(set, ValidationMode::Strict);
    let errors: Vec<PolicyError> = result
        .validation_errors()
        .map(|e| {
            let (line, column) = position(text, e);
            let message = e.to_string();
            let prefix = format!("for policy `{}`, ", e.policy_id());
            let message = message.strip_prefix(&prefix).map_or_else(|| message.clone(), str::to_owned);
            PolicyError { policy: Some(e.policy_id().to_string()), line, column, message, help: help(e) }
        })
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(PolicyErrors(errors)) }
}

fn parse_errors(text: &str, errors: &cedar_policy::ParseErrors) -> Vec<PolicyError> {
    errors
        .iter()
        .map(|e| {
            let (line, column) = position(text, e);
            PolicyError { policy: None, line, column, message: e.to_string(), help: help(e) }
        })
        .collect()
}

/// Cedar's errors are `miette` diagnostics; the first label says where.
fn position(text: &str, e: &dyn miette::Diagnostic) -> (Option<usize>, Option<usize>) {
    let Some(offset) = e.labels().and_then(|mut l| l.next()).map(|l| l.offset()) else { return (None, None) };
    let (line, column) = line_and_column(text, offset);
    (Some(line), Some(column))
}

/// Where in the text a byte is, both from 1.
pub(crate) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
    (line, column)
}

fn help(e: &dyn miette::Diagnostic) -> Option<String> {
    e.help().map(|h| h.to_string())
}

// === impl PolicyError ===

impl PolicyError {
    fn plain(message: String) -> Self {
        Self { policy: None, line: None, column: None, message, help: None }
    }

    fn about(policy: &str, message: String) -> Self {
        Self { policy: Some(policy.to_owned()), ..Self::plain(message) }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}: ")?;
        }
        if let Some(policy) = &self.policy {
            write!(f, "policy `{policy}`: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(f, " ({help})")?;
        }
        Ok(())
    }
}

// === impl PolicyErrors ===

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, e) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            e.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Valid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Valid").field("policies", &self.policies.len()).finish_non_exhaustive()
    }
}
