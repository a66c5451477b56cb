//! The form of the corpus files, and their loading. `tests/credentials/README.md` explains the members.
//!
//! Strict: an unknown member, key, template or issuer is an error, so that a case cannot mean less than it says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use portcullis::authz::Reason;
use portcullis::clock::Timestamp;
use portcullis::credential::SpiffeId;
use portcullis::grant::{self, NewGrantRequest};
use portcullis::object::{Grant, GrantId, Issuer, Kind, Object, VoteKind, Workload};
use portcullis::testing::SigningKey;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// When cases take place unless they say otherwise.
pub(crate) const NOW: u64 = 1_800_000_000;

/// Every file, with what they share.
pub(crate) struct Corpus {
    pub(crate) keys: BTreeMap<String, SigningKey>,
    pub(crate) common: Vec<Issuer>,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) grant: Grant,
    pub(crate) templates: BTreeMap<String, Template>,
    pub(crate) files: Vec<File>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Common {
    issuers: BTreeMap<String, IssuerSpec>,
    workloads: Vec<Value>,
    grant: GrantSpec,
    templates: BTreeMap<String, Template>,
}

/// The grant that tokens of the control plane are tied to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantSpec {
    id: GrantId,
    workload: SpiffeId,
}

/// An issuer: its document but for the name, and its keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IssuerSpec {
    document: Map<String, Value>,
    #[serde(default)]
    keys: Vec<Map<String, Value>>,
}

/// A good token.
#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub(crate) struct Template {
    pub(crate) key: String,
    pub(crate) header: Map<String, Value>,
    pub(crate) claims: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(skip)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) issuers: BTreeMap<String, IssuerSpec>,
    #[serde(default)]
    pub(crate) bad_issuers: BTreeSet<String>,
    pub(crate) template: String,
    pub(crate) cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) reason: Reason,
    /// What the verifier says without workloads and proofs; by default what `reason` says.
    alone: Option<String>,
    now: Option<u64>,
    pub(crate) template: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) sign: Option<String>,
    #[serde(default)]
    pub(crate) header: Part,
    #[serde(default)]
    pub(crate) claims: Part,
    /// Claims that are signed, and then replaced.
    pub(crate) signed_claims: Option<Part>,
    pub(crate) hmac: Option<Hmac>,
    pub(crate) signature: Option<String>,
    pub(crate) token: Option<String>,
    #[serde(default)]
    pub(crate) headers: Vec<(String, String)>,
}

/// How header or claims differ from the template's.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Part {
    /// Members to replace; null removes one.
    pub(crate) with: Map<String, Value>,
    /// Members whose value is this text, JSON or not.
    pub(crate) raw: BTreeMap<String, String>,
    /// Text before the closing brace.
    pub(crate) tail: String,
    /// The whole text.
    pub(crate) text: Option<String>,
    /// Text with a byte in hexadecimal for each `\xNN`.
    pub(crate) bytes: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hmac {
    /// The form in which the public key is the secret.
    pub(crate) secret: String,
    pub(crate) of: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/credentials")
}

fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    // By way of JSON, as documents go.
    let value: Value = serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
    serde_path_to_error::deserialize(value).unwrap_or_else(|e| panic!("{name}: {e}"))
}

// === impl Corpus ===

impl Corpus {
    pub(crate) fn load() -> Self {
        let mut keys = BTreeMap::new();
        for entry in std::fs::read_dir(root().join("keys")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            keys.insert(name, SigningKey::from_pkcs8_pem(&std::fs::read_to_string(&path).unwrap()));
        }
        let common: Common = read("estate.yaml");
        let mut files = Vec::new();
        for entry in std::fs::read_dir(root()).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            if name == "estate.yaml" || !name.ends_with(".yaml") {
                continue;
            }
            let mut file: File = read(&name);
            file.name = name.trim_end_matches(".yaml").to_owned();
            files.push(file);
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let workload = |document: &Value| match Object::parse(Kind::Workload, document.to_string().as_bytes()) {
            Ok(Object::Workload(workload)) => workload,
            other => panic!("{document}: {other:?}"),
        };
        let workloads = common.workloads.iter().map(workload).collect();
        let issuers = common.issuers.iter().map(|(name, spec)| spec.issuer(name, &keys)).collect();
        let grant = common.grant.active();
        Self { keys, common: issuers, workloads, grant, templates: common.templates, files }
    }

    /// The issuers of a file: those of all files, with its own in their place or beside them.
    pub(crate) fn issuers(&self, file: &File) -> Vec<Issuer> {
        let shared = self.common.iter().filter(|i| !file.issuers.contains_key(&i.name)).cloned();
        shared.chain(file.issuers.iter().map(|(name, spec)| spec.issuer(name, &self.keys))).collect()
    }
}

// === impl GrantSpec ===

impl GrantSpec {
    /// `read` on `catalog`, in force a day around the time of the cases.
    fn active(&self) -> Grant {
        let start = Timestamp::from_secs(NOW - 43_200);
        let resources = vec!["catalog".parse().unwrap()];
        let new = NewGrantRequest::new(self.workload.clone(), resources, vec!["read".to_owned()], 86_400);
        let asked = grant::new_request(new, "alice", start).unwrap();
        let asked = grant::needing(Grant { id: self.id, ..asked }, None).unwrap();
        grant::vote(&asked, "bob", VoteKind::Approve, &asked.digest, start).unwrap()
    }
}

// === impl IssuerSpec ===

impl IssuerSpec {
    fn issuer(&self, name: &str, keys: &BTreeMap<String, SigningKey>) -> Issuer {
        let jwk = |spec: &Map<String, Value>| {
            let mut jwk = Map::new();
            for (member, value) in spec {
                if member == "key" {
                    let name = value.as_str().unwrap();
                    let key = keys.get(name).unwrap_or_else(|| panic!("no key `{name}`"));
                    jwk.extend(key.public_jwk().as_object().unwrap().clone());
                }
            }
            jwk.extend(spec.iter().filter(|(member, _)| *member != "key").map(|(m, v)| (m.clone(), v.clone())));
            Value::Object(jwk)
        };
        let mut document = self.document.clone();
        document.insert("name".to_owned(), json!(name));
        document.insert("jwks".to_owned(), json!({ "keys": self.keys.iter().map(jwk).collect::<Vec<_>>() }));
        match Object::parse(Kind::Issuer, Value::Object(document).to_string().as_bytes()) {
            Ok(Object::Issuer(issuer)) => *issuer,
            other => panic!("{name}: {other:?}"),
        }
    }
}

// === impl Case ===

impl Case {
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_secs(self.now.unwrap_or(NOW))
    }

    pub(crate) fn alone(&self) -> &str {
        let same = if self.reason.is_allow() { "ok" } else { self.reason.code() };
        self.alone.as_deref().unwrap_or(same)
    }
}
