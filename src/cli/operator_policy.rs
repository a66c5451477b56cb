//! `portcullis operator-policy`: check, publish and show who may do what with the control plane.
//!
//! Plane: composition, a client of the control plane's API. `check` needs no server: it runs the same strict validation
//! that publishing does, over the operations of this version, and exits with 1 on a text that does not validate.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::api::{ApiArgs, cell};
use super::failure::{Answer, Outcome};
use super::output::Out;
use super::{block_on, files, receipt};
use crate::control::api::operator_actions;
use crate::control::operator_policy::{OperatorPolicies, schema_text};
use crate::policy::PolicyErrors;

/// Who may do what with the control plane: Cedar policies over the operations of its API.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Example:\n  portcullis operator-policy check ops.cedar && portcullis operator-policy publish ops.cedar"
)]
pub(super) enum OperatorPolicyCommand {
    /// Validate a set on this machine, without a control plane.
    #[command(after_help = "Example:\n  portcullis operator-policy check ops.cedar")]
    Check {
        /// Cedar text; `-` reads standard input.
        file: PathBuf,
    },
    /// Put a set in force.
    #[command(after_help = "Example:\n  portcullis operator-policy publish ops.cedar --dry-run")]
    Publish {
        /// Cedar text; `-` reads standard input.
        file: PathBuf,
        /// Let the control plane check it, and change nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Print the set in force; the default if none was published.
    #[command(after_help = "Example:\n  portcullis operator-policy show > ops.cedar")]
    Show {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Print the Cedar schema: every action of this version, and what policies can look at.
    #[command(after_help = "Example:\n  portcullis operator-policy schema")]
    Schema,
}

impl OperatorPolicyCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::Check { file } => check(out, &file),
            Self::Publish { file, dry_run, api } => {
                let text = files::read_text(&file)?;
                block_on(async {
                    let body = json!({ "text": text, "dry_run": dry_run });
                    let answer = api.connect()?.post(&["operator-policies"], &body).await?;
                    if !out.is_json() {
                        let ids = answer.get("ids").and_then(|ids| ids.as_array()).map_or(0, Vec::len);
                        out.line(format!("valid: {ids} policies, digest {}", cell(&answer, "digest")))?;
                        if dry_run {
                            return Ok(Answer::Yes);
                        }
                    }
                    receipt::print(out, &answer, "published")
                })
            }
            Self::Show { api } => block_on(async {
                let answer = api.connect()?.get(&["operator-policies", "current"], &[]).await?;
                if out.is_json() {
                    out.json(&answer)?
                } else {
                    out.text(&cell(&answer, "text"))?
                }
                Ok(Answer::Yes)
            }),
            Self::Schema => {
                let schema = schema_text(&operator_actions());
                if out.is_json() {
                    out.json(&json!({ "schema": schema }))?
                } else {
                    out.text(&schema)?
                }
                Ok(Answer::Yes)
            }
        }
    }
}

fn check(out: &mut Out<'_>, file: &Path) -> Outcome {
    let text = files::read_text(file)?;
    match OperatorPolicies::compile(&text, &operator_actions()) {
        Ok(policies) => {
            if out.is_json() {
                out.json(&json!({ "valid": true, "ids": policies.ids }))?;
            } else {
                out.line(format!("valid: {} policies: {}", policies.ids.len(), policies.ids.join(", ")))?;
            }
            Ok(Answer::Yes)
        }
        Err(PolicyErrors(errors)) => {
            if out.is_json() {
                out.json(&json!({ "valid": false, "errors": errors }))?;
                return Ok(Answer::No);
            }
            for e in &errors {
                let place = match (e.line, e.column) {
                    (Some(line), Some(column)) => format!("{}:{line}:{column}", file.display()),
                    _ => file.display().to_string(),
                };
                let policy = e.policy.as_ref().map(|p| format!(" policy `{p}`:")).unwrap_or_default();
                out.line(format!("{place}:{policy} {}", e.message))?;
            }
            Ok(Answer::No)
        }
    }
}
