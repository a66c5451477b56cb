//! One target against another: their figures divided, round by round.
//!
//! Plane: composition; no I/O. INVARIANT: a ratio is taken within a round and never between the sums of rounds, so that what
//! the machine did in one round falls on both sides; the median of the rounds counts and their range is told.

use std::collections::BTreeMap;

use serde::Serialize;

use super::report::{Round, TargetReport};

type Figure = (&'static str, fn(&Round) -> Option<f64>);
/// What is compared.
const FIGURES: [Figure; 8] = [
    ("p50", |r| Some(r.latency_us.get("p50"))),
    ("p90", |r| Some(r.latency_us.get("p90"))),
    ("p99", |r| Some(r.latency_us.get("p99"))),
    ("p99.9", |r| Some(r.latency_us.get("p99.9"))),
    ("p99.99", |r| Some(r.latency_us.get("p99.99"))),
    ("mean", |r| Some(r.latency_us.mean)),
    ("rate", |r| Some(r.rate)),
    ("cpu", |r| r.cpu_us),
];

/// A target against the first.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The target.
    pub target: String,
    /// The first target.
    pub baseline: String,
    /// By figure: `p50` to `p99.99`, `mean`, `rate`, `cpu`.
    pub ratios: BTreeMap<&'static str, Ratio>,
}

/// A figure of a target divided by that of the first, round by round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// The median of the rounds.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

// === impl Comparison ===

impl Comparison {
    /// The ratios, in the order in which they are read.
    pub fn in_order(&self) -> impl Iterator<Item = (&'static str, Ratio)> {
        FIGURES.iter().filter_map(|(name, _)| Some((*name, *self.ratios.get(name)?)))
    }

    /// Of two targets of one run.
    pub fn of(target: &TargetReport, first: &TargetReport) -> Self {
        let rounds = || target.rounds.iter().zip(&first.rounds);
        let ratios = FIGURES.iter().filter_map(|(name, of)| {
            let each = rounds().filter_map(|(ours, theirs)| Some(of(ours)? / of(theirs)?));
            Some((*name, Ratio::of(each.filter(|r| r.is_finite()).collect())?))
        });
        Self { target: target.name.clone(), baseline: first.name.clone(), ratios: ratios.collect() }
    }
}

impl Ratio {
    /// Of the ratios of rounds; `None` when there are none. The median of an even number is the mean of the middle two.
    fn of(mut rounds: Vec<f64>) -> Option<Self> {
        rounds.sort_by(f64::total_cmp);
        let (min, max) = (*rounds.first()?, *rounds.last()?);
        let middle = rounds.len() / 2;
        let upper = *rounds.get(middle)?;
        let odd = rounds.len() % 2 == 1;
        let lower = if odd { upper } else { *rounds.get(middle.checked_sub(1)?)? };
        Some(Self { median: f64::midpoint(lower, upper), min, max })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::prepare::Plan;
    use super::super::tally::{Answer, Tally};
    use super::*;

    #[test]
    fn the_median_of_ratios_and_their_range() {
        assert_eq!(Ratio::of(vec![]), None);
        assert_eq!(Ratio::of(vec![2.0]), Some(Ratio { median: 2.0, min: 2.0, max: 2.0 }));
        assert_eq!(Ratio::of(vec![3.0, 1.0, 2.0]), Some(Ratio { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Ratio::of(vec![4.0, 1.0, 2.0, 3.0]), Some(Ratio { median: 2.5, min: 1.0, max: 4.0 }));
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        let round = |micros: u64, cpu| {
            let mut tally = Tally::new().unwrap();
            tally.latency.record_n(micros * 1000, 100).unwrap();
            tally.answers.insert(Answer::Allow, 100);
            tally.elapsed = Duration::from_secs(1);
            Round::new(&tally, Some((Duration::from_micros(cpu), vec![])), Duration::ZERO)
        };
        let target = |name: &str, rounds| TargetReport {
            name: name.to_owned(),
            rounds,
            ..TargetReport::new(&Plan::empty(), "", String::new(), &Tally::new().unwrap(), vec![])
        };
        // The machine was three times slower in the second round, for both.
        let first = target("first", vec![round(100, 1000), round(300, 3000), round(100, 1000)]);
        let other = target("other", vec![round(120, 1100), round(360, 3300), round(130, 1500)]);
        let comparison = Comparison::of(&other, &first);
        let p99 = comparison.ratios["p99"];
        assert!((p99.median - 1.2).abs() < 0.01 && (p99.max - 1.3).abs() < 0.01, "{p99:?}");
        let cpu = comparison.ratios["cpu"];
        assert!((cpu.median - 1.1).abs() < 0.01 && (cpu.max - 1.5).abs() < 0.01, "{cpu:?}");
        assert_eq!(comparison.ratios["rate"], Ratio { median: 1.0, min: 1.0, max: 1.0 });
    }
}
