//! `portcullis policy`: check, publish and show the Cedar policy set.
//!
//! Plane: composition, a client of the control plane's API. `check` needs no server: it runs the same strict validation
//! that publishing does, and exits with 1 on a text that does not validate, naming line and column.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::api::{ApiArgs, cell};
use super::failure::{Answer, Outcome};
use super::output::Out;
use super::{block_on, files, receipt};
use crate::object::ArgumentType;
use crate::policy;

/// The Cedar policy set in force.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Example:\n  portcullis policy check policies.cedar && portcullis policy publish policies.cedar"
)]
pub(super) enum PolicyCommand {
    /// Validate a policy set on this machine, without a control plane.
    #[command(after_help = "Example:\n  portcullis policy check policies.cedar --action ship --argument amount:long")]
    Check {
        /// Cedar text; `-` reads standard input.
        file: PathBuf,
        /// Name of an action beside `read`, `write` and `delete` that routes use; may be repeated.
        #[arg(long)]
        action: Vec<String>,
        /// Argument of MCP tools that routes name, and its type: string, long or boolean; may be repeated.
        #[arg(long, value_name = "NAME:TYPE", value_parser = argument)]
        argument: Vec<(String, ArgumentType)>,
    },
    /// Put a policy set in force.
    #[command(after_help = "Example:\n  portcullis policy publish policies.cedar --dry-run")]
    Publish {
        /// Cedar text; `-` reads standard input.
        file: PathBuf,
        /// Let the control plane check it, and change nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Print the policy set in force.
    #[command(after_help = "Example:\n  portcullis policy show > policies.cedar")]
    Show {
        #[command(flatten)]
        api: ApiArgs,
    },
}

impl PolicyCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::Check { file, action, argument } => {
                check(out, &file, policy::Names { actions: &action, arguments: &argument.into_iter().collect() })
            }
            Self::Publish { file, dry_run, api } => publish(out, &api, "policies", &file, dry_run),
            Self::Show { api } => show(out, &api, "policies"),
        }
    }
}

/// `NAME:TYPE`
fn argument(text: &str) -> Result<(String, ArgumentType), String> {
    let (name, kind) = text.split_once(':').ok_or("expected NAME:TYPE")?;
    let kind = serde_json::from_value(json!(kind));
    kind.map(|kind| (name.to_owned(), kind)).map_err(|_unknown| "the type is string, long or boolean".to_owned())
}

fn check(out: &mut Out<'_>, file: &Path, names: policy::Names<'_>) -> Outcome {
    let text = files::read_text(file)?;
    match policy::validate(&text, names) {
        Ok(report) => {
            if out.is_json() {
                let (ids, reads) = (&report.ids, &report.reads);
                out.json(&json!({ "valid": true, "policies": report.policies, "ids": ids, "reads": reads }))?;
            } else {
                out.line(format!("valid: {} policies: {}", report.policies, report.ids.join(", ")))?;
                if !report.reads.is_empty() {
                    out.line(format!("reads: {}", report.reads.join(", ")))?;
                }
            }
            Ok(Answer::Yes)
        }
        Err(errors) => print_errors(out, file, &errors),
    }
}

/// Publishes a text to a collection of Cedar texts, or has the control plane check it only.
pub(super) fn publish(out: &mut Out<'_>, api: &ApiArgs, collection: &str, file: &Path, dry_run: bool) -> Outcome {
    let text = files::read_text(file)?;
    block_on(async {
        let answer = api.connect()?.post(&[collection], &json!({ "text": text, "dry_run": dry_run })).await?;
        if !out.is_json() {
            let ids = answer.pointer("/report/ids").or_else(|| answer.get("ids"));
            let count = ids.and_then(|ids| ids.as_array()).map_or(0, Vec::len);
            let set = answer.get("object").unwrap_or(&answer);
            out.line(format!("valid: {count} policies, digest {}", cell(set, "digest")))?;
            if dry_run {
                return Ok(Answer::Yes);
            }
        }
        receipt::print(out, &answer, "published")
    })
}

/// Prints the text of a collection that is in force.
pub(super) fn show(out: &mut Out<'_>, api: &ApiArgs, collection: &str) -> Outcome {
    block_on(async {
        let answer = api.connect()?.get(&[collection, "current"], &[]).await?;
        if out.is_json() {
            out.json(&answer)?
        } else {
            out.text(&cell(&answer, "text"))?
        }
        Ok(Answer::Yes)
    })
}

/// What is wrong with a text, each with its place. The answer is no.
pub(super) fn print_errors(out: &mut Out<'_>, file: &Path, errors: &policy::PolicyErrors) -> Outcome {
    let policy::PolicyErrors(errors) = errors;
    if out.is_json() {
        out.json(&json!({ "valid": false, "errors": errors }))?;
        return Ok(Answer::No);
    }
    for e in errors {
        let place = match (e.line, e.column) {
            (Some(line), Some(column)) => format!("{}:{line}:{column}", file.display()),
            _ => file.display().to_string(),
        };
        let policy = e.policy.as_ref().map(|p| format!(" policy `{p}`:")).unwrap_or_default();
        out.line(format!("{place}:{policy} {}", e.message))?;
        if let Some(help) = &e.help {
            out.line(format!("  help: {help}"))?;
        }
    }
    Ok(Answer::No)
}
