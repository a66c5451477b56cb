//! Results, as text for people or JSON for programs, through one locked handle.
//!
//! Text fits 100 columns: a table gives the room that is left to its widest column and cuts what does not fit, with
//! `…` where something is missing. JSON is never cut.

use std::io::{self, Write};

use serde::Serialize;

use super::failure::Failure;

/// The width that text keeps to.
pub(super) const WIDTH: usize = 100;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// For programs: one document, or one a line where there are several.
    Json,
}

/// Where results go.
pub(super) struct Out<'a> {
    to: Box<dyn Write + 'a>,
    format: Format,
}

/// Rows of cells under headings.
#[derive(Debug)]
pub(super) struct Table {
    headings: Vec<&'static str>,
    /// Columns that are cut last: what is to be typed into the next command.
    whole: &'static [usize],
    rows: Vec<Vec<String>>,
}

// === impl Out ===

impl<'a> Out<'a> {
    /// Standard output, locked.
    pub(super) fn stdout(format: Format) -> Self {
        Self { to: Box::new(io::BufWriter::new(io::stdout().lock())), format }
    }

    #[cfg(test)]
    pub(super) fn to(to: &'a mut Vec<u8>, format: Format) -> Self {
        Self { to: Box::new(to), format }
    }

    /// Whether programs read it.
    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// One line of text.
    pub(super) fn line(&mut self, text: impl AsRef<str>) -> Result<(), Failure> {
        writeln!(self.to, "{}", text.as_ref())?;
        Ok(())
    }

    /// Text as it is.
    pub(super) fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.to.write_all(text.as_bytes())?;
        Ok(())
    }

    /// One JSON document, pretty.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer_pretty(&mut self.to, value).map_err(io::Error::from)?;
        writeln!(self.to)?;
        Ok(())
    }

    /// Hands over what was written so far.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    /// A table, or a line that says that there is nothing.
    pub(super) fn table(&mut self, table: &Table, none: &str) -> Result<(), Failure> {
        if table.rows.is_empty() {
            return self.line(none);
        }
        for line in table.lines() {
            self.line(line)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Out<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Out").field("format", &self.format).finish_non_exhaustive()
    }
}

// === impl Table ===

impl Table {
    /// An empty table.
    pub(super) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), whole: &[], rows: Vec::new() }
    }

    /// Leaves these columns whole as long as others can be cut.
    pub(super) const fn whole(mut self, columns: &'static [usize]) -> Self {
        self.whole = columns;
        self
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|c| printable(&c)).collect());
    }

    fn lines(&self) -> Vec<String> {
        let headings: Vec<String> = self.headings.iter().map(|h| h.to_uppercase()).collect();
        let all = || std::iter::once(&headings).chain(&self.rows);
        let mut widths: Vec<usize> = (0..headings.len())
            .map(|i| all().filter_map(|row| row.get(i)).map(|c| c.chars().count()).max().unwrap_or(0))
            .collect();
        let gaps = 2 * widths.len().saturating_sub(1);
        let mut excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(WIDTH);
        while excess > 0 {
            // The widest column pays first, so that short ones stay whole.
            let of = |columns: &mut dyn Iterator<Item = (usize, usize)>| {
                columns.filter(|(_, width)| *width > 4).max_by_key(|(_, width)| *width).map(|(column, _)| column)
            };
            let all = || widths.iter().copied().enumerate();
            let widest = of(&mut all().filter(|(column, _)| !self.whole.contains(column))).or_else(|| of(&mut all()));
            let Some(width) = widest.and_then(|column| widths.get_mut(column)) else { break };
            *width -= 1;
            excess -= 1;
        }
        all()
            .map(|row| row.iter().zip(&widths).map(|(c, w)| fit(c, *w)).collect::<Vec<_>>().join("  "))
            .map(|line| line.trim_end().to_owned())
            .collect()
    }
}

/// `cell` in so many columns. A SPIFFE ID loses its beginning, since its end tells workloads apart.
pub(super) fn fit(cell: &str, width: usize) -> String {
    let have = cell.chars().count();
    if have <= width {
        return format!("{cell:<width$}");
    }
    if cell.starts_with("spiffe://") {
        return std::iter::once('…').chain(cell.chars().skip(have + 1 - width.max(1))).collect();
    }
    let mut cut: String = cell.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// `text` without control characters: what comes from elsewhere must not move the cursor.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_fit_and_lose_only_what_does_not() {
        let mut table = Table::new(&["id", "text"]);
        table.row(["short".to_owned(), "x".repeat(300)]);
        table.row(["a\u{1b}[2Jb".to_owned(), "y".to_owned()]);
        let mut bytes = Vec::new();
        Out::to(&mut bytes, Format::Text).table(&table, "none").unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.lines().all(|l| l.chars().count() <= WIDTH), "{text}");
        assert!(text.contains("short") && text.contains('…') && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn an_id_stays_whole_and_a_spiffe_id_keeps_its_end() {
        let id = "28130d7c-8812-4346-9f9e-c790a984b11f";
        let mut table = Table::new(&["id", "workload", "reason"]).whole(&[0]);
        table.row([id.to_owned(), format!("spiffe://{}/agent", "a".repeat(90)), "r".repeat(90)]);
        let lines = table.lines();
        assert!(lines.iter().all(|l| l.chars().count() <= WIDTH), "{lines:?}");
        assert!(lines.last().is_some_and(|l| l.starts_with(id) && l.contains("aa/agent  r")), "{lines:?}");
        // Fitting comes first.
        let mut table = Table::new(&["id", "text"]).whole(&[0, 1]);
        table.row(["i".repeat(90), "t".repeat(90)]);
        assert!(table.lines().iter().all(|l| l.chars().count() <= WIDTH), "{:?}", table.lines());
    }
}
