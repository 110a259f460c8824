//! The pane of the latest events.

use std::fmt::Write as _;

use ratatui::layout::Rect;
use ratatui::style::Style;

use super::canvas::{Canvas, Side, window};
use super::numbers::{count, rate};
use super::rules::mark;
use super::title;
use crate::top::model::{Count, EventRow, Model, Pane};

/// Columns of a time and of a word.
const TIME: u16 = 9;
const WORD: u16 = 12;
const BYTES: u16 = 19;

pub(super) fn draw(canvas: &mut Canvas<'_>, area: Rect, model: &Model) {
    let events = &model.events;
    let mut text = format!("Events {}", count(events.seen()));
    if let Some(per_second) = events.rate {
        let _ = write!(text, ", {}/s", rate(Count { total: 0, rate: Some(per_second) }));
    }
    let lost = match events.lost() {
        0 => String::new(),
        lost => format!("{} lost", count(lost)),
    };
    title(canvas, area, &text, &lost, model.focus == Pane::Events);
    let rows = events.rows();
    let selected = model.event_index();
    if rows.is_empty() && area.height > 1 {
        let text = "no write was reported since this view began";
        canvas.run((area.x + 2, area.y + 1), area.right(), text, canvas.theme.quiet());
    }
    let shown = window(rows.len(), selected, usize::from(area.height.saturating_sub(1)));
    for (y, index) in (area.y + 1..).zip(shown) {
        let place = Rect { y, height: 1, ..area };
        row(canvas, place, &rows[index]);
        if index == selected && model.focus == Pane::Events {
            mark(canvas, place, true);
        }
    }
}

fn row(canvas: &mut Canvas<'_>, area: Rect, row: &EventRow) {
    let theme = canvas.theme;
    let y = area.y;
    let mut x = area.x + 2;
    let end = area.right();
    let wide = area.width >= 60;
    if wide {
        let time = row.since_start.map_or_else(String::new, |time| format!("{time:.3}"));
        canvas.text((x - 2, y), TIME, &time, theme.quiet(), Side::Right);
        x += TIME;
    }
    // In the narrowest the colour, and the first letters, have to do.
    let word = if wide { WORD } else { 7 };
    canvas.text((x, y), word, &row.word, theme.tone(row.tone), Side::Left);
    x += word + 1;
    let has_place = !row.bytes.is_empty();
    let left = end.saturating_sub(x);
    let name = match (has_place, area.width) {
        (false, _) => left,
        (true, 100..) => (left.saturating_sub(BYTES) / 3).min(28),
        (true, 60..) => left.saturating_sub(BYTES + 22).clamp(8, 24),
        (true, _) => left.saturating_sub(if left > 30 { BYTES + 1 } else { 0 }),
    };
    canvas.text((x, y), name, &row.rule, theme.name(), Side::Left);
    x += name + 1;
    if !has_place {
        return;
    }
    canvas.text((x, y), BYTES, &row.bytes, Style::new(), Side::Left);
    x += BYTES + 1;
    let left = end.saturating_sub(x);
    let process = if row.process.is_empty() || left < 20 { 0 } else { (left / 3).min(24) };
    canvas.text(
        (x, y),
        left.saturating_sub(process + u16::from(process > 0)),
        &row.by,
        Style::new(),
        Side::Left,
    );
    if process > 0 {
        canvas.text((end - process, y), process, &row.process, theme.quiet(), Side::Left);
    }
}
