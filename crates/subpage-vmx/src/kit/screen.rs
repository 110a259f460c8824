//! A report on the screen, where the firmware and the boot loader have left one for text.
//!
//! Unsafe because the screen's memory is written.
#![allow(unsafe_code)]

use alloc::vec::Vec;

use crate::boot::information::TextScreen;

/// Deviations that are shown: each takes a row, and the timings behind them have to stay.
const DEVIATIONS: usize = 2;
/// Begins a line that tells of one.
const DEVIATION: &str = "deviation ";
/// Light grey on black.
const ATTRIBUTE: u16 = 0x0700;

/// Rows of text, of which the last ones are seen.
#[derive(Debug)]
pub struct Page {
    columns: usize,
    rows: usize,
    lines: Vec<Vec<u8>>,
    deviations: usize,
}

impl Page {
    /// An empty one.
    pub fn new(columns: usize, rows: usize) -> Self {
        Self { columns, rows, lines: Vec::new(), deviations: 0 }
    }

    /// Adds a line, which is cut at the screen's edge; of deviations only the first few.
    pub fn add(&mut self, line: &str) {
        if line.starts_with(DEVIATION) {
            self.deviations += 1;
            if self.deviations > DEVIATIONS {
                return;
            }
        }
        if self.lines.len() == self.rows {
            self.lines.remove(0);
        }
        let bytes = line.bytes().take(self.columns);
        self.lines.push(
            bytes.map(|byte| if (b' '..=b'~').contains(&byte) { byte } else { b'?' }).collect(),
        );
    }

    /// Every cell, row by row.
    pub fn cells(&self) -> impl Iterator<Item = u16> + '_ {
        (0..self.rows).flat_map(move |row| {
            let line = self.lines.get(row).map_or(&[][..], Vec::as_slice);
            (0..self.columns)
                .map(move |column| ATTRIBUTE | u16::from(line.get(column).copied().unwrap_or(b' ')))
        })
    }
}

/// A screen for text.
#[derive(Debug)]
pub struct Screen {
    place: TextScreen,
    page: Page,
}

impl Screen {
    /// Clears it.
    ///
    /// # Safety
    /// The boot loader has told of it, its memory is mapped to itself, and nobody else writes there.
    pub unsafe fn new(place: TextScreen) -> Self {
        let page = Page::new(usize::from(place.columns), usize::from(place.rows));
        let mut screen = Self { place, page };
        screen.draw();
        screen
    }

    /// Shows a line more.
    pub fn add(&mut self, line: &str) {
        self.page.add(line);
        self.draw();
    }

    fn draw(&mut self) {
        let first = core::ptr::with_exposed_provenance_mut::<u16>(self.place.address as usize);
        for (at, cell) in self.page.cells().enumerate() {
            let place = first.wrapping_add(at);
            // SAFETY: by the contract of `new`: a cell of the screen's memory, as many as it has.
            unsafe { place.write_volatile(cell) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::String;

    use super::*;

    fn shown(page: &Page) -> Vec<String> {
        let cells: Vec<_> = page.cells().collect();
        assert_eq!(cells.len(), page.columns * page.rows);
        assert!(cells.iter().all(|cell| cell & 0xFF00 == ATTRIBUTE));
        let rows = cells.chunks(page.columns);
        let text = |row: &[u16]| -> String {
            row.iter().map(|cell| char::from(u8::try_from(cell & 0xFF).expect("a byte"))).collect()
        };
        rows.map(text).collect()
    }

    #[test]
    fn the_last_lines_are_seen_and_long_ones_are_cut() {
        let mut page = Page::new(8, 3);
        assert_eq!(shown(&page), ["        "; 3]);
        for line in ["one", "two", "a \u{1b} long line", "four"] {
            page.add(line);
        }
        assert_eq!(shown(&page), ["two     ", "a ? long", "four    "]);
    }

    #[test]
    fn deviations_leave_room_for_the_rest() {
        let mut page = Page::new(40, 5);
        page.add("begins");
        for case in 0..100 {
            page.add(&format!("deviation in case {case}"));
        }
        page.add("done");
        let shown = shown(&page);
        let rows: Vec<_> = shown.iter().map(|row| row.trim_end()).collect();
        assert_eq!(rows, ["begins", "deviation in case 0", "deviation in case 1", "done", ""]);
    }
}
