//! Tables of aligned columns.

use std::io::{self, Write};

use anstyle::Style;
use unicode_width::UnicodeWidthStr;

/// On which side of its column a text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Blank columns between two columns.
const GAP: usize = 2;

/// A table whose columns are as wide as their widest cell.
pub struct Columns {
    alignment: Vec<Align>,
    rows: Vec<Vec<(String, Style)>>,
}

impl Columns {
    /// An empty table.
    pub fn new(alignment: &[Align]) -> Self {
        Self { alignment: alignment.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// If the row has more cells than the table has columns.
    pub fn row(&mut self, cells: impl IntoIterator<Item = (String, Style)>) -> &mut Self {
        let row: Vec<_> = cells.into_iter().collect();
        assert!(row.len() <= self.alignment.len(), "a row has more cells than columns");
        self.rows.push(row);
        self
    }

    /// Writes every row after `indent` blanks, with no blanks at the end of a line.
    pub fn write(&self, out: &mut dyn Write, indent: usize) -> io::Result<()> {
        let widths: Vec<usize> = (0..self.alignment.len())
            .map(|column| {
                self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.0.width()).max()
            })
            .map(Option::unwrap_or_default)
            .collect();
        for row in &self.rows {
            // Blanks are owed until a visible text pays for them.
            let mut owed = indent;
            for (column, (text, style)) in row.iter().enumerate() {
                let slack = widths[column] - text.width();
                let (before, after) = match self.alignment[column] {
                    Align::Left => (0, slack),
                    Align::Right => (slack, 0),
                };
                if text.is_empty() {
                    owed += before + after + GAP;
                    continue;
                }
                write!(out, "{:1$}{style}{text}{style:#}", "", owed + before)?;
                owed = after + GAP;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::style::PLAIN;
    use super::*;

    #[test]
    fn columns_align_by_display_width() {
        let mut table = Columns::new(&[Align::Left, Align::Right, Align::Left]);
        table.row([("漢字".into(), PLAIN), ("1".into(), PLAIN), ("x".into(), PLAIN)]);
        table.row([("a".into(), PLAIN), ("1,000".into(), PLAIN)]);
        table.row([(String::new(), PLAIN), (String::new(), PLAIN), ("z".into(), PLAIN)]);
        let mut out = Vec::new();
        table.write(&mut out, 1).expect("memory");
        let text = String::from_utf8(out).expect("text");
        assert_eq!(text, " 漢字      1  x\n a     1,000\n              z\n");
    }
}
