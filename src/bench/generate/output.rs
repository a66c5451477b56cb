//! The files of a generated estate: state directory, configurations, keys, tokens, mix, documents, store.
//!
//! Plane: composition. Secrets are written with mode 0600 from their first byte. The estate is walked once for each form
//! that is asked for, and never held.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::GenerateError;
use super::estate::{Estate, ISSUER, service};
use super::mix::tokens_and_mix;
use crate::app::files;
use crate::control::store::{Expect, SqliteStore, Store, Unit, Write};
use crate::grant::{CompactGrant, compact};
use crate::object::{Object, PolicySet};
use crate::sync::disk::Seeder;
use crate::wire::proto::{self, Bookmark, SnapshotBegin, SnapshotChunk, SnapshotEnd, payload::Body};
use crate::wire::{Position, Revision, SigningKey, seal};

/// How many objects a commit of the control plane's store holds, and so how many share a revision.
const COMMIT: u64 = 1000;
/// Bytes of documents that a chunk of a snapshot is filled up to.
const CHUNK_BYTES: usize = 512 * 1024;
/// The audience of the sidecar's own token.
const SYNC_AUDIENCE: &str = "portcullis-control";
/// Bytes of a grant in a state directory, as a document, and in a store.
const GRANT_BYTES: [u64; 3] = [120, 900, 1100];

/// What is generated beside the state directory.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to: a directory that is new or empty.
    pub out: PathBuf,
    /// How many workloads get a token.
    pub tokens: u64,
    /// Whether a control plane's data directory is made.
    pub control_store: bool,
    /// Whether documents are written for `portcullis apply` and, grants and all, as JSON lines.
    pub documents: bool,
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Made {
    /// Where.
    pub out: PathBuf,
    /// The position of the state.
    pub position: Position,
    /// Objects in it.
    pub objects: u64,
    /// Tokens.
    pub tokens: u64,
    /// Bytes of the snapshot file's documents.
    pub bytes: u64,
}

/// Writes everything. `progress` is told how many of how many objects have been written, over all forms.
pub async fn generate(
    estate: &Estate,
    options: &Options,
    mut progress: impl FnMut(u64, u64),
) -> Result<Made, GenerateError> {
    let out = fresh_directory(&options.out)?;
    check_space(estate, options, &out)?;
    let forms = 1 + u64::from(options.control_store) + u64::from(options.documents);
    let total = estate.len() * forms;
    let mut done = 0;
    let mut step = || {
        done += 1;
        progress(done, total);
    };

    let (key, key_text) = estate.signing_key()?;
    let public = format!("{}\n", key.verify_key());
    write(&out.join("verify-key"), &public, false)?;
    let pem = estate.signer().pkcs8_pem().map_err(|_failed| GenerateError::Crypto)?;
    write(&out.join("issuer.key"), &pem, true)?;
    let jwks = json!({ "keys": [estate.signer().public_jwk()] });
    write(&out.join("jwks.json"), &format!("{jwks:#}\n"), false)?;
    let own = estate.token(&Estate::sidecar(), SYNC_AUDIENCE)?;
    write(&out.join("sidecar.jwt"), &format!("{own}\n"), true)?;
    write(&out.join("sidecar.yaml"), &sidecar_yaml(estate, &out), false)?;

    let mut made = Made { position: position(estate), objects: estate.len(), tokens: 0, bytes: 0, out: out.clone() };
    made.bytes = state(estate, Arc::new(key), &out.join("sidecar"), &mut step)?;
    made.tokens = tokens_and_mix(estate, options.tokens, &out)?;
    if options.documents {
        documents(estate, &out.join("documents"), &mut step)?;
    }
    if options.control_store {
        let directory = out.join("control");
        store(estate, &directory, &mut step).await?;
        write(&directory.join("signing-key"), &key_text, true)?;
        write(&directory.join("verify-key"), &public, false)?;
        write(&out.join("control.yaml"), &control_yaml(estate, &out), false)?;
    }
    Ok(made)
}

fn fresh_directory(out: &Path) -> Result<PathBuf, GenerateError> {
    let failed = |source| GenerateError::Io { path: out.to_owned(), source };
    files::private_directory(out).map_err(failed)?;
    if std::fs::read_dir(out).map_err(failed)?.next().is_some() {
        return Err(GenerateError::Taken(out.to_owned()));
    }
    out.canonicalize().map_err(failed)
}

/// Refuses what will not fit before it fills the disk.
fn check_space(estate: &Estate, options: &Options, out: &Path) -> Result<(), GenerateError> {
    let policies = estate.policies();
    if policies.text.len() > PolicySet::MAX_TEXT {
        return Err(GenerateError::Policies(estate.size().policies, policies.text.len()));
    }
    let [state, document, store] = GRANT_BYTES;
    let each = state + document * u64::from(options.documents) + store * 2 * u64::from(options.control_store);
    let need = (estate.len() * each + 4 * policies.text.len() as u64) >> 20;
    let Ok(space) = rustix::fs::statvfs(out) else { return Ok(()) };
    let free = space.f_bavail.saturating_mul(space.f_frsize) >> 20;
    if need > free {
        return Err(GenerateError::Space { path: out.to_owned(), need, free });
    }
    Ok(())
}

fn position(estate: &Estate) -> Position {
    Position { epoch: estate.epoch(), revision: revision(estate.len() - 1) }
}

/// The revision that wrote object `n`.
const fn revision(n: u64) -> Revision {
    Revision(n / COMMIT + 1)
}

/// Writes the sidecar's state; returns the bytes of its documents.
fn state(
    estate: &Estate,
    key: Arc<SigningKey>,
    directory: &Path,
    step: &mut impl FnMut(),
) -> Result<u64, GenerateError> {
    let (epoch, scope, position) = (estate.epoch(), estate.scope()?, position(estate));
    let sealed = |body| seal(&key, epoch, &scope, body);
    let id = "bench".to_owned();
    let begin = SnapshotBegin { revision: position.revision.0, id: id.clone(), objects: estate.len() };
    let mut seeder = Seeder::begin(directory, key.verify_key(), scope.clone(), &sealed(Body::Begin(begin)))?;
    let (mut open, mut bytes, mut total) = (SnapshotChunk { id: id.clone(), ..SnapshotChunk::default() }, 0, 0);
    let mut flush = |open: &mut SnapshotChunk| {
        let next = SnapshotChunk { id: id.clone(), sequence: open.sequence + 1, ..SnapshotChunk::default() };
        seeder.chunk(&sealed(Body::Chunk(std::mem::replace(open, next))));
    };
    let mut grants = Vec::new();
    for (n, object) in (0..).zip(estate.objects()) {
        let object = object?;
        if let Object::Grant(grant) = &object {
            let before = grants.len();
            compact::join(&mut grants, &CompactGrant::encode(grant));
            (bytes, total) = (bytes + grants.len() - before, total + (grants.len() - before) as u64);
        } else {
            let body = Bytes::from(object.to_json());
            (bytes, total) = (bytes + body.len(), total + body.len() as u64);
            let (kind, key, revision) = (i32::from(object.kind() as u8), object.key(), revision(n).0);
            open.objects.push(proto::Object { kind, key, revision, body, deleted: false });
        }
        if bytes >= CHUNK_BYTES {
            open.grants = std::mem::take(&mut grants).into();
            flush(&mut open);
            bytes = 0;
        }
        step();
    }
    if bytes > 0 {
        open.grants = grants.into();
        flush(&mut open);
    }
    let (chunks, objects) = (open.sequence, estate.len());
    let end = SnapshotEnd { id: id.clone(), revision: position.revision.0, chunks, objects };
    let lasts = u64::try_from(estate.lifetime().as_millis()).unwrap_or(u64::MAX);
    // As long as the tokens, so that the state answers without a control plane for as long as there is anything to ask.
    let bookmark = Bookmark {
        revision: position.revision.0,
        lease_ms: lasts,
        max_staleness_ms: lasts,
        server_time_ms: estate.now().as_millis(),
    };
    seeder.end(&sealed(Body::End(end)), position, &sealed(Body::Bookmark(bookmark)))?;
    Ok(total)
}

/// Writes a control plane's store with the same objects at the same revisions, without the log of how they came.
async fn store(estate: &Estate, directory: &Path, step: &mut impl FnMut()) -> Result<(), GenerateError> {
    let store = SqliteStore::open_or_create(directory, estate.epoch(), estate.now()).await?;
    let mut objects = estate.objects();
    loop {
        let mut unit = Unit::new("bench", "bench.generate", "");
        for object in objects.by_ref().take(COMMIT as usize) {
            unit = unit.with(Write::put(&object?, Expect::Absent));
            step();
        }
        if unit.changes.is_empty() {
            break;
        }
        for outcome in store.commit(&[unit], estate.now()).await? {
            outcome.map_err(|conflict| GenerateError::Rule(conflict.to_string()))?;
        }
    }
    store.trim(position(estate).revision).await?;
    store.close().await;
    Ok(())
}

/// Documents: `estate.yaml` for `portcullis apply`, and every object as a line of `objects.jsonl`.
fn documents(estate: &Estate, directory: &Path, step: &mut impl FnMut()) -> Result<(), GenerateError> {
    let failed = |source| GenerateError::Io { path: directory.to_owned(), source };
    files::private_directory(directory).map_err(failed)?;
    let create = |name: &str| std::fs::File::create(directory.join(name)).map(std::io::BufWriter::new).map_err(failed);
    let (mut apply, mut lines) = (create("estate.yaml")?, create("objects.jsonl")?);
    for object in estate.objects() {
        let object = object?;
        let body = object.to_json();
        let body = std::str::from_utf8(&body).map_err(|e| GenerateError::Rule(e.to_string()))?;
        let kind = object.kind().name();
        writeln!(lines, r#"{{"{kind}":{body}}}"#).map_err(failed)?;
        match &object {
            Object::Grant(_) | Object::Revocation(_) => {}
            // An estate has none of the control plane's own.
            Object::GrantPolicySet(_)
            | Object::OperatorPolicySet(_)
            | Object::Review(_)
            | Object::Allotment(_)
            | Object::SigningKey(_)
            | Object::Lift(_)
            | Object::Idempotency(_) => {}
            Object::PolicySet(set) => {
                let text = Value::String(set.text.clone());
                writeln!(apply, "---\n{{\"policy_set\":{{\"text\":{text}}}}}").map_err(failed)?;
            }
            Object::Issuer(_) | Object::Workload(_) | Object::Service(_) => {
                writeln!(apply, "---\n{{\"{kind}\":{body}}}").map_err(failed)?;
            }
        }
        step();
    }
    apply.flush().and_then(|()| lines.flush()).map_err(failed)
}

fn sidecar_yaml(estate: &Estate, out: &Path) -> String {
    let (identity, place) = (Estate::sidecar(), quoted(out));
    format!(
        "\
# portcullis sidecar --config sidecar.yaml
#
# Answers from the state in `sidecar`, also when no control plane is there. Its lease ends with the tokens.
control_plane:
  url: http://127.0.0.1:9181
  insecure_loopback: true
  token_file: {place}/sidecar.jwt\"
  verify_key_file: {place}/verify-key\"
scope:
  identity: {identity}
  services: {services}
state:
  directory: {place}/sidecar\"
  max_staleness: {lifetime}
records:
  output: off
",
        services = services(estate),
        lifetime = humantime::format_duration(estate.lifetime()).to_string().replace(' ', ""),
    )
}

fn control_yaml(estate: &Estate, out: &Path) -> String {
    let (identity, place) = (Estate::sidecar(), quoted(out));
    format!(
        "\
# portcullis control --config control.yaml
insecure_loopback: true
data_directory: {place}/control\"
sync:
  audience: {SYNC_AUDIENCE}
  trust: [{ISSUER}]
  enforcement_points:
    - identity: {identity}
      services: {services}
",
        services = services(estate),
    )
}

/// The names of all services, as a YAML list.
fn services(estate: &Estate) -> String {
    let names: Vec<String> = (0..estate.size().services).map(service).collect();
    format!("[{}]", names.join(", "))
}

/// The start of a double-quoted YAML text: JSON's escapes are YAML's.
fn quoted(path: &Path) -> String {
    let text = Value::String(path.display().to_string()).to_string();
    text.strip_suffix('"').unwrap_or_default().to_owned()
}

pub(super) fn write(path: &Path, text: &str, secret: bool) -> Result<(), GenerateError> {
    let written = if secret { files::write_secret(path, text) } else { files::write_public(path, text) };
    written.map_err(|source| GenerateError::Io { path: path.to_owned(), source })
}
