//! `portcullis operator`: who may use the control plane's API.
//!
//! Plane: composition, a client of the control plane's API. A new token is shown once, or written to a file of mode
//! 0600; the server keeps only its digest, so a lost token is replaced and not looked up.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::api::{ApiArgs, cell, items};
use super::failure::{Answer, Failure, Outcome};
use super::output::{Out, Table};
use super::{block_on, files, receipt};

/// Operators: who may use the control plane's API.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  portcullis operator create alice --write-token alice.token")]
pub(super) enum OperatorCommand {
    /// Create an operator. Its token is shown this once, or written to a file.
    #[command(after_help = "Example:\n  portcullis operator create alice --write-token alice.token")]
    Create {
        /// Name of the operator.
        name: String,
        /// It is a script or a pipeline: it cannot do what wants a human.
        #[arg(long)]
        automation: bool,
        /// Write the token to this file (mode 0600) instead of showing it.
        #[arg(long, value_name = "FILE")]
        write_token: Option<PathBuf>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List operators.
    #[command(after_help = "Example:\n  portcullis operator list")]
    List {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Remove an operator: its token is not accepted any more.
    #[command(after_help = "Example:\n  portcullis operator delete alice")]
    Delete {
        /// Name of the operator.
        name: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

impl OperatorCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::Create { name, automation, write_token, api } => block_on(async {
                let kind = if automation { "automation" } else { "person" };
                let document = json!({ "name": name, "kind": kind });
                let mut answer = api.connect()?.post(&["operators"], &document).await?;
                let token = zeroize::Zeroizing::new(cell(&answer, "token"));
                if token.is_empty() {
                    return Err(Failure::error("the control plane's answer holds no token"));
                }
                if let Some(path) = write_token {
                    files::write_secret(&path, &format!("{}\n", *token))?;
                    if let Some(answer) = answer.as_object_mut() {
                        answer.remove("token");
                    }
                    if out.is_json() {
                        out.json(&answer)?;
                    } else {
                        out.line(format!("created operator {name}; its token is in `{}`", path.display()))?;
                    }
                } else if out.is_json() {
                    out.json(&answer)?;
                } else {
                    out.line(token.as_str())?;
                }
                Ok(Answer::Yes)
            }),
            Self::List { api } => block_on(async {
                let answer = api.connect()?.list(&["operators"], &[]).await?;
                if out.is_json() {
                    out.json(&answer)?;
                    return Ok(Answer::Yes);
                }
                let mut table = Table::new(&["name", "kind", "created at", "created by", "revoked at"]);
                for one in items(&answer) {
                    table.row(["name", "kind", "created_at", "created_by", "revoked_at"].map(|name| cell(one, name)));
                }
                out.table(&table, "no operators")?;
                Ok(Answer::Yes)
            }),
            Self::Delete { name, api } => block_on(async {
                let answer = api.connect()?.delete(&["operators", &name]).await?;
                receipt::print(out, &answer, &format!("deleted operator {name}"))
            }),
        }
    }
}
