//! Which inputs of a request a policy set can read, found from the compiled policies.
//!
//! Pure. Decisions are cached by exactly these inputs. INVARIANT: the answer over-approximates. Any use of `context`
//! that is not a plain access or presence test of a known attribute counts as reading everything.

use cedar_policy::Policy;
use serde_json::{Value, json};

use super::asked::PROPERTIES;
use super::mcp::McpReads;
use crate::grant::Apart;

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
    /// `context.grant.id`, or the grant as a whole
    pub grant_id: bool,
    /// `context.transaction`
    pub transaction: bool,
    /// `context.asked`
    pub asked: bool,
    /// attributes of `context.mcp`
    pub mcp: McpReads,
    /// whether there is a `context.method` or a `context.path`, which there is not where a route is asked about by name
    pub has_request: bool,
    /// whether there is a `context.host`
    pub has_host: bool,
}

impl Reads {
    /// Everything.
    pub const ALL: Self = Self {
        method: true,
        path: true,
        host: true,
        grant: true,
        grant_detail: true,
        grant_id: true,
        transaction: true,
        asked: true,
        mcp: McpReads::ALL,
        has_request: true,
        has_host: true,
    };

    /// What `policy` reads.
    pub(super) fn of(policy: &Policy) -> Self {
        policy.to_json().map_or(Self::ALL, |json| Self::of_json(&json))
    }

    /// What any of several policies reads.
    pub(super) fn of_all<'a>(reads: impl IntoIterator<Item = &'a Self>) -> Self {
        reads.into_iter().fold(Self::default(), |all, one| all.union(*one))
    }

    /// What grants can be told apart by.
    pub const fn grants_apart(self) -> Apart {
        match self {
            Self { grant_id: true, .. } => Apart::Id,
            Self { grant_detail: true, .. } => Apart::Terms,
            _ => Apart::Nothing,
        }
    }

    /// Names of the attributes that are read.
    pub fn names(self) -> Vec<String> {
        [
            ("asked", self.asked),
            ("grant", self.grant),
            ("host", self.host),
            ("mcp", self.mcp.any()),
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
            grant_id: self.grant_id || other.grant_id,
            transaction: self.transaction || other.transaction,
            asked: self.asked || other.asked,
            mcp: self.mcp.union(other.mcp),
            has_request: self.has_request || other.has_request,
            has_host: self.has_host || other.has_host,
        }
    }

    /// A presence test of the grant tells nothing more of it; an access that goes no further may tell everything.
    fn attribute(name: &str, accessed: bool) -> Self {
        match name {
            "method" => Self { method: true, has_request: !accessed, ..Self::default() },
            "path" => Self { path: true, has_request: !accessed, ..Self::default() },
            "host" => Self { host: true, has_host: !accessed, ..Self::default() },
            "grant" => Self { grant: true, grant_detail: accessed, grant_id: accessed, ..Self::default() },
            "asked" => Self { asked: true, ..Self::default() },
            "transaction" => Self { transaction: true, ..Self::default() },
            "mcp" if accessed => Self { mcp: McpReads::ALL, ..Self::default() },
            "mcp" => Self { mcp: McpReads::PRESENCE, ..Self::default() },
            _ => Self::ALL,
        }
    }

    /// An attribute of the grant, or whether it has it, tells nothing else of it.
    fn of_grant(name: &str) -> Self {
        let grant_id = !matches!(name, "actions" | "duration_seconds");
        Self { grant: true, grant_detail: true, grant_id, ..Self::default() }
    }

    /// Walks a policy in Cedar's JSON form, where an entity is `{"type": "T", "id": "x"}`, an access is `{".": {"left": L, "attr": "name"}}`, a presence test
    /// `{"has": {"left": L, "attr": "name"}}`, and the context itself `{"Var": "context"}`.
    fn of_json(json: &Value) -> Self {
        match json {
            Value::Object(map) => {
                // What an application says is in entities as well; whoever names one reads it (and does not validate).
                let names_asked = map.get("type").is_some_and(|kind| kind == PROPERTIES);
                let mut reads = Self { asked: names_asked, ..Self::default() };
                for (key, value) in map {
                    if let Some(each) = steps(key, value) {
                        reads = each.iter().fold(reads, |reads, has| reads.union(Self::of_json(has)));
                        continue;
                    }
                    let access = matches!(key.as_str(), "." | "has")
                        .then(|| Some((value.get("left")?, value.get("attr")?.as_str()?)))
                        .flatten();
                    reads = reads.union(match access {
                        Some((left, attr)) if is_context(left) => Self::attribute(attr, key == "."),
                        Some((left, attr)) if is_member(left, "grant") => Self::of_grant(attr),
                        Some((left, attr)) if is_member(left, "mcp") => {
                            Self { mcp: McpReads::of(attr), ..Self::default() }
                        }
                        _ if key == "Var" && value == "context" => Self::ALL,
                        _ => Self::of_json(value),
                    });
                }
                reads
            }
            Value::Array(items) => items.iter().fold(Self::default(), |r, v| r.union(Self::of_json(v))),
            _ => Self::default(),
        }
    }
}

/// The presence tests that `left has a.b.c` stands for, whose attribute is a list: `left has a`, `left.a has b`, and so on.
fn steps(key: &str, value: &Value) -> Option<Vec<Value>> {
    let (left, attributes) = (value.get("left")?, value.get("attr")?.as_array()?);
    if key != "has" {
        return None;
    }
    let mut left = left.clone();
    let tests = attributes.iter().map(|attribute| {
        let test = json!({"has": {"left": left, "attr": attribute}});
        left = json!({".": {"left": left, "attr": attribute}});
        test
    });
    Some(tests.collect())
}

/// Whether `value` is `context.NAME`.
fn is_member(value: &Value, name: &str) -> bool {
    let access = value.get(".");
    access.is_some_and(|a| a.get("left").is_some_and(is_context) && a.get("attr").is_some_and(|attr| attr == name))
}

fn is_context(value: &Value) -> bool {
    value.get("Var").is_some_and(|v| v == "context")
}
