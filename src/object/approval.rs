//! Who takes part in the life of a grant, and what approval it needs: plain parts of a grant's document.
//!
//! Pure. What a request needs is fixed when it is made and is under its digest, so that a vote is also on how many
//! others have to agree. A list that is longer than anybody needs is refused.

use serde::{Deserialize, Serialize};

use super::{FieldError, check_name, check_text};

/// What somebody is who asks or votes, as far as rules go by it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartyKind {
    /// A human.
    #[default]
    Person,
    /// A script or a pipeline that acts as an operator.
    Automation,
    /// A registered workload, by its own credential.
    Workload,
}

/// Somebody who asks or votes, as they were authenticated at that time.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Party {
    /// What they are.
    #[serde(default)]
    pub kind: PartyKind,
    /// The groups that their provider vouched for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// One step of an approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApprovalStep {
    /// Its name, as in `security`.
    pub name: String,
    /// How many have to approve in it.
    pub approvals: u32,
}

/// What approval a request needs, by the grant policies that permitted it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Needs {
    /// The policies that permitted it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// The steps; each needs approvers of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<ApprovalStep>,
    /// Whether it needs nobody's approval.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto: bool,
}

// === impl PartyKind ===

impl PartyKind {
    /// The name used in documents and policies.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Automation => "automation",
            Self::Workload => "workload",
        }
    }
}

// === impl Party ===

impl Party {
    /// The most groups of one party.
    pub const MAX_GROUPS: usize = 256;

    /// Whether nothing is known but that it is a person.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn check(&self, field: &str) -> Result<(), FieldError> {
        if self.groups.len() > Self::MAX_GROUPS {
            return Err(FieldError::new(format!("{field}.groups"), format!("has more than {}", Self::MAX_GROUPS)));
        }
        self.groups.iter().try_for_each(|group| check_text(&format!("{field}.groups"), group, 256))
    }
}

// === impl ApprovalStep ===

impl ApprovalStep {
    /// The one step of a request that no policy asks more of.
    pub const DEFAULT: &str = "approval";
    /// The most approvals of one step.
    pub const MAX_APPROVALS: u32 = 10;

    /// A step.
    pub fn new(name: &str, approvals: u32) -> Self {
        Self { name: name.to_owned(), approvals }
    }
}

// === impl Needs ===

impl Needs {
    /// The most steps.
    pub const MAX_STEPS: usize = 8;

    /// What a request needs, by what was fixed when it was made and by what policies say now: the stricter of both.
    /// `None` stands for the rule without any policy: one approval.
    pub fn stricter(fixed: Option<&Self>, now: Option<&Self>) -> Vec<ApprovalStep> {
        let steps = |needs: Option<&Self>| needs.map_or(&[][..], |n| n.steps.as_slice()).to_vec();
        let mut all = steps(fixed);
        for step in steps(now) {
            match all.iter_mut().find(|s| s.name == step.name) {
                Some(known) => known.approvals = known.approvals.max(step.approvals),
                None => all.push(step),
            }
        }
        let auto = |needs: Option<&Self>| needs.is_some_and(|n| n.auto);
        if all.is_empty() && !(auto(fixed) && auto(now)) {
            all.push(ApprovalStep::new(ApprovalStep::DEFAULT, 1));
        }
        all
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.steps.len() > Self::MAX_STEPS {
            return Err(FieldError::new("needs.steps", format!("has more than {} steps", Self::MAX_STEPS)));
        }
        if self.auto != self.steps.is_empty() {
            return Err(FieldError::new("needs.auto", "a request needs approvals or is approved by policy"));
        }
        for (i, step) in self.steps.iter().enumerate() {
            check_name(&format!("needs.steps[{i}].name"), &step.name)?;
            if !(1..=ApprovalStep::MAX_APPROVALS).contains(&step.approvals) {
                let message = format!("must be between 1 and {}", ApprovalStep::MAX_APPROVALS);
                return Err(FieldError::new(format!("needs.steps[{i}].approvals"), message));
            }
        }
        if self.policies.len() > 1024 {
            return Err(FieldError::new("needs.policies", "has more than 1024 policies"));
        }
        self.policies.iter().try_for_each(|id| check_text("needs.policies", id, 128))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(steps: &[(&str, u32)]) -> Needs {
        let steps: Vec<ApprovalStep> = steps.iter().map(|(name, n)| ApprovalStep::new(name, *n)).collect();
        Needs { auto: steps.is_empty(), steps, policies: Vec::new() }
    }

    #[test]
    fn a_change_of_policy_only_ever_asks_for_more() {
        let (one, two, auto) = (needs(&[("a", 1)]), needs(&[("a", 2), ("b", 1)]), needs(&[]));
        let default = vec![ApprovalStep::new("approval", 1)];
        for (fixed, now, wanted) in [
            (None, None, &default),
            (Some(&one), Some(&two), &two.steps),
            (Some(&two), Some(&one), &two.steps),
            (Some(&two), Some(&auto), &two.steps),
            (Some(&auto), Some(&one), &one.steps),
            (Some(&auto), None, &default),
            (None, Some(&auto), &default),
            (None, Some(&two), &two.steps),
            (Some(&auto), Some(&auto), &vec![]),
        ] {
            assert_eq!(Needs::stricter(fixed, now), *wanted, "{fixed:?} {now:?}");
        }
    }
}
