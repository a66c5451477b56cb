//! `portcullis check`: one decision, explained, from a running sidecar or from its state on disk.
//!
//! The same engine answers as for Envoy. Exit status 0 is an allow, 1 a denial.

mod offline;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::api::{self, cell};
use super::failure::{Answer, Failure, Outcome};
use super::output::{Out, printable};
use super::{args, block_on, files};
use crate::authz::Peer;

/// Decide on one request, and say why.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  portcullis check --path /catalog/1 --token-file agent.jwt --explain\n  \
    portcullis check --path /catalog/1 --token-file agent.jwt --snapshot /var/lib/portcullis/sidecar \\\n    \
    --verify-key verify-key")]
pub(super) struct CheckArgs {
    /// Method of the request.
    #[arg(long, default_value = "GET")]
    method: String,
    /// Path of the request, with its query.
    #[arg(long)]
    path: String,
    /// Host of the request.
    #[arg(long, default_value = "localhost")]
    host: String,
    /// File with the workload's token, sent as `authorization: Bearer`.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with the workload's certificate, as if a proxy had verified its chain.
    #[arg(long, value_name = "FILE")]
    certificate_file: Option<PathBuf>,
    /// The identity in that certificate, as a proxy may say it of a connection.
    #[arg(long, value_name = "URI")]
    peer_principal: Option<String>,
    /// Address of who sends the request, as in a sidecar's `trusted_proxies` and in conditions of grants.
    #[arg(long, value_name = "IP")]
    peer_address: Option<IpAddr>,
    /// A header of the request; may be repeated.
    #[arg(long, value_name = "NAME: VALUE", value_parser = args::header)]
    header: Vec<(String, String)>,
    /// File with the body of the request, as text: what a grant for one exact call may depend on.
    #[arg(long, value_name = "FILE")]
    body_file: Option<PathBuf>,
    /// Say what each step found, without the caches.
    #[arg(long)]
    explain: bool,
    /// The admin address of a running sidecar.
    #[arg(long, env = "PORTCULLIS_ADMIN", value_name = "URL", default_value = "http://127.0.0.1:9193")]
    admin: String,
    /// Decide from the state in this directory (`state.directory` in sidecar.yaml) instead of asking a sidecar.
    #[arg(long, value_name = "DIR", requires = "verify_key")]
    snapshot: Option<PathBuf>,
    /// With --snapshot: file with the control plane's public signing key.
    #[arg(long, value_name = "FILE", requires = "snapshot")]
    verify_key: Option<PathBuf>,
}

impl CheckArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let answer = match (&self.snapshot, &self.verify_key) {
            (Some(directory), Some(key)) => {
                let request = (self.method.as_str(), self.path.as_str(), self.host.as_str());
                let certificate = self.certificate()?;
                let (principal, certificate) = (self.peer_principal.as_deref(), certificate.as_deref());
                let peer = Peer { principal, certificate, address: self.peer_address };
                let body = self.body()?;
                let body = body.as_ref().map(String::as_bytes);
                offline::decide(directory, key, request, (&*self.headers()?, body), peer, self.explain)?
            }
            _ => block_on(self.ask())?,
        };
        print(out, &answer)
    }

    fn headers(&self) -> Result<Vec<(String, String)>, Failure> {
        let mut headers = self.header.clone();
        if let Some(path) = &self.token_file {
            let token = files::read_secret(path)?;
            headers.push(("authorization".to_owned(), format!("Bearer {}", *token)));
        }
        Ok(headers)
    }

    fn certificate(&self) -> Result<Option<String>, Failure> {
        self.certificate_file.as_deref().map(files::read_text).transpose()
    }

    fn body(&self) -> Result<Option<String>, Failure> {
        self.body_file.as_deref().map(files::read_text).transpose()
    }

    async fn ask(&self) -> Result<Value, Failure> {
        let base = api::parse_url(&self.admin)?;
        let url = base.join("/v1/check").map_err(|e| Failure::error(format!("`{base}`: {e}")))?;
        let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in self.headers()? {
            headers.entry(name).or_default().push(value);
        }
        let body = json!({
            "method": self.method, "path": self.path, "host": self.host, "headers": headers, "explain": self.explain,
            "certificate": self.certificate()?, "principal": self.peer_principal, "address": self.peer_address,
            "body": self.body()?,
        });
        let hint = "is the sidecar running? (--admin URL, PORTCULLIS_ADMIN)";
        let response = api::http_client(&base, None)?.post(url).json(&body).send().await;
        let response = response.map_err(|e| api::unreachable_server(&base, hint, &e))?;
        let status = response.status();
        let text = response.text().await.map_err(|e| api::unreachable_server(&base, hint, &e))?;
        if !status.is_success() {
            return Err(Failure::error(format!("`{base}` answered {status}: {}", printable(&text))));
        }
        serde_json::from_str(&text).map_err(|e| Failure::error(format!("`{base}` did not answer with a decision: {e}")))
    }
}

fn print(out: &mut Out<'_>, answer: &Value) -> Outcome {
    let verdict = if answer.get("allowed") == Some(&Value::Bool(true)) { Answer::Yes } else { Answer::No };
    if out.is_json() {
        out.json(answer)?;
        return Ok(verdict);
    }
    out.line(format!("{}  {}", if verdict == Answer::Yes { "allow" } else { "deny" }, cell(answer, "reason")))?;
    let names = [
        "title",
        "status",
        "workload",
        "resource",
        "action",
        "grant_id",
        "policies",
        "detail",
        "revision",
        "behind_ms",
        "cached",
        "decision_id",
    ];
    for name in names {
        let value = cell(answer, name);
        if !value.is_empty() {
            out.line(format!("  {name:<12} {}", printable(&value)))?;
        }
    }
    for step in answer.get("steps").and_then(Value::as_array).into_iter().flatten() {
        out.line(printable(&format!("  {:<20} {}", cell(step, "step"), cell(step, "outcome"))))?;
    }
    Ok(verdict)
}
