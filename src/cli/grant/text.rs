//! Grants and requests as people read them: a table of many, or one with its limits, its steps of approval and its votes.
//!
//! Plane: composition. What comes from the control plane is printed without control characters.

use serde_json::Value;

use crate::cli::api::{cell, items};
use crate::cli::failure::{Answer, Failure, Outcome};
use crate::cli::output::{Out, Table, printable};
use crate::object::ApprovalStep;

pub(super) fn list(out: &mut Out<'_>, answer: &Value) -> Outcome {
    if out.is_json() {
        out.json(answer)?;
        return Ok(Answer::Yes);
    }
    let mut table = Table::new(&["id", "state", "workload", "resources", "actions", "ends"]).whole(&[0, 5]);
    for item in items(answer) {
        let [id, mut state, workload, resources, actions] =
            ["id", "state", "workload", "resources", "actions"].map(|name| cell(item, name));
        if is_break_glass(item) {
            state.push('!');
        }
        table.row([id, state, workload, resources, actions, seconds(&cell(item, "not_after"))]);
    }
    out.table(&table, "no grants")?;
    if items(answer).iter().any(is_break_glass) {
        out.line("! break-glass")?;
    }
    Ok(Answer::Yes)
}

pub(super) fn show(out: &mut Out<'_>, answer: &Value) -> Result<(), Failure> {
    if out.is_json() {
        return out.json(answer);
    }
    details(out, answer)
}

/// Everything about one.
pub(super) fn details(out: &mut Out<'_>, grant: &Value) -> Result<(), Failure> {
    for name in ["id", "state", "workload", "resources", "actions", "path"] {
        line(out, name, &cell(grant, name))?;
    }
    line(out, "uses", &uses(grant))?;
    if let Some(call) = grant.get("call").filter(|call| call.is_object()) {
        line(out, "call", &format!("{} {}", cell(call, "method"), cell(call, "path")))?;
        line(out, "body_sha256", &cell(call, "body_sha256"))?;
    }
    conditions(out, grant)?;
    for name in ["duration_seconds", "starts_at", "reason", "ticket", "renews"] {
        line(out, name, &cell(grant, name))?;
    }
    if is_break_glass(grant) {
        line(out, "break-glass", "yes: without approval, to be reviewed")?;
    }
    for name in ["requested_by", "requested_at", "digest", "not_before", "not_after"] {
        line(out, name, &cell(grant, name))?;
    }
    for policy in list_of(grant.get("needs").unwrap_or(&Value::Null), "policies") {
        line(out, "permitted by", &format!("grant policy `{}`", policy.as_str().unwrap_or_default()))?;
    }
    for step in steps(grant) {
        line(out, "step", &step)?;
    }
    for vote in list_of(grant, "votes") {
        let step = cell(vote, "step");
        let step = if step.is_empty() { step } else { format!(" in step {step}") };
        line(
            out,
            "vote",
            &format!("{} by {}{step} at {}", cell(vote, "vote"), cell(vote, "approver"), cell(vote, "at")),
        )?;
    }
    if let Some(end) = grant.get("ended").filter(|e| e.is_object()) {
        let text = format!("by {} at {} {}", cell(end, "by"), cell(end, "at"), cell(end, "reason"));
        line(out, "ended", text.trim_end())?;
    }
    Ok(())
}

/// What became of a request by a vote.
pub(super) fn standing(out: &mut Out<'_>, grant: &Value) -> Result<(), Failure> {
    match &*cell(grant, "state") {
        "active" => out.line(format!("active until {}", cell(grant, "not_after"))),
        "scheduled" => {
            out.line(format!("scheduled, from {} until {}", cell(grant, "not_before"), cell(grant, "not_after")))
        }
        "pending" => {
            let waiting: Vec<String> = steps(grant).into_iter().filter(|step| step.ends_with("more")).collect();
            out.line(if waiting.is_empty() {
                "pending: grant policies want more approvals now than when it was asked for".to_owned()
            } else {
                format!("pending: {}", waiting.join("; "))
            })
        }
        _ => Ok(()),
    }
}

/// Each step with the approvals that it has and needs.
fn steps(grant: &Value) -> Vec<String> {
    let approvals = |step: &str| {
        let of_step = |vote: &&Value| {
            let named = vote.get("step").and_then(Value::as_str).unwrap_or(ApprovalStep::DEFAULT);
            named == step && cell(vote, "vote") == "approve"
        };
        list_of(grant, "votes").filter(of_step).count() as u64
    };
    let Some(needs) = grant.get("needs") else { return Vec::new() };
    if needs.get("auto") == Some(&Value::Bool(true)) && !is_break_glass(grant) {
        return vec!["none: approved by policy".to_owned()];
    }
    let pending = cell(grant, "state") == "pending";
    let one = |step: &Value| {
        let name = cell(step, "name");
        let (has, needs) = (approvals(&name), step.get("approvals").and_then(Value::as_u64).unwrap_or_default());
        let open = if pending && has < needs { format!(", needs {} more", needs - has) } else { String::new() };
        format!("{name}: {has} of {needs}{open}")
    };
    list_of(needs, "steps").map(one).collect()
}

/// How many, and what has become of them where that is told.
fn uses(grant: &Value) -> String {
    let all = cell(grant, "uses");
    match grant.get("use_counts").filter(|counts| counts.is_object()) {
        None => all,
        Some(counts) => {
            let [spent, held, left] = ["spent", "held", "left"].map(|name| cell(counts, name));
            format!("{all}: {spent} spent, {held} at enforcement points, {left} left")
        }
    }
}

fn conditions(out: &mut Out<'_>, grant: &Value) -> Result<(), Failure> {
    let Some(conditions) = grant.get("conditions").filter(|c| c.is_object()) else { return Ok(()) };
    line(out, "only from", &cell(conditions, "source_networks").replace(',', " or "))?;
    line(out, "only in", &cell(conditions, "environments").replace(',', " or "))?;
    line(out, "only tools", &cell(conditions, "tools").replace(',', " or "))?;
    for (name, values) in conditions.get("headers").and_then(Value::as_object).into_iter().flatten() {
        let values: Vec<&str> = values.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        line(out, "only with", &format!("header {name}: {}", values.join(" or ")))?;
    }
    for window in list_of(conditions, "windows") {
        let days = cell(window, "days");
        let days = if days.is_empty() { String::new() } else { format!("{days} ") };
        line(out, "only at", &format!("{days}{}-{} UTC", cell(window, "from"), cell(window, "to")))?;
    }
    Ok(())
}

fn is_break_glass(grant: &Value) -> bool {
    grant.get("break_glass") == Some(&Value::Bool(true))
}

fn list_of<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn line(out: &mut Out<'_>, name: &str, value: &str) -> Result<(), Failure> {
    if value.is_empty() { Ok(()) } else { out.line(format!("  {name:<16} {}", printable(value))) }
}

/// A time without its fraction.
fn seconds(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(whole, _millis)| format!("{whole}Z"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::output::Format;

    fn text(grant: &Value) -> String {
        let mut bytes = Vec::new();
        let mut out = Out::to(&mut bytes, Format::Text);
        details(&mut out, grant).unwrap();
        standing(&mut out, grant).unwrap();
        drop(out);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn steps_and_votes_are_told() {
        let votes = json!([{ "approver": "sue", "vote": "approve", "step": "security", "at": "t" }]);
        let steps = json!([{ "name": "security", "approvals": 1 }, { "name": "lead", "approvals": 2 }]);
        let needs = json!({ "policies": ["people"], "steps": steps });
        let told = text(&json!({ "id": "x", "state": "pending", "needs": needs, "votes": votes }));
        for line in [
            "  permitted by     grant policy `people`",
            "  step             security: 1 of 1",
            "  step             lead: 0 of 2, needs 2 more",
            "  vote             approve by sue in step security at t",
            "pending: lead: 0 of 2, needs 2 more",
        ] {
            assert!(told.lines().any(|l| l == line), "{line}\n{told}");
        }
        let told =
            text(&json!({ "state": "active", "break_glass": true, "needs": { "auto": true }, "not_after": "t" }));
        assert!(told.contains("break-glass") && !told.contains("approved by policy"), "{told}");
        assert!(text(&json!({ "state": "active", "needs": { "auto": true } })).contains("approved by policy"));
    }

    #[test]
    fn uses_are_told_with_what_became_of_them() {
        assert!(text(&json!({ "uses": 10 })).contains("  uses             10\n"));
        let told = text(&json!({ "uses": 10, "use_counts": { "spent": 3, "held": 1, "left": 6 } }));
        assert!(told.contains("  uses             10: 3 spent, 1 at enforcement points, 6 left\n"), "{told}");
    }

    #[test]
    fn limits_are_told() {
        let conditions = json!({
            "source_networks": ["10.0.0.0/8", "192.0.2.0/24"], "headers": { "x-run": ["1", "2"] },
            "windows": [{ "days": ["mon", "tue"], "from": "08:00", "to": "18:00" }],
        });
        let told = text(&json!({ "conditions": conditions, "call": { "method": "POST", "path": "/a" }, "uses": 1 }));
        for part in ["10.0.0.0/8 or 192.0.2.0/24", "header x-run: 1 or 2", "mon,tue 08:00-18:00 UTC", "POST /a"] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
}
