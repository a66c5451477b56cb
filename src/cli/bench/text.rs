//! A report as text: what each target did, its histogram, and the comparison.
//!
//! Plane: composition. Fits 100 columns.

use super::super::failure::Failure;
use super::super::output::{Out, Table, printable};
use crate::bench::{QUANTILES, Report, TargetReport, micros};

/// Bars of the histogram, at most.
const BARS: usize = 16;
/// Columns of the longest bar.
const LONGEST: usize = 60;
/// The generator's own delay that is worth a word, in microseconds.
const LATE: f64 = 1_000.0;

/// Prints a report.
pub(super) fn print(out: &mut Out<'_>, report: &Report) -> Result<(), Failure> {
    out.line(report.asked())?;
    for target in &report.targets {
        out.line("")?;
        self::target(out, report, target)?;
    }
    for comparison in &report.comparisons {
        out.line("")?;
        out.line(printable(&format!("{} against {}, round by round", comparison.target, comparison.baseline)))?;
        for (name, ratio) in comparison.in_order() {
            out.line(format!("  {name:<8} {:>7.2}x  ({:.2}x to {:.2}x)", ratio.median, ratio.min, ratio.max))?;
        }
    }
    Ok(())
}

fn target(out: &mut Out<'_>, report: &Report, target: &TargetReport) -> Result<(), Failure> {
    out.line(printable(&format!("{}  {}", target.name, target.url)))?;
    let answers: Vec<String> = target.answers.iter().map(|(answer, n)| format!("{n} {answer}")).collect();
    out.line(format!("  {:.0} answers/s: {}", target.rate, answers.join(", ")))?;
    if let Some(cpu) = target.cpu_us {
        let memory = target
            .memory
            .map_or_else(String::new, |m| format!(", {} MiB resident, {} MiB at most", m.resident >> 20, m.peak >> 20));
        out.line(format!("  {cpu:.1} µs of CPU an answer (the generator {:.1} µs){memory}", target.generator_cpu_us))?;
    }
    for (name, n) in &target.failures {
        out.line(format!("  FAILED {n}: {name}"))?;
    }
    if let Some(trouble) = &target.trouble {
        out.line(printable(&format!("    first: {trouble}")))?;
    }
    if target.wrong > 0 {
        out.line(format!("  WRONG {} answers, as in", target.wrong))?;
        for example in &target.examples {
            out.line(printable(&format!("    {example}")))?;
        }
    }
    if target.exhausted {
        out.line("  ENDED EARLY: requests with new tokens ran out; give --most-requests or a lower --never-seen")?;
    }
    let late = target.lag_us.get("p99");
    if report.settings.rate.is_some() && late > LATE {
        out.line(format!(
            "  LATE: 1 % of requests were sent {} or more after they were due, for want of streams or CPU",
            micros(late)
        ))?;
    }
    let headings: Vec<&'static str> = QUANTILES.iter().map(|(name, _)| *name).chain(["max", "mean"]).collect();
    let mut table = Table::new(&headings);
    let latency = &target.latency_us;
    let cells = QUANTILES.iter().map(|(name, _)| latency.get(name)).chain([latency.max, latency.mean]);
    table.row(cells.map(micros));
    out.table(&table, "")?;
    histogram(out, target)
}

/// Neighbouring bars are put together until there are few enough.
fn histogram(out: &mut Out<'_>, target: &TargetReport) -> Result<(), Failure> {
    let together = target.histogram.len().div_ceil(BARS).max(1);
    let bars = target.histogram.chunks(together).filter_map(|bars| {
        let upper = bars.last()?.0;
        Some((upper, bars.iter().map(|(_, n)| n).sum::<u64>()))
    });
    let bars: Vec<(f64, u64)> = bars.collect();
    let most = bars.iter().map(|(_, n)| *n).max().unwrap_or(1).max(1);
    for (upper, n) in bars {
        let length = (n as f64 / most as f64 * LONGEST as f64).ceil() as usize;
        out.line(format!("  up to {:>8}  {n:>9}  {}", micros(upper), "#".repeat(length)))?;
    }
    Ok(())
}

/// What kept a target from answering, for a message.
pub(super) fn why(target: &TargetReport) -> String {
    let failures: Vec<String> = target.failures.iter().map(|(name, n)| format!("{n} x {name}")).collect();
    let first = target.trouble.as_ref().map_or_else(String::new, |text| format!(" ({})", printable(text)));
    if failures.is_empty() { first } else { format!(": {}{first}", failures.join(", ")) }
}
