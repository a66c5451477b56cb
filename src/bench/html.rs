//! The report as one HTML file: tables, and plots in SVG.
//!
//! Plane: composition; no I/O. Self-contained: no script, no font, no image, nothing that a browser would load. Every text
//! from outside is escaped. Fails by nothing: a report without requests has empty plots.

use std::fmt::{self, Write};

use super::plot::{Escaped, Plot, colours, decades, extent, micros, whole};
use super::report::{QUANTILES, Report, TargetReport};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}\
    table{border-collapse:collapse;margin:1em 0}th,td{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd}\
    th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto;background:#fff}\
    svg text{font:11px system-ui,sans-serif;fill:#444}.bad{color:#b00020;font-weight:bold}.note{color:#666}\
    i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}";

/// The report.
pub fn html(report: &Report) -> String {
    let mut page = String::new();
    let _infallible = write_page(&mut page, report);
    page
}

fn write_page(page: &mut String, report: &Report) -> fmt::Result {
    let names: Vec<&str> = report.targets.iter().map(|t| t.name.as_str()).collect();
    let title = names.join(" against ");
    write!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style></head>\
         <body><h1>{0}</h1><p>{1}</p>",
        Escaped(&title),
        Escaped(&report.asked()),
    )?;
    page.push_str("<p>");
    for (target, colour) in report.targets.iter().zip(colours()) {
        write!(
            page,
            "<i style=\"background:{colour}\"></i>{} <span class=\"note\">{}</span> ",
            Escaped(&target.name),
            Escaped(&target.url)
        )?;
    }
    page.push_str("</p>");
    summary(page, report)?;
    comparisons(page, report)?;
    troubles(page, report)?;
    page.push_str("<h2>Latency by percentile</h2>");
    curves(report).write(page)?;
    page.push_str("<h2>Distribution</h2>");
    histograms(report).write(page)?;
    page.push_str("<h2>p99 by round</h2>");
    rounds(report).write(page)?;
    write!(
        page,
        "<p class=\"note\">Latency counts from when a request was due, and a request without an answer counts with at least \
         the timeout of {} s. Ratios are taken within rounds; the median counts. portcullis {}, {}</p></body></html>",
        report.settings.timeout_seconds, report.version, report.at,
    )
}

fn summary(page: &mut String, report: &Report) -> fmt::Result {
    page.push_str("<h2>Latency and cost</h2><table><tr><th></th>");
    for (name, _) in QUANTILES {
        write!(page, "<th>{name}</th>")?;
    }
    page.push_str("<th>max</th><th>answers/s</th><th>failed</th><th>wrong</th><th>CPU</th><th>memory</th></tr>");
    for target in &report.targets {
        write!(page, "<tr><td>{}</td>", Escaped(&target.name))?;
        for (name, _) in QUANTILES {
            write!(page, "<td>{}</td>", micros(target.latency_us.get(name)))?;
        }
        let cpu = target.cpu_us.map_or_else(|| "–".to_owned(), |us| format!("{us:.1} µs"));
        let memory = target.memory.map_or_else(|| "–".to_owned(), |m| format!("{} MiB", m.resident >> 20));
        write!(page, "<td>{}</td><td>{:.0}</td>", micros(target.latency_us.max), target.rate)?;
        for count in [target.failed, target.wrong] {
            write!(page, "<td{}>{count}</td>", if count > 0 { " class=\"bad\"" } else { "" })?;
        }
        write!(page, "<td>{cpu}</td><td>{memory}</td></tr>")?;
    }
    page.push_str("</table>");
    Ok(())
}

fn comparisons(page: &mut String, report: &Report) -> fmt::Result {
    for comparison in &report.comparisons {
        write!(
            page,
            "<h2>{} against {}</h2><table><tr><th></th><th>median</th><th>smallest</th><th>largest</th></tr>",
            Escaped(&comparison.target),
            Escaped(&comparison.baseline),
        )?;
        for (name, ratio) in comparison.in_order() {
            write!(
                page,
                "<tr><td>{name}</td><td>{:.2}×</td><td>{:.2}×</td><td>{:.2}×</td></tr>",
                ratio.median, ratio.min, ratio.max,
            )?;
        }
        page.push_str("</table>");
    }
    Ok(())
}

fn troubles(page: &mut String, report: &Report) -> fmt::Result {
    for target in &report.targets {
        let wrong = target.examples.iter().map(|text| format!("wrong answer: {text}"));
        let failures = target.failures.iter().map(|(name, count)| format!("{count} × {name}"));
        let trouble = target.trouble.iter().cloned();
        for text in wrong.chain(failures).chain(trouble) {
            write!(page, "<p class=\"bad\">{}: {}</p>", Escaped(&target.name), Escaped(&text))?;
        }
    }
    Ok(())
}

fn curves(report: &Report) -> Plot<'static> {
    let series: Vec<Vec<(f64, f64)>> = report
        .targets
        .iter()
        .map(|t| t.curve.iter().map(|(q, us)| (-(1.0 - q).log10(), us.max(1.0))).collect())
        .collect();
    let ticks = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", "99.9999 %"];
    let x_max = extent(&series, |p| p.0).1.max(1.0);
    Plot {
        x_title: "percentile",
        y_title: "latency",
        x_ticks: (0..).map(f64::from).zip(ticks.map(str::to_owned)).take_while(|(x, _)| *x <= x_max).collect(),
        x_range: (0.0, x_max),
        y_range: decades(&series),
        log: true,
        series,
        dots: false,
    }
}

fn histograms(report: &Report) -> Plot<'static> {
    let share = |t: &TargetReport| {
        let all = t.histogram.iter().map(|(_, n)| n).sum::<u64>().max(1) as f64;
        t.histogram.iter().map(|(us, n)| (us.max(1.0).log10(), 100.0 * *n as f64 / all)).collect()
    };
    let series: Vec<Vec<(f64, f64)>> = report.targets.iter().map(share).collect();
    let (from, to) = extent(&series, |p| p.0);
    let (from, to) = (from.floor(), to.ceil().max(from.floor() + 1.0));
    let most = extent(&series, |p| p.1).1.max(1.0);
    let x_ticks = whole(from, to).map(|x| (x, micros(10_f64.powf(x)))).collect();
    let (x_title, y_title) = ("latency", "% of requests");
    Plot { x_title, y_title, x_ticks, x_range: (from, to), y_range: (0.0, most), log: false, series, dots: false }
}

fn rounds(report: &Report) -> Plot<'static> {
    let of = |t: &TargetReport| {
        (1..).map(f64::from).zip(t.rounds.iter().map(|r| r.latency_us.get("p99").max(1.0))).collect()
    };
    let series: Vec<Vec<(f64, f64)>> = report.targets.iter().map(of).collect();
    let last = report.settings.rounds as f64;
    let step = (last / 20.0).ceil().max(1.0);
    let x_ticks = whole(1.0, last).filter(|x| (x - 1.0) % step == 0.0).map(|x| (x, format!("{x}"))).collect();
    let (x_title, y_title, x_range) = ("round", "p99", (0.5, last + 0.5));
    Plot { x_title, y_title, x_ticks, x_range, y_range: decades(&series), log: true, series, dots: true }
}
