//! `portcullis revoke`: end a token, a workload, a key … and be told where that is in force.
//!
//! Plane: composition, a client of the control plane's API. Revocations are append-only: lifting one leaves a record. With
//! `--wait` the exit status says whether the receipt is complete.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::api::{ApiArgs, cell, items, object};
use super::failure::{Answer, Outcome};
use super::output::{Out, Table};
use super::receipt::{self, WaitArgs};
use super::{args, block_on};
use crate::clock::Timestamp;
use crate::credential::SpiffeId;
use crate::object::GrantId;

/// End something now. Revocations beat every allow until they are lifted, which leaves a record.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Example:\n  portcullis revoke workload spiffe://example.org/agent --reason 'key leaked' --wait 5s"
)]
pub(super) enum RevokeCommand {
    /// One token.
    #[command(after_help = "Example:\n  portcullis revoke token --issuer production --jti 5f0c… --wait 5s")]
    Token {
        /// Name of its issuer.
        #[arg(long)]
        issuer: String,
        /// Its `jti` claim.
        #[arg(long)]
        jti: String,
        #[command(flatten)]
        common: Common,
    },
    /// Every token of a workload issued before a time.
    #[command(
        after_help = "Example:\n  portcullis revoke tokens-before --workload spiffe://example.org/agent \\\n    \
        --before 2026-01-31T12:00:00Z --wait 5s"
    )]
    TokensBefore {
        /// The workload.
        #[arg(long, value_name = "SPIFFE_ID")]
        workload: SpiffeId,
        /// Tokens issued earlier than this are refused.
        #[arg(long, value_name = "TIME", value_parser = args::timestamp)]
        before: Timestamp,
        #[command(flatten)]
        common: Common,
    },
    /// A workload.
    #[command(after_help = "Example:\n  portcullis revoke workload spiffe://example.org/agent --wait 5s")]
    Workload {
        /// The workload.
        #[arg(value_name = "SPIFFE_ID")]
        workload: SpiffeId,
        #[command(flatten)]
        common: Common,
    },
    /// A whole issuer.
    #[command(after_help = "Example:\n  portcullis revoke issuer production --reason 'CA compromised' --wait 5s")]
    Issuer {
        /// Its name.
        issuer: String,
        #[command(flatten)]
        common: Common,
    },
    /// One signing key of an issuer.
    #[command(after_help = "Example:\n  portcullis revoke key --issuer production --kid 2026-01 --wait 5s")]
    Key {
        /// Name of the issuer.
        #[arg(long)]
        issuer: String,
        /// The `kid` of the key.
        #[arg(long)]
        kid: String,
        #[command(flatten)]
        common: Common,
    },
    /// Every token bound to one Kubernetes object: a pod, a service account, a node or a secret.
    #[command(after_help = "Example:\n  portcullis revoke bound-object --issuer cluster \\\n    \
        --uid 6f1c2a0e-8f3d-4a57-9d55-0c8f6f1f2a11 --wait 5s")]
    BoundObject {
        /// Name of the issuer, of kind kubernetes.
        #[arg(long)]
        issuer: String,
        /// UID of the object (`metadata.uid`).
        #[arg(long)]
        uid: String,
        #[command(flatten)]
        common: Common,
    },
    /// Every client certificate with a serial number.
    #[command(after_help = "Example:\n  portcullis revoke certificate 0A1B2C3D --wait 5s")]
    Certificate {
        /// The serial number, in hex, as `openssl x509 -serial` prints it after the `=`.
        serial: String,
        #[command(flatten)]
        common: Common,
    },
    /// A grant.
    #[command(after_help = "Example:\n  portcullis revoke grant 0198c2d4-7c1e-4b6f-9a53-0d2f6f3f3a11 --wait 5s")]
    Grant {
        /// Its id.
        grant: GrantId,
        #[command(flatten)]
        common: Common,
    },
    /// A workload in its role as a delegator: nobody acts for it any more.
    #[command(after_help = "Example:\n  portcullis revoke delegator spiffe://example.org/agent --wait 5s")]
    Delegator {
        /// The workload.
        #[arg(value_name = "SPIFFE_ID")]
        workload: SpiffeId,
        #[command(flatten)]
        common: Common,
    },
    /// Take a revocation out of force. It stays on record, with who lifted it and why.
    ///
    /// A grant that was revoked, and a workload that was retired, stay ended. A suspended workload is resumed instead.
    #[command(after_help = "Example:\n  portcullis revoke lift 7c9e6679-7425-40de-944b-e07fc1f90ae7 \\\n    \
        --reason 'the key had not leaked' --wait 5s")]
    Lift {
        /// Id of the revocation: see `portcullis revoke list`.
        id: String,
        /// Why.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        wait: WaitArgs,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List revocations.
    #[command(after_help = "Example:\n  portcullis revoke list --output json\n  portcullis revoke list --lifted")]
    List {
        /// Those that have been lifted, instead of those in force.
        #[arg(long)]
        lifted: bool,
        #[command(flatten)]
        api: ApiArgs,
    },
}

/// What every revocation takes.
#[derive(Debug, Args)]
pub(super) struct Common {
    /// Why.
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    api: ApiArgs,
}

impl RevokeCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let (target, common) = match self {
            Self::List { lifted: false, api } => return list(out, &api),
            Self::List { lifted: true, api } => return list_lifted(out, &api),
            Self::Lift { id, reason, wait, api } => {
                let body = json!({ "reason": reason });
                return block_on(async {
                    let answer = api.connect()?.post_wait(&["revocations", &id, "lift"], &body, wait.wait).await?;
                    let target = object(&answer).pointer("/revocation/target").map(describe).unwrap_or_default();
                    receipt::print(out, &answer, &format!("lifted {id}, of {target}"))
                });
            }
            Self::Token { issuer, jti, common } => (json!({ "kind": "token", "issuer": issuer, "jti": jti }), common),
            Self::TokensBefore { workload, before, common } => {
                (json!({ "kind": "tokens_before", "workload": workload, "before": before }), common)
            }
            Self::Workload { workload, common } => (json!({ "kind": "workload", "workload": workload }), common),
            Self::Issuer { issuer, common } => (json!({ "kind": "issuer", "issuer": issuer }), common),
            Self::Key { issuer, kid, common } => (json!({ "kind": "key", "issuer": issuer, "kid": kid }), common),
            Self::BoundObject { issuer, uid, common } => {
                (json!({ "kind": "bound_object", "issuer": issuer, "uid": uid }), common)
            }
            Self::Certificate { serial, common } => (json!({ "kind": "certificate", "serial": serial }), common),
            Self::Grant { grant, common } => (json!({ "kind": "grant", "grant": grant }), common),
            Self::Delegator { workload, common } => (json!({ "kind": "delegator", "workload": workload }), common),
        };
        let Common { reason, wait, api } = common;
        let body = json!({ "target": target, "reason": reason });
        block_on(async {
            let answer = api.connect()?.post_wait(&["revocations"], &body, wait.wait).await?;
            receipt::print(out, &answer, &format!("revoked {}", describe(&target)))
        })
    }
}

fn list(out: &mut Out<'_>, api: &ApiArgs) -> Outcome {
    block_on(async {
        let answer = api.connect()?.list(&["revocations"], &[]).await?;
        if out.is_json() {
            out.json(&answer)?;
            return Ok(Answer::Yes);
        }
        let mut table = Table::new(&["id", "at", "by", "target", "reason"]).whole(&[0]);
        for one in items(&answer) {
            let target = one.get("target").map(describe).unwrap_or_default();
            let at = minutes(&cell(one, "created_at"));
            table.row([cell(one, "id"), at, cell(one, "created_by"), target, cell(one, "reason")]);
        }
        out.table(&table, "no revocations")?;
        Ok(Answer::Yes)
    })
}

fn list_lifted(out: &mut Out<'_>, api: &ApiArgs) -> Outcome {
    block_on(async {
        let answer = api.connect()?.list(&["lifts"], &[]).await?;
        if out.is_json() {
            out.json(&answer)?;
            return Ok(Answer::Yes);
        }
        let mut table = Table::new(&["id", "lifted at", "lifted by", "target", "reason"]).whole(&[0]);
        for one in items(&answer) {
            let id = one.get("revocation").map(|revocation| cell(revocation, "id")).unwrap_or_default();
            let target = one.pointer("/revocation/target").map(describe).unwrap_or_default();
            table.row([id, minutes(&cell(one, "lifted_at")), cell(one, "lifted_by"), target, cell(one, "reason")]);
        }
        out.table(&table, "no lifted revocations")?;
        Ok(Answer::Yes)
    })
}

/// A time to the minute.
fn minutes(time: &str) -> String {
    time.rsplit_once(':').map_or_else(|| time.to_owned(), |(minutes, _seconds)| format!("{minutes}Z"))
}

/// A target in words: its kind, then its other members.
fn describe(target: &Value) -> String {
    let names = ["issuer", "jti", "kid", "uid", "serial", "workload", "before", "grant"];
    let parts = names.map(|name| cell(target, name));
    let parts: Vec<_> = parts.iter().filter(|p| !p.is_empty()).map(String::as_str).collect();
    format!("{} {}", cell(target, "kind"), parts.join(" "))
}
