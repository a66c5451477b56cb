//! `portcullis fleet`: the enforcement points, and how far behind each is.
//!
//! Plane: composition, a client of the control plane's API. Shows what the control plane knows and computes nothing:
//! a sidecar that has never connected is shown as such, not left out.

use serde_json::Value;

use super::api::{ApiArgs, cell, items};
use super::block_on;
use super::failure::{Answer, Outcome};
use super::output::{Out, Table};

/// The enforcement points, and how far behind each is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  portcullis fleet")]
pub(super) struct FleetArgs {
    #[command(flatten)]
    api: ApiArgs,
}

impl FleetArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        block_on(async {
            let answer = self.api.connect()?.list(&["enforcement-points"], &[]).await?;
            if out.is_json() {
                out.json(&answer)?;
                return Ok(Answer::Yes);
            }
            let mut table =
                Table::new(&["enforcement point", "instance", "version", "connected", "behind", "last ack"]);
            for one in items(&answer) {
                let instance: String = cell(one, "instance").chars().take(8).collect();
                let connected = match one.get("connected") {
                    Some(Value::Bool(true)) => "yes",
                    _ => "NO",
                };
                table.row([
                    cell(one, "identity"),
                    instance,
                    cell(one, "version"),
                    connected.to_owned(),
                    cell(one, "behind"),
                    cell(one, "last_ack_at"),
                ]);
            }
            out.table(&table, "no enforcement points are configured")?;
            for one in items(&answer) {
                if let Some(nack) = one.get("last_nack").filter(|n| n.is_object()) {
                    let what = format!("{}: {}", cell(nack, "object"), cell(nack, "error"));
                    out.line(format!("{} could not use {}", cell(one, "identity"), super::output::printable(&what)))?;
                }
            }
            Ok(Answer::Yes)
        })
    }
}
