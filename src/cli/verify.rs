//! `portcullis token verify`: the verdict on one token, or on a line of a file each, from documents and a time alone.
//!
//! Plane: composition. Offline, and deterministic with `--now`. A batch is judged to its end: a line that cannot be read is
//! reported in its place, lines are bounded, and memory does not grow with their number. A token given as an argument can be
//! seen by other users of the machine; it is also read from a file or from standard input. Never logs one.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::failure::{Answer, Failure, Outcome};
use super::output::{Out, printable};
use super::verdict::{Verdict, Verifier, parse};
use super::{args, documents, files};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::object::{Issuer, Jwks, Kind, Object, Workload, from_json};

/// The longest line of a batch, in bytes.
const MAX_LINE: u64 = 1024 * 1024;

/// Verify a token offline, as a sidecar would, and tell the reason. JSON unless `--output text` is given.
///
/// Exit status: 0 valid; 1 refused; 2 the question cannot be answered. For a batch, the worst of its lines.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  portcullis token verify --issuer issuer.yaml --jwks jwks.json --now 1800000000 @agent.jwt\n  \
    portcullis token verify --issuer shop.yaml --workloads shop.yaml @agent.jwt\n  \
    portcullis token verify --issuer issuer.yaml --batch vectors.jsonl > verdicts.jsonl\n\n\
    A batch has a JSON object a line: `token`, and, where they differ from the flags, `now`,\n\
    `issuer`, `jwks` and `audience`, as documents in place; `id` comes back in the verdict:\n  \
    {\"id\": 1, \"token\": \"eyJhb...\", \"now\": 1800000000}\n\
    A line that cannot be judged is answered with `error` in its place, and ends as exit status 2."
)]
pub(super) struct VerifyArgs {
    /// File with the issuer, YAML or JSON, as `issuer put -f` and `apply` take it; may be repeated.
    #[arg(long, value_name = "FILE", required_unless_present = "batch")]
    issuer: Vec<PathBuf>,
    /// File with the key set (RFC 7517) of the one issuer, in place of its own.
    #[arg(long, value_name = "FILE")]
    jwks: Option<PathBuf>,
    /// When, in RFC 3339 or in Unix seconds. Default: now.
    #[arg(long, value_name = "TIME", value_parser = args::instant)]
    now: Option<Timestamp>,
    /// An audience in place of those of the issuers; may be repeated.
    #[arg(long)]
    audience: Vec<String>,
    /// File with workloads: the token must be of one of them, and is mapped to it; may be repeated.
    #[arg(long, value_name = "FILE")]
    workloads: Vec<PathBuf>,
    /// Take a token that is bound to a key (`cnf`) although no proof of possession is at hand.
    #[arg(long)]
    without_proof: bool,
    /// Judge each line of this file; `-` reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    batch: Option<PathBuf>,
    /// The token; `@FILE` reads a file, `-` standard input. Other users of this machine can see arguments.
    #[arg(required_unless_present = "batch")]
    token: Option<String>,
}

/// A line of a batch. No `Debug`: it holds a token.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    id: Value,
    token: String,
    now: Option<Value>,
    issuer: Option<Value>,
    jwks: Option<Value>,
    audience: Option<Value>,
}

#[derive(Debug, Serialize)]
struct Answered<'a> {
    line: u64,
    id: &'a Value,
    #[serde(flatten)]
    verdict: &'a Verdict,
}

/// What the flags say, for lines that say nothing else.
struct Defaults {
    issuers: Vec<Issuer>,
    jwks: Option<Jwks>,
    audience: Vec<String>,
    workloads: Option<Vec<Workload>>,
    without_proof: bool,
    now: Timestamp,
}

impl VerifyArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let defaults = self.defaults()?;
        if let Some(path) = &self.batch {
            return defaults.batch(path, out);
        }
        let token = self.token()?;
        let verifier = defaults.verifier(None, None, None).map_err(Failure::error)?;
        let verdict = verifier.judge(&token, defaults.now);
        if out.is_json() {
            out.json(&verdict)?
        } else {
            verdict.print(out)?
        }
        Ok(if verdict.is_valid() { Answer::Yes } else { Answer::No })
    }

    fn token(&self) -> Result<Zeroizing<String>, Failure> {
        let given = self.token.as_deref().unwrap_or_default();
        let path = match given.strip_prefix('@') {
            Some(path) => path,
            None if given == "-" => "-",
            None => return Ok(Zeroizing::new(given.to_owned())),
        };
        let text = Zeroizing::new(files::read_text(Path::new(path))?);
        // Only the end of the line: white space anywhere else is part of a bad token.
        let text = text.strip_suffix('\n').map_or(&**text, |line| line.strip_suffix('\r').unwrap_or(line));
        Ok(Zeroizing::new(text.to_owned()))
    }

    fn defaults(&self) -> Result<Defaults, Failure> {
        let mut issuers = Vec::new();
        for object in objects(&self.issuer, Kind::Issuer)? {
            if let Object::Issuer(issuer) = object {
                issuers.push(*issuer);
            }
        }
        let mut workloads = Vec::new();
        for object in objects(&self.workloads, Kind::Workload)? {
            if let Object::Workload(workload) = object {
                workloads.push(workload);
            }
        }
        let jwks = self.jwks.as_deref().map(documents::read_one).transpose()?;
        let jwks = jwks.as_ref().map(key_set).transpose().map_err(|e| {
            Failure::error(format!("`{}`: {e}", self.jwks.as_deref().unwrap_or(Path::new("")).display()))
        })?;
        Ok(Defaults {
            issuers,
            jwks,
            audience: self.audience.clone(),
            workloads: (!self.workloads.is_empty()).then_some(workloads),
            without_proof: self.without_proof,
            now: self.now.unwrap_or_else(|| SystemClock::new().now().wall),
        })
    }
}

/// The objects of one kind in these files. Documents under the name of another kind, as in a file for `apply`, are passed over.
fn objects(paths: &[PathBuf], kind: Kind) -> Result<Vec<Object>, Failure> {
    let mut all = Vec::new();
    for path in paths {
        let before = all.len();
        for document in documents::read(path)? {
            let of_another = Kind::ALL.into_iter().any(|other| other != kind && document.get(other.name()).is_some());
            if of_another && document.get(kind.name()).is_none() {
                continue;
            }
            let document = with_key_file(document, kind, path)?;
            let object = parse(kind, &document);
            all.push(object.map_err(|e| Failure::error(format!("`{}`: {kind} {e}", path.display())))?);
        }
        if all.len() == before {
            return Err(Failure::error(format!("`{}` holds no {kind}", path.display())));
        }
    }
    Ok(all)
}

/// `apply` lets an issuer name a file beside it for its keys.
fn with_key_file(mut document: Value, kind: Kind, path: &Path) -> Result<Value, Failure> {
    let wrapped = document.get(kind.name()).is_some_and(Value::is_object);
    let body = if wrapped { document.get_mut(kind.name()) } else { Some(&mut document) };
    let Some(body) = body.and_then(Value::as_object_mut) else { return Ok(document) };
    if let Some(Value::String(name)) = body.remove("jwks_file") {
        let file = path.parent().unwrap_or(Path::new(".")).join(name);
        body.insert("jwks".to_owned(), documents::read_one(&file)?);
    }
    Ok(document)
}

fn key_set(document: &Value) -> Result<Jwks, String> {
    let jwks: Jwks = from_json(document.to_string().as_bytes()).map_err(|e| format!("jwks: {e}"))?;
    jwks.check().map_err(|e| e.to_string())?;
    Ok(jwks)
}

// === impl Defaults ===

impl Defaults {
    /// The verifier for what a line says in place of the flags.
    fn verifier(
        &self,
        issuer: Option<&Value>,
        jwks: Option<&Value>,
        audience: Option<&Value>,
    ) -> Result<Verifier, String> {
        let mut issuers = match issuer {
            None => self.issuers.clone(),
            Some(Value::Array(all)) => all.iter().map(issuer_of).collect::<Result<_, _>>()?,
            Some(one) => vec![issuer_of(one)?],
        };
        let jwks = match jwks {
            Some(document) => Some(key_set(document)?),
            None => self.jwks.clone(),
        };
        if let Some(jwks) = jwks {
            let [only] = &mut issuers[..] else {
                return Err(format!("a key set is for one issuer, and there are {}", issuers.len()));
            };
            only.jwks = jwks;
        }
        if issuers.is_empty() {
            return Err("there is no issuer, neither in the line nor by `--issuer`".to_owned());
        }
        let audiences = match audience {
            None => self.audience.clone(),
            Some(Value::String(one)) => vec![one.clone()],
            Some(list) => from_json(list.to_string().as_bytes())
                .map_err(|_not_strings| "`audience` is neither a string nor an array of strings".to_owned())?,
        };
        if !audiences.is_empty() {
            issuers.iter_mut().for_each(|issuer| issuer.audiences.clone_from(&audiences));
        }
        Ok(Verifier::new(&issuers, self.workloads.as_deref(), self.without_proof))
    }

    fn batch(&self, path: &Path, out: &mut Out<'_>) -> Outcome {
        let open = || -> std::io::Result<Box<dyn Read>> {
            Ok(if path == Path::new("-") { Box::new(std::io::stdin()) } else { Box::new(std::fs::File::open(path)?) })
        };
        let file = open().map_err(|e| Failure::error(format!("cannot read `{}`: {e}", path.display())))?;
        let mut reader = BufReader::new(file);
        let mut batch = Batch { defaults: self, last: None };
        let (mut refused, mut unread) = (0_u64, 0_u64);
        let mut number = 0;
        loop {
            let mut line = Zeroizing::new(Vec::new());
            let limit = MAX_LINE.saturating_add(1);
            if reader.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            number += 1;
            let whole = line.ends_with(b"\n") || u64::try_from(line.len()).is_ok_and(|n| n < limit);
            if !whole {
                // The rest of the line is read and dropped, without being kept.
                reader.skip_until(b'\n')?;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let answer = if whole { batch.judge(&line) } else { Err((Value::Null, too_long())) };
            match answer {
                Ok((id, verdict)) => {
                    refused += u64::from(!verdict.is_valid());
                    report(out, number, &id, &verdict)?;
                }
                Err((id, error)) => {
                    unread += 1;
                    report_error(out, number, &id, &error)?;
                }
            }
        }
        if unread > 0 {
            return Err(Failure::error(format!(
                "{unread} of the lines could not be judged; see `error` in their place"
            )));
        }
        Ok(if refused == 0 { Answer::Yes } else { Answer::No })
    }

    fn time(&self, now: Option<&Value>) -> Result<Timestamp, String> {
        match now {
            None => Ok(self.now),
            Some(Value::String(text)) => args::instant(text).map_err(|e| format!("`now` is {e}")),
            Some(number) => {
                let secs = number.as_u64().ok_or("`now` is neither Unix seconds nor an RFC 3339 time")?;
                args::instant(&secs.to_string()).map_err(|e| format!("`now` is {e}"))
            }
        }
    }
}

fn issuer_of(document: &Value) -> Result<Issuer, String> {
    match parse(Kind::Issuer, document) {
        Ok(Object::Issuer(issuer)) => Ok(*issuer),
        Ok(_) => Err("issuer: is of another kind".to_owned()),
        Err(e) => Err(format!("issuer: {e}")),
    }
}

fn too_long() -> String {
    format!("the line is longer than {MAX_LINE} bytes")
}

/// The lines of a batch, with the verifier of the last one: most batches have one for all lines.
struct Batch<'a> {
    defaults: &'a Defaults,
    last: Option<([Option<Value>; 3], Verifier)>,
}

impl Batch<'_> {
    fn judge(&mut self, line: &[u8]) -> Result<(Value, Verdict), (Value, String)> {
        let line: Line = from_json(line).map_err(|e| {
            // What is wrong may be elsewhere, and whoever asked knows the line by its id.
            let known = serde_json::from_slice::<Value>(line).ok().and_then(|v| v.get("id").cloned());
            (known.unwrap_or_default(), if e.field.is_empty() { e.message } else { e.to_string() })
        })?;
        let Line { id, token, now, issuer, jwks, audience } = line;
        match self.verdict(&token, now.as_ref(), [issuer, jwks, audience]) {
            Ok(verdict) => Ok((id, verdict)),
            Err(e) => Err((id, e)),
        }
    }

    fn verdict(&mut self, token: &str, now: Option<&Value>, by: [Option<Value>; 3]) -> Result<Verdict, String> {
        let now = self.defaults.time(now)?;
        if let Some((known, verifier)) = &self.last
            && *known == by
        {
            return Ok(verifier.judge(token, now));
        }
        let [issuer, jwks, audience] = &by;
        let verifier = self.defaults.verifier(issuer.as_ref(), jwks.as_ref(), audience.as_ref())?;
        let verdict = verifier.judge(token, now);
        self.last = Some((by, verifier));
        Ok(verdict)
    }
}

fn report(out: &mut Out<'_>, line: u64, id: &Value, verdict: &Verdict) -> Result<(), Failure> {
    if out.is_json() {
        let answered = Answered { line, id, verdict };
        return out.line(serde_json::to_string(&answered).map_err(std::io::Error::from)?);
    }
    out.line(format!("{line:>6}  {}  {}", printable(&label(id)), verdict.summary()))
}

fn report_error(out: &mut Out<'_>, line: u64, id: &Value, error: &str) -> Result<(), Failure> {
    if out.is_json() {
        return out.line(json!({ "line": line, "id": id, "error": error }).to_string());
    }
    out.line(format!("{line:>6}  {}  error    {}", printable(&label(id)), printable(error)))
}

fn label(id: &Value) -> String {
    match id {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
