//! Plots in SVG: axes with ticks, lines or dots, a colour a series.
//!
//! Plane: composition; no I/O. A plot stands in a report or, with a legend, as a file of its own; neither has anything that
//! a browser would load. Every text from outside is escaped. A plot without points has its axes.

use std::fmt::{self, Display, Write};

/// One colour a target, told apart also without seeing red from green.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999"];
/// The size of a plot and its margins.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 45.0;
const TOP: f64 = 12.0;
const RIGHT: f64 = 12.0;
/// The height of the legend of a plot that stands alone.
const LEGEND: f64 = 24.0;

/// Text of others in HTML.
pub(super) struct Escaped<'a>(pub(super) &'a str);

/// A plot. Values are places on the axes: the logarithm to base 10 where an axis is one of powers of ten.
#[derive(Debug, Clone)]
pub struct Plot<'a> {
    /// What runs along.
    pub x_title: &'a str,
    /// What runs up.
    pub y_title: &'a str,
    /// Place on the axis and its name.
    pub x_ticks: Vec<(f64, String)>,
    /// From where to where it runs along.
    pub x_range: (f64, f64),
    /// From where to where it runs up; of the logarithm, when `log`.
    pub y_range: (f64, f64),
    /// Whether values are times in microseconds that run up in powers of ten.
    pub log: bool,
    /// The points of each series.
    pub series: Vec<Vec<(f64, f64)>>,
    /// Whether points are marked.
    pub dots: bool,
}

pub(super) fn colours() -> impl Iterator<Item = &'static str> {
    COLOURS.into_iter().cycle()
}

// === impl Plot ===

impl Plot<'_> {
    /// As a file of its own, with the names of the series.
    pub fn svg(&self, names: &[&str]) -> String {
        let mut file = String::new();
        let _infallible = self.write_file(&mut file, names);
        file
    }

    fn write_file(&self, file: &mut String, names: &[&str]) -> fmt::Result {
        write!(
            file,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" font-family=\"sans-serif\" \
             font-size=\"11\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>",
            HEIGHT + LEGEND
        )?;
        for (n, (name, colour)) in (0..).map(f64::from).zip(names.iter().zip(colours())) {
            let x = LEFT + n * (WIDTH - LEFT - RIGHT) / names.len().max(1) as f64;
            write!(
                file,
                "<rect x=\"{x:.1}\" y=\"6\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"15\" fill=\"#444\">{}</text>",
                x + 15.0,
                Escaped(name)
            )?;
        }
        write!(file, "<svg y=\"{LEGEND}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#444\">")?;
        self.write_body(file)?;
        file.push_str("</svg></svg>\n");
        Ok(())
    }

    pub(super) fn write(&self, page: &mut String) -> fmt::Result {
        write!(page, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">")?;
        self.write_body(page)?;
        page.push_str("</svg>");
        Ok(())
    }

    fn write_body(&self, page: &mut String) -> fmt::Result {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let grid = |page: &mut String, x1: f64, y1: f64, x2: f64, y2: f64| {
            write!(page, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#e2e2e2\"/>")
        };
        for (at, name) in &self.x_ticks {
            let x = self.x(*at);
            grid(page, x, TOP, x, bottom)?;
            write!(
                page,
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 16.0,
                Escaped(name)
            )?;
        }
        for (at, name) in self.y_ticks() {
            let y = self.y(at);
            grid(page, LEFT, y, right, y)?;
            write!(
                page,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                Escaped(&name)
            )?;
        }
        let middle = f64::midpoint(LEFT, right);
        write!(
            page,
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 8.0,
            self.x_title
        )?;
        let middle = f64::midpoint(TOP, bottom);
        write!(
            page,
            "<text x=\"14\" y=\"{middle:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {middle:.1})\">{}</text>",
            self.y_title,
        )?;
        for (points, colour) in self.series.iter().zip(colours()) {
            let at = points.iter().map(|(x, y)| (self.x(*x), self.y(*y)));
            page.push_str("<polyline fill=\"none\" stroke-width=\"1.8\" points=\"");
            for (x, y) in at.clone() {
                write!(page, "{x:.1},{y:.1} ")?;
            }
            write!(page, "\" stroke=\"{colour}\"/>")?;
            for (x, y) in at.filter(|_| self.dots) {
                write!(page, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>")?;
            }
        }
        Ok(())
    }

    fn x(&self, value: f64) -> f64 {
        place(value, self.x_range, (LEFT, WIDTH - RIGHT))
    }

    fn y(&self, value: f64) -> f64 {
        let value = if self.log { value.log10() } else { value };
        place(value, self.y_range, (HEIGHT - BOTTOM, TOP))
    }

    fn y_ticks(&self) -> Vec<(f64, String)> {
        let (from, to) = self.y_range;
        if self.log {
            return whole(from, to).map(|decade| 10_f64.powf(decade)).map(|us| (us, micros(us))).collect();
        }
        (0..=4).map(|n| from + (to - from) * f64::from(n) / 4.0).map(|y| (y, format!("{y:.1}"))).collect()
    }
}

/// Where `value` of a range lies between two ends.
fn place(value: f64, (from, to): (f64, f64), (start, end): (f64, f64)) -> f64 {
    let part = if to > from { (value - from) / (to - from) } else { 0.5 };
    start + part.clamp(0.0, 1.0) * (end - start)
}

pub(super) fn extent(series: &[Vec<(f64, f64)>], of: impl Fn(&(f64, f64)) -> f64) -> (f64, f64) {
    let all = || series.iter().flatten().map(&of);
    let (from, to) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    if from <= to { (from, to) } else { (0.0, 1.0) }
}

/// The whole powers of ten around all latencies.
pub(super) fn decades(series: &[Vec<(f64, f64)>]) -> (f64, f64) {
    let (from, to) = extent(series, |p| p.1);
    let from = from.max(1.0).log10().floor();
    (from, to.max(1.0).log10().ceil().max(from + 1.0))
}

pub(super) fn whole(from: f64, to: f64) -> impl Iterator<Item = f64> {
    std::iter::successors(Some(from.ceil()), |x| Some(x + 1.0)).take_while(move |x| *x <= to)
}

/// A time for people.
pub fn micros(us: f64) -> String {
    match us {
        _ if us >= 1e6 => format!("{} s", three(us / 1e6)),
        _ if us >= 1e3 => format!("{} ms", three(us / 1e3)),
        _ => format!("{} µs", three(us)),
    }
}

/// Three digits.
fn three(n: f64) -> String {
    match n {
        _ if n >= 99.95 => format!("{n:.0}"),
        _ if n >= 9.995 => format!("{n:.1}"),
        _ => format!("{n:.2}"),
    }
}

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}
