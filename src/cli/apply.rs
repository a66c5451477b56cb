//! `portcullis apply`: every object of a file, in its order.
//!
//! A document has one member, named after the kind of its object. The control plane leaves alone what is there already
//! as written, so that applying a file twice changes nothing.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::api::{Api, ApiArgs, cell, object};
use super::failure::{Answer, Failure, Outcome};
use super::output::Out;
use super::{block_on, documents, files};

/// Register every object of a file: issuers, workloads, services, the policy sets.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  portcullis apply -f shop.yaml\n\n  # shop.yaml\n  \
    issuer: { name: production, kind: spiffe, trust_domain: example.org, audiences: [portcullis], jwks_file: jwks.json }\n  \
    ---\n  workload: { id: spiffe://example.org/agent, kind: agent, owner: ops, environment: production }\n  \
    ---\n  service: { name: payments, routes: [{ name: refunds, path: '/refunds/{*}' }] }\n  \
    ---\n  policy_set: { text_file: policies.cedar }\n  \
    ---\n  grant_policy_set: { text_file: grants.cedar }")]
pub(super) struct ApplyArgs {
    /// File with one or several documents, YAML or JSON; may be repeated. `-` reads standard input.
    #[arg(short, long, value_name = "FILE", required = true)]
    file: Vec<PathBuf>,
    #[command(flatten)]
    api: ApiArgs,
}

/// An object to register.
#[derive(Debug)]
pub(super) struct Item {
    kind: &'static str,
    body: Value,
}

impl ApplyArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let mut all = Vec::new();
        for path in &self.file {
            let directory = path.parent().unwrap_or(Path::new("."));
            for document in documents::read(path)? {
                let item = Item::new(document, &|name| files::read_text(&directory.join(name)));
                all.push((path, item.map_err(|e| e.within(path))?));
            }
        }
        block_on(async {
            let api = self.api.connect()?;
            let mut done = Vec::new();
            for (path, item) in &all {
                let (name, changed) = item.apply(&api).await.map_err(|e| e.about(item).within(path))?;
                if !out.is_json() {
                    out.line(format!("{} {} {name}", if changed { "applied  " } else { "unchanged" }, item.kind))?;
                }
                done.push(json!({ "kind": item.kind, "name": name, "changed": changed }));
            }
            if out.is_json() {
                out.json(&json!({ "items": done }))?;
            }
            Ok(Answer::Yes)
        })
    }
}

// === impl Item ===

impl Item {
    /// Reads a document. `read` gives the text of a file that it names.
    pub(super) fn new(document: Value, read: &dyn Fn(&str) -> Result<String, Failure>) -> Result<Self, Failure> {
        const KINDS: [&str; 5] = ["issuer", "workload", "service", "policy_set", "grant_policy_set"];
        let unknown =
            || Failure::error(format!("a document has one member, named after its kind: {}", KINDS.join(", ")));
        let Value::Object(map) = document else { return Err(unknown()) };
        let mut members = map.into_iter();
        let (Some((name, Value::Object(mut body))), None) = (members.next(), members.next()) else {
            return Err(unknown());
        };
        let kind = KINDS.into_iter().find(|k| *k == name).ok_or_else(unknown)?;
        if let Some(file) = take_text(&mut body, "jwks_file")? {
            let text = read(&file)?;
            let jwks: Value = serde_json::from_str(&text)
                .map_err(|e| Failure::error(format!("`jwks_file`: `{file}` is not JSON: {e}")))?;
            body.insert("jwks".to_owned(), jwks);
        }
        if let Some(file) = take_text(&mut body, "text_file")? {
            body.insert("text".to_owned(), Value::String(read(&file)?));
        }
        Ok(Self { kind, body: Value::Object(body) })
    }

    /// Registers it; returns its name, and whether anything changed.
    pub(super) async fn apply(&self, api: &Api) -> Result<(String, bool), Failure> {
        let (collection, key) = match self.kind {
            "issuer" => ("issuers", "name"),
            "workload" => ("workloads", "id"),
            "service" => ("services", "name"),
            "policy_set" => return self.publish(api, "policies").await,
            _ => return self.publish(api, "grant-policies").await,
        };
        let name = self.name();
        if name.is_empty() {
            return Err(Failure::error(format!("a {} needs `{key}`", self.kind)));
        }
        let answer = api.put(&[collection, &name], &self.body).await?;
        Ok((name, has_changed(&answer)))
    }

    /// Its name; a policy set has none.
    fn name(&self) -> String {
        cell(&self.body, if self.kind == "workload" { "id" } else { "name" })
    }

    async fn publish(&self, api: &Api, collection: &str) -> Result<(String, bool), Failure> {
        let answer = api.post(&[collection], &self.body).await?;
        Ok((cell(object(&answer), "digest"), has_changed(&answer)))
    }
}

/// A write that found everything as wanted has no time of commit.
fn has_changed(answer: &Value) -> bool {
    answer.get("committed_at").is_some()
}

fn take_text(body: &mut Map<String, Value>, name: &str) -> Result<Option<String>, Failure> {
    match body.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Failure::error(format!("`{name}` is the name of a file"))),
    }
}

impl Failure {
    fn within(self, path: &Path) -> Self {
        match self {
            Self::Error(message) => Self::Error(format!("`{}`: {message}", path.display())),
            Self::Refused { message, problem } => {
                Self::Refused { message: format!("`{}`: {message}", path.display()), problem }
            }
            Self::Closed => Self::Closed,
        }
    }

    /// Of several objects, the one that was refused.
    fn about(self, item: &Item) -> Self {
        let name = item.name();
        match self {
            Self::Refused { message, problem } if name.is_empty() => {
                Self::Refused { message: format!("{}: {message}", item.kind), problem }
            }
            Self::Refused { message, problem } => {
                Self::Refused { message: format!("{} `{name}`: {message}", item.kind), problem }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_files(name: &str) -> Result<String, Failure> {
        Err(Failure::error(format!("no `{name}`")))
    }

    #[test]
    fn a_document_names_its_kind_and_may_name_files() {
        let item = Item::new(json!({ "issuer": { "name": "a", "jwks_file": "k.json" } }), &|name| {
            assert_eq!(name, "k.json");
            Ok("{\"keys\":[]}".to_owned())
        });
        assert_eq!(item.unwrap().body, json!({ "name": "a", "jwks": { "keys": [] } }));
        for bad in [json!({}), json!({ "isuer": {} }), json!({ "issuer": {}, "workload": {} }), json!({ "issuer": 1 })]
        {
            assert!(Item::new(bad.clone(), &no_files).is_err(), "{bad}");
        }
        assert!(Item::new(json!({ "policy_set": { "text_file": "x" } }), &no_files).is_err());
    }
}
