//! `portcullis workload`: the registered principals.
//!
//! Plane: composition, a client of the control plane's API. Retiring a workload revokes its grants in the same step
//! and is final: its id is never used again.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::api::{ApiArgs, cell, items};
use super::failure::{Answer, Failure, Outcome};
use super::output::{Out, Table};
use super::{args, block_on, documents, receipt};

/// Workloads: the principals. A credential counts only for a registered one.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  portcullis workload put spiffe://example.org/storefront --kind service \\\n    \
    --owner shop-team --environment production --role storefront")]
pub(super) enum WorkloadCommand {
    /// Register a workload, or replace it.
    #[command(
        after_help = "Example:\n  portcullis workload put spiffe://example.org/storefront --kind service \\\n    \
        --owner shop-team --environment production --role storefront\n  portcullis workload put -f workload.yaml"
    )]
    Put(PutArgs),
    /// List workloads.
    #[command(after_help = "Example:\n  portcullis workload list")]
    List {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show one workload.
    #[command(after_help = "Example:\n  portcullis workload show spiffe://example.org/storefront")]
    Show {
        /// Its SPIFFE ID.
        id: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Remove a workload: its credentials resolve to nobody any more.
    #[command(after_help = "Example:\n  portcullis workload delete spiffe://example.org/storefront")]
    Delete {
        /// Its SPIFFE ID.
        id: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

/// A workload.
#[derive(Debug, Args)]
pub(super) struct PutArgs {
    /// File with the whole object, YAML or JSON; `-` reads standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["id", "kind", "owner", "environment"])]
    file: Option<PathBuf>,
    /// Its SPIFFE ID.
    #[arg(required_unless_present = "file")]
    id: Option<String>,
    /// service, pipeline, agent or third_party.
    #[arg(long, required_unless_present = "file")]
    kind: Option<String>,
    /// Who answers for it.
    #[arg(long, required_unless_present = "file")]
    owner: Option<String>,
    /// Where it runs, as in `production`.
    #[arg(long, required_unless_present = "file")]
    environment: Option<String>,
    /// A role; may be repeated.
    #[arg(long)]
    role: Vec<String>,
    /// A label; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = args::pair)]
    label: Vec<(String, String)>,
    #[command(flatten)]
    api: ApiArgs,
}

impl WorkloadCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::Put(args) => {
                let body = args.body()?;
                let id = cell(&body, "id");
                block_on(async {
                    let answer = args.api.connect()?.put(&["workloads", &id], &body).await?;
                    receipt::print(out, &answer, &format!("put workload {id}"))
                })
            }
            Self::List { api } => block_on(async {
                let answer = api.connect()?.list(&["workloads"], &[]).await?;
                if out.is_json() {
                    out.json(&answer)?;
                    return Ok(Answer::Yes);
                }
                let mut table = Table::new(&["id", "kind", "owner", "environment", "roles"]);
                for one in items(&answer) {
                    table.row(["id", "kind", "owner", "environment", "roles"].map(|name| cell(one, name)));
                }
                out.table(&table, "no workloads")?;
                Ok(Answer::Yes)
            }),
            Self::Show { id, api } => block_on(async {
                out.json(&api.connect()?.get(&["workloads", &id], &[]).await?)?;
                Ok(Answer::Yes)
            }),
            Self::Delete { id, api } => block_on(async {
                let answer = api.connect()?.delete(&["workloads", &id]).await?;
                receipt::print(out, &answer, &format!("deleted workload {id}"))
            }),
        }
    }
}

impl PutArgs {
    fn body(&self) -> Result<Value, Failure> {
        if let Some(path) = &self.file {
            return documents::object(path, "workload");
        }
        let labels: Map<String, Value> = self.label.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        Ok(json!({
            "id": self.id,
            "kind": self.kind,
            "owner": self.owner,
            "environment": self.environment,
            "roles": self.role,
            "labels": labels,
        }))
    }
}
