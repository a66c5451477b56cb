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
        Self { headings: headings.to_vec(), rows: Vec::new() }
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
            let Some(widest) = widths.iter_mut().max().filter(|w| **w > 4) else { break };
            *widest -= 1;
            excess -= 1;
        }
        all()
            .map(|row| row.iter().zip(&widths).map(|(c, w)| fit(c, *w)).collect::<Vec<_>>().join("  "))
            .map(|line| line.trim_end().to_owned())
            .collect()
    }
}

fn fit(cell: &str, width: usize) -> String {
    let have = cell.chars().count();
    if have <= width {
        return format!("{cell:<width$}");
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
}
