//! Which inputs of a request a policy set can read, found from the compiled policies.
//!
//! Pure. Decisions are cached by exactly these inputs. INVARIANT: the answer over-approximates. Any use of `context`
//! that is not a plain access or presence test of a known attribute counts as reading everything.

use cedar_policy::Policy;
use serde_json::Value;

/// The context attributes that can influence a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reads {
    /// `context.method`
    pub method: bool,
    /// `context.path`
    pub path: bool,
    /// `context.host`
    pub host: bool,
    /// `context.grant`, if only whether there is one
    pub grant: bool,
    /// attributes of `context.grant`
    pub grant_detail: bool,
    /// `context.transaction`
    pub transaction: bool,
}

impl Reads {
    /// Everything.
    pub const ALL: Self =
        Self { method: true, path: true, host: true, grant: true, grant_detail: true, transaction: true };

    /// What `policy` reads.
    pub(super) fn of(policy: &Policy) -> Self {
        policy.to_json().map_or(Self::ALL, |json| Self::of_json(&json))
    }

    /// What any of several policies reads.
    pub(super) fn of_all<'a>(reads: impl IntoIterator<Item = &'a Self>) -> Self {
        reads.into_iter().fold(Self::default(), |all, one| all.union(*one))
    }

    /// Names of the attributes that are read.
    pub fn names(self) -> Vec<String> {
        [
            ("grant", self.grant),
            ("host", self.host),
            ("method", self.method),
            ("path", self.path),
            ("transaction", self.transaction),
        ]
        .into_iter()
        .filter(|(_, read)| *read)
        .map(|(name, _)| name.to_owned())
        .collect()
    }

    const fn union(self, other: Self) -> Self {
        Self {
            method: self.method || other.method,
            path: self.path || other.path,
            host: self.host || other.host,
            grant: self.grant || other.grant,
            grant_detail: self.grant_detail || other.grant_detail,
            transaction: self.transaction || other.transaction,
        }
    }

    /// A presence test of the grant tells nothing more of it; an access may tell everything.
    fn attribute(name: &str, accessed: bool) -> Self {
        match name {
            "method" => Self { method: true, ..Self::default() },
            "path" => Self { path: true, ..Self::default() },
            "host" => Self { host: true, ..Self::default() },
            "grant" => Self { grant: true, grant_detail: accessed, ..Self::default() },
            "transaction" => Self { transaction: true, ..Self::default() },
            _ => Self::ALL,
        }
    }

    /// Walks a policy in Cedar's JSON form, where an access is `{".": {"left": L, "attr": "name"}}`, a presence test
    /// `{"has": {"left": L, "attr": "name"}}`, and the context itself `{"Var": "context"}`.
    fn of_json(json: &Value) -> Self {
        match json {
            Value::Object(map) => {
                let mut reads = Self::default();
                for (key, value) in map {
                    let direct = matches!(key.as_str(), "." | "has")
                        .then(|| Some((value.get("left")?, value.get("attr")?.as_str()?)))
                        .flatten()
                        .filter(|(left, _)| is_context(left));
                    reads = reads.union(match direct {
                        Some((_, attr)) => Self::attribute(attr, key == "."),
                        None if key == "Var" && value == "context" => Self::ALL,
                        None => Self::of_json(value),
                    });
                }
                reads
            }
            Value::Array(items) => items.iter().fold(Self::default(), |r, v| r.union(Self::of_json(v))),
            _ => Self::default(),
        }
    }
}

fn is_context(value: &Value) -> bool {
    value.get("Var").is_some_and(|v| v == "context")
}
