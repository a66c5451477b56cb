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
use super::output::{Out, Table};
use super::{args, block_on, documents, receipt};

/// Issuers: who may vouch for workloads, with which keys.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  portcullis issuer put production --trust-domain example.org \\\n    \
    --audience portcullis --jwks bundle.json")]
pub(super) enum IssuerCommand {
    /// Register an issuer, or replace it. An empty key set revokes its whole trust domain.
    #[command(after_help = "Example:\n  portcullis issuer put production --trust-domain example.org \\\n    \
        --audience portcullis --jwks bundle.json --max-lifetime 5m\n  portcullis issuer put -f issuer.yaml")]
    Put(PutArgs),
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
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["name", "trust_domain", "audience", "jwks"])]
    file: Option<PathBuf>,
    /// Its name.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// The SPIFFE trust domain that it vouches for.
    #[arg(long, required_unless_present = "file")]
    trust_domain: Option<String>,
    /// An audience of which tokens must name one; may be repeated.
    #[arg(long, required_unless_present = "file")]
    audience: Vec<String>,
    /// File with its key set (RFC 7517).
    #[arg(long, value_name = "FILE", required_unless_present = "file")]
    jwks: Option<PathBuf>,
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
                let mut table = Table::new(&["name", "trust domain", "audiences", "keys"]);
                for one in items(&answer) {
                    let keys = one.pointer("/jwks/keys").and_then(Value::as_array).map_or(0, Vec::len);
                    let row = [cell(one, "name"), cell(one, "trust_domain"), cell(one, "audiences")];
                    table.row(row.into_iter().chain([keys.to_string()]));
                }
                out.table(&table, "no issuers")?;
                Ok(Answer::Yes)
            }),
            Self::Show { name, api } => block_on(async {
                out.json(&api.connect()?.get(&["issuers", &name], &[]).await?)?;
                Ok(Answer::Yes)
            }),
            Self::Delete { name, api } => block_on(async {
                let answer = api.connect()?.delete(&["issuers", &name]).await?;
                receipt::print(out, &answer, &format!("deleted issuer {name}"))
            }),
        }
    }
}

impl PutArgs {
    fn body(&self) -> Result<Value, Failure> {
        if let Some(path) = &self.file {
            return documents::object(path, "issuer");
        }
        let mut body = Map::new();
        body.insert("name".to_owned(), json!(self.name));
        body.insert("kind".to_owned(), json!("spiffe"));
        body.insert("trust_domain".to_owned(), json!(self.trust_domain));
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
