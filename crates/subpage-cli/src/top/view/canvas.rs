//! Text in a buffer, cut at its place's end.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_width::UnicodeWidthStr;

use super::theme::Theme;
use crate::terminal::Glyphs;

/// A buffer that is drawn into; what lies outside of it is not drawn.
pub(super) struct Canvas<'a> {
    pub(super) buffer: &'a mut Buffer,
    pub(super) theme: Theme,
}

/// Which end of its place a text stands at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

impl Canvas<'_> {
    /// Writes a text into `width` columns from `x` on; a longer one ends with a dot for what is missing.
    pub(super) fn text(
        &mut self,
        (x, y): (u16, u16),
        width: u16,
        text: &str,
        style: Style,
        side: Side,
    ) {
        let area = self.buffer.area;
        let width = width.min(area.right().saturating_sub(x));
        if y >= area.bottom() || width == 0 {
            return;
        }
        let columns = u16::try_from(text.width()).unwrap_or(u16::MAX);
        let ascii = self.theme.glyphs == Glyphs::Ascii;
        let replaced = ascii.then(|| text.replace(|c: char| !c.is_ascii(), "?"));
        let text = replaced.as_deref().unwrap_or(text);
        if columns <= width {
            let x = if side == Side::Right { x + width - columns } else { x };
            self.buffer.set_stringn(x, y, text, usize::from(width), style);
            return;
        }
        // A number that is cut would be another number.
        if side == Side::Right {
            self.buffer.set_stringn(x, y, "#".repeat(width.into()), usize::from(width), style);
            return;
        }
        let (end, _) = self.buffer.set_stringn(x, y, text, usize::from(width - 1), style);
        self.buffer.set_stringn(end, y, if ascii { "~" } else { "…" }, 1, style);
    }

    /// The same, and where the text ends.
    pub(super) fn run(&mut self, (x, y): (u16, u16), end: u16, text: &str, style: Style) -> u16 {
        let width = end.saturating_sub(x);
        self.text((x, y), width, text, style, Side::Left);
        x.saturating_add(u16::try_from(text.width()).unwrap_or(u16::MAX)).min(end)
    }

    /// A row of one style, from its first column to its last.
    pub(super) fn paint(&mut self, area: Rect, style: Style) {
        self.buffer.set_style(area, style);
    }

    /// One character.
    pub(super) fn character(&mut self, (x, y): (u16, u16), character: char, style: Style) {
        if let Some(cell) = self.buffer.cell_mut((x, y)) {
            cell.set_char(character).set_style(style);
        }
    }
}

/// The rows that are shown of a list: those around the selected one.
pub(super) fn window(rows: usize, selected: usize, height: usize) -> std::ops::Range<usize> {
    let first = selected.saturating_sub(height / 2).min(rows.saturating_sub(height));
    first..rows.min(first + height)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selected_row_is_always_shown() {
        for height in 1..6 {
            for rows in 0..12_usize {
                for selected in 0..rows {
                    let shown = window(rows, selected, height);
                    assert!(shown.contains(&selected), "{rows} {selected} {height}");
                    assert_eq!(shown.len(), rows.min(height));
                }
            }
        }
        assert_eq!(window(0, 0, 3), 0..0);
        assert_eq!(window(3, 1, 0), 1..1);
    }

    #[test]
    fn what_does_not_fit_is_marked() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 6, 2));
        let theme = Theme::default();
        let mut canvas = Canvas { buffer: &mut buffer, theme };
        canvas.text((0, 0), 6, "modprobe", Style::new(), Side::Left);
        canvas.text((0, 1), 3, "1234", Style::new(), Side::Right);
        canvas.text((3, 1), 30, "漢字x", Style::new(), Side::Left);
        canvas.text((0, 2), 6, "outside", Style::new(), Side::Left);
        canvas.text((6, 0), 6, "outside", Style::new(), Side::Left);
        let rows: Vec<String> = buffer
            .content()
            .chunks(6)
            .map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect())
            .collect();
        assert_eq!(rows, ["modpr…", "###漢 …"]);
    }
}
