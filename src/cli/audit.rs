//! `portcullis audit`: who did what, and whether the record of it is whole.
//!
//! Plane: composition. Reads from the control plane's API, from its database beside or without it, or from an export.
//! Only the database can be compared with what it holds besides. A trail that is not whole ends as exit status 1.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::api::{Api, ApiArgs, cell, items};
use super::failure::{Answer, Failure, Outcome};
use super::output::{Out, Table, printable};
use super::{args, block_on, files};
use crate::clock::Timestamp;
use crate::control::audit::verify::Verdict;
use crate::control::audit::{Sealed, Tip, Verifier};
use crate::control::store::AuditReader;
use crate::wire::Epoch;

/// How many records are read at once.
const PAGE: usize = 1000;

/// Who did what, and whether the record of it is whole.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  portcullis audit verify --expect-file checkpoint")]
pub(super) enum AuditCommand {
    /// List records, the newest first.
    #[command(
        after_help = "Example:\n  portcullis audit list --action grant --outcome refused --since 2026-01-31T12:00:00Z"
    )]
    List(ListArgs),
    /// Print records as JSON, one a line, the oldest first. What is printed can be verified on its own.
    #[command(
        after_help = "Example:\n  portcullis audit export > audit.jsonl && portcullis audit verify --file audit.jsonl"
    )]
    Export {
        /// Only the records after this number.
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        after: u64,
        /// Read the database in this data directory, and not the API.
        #[arg(long, value_name = "DIR")]
        database: Option<PathBuf>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Print how far the audit trail has come, as HASH:SEQ. Keep it elsewhere, for `verify --expect`.
    #[command(after_help = "Example:\n  portcullis audit checkpoint > checkpoint")]
    Checkpoint {
        /// Read the database in this data directory, and not the API.
        #[arg(long, value_name = "DIR")]
        database: Option<PathBuf>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Verify the chain: nothing changed, nothing missing. With `--database`, also that all that the database holds is
    /// what the records say. Exit status: 0 whole; 1 not; 2 it cannot be told.
    #[command(
        after_help = "Example:\n  portcullis audit verify --database /var/lib/portcullis/control --expect-file checkpoints"
    )]
    Verify(VerifyArgs),
}

/// Which records.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// How many at most.
    #[arg(short = 'n', long, default_value_t = 50, value_name = "N")]
    limit: usize,
    /// Only what this principal did.
    #[arg(long)]
    author: Option<String>,
    /// Only this action, or family of actions, as in `grant`.
    #[arg(long)]
    action: Option<String>,
    /// Only what came to this: `done`, `refused`, `failed`.
    #[arg(long)]
    outcome: Option<String>,
    /// Only what is about this object, as in `grant/ID`, or one whose name begins like this.
    #[arg(long)]
    object: Option<String>,
    /// Only this request.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Only since then (RFC 3339).
    #[arg(long, value_name = "TIME", value_parser = args::timestamp)]
    since: Option<Timestamp>,
    /// Only until then (RFC 3339).
    #[arg(long, value_name = "TIME", value_parser = args::timestamp)]
    until: Option<Timestamp>,
    #[command(flatten)]
    api: ApiArgs,
}

/// What is verified, and with what it has to agree.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// A checkpoint that the trail has to agree with, so that an end that was cut off or made anew is found; repeatable.
    #[arg(long, value_name = "HASH:SEQ")]
    expect: Vec<Tip>,
    /// A file of checkpoints, one a line.
    #[arg(long, value_name = "FILE")]
    expect_file: Option<PathBuf>,
    /// Verify the database in this data directory, also while the control plane runs.
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    database: Option<PathBuf>,
    /// Verify an export; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    api: ApiArgs,
}

/// A page of the API, each record as the bytes that it came as.
#[derive(Debug, Deserialize)]
struct Page {
    items: Vec<Box<RawValue>>,
    next: Option<String>,
}

impl AuditCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        block_on(async {
            match self {
                Self::List(args) => args.run(out).await,
                Self::Export { after, database, api } => export(out, after, database.as_deref(), &api).await,
                Self::Checkpoint { database: Some(directory), .. } => {
                    let tip = open(&directory).await?.tip().await.map_err(|e| Failure::error(e.to_string()))?;
                    out.line(tip.to_string())?;
                    Ok(Answer::Yes)
                }
                Self::Checkpoint { database: None, api } => {
                    let answer = api.connect()?.get(&["audit", "checkpoint"], &[]).await?;
                    if out.is_json() {
                        out.json(&answer)?
                    } else {
                        out.line(cell(&answer, "checkpoint"))?
                    }
                    Ok(Answer::Yes)
                }
                Self::Verify(args) => args.run(out).await,
            }
        })
    }
}

// === impl ListArgs ===

impl ListArgs {
    async fn run(self, out: &mut Out<'_>) -> Outcome {
        let filters = [
            ("author", self.author),
            ("action", self.action),
            ("outcome", self.outcome),
            ("object", self.object),
            ("request_id", self.request_id),
            ("since", self.since.map(|t| t.to_string())),
            ("until", self.until.map(|t| t.to_string())),
        ];
        let mut query: Vec<(&str, String)> = vec![("order", "newest".to_owned())];
        query.extend(filters.into_iter().filter_map(|(name, value)| Some((name, value?))));
        let (api, mut records) = (self.api.connect()?, Vec::new());
        while records.len() < self.limit {
            let mut query = query.clone();
            query.push(("limit", (self.limit - records.len()).min(PAGE).to_string()));
            if let Some(after) = records.last().map(|last| cell(last, "seq")).filter(|_| !records.is_empty()) {
                query.push(("after", after));
            }
            let page = api.get(&["audit"], &query).await?;
            records.extend(items(&page).iter().cloned());
            if page.get("next").is_none() || items(&page).is_empty() {
                break;
            }
        }
        if out.is_json() {
            out.json(&serde_json::json!({ "items": records }))?;
            return Ok(Answer::Yes);
        }
        let mut table = Table::new(&["seq", "time", "author", "action", "object", "outcome"]).whole(&[0, 1]);
        for record in &records {
            let outcome = match cell(record, "status") {
                status if status.is_empty() => cell(record, "outcome"),
                status => format!("{} ({status})", cell(record, "outcome")),
            };
            let [seq, at, author, action, object] =
                ["seq", "at", "author", "action", "object"].map(|n| cell(record, n));
            table.row([seq, at, if author.is_empty() { "?".to_owned() } else { author }, action, object, outcome]);
        }
        out.table(&table, "no records")?;
        Ok(Answer::Yes)
    }
}

async fn export(out: &mut Out<'_>, mut after: u64, database: Option<&Path>, api: &ApiArgs) -> Outcome {
    if let Some(directory) = database {
        let mut reader = open(directory).await?;
        loop {
            let rows = reader.since(after, PAGE).await.map_err(|e| Failure::error(e.to_string()))?;
            let Some(last) = rows.last() else { return Ok(Answer::Yes) };
            after = last.seq;
            rows.iter().try_for_each(|row| out.line(row.sealed.line()))?;
        }
    }
    let api = api.connect()?;
    loop {
        let page = page(&api, after).await?;
        page.items.iter().try_for_each(|line| out.line(line.get()))?;
        match page.next.map(|next| next.parse()) {
            None => return Ok(Answer::Yes),
            Some(Ok(next)) if next > after => after = next,
            Some(_) => return Err(Failure::error("the control plane's pages do not follow each other")),
        }
    }
}

async fn page(api: &Api, after: u64) -> Result<Page, Failure> {
    let query = [("limit", PAGE.to_string()), ("after", after.to_string())];
    let bytes = api.get_bytes(&["audit"], &query).await?;
    serde_json::from_slice(&bytes).map_err(|e| Failure::error(format!("the control plane's answer is no page: {e}")))
}

async fn open(directory: &Path) -> Result<AuditReader, Failure> {
    AuditReader::open(directory).await.map_err(|e| Failure::error(e.to_string()))
}

// === impl VerifyArgs ===

impl VerifyArgs {
    async fn run(self, out: &mut Out<'_>) -> Outcome {
        let expected = self.expected()?;
        let verdict = match (&self.database, &self.file) {
            (Some(directory), _) => {
                open(directory).await?.verify(expected).await.map_err(|e| Failure::error(e.to_string()))?
            }
            (None, Some(file)) => of_file(file, expected)?,
            (None, None) => of_api(&self.api.connect()?, expected).await?,
        };
        if out.is_json() {
            out.json(&verdict)?;
        } else {
            print(out, &verdict)?;
        }
        Ok(if verdict.is_whole() { Answer::Yes } else { Answer::No })
    }

    fn expected(&self) -> Result<Vec<Tip>, Failure> {
        let mut expected = self.expect.clone();
        if let Some(path) = &self.expect_file {
            for line in files::read_text(path)?.lines().map(str::trim).filter(|line| !line.is_empty()) {
                let tip = line.parse().map_err(|e| Failure::error(format!("`{}`: {e}", path.display())))?;
                expected.push(tip);
            }
        }
        Ok(expected)
    }
}

/// An export, line by line.
fn of_file(path: &Path, expected: Vec<Tip>) -> Result<Verdict, Failure> {
    let failed = |e: std::io::Error| Failure::error(format!("cannot read `{}`: {e}", path.display()));
    let reader: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        Box::new(BufReader::new(std::fs::File::open(path).map_err(failed)?))
    };
    let mut verifier = Verifier::new(expected);
    for (number, line) in (1_u64..).zip(reader.lines()) {
        match Sealed::of_line(&line.map_err(failed)?) {
            Some(sealed) => drop(verifier.record(None, &sealed)),
            None => verifier.unreadable(format!("line {number} is no record with its hash")),
        }
    }
    Ok(verifier.finish())
}

/// What the API answers, which has to come at least as far as it says before.
async fn of_api(api: &Api, mut expected: Vec<Tip>) -> Result<Verdict, Failure> {
    let promised: Value = api.get(&["audit", "checkpoint"], &[]).await?;
    let bad = |e| Failure::error(format!("the control plane's answer is no checkpoint: {e}"));
    let epoch = Epoch::parse(&cell(&promised, "epoch")).map_err(|e| bad(e.to_string()))?;
    expected.push(cell(&promised, "checkpoint").parse().map_err(bad)?);
    let mut verifier = Verifier::new(expected).from_beginning(Tip::genesis(epoch));
    let mut after = 0;
    loop {
        let page = page(api, after).await?;
        for line in &page.items {
            match Sealed::of_line(line.get()) {
                Some(sealed) => drop(verifier.record(None, &sealed)),
                None => verifier.unreadable(format!("after record {after}: no record with its hash")),
            }
        }
        match page.next.map(|next| next.parse()) {
            None => return Ok(verifier.finish()),
            Some(Ok(next)) if next > after => after = next,
            Some(_) => return Err(Failure::error("the control plane's pages do not follow each other")),
        }
    }
}

fn print(out: &mut Out<'_>, verdict: &Verdict) -> Result<(), Failure> {
    for finding in &verdict.findings {
        out.line(printable(&finding.detail))?;
    }
    if verdict.more_findings > 0 {
        out.line(format!("and {} more", verdict.more_findings))?;
    }
    let Verdict { records, first, checkpoint, .. } = verdict;
    let first = first.map(|first| format!(" from number {first} on")).unwrap_or_default();
    let verdict = if verdict.is_whole() { "whole" } else { "NOT whole" };
    out.line(format!("{records} records{first}: {verdict}"))?;
    if let Some(checkpoint) = checkpoint {
        out.line(format!("checkpoint {checkpoint}"))?;
    }
    Ok(())
}
