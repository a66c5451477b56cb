//! `portcullis bench run`: load on one or several servers, side by side.
//!
//! Plane: composition. Exit status 0 when every answer was the expected one, 1 when not, 2 when nothing could be measured.
//! Progress goes to standard error, and only when that is a terminal.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::super::failure::{Answer, Failure, Outcome};
use super::super::output::Out;
use super::super::{args, files};
use super::text;
use crate::bench::{Expect, Mix, Pace, RunError, Settings, Shares, Single, Step, Target, html, run};

/// Put load on ext_authz servers, and say what it cost and how long answers took.
///
/// At a fixed --rate the loop is open: requests are due at even intervals whatever the server does, and latency counts
/// from when a request was due, so that a server that stalls does not hide it (no coordinated omission). Without --rate
/// the loop is closed: each stream sends again as soon as it has its answer, which shows throughput and cost.
///
/// Several targets take turns, round after round, and are compared with the first by ratios within rounds.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  portcullis bench run --target ours=grpc://127.0.0.1:9191 --mix mix.yaml --rate 1000\n  \
    portcullis bench run --target opa=grpc://127.0.0.1:9292 --path /items/1 --token-file token.jwt --expect allow\n  \
    portcullis bench run --target a=grpc://127.0.0.1:9191 --target b=grpc://127.0.0.1:9292 \\\n    \
        --pid a=4711 --pid b=4712 --mix mix.yaml --html report.html\n  \
    portcullis bench run --target through-envoy=http://127.0.0.1:10000 --mix mix.yaml --rate 500 --expect mix\n\n\
    Exit status: 0 every request got the expected answer; 1 some did not; 2 nothing could be measured."
)]
pub(in crate::cli) struct RunArgs {
    /// A server: grpc://HOST:PORT or unix:PATH (ext_authz), http://HOST:PORT (a proxy); may be repeated.
    #[arg(long, value_name = "NAME=URL", required = true)]
    target: Vec<Target>,
    /// The requests, as YAML; see docs/bench.md. Without it, the one that --path and the like describe.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["path", "method", "host", "header", "token_file"])]
    mix: Option<PathBuf>,
    /// Requests a second, on each target in its turn. Without it: as many as it takes.
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Connections to each target.
    #[arg(long, value_name = "N", default_value_t = 4)]
    connections: usize,
    /// Requests at once on each connection. HTTP/1.1 has one, so there this multiplies connections.
    #[arg(long, value_name = "N", default_value_t = 16)]
    streams: usize,
    /// How long a turn lasts.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = args::duration)]
    duration: Duration,
    /// Requests before the first round that do not count.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = args::duration)]
    warm_up: Duration,
    /// How many turns each target takes. More than one even for one target shows how much they differ.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// After so long a request is given up; it counts with that at least.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = args::duration)]
    timeout: Duration,
    /// Which answers are right: `mix` (as it says), `allow`, `deny` (4xx), `any` or an HTTP status.
    #[arg(long, value_name = "ANSWER", default_value = "mix", value_parser = expectation)]
    expect: Expectation,
    /// Share of requests with a token that nobody has seen, 0 to 1, whatever the mix says.
    #[arg(long, value_name = "SHARE", requires = "mix")]
    never_seen: Option<f64>,
    /// Share of requests that are to be denied.
    #[arg(long, value_name = "SHARE", requires = "mix")]
    denied: Option<f64>,
    /// A process of a target's, for its processor time and memory; may be repeated, also for one target.
    #[arg(long, value_name = "NAME=PID", value_parser = pid)]
    pid: Vec<(String, u32)>,
    /// Threads that generate load.
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Without --rate: for how many requests to each target new tokens are made beforehand.
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    most_requests: u64,
    /// Write the report to this file, as one HTML page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Without --mix: the path of the request.
    #[arg(long, default_value = "/")]
    path: String,
    /// Without --mix: its method.
    #[arg(long, default_value = "GET")]
    method: String,
    /// Without --mix: its host.
    #[arg(long, default_value = "localhost")]
    host: String,
    /// Without --mix: a header of it; may be repeated.
    #[arg(long, value_name = "NAME: VALUE", value_parser = args::header)]
    header: Vec<(String, String)>,
    /// Without --mix: a file with a token, sent as `authorization: Bearer`.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// What `--expect` asks for.
#[derive(Debug, Clone, Copy)]
enum Expectation {
    Mix,
    All(Expect),
}

impl RunArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let fail = |e: RunError| Failure::error(e.to_string());
        let mix = self.requests()?;
        let settings = Settings {
            targets: self.target,
            pace: self.rate.map_or(Pace::Saturate, Pace::Rate),
            connections: self.connections,
            streams: self.streams,
            rounds: self.rounds,
            duration: self.duration,
            warm_up: self.warm_up,
            timeout: self.timeout,
            pids: self.pid,
            threads: self.threads,
            most_requests: self.most_requests,
        };
        let progress = Progress::default();
        let report = run(&mix, &settings, |step| progress.start(step));
        progress.stop();
        let report = report.map_err(fail)?;
        if let Some(path) = &self.html {
            files::write_public(path, &html(&report))?;
        }
        if out.is_json() {
            out.json(&report)?;
        } else {
            text::print(out, &report)?;
        }
        if let Some(silent) = report.targets.iter().find(|t| t.answered == 0) {
            return Err(Failure::error(format!("`{}` answered nothing{}", silent.name, text::why(silent))));
        }
        Ok(if report.is_right() { Answer::Yes } else { Answer::No })
    }

    fn requests(&self) -> Result<Mix, Failure> {
        let mix = match &self.mix {
            Some(path) => Mix::load(path, Shares { never_seen: self.never_seen, denied: self.denied }),
            None => {
                let token = self.token_file.as_deref().map(files::read_secret).transpose()?;
                Mix::single(Single {
                    method: self.method.clone(),
                    path: self.path.clone(),
                    host: self.host.clone(),
                    headers: self.header.clone(),
                    token: token.map(|token| token.to_string()),
                })
            }
        };
        let mut mix = mix.map_err(|e| Failure::error(e.to_string()))?;
        if let Expectation::All(expect) = self.expect {
            mix.expect(expect);
        }
        Ok(mix)
    }
}

fn expectation(text: &str) -> Result<Expectation, String> {
    if text == "mix" { Ok(Expectation::Mix) } else { text.parse().map(Expectation::All) }
}

fn pid(text: &str) -> Result<(String, u32), String> {
    let (name, pid) = args::pair(text)?;
    let pid = pid.parse().map_err(|_not_a_number| format!("`{pid}` is not the number of a process"))?;
    Ok((name, pid))
}

/// A line on standard error that says whose turn it is.
#[derive(Debug, Default)]
struct Progress {
    shown: std::cell::RefCell<Option<Shown>>,
}

#[derive(Debug)]
struct Shown {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Progress {
    fn start(&self, step: Step<'_>) {
        self.stop();
        if !std::io::stderr().is_terminal() {
            return;
        }
        let round =
            if step.round == 0 { "warm-up".to_owned() } else { format!("round {}/{}", step.round, step.rounds) };
        let text = format!("{round}  {}", step.target);
        let (stop, lasts, started) = (Arc::new(AtomicBool::new(false)), step.lasts.as_secs_f64(), Instant::now());
        let stopped = Arc::clone(&stop);
        // On a thread of its own, five times a second: the thread that generates load has nothing to do with terminals.
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let at = started.elapsed().as_secs_f64().min(lasts);
                let _unseen = write!(std::io::stderr(), "\r\x1b[K{text}  {at:.1} of {lasts:.1} s");
                std::thread::park_timeout(Duration::from_millis(200));
            }
        });
        *self.shown.borrow_mut() = Some(Shown { stop, thread });
    }

    fn stop(&self) {
        let Some(shown) = self.shown.borrow_mut().take() else { return };
        shown.stop.store(true, Ordering::Relaxed);
        shown.thread.thread().unpark();
        let _ended = shown.thread.join();
        let _unseen = write!(std::io::stderr(), "\r\x1b[K");
    }
}
