//! `portcullis grant`: ask for a just-in-time permission, vote on it, look at it, renew it, end it.
//!
//! Plane: composition, a client of the control plane's API. An approval fetches the request, shows it and sends back
//! the digest of exactly what was shown. A revocation exits with 1 while a receipt is incomplete.

mod request;
mod text;

use clap::Subcommand;
use serde_json::json;

use self::request::{BreakGlassArgs, RenewArgs, RequestArgs};
use super::api::{Api, ApiArgs};
use super::failure::{Answer, Outcome};
use super::output::Out;
use super::receipt::{self, WaitArgs};
use super::{api, block_on, watch};
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
        --action write --duration 30m --reason 'refund run 42'\n  \
        portcullis grant request --workload spiffe://example.org/agent --resource payments/refunds \\\n    \
        --action write --duration 10m --uses 1 --ticket OPS-7 --source-network 10.0.0.0/8 \\\n    \
        --header 'x-run: 42' --window mon-fri,08:00-18:00")]
    Request(RequestArgs),
    /// Ask for what a grant gives, once more: a new request, linked to it.
    #[command(after_help = "Example:\n  portcullis grant renew 0198c2d4-7c1e-4b6f-9a53-0d2f6f3f3a11 --duration 30m")]
    Renew(RenewArgs),
    /// In an emergency: a grant at once, without approval, that somebody else reviews afterwards.
    #[command(after_help = "Example:\n  \
        portcullis grant break-glass --workload spiffe://example.org/agent --resource payments/refunds \\\n    \
        --action write --duration 15m --reason 'incident 7: refunds are stuck'")]
    BreakGlass(BreakGlassArgs),
    /// Vote for a request, as it stands now.
    #[command(after_help = "Example:\n  portcullis grant approve 0198c2d4-7c1e-4b6f-9a53-0d2f6f3f3a11 --step security")]
    Approve {
        /// Id of the request.
        id: GrantId,
        /// The step that the approval is for. Default: the first that needs one and that you may give.
        #[arg(long)]
        step: Option<String>,
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
    /// Show one grant or request: what it gives, its steps of approval, its votes.
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

// === impl GrantCommand ===

impl GrantCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::Request(args) => args.run(out),
            Self::Renew(args) => args.run(out),
            Self::BreakGlass(args) => args.run(out),
            Self::Approve { id, step, api } => block_on(approve(out, api.connect()?, id, step)),
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
                text::list(out, &answer)
            }),
            Self::Show { id, watch: true, api } => {
                block_on(async { watch::follow(out, &api.connect()?, &id.to_string()).await })
            }
            Self::Show { id, watch: false, api } => block_on(async {
                let answer = api.connect()?.get(&["grants", &id.to_string()], &[]).await?;
                text::show(out, &answer)?;
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

async fn approve(out: &mut Out<'_>, api: Api, id: GrantId, step: Option<String>) -> Outcome {
    let id = &*id.to_string();
    let request = api.get(&["grant-requests", id], &[]).await?;
    if !out.is_json() {
        text::details(out, &request)?;
    }
    // The vote is on what was fetched just now; should it be another by the time it arrives, it does not count.
    let mut vote = json!({ "digest": request.get("digest") });
    if let (Some(step), Some(vote)) = (step, vote.as_object_mut()) {
        vote.insert("step".to_owned(), json!(step));
    }
    let answer = api.post(&["grant-requests", id, "approve"], &vote).await?;
    receipt::print(out, &answer, &format!("approved {id}"))?;
    if !out.is_json() {
        text::standing(out, api::object(&answer))?;
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
