//! `portcullis bench fleet`: what a fleet of any size costs a control plane, and how fast a revocation reaches it.
//!
//! Plane: composition. Progress goes to standard error. Exit status 1 means that a sidecar did not become current, a
//! revocation did not arrive, or a frame was out of place. Revoking needs an operator's token and is for ever, so it is
//! done only when asked for.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::super::failure::{Answer, Failure, Outcome};
use super::super::output::{Out, Table};
use super::super::{args, files};
use crate::bench::fleet::{Api, Bench, Identities, Options, Percentiles, Plan, Process, Report, Spread};
use crate::sync::BackoffConfig;
use crate::wire::VerifyKey;

/// Simulate a fleet of sidecars against a control plane.
///
/// Each sidecar has its own connection, TLS handshake, credential and stream, follows the log, acknowledges, and comes
/// back with jitter when it is turned away; it has no engine. --identities is a directory with `identities.json`:
/// {"identities": [{"identity": "spiffe://…", "services": ["a"], "token_file": "a.token"}, …]}, with `cert_file` and
/// `key_file` in place of the token or beside it. Each entry is one sidecar's credential; the same identity may come more
/// than once; with fewer entries than sidecars they are used in turn. Measured: the time until all are current, CPU and
/// memory at rest (--pid), and, with --api, how long a revocation takes to reach every sidecar. Revocations are for ever:
/// each ends a token that nobody has. Needs a descriptor for each sidecar (`ulimit -n`).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  portcullis bench fleet --sidecars 1000 --control https://127.0.0.1:9181 --ca ca.pem \\\n    \
    --verify-key control/verify-key --identities identities --pid 4711\n  \
    portcullis bench fleet --control https://127.0.0.1:9181 --verify-key control/verify-key --identities identities \\\n    --api https://127.0.0.1:9180 --operator-token control/bootstrap-token \\\n    \
    --issuer production --revocations 20 --burst 20"
)]
pub(in crate::cli) struct FleetArgs {
    /// How many sidecars.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    sidecars: usize,
    /// The control plane's sync address.
    #[arg(long, value_name = "URL")]
    control: Uri,
    /// PEM file with the CA certificates of the control plane; without it, http:// to this machine only.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The control plane's public key, `verify-key` in its data directory.
    #[arg(long, value_name = "FILE")]
    verify_key: PathBuf,
    /// Directory with `identities.json` and the files that it names.
    #[arg(long, value_name = "DIR")]
    identities: PathBuf,
    /// One sidecar in so many verifies signatures; 1 is all, 0 none.
    #[arg(long, value_name = "N", default_value_t = 16)]
    verify_every: usize,
    /// How long connecting may take, and how long the control plane may be silent.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = args::duration)]
    timeout: Duration,
    /// How long all of them may take to become current.
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = args::duration)]
    limit: Duration,
    /// How long the fleet rests once it is connected, to see what idle streams cost.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = args::duration)]
    rest: Duration,
    /// Process id of the control plane, when it is on this machine: for its CPU and memory.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// The control plane's API, for revocations.
    #[arg(long, value_name = "URL", requires = "operator_token", requires = "issuer")]
    api: Option<String>,
    /// File with an operator's token.
    #[arg(long, value_name = "FILE")]
    operator_token: Option<PathBuf>,
    /// Name of an issuer; tokens of it that nobody has are revoked.
    #[arg(long, value_name = "NAME")]
    issuer: Option<String>,
    /// How many revocations, one after the other.
    #[arg(long, value_name = "N", default_value_t = 20)]
    revocations: usize,
    /// How many revocations at once.
    #[arg(long, value_name = "N", default_value_t = 20)]
    burst: usize,
    /// Also have all come back at once: with what they have, then with nothing.
    #[arg(long)]
    reconnect: bool,
    /// Also measure revocations while so many newcomers keep coming with nothing.
    #[arg(long, value_name = "N", default_value_t = 0)]
    herd: usize,
}

impl FleetArgs {
    pub(in crate::cli) fn run(self, out: &mut Out<'_>) -> Outcome {
        let error = |e: &dyn std::fmt::Display| Failure::error(e.to_string());
        let key = files::read_text(&self.verify_key)?;
        let verify_key =
            VerifyKey::parse(&key).map_err(|e| Failure::error(format!("`{}`: {e}", self.verify_key.display())))?;
        let identities = Identities::load(&self.identities).map_err(|e| error(&e))?;
        let api = match (&self.api, &self.operator_token) {
            (Some(url), Some(token)) => Some(Api::new(url, self.ca.as_deref(), token).map_err(|e| error(&e))?),
            _ => None,
        };
        let options = Options {
            control: self.control,
            ca_file: self.ca,
            verify_key,
            sidecars: self.sidecars,
            verify_every: self.verify_every,
            timeout: self.timeout,
            backoff: BackoffConfig::default(),
        };
        let plan = Plan {
            revocations: self.revocations,
            burst: self.burst,
            pause: Duration::from_millis(200),
            wait: Duration::from_secs(30),
            rest: self.rest,
            reconnect: self.reconnect,
            herd: self.herd,
            limit: self.limit,
            issuer: self.issuer.unwrap_or_default(),
        };
        let tell = |line: &str| {
            let _ = writeln!(std::io::stderr().lock(), "{line}");
        };
        let control = self.pid.map(Process);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let report = runtime.block_on(async {
            let mut bench = Bench::start(options, &identities, plan, api, control, &tell).await?;
            bench.run(&identities, &tell).await?;
            Ok::<_, crate::bench::fleet::DriveError>(bench.report())
        });
        let report = report.map_err(|e| error(&e))?;
        // Ten thousand connections need not be closed one by one.
        runtime.shutdown_background();
        if out.is_json() {
            out.json(&report)?;
        } else {
            text(out, &report)?;
        }
        Ok(if report.is_good() { Answer::Yes } else { Answer::No })
    }
}

fn text(out: &mut Out<'_>, report: &Report) -> Result<(), Failure> {
    let mut joined = Table::new(&["all current after", "seconds", "attempts", "turned away", "control CPU s"]);
    let or_dash = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
    for one in &report.joined {
        joined.row([
            one.what.clone(),
            one.all_current_ms.map_or_else(|| "NOT IN TIME".to_owned(), |ms| format!("{:.2}", ms / 1000.0)),
            one.attempts.to_string(),
            one.turned_away.to_string(),
            or_dash(one.cpu_seconds),
        ]);
    }
    out.table(&joined, "nothing was measured")?;
    let mut spread = Table::new(&["revocations", "measured, ms", "p50", "p90", "p99", "max", "missing"]);
    let named = [("one at a time", &report.single), ("at once", &report.burst), ("under a herd", &report.under_herd)];
    for (name, found) in named {
        let Some(found) = found else { continue };
        for (what, values) in kinds(found) {
            let Some(values) = values else { continue };
            let ms = |v: f64| format!("{v:.1}");
            let cells = [values.p50, values.p90, values.p99, values.max].map(ms);
            spread.row([name.to_owned(), what.to_owned()].into_iter().chain(cells).chain([found.missing.to_string()]));
        }
    }
    out.line("")?;
    out.table(&spread, "no revocations were measured (--api)")?;
    out.line("")?;
    let mib = |bytes: u64| format!("{} MiB", bytes / (1024 * 1024));
    if let (Some(idle), Some(cores)) = (report.idle, report.idle_cores) {
        out.line(format!("control plane at rest: {}, {cores:.3} cores", mib(idle.resident_bytes)))?;
    }
    if let Some(control) = report.control {
        out.line(format!(
            "control plane at the end: {}, peak {}",
            mib(control.resident_bytes),
            mib(control.peak_bytes)
        ))?;
    }
    if let Some(fleet) = report.fleet {
        out.line(format!("the simulated fleet itself: {}", mib(fleet.resident_bytes)))?;
    }
    let c = report.counts;
    out.line(format!("frames {}, signatures verified {}, out of place {}", c.frames, c.verified, c.violations))
}

fn kinds(spread: &Spread) -> [(&'static str, Option<Percentiles>); 3] {
    [
        ("request to applied", spread.request_to_applied_ms),
        ("commit to acknowledged", spread.commit_to_acknowledged_ms),
        ("request to receipt", spread.receipt_ms),
    ]
}
