//! What narrows a grant beyond its resources and actions: conditions on the request, one exact call.
//!
//! Pure. Part of the immutable request, so approvers vote on it. All conditions that are given must hold; within one,
//! any of its values does. INVARIANT: what cannot be understood is no grant, because an ignored condition would widen it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::mcp::check_tool;
use super::service::Method;
use super::{FieldError, check_name, check_text};
use crate::authz::Network;

/// How many values one condition may list.
const MAX_VALUES: usize = 32;

/// What must hold of a request for a grant to cover it. An empty list asks nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantConditions {
    /// Networks of which the client's address is in one, as in `10.0.0.0/8`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_networks: Vec<String>,
    /// Environments of which the workload runs in one, as in `production`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environments: Vec<String>,
    /// Request headers, each exactly once and with one of these values. Names in lower case.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Vec<String>>,
    /// Times of the week of which the request is in one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<TimeWindow>,
    /// MCP tools of which the request calls one. Of such a route it then covers nothing else, and no other route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
}

/// A part of the week, in UTC: on each of `days` from `from` until just before `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeWindow {
    /// Days of the week. Empty: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Weekday>,
    /// Start, `HH:MM` in UTC.
    pub from: String,
    /// End, `HH:MM` in UTC, later than the start; `24:00` is the end of the day.
    pub to: String,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Weekday {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

/// One call and no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExactCall {
    /// The method.
    pub method: Method,
    /// The path with its query, byte for byte as the client sends it.
    pub path: String,
    /// Lower-case hex SHA-256 of the whole body; without it, any body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_sha256: Option<String>,
}

// === impl GrantConditions ===

impl GrantConditions {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.source_networks.is_empty()
            && self.environments.is_empty()
            && self.headers.is_empty()
            && self.windows.is_empty()
            && self.tools.is_empty()
    }

    pub(crate) fn check(&self) -> Result<(), FieldError> {
        let sizes = [
            ("conditions.source_networks", self.source_networks.len()),
            ("conditions.environments", self.environments.len()),
            ("conditions.headers", self.headers.len()),
            ("conditions.windows", self.windows.len()),
            ("conditions.tools", self.tools.len()),
        ];
        if let Some((field, _)) = sizes.into_iter().find(|(_, n)| *n > MAX_VALUES) {
            return Err(FieldError::new(field, format!("at most {MAX_VALUES} are allowed")));
        }
        for (i, text) in self.source_networks.iter().enumerate() {
            text.parse::<Network>()
                .map_err(|e| FieldError::new(format!("conditions.source_networks[{i}]"), format!("`{text}`: {e}")))?;
        }
        for (i, name) in self.environments.iter().enumerate() {
            check_name(&format!("conditions.environments[{i}]"), name)?;
        }
        for (name, values) in &self.headers {
            let field = format!("conditions.headers.{name}");
            let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if name.is_empty() || name.len() > 63 || !name.bytes().all(ok) {
                let message = format!("`{name}` is not the name of a header in lower case: a-z, 0-9 and `-`");
                return Err(FieldError::new(field, message));
            }
            if values.is_empty() || values.len() > MAX_VALUES {
                return Err(FieldError::new(field, format!("1 to {MAX_VALUES} values are needed")));
            }
            values.iter().try_for_each(|value| check_text(&field, value, 200))?;
            if values.iter().any(|value| value.contains(',')) {
                let message = "a value has a comma, with which a proxy may join two headers";
                return Err(FieldError::new(field, message));
            }
        }
        for (i, window) in self.windows.iter().enumerate() {
            window.check(&format!("conditions.windows[{i}]"))?;
        }
        for (i, tool) in self.tools.iter().enumerate() {
            check_tool(&format!("conditions.tools[{i}]"), tool)?;
        }
        Ok(())
    }
}

// === impl TimeWindow ===

impl TimeWindow {
    /// Start and end in minutes of the day, in UTC; `None` if they are no times.
    pub fn minutes(&self) -> Option<(u16, u16)> {
        Some((minute_of_day(&self.from)?, minute_of_day(&self.to)?))
    }

    fn check(&self, field: &str) -> Result<(), FieldError> {
        let time = |name: &str, text: &str| {
            minute_of_day(text)
                .ok_or_else(|| FieldError::new(format!("{field}.{name}"), format!("`{text}` is not a time `HH:MM`")))
        };
        let (from, to) = (time("from", &self.from)?, time("to", &self.to)?);
        if from >= to {
            let message = "the window ends before it starts; write one past midnight as two";
            return Err(FieldError::new(format!("{field}.to"), message));
        }
        if self.days.len() > 7 {
            return Err(FieldError::new(format!("{field}.days"), "a week has seven days"));
        }
        Ok(())
    }
}

fn minute_of_day(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |t: &str| (t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit())).then(|| t.parse::<u16>().ok())?;
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let total = hours * 60 + minutes;
    (minutes < 60 && total <= 24 * 60).then_some(total)
}

// === impl ExactCall ===

impl ExactCall {
    pub(crate) fn check(&self) -> Result<(), FieldError> {
        if !self.path.starts_with('/') || self.path.len() > 8192 || !self.path.bytes().all(|b| b.is_ascii_graphic()) {
            let message = format!("`{}` is not a path: it starts with `/`, in visible ASCII", self.path);
            return Err(FieldError::new("call.path", message));
        }
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        match &self.body_sha256 {
            Some(digest) if digest.len() != 64 || !digest.bytes().all(hex) => {
                Err(FieldError::new("call.body_sha256", format!("`{digest}` is not a SHA-256 in lower-case hex")))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_condition_that_cannot_be_understood_names_its_field() {
        let bad = [
            (json!({ "source_networks": ["10.0.0.0/33"] }), "conditions.source_networks[0]"),
            (json!({ "source_networks": ["10.0.0.1/8"] }), "conditions.source_networks[0]"),
            (json!({ "environments": ["Prod!"] }), "conditions.environments[0]"),
            (json!({ "headers": { "X-Run": ["1"] } }), "conditions.headers.X-Run"),
            (json!({ "headers": { "x_run": ["1"] } }), "conditions.headers.x_run"),
            (json!({ "headers": { "x-run": [] } }), "conditions.headers.x-run"),
            (json!({ "headers": { "x-run": ["1,2"] } }), "conditions.headers.x-run"),
            (json!({ "windows": [{ "from": "8:00", "to": "18:00" }] }), "conditions.windows[0].from"),
            (json!({ "windows": [{ "from": "08:00", "to": "24:01" }] }), "conditions.windows[0].to"),
            (json!({ "windows": [{ "from": "22:00", "to": "06:00" }] }), "conditions.windows[0].to"),
            (json!({ "tools": ["refund", ""] }), "conditions.tools[1]"),
            (json!({ "tools": ["a\nb"] }), "conditions.tools[0]"),
        ];
        for (value, field) in bad {
            let conditions: GrantConditions = serde_json::from_value(value.clone()).unwrap();
            assert_eq!(conditions.check().unwrap_err().field, field, "{value}");
        }
        let good = json!({
            "source_networks": ["10.0.0.0/8", "2001:db8::/32"], "environments": ["production"],
            "headers": { "x-run": ["1", "2"] }, "windows": [{ "days": ["mon", "fri"], "from": "08:00", "to": "24:00" }],
        });
        let good: GrantConditions = serde_json::from_value(good).unwrap();
        assert_eq!(good.check(), Ok(()));
        assert_eq!(good.windows[0].minutes(), Some((480, 1440)));
        assert!(serde_json::from_value::<GrantConditions>(json!({ "colour": "red" })).is_err());
    }

    #[test]
    fn an_exact_call_is_one_that_can_be_made() {
        let call = |path: &str, digest: Option<&str>| {
            let method = serde_json::from_value(json!("POST")).unwrap();
            ExactCall { method, path: path.to_owned(), body_sha256: digest.map(str::to_owned) }.check()
        };
        assert_eq!(call("/refunds?id=7", Some(&"0f".repeat(32))), Ok(()));
        assert_eq!(call("refunds", None).unwrap_err().field, "call.path");
        assert_eq!(call("/a b", None).unwrap_err().field, "call.path");
        assert_eq!(call("/", Some(&"0F".repeat(32))).unwrap_err().field, "call.body_sha256");
    }
}
