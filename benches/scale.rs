//! A real `portcullis sidecar` at a million grants: memory, bootstrap from disk and over the wire, start, single changes.
//!
//! Budgets B5, B6, B7 (the process) and B12 (start) of the design. The control plane is a process of its own: the real sync
//! server over TLS, on an index filled with generated documents. What is measured is the sidecar's process as the kernel
//! and its own admin port show it. Everything shares this machine; the control plane, which would be elsewhere, runs at a
//! lower priority. Read with `benches/README.md`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a bench that cannot run should stop, and it reports to the terminal"
)]

use std::time::{Duration, Instant};

#[path = "scale/checks.rs"]
mod checks;
#[path = "scale/plane.rs"]
mod plane;
#[path = "scale/sidecar.rs"]
mod sidecar;

use plane::{Plane, Shape};
use sidecar::{Sidecar, Site};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is asked of a run.
struct Args(Vec<String>);

impl Args {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|a| a == name)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().position(|a| a == name).and_then(|i| self.0.get(i + 1)).map(String::as_str)
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.text(name).map_or(default, |n| n.parse().expect("a number"))
    }
}

fn main() {
    portcullis::tls::install_provider();
    let args = Args(std::env::args().skip(1).collect());
    let shape = Shape { grants: args.number("--grants", 1_000_000), worst: args.text("--shape") == Some("worst") };
    if let Some(directory) = args.text("--plane") {
        return plane::serve(directory.as_ref(), shape);
    }
    if !args.has("--bench") {
        return; // `cargo test --benches` builds and starts benches; there is nothing to test here.
    }
    let parts = ["memory", "disk", "wire", "apply", "start"];
    let asked: Vec<&str> = parts.into_iter().filter(|part| args.has(part)).collect();
    for part in if asked.is_empty() { parts.to_vec() } else { asked } {
        match part {
            "memory" => memory(shape),
            "disk" => disk(shape, args.number("--rounds", 3), "B6"),
            "wire" => wire(shape, args.number("--rounds", 3), args.number("--rate", 500)),
            "apply" => apply(shape, args.number("--changes", 2_000)),
            _ => {
                let few = Shape { grants: args.number("--grants", 100_000), ..shape };
                disk(few, args.number("--rounds", 5), "B12");
            }
        }
    }
}

/// B5: the sidecar's resident memory, less that of one with a thousand grants, a grant.
fn memory(shape: Shape) {
    println!("memory: {shape}");
    let measure = |shape: Shape| {
        let site = Site::new();
        let mut plane = Plane::start(&site, shape);
        let sidecar = Sidecar::start(&site, &plane);
        sidecar.wait_until_ready();
        let (over_the_wire, peak) = (sidecar.settled_memory(), sidecar.peak_memory());
        sidecar.wait_for_revision(plane.restart());
        let (after_resync, peak_of_resync) = (sidecar.settled_memory(), sidecar.peak_memory());
        sidecar.stop();
        let sidecar = Sidecar::start(&site, &plane);
        sidecar.wait_until_ready();
        [over_the_wire, peak, after_resync, peak_of_resync, sidecar.settled_memory(), sidecar.peak_memory()]
    };
    let few = Shape { grants: 1_000, ..shape };
    let (little, much) = (measure(few), measure(shape));
    let rows = [
        "over the wire, settled",
        "peak until then",
        "after a resync (two generations), settled",
        "peak until then",
        "from disk, settled",
        "peak until then",
    ];
    println!("  {:<42} {:>10} {:>10} {:>12}", "resident", "1,000", "all", "a grant");
    for ((name, little), much) in rows.iter().zip(little).zip(much) {
        let each = (much as f64 - little as f64) / (shape.grants - few.grants) as f64;
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        println!("  {name:<42} {:>6.1} MiB {:>6.1} MiB {each:>10.1} B", mib(little), mib(much));
    }
}

/// B6 and B12: from the start of the process to ready, with the state on disk and no control plane.
fn disk(shape: Shape, rounds: u64, budget: &str) {
    println!("start from disk ({budget}): {shape}");
    let site = Site::new();
    let plane = Plane::start(&site, shape);
    let sidecar = Sidecar::start(&site, &plane);
    sidecar.wait_until_ready();
    sidecar.wait_for_state_on_disk();
    sidecar.stop();
    let bytes = site.state_bytes();
    drop(plane);
    let mut times = Vec::new();
    for round in 1..=rounds {
        let sidecar = Sidecar::start_alone(&site);
        let (took, cpu) = (sidecar.wait_until_ready(), sidecar.cpu());
        println!("  round {round}: ready after {:7.1} ms, of {:7.1} ms CPU", ms(took), ms(cpu));
        sidecar.stop();
        times.push(took);
    }
    times.sort_unstable();
    println!("  median {:.1} ms; {} MiB on disk, in the page cache", ms(times[times.len() / 2]), bytes >> 20);
}

/// B6: bootstrap over the wire, and what checks notice of a resync.
fn wire(shape: Shape, rounds: u64, rate: u64) {
    println!("bootstrap over the wire (B6): {shape}; control plane, sidecar and {rate} checks/s all on this machine");
    let mut ratios = Vec::new();
    let mut times = Vec::new();
    let site = Site::new();
    let mut plane = Plane::start(&site, shape);
    for round in 1..=rounds {
        site.forget_state();
        let (sidecar, before) = (Sidecar::start(&site, &plane), plane.cpu());
        let took = sidecar.wait_until_ready();
        let (cpu, of_plane) = (sidecar.cpu(), plane.cpu() - before);
        println!(
            "  round {round}: ready after {:7.1} ms, of {:7.1} ms CPU (control plane: {:7.1} ms)",
            ms(took),
            ms(cpu),
            ms(of_plane)
        );
        times.push(took);
        sidecar.wait_for_state_on_disk();
        let checks = checks::Checks::new(&sidecar, &plane.token());
        checks.at_rate(rate, Duration::from_secs(1)); // warm-up
        let quiet = checks.at_rate(rate, Duration::from_secs(4));
        let revision = plane.restart();
        let begun = Instant::now();
        let busy = checks.while_(rate, || sidecar.revision() < revision);
        let resync = begun.elapsed();
        for (name, h) in [("quiet", &quiet), ("resync", &busy)] {
            let [p50, p99] = [0.5, 0.99].map(|q| h.value_at_quantile(q));
            println!(
                "  round {round}  {name:<7} p50 {p50:6} us  p99 {p99:6} us  max {:7} us  {:6} checks",
                h.max(),
                h.len()
            );
        }
        let ratio = busy.value_at_quantile(0.99) as f64 / quiet.value_at_quantile(0.99) as f64;
        println!("  round {round}  p99 {ratio:.2}x during a resync of {:.1} ms (reconnection included)", ms(resync));
        ratios.push(ratio);
        sidecar.stop();
    }
    times.sort_unstable();
    ratios.sort_by(f64::total_cmp);
    println!("  median: ready after {:.1} ms; p99 {:.2}x", ms(times[times.len() / 2]), ratios[ratios.len() / 2]);
}

/// B7, as the process sees it: frame, signature, index, journal, acknowledgement.
fn apply(shape: Shape, changes: u64) {
    println!("one change at a time (B7): {shape}");
    let site = Site::new();
    let mut plane = Plane::start(&site, shape);
    let sidecar = Sidecar::start(&site, &plane);
    sidecar.wait_until_ready();
    sidecar.wait_for_state_on_disk();
    for round in 1..=3 {
        let before = sidecar.cpu();
        sidecar.wait_for_revision(plane.change(changes));
        let each = (sidecar.cpu() - before).as_secs_f64() * 1e6 / changes as f64;
        println!("  round {round}: {each:6.1} us CPU of the process a change, {changes} changes, 500 a second");
    }
    sidecar.stop();
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
