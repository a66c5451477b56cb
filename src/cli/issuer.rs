//! `portcullis issuer`: who may vouch for workloads.
//!
//! Plane: composition, a client of the control plane's API. Key sets are read from files and sent as they are; the
//! server refuses private keys and keys that do not parse, and names them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::api::{ApiArgs, cell, items};
use super::failure::{Answer, Failure, Outcome};
use super::output::{Out, Table, printable};
use super::{args, block_on, documents, receipt};

/// Issuers: who may vouch for workloads, with which keys.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  portcullis issuer put production --trust-domain example.org \\\n    \
    --audience portcullis --jwks bundle.json")]
pub(super) enum IssuerCommand {
    /// Register an issuer, or replace it. An empty key set revokes its whole trust domain.
    #[command(after_help = "Example:\n  portcullis issuer put production --trust-domain example.org \\\n    \
        --audience portcullis --jwks bundle.json --max-lifetime 5m\n  portcullis issuer put idp --kind oidc \\\n    \
        --issuer https://idp.example --audience portcullis --keys-from discovery\n  \
        portcullis issuer put -f issuer.yaml")]
    Put(Box<PutArgs>),
    /// List issuers.
    #[command(after_help = "Example:\n  portcullis issuer list")]
    List {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show one issuer.
    #[command(after_help = "Example:\n  portcullis issuer show production --output json")]
    Show {
        /// Its name.
        name: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Tell how an issuer's keys stand: where they come from, the last success and failure, the next look.
    ///
    /// The answer is no when the last attempt to bring them up to date failed.
    #[command(after_help = "Example:\n  portcullis issuer keys production")]
    Keys {
        /// Its name.
        name: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Remove an issuer: what it vouches for is not trusted any more.
    #[command(after_help = "Example:\n  portcullis issuer delete production")]
    Delete {
        /// Its name.
        name: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

/// An issuer.
#[derive(Debug, Args)]
pub(super) struct PutArgs {
    /// File with the whole object, YAML or JSON; `-` reads standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["name", "trust_domain", "issuer", "audience", "jwks", "keys_from"])]
    file: Option<PathBuf>,
    /// Its name.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// spiffe, kubernetes, oidc, github or portcullis.
    #[arg(long, default_value = "spiffe")]
    kind: String,
    /// The SPIFFE trust domain that it vouches for.
    #[arg(long, required_unless_present_any = ["file", "issuer"])]
    trust_domain: Option<String>,
    /// Every kind but spiffe: the exact `iss` of its tokens.
    #[arg(long, value_name = "URL", conflicts_with = "trust_domain")]
    issuer: Option<String>,
    /// An audience of which tokens must name one; may be repeated.
    #[arg(long, required_unless_present = "file")]
    audience: Vec<String>,
    /// File with its key set (RFC 7517).
    #[arg(long, value_name = "FILE", required_unless_present_any = ["file", "keys_from"])]
    jwks: Option<PathBuf>,
    /// Where the control plane keeps its keys up to date from: `discovery`, `workload_api`, `jwks_uri=URL`,
    /// `https_web=URL` or `file=NAME`.
    #[arg(long, value_name = "SOURCE", value_parser = key_source)]
    keys_from: Option<Value>,
    /// An algorithm that its tokens may use, as in ES256; may be repeated. Default: all of the JWT-SVID standard.
    #[arg(long)]
    algorithm: Vec<String>,
    /// The longest life of its tokens. Default: 1h.
    #[arg(long, value_parser = args::duration)]
    max_lifetime: Option<Duration>,
    #[command(flatten)]
    api: ApiArgs,
}

impl IssuerCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::Put(args) => {
                let body = args.body()?;
                let name = cell(&body, "name");
                block_on(async {
                    let answer = args.api.connect()?.put(&["issuers", &name], &body).await?;
                    receipt::print(out, &answer, &format!("put issuer {name}"))
                })
            }
            Self::List { api } => block_on(async {
                let answer = api.connect()?.list(&["issuers"], &[]).await?;
                if out.is_json() {
                    out.json(&answer)?;
                    return Ok(Answer::Yes);
                }
                let mut table = Table::new(&["name", "kind", "vouches for", "keys", "from"]);
                for one in items(&answer) {
                    let keys = one.pointer("/jwks/keys").and_then(Value::as_array).map_or(0, Vec::len);
                    let authority = if one.get("issuer").is_some() { "issuer" } else { "trust_domain" };
                    let source = one.pointer("/keys_from/type").and_then(Value::as_str).unwrap_or("operator");
                    let row = [cell(one, "name"), cell(one, "kind"), cell(one, authority), keys.to_string()];
                    table.row(row.into_iter().chain([source.to_owned()]));
                }
                out.table(&table, "no issuers")?;
                Ok(Answer::Yes)
            }),
            Self::Show { name, api } => block_on(async {
                out.json(&api.connect()?.get(&["issuers", &name], &[]).await?)?;
                Ok(Answer::Yes)
            }),
            Self::Keys { name, api } => block_on(async {
                let answer = api.connect()?.get(&["issuers", &name, "keys"], &[]).await?;
                if out.is_json() {
                    out.json(&answer)?;
                } else {
                    show_keys(out, &answer)?;
                }
                let failing = answer.get("failures").and_then(Value::as_u64).unwrap_or(0) > 0;
                Ok(if failing { Answer::No } else { Answer::Yes })
            }),
            Self::Delete { name, api } => block_on(async {
                let answer = api.connect()?.delete(&["issuers", &name]).await?;
                receipt::print(out, &answer, &format!("deleted issuer {name}"))
            }),
        }
    }
}

/// `discovery`, `jwks_uri=https://idp.example/keys` and the like, as a document has it.
fn key_source(text: &str) -> Result<Value, String> {
    let (kind, value) = text.split_once('=').map_or((text, None), |(kind, value)| (kind, Some(value)));
    match (kind, value) {
        ("discovery" | "workload_api", None) => Ok(json!({ "type": kind })),
        ("jwks_uri" | "https_web", Some(url)) => Ok(json!({ "type": kind, "url": url })),
        ("file", Some(name)) => Ok(json!({ "type": kind, "name": name })),
        _ => Err("expected discovery, workload_api, jwks_uri=URL, https_web=URL or file=NAME".to_owned()),
    }
}

/// One line a fact; what is absent is left out.
fn show_keys(out: &mut Out<'_>, answer: &Value) -> Result<(), Failure> {
    let fact = |name: &str| answer.get(name).filter(|v| !v.is_null()).map(|_| cell(answer, name));
    let source = fact("source").unwrap_or_else(|| "operator".to_owned());
    out.line(format!("{}: {} keys, from {source}", cell(answer, "issuer"), cell(answer, "keys")))?;
    for (name, label) in [
        ("sequence", "bundle sequence"),
        ("last_change", "last change"),
        ("last_success", "last success"),
        ("next_refresh", "next look"),
        ("failures", "failures in a row"),
    ] {
        if let Some(value) = fact(name) {
            out.line(format!("  {label:<18} {value}"))?;
        }
    }
    if let Some(error) = answer.get("last_error") {
        let text = format!("{}: {}", cell(error, "result"), cell(error, "message"));
        out.line(format!("  {:<18} {} {}", "last failure", cell(error, "at"), printable(&text)))?;
    }
    Ok(())
}

impl PutArgs {
    fn body(&self) -> Result<Value, Failure> {
        if let Some(path) = &self.file {
            return documents::object(path, "issuer");
        }
        let mut body = Map::new();
        body.insert("name".to_owned(), json!(self.name));
        body.insert("kind".to_owned(), json!(self.kind));
        for (member, value) in [("trust_domain", &self.trust_domain), ("issuer", &self.issuer)] {
            if let Some(value) = value {
                body.insert(member.to_owned(), json!(value));
            }
        }
        if let Some(source) = &self.keys_from {
            body.insert("keys_from".to_owned(), source.clone());
        }
        body.insert("audiences".to_owned(), json!(self.audience));
        if let Some(path) = &self.jwks {
            body.insert("jwks".to_owned(), documents::read_one(path)?);
        }
        if !self.algorithm.is_empty() {
            body.insert("algorithms".to_owned(), json!(self.algorithm));
        }
        if let Some(lifetime) = self.max_lifetime {
            body.insert("max_lifetime_seconds".to_owned(), json!(lifetime.as_secs()));
        }
        Ok(Value::Object(body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::KeySource;

    #[test]
    fn a_source_on_the_command_line_is_one_of_a_document() {
        for text in
            ["discovery", "workload_api", "jwks_uri=https://a.example/k?x=y", "https_web=https://a", "file=a.json"]
        {
            let source: KeySource = serde_json::from_value(key_source(text).unwrap()).unwrap();
            assert!(text.starts_with(source.name()), "{text}");
        }
        for text in ["", "discovery=x", "jwks_uri", "https_spiffe=https://a"] {
            assert!(key_source(text).is_err(), "{text}");
        }
    }
}
