//! `portcullis decisions`: follow a file of decision records.
//!
//! Reads whole lines only, and follows the file over a rotation: when the name stands for another file, the rest of
//! the old one is read first.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::api::cell;
use super::block_on;
use super::failure::{Answer, Failure, Outcome};
use super::output::{Out, WIDTH, fit, printable};

/// Decision records.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  portcullis decisions tail --file decisions.jsonl --deny --follow")]
pub(super) enum DecisionsCommand {
    /// Print the last records of a file, and what is added to it.
    #[command(
        after_help = "Example:\n  portcullis decisions tail --file decisions.jsonl --reason entitlement --follow"
    )]
    Tail(TailArgs),
}

/// Which records.
#[derive(Debug, Args)]
pub(super) struct TailArgs {
    /// The file (`records.file` in sidecar.yaml).
    #[arg(long)]
    file: PathBuf,
    /// Wait for more.
    #[arg(long)]
    follow: bool,
    /// How many of the last records to print.
    #[arg(short = 'n', long, default_value_t = 10, value_name = "N")]
    lines: usize,
    /// Only this reason code, or family of codes.
    #[arg(long)]
    reason: Option<String>,
    /// Only this workload.
    #[arg(long, value_name = "SPIFFE_ID")]
    workload: Option<String>,
    /// Only denials.
    #[arg(long)]
    deny: bool,
}

impl DecisionsCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let Self::Tail(args) = self;
        block_on(async { args.tail(out).await })
    }
}

impl TailArgs {
    async fn tail(&self, out: &mut Out<'_>) -> Outcome {
        let mut reader = self.open()?;
        let mut last: VecDeque<String> = VecDeque::new();
        let mut partial = String::new();
        while let Some(line) = next_line(&mut reader, &mut partial)? {
            if self.wants(&line) && self.lines > 0 {
                if last.len() == self.lines {
                    last.pop_front();
                }
                last.push_back(line);
            }
        }
        for line in last {
            print(out, &line)?;
        }
        out.flush()?;
        if !self.follow {
            return Ok(Answer::Yes);
        }
        let mut poll = tokio::time::interval(Duration::from_millis(200));
        loop {
            poll.tick().await;
            let rotated = self.is_rotated(reader.get_ref());
            while let Some(line) = next_line(&mut reader, &mut partial)? {
                if self.wants(&line) {
                    print(out, &line)?;
                }
            }
            if rotated && let Ok(fresh) = File::open(&self.file) {
                reader = BufReader::new(fresh);
                partial.clear();
            }
            out.flush()?;
        }
    }

    fn open(&self) -> Result<BufReader<File>, Failure> {
        File::open(&self.file)
            .map(BufReader::new)
            .map_err(|e| Failure::error(format!("cannot read `{}`: {e}", self.file.display())))
    }

    fn is_rotated(&self, open: &File) -> bool {
        match (open.metadata(), std::fs::metadata(&self.file)) {
            (Ok(open), Ok(named)) => (open.dev(), open.ino()) != (named.dev(), named.ino()),
            _ => false,
        }
    }

    fn wants(&self, line: &str) -> bool {
        let Ok(record) = serde_json::from_str::<Value>(line) else { return false };
        let reason = cell(&record, "reason");
        let family = |wanted: &str| {
            reason
                .strip_prefix(wanted.trim_end_matches('.'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        (!self.deny || !reason.starts_with("allow."))
            && self.reason.as_deref().is_none_or(family)
            && self.workload.as_deref().is_none_or(|w| cell(&record, "workload") == w)
    }
}

/// The next whole line; what there is of an unfinished one stays in `partial`.
fn next_line(reader: &mut BufReader<File>, partial: &mut String) -> Result<Option<String>, Failure> {
    reader.read_line(partial)?;
    Ok(partial.ends_with('\n').then(|| std::mem::take(partial).trim_end().to_owned()))
}

fn print(out: &mut Out<'_>, line: &str) -> Result<(), Failure> {
    if out.is_json() {
        return out.line(line);
    }
    let record: Value = serde_json::from_str(line).unwrap_or_default();
    let get = |name: &str| cell(&record, name);
    let what = match (get("resource"), get("action")) {
        (resource, action) if resource.is_empty() => action,
        (resource, action) => format!("{action} {resource}"),
    };
    let cached = if record.get("cached") == Some(&Value::Bool(true)) { " (cached)" } else { "" };
    out.line(row(&format!("{} {:<28} {what:<24}", get("time"), get("reason")), &get("workload"), cached))
}

/// A line that fits, of which the workload is cut first.
fn row(head: &str, workload: &str, tail: &str) -> String {
    let room = WIDTH.saturating_sub(head.chars().count() + 1 + tail.chars().count());
    let line = format!("{head} {}{tail}", fit(workload, room.min(workload.chars().count())));
    fit(printable(line.trim_end()).as_str(), WIDTH).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(reason: Option<&str>, workload: Option<&str>, deny: bool) -> TailArgs {
        let (reason, workload) = (reason.map(str::to_owned), workload.map(str::to_owned));
        TailArgs { file: PathBuf::new(), follow: false, lines: 10, reason, workload, deny }
    }

    #[test]
    fn filters_match_codes_families_and_workloads() {
        let deny = r#"{"reason":"entitlement.no_grant","workload":"spiffe://a/b"}"#;
        let allow = r#"{"reason":"allow.policy","workload":"spiffe://a/c"}"#;
        assert!(args(None, None, true).wants(deny) && !args(None, None, true).wants(allow));
        assert!(args(Some("entitlement"), None, false).wants(deny));
        assert!(args(Some("entitlement.no_grant"), None, false).wants(deny));
        assert!(!args(Some("entitlement.no"), None, false).wants(deny), "a family is not a prefix of letters");
        assert!(!args(None, Some("spiffe://a/c"), false).wants(deny));
        assert!(!args(None, None, false).wants("{not json"));
    }

    #[test]
    fn lines_fit_and_keep_the_end_of_a_long_id() {
        let long = format!("spiffe://{}/storefront", "a".repeat(200));
        let line = row(&"h".repeat(60), &long, " (cached)");
        assert_eq!(line.chars().count(), WIDTH, "{line}");
        assert!(line.contains(" …aa") && line.ends_with("/storefront (cached)"), "{line}");
        assert_eq!(row("head", "spiffe://a/b", ""), "head spiffe://a/b");
        assert_eq!(row(&"h".repeat(300), &long, "").chars().count(), WIDTH);
    }

    #[test]
    fn an_unfinished_line_waits_for_its_end() {
        use std::io::Write;
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = file.reopen().unwrap();
        let mut reader = BufReader::new(file.reopen().unwrap());
        let mut partial = String::new();
        write!(writer, "{{\"a\":").unwrap();
        assert_eq!(next_line(&mut reader, &mut partial).unwrap(), None);
        writeln!(writer, "1}}").unwrap();
        assert_eq!(next_line(&mut reader, &mut partial).unwrap().as_deref(), Some("{\"a\":1}"));
    }
}
