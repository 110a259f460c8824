//! The pane of the rules.

use std::fmt::Write as _;

use ratatui::layout::Rect;

use super::canvas::{Canvas, Side, window};
use super::numbers::{count, rate};
use super::{NUMBER, title};
use crate::top::model::{Model, Pane, RuleRow, Tone};

/// Columns of what is special about a rule.
const STATE: u16 = 14;

/// Which columns there is room for.
#[allow(clippy::struct_excessive_bools, reason = "each is a column")]
struct Columns {
    action: bool,
    totals: bool,
    state: bool,
    denied: bool,
}

impl Columns {
    const fn of(width: u16) -> Self {
        Self { action: width >= 60, totals: width >= 70, state: width >= 78, denied: width >= 30 }
    }

    /// What is left for the name.
    fn name(&self, width: u16) -> u16 {
        let numbers = 1 + u16::from(self.denied) + 2 * u16::from(self.totals);
        let rest = numbers * (NUMBER + 1)
            + if self.action { 11 } else { 0 }
            + if self.state { STATE + 1 } else { 0 };
        width.saturating_sub(rest + 2)
    }
}

pub(super) fn draw(canvas: &mut Canvas<'_>, area: Rect, model: &Model) {
    let rules = model.rules.len() as u64;
    let waiting = model.rules.iter().filter(|rule| rule.waits_for.is_some()).count() as u64;
    let mut text = format!("Rules {}", count(rules));
    if waiting > 0 {
        let _ = write!(text, ", {} waiting", count(waiting));
    }
    title(canvas, area, &text, model.order.word(), model.focus == Pane::Rules);
    let columns = Columns::of(area.width);
    if area.height < 3 {
        return;
    }
    heading(canvas, Rect { y: area.y + 1, height: 1, ..area }, &columns);
    let selected = model.rule_index();
    if model.rules.is_empty() {
        let text = if model.state.is_some() { "no rule" } else { "no answer yet" };
        canvas.run((area.x + 2, area.y + 2), area.right(), text, canvas.theme.quiet());
    }
    let shown = window(model.rules.len(), selected, usize::from(area.height - 2));
    for (y, index) in (area.y + 2..).zip(shown) {
        row(canvas, Rect { y, height: 1, ..area }, &columns, &model.rules[index]);
        if index == selected {
            mark(canvas, Rect { y, height: 1, ..area }, model.focus == Pane::Rules);
        }
    }
}

/// Marks the selected row: always by a character, and where the keys go by its look.
pub(super) fn mark(canvas: &mut Canvas<'_>, row: Rect, focused: bool) {
    let style = if focused { canvas.theme.heading() } else { canvas.theme.quiet() };
    canvas.text((row.x, row.y), 1, canvas.theme.marker(), style, Side::Left);
    if focused {
        canvas.paint(row, canvas.theme.selected());
    }
}

fn heading(canvas: &mut Canvas<'_>, area: Rect, columns: &Columns) {
    let quiet = canvas.theme.quiet();
    cells(
        canvas,
        area,
        columns,
        "  rule",
        "action",
        ["exits/s", "exits", "denied/s", "denied"],
        "",
    );
    canvas.paint(area, quiet);
}

fn row(canvas: &mut Canvas<'_>, area: Rect, columns: &Columns, rule: &RuleRow) {
    let numbers =
        [rate(rule.exits), count(rule.exits.total), rate(rule.denied), count(rule.denied.total)];
    let numbers = [0, 1, 2, 3].map(|index| numbers[index].as_str());
    let name = format!("  {}", rule.name);
    let state = rule.state();
    cells(canvas, area, columns, &name, &rule.action, numbers, &state);
    let name = Rect { x: area.x + 2, width: columns.name(area.width).saturating_sub(2), ..area };
    let style = canvas.theme.name();
    canvas.paint(name, style);
    if rule.waits_for.is_some() || rule.spent {
        let quiet = canvas.theme.quiet();
        canvas.paint(area, quiet);
    } else if rule.denied.rate.is_some_and(|rate| rate > 0.0) {
        let bad = canvas.theme.tone(Tone::Bad);
        let denied = columns.denied_place(area);
        canvas.paint(denied, bad);
    }
}

impl Columns {
    /// Where the denials a second stand.
    fn denied_place(&self, area: Rect) -> Rect {
        let behind =
            if self.totals { NUMBER + 1 } else { 0 } + if self.state { STATE + 1 } else { 0 };
        let end = area.right().saturating_sub(behind);
        let x = end.saturating_sub(NUMBER).max(area.x);
        let width = if self.denied { end - x } else { 0 };
        Rect { x, width, ..area }
    }
}

fn cells(
    canvas: &mut Canvas<'_>,
    area: Rect,
    columns: &Columns,
    name: &str,
    action: &str,
    numbers: [&str; 4],
    state: &str,
) {
    let plain = ratatui::style::Style::new();
    let (mut x, y) = (area.x, area.y);
    let width = columns.name(area.width) + 1;
    canvas.text((x, y), width, name, plain, Side::Left);
    x += width + 1;
    if columns.action {
        canvas.text((x, y), 10, action, plain, Side::Left);
        x += 11;
    }
    let shown = [true, columns.totals, columns.denied, columns.denied && columns.totals];
    for (text, _) in numbers.iter().zip(shown).filter(|(_, shown)| *shown) {
        canvas.text((x, y), NUMBER, text, plain, Side::Right);
        x += NUMBER + 1;
    }
    if columns.state {
        canvas.text((x, y), STATE, state, plain, Side::Left);
    }
}
