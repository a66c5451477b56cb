//! `portcullis operator-policy`: check, publish and show who may do what with the control plane.
//!
//! Plane: composition, a client of the control plane's API. `check` needs no server: it runs the same strict validation
//! that publishing does, over the operations of this version, and exits with 1 on a text that does not validate.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::api::ApiArgs;
use super::failure::{Answer, Outcome};
use super::output::Out;
use super::{files, policy};
use crate::control::api::operator_actions;
use crate::control::operator_policy::{OperatorPolicies, schema_text};

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
            Self::Publish { file, dry_run, api } => policy::publish(out, &api, "operator-policies", &file, dry_run),
            Self::Show { api } => policy::show(out, &api, "operator-policies"),
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
        Err(errors) => policy::print_errors(out, file, &errors),
    }
}
