//! Receipts: which enforcement points have applied a change, which have not, and when even those must deny.
//!
//! Plane: composition. INVARIANT: exit status 0 means that every enforcement point has applied the change; anything
//! less is 1, with the instant after which the rest must deny.

use serde_json::Value;

use super::api::cell;
use super::failure::{Answer, Failure, Outcome};
use super::output::{Out, Table, WIDTH};

/// How long to wait for enforcement points.
#[derive(Debug, clap::Args)]
pub(super) struct WaitArgs {
    /// Wait so long until every connected enforcement point has applied it; exit 1 if one has not.
    #[arg(long, value_name = "DURATION", value_parser = super::args::duration)]
    #[arg(num_args = 0..=1, default_missing_value = "5s")]
    pub(super) wait: Option<std::time::Duration>,
}

/// Prints the answer to a write that enforcement points may have to apply.
pub(super) fn print(out: &mut Out<'_>, answer: &Value, done: &str) -> Outcome {
    let receipt = answer.get("receipt").filter(|r| r.is_object());
    let complete = receipt.is_none_or(|r| r.get("complete") == Some(&Value::Bool(true)));
    if out.is_json() {
        out.json(answer)?;
    } else {
        let position = cell(answer, "position");
        let changed = answer.get("committed_at").is_some();
        let at = match (position.is_empty(), changed) {
            (true, _) => String::new(),
            (false, true) => format!(" at {position}"),
            (false, false) => format!(" (nothing to change since {position})"),
        };
        // What was done is told whole; where, on a line of its own if it has to be.
        let fits = done.chars().count() + at.chars().count() <= WIDTH;
        out.line(format!("{done}{}{at}", if fits { "" } else { "\n " }))?;
        if let Some(receipt) = receipt {
            text(out, receipt, complete)?;
        }
    }
    Ok(if complete { Answer::Yes } else { Answer::No })
}

fn text(out: &mut Out<'_>, receipt: &Value, complete: bool) -> Result<(), Failure> {
    let list = |name: &str| receipt.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut table = Table::new(&["enforcement point", "instance", "applied"]);
    for one in list("applied") {
        let elapsed = one.get("elapsed_ms").and_then(Value::as_f64).unwrap_or_default();
        table.row([cell(one, "enforcement_point"), short(&cell(one, "instance")), format!("after {elapsed:.0} ms")]);
    }
    for one in list("pending") {
        let seen = format!("NOT YET, last seen {}", cell(one, "last_seen"));
        table.row([cell(one, "enforcement_point"), short(&cell(one, "instance")), seen]);
    }
    out.table(&table, "no enforcement point holds it")?;
    let never = cell(receipt, "never_connected");
    if !never.is_empty() {
        out.line(format!("never connected, so without any state: {never}"))?;
    }
    out.line(if complete {
        "complete: every enforcement point has applied it".to_owned()
    } else {
        format!("INCOMPLETE: those above may still answer as before, until {}", cell(receipt, "deny_after"))
    })
}

fn short(id: &str) -> String {
    id.chars().take(8).collect()
}
