//! The terms of a grant policy: its annotations, read strictly.
//!
//! Pure. `@approvals`, `@max_duration`, `@requires` and `@auto_approve` belong to a permit of one action that knows
//! them. Of several, the strictest count: the longest list of approvals, the shortest time, everything that any of
//! them requires, and approval by policy only where all of them give it.

use std::time::Duration;

use cedar_policy::{ActionConstraint, Effect, Policy};

use crate::object::{ApprovalStep, Grant, Needs, check_name};
use crate::policy::{PolicyError, line_and_column};

/// What a permit asks for in return.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) steps: Vec<ApprovalStep>,
    pub(super) max_seconds: Option<u64>,
    pub(super) ticket: bool,
    pub(super) reason: bool,
    pub(super) auto: bool,
}

/// An annotation that is not understood, or the lack of one.
#[derive(Debug)]
pub(super) struct BadTerm {
    /// The annotation; empty when the policy as a whole is wrong.
    name: String,
    message: String,
}

/// The actions of the schema that a permit can be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Request,
    BreakGlass,
    Approve,
}

// === impl Terms ===

impl Terms {
    /// The terms of a policy.
    pub(super) fn of(policy: &Policy) -> Result<Self, BadTerm> {
        let permit = policy.effect() == Effect::Permit;
        let action = permit.then(|| For::of(policy)).transpose()?;
        let mut terms = Self::default();
        for (name, value) in policy.annotations() {
            let allowed = match (name, action) {
                ("id", _) => true,
                ("max_duration" | "requires", Some(For::Request | For::BreakGlass)) => true,
                ("approvals" | "auto_approve", Some(For::Request)) => true,
                ("approvals" | "auto_approve" | "max_duration" | "requires", _) => {
                    let message = match action {
                        None => "a forbid has no terms".to_owned(),
                        Some(_) => format!("a permit of this action has no `@{name}`"),
                    };
                    return Err(BadTerm::new(name, message));
                }
                _ => return Err(BadTerm::new(name, format!("`@{name}` is not a known annotation"))),
            };
            if allowed {
                terms.read(name, value)?;
            }
        }
        if terms.auto && !terms.steps.is_empty() {
            return Err(BadTerm::new("approvals", "what is approved by policy needs no approvals".to_owned()));
        }
        if terms.auto && terms.max_seconds.is_none() {
            let message = "approval by policy needs a `@max_duration`".to_owned();
            return Err(BadTerm::new("auto_approve", message));
        }
        Ok(terms)
    }

    fn read(&mut self, name: &str, value: &str) -> Result<(), BadTerm> {
        let bad = |message: String| Err(BadTerm::new(name, message));
        match name {
            "approvals" => match steps(value) {
                Ok(steps) => self.steps = steps,
                Err(message) => return bad(message),
            },
            "max_duration" => match humantime::parse_duration(value) {
                Ok(limit) if whole_seconds(limit) => self.max_seconds = Some(limit.as_secs()),
                _ => return bad(format!("`{value}` is not a duration from `1s` to `30d`, in whole seconds")),
            },
            "requires" => {
                for what in value.split(',').map(str::trim) {
                    match what {
                        "ticket" => self.ticket = true,
                        "reason" => self.reason = true,
                        _ => return bad(format!("`{what}` cannot be required; `ticket` and `reason` can")),
                    }
                }
            }
            "auto_approve" => match value {
                "true" => self.auto = true,
                "false" => self.auto = false,
                _ => return bad(format!("`{value}` is neither `true` nor `false`")),
            },
            _ => {}
        }
        Ok(())
    }

    /// The strictest of these terms; `None` of none.
    pub(super) fn strictest<'a>(all: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        all.into_iter().fold(None, |so_far: Option<Self>, next| {
            let Some(mut so_far) = so_far else { return Some(next.clone().explicit()) };
            so_far.join(&next.clone().explicit());
            Some(so_far)
        })
    }

    /// With the one approval that a permit without any terms asks for.
    fn explicit(mut self) -> Self {
        if self.steps.is_empty() && !self.auto {
            self.steps.push(ApprovalStep::new(ApprovalStep::DEFAULT, 1));
        }
        self
    }

    fn join(&mut self, other: &Self) {
        for step in &other.steps {
            match self.steps.iter_mut().find(|s| s.name == step.name) {
                Some(known) => known.approvals = known.approvals.max(step.approvals),
                None => self.steps.push(step.clone()),
            }
        }
        self.max_seconds = match (self.max_seconds, other.max_seconds) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.ticket |= other.ticket;
        self.reason |= other.reason;
        self.auto &= other.auto;
    }

    /// Whether a request keeps them.
    pub(super) fn check(&self, grant: &Grant) -> Result<(), crate::object::FieldError> {
        let error = |field: &str, message: String| Err(crate::object::FieldError::new(field, message));
        match self.max_seconds {
            Some(most) if grant.duration_seconds > most => {
                return error("duration_seconds", format!("grant policy allows at most {most} seconds"));
            }
            _ => {}
        }
        if self.ticket && grant.ticket.as_deref().is_none_or(|t| t.trim().is_empty()) {
            return error("ticket", "grant policy requires a ticket".to_owned());
        }
        if self.reason && grant.reason.trim().is_empty() {
            return error("reason", "grant policy requires a reason".to_owned());
        }
        Ok(())
    }

    /// What is kept of them with the request.
    pub(super) fn needs(self, policies: Vec<String>) -> Needs {
        let auto = self.auto && self.steps.is_empty();
        Needs { policies, steps: self.steps, auto }
    }
}

fn whole_seconds(limit: Duration) -> bool {
    limit.subsec_nanos() == 0 && (1..=Grant::MAX_DURATION_SECONDS).contains(&limit.as_secs())
}

/// `security:2,lead:1`, or names alone for one approval each.
fn steps(text: &str) -> Result<Vec<ApprovalStep>, String> {
    let mut steps: Vec<ApprovalStep> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (name, approvals) = part.split_once(':').map_or((part, "1"), |(name, n)| (name.trim(), n.trim()));
        check_name("approvals", name).map_err(|e| e.message)?;
        let approvals: Option<u32> = approvals.parse().ok().filter(|n| (1..=ApprovalStep::MAX_APPROVALS).contains(n));
        let Some(approvals) = approvals else {
            return Err(format!("`{part}`: a step has 1 to {} approvals", ApprovalStep::MAX_APPROVALS));
        };
        if steps.iter().any(|s| s.name == name) {
            return Err(format!("step `{name}` occurs twice"));
        }
        steps.push(ApprovalStep::new(name, approvals));
    }
    if steps.len() > Needs::MAX_STEPS {
        return Err(format!("at most {} steps are allowed", Needs::MAX_STEPS));
    }
    Ok(steps)
}

// === impl For ===

impl For {
    /// The one action of a permit: its terms would mean nothing for another.
    fn of(policy: &Policy) -> Result<Self, BadTerm> {
        let ActionConstraint::Eq(action) = policy.action_constraint() else {
            let message =
                "a permit names one action: `action == Action::\"request\"`, `\"break_glass\"` or `\"approve\"`";
            return Err(BadTerm::new("", message.to_owned()));
        };
        match AsRef::<str>::as_ref(action.id()) {
            "request" => Ok(Self::Request),
            "break_glass" => Ok(Self::BreakGlass),
            _ => Ok(Self::Approve),
        }
    }
}

// === impl BadTerm ===

impl BadTerm {
    fn new(name: &str, message: String) -> Self {
        Self { name: name.to_owned(), message }
    }

    /// With its place: Cedar does not tell where an annotation stands, so it is looked for from the policy's `@id` to its
    /// end, and before it.
    pub(super) fn located(self, text: &str, policy: &Policy) -> PolicyError {
        let id = policy.id().to_string();
        let anchor = text.find(&format!("\"{id}\"")).unwrap_or(0);
        let start = text.get(..anchor).and_then(|before| before.rfind(';')).map_or(0, |end| end + 1);
        let end = text.get(anchor..).and_then(|rest| rest.find(';')).map_or(text.len(), |end| anchor + end);
        let wanted = if self.name.is_empty() { "permit".to_owned() } else { format!("@{}", self.name) };
        let found = text.get(start..end).and_then(|policy| policy.find(&wanted));
        let (line, column) = line_and_column(text, found.map_or(anchor, |at| start + at));
        PolicyError { policy: Some(id), line: Some(line), column: Some(column), message: self.message, help: None }
    }
}
