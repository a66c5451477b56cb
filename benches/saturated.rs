//! `loopback`: CPU of a warm check, saturated, of Portcullis and of Portcullis with decision records beside `static-allow`;
//! then decision records at a fixed rate, none of which may be dropped.
//!
//! The load is `portcullis bench`'s: four connections, sixteen checks at once on each, one thread, every answer held
//! against what it should be. Ratios are taken within rounds.

use std::time::Duration;

use portcullis::bench::{self, Comparison, Expect, Mix, Pace, Ratio, Report, Settings, Single, TargetReport};

use super::floor::ORDINARY_HEADERS;
use super::{CONNECTIONS, IN_FLIGHT, Server};

pub(crate) fn run(grants: &str, rounds: usize, seconds: u64, checks: u64) {
    let floor = Server::start("static-allow", grants);
    let ours = Server::start("portcullis", grants);
    let mut recorded = Server::spawn("portcullis+records", grants, &["--key", &ours.key]);
    let mix = warm(&ours.token);
    let servers = [&floor, &ours, &recorded];
    let settings = Settings {
        targets: servers.iter().map(|server| server.target("grpc")).collect(),
        pids: servers.iter().map(|server| (server.name.to_owned(), server.child.id())).collect(),
        rounds,
        duration: Duration::from_secs(seconds),
        ..defaults(Pace::Saturate)
    };
    let report = measure(&mix, &settings);
    let [floor, ours, with] = report.targets.as_slice() else { panic!("three targets") };
    for target in [floor, ours, with] {
        for (n, round) in target.rounds.iter().enumerate() {
            let (name, cpu) = (&target.name, round.cpu_us.expect("its CPU"));
            println!("round {}  {name:<20} {cpu:7.2} us CPU a check  {:8.0} checks/s", n + 1, round.rate);
        }
    }
    println!("median    B1: portcullis against static-allow   {}", ratio(&cpu(ours, floor)));
    println!("median    B10: with decision records to a file  {}", ratio(&cpu(with, ours)));

    let dropped = recorded.dropped();
    let paced = Settings {
        targets: vec![recorded.target("grpc")],
        pids: vec![(recorded.name.to_owned(), recorded.child.id())],
        rounds: 1,
        duration: Duration::from_secs(2 * seconds),
        ..defaults(Pace::Rate(checks as f64))
    };
    let report = measure(&mix, &paced);
    let target = report.targets.first().expect("a target");
    let dropped = recorded.dropped() - dropped;
    let kept = if target.lag_us.get("p99") > 10_000.0 { ", which this machine does not sustain" } else { "" };
    println!(
        "B10: {} checks at {checks}/s asked ({:.0}/s answered{kept}): {dropped} records dropped",
        target.answered, target.rate
    );
}

/// One runtime with so many threads against as many runtimes with one, saturated and at a low rate.
pub(crate) fn runtimes(grants: &str, rounds: usize, seconds: u64) {
    let first = Server::start("portcullis@1", grants);
    let more = |name| Server::spawn(name, grants, &["--key", &first.key]);
    let others = ["portcullis/1", "portcullis@2", "portcullis/2"].map(more);
    let servers: Vec<&Server> = std::iter::once(&first).chain(&others).collect();
    for pace in [Pace::Saturate, Pace::Rate(3_000.0)] {
        let settings = Settings {
            targets: servers.iter().map(|server| server.target("grpc")).collect(),
            pids: servers.iter().map(|server| (server.name.to_owned(), server.child.id())).collect(),
            connections: 2,
            streams: 8,
            rounds,
            duration: Duration::from_secs(seconds),
            ..defaults(pace)
        };
        let report = measure(&warm(&first.token), &settings);
        for target in &report.targets {
            let against = ratio(&cpu(target, &report.targets[0]));
            let (micros, p99) = (target.cpu_us.expect("its CPU"), target.latency_us.get("p99"));
            println!("{:<14} {micros:7.2} us CPU a check  p99 {p99:7.0} us  CPU {against}", target.name);
        }
    }
}

/// Reads by a standing policy, with the headers of an ordinary request and always the same token.
pub(crate) fn warm(token: &str) -> Mix {
    let single = Single {
        method: "GET".to_owned(),
        path: "/catalog/1".to_owned(),
        host: "shop.example".to_owned(),
        headers: ORDINARY_HEADERS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        token: Some(token.to_owned()),
    };
    let mut mix = Mix::single(single).expect("a mix");
    mix.expect(Expect::Allow);
    mix
}

pub(crate) fn defaults(pace: Pace) -> Settings {
    Settings {
        targets: Vec::new(),
        pace,
        connections: CONNECTIONS,
        streams: IN_FLIGHT,
        rounds: 1,
        duration: Duration::from_secs(1),
        warm_up: Duration::from_secs(1),
        timeout: Duration::from_secs(2),
        pids: Vec::new(),
        threads: 1,
        most_requests: 0,
    }
}

/// Runs, and stops at an answer that is wrong or missing.
pub(crate) fn measure(mix: &Mix, settings: &Settings) -> Report {
    let report = bench::run(mix, settings, |_| ()).expect("a run");
    println!("{}", report.asked());
    for target in &report.targets {
        assert_eq!(
            (target.wrong, target.failed),
            (0, 0),
            "{}: {:?} {:?}",
            target.name,
            target.examples,
            target.failures
        );
    }
    report
}

fn cpu(target: &TargetReport, first: &TargetReport) -> Ratio {
    *Comparison::of(target, first).ratios.get("cpu").expect("their CPU")
}

pub(crate) fn ratio(of: &Ratio) -> String {
    format!("{:5.2}x  (rounds {:.2} to {:.2})", of.median, of.min, of.max)
}
