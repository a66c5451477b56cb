//! `portcullis service`: what is protected, and what its requests mean.
//!
//! Plane: composition, a client of the control plane's API. A service is replaced whole, never merged, so what is in
//! the file is what is in force; overlapping routes are refused by the server, which names both.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::Value;

use super::api::{ApiArgs, cell, items};
use super::failure::{Answer, Outcome};
use super::output::{Out, Table};
use super::{block_on, documents, receipt};

/// Services and their routes: method and path become a resource and an action.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  portcullis service put -f payments.yaml && portcullis service list")]
pub(super) enum ServiceCommand {
    /// Register a service, or replace it.
    #[command(after_help = "Example:\n  portcullis service put -f payments.yaml\n\n  # payments.yaml\n  \
        name: payments\n  routes:\n    - { name: refunds, methods: [GET, POST], path: '/refunds/{*}' }")]
    Put {
        /// File with the object, YAML or JSON; `-` reads standard input.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List services.
    #[command(after_help = "Example:\n  portcullis service list")]
    List {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show one service.
    #[command(after_help = "Example:\n  portcullis service show payments")]
    Show {
        /// Its name.
        name: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Remove a service: requests to it match no route and are denied.
    #[command(after_help = "Example:\n  portcullis service delete payments")]
    Delete {
        /// Its name.
        name: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

impl ServiceCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::Put { file, api } => {
                let body = documents::object(&file, "service")?;
                let name = cell(&body, "name");
                block_on(async {
                    let answer = api.connect()?.put(&["services", &name], &body).await?;
                    receipt::print(out, &answer, &format!("put service {name}"))
                })
            }
            Self::List { api } => block_on(async {
                let answer = api.connect()?.list(&["services"], &[]).await?;
                if out.is_json() {
                    out.json(&answer)?;
                    return Ok(Answer::Yes);
                }
                let mut table = Table::new(&["service", "route", "methods", "path", "action"]);
                for one in items(&answer) {
                    for route in one.get("routes").and_then(Value::as_array).into_iter().flatten() {
                        let columns = ["name", "methods", "path", "action"].map(|name| cell(route, name));
                        table.row(std::iter::once(cell(one, "name")).chain(columns));
                    }
                }
                out.table(&table, "no services")?;
                Ok(Answer::Yes)
            }),
            Self::Show { name, api } => block_on(async {
                out.json(&api.connect()?.get(&["services", &name], &[]).await?)?;
                Ok(Answer::Yes)
            }),
            Self::Delete { name, api } => block_on(async {
                let answer = api.connect()?.delete(&["services", &name]).await?;
                receipt::print(out, &answer, &format!("deleted service {name}"))
            }),
        }
    }
}
