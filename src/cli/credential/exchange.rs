//! `portcullis credential exchange`: a workload's own token becomes a short-lived one for one service.
//!
//! The tokens are read from files, so that they are in no list of processes, and sent only over TLS or to this machine.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::cli::api::{cell, http_client, parse_url, unreachable_server};
use crate::cli::failure::{Answer, Failure, Outcome};
use crate::cli::output::Out;
use crate::cli::{block_on, files};

const TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:jwt";

/// Exchange a workload's token for one that is good for a service, some actions and the life of a grant, five minutes at
/// most.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  portcullis credential exchange --subject-token-file agent.jwt --audience payments --scope write\n\n\
    Without a grant the answer is no (exit 1). With --output json it says what to ask for, and\n\
    `portcullis grant request --from-denial FILE` takes that."
)]
pub(in crate::cli) struct ExchangeArgs {
    /// The control plane's API.
    #[arg(long, env = "PORTCULLIS_SERVER", value_name = "URL", default_value = "http://127.0.0.1:9180")]
    server: String,
    /// PEM file with the certificates that may vouch for the control plane. Default: the system's.
    #[arg(long, env = "PORTCULLIS_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// File with the workload's own token.
    #[arg(long, value_name = "FILE")]
    subject_token_file: PathBuf,
    /// File with the token of the workload that is to act for it.
    #[arg(long, value_name = "FILE")]
    actor_token_file: Option<PathBuf>,
    /// The service that the token is to be for, by name.
    #[arg(long, value_name = "SERVICE", required_unless_present = "resource", conflicts_with = "resource")]
    audience: Option<String>,
    /// The same by the URL that it is reached at.
    #[arg(long, value_name = "URL")]
    resource: Option<String>,
    /// An action that it is to be for; may be repeated. Default: all that the grant gives.
    #[arg(long, value_name = "ACTION")]
    scope: Vec<String>,
    /// The grant to use. Default: the longest-lasting that covers this.
    #[arg(long, value_name = "ID")]
    grant: Option<String>,
    /// Write the token to this file (mode 0600) instead of printing it.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

impl ExchangeArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let subject = files::read_secret(&self.subject_token_file)?;
        let actor = self.actor_token_file.as_deref().map(files::read_secret).transpose()?;
        let scope = self.scope.join(" ");
        let mut form = vec![
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("subject_token", subject.as_str()),
            ("subject_token_type", TOKEN_TYPE),
        ];
        if let Some(actor) = &actor {
            form.extend([("actor_token", actor.as_str()), ("actor_token_type", TOKEN_TYPE)]);
        }
        let optional = [
            ("audience", self.audience.as_deref()),
            ("resource", self.resource.as_deref()),
            ("scope", (!scope.is_empty()).then_some(&*scope)),
            ("grant_id", self.grant.as_deref()),
        ];
        form.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(form);
        let body = Zeroizing::new(body.finish());
        let mut answer = block_on(self.post(body))?;
        let token = Zeroizing::new(cell(&answer, "access_token"));
        if token.is_empty() {
            return Err(Failure::error("the control plane's answer holds no token"));
        }
        if let Some(path) = &self.write {
            files::write_secret(path, &format!("{}\n", *token))?;
            if let Some(members) = answer.as_object_mut() {
                members.remove("access_token");
            }
            if !out.is_json() {
                let (scope, seconds) = (cell(&answer, "scope"), cell(&answer, "expires_in"));
                out.line(format!("a token for {scope}, good for {seconds} s, is in `{}`", path.display()))?;
            }
        } else if !out.is_json() {
            out.line(token.as_str())?;
        }
        if out.is_json() {
            out.json(&answer)?;
        }
        Ok(Answer::Yes)
    }

    async fn post(&self, body: Zeroizing<String>) -> Result<Value, Failure> {
        let base = parse_url(&self.server)?;
        let mut url = base.clone();
        url.path_segments_mut()
            .map_err(|()| Failure::error(format!("`{base}` cannot have a path")))?
            .pop_if_empty()
            .extend(["v1", "token"]);
        let request = http_client(&base, self.ca_file.as_deref())?
            .post(url)
            .timeout(Duration::from_secs(30))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.to_string());
        let hint = "is the control plane running? (--server URL, PORTCULLIS_SERVER)";
        let response = request.send().await.map_err(|e| unreachable_server(&base, hint, &e))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|e| unreachable_server(&base, hint, &e))?;
        let answer: Option<Value> = serde_json::from_slice(&bytes).ok().filter(Value::is_object);
        let answer = answer
            .ok_or_else(|| Failure::error(format!("`{base}` did not answer with JSON; is it a control plane?")))?;
        if status.is_success() {
            return Ok(answer);
        }
        let part = |name: &str| crate::cli::output::printable(&cell(&answer, name));
        let mut message = match part("error") {
            error if error.is_empty() => format!("{}: {}", part("title"), part("detail")),
            error => format!("{error}: {}", part("error_description")),
        };
        let reason = part("reason");
        if !reason.is_empty() {
            message.push_str(&format!(" ({reason})"));
        }
        Err(match status.as_u16() {
            400..=499 => Failure::Refused { message, problem: answer },
            _ => Failure::Error(format!("`{base}`: {message}")),
        })
    }
}
