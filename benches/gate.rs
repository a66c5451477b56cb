//! The instruction-count gate: runs each scenario under callgrind and compares with the baseline that is checked in.
//!
//! A count says the same on a busy machine as on an idle one, so a change of a few per cent shows, which no timing on a
//! shared machine does. Fails when a scenario takes 5 % more than the baseline, and asks for a new baseline when it takes
//! 5 % less: one that is not renewed hides the next regression. Also settles what timings cannot: the ratio to `static-allow`
//! (B1) and the share of decision records (B10). `make gate` runs it, `make gate RENEW=1` writes the baseline anew, and
//! `cargo bench --bench gate -- --ratios` counts on the release profile, where there is no baseline.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a bench that cannot run should stop, and it reports to the terminal"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;

use self::scenarios::SCENARIOS;

#[path = "floor.rs"]
mod floor;
#[path = "no_crypto.rs"]
mod no_crypto;
#[path = "gate/scenarios.rs"]
mod scenarios;
#[path = "gate/wire.rs"]
mod wire;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How far a count may be from the baseline.
const BOUND: f64 = 0.05;
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/gate/baseline.yaml");
/// Where callgrind's profiles stay, for `callgrind_annotate`.
const PROFILES: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/gate");

/// What is checked in.
#[derive(serde::Serialize, serde::Deserialize)]
struct Baseline {
    /// The compiler it was taken with. Another one makes other code.
    rustc: String,
    /// Instructions of one repetition, by scenario.
    instructions: BTreeMap<String, u64>,
}

/// What one run of a scenario showed.
struct Count {
    instructions: u64,
    remark: String,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    if let Some(name) = flag("--scenario") {
        // A server's task that panics would leave its client waiting.
        std::panic::set_hook(Box::new(|info| {
            eprintln!("{info}");
            std::process::exit(101);
        }));
        // As in production, where the libraries' spans are off because somebody has said so.
        tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).with_writer(std::io::stderr).init();
        let work = scenarios::run(&name);
        println!("times {}", work.times);
        if let Some(seen) = work.seen {
            let each = |n: u64| n as f64 / work.times as f64;
            println!(
                "remark {:.2} reads, {:.2} writes, {:.0} bytes written a check",
                each(seen.reads),
                each(seen.writes),
                each(seen.bytes)
            );
        }
        return ExitCode::SUCCESS;
    }
    if !args.iter().any(|a| a == "--bench") {
        return ExitCode::SUCCESS; // `cargo test --benches` builds and starts benches; there is nothing to test here.
    }
    let only: Vec<&str> = args.iter().filter(|a| !a.starts_with("--")).map(String::as_str).collect();
    let chosen = |name: &str| only.is_empty() || only.iter().any(|o| name.contains(o));
    let names: Vec<&str> = SCENARIOS.iter().map(|s| s.name).filter(|name| chosen(name)).collect();
    std::fs::create_dir_all(PROFILES).expect("a folder for profiles");
    let counts = count(&names);
    report(&counts, args.iter().any(|a| a == "--renew"), args.iter().any(|a| a == "--ratios"))
}

/// Counts every scenario, as many at once as there are processors.
fn count(names: &[&'static str]) -> BTreeMap<&'static str, Count> {
    let (next, counts) = (Mutex::new(names.iter()), Mutex::new(BTreeMap::new()));
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..processors {
            scope.spawn(|| {
                loop {
                    let Some(name) = next.lock().expect("no panic under it").next() else { return };
                    let count = run(name);
                    counts.lock().expect("no panic under it").insert(*name, count);
                }
            });
        }
    });
    counts.into_inner().expect("no panic under it")
}

/// Runs one scenario under callgrind.
fn run(name: &str) -> Count {
    let scenario = SCENARIOS.iter().find(|s| s.name == name).expect("a scenario of this name");
    let profile = profile_of(name);
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--toggle-collect=*{}*", scenario.within))
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(std::env::current_exe().expect("our own path"))
        .args(["--scenario", name])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|e| panic!("valgrind cannot be started ({e}); on Debian: apt-get install valgrind"));
    assert!(output.status.success(), "`{name}` failed");
    let said = String::from_utf8(output.stdout).expect("text");
    let line = |word: &str| said.lines().find_map(|line| line.strip_prefix(word));
    let times: u64 = line("times ").and_then(|n| n.parse().ok()).expect("how often the work was done");
    let total = std::fs::read_to_string(&profile).expect("callgrind's profile");
    let total = total.lines().find_map(|line| line.strip_prefix("totals: ")).and_then(|n| n.parse::<u64>().ok());
    let total = total.expect("callgrind's total");
    assert!(total > 0, "callgrind collected nothing: it did not find the function to collect in");
    Count { instructions: total / times, remark: line("remark ").unwrap_or_default().to_owned() }
}

fn profile_of(name: &str) -> PathBuf {
    let file: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    Path::new(PROFILES).join(format!("{file}.callgrind"))
}

/// Tells every number, and whether all of them are within the bound. `ratios`: without a baseline, as on another profile.
fn report(counts: &BTreeMap<&str, Count>, renew: bool, ratios: bool) -> ExitCode {
    let none = Baseline { rustc: "no compiler".to_owned(), instructions: BTreeMap::new() };
    let mut baseline = if ratios { none } else { read_baseline(none) };
    let rustc = rustc_version();
    let (mut worse, mut stale) = (0, 0);
    println!("{:<46} {:>12} {:>12} {:>8}", "instructions", "baseline", "now", "change");
    for scenario in SCENARIOS {
        let Some(count) = counts.get(scenario.name) else { continue };
        let now = count.instructions;
        let before = baseline.instructions.insert(scenario.name.to_owned(), now);
        let change = before.map(|before| now as f64 / before as f64 - 1.0);
        let verdict = match change {
            _ if renew || ratios => "",
            Some(change) if change > BOUND => "  REGRESSION",
            Some(change) if change < -BOUND => "  better: renew the baseline",
            Some(_) => "",
            None => "  NOT IN THE BASELINE",
        };
        worse += usize::from(verdict.contains("REGRESSION") || verdict.contains("NOT IN"));
        stale += usize::from(verdict.contains("renew"));
        let before = before.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let change = change.map_or_else(|| "-".to_owned(), |c| format!("{:+.1} %", c * 100.0));
        println!("{:<46} {before:>12} {now:>12} {change:>8}{verdict}", scenario.name);
        if !count.remark.is_empty() {
            println!("  {}", count.remark);
        }
    }
    print_ratios(counts);
    println!("profiles for callgrind_annotate: {PROFILES}");
    if renew {
        write_baseline(&Baseline { rustc, ..baseline });
        return ExitCode::SUCCESS;
    }
    if ratios {
        return ExitCode::SUCCESS;
    }
    if worse == 0 {
        let advice = if stale > 0 { "; `make gate RENEW=1` keeps the gain from being lost unseen" } else { "" };
        println!("none worse than the baseline by more than {:.0} %{advice}", BOUND * 100.0);
        return ExitCode::SUCCESS;
    }
    eprintln!("{worse} worse than the baseline by more than {:.0} %, or not in it", BOUND * 100.0);
    if rustc != baseline.rustc {
        eprintln!("the baseline was taken with {}, this is {rustc}", baseline.rustc);
    }
    eprintln!("a change that is meant, or explained by another compiler: `make gate RENEW=1`, and commit the baseline");
    ExitCode::FAILURE
}

fn ratio_of(counts: &BTreeMap<&str, Count>, of: &str, to: &str) -> Option<f64> {
    Some(counts.get(of)?.instructions as f64 / counts.get(to)?.instructions as f64)
}

/// What two scenarios say together.
fn print_ratios(counts: &BTreeMap<&str, Count>) {
    let ratio = |of: &str, to: &str| ratio_of(counts, of, to);
    for in_flight in ["1", "16"] {
        let of = |server: &str| format!("server, {in_flight} in flight: {server}");
        if let Some(ratio) = ratio(&of("portcullis"), &of("static-allow")) {
            println!("B1 by instructions outside the kernel, {in_flight} in flight: {ratio:.2}x of static-allow");
        }
    }
    let recorded = "server, 16 in flight: portcullis, recorded";
    let plain = "server, 16 in flight: portcullis";
    if let Some(ratio) = ratio(recorded, plain) {
        println!("B10 by instructions of the request's thread: {:+.1} %", (ratio - 1.0) * 100.0);
        if let Some(writer) = ratio_of(counts, "one decision record, on the writer's thread", plain) {
            println!("B10 by instructions, the writer's thread included: {:+.1} %", (ratio - 1.0 + writer) * 100.0);
        }
    }
}

fn read_baseline(none: Baseline) -> Baseline {
    std::fs::read_to_string(BASELINE).map_or(none, |text| serde_yaml_ng::from_str(&text).expect("a baseline"))
}

fn write_baseline(baseline: &Baseline) {
    let text = serde_yaml_ng::to_string(baseline).expect("a baseline");
    let text = format!("# Instructions of one repetition under callgrind. Written by `make gate RENEW=1`.\n{text}");
    std::fs::write(BASELINE, text).expect("the baseline written");
    println!("written: {BASELINE}");
}

fn rustc_version() -> String {
    let output = Command::new("rustc").arg("--version").output().expect("rustc");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}
