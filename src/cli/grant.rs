//! `portcullis grant`: ask for a just-in-time permission, vote on it, look at it, end it.
//!
//! Plane: composition, a client of the control plane's API. An approval fetches the request, shows it and sends back
//! the digest of exactly what was shown. A revocation exits with 1 while a receipt is incomplete.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::api::{Api, ApiArgs, cell, items, object};
use super::failure::{Answer, Failure, Outcome};
use super::output::{Out, Table};
use super::receipt::{self, WaitArgs};
use super::{args, block_on, files, watch};
use crate::credential::SpiffeId;
use crate::object::GrantId;

/// Just-in-time grants: ask, vote, look, end.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  portcullis grant request --from-denial denial.json && portcullis grant list")]
pub(super) enum GrantCommand {
    /// Ask for a grant.
    #[command(after_help = "Example:\n  \
        curl -s -X POST … | portcullis grant request --from-denial -\n  \
        portcullis grant request --workload spiffe://example.org/agent --resource payments/refunds \\\n    \
        --action write --duration 30m --reason 'refund run 42'")]
    Request(RequestArgs),
    /// Vote for a request, as it stands now.
    #[command(after_help = "Example:\n  portcullis grant approve 0198c2d4-7c1e-4b6f-9a53-0d2f6f3f3a11")]
    Approve {
        /// Id of the request.
        id: GrantId,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Vote against a request.
    #[command(
        after_help = "Example:\n  portcullis grant deny 0198c2d4-7c1e-4b6f-9a53-0d2f6f3f3a11 --reason 'wrong environment'"
    )]
    Deny {
        /// Id of the request.
        id: GrantId,
        /// Why.
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Take a request of your own back.
    #[command(after_help = "Example:\n  portcullis grant withdraw 0198c2d4-7c1e-4b6f-9a53-0d2f6f3f3a11")]
    Withdraw {
        /// Id of the request.
        id: GrantId,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List grants and requests.
    #[command(after_help = "Example:\n  portcullis grant list --workload spiffe://example.org/agent --state active")]
    List {
        /// Only this workload's.
        #[arg(long, value_name = "SPIFFE_ID")]
        workload: Option<SpiffeId>,
        /// Only in this state, as in `pending`, `active`, `ended`, `revoked`.
        #[arg(long)]
        state: Option<String>,
        /// Go on telling what changes, until interrupted.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show one grant.
    #[command(after_help = "Example:\n  portcullis grant show 0198c2d4-7c1e-4b6f-9a53-0d2f6f3f3a11 --watch")]
    Show {
        /// Its id.
        id: GrantId,
        /// Tell each state that it comes to, until it is over. With --output json: one document a line.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Give a grant back before its time is over: one that you asked for, or your own workload's.
    #[command(after_help = "Example:\n  portcullis grant drop 0198c2d4-7c1e-4b6f-9a53-0d2f6f3f3a11 --wait 5s")]
    Drop {
        /// Its id.
        id: GrantId,
        /// Why.
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        wait: WaitArgs,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// End a grant now.
    #[command(after_help = "Example:\n  portcullis grant revoke 0198c2d4-7c1e-4b6f-9a53-0d2f6f3f3a11 --wait 5s")]
    Revoke {
        /// Its id.
        id: GrantId,
        /// Why.
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        wait: WaitArgs,
        #[command(flatten)]
        api: ApiArgs,
    },
}

/// What a grant is asked for.
#[derive(Debug, Args)]
pub(super) struct RequestArgs {
    /// File with a denial, or with the `grant_request` of one: submitted as it stands. `-` reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["workload", "resource", "action", "path"])]
    from_denial: Option<PathBuf>,
    /// For whom.
    #[arg(long, value_name = "SPIFFE_ID", required_unless_present = "from_denial")]
    workload: Option<SpiffeId>,
    /// A service or a route, as in `payments` or `payments/refunds`; may be repeated.
    #[arg(long, required_unless_present = "from_denial")]
    resource: Vec<String>,
    /// An action, as in `read` or `write`; may be repeated.
    #[arg(long, required_unless_present = "from_denial")]
    action: Vec<String>,
    /// Only paths that match this URI template, as in `/refunds/{*}`.
    #[arg(long, value_name = "TEMPLATE")]
    path: Option<String>,
    /// For how long once approved, as in `30m`. With --from-denial: instead of what the denial says.
    #[arg(long, value_parser = args::duration, required_unless_present = "from_denial")]
    duration: Option<Duration>,
    /// Why. With --from-denial: instead of what the denial says.
    #[arg(long)]
    reason: Option<String>,
    /// Wait so long until it is decided; exit 1 unless it is approved.
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    #[arg(num_args = 0..=1, default_missing_value = "10m")]
    wait: Option<Duration>,
    #[command(flatten)]
    api: ApiArgs,
}

// === impl GrantCommand ===

impl GrantCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::Request(args) => args.run(out),
            Self::Approve { id, api } => block_on(approve(out, api.connect()?, id)),
            Self::Deny { id, reason, api } => block_on(deny(out, api.connect()?, id, &reason)),
            Self::Withdraw { id, api } => block_on(async {
                let answer = api.connect()?.post(&["grant-requests", &id.to_string(), "withdraw"], &json!({})).await?;
                receipt::print(out, &answer, &format!("withdrew {id}"))
            }),
            Self::List { workload, state, watch, api } => block_on(async {
                let filters = [("workload", workload.map(|id| id.to_string())), ("state", state)];
                let query: Vec<_> = filters.into_iter().filter_map(|(k, v)| Some((k, v?))).collect();
                let api = api.connect()?;
                if watch {
                    return watch::follow_list(out, &api, &query).await;
                }
                let answer = api.list(&["grants"], &query).await?;
                list(out, &answer)
            }),
            Self::Show { id, watch: true, api } => {
                block_on(async { watch::follow(out, &api.connect()?, &id.to_string()).await })
            }
            Self::Show { id, watch: false, api } => block_on(async {
                let answer = api.connect()?.get(&["grants", &id.to_string()], &[]).await?;
                show(out, &answer)?;
                Ok(Answer::Yes)
            }),
            Self::Drop { id, reason, wait, api } => block_on(async {
                let body = json!({ "reason": reason });
                let answer = api.connect()?.post_wait(&["grants", &id.to_string(), "drop"], &body, wait.wait).await?;
                receipt::print(out, &answer, &format!("dropped {id}"))
            }),
            Self::Revoke { id, reason, wait, api } => block_on(async {
                let body = json!({ "reason": reason });
                let answer = api.connect()?.post_wait(&["grants", &id.to_string(), "revoke"], &body, wait.wait).await?;
                receipt::print(out, &answer, &format!("revoked {id}"))
            }),
        }
    }
}

// === impl RequestArgs ===

impl RequestArgs {
    fn run(self, out: &mut Out<'_>) -> Outcome {
        let body = self.body()?;
        block_on(async {
            let api = self.api.connect()?;
            let answer = api.post(&["grant-requests"], &body).await?;
            if let Some(wait) = self.wait {
                let id = cell(object(&answer), "id");
                if !out.is_json() {
                    out.line(format!("requested {id}; waiting for its approval"))?;
                    out.flush()?;
                }
                let decided = watch::until_decided(&api, &id, wait).await?;
                show(out, &decided)?;
                let approved = matches!(cell(&decided, "state").as_str(), "active" | "scheduled");
                return Ok(if approved { Answer::Yes } else { Answer::No });
            }
            if out.is_json() {
                out.json(&answer)?;
            } else {
                let grant = object(&answer);
                out.line(format!("requested {}", cell(grant, "id")))?;
                details(out, grant)?;
                out.line(format!("next: portcullis grant approve {}  (as another operator)", cell(grant, "id")))?;
            }
            Ok(Answer::Yes)
        })
    }

    fn body(&self) -> Result<Value, Failure> {
        let mut body = match &self.from_denial {
            Some(path) => from_denial(&path.display().to_string(), &files::read_text(path)?)?,
            None => {
                let mut body = Map::new();
                body.insert("workload".to_owned(), json!(self.workload));
                body.insert("resources".to_owned(), json!(self.resource));
                body.insert("actions".to_owned(), json!(self.action));
                if let Some(path) = &self.path {
                    body.insert("path".to_owned(), json!(path));
                }
                body
            }
        };
        if let Some(duration) = self.duration {
            body.insert("duration_seconds".to_owned(), json!(duration.as_secs()));
        }
        if let Some(reason) = &self.reason {
            body.insert("reason".to_owned(), json!(reason));
        }
        Ok(Value::Object(body))
    }
}

/// The grant request in a denial: the whole problem document, or just the object.
fn from_denial(name: &str, text: &str) -> Result<Map<String, Value>, Failure> {
    let value: Value =
        serde_json::from_str(text).map_err(|e| Failure::error(format!("`{name}` is not a JSON document: {e}")))?;
    match value {
        // What `check --output json` prints holds the denial's body.
        Value::Object(mut problem) => match problem
            .remove("grant_request")
            .or_else(|| problem.get_mut("problem")?.as_object_mut()?.remove("grant_request"))
        {
            Some(Value::Object(request)) => Ok(request),
            None if problem.contains_key("workload") && problem.contains_key("resources") => Ok(problem),
            _ => {
                let reason = problem.get("reason").and_then(Value::as_str).unwrap_or("unknown");
                Err(Failure::error(format!(
                    "`{name}` holds no `grant_request` (its reason is `{reason}`): only a denial `entitlement.*` to an \
                     authenticated workload carries one"
                )))
            }
        },
        _ => Err(Failure::error(format!("`{name}` is not a denial"))),
    }
}

async fn approve(out: &mut Out<'_>, api: Api, id: GrantId) -> Outcome {
    let id = &*id.to_string();
    let request = api.get(&["grant-requests", id], &[]).await?;
    if !out.is_json() {
        details(out, &request)?;
    }
    // The vote is on what was fetched just now; should it be another by the time it arrives, it does not count.
    let answer = api.post(&["grant-requests", id, "approve"], &json!({ "digest": request.get("digest") })).await?;
    receipt::print(out, &answer, &format!("approved {id}"))?;
    if !out.is_json() {
        let ends = cell(object(&answer), "not_after");
        if !ends.is_empty() {
            out.line(format!("active until {ends}"))?;
        }
    }
    Ok(Answer::Yes)
}

async fn deny(out: &mut Out<'_>, api: Api, id: GrantId, reason: &str) -> Outcome {
    let id = &*id.to_string();
    let request = api.get(&["grant-requests", id], &[]).await?;
    let body = json!({ "digest": request.get("digest"), "reason": reason });
    let answer = api.post(&["grant-requests", id, "deny"], &body).await?;
    receipt::print(out, &answer, &format!("denied {id}"))
}

fn list(out: &mut Out<'_>, answer: &Value) -> Outcome {
    if out.is_json() {
        out.json(answer)?;
        return Ok(Answer::Yes);
    }
    let mut table = Table::new(&["id", "state", "workload", "resources", "actions", "ends"]).whole(&[0, 5]);
    for item in items(answer) {
        let columns = ["id", "state", "workload", "resources", "actions"].map(|name| cell(item, name));
        table.row(columns.into_iter().chain([seconds(&cell(item, "not_after"))]));
    }
    out.table(&table, "no grants")?;
    Ok(Answer::Yes)
}

/// A time without its fraction.
fn seconds(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(whole, _millis)| format!("{whole}Z"))
}

fn show(out: &mut Out<'_>, answer: &Value) -> Result<(), Failure> {
    if out.is_json() {
        return out.json(answer);
    }
    details(out, answer)
}

fn details(out: &mut Out<'_>, grant: &Value) -> Result<(), Failure> {
    let names = [
        "id",
        "state",
        "workload",
        "resources",
        "actions",
        "path",
        "duration_seconds",
        "reason",
        "requested_by",
        "requested_at",
        "digest",
        "not_before",
        "not_after",
    ];
    for name in names {
        let value = cell(grant, name);
        if !value.is_empty() {
            out.line(format!("  {name:<16} {}", super::output::printable(&value)))?;
        }
    }
    for vote in grant.get("votes").and_then(Value::as_array).into_iter().flatten() {
        let text = format!("{} by {} at {}", cell(vote, "vote"), cell(vote, "approver"), cell(vote, "at"));
        out.line(format!("  {:<16} {}", "vote", super::output::printable(&text)))?;
    }
    if let Some(end) = grant.get("ended").filter(|e| e.is_object()) {
        let text = format!("by {} at {} {}", cell(end, "by"), cell(end, "at"), cell(end, "reason"));
        out.line(format!("  {:<16} {}", "ended", super::output::printable(text.trim_end())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_or_its_grant_request_is_taken_as_it_stands() {
        let request = json!({ "workload": "spiffe://a/b", "resources": ["x"], "extra": 1 });
        let denial = json!({ "reason": "entitlement.no_grant", "grant_request": request });
        let check = json!({ "allowed": false, "problem": denial });
        for text in [denial.to_string(), request.to_string(), check.to_string()] {
            assert_eq!(Value::Object(from_denial("f", &text).unwrap()), request);
        }
        let unauthenticated = json!({ "reason": "credential" }).to_string();
        let Err(Failure::Error(message)) = from_denial("f", &unauthenticated) else { panic!("accepted") };
        assert!(message.contains("its reason is `credential`"), "{message}");
        assert!(from_denial("f", "[]").is_err());
        assert!(from_denial("f", "<html>").is_err());
    }
}
