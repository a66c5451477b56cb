//! `portcullis credential keys`, `rotate` and `revoke-key`: the keys that the control plane signs tokens with.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::cli::api::{ApiArgs, cell, items, object};
use crate::cli::failure::{Answer, Outcome};
use crate::cli::output::{Out, Table};
use crate::cli::{args, block_on, receipt};

/// List the keys: which signs, which is next, which are still published.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  portcullis credential keys")]
pub(in crate::cli) struct KeysArgs {
    /// Those that are gone as well.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    api: ApiArgs,
}

/// Have the next key take over, as soon as everybody who verifies knows it.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  portcullis credential rotate")]
pub(in crate::cli) struct RotateArgs {
    /// At once, although some may not know it yet: those deny its tokens until they do.
    #[arg(long)]
    at_once: bool,
    #[command(flatten)]
    api: ApiArgs,
}

/// Revoke a key: no token that it signed counts any more, and the next key takes over.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  portcullis credential revoke-key --reason 'host was broken into' --wait 10s \\\n    \
    4hJgzSK9w0hxCM9pQkPyhWp2YbWUuxGJc9iRwf1yXkE"
)]
pub(in crate::cli) struct RevokeKeyArgs {
    /// Its id, as `keys` lists it.
    #[arg(allow_hyphen_values = true)]
    kid: String,
    /// Why.
    #[arg(long, default_value = "")]
    reason: String,
    /// Wait so long for the enforcement points to apply it, 1s to 60s.
    #[arg(long, value_parser = args::duration, value_name = "DURATION")]
    wait: Option<Duration>,
    #[command(flatten)]
    api: ApiArgs,
}

impl KeysArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        block_on(async {
            let mut answer = self.api.connect()?.list(&["signing-keys"], &[]).await?;
            if !self.all
                && let Some(items) = answer.get_mut("items").and_then(serde_json::Value::as_array_mut)
            {
                items.retain(|key| cell(key, "state") != "gone");
            }
            if out.is_json() {
                out.json(&answer)?;
                return Ok(Answer::Yes);
            }
            let mut table = Table::new(&["kid", "state", "usable from", "since"]).whole(&[0]);
            for key in items(&answer) {
                let since = ["gone_at", "retired_at", "activated_at", "created_at"];
                let since = since.iter().map(|name| cell(key, name)).find(|time| !time.is_empty()).unwrap_or_default();
                let state = match key.get("revoked") {
                    Some(_) => "revoked".to_owned(),
                    None => cell(key, "state"),
                };
                table.row([cell(key, "kid"), state, short(&cell(key, "usable_from")), short(&since)]);
            }
            out.table(&table, "no keys: `tokens` is not configured")?;
            Ok(Answer::Yes)
        })
    }
}

impl RotateArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        block_on(async {
            let api = self.api.connect()?;
            let answer = api.post(&["signing-keys", "rotate"], &json!({ "at_once": self.at_once })).await?;
            let key = object(&answer);
            let kid = cell(key, "kid");
            let text = match cell(key, "state").as_str() {
                "active" => format!("{kid} signs now"),
                _ => format!("{kid} signs from {}", cell(key, "usable_from")),
            };
            receipt::print(out, &answer, &text)
        })
    }
}

impl RevokeKeyArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        block_on(async {
            let api = self.api.connect()?;
            let path = ["signing-keys", &self.kid, "revoke"];
            let answer = api.post_wait(&path, &json!({ "reason": self.reason }), self.wait).await?;
            receipt::print(out, &answer, &format!("revoked {}", self.kid))
        })
    }
}

/// A time without its fraction of a second.
fn short(time: &str) -> String {
    time.split('.').next().unwrap_or_default().replace('T', " ")
}
