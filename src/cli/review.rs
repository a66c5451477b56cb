//! `portcullis review`: what break-glass leaves behind until somebody else has looked at it.
//!
//! Plane: composition, a client of the control plane's API.

use clap::Subcommand;
use serde_json::{Value, json};

use super::api::{ApiArgs, cell, items};
use super::failure::{Answer, Failure, Outcome};
use super::output::{Out, Table, printable};
use super::{block_on, receipt};
use crate::object::GrantId;

/// Reviews of break-glass grants.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  portcullis review list --state open")]
pub(super) enum ReviewCommand {
    /// List reviews.
    #[command(after_help = "Example:\n  portcullis review list --state open")]
    List {
        /// Only those that are `open`, or `closed`.
        #[arg(long, value_parser = ["open", "closed"])]
        state: Option<String>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show one review.
    #[command(after_help = "Example:\n  portcullis review show 0198c2d4-7c1e-4b6f-9a53-0d2f6f3f3a11")]
    Show {
        /// Its id, which is that of the grant.
        id: GrantId,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Close a review of what somebody else asked for.
    #[command(after_help = "Example:\n  \
        portcullis review close 0198c2d4-7c1e-4b6f-9a53-0d2f6f3f3a11 --note 'incident 7, three refunds, all right'")]
    Close {
        /// Its id, which is that of the grant.
        id: GrantId,
        /// What you found.
        #[arg(long)]
        note: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

impl ReviewCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::List { state, api } => block_on(async {
                let query: Vec<_> = state.into_iter().map(|state| ("state", state)).collect();
                let answer = api.connect()?.list(&["reviews"], &query).await?;
                list(out, &answer)
            }),
            Self::Show { id, api } => block_on(async {
                let answer = api.connect()?.get(&["reviews", &id.to_string()], &[]).await?;
                show(out, &answer)
            }),
            Self::Close { id, note, api } => block_on(async {
                let answer =
                    api.connect()?.post(&["reviews", &id.to_string(), "close"], &json!({ "note": note })).await?;
                receipt::print(out, &answer, &format!("closed the review of {id}"))
            }),
        }
    }
}

fn list(out: &mut Out<'_>, answer: &Value) -> Outcome {
    if out.is_json() {
        out.json(answer)?;
        return Ok(Answer::Yes);
    }
    let mut table = Table::new(&["grant", "state", "by", "workload", "resources", "reason"]).whole(&[0]);
    for item in items(answer) {
        let state = if item.get("closed").is_some() { "closed" } else { "open" };
        let [by, workload, resources, reason] =
            ["requested_by", "workload", "resources", "reason"].map(|name| cell(item, name));
        table.row([cell(item, "grant"), state.to_owned(), by, workload, resources, reason]);
    }
    out.table(&table, "no reviews")?;
    Ok(Answer::Yes)
}

fn show(out: &mut Out<'_>, review: &Value) -> Outcome {
    if out.is_json() {
        out.json(review)?;
        return Ok(Answer::Yes);
    }
    for name in
        ["grant", "workload", "resources", "actions", "reason", "ticket", "requested_by", "not_before", "not_after"]
    {
        line(out, name, &cell(review, name))?;
    }
    match review.get("closed") {
        None => line(out, "state", "open: it waits for somebody other than who asked")?,
        Some(closed) => {
            line(out, "state", &format!("closed by {} at {}", cell(closed, "by"), cell(closed, "at")))?;
            line(out, "note", &cell(closed, "note"))?;
        }
    }
    Ok(Answer::Yes)
}

fn line(out: &mut Out<'_>, name: &str, value: &str) -> Result<(), Failure> {
    if value.is_empty() { Ok(()) } else { out.line(format!("  {name:<16} {}", printable(value))) }
}
