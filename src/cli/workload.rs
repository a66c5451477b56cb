//! `portcullis workload`: the registered principals.
//!
//! Plane: composition, a client of the control plane's API. Suspending is for now, retiring for good: it revokes the
//! workload's grants in the same step, and its id is never used again. With `--wait` the exit status says whether the
//! receipt is complete.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::api::{ApiArgs, cell, items};
use super::failure::{Answer, Failure, Outcome};
use super::output::{Out, Table};
use super::receipt::{self, WaitArgs};
use super::{args, block_on, documents};

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
    #[command(after_help = "Example:\n  portcullis workload list --environment production --suspended")]
    List {
        /// Only those that this team or person answers for.
        #[arg(long)]
        owner: Option<String>,
        /// Only those of this environment.
        #[arg(long)]
        environment: Option<String>,
        /// Only those of this kind: service, pipeline, agent or third_party.
        #[arg(long)]
        kind: Option<String>,
        /// Only those that are suspended.
        #[arg(long)]
        suspended: bool,
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
    /// Stop a workload for now: whatever it shows is refused everywhere until it is resumed.
    #[command(after_help = "Example:\n  portcullis workload suspend spiffe://example.org/agent \\\n    \
        --reason 'odd traffic since noon' --wait 5s")]
    Suspend {
        /// Its SPIFFE ID.
        id: String,
        /// Why.
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        wait: WaitArgs,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Let a suspended workload go on. Grants that are not over by now count again.
    #[command(after_help = "Example:\n  portcullis workload resume spiffe://example.org/agent --reason 'false alarm'")]
    Resume {
        /// Its SPIFFE ID.
        id: String,
        /// Why.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        wait: WaitArgs,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// End a workload for good, with all its grants and requests. Its id is never used again.
    #[command(
        visible_alias = "delete",
        after_help = "Example:\n  portcullis workload retire spiffe://example.org/storefront --reason replaced --wait 5s"
    )]
    Retire {
        /// Its SPIFFE ID.
        id: String,
        /// Why.
        #[arg(long, default_value = "retired")]
        reason: String,
        #[command(flatten)]
        wait: WaitArgs,
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
    /// A workload that it may act for, or all below one, as in `spiffe://example.org/users/*`; may be repeated.
    /// Without any, the word of the token's issuer is enough.
    #[arg(long, value_name = "SPIFFE_ID")]
    delegator: Vec<String>,
    /// A workload that may act for it, likewise.
    #[arg(long, value_name = "SPIFFE_ID")]
    actor: Vec<String>,
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
            Self::List { owner, environment, kind, suspended, api } => block_on(async {
                let suspended = suspended.then(|| "true".to_owned());
                let filters =
                    [("owner", owner), ("environment", environment), ("kind", kind), ("suspended", suspended)];
                let query: Vec<_> = filters.into_iter().filter_map(|(k, v)| Some((k, v?))).collect();
                let answer = api.connect()?.list(&["workloads"], &query).await?;
                list(out, &answer)
            }),
            Self::Show { id, api } => block_on(async {
                out.json(&api.connect()?.get(&["workloads", &id], &[]).await?)?;
                Ok(Answer::Yes)
            }),
            Self::Suspend { id, reason, wait, api } => block_on(async {
                let body = json!({ "reason": reason });
                let answer = api.connect()?.post_wait(&["workloads", &id, "suspend"], &body, wait.wait).await?;
                receipt::print(out, &answer, &format!("suspended {id}"))
            }),
            Self::Resume { id, reason, wait, api } => block_on(async {
                let body = json!({ "reason": reason });
                let answer = api.connect()?.post_wait(&["workloads", &id, "resume"], &body, wait.wait).await?;
                let printed = receipt::print(out, &answer, &format!("resumed {id}"))?;
                let left = cell(&answer, "still_revoked_by");
                if !out.is_json() && !left.is_empty() {
                    out.line(format!("STILL REVOKED by {left}: see `portcullis revoke lift`"))?;
                }
                Ok(if left.is_empty() { printed } else { Answer::No })
            }),
            Self::Retire { id, reason, wait, api } => block_on(async {
                let reason = [("reason", reason)];
                let answer = api.connect()?.delete_wait(&["workloads", &id], &reason, wait.wait).await?;
                let revoked = answer.get("revoked_grants").and_then(Value::as_array).map_or(0, Vec::len);
                receipt::print(out, &answer, &format!("retired {id}, and with it {revoked} grants and requests"))
            }),
        }
    }
}

fn list(out: &mut Out<'_>, answer: &Value) -> Outcome {
    if out.is_json() {
        out.json(answer)?;
        return Ok(Answer::Yes);
    }
    let mut table = Table::new(&["id", "kind", "owner", "environment", "roles", "state"]);
    for one in items(answer) {
        let suspended = one.get("suspended").is_some_and(Value::is_object);
        let columns = ["id", "kind", "owner", "environment", "roles"].map(|name| cell(one, name));
        table.row(columns.into_iter().chain([if suspended { "SUSPENDED" } else { "" }.to_owned()]));
    }
    out.table(&table, "no workloads")?;
    Ok(Answer::Yes)
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
            "delegators": self.delegator,
            "actors": self.actor,
        }))
    }
}
