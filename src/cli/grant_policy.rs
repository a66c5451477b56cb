//! `portcullis grant-policy`: check, publish and show who may ask for and approve which grants.
//!
//! Plane: composition, a client of the control plane's API. `check` needs no server: it runs the same strict validation
//! that publishing does, and exits with 1 on a text that does not validate, naming line and column.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::api::ApiArgs;
use super::failure::{Answer, Outcome};
use super::output::Out;
use super::{files, policy};
use crate::grant::policy::GrantPolicies;

/// The Cedar policies of grants: who may ask for what for whom, and who approves it.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  \
    portcullis grant-policy check grants.cedar && portcullis grant-policy publish grants.cedar")]
pub(super) enum GrantPolicyCommand {
    /// Validate grant policies on this machine, without a control plane.
    #[command(after_help = "Example:\n  portcullis grant-policy check grants.cedar\n\n  \
        # grants.cedar\n  \
        @id(\"refunds\") @approvals(\"lead:1\") @max_duration(\"30m\") @requires(\"ticket\")\n  \
        permit(principal, action == Action::\"request\", resource in Service::\"payments\");\n  \
        @id(\"leads\")\n  \
        permit(principal in Group::\"leads\", action == Action::\"approve\", resource)\n  \
        when { context.step == \"lead\" };")]
    Check {
        /// Cedar text; `-` reads standard input.
        file: PathBuf,
    },
    /// Put grant policies in force, instead of those before.
    #[command(after_help = "Example:\n  portcullis grant-policy publish grants.cedar --dry-run")]
    Publish {
        /// Cedar text; `-` reads standard input.
        file: PathBuf,
        /// Let the control plane check it, and change nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Print the grant policies in force.
    #[command(after_help = "Example:\n  portcullis grant-policy show > grants.cedar")]
    Show {
        #[command(flatten)]
        api: ApiArgs,
    },
}

impl GrantPolicyCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::Check { file } => check(out, &file),
            Self::Publish { file, dry_run, api } => policy::publish(out, &api, "grant-policies", &file, dry_run),
            Self::Show { api } => policy::show(out, &api, "grant-policies"),
        }
    }
}

fn check(out: &mut Out<'_>, file: &Path) -> Outcome {
    match GrantPolicies::compile_with_report(&files::read_text(file)?) {
        Ok((_, report)) if out.is_json() => {
            out.json(&json!({ "valid": true, "policies": report.policies, "ids": report.ids }))?;
            Ok(Answer::Yes)
        }
        Ok((_, report)) => {
            out.line(format!("valid: {} policies: {}", report.policies, report.ids.join(", ")))?;
            Ok(Answer::Yes)
        }
        Err(errors) => policy::print_errors(out, file, &errors),
    }
}
