//! What a run found, for programs: every figure that text and HTML show, and the comparison with the first target.
//!
//! Plane: composition; no I/O. Microseconds throughout. Percentiles are over every request that was due.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::compare::Comparison;
use super::load::Pace;
use super::prepare::Plan;
use super::process::Memory;
use super::run::Settings;
use super::tally::Tally;
use crate::clock::Timestamp;

/// The quantiles that are reported.
pub const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

/// A whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The version of this program.
    pub version: &'static str,
    /// When it ended.
    pub at: Timestamp,
    /// What was asked for.
    pub settings: Asked,
    /// How long the rounds took, in seconds.
    pub took_seconds: f64,
    /// What the targets did, in their order.
    pub targets: Vec<TargetReport>,
    /// Each target but the first, against the first.
    pub comparisons: Vec<Comparison>,
}

/// What was asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Asked {
    /// `rate` or `saturate`.
    pub pace: &'static str,
    /// Requests a second, at a fixed rate.
    pub rate: Option<f64>,
    /// Connections to each target.
    pub connections: usize,
    /// Requests at once on each.
    pub streams: usize,
    /// Rounds.
    pub rounds: usize,
    /// Seconds of a turn.
    pub duration_seconds: f64,
    /// Seconds of warm-up.
    pub warm_up_seconds: f64,
    /// Seconds after which a request was given up.
    pub timeout_seconds: f64,
    /// Names of the requests.
    pub requests: Vec<String>,
}

/// What one target did, all rounds together.
#[derive(Debug, Clone, Serialize)]
pub struct TargetReport {
    /// Its name.
    pub name: String,
    /// Its address.
    pub url: String,
    /// Answers of any kind.
    pub answered: u64,
    /// Requests without one.
    pub failed: u64,
    /// Answers that were not the expected one.
    pub wrong: u64,
    /// Answers a second.
    pub rate: f64,
    /// Latency in microseconds, of every request that was due.
    pub latency_us: Latency,
    /// How late requests were sent, in microseconds: the generator's own doing, and waits for a free stream.
    pub lag_us: Latency,
    /// Answers by kind.
    pub answers: BTreeMap<String, u64>,
    /// Failures by name.
    pub failures: BTreeMap<String, u64>,
    /// The first wrong answers.
    pub examples: Vec<String>,
    /// What was first to go wrong on a connection.
    pub trouble: Option<String>,
    /// Whether requests with new tokens ran out before the time did.
    pub exhausted: bool,
    /// Microseconds of processor time of its processes for each answer.
    pub cpu_us: Option<f64>,
    /// Resident memory of its processes after the last round, and the most that it ever was, in bytes.
    pub memory: Option<MemoryReport>,
    /// Microseconds of processor time of the generator for each answer.
    pub generator_cpu_us: f64,
    /// Each round by itself.
    pub rounds: Vec<Round>,
    /// How many requests took up to so many microseconds, in steps of about a tenth.
    pub histogram: Vec<(f64, u64)>,
    /// Latency in microseconds by quantile, for plots.
    pub curve: Vec<(f64, f64)>,
}

/// Memory of a target's processes, in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MemoryReport {
    /// After the last round.
    pub resident: u64,
    /// The most.
    pub peak: u64,
}

/// A distribution, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    /// The mean.
    pub mean: f64,
    /// By name of the quantile.
    #[serde(flatten)]
    pub quantiles: BTreeMap<&'static str, f64>,
    /// The most.
    pub max: f64,
}

/// One turn of one target.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// Answers a second.
    pub rate: f64,
    /// Answers.
    pub answered: u64,
    /// Requests without one.
    pub failed: u64,
    /// Latency in microseconds.
    pub latency_us: Latency,
    /// Microseconds of processor time of the target's processes for each answer.
    pub cpu_us: Option<f64>,
    /// The same of the generator.
    pub generator_cpu_us: f64,
    #[serde(skip)]
    memory: Option<MemoryReport>,
}

// === impl Report ===

impl Report {
    pub(super) fn new(
        plan: &Plan,
        settings: &Settings,
        at: Timestamp,
        took: Duration,
        measured: Vec<(Tally, Vec<Round>)>,
    ) -> Self {
        let targets: Vec<TargetReport> = settings
            .targets
            .iter()
            .zip(measured)
            .map(|(target, (total, rounds))| {
                TargetReport::new(plan, &target.name, target.place.to_string(), &total, rounds)
            })
            .collect();
        let comparisons = targets
            .split_first()
            .map_or_else(Vec::new, |(first, others)| others.iter().map(|other| Comparison::of(other, first)).collect());
        Self {
            version: env!("CARGO_PKG_VERSION"),
            at,
            settings: Asked::new(plan, settings),
            took_seconds: took.as_secs_f64(),
            targets,
            comparisons,
        }
    }

    /// Whether every request had an answer, and the expected one.
    pub fn is_right(&self) -> bool {
        self.targets.iter().all(|t| t.wrong == 0 && t.failed == 0)
    }

    /// What was asked for, in a sentence.
    pub fn asked(&self) -> String {
        let asked = &self.settings;
        let pace = match asked.rate {
            Some(rate) => format!("{rate} requests/s"),
            None => "saturated".to_owned(),
        };
        format!(
            "{pace}, {} rounds of {} s each, {} connections, {} at once on each",
            asked.rounds, asked.duration_seconds, asked.connections, asked.streams
        )
    }
}

impl Asked {
    fn new(plan: &Plan, settings: &Settings) -> Self {
        let (pace, rate) = match settings.pace {
            Pace::Rate(rate) => ("rate", Some(rate)),
            Pace::Saturate => ("saturate", None),
        };
        Self {
            pace,
            rate,
            connections: settings.connections,
            streams: settings.streams,
            rounds: settings.rounds,
            duration_seconds: settings.duration.as_secs_f64(),
            warm_up_seconds: settings.warm_up.as_secs_f64(),
            timeout_seconds: settings.timeout.as_secs_f64(),
            requests: plan.names().to_vec(),
        }
    }
}

// === impl TargetReport ===

impl TargetReport {
    pub(super) fn new(plan: &Plan, name: &str, url: String, total: &Tally, rounds: Vec<Round>) -> Self {
        let weighted = |of: &dyn Fn(&Round) -> Option<f64>| {
            let sum: f64 = rounds.iter().filter_map(|r| Some(of(r)? * r.answered as f64)).sum();
            let answered: u64 = rounds.iter().filter(|r| of(r).is_some()).map(|r| r.answered).sum();
            (answered > 0).then(|| sum / answered as f64)
        };
        Self {
            name: name.to_owned(),
            url,
            answered: total.answered(),
            failed: total.failed(),
            wrong: total.wrong,
            rate: total.rate(),
            latency_us: Latency::of(&total.latency),
            lag_us: Latency::of(&total.lag),
            answers: total.answers.iter().map(|(answer, n)| (answer.to_string(), *n)).collect(),
            failures: total.failures.iter().map(|(failure, n)| (failure.to_string(), *n)).collect(),
            examples: total
                .examples
                .iter()
                .map(|e| format!("`{}`: expected {}, got {}", plan.name(e.template), e.expect, e.got))
                .collect(),
            trouble: total.trouble.clone(),
            exhausted: total.exhausted,
            cpu_us: weighted(&|r| r.cpu_us),
            memory: rounds.last().and_then(|r| r.memory),
            generator_cpu_us: weighted(&|r| Some(r.generator_cpu_us)).unwrap_or_default(),
            histogram: histogram(&total.latency),
            curve: curve(&total.latency),
            rounds,
        }
    }
}

impl Latency {
    fn of(histogram: &hdrhistogram::Histogram<u64>) -> Self {
        let us = |nanos: u64| nanos as f64 / 1000.0;
        Self {
            mean: histogram.mean() / 1000.0,
            quantiles: QUANTILES.iter().map(|(name, q)| (*name, us(histogram.value_at_quantile(*q)))).collect(),
            max: us(histogram.max()),
        }
    }

    /// A quantile by its name.
    pub fn get(&self, name: &str) -> f64 {
        self.quantiles.get(name).copied().unwrap_or_default()
    }
}

impl Round {
    pub(super) fn new(tally: &Tally, used: Option<(Duration, Vec<Memory>)>, own: Duration) -> Self {
        let each = |used: Duration| used.as_secs_f64() * 1e6 / tally.answered().max(1) as f64;
        Self {
            rate: tally.rate(),
            answered: tally.answered(),
            failed: tally.failed(),
            latency_us: Latency::of(&tally.latency),
            cpu_us: used.as_ref().map(|(cpu, _)| each(*cpu)),
            generator_cpu_us: each(own),
            memory: used.map(|(_, memory)| MemoryReport {
                resident: memory.iter().map(|m| m.resident).sum(),
                peak: memory.iter().map(|m| m.peak).sum(),
            }),
        }
    }
}

/// Counts by upper bound in microseconds, bounds growing by about a tenth.
fn histogram(of: &hdrhistogram::Histogram<u64>) -> Vec<(f64, u64)> {
    let mut out: Vec<(f64, u64)> = Vec::new();
    let mut bound = 1_000.0;
    for step in of.iter_recorded() {
        let value = step.value_iterated_to() as f64;
        while value > bound {
            bound *= 1.1;
        }
        match out.last_mut() {
            Some((last, count)) if *last == bound / 1000.0 => *count += step.count_since_last_iteration(),
            _ => out.push((bound / 1000.0, step.count_since_last_iteration())),
        }
    }
    out
}

/// The latency at quantiles that come closer and closer to 1, as far as there are requests to tell.
fn curve(of: &hdrhistogram::Histogram<u64>) -> Vec<(f64, f64)> {
    if of.is_empty() {
        return Vec::new();
    }
    let mut out = Vec::new();
    let mut rest = 1.0_f64;
    while rest * of.len() as f64 >= 1.0 {
        let quantile = 1.0 - rest;
        out.push((quantile, of.value_at_quantile(quantile) as f64 / 1000.0));
        rest /= 1.25;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_and_curve_hold_every_request() {
        let mut tally = Tally::new().unwrap();
        for n in 1..=10_000_u64 {
            tally.latency.record(n * 1000).unwrap();
        }
        let bars = histogram(&tally.latency);
        assert_eq!(bars.iter().map(|(_, n)| n).sum::<u64>(), 10_000);
        assert!(bars.is_sorted_by(|a, b| a.0 < b.0));
        let curve = curve(&tally.latency);
        assert!(curve.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{curve:?}");
        assert!(curve.last().unwrap().0 > 0.999);
    }
}
