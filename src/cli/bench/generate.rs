//! `portcullis bench generate`: an estate of any size, from a seed.
//!
//! Plane: composition. Everything that can be wrong with the numbers is refused before a file is made.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::failure::{Answer, Failure, Outcome};
use super::super::output::Out;
use super::super::{args, block_on};
use crate::bench::generate::{Estate, Options, Size, generate};
use crate::clock::{Clock, SystemClock, Timestamp};

/// Generate grants, workloads, policies and services, with keys, tokens and a request mix for them.
///
/// Writes a sidecar's state directory, signed and in the format that `portcullis sidecar` starts from and `portcullis
/// check --snapshot` reads; `sidecar.yaml`, the public key, the issuer's key, tokens (JWT-SVIDs, ES256) and `mix.yaml`.
/// The same seed, numbers, --now and --token-lifetime give the same bytes, signatures included. Only `control/control.db`
/// and the paths in the .yaml files differ. Everything is valid from --now until --token-lifetime later, tokens and lease
/// alike. The keys follow from the seed: they protect nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  portcullis bench generate --grants 1000000 --workloads 100000 --policies 10000 --out estate\n  \
    portcullis sidecar --config estate/sidecar.yaml\n  \
    portcullis bench generate --seed 7 --now 2026-11-24T00:00:00Z --control-store --out estate\n  \
    portcullis control --config estate/control.yaml"
)]
pub(in crate::cli) struct GenerateArgs {
    /// Active grants; at most 10000000.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    grants: u64,
    /// Workloads; at most 1000000.
    #[arg(long, value_name = "N", default_value_t = 500)]
    workloads: u64,
    /// Policies; 2 to 100000.
    #[arg(long, value_name = "N", default_value_t = 10)]
    policies: u64,
    /// Services, all of them the sidecar's; at most 10000.
    #[arg(long, value_name = "N", default_value_t = 4)]
    services: u64,
    /// What everything follows from.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// When tokens, grants and lease start: RFC 3339 or Unix seconds. Default: now.
    #[arg(long, value_name = "TIME", value_parser = args::instant)]
    now: Option<Timestamp>,
    /// How long tokens and lease last; 1m to 24h.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = args::duration)]
    token_lifetime: Duration,
    /// How many workloads get a token.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    tokens: u64,
    /// Also make `control.yaml` and `control/`, a control plane's data directory with the same objects at the same position.
    #[arg(long)]
    control_store: bool,
    /// Also write `documents/`: `estate.yaml` for `portcullis apply` and, with the grants, `objects.jsonl`.
    #[arg(long)]
    documents: bool,
    /// Directory to write to: new or empty.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl GenerateArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let size =
            Size { grants: self.grants, workloads: self.workloads, policies: self.policies, services: self.services };
        let now = self.now.unwrap_or_else(|| Timestamp::from_secs(SystemClock::new().now().wall.as_secs()));
        let fail = |e: crate::bench::generate::GenerateError| Failure::error(e.to_string());
        let estate = Estate::new(size, self.seed, now, self.token_lifetime).map_err(fail)?;
        let options = Options {
            out: self.out,
            tokens: self.tokens,
            control_store: self.control_store,
            documents: self.documents,
        };
        let mut progress = Progress::new();
        let made = block_on(async {
            let made = generate(&estate, &options, |done, total| progress.at(done, total)).await;
            made.map_err(fail)
        });
        progress.clear();
        let made = made?;
        if out.is_json() {
            out.json(&json!({
                "out": made.out, "position": made.position.to_string(), "objects": made.objects, "tokens": made.tokens,
                "document_bytes": made.bytes, "seed": self.seed, "now": now,
                "valid_until": now.saturating_add(self.token_lifetime),
            }))?;
            return Ok(Answer::Yes);
        }
        let place = made.out.display();
        out.line(format!(
            "{} objects, {} MB of documents, at {}",
            made.objects,
            made.bytes / 1_000_000,
            made.position
        ))?;
        out.line(format!(
            "{} workloads have a token, valid until {}",
            made.tokens,
            now.saturating_add(self.token_lifetime)
        ))?;
        out.line("")?;
        if options.control_store {
            out.line(format!("portcullis control --config {place}/control.yaml"))?;
        }
        out.line(format!("portcullis sidecar --config {place}/sidecar.yaml"))?;
        out.line(format!("portcullis bench run --mix {place}/mix.yaml --target portcullis=grpc://127.0.0.1:9191"))?;
        Ok(Answer::Yes)
    }
}

/// A line on standard error, when that is a terminal.
#[derive(Debug)]
struct Progress {
    shown: Option<Instant>,
}

impl Progress {
    fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal().then(Instant::now) }
    }

    fn at(&mut self, done: u64, total: u64) {
        let Some(shown) = &mut self.shown else { return };
        if done.is_multiple_of(1024) && shown.elapsed() >= Duration::from_millis(200) {
            *shown = Instant::now();
            let percent = done.saturating_mul(100) / total.max(1);
            let _unseen = write!(std::io::stderr(), "\r{percent:3} %  {done} of {total} objects");
        }
    }

    fn clear(&self) {
        if self.shown.is_some() {
            let _unseen = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
